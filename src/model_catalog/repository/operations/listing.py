"""List models in pages or whole, as `Model` objects or as plain rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, TypeAlias, TypeVar, cast

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    select,
)

from model_catalog.concurrency.gc_pauses import gc_paused
from model_catalog.connection.database_info import catalog_schema, host_of
from model_catalog.domain import validation
from model_catalog.domain.fields import ModelRow, Sort
from model_catalog.domain.page_token import Listing, Position, invalid_token
from model_catalog.errors import InvalidModelError
from model_catalog.execution.executor import Operation, read_once
from model_catalog.execution.prepared_statement import (
    PreparedStatement,
    Row,
    convert_in_slices,
    fetch_cached,
    raw_column,
)
from model_catalog.mapping.search_index.condition import has_text, use_index
from model_catalog.mapping.tables import Model
from model_catalog.repository.statements.filters import (
    Filters,
    bound_name,
    build_bound_where,
    model_columns,
)
from model_catalog.repository.statements.index_ranges import (
    MAX_PROVIDERS,
    count_some,
    provider_name,
    select_providers,
)
from model_catalog.repository.statements.page_statements import (
    PageBuilder,
    PageParts,
    PageShape,
    count_by_name,
    count_searched,
    prepare_page,
    search_by_name,
    search_first,
    sort_all,
    walk,
)
from model_catalog.repository.statements.pagination import Page, SortOrder
from model_catalog.repository.statements.row_conversion import (
    as_text,
    select_models,
    select_rows,
    to_models,
    to_models_of_server,
    to_rows,
)
from model_catalog.repository.statements.totals.model_totals import (
    COUNTED_FIELDS,
    count_roughly,
)

_WINDOW_FACTOR: Final = 64
_MAX_WINDOW: Final = 50_000
"""Of this many models, a scan of a million is no slower than their search by id."""

_SCAN_FACTOR: Final = 16
"""SQLite reads this many models one after the other in the time that one takes by an index."""

_SELECTIVE_FILTERS: Final = {"reference", "ids", "digest", "tags", "any_tags"}
"""Filters that have an index of their own, or that few models pass."""

_FEW: Final = 1_000
"""As many models of a provider or a store are sorted, whatever the order is."""

_COUNTS: Final = {name: PreparedStatement(count_some(name)) for name in ("provider", "store")}
_PROVIDERS: Final = PreparedStatement(select_providers())
T = TypeVar("T", Model, ModelRow, int)
RowConverter: TypeAlias = Callable[[Iterable[Row]], list[T]]
"""Converts raw rows, as a list or an iterator, to models, to plain rows or to ids."""


@dataclass(frozen=True, slots=True)
class PageQuery(Generic[T]):
    """A page to read: its statement, its parameters, and what its rows are converted to."""

    convert: RowConverter[T]
    page: Page
    values: dict[str, Any]
    where: list[ColumnElement[bool]]
    names: tuple[str, ...] | None = None
    """The names of the filters, if the statement can be prepared for other values of them."""
    is_common: bool = True
    """Whether many models may pass the filters, as far as the names of the filters tell."""
    indexed: Mapping[str, str] = field(default_factory=dict)
    """The provider and the store of all models, if the filters name them."""

    @property
    def select(self) -> Callable[[str], Select[Any]]:
        """The function that returns, for a dialect, the SELECT whose rows `convert` takes."""
        return _SELECTS.get(self.convert, select_models)

    def converter(self, dialect: str) -> RowConverter[T]:
        """Return `convert`, or a faster function that is the same for rows of a server."""
        if dialect == "sqlite" or cast("object", self.convert) is not to_models:
            return self.convert
        return cast("RowConverter[T]", to_models_of_server)


@dataclass(frozen=True, slots=True)
class ModelPage:
    """A page of a listing."""

    models: list[Model]
    next_token: str | None
    """The `page_token` of the next page; None if this page is the last."""


@dataclass(frozen=True, slots=True)
class _TokenPageQuery:
    query: PageQuery[Model]
    limit: int
    encode_token: Callable[[Position], str]


def list_page(
    convert: RowConverter[T],
    dialect: str,
    filters: Filters,
    *,
    sort: Sort,
    descending: bool | None,
    limit: int | None,
    after: Model | ModelRow | None,
) -> Operation[PageQuery[T], list[T]]:
    """
    Return the operation that lists the models that pass all filters.

    `limit` and `after`, the last model of the page before, select a page.
    """
    order = SortOrder.validated(sort, descending)
    position = None if after is None else order.position_of(after)
    where, parameters, names = build_bound_where(filters, dialect)
    page, values = Page.validated(order, position, limit)
    query = PageQuery(convert, page, values | parameters, where, names, *_facts(filters))
    return read_once(fetch_page, query, may_lag=True)


def _facts(filters: Mapping[str, Any]) -> tuple[bool, Mapping[str, str]]:
    """Return whether many models may pass the filters, and the provider and store they name."""
    is_common = all(filters.get(name) is None for name in _SELECTIVE_FILTERS)
    return is_common, {name: filters[name] for name in _COUNTS if filters.get(name) is not None}


def list_ids(
    dialect: str, filters: Filters, *, sort: Sort, descending: bool | None
) -> Operation[PageQuery[int], list[int]]:
    """Return the operation that lists the ids of all models that pass the filters, in order."""
    return list_page(
        _to_ids, dialect, filters, sort=sort, descending=descending, limit=None, after=None
    )


def kept_filters(filters: Filters) -> Filters:
    """Return filters that can be read several times: an iterator can be read only once."""
    kept = {
        name: list(value) if isinstance(value, Iterator) else value
        for name, value in filters.items()
    }
    return cast("Filters", kept)


def _select_ids(_dialect: str) -> Select[Any]:
    return select(raw_column(model_columns.id))


def _to_ids(rows: Iterable[Row]) -> list[int]:
    return [row[0] for row in rows]


_SELECTS: Final[Mapping[object, Callable[[str], Select[Any]]]] = {
    to_rows: select_rows,
    _to_ids: _select_ids,
}
"""The SELECT of the columns that a function converts, if it does not convert to models."""


def list_token_page(
    dialect: str,
    filters: Filters,
    *,
    sort: Sort,
    descending: bool | None,
    limit: int,
    page_token: str | None,
) -> Operation[_TokenPageQuery, ModelPage]:
    """Return the operation that lists the page of a token, or the first page without one."""
    given = kept_filters(filters)
    where, parameters, names = build_bound_where(given, dialect)
    order = SortOrder.validated(sort, descending)
    if not validation.non_negative_int("limit", limit):
        raise InvalidModelError("limit", limit, "is not a page size: give 1 or more")
    in_listing = Listing(order.sort.value, order.is_descending, order.is_by_time, given)
    position = None
    if page_token is not None:
        try:
            position = order.validated_position(in_listing.decode_token(page_token))
        except InvalidModelError as error:
            raise error if error.field == "page_token" else invalid_token(page_token) from error
    # One more than the page, which tells whether a next page exists.
    page, values = Page.validated(order, position, min(limit + 1, validation.MAX_SIZE))
    query = PageQuery(to_models, page, values | parameters, where, names, *_facts(given))
    return read_once(
        fetch_token_page, _TokenPageQuery(query, limit, in_listing.encode_token), may_lag=True
    )


def fetch_token_page(connection: Connection, value: _TokenPageQuery) -> ModelPage:
    """Return a page, with the token of the next one."""
    models = fetch_page(connection, value.query)
    if len(models) <= value.limit:
        return ModelPage(models, None)
    last = value.query.page.order.position_of(models[value.limit - 1])
    return ModelPage(models[: value.limit], value.encode_token(last))


def fetch_page(connection: Connection, query: PageQuery[T]) -> list[T]:
    """Return the models of a page."""
    # While a server is waited for, other tasks run: then it is paused only for a long list.
    with gc_paused() if query.values.get("limit") is None else nullcontext():
        return _fetch_fastest(connection, query)


def _fetch_fastest(connection: Connection, query: PageQuery[T]) -> list[T]:
    """Read a page from an index, if it is faster than to sort all models."""
    page = query.page
    dialect = connection.dialect.name
    where, is_narrow = use_index(connection, query.where, for_page=page.is_walkable)
    if is_narrow:
        # Few models, by id.
        return _fetch_sorted(connection, replace(query, where=where, is_common=True, indexed={}))
    is_searched = dialect == "sqlite" and query.where
    if is_searched and _are_few(connection, query):
        return _fetch_sorted(connection, query, reads_all=False)
    if not page.is_walkable:
        return _fetch_sorted(connection, query)
    # A page of models with a common text, the newest first, is soon read.
    is_text_walked = page.order.is_default and not page.is_continued and has_text(query.where)
    if (is_searched and not is_text_walked) or (dialect == "sqlite" and page.is_by_name):
        return _search_first(connection, query)
    return _convert(connection, query, _fetch_rows(connection, query, walk))


def _fetch_rows(
    connection: Connection,
    query: PageQuery[Any],
    build: PageBuilder,
    *,
    reads_all: bool = False,
    more: Mapping[str, object] | None = None,
) -> Iterable[Row]:
    """Return the rows of the statement that a function builds; `more` are further values."""
    dialect, schema = connection.dialect.name, catalog_schema(connection)
    values = {**query.values, "host": host_of(connection), **(more or {})}
    if query.names is None:
        fields = as_text(query.select, dialect, schema)
        has_provider = "provider" in query.indexed
        parts = PageParts(query.page, fields, dialect, query.where, has_provider, reads_all)
        return fetch_cached(connection, build(parts), values)
    shape = PageShape(build, query.page, query.select, dialect, schema, query.names, reads_all)
    return prepare_page(shape).iterate(connection, values)


def _convert(connection: Connection, query: PageQuery[T], rows: Iterable[Row]) -> list[T]:
    convert = query.converter(connection.dialect.name)

    def convert_part(rows: Iterable[Row]) -> list[T]:
        with gc_paused():
            return convert(rows)

    return convert_in_slices(connection, rows, convert_part, query.values.get("limit"))


def _are_few(connection: Connection, query: PageQuery[T]) -> bool:
    """Return whether the filters name a provider or a store that few models have, on SQLite."""
    values = {"host": host_of(connection), "limit": _FEW + 1}
    for name, value in query.indexed.items():
        found = _COUNTS[name].fetch_all(connection, {**values, name: value})
        if found[0][0] <= _FEW:
            return True
    return False


def _fetch_sorted(
    connection: Connection, query: PageQuery[T], *, reads_all: bool = True
) -> list[T]:
    """
    Read and sort all models that pass the filters.

    `reads_all` says that SQLite reads the table, not an index that begins with the host.
    """
    where, is_narrow = use_index(connection, query.where, for_page=False)
    if is_narrow:
        query = replace(query, where=where, is_common=True, indexed={})
    reads_all = reads_all and connection.dialect.name == "sqlite" and query.is_common
    if reads_all and query.indexed:
        passing, all_models = count_roughly(connection, query.indexed)
        # Also if no models are counted.
        reads_all = passing * _SCAN_FACTOR >= all_models
    return _convert(
        connection, query, _fetch_rows(connection, query, sort_all, reads_all=reads_all)
    )


# SQLite has no histograms: it cannot know whether a page is faster to read from the index of its
# order or by reading all models. So the first models of the order are searched at first. Of a value
# that one model in 64 has, they have a page.
def _search_first(connection: Connection, query: PageQuery[T]) -> list[T]:
    """Search the first models of the order on SQLite, then more of them, and then all."""
    limit = query.values["limit"]
    window = limit * _WINDOW_FACTOR if query.where else limit
    if not query.is_common or window > _MAX_WINDOW:
        return _fetch_sorted(connection, query)
    search = _search_by_name if query.page.is_by_name else _search_in_order
    found = search(connection, query, {"limit": window, "page_limit": limit})
    if found is None and (window := _second_window(connection, query)):
        found = search(connection, query, {"limit": window, "page_limit": limit})
    return _fetch_sorted(connection, query) if found is None else found


def _second_window(connection: Connection, query: PageQuery[Any]) -> int | None:
    """Return the number of first models that are likely to have a page; None if it is too many."""
    if query.names is None or not set(query.names) <= set(COUNTED_FIELDS):
        return None
    given = {name: query.values[bound_name(name)] for name in query.names}
    passing, all_models = count_roughly(connection, given)
    # Twice as many as the page needs if its models are spread evenly.
    window = 2 * query.values["limit"] * all_models // max(passing, 1)
    return window if window * _SCAN_FACTOR <= all_models else None


def _search_in_order(
    connection: Connection, query: PageQuery[T], values: dict[str, int]
) -> list[T] | None:
    """Return the page if the first models of an index have it, or if they are all models."""
    found = _convert(connection, query, _fetch_rows(connection, query, search_first, more=values))
    if len(found) == values["page_limit"] or not query.where:
        return found
    ((searched,),) = _fetch_rows(connection, query, count_searched, more=values)
    return found if searched < values["limit"] else None


def _search_by_name(
    connection: Connection, query: PageQuery[T], values: dict[str, int]
) -> list[T] | None:
    """Return the page as `_search_in_order` does, from the models of a few providers."""
    if "provider" in query.indexed:
        providers: list[object] = [query.indexed["provider"]]
    else:
        found = _PROVIDERS.fetch_all(connection, {"host": host_of(connection)})
        providers = [provider for (provider,) in found]
    # Another program may have recorded a blob in SQLite.
    names = [each for each in providers if isinstance(each, str)]
    if not names or len(names) < len(providers) or len(names) > MAX_PROVIDERS:
        return None
    more = values | {provider_name(number): name for number, name in enumerate(names)}
    count = len(names)
    rows = _fetch_rows(connection, query, search_by_name(count), more=more)
    models = _convert(connection, query, rows)
    if len(models) == values["page_limit"] or not query.where:
        return models
    ((searched,),) = _fetch_rows(connection, query, count_by_name(count), more=more)
    return models if searched < values["limit"] else None

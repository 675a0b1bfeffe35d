"""List models in pages or whole, as `Model` objects or as plain rows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Generic, TypeAlias, TypeVar, cast

from sqlalchemy import ColumnElement, Connection, Select, bindparam, func, select

from model_catalog.concurrency.gc_pauses import gc_paused
from model_catalog.connection.database_info import catalog_schema, host_of
from model_catalog.domain import validation
from model_catalog.domain.fields import ModelRow
from model_catalog.domain.page_token import Listing, Position, invalid_token
from model_catalog.errors import InvalidModelError
from model_catalog.execution.executor import Executor, Operation, read, read_once
from model_catalog.execution.prepared_statement import (
    PreparedStatement,
    Row,
    convert_in_slices,
    fetch_cached,
)
from model_catalog.mapping.tables import Model
from model_catalog.repository.statements.filters import (
    Filters,
    build_where,
    model_columns,
    of_host,
    own_models,
)
from model_catalog.repository.statements.pagination import Page, Sort, SortOrder
from model_catalog.repository.statements.row_conversion import (
    as_text,
    select_models,
    select_rows,
    to_models,
    to_models_of_server,
    to_rows,
)

_PAGE_SIZE: Final = 500
_MAX_NAMES: Final = 1_000
"""More names are not compared one by one."""

T = TypeVar("T", Model, ModelRow)
RowConverter: TypeAlias = Callable[[Iterable[Row]], list[T]]
"""Converts raw rows, as a list or an iterator, to models or to plain rows."""


@dataclass(frozen=True, slots=True)
class PageQuery(Generic[T]):
    """A page to read: its statement, its parameters, and what its rows are converted to."""

    convert: RowConverter[T]
    page: Page
    values: dict[str, Any]
    where: list[ColumnElement[bool]]

    @property
    def select(self) -> Callable[[str], Select[Any]]:
        """The function that returns, for a dialect, the SELECT whose rows `convert` takes."""
        return select_rows if cast("object", self.convert) is to_rows else select_models

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
    page, values = Page.validated(order, position, limit)
    return read_once(
        fetch_page, PageQuery(convert, page, values, build_where(filters, dialect)), may_lag=True
    )


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
    # An iterator can be read only once, and the filters are read twice.
    given = {
        name: list(value) if isinstance(value, Iterator) else value
        for name, value in filters.items()
    }
    where = build_where(given, dialect)
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
    query = PageQuery(to_models, page, values, where)
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
    dialect = connection.dialect.name
    row_count = query.values.get("limit")
    convert = query.converter(dialect)

    def convert_part(rows: Iterable[Row]) -> list[T]:
        with gc_paused():
            return convert(rows)

    # While a server is waited for, other tasks run: then it is paused only for a long list.
    with gc_paused() if row_count is None else nullcontext():
        rows: Iterable[Row]
        if query.where:
            where = own_models(connection, query.where, newest_first=query.page.order.is_indexed)
            fields = as_text(query.select, dialect, catalog_schema(connection))
            models = query.page.apply_to(fields, where)
            rows = fetch_cached(connection, models, query.values)
        else:
            values = {**query.values, "host": host_of(connection)}
            rows = _prepared_page(query.page, query.select, dialect).iterate(connection, values)
        return convert_in_slices(connection, rows, convert_part, row_count)


# There are twelve pages for each sort.
@cache
def _prepared_page(
    page: Page, select: Callable[[str], Select[Any]], dialect: str
) -> PreparedStatement:
    host = bindparam("host", type_=model_columns.host.type)
    return PreparedStatement(page.apply_to(select(dialect), [model_columns.host == host]))


async def iterate(
    executor: Executor,
    convert: RowConverter[T],
    filters: Filters,
    *,
    sort: Sort,
    descending: bool | None,
) -> AsyncIterator[T]:
    """Yield the models that pass all filters, reading a page at a time."""
    last: T | None = None
    while True:
        operation = list_page(
            convert,
            executor.database.dialect,
            filters,
            sort=sort,
            descending=descending,
            limit=_PAGE_SIZE,
            after=last,
        )
        models = await executor.run(operation)
        for model in models:
            yield model
        if not models:
            break
        last = models[-1]


def find_several_versions(
    names: Collection[tuple[str, str]],
) -> Operation[Any, set[tuple[str, str]]]:
    """
    Return the operation that finds which names, (provider, reference), have several versions.

    Of many names it reads the key of every model of the host, and else only the keys of the names.
    """
    return read(select_several_versions, names)


def select_several_versions(
    connection: Connection, names: Collection[tuple[str, str]]
) -> set[tuple[str, str]]:
    """Return the names that have several versions, and perhaps names that were not asked for."""
    if not names:
        return set()
    key = (model_columns.provider, model_columns.reference)
    versions = select(*key).group_by(*key).having(func.count() > 1)
    if len(names) > _MAX_NAMES:
        versions = versions.where(*own_models(connection))
    else:
        # Not pairs: SQLite would read the keys of all models of the host.
        wanted = (
            column.in_(sorted(set(values)))
            for column, values in zip(key, zip(*names, strict=True), strict=False)
        )
        versions = versions.where(of_host(connection), *wanted)
    return {(provider, reference) for provider, reference in connection.execute(versions)}

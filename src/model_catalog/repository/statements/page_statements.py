"""
The statements that read a page of a listing, each prepared once for all pages of its shape.

To build the statement of a page takes 0.5 to 1 ms, which is as long as to execute it. So the values
of simple filters are parameters, and a shape is a page, its columns and the names of the filters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

from sqlalchemy import BigInteger, ColumnElement, Select, bindparam, func, select

from model_catalog.domain.fields import KEY_FIELDS
from model_catalog.execution.prepared_statement import PreparedStatement, raw_column
from model_catalog.repository.statements.filters import (
    bound_condition,
    bound_name,
    is_of_host,
    is_own,
    model_columns,
)
from model_catalog.repository.statements.index_ranges import (
    HOST,
    MAX_PROVIDERS,
    OWN,
    columns_of,
    select_by_name,
    select_first_of,
    select_in_order,
)
from model_catalog.repository.statements.pagination import Page
from model_catalog.repository.statements.row_conversion import as_text

PAGE_LIMIT: Final = bindparam("page_limit", type_=BigInteger)
"""The most models of a page, if `limit` is the number of models that are searched for it."""

_PROVIDER: Final[ColumnElement[str]] = bindparam(
    bound_name("provider"), type_=model_columns.provider.type
)

PageBuilder: TypeAlias = Callable[
    [Page, Select[Any], str, Sequence[ColumnElement[bool]], bool], Select[Any]
]
"""
Returns the statement of a page.

The arguments are the page, the SELECT of its columns, the dialect, the conditions of the filters,
and a fact that the builder names. The host is a parameter of the statement.
"""


class PageShape(NamedTuple):
    """What decides the text of the statement of a page."""

    build: PageBuilder
    fact: bool
    """The argument that the builder names."""
    page: Page
    fields: Callable[[str], Select[Any]]
    """Returns, for a dialect, the SELECT of the columns."""
    dialect: str
    schema: str | None
    names: tuple[str, ...]
    """The names of the filters."""


# A program lists with a handful of filters and orders.
@lru_cache(maxsize=500)
def prepare_page(shape: PageShape) -> PreparedStatement:
    """Return the statement of a page. The values of its filters are parameters."""
    fields = as_text(shape.fields, shape.dialect, shape.schema)
    where = [bound_condition(name, shape.dialect) for name in shape.names]
    return PreparedStatement(shape.build(shape.page, fields, shape.dialect, where, shape.fact))


def walk(
    page: Page,
    fields: Select[Any],
    dialect: str,
    where: Sequence[ColumnElement[bool]],
    _: bool,  # noqa: FBT001 - as all builders
) -> Select[Any]:
    """Read the page from its place in an index."""
    return page.walk(fields, dialect, where)


def sort_all(
    page: Page,
    fields: Select[Any],
    dialect: str,
    where: Sequence[ColumnElement[bool]],
    reads_all: bool,  # noqa: FBT001 - as all builders
) -> Select[Any]:
    """
    Read and sort all models that pass the filters.

    `reads_all` says that SQLite reads the table, not an index that begins with the host.
    """
    if not where:
        # SQLite would read the rows in the order of an index that begins with the host.
        is_unordered = dialect == "sqlite" and not page.order.is_default
        own = is_own(HOST) if is_unordered else OWN
        return page.sort(fields, [own]) if is_unordered else page.apply_to(fields, [own])
    # In the order of an index it would read a row in each of many pages of the file.
    own = is_own(HOST) if reads_all else is_of_host(HOST, dialect, where)
    narrow = page.sort if dialect == "sqlite" else page.apply_to
    return narrow(fields, [own, *where])


def search_first(
    page: Page,
    fields: Select[Any],
    _dialect: str,
    where: Sequence[ColumnElement[bool]],
    has_provider: bool,  # noqa: FBT001 - as all builders
) -> Select[Any]:
    """
    Search the page among the first `limit` models of the order, on SQLite.

    `has_provider` says that the filters name the provider.
    """
    first = _first_models(page, where, has_provider=has_provider)
    return page.of_ids(fields, select_first_of(first, where, PAGE_LIMIT))


def count_searched(
    page: Page,
    _fields: Select[Any],
    _dialect: str,
    where: Sequence[ColumnElement[bool]],
    has_provider: bool,  # noqa: FBT001 - as all builders
) -> Select[Any]:
    """Count the models that `search_first` searches: fewer than `limit` are all that there are."""
    return count_rows(_first_models(page, where, has_provider=has_provider))


def count_rows(models: Select[Any]) -> Select[Any]:
    """Count the rows of a SELECT."""
    one_column = models.with_only_columns(*list(models.selected_columns)[:1])
    return select(raw_column(func.count())).select_from(one_column.subquery())


def first_by_name(
    page: Page,
    where: Sequence[ColumnElement[bool]],
    providers: Sequence[object],
    values: Mapping[str, Any],
) -> Select[Any] | None:
    """
    Select the first `limit` models of some providers by name, on SQLite.

    `values` are those of the page. Returns None if there are too many providers.
    """
    # Another program may have recorded a blob in SQLite.
    names = [each for each in providers[: MAX_PROVIDERS + 1] if isinstance(each, str)]
    if not names or len(names) < len(providers) or len(names) > MAX_PROVIDERS:
        return None
    key = tuple(values[f"after_{name}"] for name in KEY_FIELDS if page.is_continued)
    descending = page.order.is_descending
    return select_by_name(names, columns_of(where), descending=descending, after=key or None)


def _first_models(
    page: Page, where: Sequence[ColumnElement[bool]], *, has_provider: bool
) -> Select[Any]:
    return select_in_order(page.ranges(_PROVIDER if has_provider else None), columns_of(where))

"""
The statements that read a page of a listing, each prepared once for all pages of its shape.

To build the statement of a page takes 0.5 to 1 ms, which is as long as to execute it. So the values
of simple filters are parameters, and a shape is a page, its columns and the names of the filters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

from sqlalchemy import BigInteger, ColumnElement, Select, bindparam, func, select

from model_catalog.execution.prepared_statement import PreparedStatement, raw_column
from model_catalog.repository.statements.filters import (
    bound_condition,
    bound_name,
    expect_many,
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


class PageParts(NamedTuple):
    """What the statement of a page is built of. The host is a parameter of the statement."""

    page: Page
    fields: Select[Any]
    """The SELECT of the columns."""
    dialect: str
    where: Sequence[ColumnElement[bool]]
    """The conditions of the filters."""
    has_provider: bool
    """Whether the filters name the provider."""
    reads_all: bool
    """Whether SQLite reads the table, and not an index that begins with the host."""


PageBuilder: TypeAlias = Callable[[PageParts], Select[Any]]


class PageShape(NamedTuple):
    """What decides the text of the statement of a page."""

    build: PageBuilder
    page: Page
    fields: Callable[[str], Select[Any]]
    """Returns, for a dialect, the SELECT of the columns."""
    dialect: str
    schema: str | None
    names: tuple[str, ...]
    """The names of the filters."""
    reads_all: bool
    """As in PageParts."""


# A program lists with a handful of filters and orders.
@lru_cache(maxsize=500)
def prepare_page(shape: PageShape) -> PreparedStatement:
    """Return the statement of a page. The values of its filters are parameters."""
    parts = PageParts(
        shape.page,
        as_text(shape.fields, shape.dialect, shape.schema),
        shape.dialect,
        [bound_condition(name, shape.dialect) for name in shape.names],
        "provider" in shape.names,
        shape.reads_all,
    )
    return PreparedStatement(shape.build(parts))


def walk(parts: PageParts) -> Select[Any]:
    """Read the page from its place in an index."""
    return parts.page.walk(parts.fields, parts.dialect, parts.where)


def sort_all(parts: PageParts) -> Select[Any]:
    """Read and sort all models that pass the filters."""
    page, is_sqlite = parts.page, parts.dialect == "sqlite"
    if not parts.where:
        # SQLite would read the rows in the order of an index that begins with the host.
        is_unordered = is_sqlite and not page.order.is_default
        own = is_own(HOST) if is_unordered else OWN
        return (page.sort if is_unordered else page.apply_to)(parts.fields, [own])
    if parts.reads_all:
        # In the order of an index it would read a row in each of many pages of the file.
        return page.sort(parts.fields, [is_own(HOST), *map(expect_many, parts.where)])
    own = is_of_host(HOST, parts.dialect, parts.where)
    return (page.sort if is_sqlite else page.apply_to)(parts.fields, [own, *parts.where])


def search_first(parts: PageParts) -> Select[Any]:
    """Search the page among the first `limit` models of the order, on SQLite."""
    first = _first_models(parts)
    return parts.page.of_ids(parts.fields, select_first_of(first, parts.where, PAGE_LIMIT))


def count_searched(parts: PageParts) -> Select[Any]:
    """Count the models that `search_first` searches: fewer than `limit` are all that there are."""
    return _count_rows(_first_models(parts))


def _count_rows(models: Select[Any]) -> Select[Any]:
    """Count the rows of a SELECT."""
    one_column = models.with_only_columns(*list(models.selected_columns)[:1])
    return select(raw_column(func.count())).select_from(one_column.subquery())


def search_by_name(providers: int) -> PageBuilder:
    """Search the page among the first `limit` models of a number of providers, on SQLite."""
    return _by_name(providers)[0]


def count_by_name(providers: int) -> PageBuilder:
    """Count the models that `search_by_name` searches."""
    return _by_name(providers)[1]


# The same functions each time, because they are a part of a PageShape.
@lru_cache(maxsize=MAX_PROVIDERS)
def _by_name(providers: int) -> tuple[PageBuilder, PageBuilder]:
    def first(parts: PageParts) -> Select[Any]:
        page = parts.page
        return select_by_name(
            providers,
            columns_of(parts.where),
            descending=page.order.is_descending,
            is_after=page.is_continued,
        )

    def search(parts: PageParts) -> Select[Any]:
        found = select_first_of(first(parts), parts.where, PAGE_LIMIT)
        return parts.page.of_ids(parts.fields, found)

    return search, lambda parts: _count_rows(first(parts))


def _first_models(parts: PageParts) -> Select[Any]:
    ranges = parts.page.ranges(_PROVIDER if parts.has_provider else None)
    return select_in_order(ranges, columns_of(parts.where))

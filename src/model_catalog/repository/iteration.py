"""Yields the models of a listing, and keeps no more than a page of them in memory."""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator
from datetime import datetime
from functools import cache
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import Connection, bindparam, select

from model_catalog.domain.fields import ModelRow, Sort
from model_catalog.execution.executor import Executor, read_once
from model_catalog.execution.prepared_statement import PreparedStatement, raw_column
from model_catalog.mapping.column_types import UnixTimestamp
from model_catalog.mapping.tables import Model
from model_catalog.repository.operations.listing import (
    PageQuery,
    RowConverter,
    fetch_page,
    kept_filters,
    list_ids,
    list_page,
)
from model_catalog.repository.statements.filters import Filters, model_columns
from model_catalog.repository.statements.index_ranges import KEY
from model_catalog.repository.statements.pagination import SortOrder

T = TypeVar("T", Model, ModelRow)

_PAGE_SIZE: Final = 500


class _Wanted(NamedTuple):
    """A page, and the ids of the whole listing, which are seldom read."""

    page: PageQuery[Any]
    ids: PageQuery[int]


async def iterate(
    executor: Executor,
    convert: RowConverter[T],
    filters: Filters,
    *,
    sort: Sort,
    descending: bool | None,
) -> AsyncIterator[T]:
    """Yield the models that pass all filters, reading a page at a time."""
    order = SortOrder.validated(sort, descending)
    kept = kept_filters(filters)
    pages = (_pages if order.is_indexed else _sorted_pages)(executor, convert, kept, order)
    async for page in pages:
        for model in page:
            yield model


async def _pages(
    executor: Executor, convert: RowConverter[T], filters: Filters, order: SortOrder
) -> AsyncIterator[list[T]]:
    """Yield pages, each of which starts after the last model of the page before."""
    dialect = executor.database.dialect
    options: Any = {"sort": order.sort, "descending": order.is_descending}
    ids = list_ids(dialect, filters, **options).value
    last: T | None = None
    while True:
        query = list_page(convert, dialect, filters, limit=_PAGE_SIZE, after=last, **options).value
        page: list[T]
        page, rest = await executor.run(
            read_once(_fetch_page_and_rest, _Wanted(query, ids), may_lag=True)
        )
        if not page:
            return
        yield page
        if rest is not None:
            async for each in _pages_of_ids(executor, convert, filters, order, rest):
                yield each
            return
        last = page[-1]


def _fetch_page_and_rest(
    connection: Connection, wanted: _Wanted
) -> tuple[list[Any], array[int] | None]:
    """
    Return a page, and the ids of all later models if no page can start after its last one.

    So it is if another program has recorded a value that is read as another one, such as a time
    beyond the year 9999.
    """
    page = fetch_page(connection, wanted.page)
    if not page or not _is_odd(connection, wanted.page.page.order, page[-1]):
        return page, None
    ids = fetch_page(connection, wanted.ids)
    # On PostgreSQL some models of the page may have been removed since.
    read = {model.id for model in page}
    place = max((place for place, id_ in enumerate(ids) if id_ in read), default=-1)
    return page, array("q", ids[place + 1 :])


def _is_odd(connection: Connection, order: SortOrder, model: Model | ModelRow) -> bool:
    """Return whether a model's place in an order is not the one that its values state."""
    value = getattr(model, order.sort.value)
    is_negative = isinstance(value, int) and value < 0
    if is_negative or (value is not None and connection.dialect.name != "sqlite"):
        # A server has the types of its columns. Only a time can be read as another value: as None.
        return is_negative
    if isinstance(value, datetime):
        value = UnixTimestamp().process_bind_param(value, connection.dialect)
    (stored,) = _stored_position(order.sort).fetch_all(connection, {"id": model.id}) or [()]
    return bool(stored) and tuple(stored) != (
        value,
        model.provider,
        model.reference,
        model.version,
    )


@cache
def _stored_position(sort: Sort) -> PreparedStatement:
    columns = (model_columns[sort.value], *KEY)
    return PreparedStatement(
        select(*map(raw_column, columns)).where(model_columns.id == bindparam("id"))
    )


async def _sorted_pages(
    executor: Executor, convert: RowConverter[T], filters: Filters, order: SortOrder
) -> AsyncIterator[list[T]]:
    """
    Yield pages in an order that has no index.

    Each page of `_pages` would read and sort all models. So they are sorted once, and their ids are
    kept: 8 bytes a model.
    """
    listed: list[int] = await executor.run(
        list_ids(
            executor.database.dialect, filters, sort=order.sort, descending=order.is_descending
        )
    )
    async for page in _pages_of_ids(executor, convert, filters, order, array("q", listed)):
        yield page


async def _pages_of_ids(
    executor: Executor,
    convert: RowConverter[T],
    filters: Filters,
    order: SortOrder,
    ids: array[int],
) -> AsyncIterator[list[T]]:
    """Yield pages of the models with these ids that still pass the filters, in this order."""
    for start in range(0, len(ids), _PAGE_SIZE):
        part = ids[start : start + _PAGE_SIZE].tolist()
        places = {id_: place for place, id_ in enumerate(part)}
        operation = list_page(
            convert,
            executor.database.dialect,
            {**filters, "ids": part},
            sort=order.sort,
            descending=order.is_descending,
            limit=None,
            after=None,
        )
        page = await executor.run(operation)
        # A value that has changed since does not move its model.
        page.sort(key=lambda model: places[model.id])
        yield page

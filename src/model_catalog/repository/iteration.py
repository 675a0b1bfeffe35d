"""Yields the models of a listing, and keeps no more than a page of them in memory."""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator
from typing import Final, TypeVar

from model_catalog.domain.fields import ModelRow, Sort
from model_catalog.execution.executor import Executor
from model_catalog.mapping.tables import Model
from model_catalog.repository.operations.listing import (
    RowConverter,
    kept_filters,
    list_ids,
    list_page,
)
from model_catalog.repository.statements.filters import Filters
from model_catalog.repository.statements.pagination import SortOrder

T = TypeVar("T", Model, ModelRow)

_PAGE_SIZE: Final = 500


async def iterate(
    executor: Executor,
    convert: RowConverter[T],
    filters: Filters,
    *,
    sort: Sort,
    descending: bool | None,
) -> AsyncIterator[T]:
    """Yield the models that pass all filters, reading a page at a time."""
    kept = kept_filters(filters)
    has_index = SortOrder.validated(sort, descending).is_indexed
    pages = (_pages if has_index else _pages_of_ids)(
        executor, convert, kept, sort=sort, descending=descending
    )
    async for page in pages:
        for model in page:
            yield model


async def _pages(
    executor: Executor,
    convert: RowConverter[T],
    filters: Filters,
    *,
    sort: Sort,
    descending: bool | None,
) -> AsyncIterator[list[T]]:
    """Yield pages, each of which starts after the last model of the page before."""
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
        page = await executor.run(operation)
        if not page:
            return
        yield page
        last = page[-1]


async def _pages_of_ids(
    executor: Executor,
    convert: RowConverter[T],
    filters: Filters,
    *,
    sort: Sort,
    descending: bool | None,
) -> AsyncIterator[list[T]]:
    """
    Yield pages in an order that has no index.

    Each page of `_pages` would read and sort all models. So they are sorted once, and their ids are
    kept: 8 bytes a model.
    """
    dialect = executor.database.dialect
    ids_in_order = list_ids(dialect, filters, sort=sort, descending=descending)
    listed: list[int] = await executor.run(ids_in_order)
    ids = array("q", listed)
    for start in range(0, len(ids), _PAGE_SIZE):
        part = ids[start : start + _PAGE_SIZE].tolist()
        places = {id_: place for place, id_ in enumerate(part)}
        given: Filters = {**filters, "ids": part}
        operation = list_page(
            convert, dialect, given, sort=sort, descending=descending, limit=None, after=None
        )
        page = await executor.run(operation)
        # A value that has changed since does not move its model.
        page.sort(key=lambda model: places[model.id])
        yield page

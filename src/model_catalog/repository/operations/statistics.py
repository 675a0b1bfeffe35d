"""Count models and sum their sizes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, func, select
from sqlalchemy.exc import OperationalError

from model_catalog.connection.database_info import host_of
from model_catalog.execution.executor import Operation, read
from model_catalog.repository.statements.filters import (
    EFFECTIVE_COLUMNS,
    Filters,
    build_where,
    model_columns,
    own_models,
    select_aggregate,
)
from model_catalog.repository.statements.totals.disk_usage import (
    ALL_GROUPS,
    EXACTNESS,
    TOTAL,
    join_sums,
    select_disk_usage,
    select_totals_by,
    split_sums,
)
from model_catalog.repository.statements.totals.model_totals import (
    are_counters_exact,
    counted_filters,
    counters_by_group,
    read_counters,
)

Where = list[ColumnElement[bool]]

_COUNT: Final = func.count()
_TOTAL: Final = func.sum(model_columns.size_bytes)
_SPLIT_SUMS: Final = split_sums(model_columns.size_bytes)
# Integer overflow has no error code of its own in SQLite: it has the generic one.
_GENERIC_ERROR: Final = "SQLITE_ERROR"

_GROUPS: Final = ("provider", "format", "architecture", "quantization")
_INDEXES: Final = range(len(_GROUPS))


@dataclass(frozen=True, slots=True)
class ModelTotals:
    """
    The number of models, the sum of their sizes, and the bytes that they take on the disk.

    An unknown size counts 0. `disk_bytes` counts a file once, whatever number of models share it.
    """

    model_count: int
    size_bytes: int
    disk_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CatalogStats:
    """
    The totals of some models: of all, and by provider, format, architecture and quantization.

    Each dict is sorted by size, largest first. The key None has the models without a value. The
    `disk_bytes` of several groups can have a sum above that of `total`, because groups share files.
    """

    total: ModelTotals
    by_provider: dict[str, ModelTotals]
    by_format: dict[str | None, ModelTotals]
    by_architecture: dict[str | None, ModelTotals]
    by_quantization: dict[str | None, ModelTotals]


@dataclass(frozen=True, slots=True)
class Selection:
    """The models that pass some filters, as conditions, and as values for the counters."""

    where: Where
    counted: dict[str, str] | None
    """The values of all filters, if the counters can answer them."""

    @classmethod
    def of(cls, filters: Filters, dialect: str) -> Selection:
        """Return the models that pass all filters."""
        return cls(build_where(filters, dialect), counted_filters(filters, dialect))


def count(filters: Filters, dialect: str) -> Operation[Selection, int]:
    """Return the operation that counts the models that pass all filters."""
    return read(count_models, Selection.of(filters, dialect), may_lag=True)


def count_models(connection: Connection, selection: Selection) -> int:
    """Return the number of models of a selection."""
    if selection.counted is not None:
        counted = read_counters(connection, selection.counted)
        if counted is not None:
            return counted.models
    count_: int = connection.execute(
        select_aggregate(connection, _COUNT, selection.where)
    ).scalar_one()
    return count_


def total_size(filters: Filters, dialect: str) -> Operation[Selection, int]:
    """Return the operation that sums the sizes of the models that pass all filters."""
    return read(sum_sizes, Selection.of(filters, dialect), may_lag=True)


def sum_sizes(connection: Connection, selection: Selection) -> int:
    """Return the sum of sizes in bytes, exact beyond 2**63."""
    if selection.counted is not None:
        counted = read_counters(connection, selection.counted)
        if counted is not None:
            return join_sums(counted.high, counted.low)
    where = selection.where
    # One sum takes a fifth less time than two.
    try:
        return int(connection.scalar(select_aggregate(connection, _TOTAL, where)) or 0)
    except OperationalError as error:
        if getattr(error.driver_exception, "sqlite_errorname", None) != _GENERIC_ERROR:
            raise
    # If the error was not an overflow, this statement raises it again.
    split = select(*_SPLIT_SUMS).where(*own_models(connection, where))
    return join_sums(*connection.execute(split).one())


def disk_usage(filters: Filters, dialect: str) -> Operation[Where, int]:
    """Return the operation that sums the bytes on the disk of the models that pass all filters."""
    return read(sum_disk_bytes, build_where(filters, dialect), may_lag=True)


def sum_disk_bytes(connection: Connection, where: Where) -> int:
    """Return the bytes that models take on the disk, with each file counted once."""
    own = own_models(connection, where)
    return join_sums(*connection.execute(select_disk_usage(own)).one())


def stats(filters: Filters, dialect: str) -> Operation[Selection, CatalogStats]:
    """Return the operation that computes statistics of the models that pass all filters."""
    return read(compute_stats, Selection.of(filters, dialect), may_lag=True)


def compute_stats(connection: Connection, selection: Selection) -> CatalogStats:
    """Return statistics of the models of a selection."""
    groups = [EFFECTIVE_COLUMNS[name] for name in _GROUPS]
    own = own_models(connection, selection.where)
    if selection.counted is not None:
        counters = counters_by_group(_GROUPS, host_of(connection), selection.counted)
        statement = select_totals_by(groups, own, counters, are_counters_exact())
        rows = connection.execute(statement)
        first = rows.fetchone()
        if first is not None and first[0] == EXACTNESS and first[1 + len(_GROUPS)]:
            return _add_up(rows)
    return _add_up(connection.execute(select_totals_by(groups, own)))


def _add_up(rows: Iterable[Any]) -> CatalogStats:
    """Return the statistics of the rows of `select_totals_by`."""
    totals: dict[int, dict[Any, list[int]]] = {index: {} for index in (TOTAL, *_INDEXES)}
    for index, *values, models, high, low, disk_high, disk_low in rows:
        numbers = int(models or 0), join_sums(high, low), join_sums(disk_high, disk_low)
        for at in (TOTAL, *_INDEXES) if index == ALL_GROUPS else (index,):
            value = None if at == TOTAL else values[at]
            sums = totals[at].setdefault(value, [0, 0, 0])
            for position, number in enumerate(numbers):
                sums[position] += number
    return CatalogStats(
        ModelTotals(*totals[TOTAL].get(None, (0, 0, 0))),
        *(
            _largest_first({value: ModelTotals(*sums) for value, sums in totals[index].items()})
            for index in _INDEXES
        ),
    )


def _largest_first(by_value: dict[Any, ModelTotals]) -> dict[Any, ModelTotals]:
    """Sort by size, largest first; ties by count, then value, None last."""

    def rank(item: tuple[Any, ModelTotals]) -> tuple[int, int, tuple[bool, str]]:
        value, each = item
        return -each.size_bytes, -each.model_count, (value is None, value or "")

    return dict(sorted(by_value.items(), key=rank))

"""Count models and sum their sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, func, select
from sqlalchemy.exc import OperationalError

from model_catalog.execution.executor import Operation, read
from model_catalog.repository.statements.disk_usage import (
    TOTAL,
    join_sums,
    select_disk_usage,
    select_totals_by,
    split_sums,
)
from model_catalog.repository.statements.filters import (
    EFFECTIVE_COLUMNS,
    Filters,
    build_where,
    model_columns,
    own_models,
    select_aggregate,
)

Where = list[ColumnElement[bool]]

_COUNT: Final = func.count()
_TOTAL: Final = func.sum(model_columns.size_bytes)
_SPLIT_SUMS: Final = split_sums(model_columns.size_bytes)
# Integer overflow has no error code of its own in SQLite: it has the generic one.
_GENERIC_ERROR: Final = "SQLITE_ERROR"

_GROUPS: Final = ("provider", "format", "architecture", "quantization")


@dataclass(frozen=True, slots=True)
class ModelTotals:
    """
    The number of models, the sum of their sizes, and the bytes that they take on the disk.

    An unknown size counts 0. `disk_bytes` counts a file once, whatever number of models share it.
    """

    model_count: int
    size_bytes: int
    disk_bytes: int = 0


_NOTHING: Final = ModelTotals(0, 0)


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


def count(filters: Filters, dialect: str) -> Operation[Where, int]:
    """Return the operation that counts the models that pass all filters."""
    return read(count_models, build_where(filters, dialect), may_lag=True)


def count_models(connection: Connection, where: Where) -> int:
    """Return the number of models that meet all conditions."""
    count_: int = connection.execute(select_aggregate(connection, _COUNT, where)).scalar_one()
    return count_


def total_size(filters: Filters, dialect: str) -> Operation[Where, int]:
    """Return the operation that sums the sizes of the models that pass all filters."""
    return read(sum_sizes, build_where(filters, dialect), may_lag=True)


def sum_sizes(connection: Connection, where: Where) -> int:
    """Return the sum of sizes in bytes, exact beyond 2**63."""
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


def stats(filters: Filters, dialect: str) -> Operation[Where, CatalogStats]:
    """Return the operation that computes statistics of the models that pass all filters."""
    return read(compute_stats, build_where(filters, dialect), may_lag=True)


def compute_stats(connection: Connection, where: Where) -> CatalogStats:
    """Return statistics of the models that meet all conditions."""
    groups = [EFFECTIVE_COLUMNS[name] for name in _GROUPS]
    totals: dict[int, dict[Any, ModelTotals]] = {index: {} for index in range(TOTAL, len(_GROUPS))}
    own = own_models(connection, where)
    for index, value, count_, *sizes in connection.execute(select_totals_by(groups, own)):
        found = ModelTotals(int(count_ or 0), join_sums(*sizes[:2]), join_sums(*sizes[2:]))
        totals[index][value] = _add(totals[index].get(value, _NOTHING), found)
    return CatalogStats(
        totals[TOTAL].get(None, _NOTHING),
        *(_largest_first(totals[index]) for index in range(len(_GROUPS))),
    )


def _add(one: ModelTotals, other: ModelTotals) -> ModelTotals:
    return ModelTotals(
        one.model_count + other.model_count,
        one.size_bytes + other.size_bytes,
        one.disk_bytes + other.disk_bytes,
    )


def _largest_first(by_value: dict[Any, ModelTotals]) -> dict[Any, ModelTotals]:
    """Sort by size, largest first; ties by count, then value, None last."""

    def rank(item: tuple[Any, ModelTotals]) -> tuple[int, int, tuple[bool, str]]:
        value, each = item
        return -each.size_bytes, -each.model_count, (value is None, value or "")

    return dict(sorted(by_value.items(), key=rank))

"""
Counters of models on SQLite: reads them, and counts models that were inserted since.

A counter in `model_totals` has the number of models, and the `split_sums` of their sizes, for each
combination of the fields in COUNTED_FIELDS and the host. Triggers change the counters when a
counted model is updated or deleted. New models are not counted by a trigger, because their INSERT
would take 2.5 times as long. Those with an id above `model_totals_progress.counted_to` are read
from the table, until a write counts them here. Reads never write.

A REPLACE of another program deletes a row without a trigger. The counters then have more models
than the table. Each read compares both in its snapshot, and reads the table if they differ. The
next write that counts starts anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from sqlalchemy import CTE, ColumnElement, Connection, Integer, column, literal_column, text

from model_catalog.connection.database_info import host_of
from model_catalog.domain import validation
from model_catalog.domain.fields import HEADER_FIELDS
from model_catalog.mapping.added_objects import COUNTED_KEY, counted_values

COUNTED_FIELDS: Final = ("provider", "format", "architecture", "quantization", "store")
"""The filters that the counters can answer, beside the host."""

COUNT_EVERY: Final = 1024
"""The number of new models after which a write counts them."""

_MAX_CHUNK: Final = 4096
"""The number of models that one statement counts: about 5 ms."""

_SIZES: Final = "coalesce(size_bytes, 0) >> 32, coalesce(size_bytes, 0) & 4294967295"
_SUMS: Final = "count(*), sum(size_bytes >> 32), sum(size_bytes & 4294967295)"
_UNCOUNTED: Final = (
    "models NOT INDEXED WHERE id >"
    " coalesce((SELECT counted_to FROM model_totals_progress), -9223372036854775808)"
)
# Without a condition SQLite counts the rows of the smallest index, without reading them: 4 ms for a
# million.
_IS_EXACT: Final = (
    "(SELECT coalesce(sum(models), 0) FROM model_totals)"  # noqa: S608
    f" + (SELECT count(*) FROM {_UNCOUNTED}) = (SELECT count(*) FROM models)"
)
_COUNT_CHUNK: Final = (
    f"INSERT INTO model_totals ({COUNTED_KEY}, models, high, low)"  # noqa: S608 - our own names
    f" SELECT {counted_values('models')}, 1, {_SIZES}"
    # Row by row: sorting the rows for GROUP BY takes twice as long.
    " FROM models NOT INDEXED WHERE id > ? AND id <= ? ON CONFLICT DO UPDATE"
    " SET models = models + 1, high = high + excluded.high, low = low + excluded.low"
)
_CHUNK_END: Final = (
    "SELECT max(id) FROM (SELECT id FROM models NOT INDEXED WHERE id > ? ORDER BY id LIMIT ?)"
)
_BEFORE_FIRST: Final = -(2**63)


class Counted(NamedTuple):
    """The number of some models, and the `split_sums` of their sizes."""

    models: int
    high: int
    low: int


def counted_filters(filters: Mapping[str, object], dialect: str) -> dict[str, str] | None:
    """Return the values of some filters if the counters can answer them; otherwise None."""
    given = {name: value for name, value in filters.items() if value is not None}
    if dialect != "sqlite" or not given.keys() <= set(COUNTED_FIELDS):
        return None
    return {name: validation.lookup_text(name, value) for name, value in given.items()}


def read_counters(connection: Connection, filters: Mapping[str, str]) -> Counted | None:
    """Return the counts of the models of the catalog's host; None if the counters are not exact."""
    counted, uncounted = _conditions(filters)
    are_exact, *sums = connection.execute(
        text(
            f"SELECT {_IS_EXACT}, sum(models), sum(high), sum(low) FROM"  # noqa: S608
            f" (SELECT models, high, low FROM model_totals WHERE {counted}"
            f" UNION ALL SELECT {_SUMS} FROM {_UNCOUNTED} AND {uncounted})"
        ),
        {"host": host_of(connection), **filters},
    ).one()
    return Counted(*(value or 0 for value in sums)) if are_exact else None


def count_roughly(connection: Connection, filters: Mapping[str, str]) -> tuple[int, int]:
    """
    Return how many models of the host pass some filters, and how many there are, on SQLite.

    Models that are not counted yet are missing, and those that a REPLACE deleted are included. So
    the numbers are only good for choosing how to read.
    """
    passed = " AND ".join(f"{name} = :{name}" for name in filters) or "1"
    sums = (
        f"SELECT coalesce(sum(CASE WHEN {passed} THEN models END), 0),"  # noqa: S608
        " coalesce(sum(models), 0) FROM model_totals WHERE host = :host"
    )
    passing, all_models = connection.execute(
        text(sums), {"host": host_of(connection), **filters}
    ).one()
    return passing, all_models


def counters_by_group(groups: Sequence[str], host: str, filters: Mapping[str, str]) -> CTE:
    """
    Select the counts of the models of a host by the values of some of COUNTED_FIELDS.

    The columns are `group_0` and so on, and those of Counted. The same values can occur in several
    rows. `are_counters_exact` tells whether they are
    complete.
    """
    counted, uncounted = _conditions(filters)
    labels = [f"group_{index}" for index in range(len(groups))]
    stored = ", ".join(
        f"nullif({name}, 0) AS {label}" for name, label in zip(groups, labels, strict=True)
    )
    read = ", ".join(_effective(name) for name in groups)
    numbers = ", ".join(str(index + 1) for index in range(len(groups)))
    return (
        text(
            f"SELECT {stored}, models, high, low FROM model_totals WHERE {counted}"  # noqa: S608
            f" UNION ALL SELECT {read}, {_SUMS} FROM {_UNCOUNTED} AND {uncounted}"
            f" GROUP BY {numbers}"
        )
        .bindparams(host=host, **filters)
        .columns(*(column(name) for name in (*labels, *Counted._fields)))
        .cte("counters")
    )


def are_counters_exact() -> ColumnElement[int]:
    """Return the expression that is 1 if the counters and the uncounted models are all models."""
    return literal_column(f"({_IS_EXACT})", Integer())


def count_new_models(connection: Connection, *, at_most: int = _MAX_CHUNK) -> None:
    """
    Count up to `at_most` new models if there are COUNT_EVERY of them; a part of a write.

    If the counters are not exact, they start anew. Does nothing on PostgreSQL.
    """
    if connection.dialect.name != "sqlite":
        return
    ids = "SELECT (SELECT max(id) FROM models), (SELECT counted_to FROM model_totals_progress)"
    largest, counted_to = connection.exec_driver_sql(ids).one()
    if largest is None or (counted_to is not None and largest - counted_to < COUNT_EVERY):
        return
    if counted_to is None or not connection.exec_driver_sql(f"SELECT {_IS_EXACT}").scalar():
        connection.exec_driver_sql("DELETE FROM model_totals")
        counted_to = _BEFORE_FIRST
    for _ in range(0, at_most, _MAX_CHUNK):
        end = connection.exec_driver_sql(_CHUNK_END, (counted_to, _MAX_CHUNK)).scalar()
        if end is None:
            break
        connection.exec_driver_sql(_COUNT_CHUNK, (counted_to, end))
        counted_to = end
    connection.exec_driver_sql("REPLACE INTO model_totals_progress VALUES (1, ?)", (counted_to,))


def _conditions(filters: Mapping[str, str]) -> tuple[str, str]:
    """Return the conditions of filters for `model_totals`, and for `models`."""
    counted = ["host = :host", *(f"{name} = :{name}" for name in filters)]
    uncounted = ["host = :host", *(f"{_effective(name)} = :{name}" for name in filters)]
    return " AND ".join(counted), " AND ".join(uncounted)


def _effective(name: str) -> str:
    return f"coalesce({name}, claimed_{name})" if name in HEADER_FIELDS else name

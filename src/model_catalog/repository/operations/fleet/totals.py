"""Count the models of each host, and sum their sizes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, func, literal, select, union_all

from model_catalog.domain.fleet.copies import HostTotals
from model_catalog.execution.executor import Operation, read
from model_catalog.mapping.child_tables import HOSTS
from model_catalog.repository.operations.fleet.hosts import heartbeat_age_s, state_of
from model_catalog.repository.statements.database_time import now_ms
from model_catalog.repository.statements.filters import HAS_HOST, HAS_NO_HOST, model_columns
from model_catalog.repository.statements.totals.disk_usage import join_sums, split_sums


def find_totals(lost_after_s: float) -> Operation[float, list[HostTotals]]:
    """Return the operation that computes the totals of all hosts."""
    return read(select_totals, lost_after_s, may_lag=True)


def select_totals(connection: Connection, lost_after_s: float) -> list[HostTotals]:
    """
    Return the totals of each host that is registered or has models, sorted by name.

    One statement: on PostgreSQL a second one could see rows committed after the first.
    """
    sums = zip(("high", "low"), split_sums(model_columns.size_bytes), strict=True)
    counts = (func.count().label("models"), *(each.label(name) for name, each in sums))
    # PostgreSQL reads the models with a host from an index alone.
    parts = [
        select(model_columns.host, *counts).where(part).group_by(model_columns.host)
        for part in (HAS_HOST, HAS_NO_HOST)
    ]
    totals = union_all(*parts).cte("totals")
    about_host = (
        HOSTS.c.name,
        HOSTS.c.capacity_bytes,
        HOSTS.c.free_bytes,
        HOSTS.c.heartbeat_at_ms,
        now_ms(connection.dialect.name).label("now_ms"),
    )
    with_models = select(*totals.c, *about_host).outerjoin_from(
        totals, HOSTS, HOSTS.c.name == totals.c.host
    )
    zero = literal(0)
    without_models = select(HOSTS.c.name, zero, zero, zero, *about_host).where(
        HOSTS.c.name.not_in(select(totals.c.host))
    )
    rows = connection.execute(union_all(with_models, without_models)).all()
    return sorted((_to_totals(row, lost_after_s) for row in rows), key=lambda each: each.host)


def _to_totals(row: Any, lost_after_s: float) -> HostTotals:
    age_s = heartbeat_age_s(row.heartbeat_at_ms, row.now_ms)
    return HostTotals(
        host=row.host,
        state=state_of(row.name, age_s, lost_after_s),
        model_count=row.models,
        size_bytes=join_sums(row.high, row.low),
        capacity_bytes=row.capacity_bytes,
        free_bytes=row.free_bytes,
    )

"""
Queries of leases: take or renew one, and release it.

Each host has leases of its own. A lease is taken, renewed and released by single short statements.
Between them its holder has no lock, no connection and no transaction, so it also works behind a
connection pooler.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, delete, select

from model_catalog.connection.database_info import host_of
from model_catalog.execution.executor import read, write
from model_catalog.execution.observation.changed_rows import changes_no_model
from model_catalog.mapping.child_tables import LEASES
from model_catalog.repository.model_catalog import ModelCatalog, executor_of
from model_catalog.repository.statements.database_time import is_valid, now_ms
from model_catalog.repository.statements.models import insert_into


class LeaseClaim(NamedTuple):
    """What a process wants: a lease by its name, for itself, for some time."""

    name: str
    holder: str
    duration_ms: int


async def remaining_time(catalog: ModelCatalog, claim: LeaseClaim) -> float:
    """Return for how many seconds another process holds a lease; 0 if it is free or held here."""
    return await executor_of(catalog).run(read(select_remaining_time, claim))


def select_remaining_time(connection: Connection, claim: LeaseClaim) -> float:
    """Return for how many seconds another process holds a lease."""
    now = now_ms(connection.dialect.name)
    remaining_ms = connection.scalar(
        select(LEASES.c.expires_at_ms - now).where(
            LEASES.c.host == host_of(connection),
            LEASES.c.name == claim.name,
            LEASES.c.holder != claim.holder,
            is_valid(LEASES, now),
        )
    )
    return max(0, remaining_ms or 0) / 1000


async def take_lease(catalog: ModelCatalog, claim: LeaseClaim) -> bool:
    """Take a lease that is free or has expired, or renew one that is held; return if it is held."""
    return await executor_of(catalog).run(write(upsert_lease, claim))


@changes_no_model
def upsert_lease(connection: Connection, claim: LeaseClaim) -> bool:
    """Take or renew a lease in one statement; return whether the claim holds it."""
    dialect = connection.dialect.name
    now = now_ms(dialect)
    insert = insert_into(LEASES, dialect).values(
        host=host_of(connection),
        name=claim.name,
        holder=claim.holder,
        renewed_at_ms=now,
        expires_at_ms=now + claim.duration_ms,
    )
    new = insert.excluded
    statement = insert.on_conflict_do_update(
        index_elements=["host", "name"],
        set_={name: new[name] for name in ("holder", "renewed_at_ms", "expires_at_ms")},
        where=(LEASES.c.holder == new.holder) | ~is_valid(LEASES, new.renewed_at_ms),
    ).returning(LEASES.c.name)
    return connection.scalar(statement) is not None


async def release_lease(catalog: ModelCatalog, claim: LeaseClaim, timeout_s: float) -> None:
    """Release a lease if the claim holds it, within a time."""
    await executor_of(catalog).run(write(delete_lease, claim, timeout_s=timeout_s))


@changes_no_model
def delete_lease(connection: Connection, claim: LeaseClaim) -> None:
    """Delete the lease of a claim."""
    connection.execute(
        delete(LEASES).where(
            LEASES.c.host == host_of(connection),
            LEASES.c.name == claim.name,
            LEASES.c.holder == claim.holder,
        )
    )

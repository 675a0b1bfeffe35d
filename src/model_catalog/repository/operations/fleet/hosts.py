"""Register, find, list and remove the hosts of a fleet, and record their heartbeats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from sqlalchemy import ColumnElement, Connection, delete, func, select, update

from model_catalog.domain.fleet.host import Host, HostState, host_state
from model_catalog.errors import HostHasModelsError, HostNotFoundError
from model_catalog.execution.executor import Operation, read, write, write_alone
from model_catalog.execution.observation.changed_rows import changes_no_model, records_changes
from model_catalog.mapping.child_tables import HOSTS
from model_catalog.repository.operations.lookup import delete_models
from model_catalog.repository.statements.database_time import now_ms, to_datetime
from model_catalog.repository.statements.filters import MODELS, model_columns
from model_catalog.repository.statements.models import insert_into

ModelsOfHost: TypeAlias = Literal["refuse", "keep", "delete"]
"""What happens to the models of a host that is removed."""
MODELS_OF_HOST: Final = ("refuse", "keep", "delete")


class HostQuery(NamedTuple):
    """Which hosts to return, and after how many seconds without a heartbeat one is lost."""

    lost_after_s: float
    name: str | None = None
    """None is all hosts."""


class _NewHost(NamedTuple):
    query: HostQuery
    name: str
    values: Mapping[str, Any]


class _Removal(NamedTuple):
    name: str
    models: ModelsOfHost
    cascades: bool


class Heartbeat(NamedTuple):
    """A heartbeat of a host; `free_bytes` None keeps the recorded number."""

    name: str
    free_bytes: int | None


def register(name: str, values: Mapping[str, Any], lost_after_s: float) -> Operation[Any, Host]:
    """Return the operation that records a host, or the given columns of one that is recorded."""
    return write(upsert_host, _NewHost(HostQuery(lost_after_s, name), name, values))


@changes_no_model
def upsert_host(connection: Connection, new: _NewHost) -> Host:
    """Insert a host, or set the given columns of an existing one, and return it."""
    dialect = connection.dialect.name
    row = {"name": new.name, "registered_at_ms": now_ms(dialect), **new.values}
    insert = insert_into(HOSTS, dialect).values(row)
    if new.values:
        insert = insert.on_conflict_do_update(index_elements=["name"], set_=dict(new.values))
    else:
        insert = insert.on_conflict_do_nothing(index_elements=["name"])
    connection.execute(insert)
    (host,) = select_hosts(connection, new.query)
    return host


def find(query: HostQuery) -> Operation[HostQuery, list[Host]]:
    """Return the operation that returns hosts, sorted by name."""
    return read(select_hosts, query)


def select_hosts(connection: Connection, query: HostQuery) -> list[Host]:
    """Return all hosts or one, sorted by the bytes of their names."""
    statement = select(*HOSTS.c, now_ms(connection.dialect.name).label("now_ms"))
    if query.name is not None:
        statement = statement.where(HOSTS.c.name == query.name)
    rows = connection.execute(statement.order_by(HOSTS.c.name))
    return [to_host(row, query.lost_after_s) for row in rows]


def to_host(row: Any, lost_after_s: float) -> Host:
    """Return the host of a row with the columns of the table and the time `now_ms`."""
    age_s = heartbeat_age_s(row.heartbeat_at_ms, row.now_ms)
    return Host(
        name=row.name,
        state=host_state(age_s, lost_after_s),
        registered_at=to_datetime(row.registered_at_ms),
        heartbeat_at=None if row.heartbeat_at_ms is None else to_datetime(row.heartbeat_at_ms),
        heartbeat_age_s=age_s,
        address=row.address,
        labels=json.loads(row.labels or "{}"),
        ssh_user=row.ssh_user,
        ssh_host=row.ssh_host,
        ssh_port=row.ssh_port,
        ssh_key_path=row.ssh_key_path,
        capacity_bytes=row.capacity_bytes,
        free_bytes=row.free_bytes,
    )


def heartbeat_age_s(heartbeat_at_ms: int | None, now: int) -> float | None:
    """Return the seconds since a heartbeat, None without one."""
    return None if heartbeat_at_ms is None else (now - heartbeat_at_ms) / 1000


def is_lost(dialect: str, lost_after_s: float) -> ColumnElement[bool]:
    """Return the condition that a host is lost, as `host_state` states it; false if never seen."""
    now, limit_ms = now_ms(dialect), int(lost_after_s * 1000)
    is_recent = HOSTS.c.heartbeat_at_ms.between(now - limit_ms, now + limit_ms)
    return HOSTS.c.heartbeat_at_ms.is_not(None) & ~is_recent


def state_of(name: str | None, age_s: float | None, lost_after_s: float) -> HostState:
    """Return the state of a host by the name of its row, None if it is not registered."""
    return HostState.UNREGISTERED if name is None else host_state(age_s, lost_after_s)


def beat(name: str, free_bytes: int | None, timeout_s: float | None) -> Operation[Any, None]:
    """Return the operation that records a heartbeat."""
    return write(record_heartbeats, Heartbeat(name, free_bytes), timeout_s=timeout_s)


@changes_no_model
def record_heartbeats(connection: Connection, heartbeat: Heartbeat) -> None:
    """
    Set the time of the last heartbeat to the database's time. One statement by key.

    Raises HostNotFoundError.
    """
    values: dict[str, Any] = {"heartbeat_at_ms": now_ms(connection.dialect.name)}
    if heartbeat.free_bytes is not None:
        values["free_bytes"] = heartbeat.free_bytes
    statement = update(HOSTS).where(HOSTS.c.name == heartbeat.name).values(values)
    if not connection.execute(statement).rowcount:
        raise HostNotFoundError(heartbeat.name)


def remove(name: str, models: ModelsOfHost, *, cascades: bool) -> Operation[Any, bool]:
    """
    Return the operation that removes a host; `models` says what happens to its models.

    `cascades` is as in `lookup.remove`.
    """
    return write_alone(remove_host, _Removal(name, models, cascades))


@records_changes
def remove_host(connection: Connection, removal: _Removal) -> bool:
    """
    Delete a host; return whether it was registered, or models of it were deleted.

    Raises HostHasModelsError, and ModelInUseError if one of its models is in use.
    """
    of_host = model_columns.host == removal.name
    found_models = False
    if removal.models == "refuse":
        count = select(func.count()).select_from(MODELS).where(of_host)
        if model_count := connection.execute(count).scalar_one():
            raise HostHasModelsError(removal.name, model_count)
    elif removal.models == "delete":
        name = f"of the host {removal.name}"
        found_models = delete_models(connection, of_host, name, cascades=removal.cascades)
    statement = delete(HOSTS).where(HOSTS.c.name == removal.name).returning(HOSTS.c.name)
    return bool(connection.execute(statement).all()) or found_models


def matches(host: Host, labels: Mapping[str, str]) -> bool:
    """Whether a host has all of these labels."""
    return all(host.labels.get(name) == value for name, value in labels.items())


def with_labels(hosts: Sequence[Host], labels: Mapping[str, str]) -> list[Host]:
    """Return the hosts that have all of these labels."""
    return [host for host in hosts if matches(host, labels)]

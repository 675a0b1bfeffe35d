"""Queries of the processes that use models: begin a use, renew uses, end one, list them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, delete, literal, select, update

from model_catalog.domain.file_record import BEING_DELETED, FileState
from model_catalog.domain.model_ref import ModelRef
from model_catalog.domain.validation import utc_now
from model_catalog.downloads.queries.claim_queries import Purpose, claims_of, lock_versions
from model_catalog.downloads.states import Holder, ModelUser
from model_catalog.errors import ModelNotFoundError
from model_catalog.execution.observation.changed_rows import changes_no_model
from model_catalog.mapping.child_tables import CLAIMS, USES
from model_catalog.mapping.tables import Model
from model_catalog.repository.operations.lookup import LookupKey, get_one, load_model
from model_catalog.repository.operations.usage import UseCounts, update_use_counts
from model_catalog.repository.statements.database_time import is_valid, now_ms, to_datetime
from model_catalog.repository.statements.filters import MODELS, model_columns, of_host
from model_catalog.repository.statements.models import insert_into

_OLD_MS: Final = 3_600_000
"""Uses that expired an hour ago are deleted: their processes were killed."""


class NewUse(NamedTuple):
    """A use to begin: the name of the model, who uses it, and how long the use is valid."""

    key: LookupKey
    holder: Holder
    duration_ms: int


@changes_no_model
def begin_use(connection: Connection, use: NewUse) -> Model:
    """
    Record that a process uses a model, count the use, and return the model.

    Raises ModelNotFoundError, also for a model whose files are being deleted.
    """
    lock_versions(connection, use.key)
    model = get_one(connection, use.key)
    now = now_ms(connection.dialect.name)
    evicted = select(CLAIMS.c.token).where(
        claims_of(connection, use.key),
        CLAIMS.c.version == model.version,
        CLAIMS.c.purpose == Purpose.EVICT,
        is_valid(CLAIMS, now),
    )
    is_being_deleted = model.state is FileState.MISSING and model.state_detail == BEING_DELETED
    if is_being_deleted or connection.scalar(evicted) is not None:
        raise ModelNotFoundError(model.reference, model.provider, model.version)
    of_models = select(model_columns.id).where(of_host(connection))
    connection.execute(
        delete(USES).where(USES.c.expires_at_ms < now - _OLD_MS, USES.c.model_id.in_(of_models))
    )
    if not _insert(connection, use.holder, model.id, now, now + use.duration_ms):
        # It was registered since the rows were locked, and removed again.
        raise ModelNotFoundError(model.reference, model.provider, model.version)
    exact = LookupKey(model.reference, model.provider, model.version)
    update_use_counts(connection, UseCounts({exact: 1}, utc_now()))
    return load_model(connection, model.id)


class HeldUse(NamedTuple):
    """A use to renew."""

    holder: Holder
    model_id: int
    started_at_ms: int
    """When it began, by the clock of this process: it is only stored again if the row was lost."""
    duration_ms: int


@changes_no_model
def renew_uses(connection: Connection, uses: Sequence[HeldUse]) -> set[str]:
    """
    Renew uses, and return the tokens of those whose models are still recorded.

    A use that has expired and was deleted is recorded again, if its model still exists.
    """
    held: set[str] = set()
    now = now_ms(connection.dialect.name)
    for duration_ms in sorted({use.duration_ms for use in uses}):
        tokens = sorted(use.holder.token for use in uses if use.duration_ms == duration_ms)
        statement = update(USES).where(USES.c.token.in_(tokens))
        values = {"renewed_at_ms": now, "expires_at_ms": now + duration_ms}
        held.update(connection.scalars(statement.values(values).returning(USES.c.token)))
    for use in uses:
        if use.holder.token not in held:
            started = literal(use.started_at_ms)
            if _insert(connection, use.holder, use.model_id, started, now + use.duration_ms):
                held.add(use.holder.token)
    return held


def _insert(
    connection: Connection,
    holder: Holder,
    model_id: int,
    started_at_ms: ColumnElement[int],
    expires_at_ms: ColumnElement[int],
) -> bool:
    """Insert a use of a model; return whether the model still exists."""
    names = (*holder.columns, "model_id", "started_at_ms", "renewed_at_ms")
    row = select(
        *(literal(value) for value in holder.columns.values()),
        model_columns.id,
        started_at_ms,
        now_ms(connection.dialect.name),
        expires_at_ms,
    ).where(model_columns.id == model_id, of_host(connection))
    # The lock waits for a transaction that is removing the model. The foreign key would fail.
    locked = row.with_for_update(read=True, key_share=True)
    columns = [*names, "expires_at_ms"]
    insert = insert_into(USES, connection.dialect.name).from_select(columns, locked)
    return connection.scalar(insert.returning(USES.c.token)) is not None


@changes_no_model
def end_use(connection: Connection, token: str) -> None:
    """Delete a use."""
    connection.execute(delete(USES).where(USES.c.token == token))


def select_users(connection: Connection, filters: Mapping[str, str]) -> list[ModelUser]:
    """Return the valid uses of the models with these values, those that began first first."""
    rows = connection.execute(
        select(
            model_columns.provider,
            model_columns.reference,
            model_columns.version,
            USES.c.holder_host,
            USES.c.holder_process_id,
            USES.c.started_at_ms,
            USES.c.renewed_at_ms,
            USES.c.expires_at_ms,
        )
        .join(MODELS, model_columns.id == USES.c.model_id)
        .where(
            of_host(connection),
            is_valid(USES, now_ms(connection.dialect.name)),
            *(model_columns[name] == value for name, value in filters.items()),
        )
        .order_by(USES.c.started_at_ms, USES.c.token)
    ).all()
    return [
        ModelUser(ModelRef(*key), host, process_id, *map(to_datetime, times))
        for *key, host, process_id, started, renewed, expires in rows
        for times in [(started, renewed, expires)]
    ]

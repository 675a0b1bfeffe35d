"""Queries of evictions: begin the deletion of a model, and end it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    delete,
    select,
    true,
)
from sqlalchemy.exc import IntegrityError

from model_catalog.connection.error_mapping import is_foreign_key_violation
from model_catalog.domain.file_record import BEING_DELETED, FileRecord, FileState
from model_catalog.downloads.eviction.model_record import ModelRecord
from model_catalog.downloads.eviction.plan import KeptReason
from model_catalog.downloads.queries.batches import in_batches
from model_catalog.downloads.queries.claim_queries import (
    ClaimedName,
    ClaimRequest,
    Purpose,
    end_claim,
    insert_claim,
    lock_versions,
)
from model_catalog.downloads.queries.plan_queries import (
    SharedFile,
    select_models,
    select_shared_files,
)
from model_catalog.downloads.queries.shared_disk_queries import select_other_sharers
from model_catalog.downloads.states import Holder
from model_catalog.errors import ModelInUseError
from model_catalog.execution.observation.changed_rows import ChangedRows, changes
from model_catalog.mapping.child_tables import FILES, USES
from model_catalog.repository.operations.lookup import (
    LookupKey,
    remove_models,
    remove_models_and_children,
)
from model_catalog.repository.operations.model_files import select_files
from model_catalog.repository.statements.database_time import is_valid, now_ms
from model_catalog.repository.statements.filters import MODELS, model_columns, of_host, own_models

F: Final = FILES.c


@dataclass(frozen=True, slots=True)
class BeginDeletion:
    """A request to delete a model. `planned` is its record when the plan was made."""

    planned: ModelRecord
    holder: Holder
    duration_ms: int
    is_owned: bool
    is_shared: bool = False
    """Whether all hosts share the disk."""


class Refusal(NamedTuple):
    """Why a model is kept."""

    reason: KeptReason
    detail: str = ""


def _rows_to_delete(_connection: Connection, request: BeginDeletion) -> ChangedRows:
    return ChangedRows(ids=[request.planned.id])


@changes(_rows_to_delete)
def begin_deletion(connection: Connection, request: BeginDeletion) -> ModelRecord | Refusal:
    """
    Claim a model, and record that its files are being deleted, if that is allowed now.

    Returns the model as it was recorded before, or why it is kept. All claims of any version of its
    reference stand in the way.
    """
    planned = request.planned
    key = LookupKey(planned.reference, planned.provider, planned.version)
    lock_versions(connection, key, is_shared=request.is_shared)
    model = _select_model(connection, planned.id)
    if (refusal := _refuse(connection, request, model)) is not None or model is None:
        return refusal or Refusal(KeptReason.CHANGED_SINCE, "it was removed")
    name = ClaimedName(key, request.is_shared)
    claim = ClaimRequest(name, Purpose.EVICT, request.holder, request.duration_ms)
    if (other := insert_claim(connection, claim, true())) is not None:
        is_deleting = model.is_being_deleted
        reason = KeptReason.BEING_DELETED if is_deleting else KeptReason.DOWNLOADING
        return Refusal(reason, f"by {other}")
    if (table := _find_referring_table(connection, model)) is not None:
        end_claim(connection, request.holder.token)
        return Refusal(KeptReason.IN_USE, table)
    now = now_ms(connection.dialect.name)
    connection.execute(
        MODELS.update()
        .where(model_columns.id == model.id)
        .values(
            state=FileState.MISSING,
            state_detail=BEING_DELETED,
            missing_since=model.missing_since or _seconds(now),
        )
    )
    return model


class ModelFiles(NamedTuple):
    """The recorded files of a model, and the other models that may have some of them."""

    files: Sequence[FileRecord]
    shared: Sequence[SharedFile]
    unlisted: Sequence[tuple[int, str]]
    """
    The id and the path of models that have one of the paths: without a list of files, or of other
    hosts.
    """


class FilesQuery(NamedTuple):
    """A model whose files are wanted; `paths` are its path and the folders above it."""

    model: ModelRecord
    paths: Sequence[str]
    is_shared: bool
    """Whether the models of other hosts may need the files."""


def select_model_files(connection: Connection, query: FilesQuery) -> ModelFiles:
    """Return the files of a model, and the models that may need them."""
    model, paths, is_shared = query
    files = select_files(connection, model.id)
    folders = (model.local_path, os.path.dirname(model.local_path))
    names = {os.path.join(folder, file.path) for folder in folders for file in files}
    unlisted = _select_unlisted_at(connection, model.id, names | set(paths))
    if is_shared:
        unlisted += select_other_sharers(connection, names | set(paths)).at_paths
    return ModelFiles(
        files, _select_shared(connection, model.id, files, is_shared=is_shared), unlisted
    )


def _select_shared(
    connection: Connection, model_id: int, files: Sequence[FileRecord], *, is_shared: bool
) -> list[SharedFile]:
    """Return the files of other models that are also files of a model."""
    found: set[SharedFile] = set()
    statement = select_shared_files().where(F.model_id != model_id)
    if not is_shared:
        statement = statement.where(*own_models(connection))
    # One statement for both, because no index has these columns: it reads the whole table.
    for batch in in_batches(files):
        file_ids = [file.file_id for file in batch if file.file_id is not None]
        fingerprints = [file.fingerprint for file in batch if file.fingerprint is not None]
        same = F.file_id.in_(file_ids) | F.fingerprint.in_(fingerprints)
        found.update(SharedFile(*row) for row in connection.execute(statement.where(same)))
    return sorted(found, key=lambda file: (file.model_id, file.path))


def _find_referring_table(connection: Connection, model: ModelRecord) -> str | None:
    """Return that rows of another program refer to a model, by trying to delete it; else None."""
    savepoint = connection.begin_nested()
    try:
        connection.execute(delete(USES).where(USES.c.model_id == model.id))
        connection.execute(delete(MODELS).where(model_columns.id == model.id))
    except IntegrityError as error:
        if not is_foreign_key_violation(error):
            raise
        return "rows of another table refer to it"
    finally:
        savepoint.rollback()
    return None


def _seconds(now: ColumnElement[int]) -> ColumnElement[Any]:
    return now // 1000


def _select_model(connection: Connection, model_id: int) -> ModelRecord | None:
    found = select_models().where(model_columns.id == model_id, of_host(connection))
    row = connection.execute(found).first()
    return None if row is None else ModelRecord(*row)


def _refuse(
    connection: Connection, request: BeginDeletion, model: ModelRecord | None
) -> Refusal | None:
    """Return why a model may not be deleted; None if it may."""
    planned = request.planned
    # SQLite may give the id of a removed row to a new one.
    if model is None or model.ref != planned.ref:
        return Refusal(KeptReason.CHANGED_SINCE, "it was removed")
    if model.pinned_at is not None:
        return Refusal(KeptReason.PINNED)
    valid = is_valid(USES, now_ms(connection.dialect.name))
    uses = select(USES.c.holder_process_id, USES.c.holder_host)
    rows = connection.execute(uses.where(USES.c.model_id == model.id, valid))
    if users := {f"process {process_id} on {host}" for process_id, host in rows}:
        return Refusal(KeptReason.IN_USE, "by " + ", ".join(sorted(users)))
    changes = (
        ("it has another path", model.local_path != planned.local_path),
        ("it has another owner", model.managed_root != planned.managed_root),
        ("it has another owner", not request.is_owned and model.store is not None),
        ("it was used", model.used_at != planned.used_at),
    )
    for change, is_changed in changes:
        if is_changed:
            return Refusal(KeptReason.CHANGED_SINCE, change)
    if not (model.state.is_as_recorded or model.is_being_deleted):
        return Refusal(KeptReason.NOT_AS_RECORDED, f"{model.state}: {model.state_detail}")
    return None


def _select_unlisted_at(
    connection: Connection, model_id: int, paths: Collection[str]
) -> list[tuple[int, str]]:
    """Return the other models at some paths whose files are not recorded: ids and paths."""
    statement = _select_unlisted(connection).where(model_columns.id != model_id)
    return [
        (row[0], row[1])
        for batch in in_batches(sorted(paths))
        for row in connection.execute(statement.where(model_columns.local_path.in_(batch)))
    ]


def select_unlisted(connection: Connection, _: None) -> list[tuple[int, str]]:
    """Return the ids and the paths of all models whose files are not recorded."""
    return [(row[0], row[1]) for row in connection.execute(_select_unlisted(connection))]


def _select_unlisted(connection: Connection) -> Select[Any]:
    return select(model_columns.id, model_columns.local_path).where(
        *own_models(connection), model_columns.inventoried_at.is_(None)
    )


class UpdatedFingerprint(NamedTuple):
    """A file that has lost one of its names. That changes its ctime, and not its content."""

    model_id: int
    path: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class EndDeletion:
    """A model whose files were deleted, or were not."""

    model: ModelRecord
    """As it was recorded before."""
    token: str
    cascades: bool
    fingerprints: Sequence[UpdatedFingerprint] = ()


class RestoredState(NamedTuple):
    """The state to record for a model that is not deleted."""

    state: FileState
    detail: str | None
    missing_since: datetime | None


def _rows_of_ended(_connection: Connection, ended: EndDeletion) -> ChangedRows:
    return ChangedRows(ids=[ended.model.id, *(each.model_id for each in ended.fingerprints)])


@changes(_rows_of_ended, "files")
def finish_deletion(connection: Connection, ended: EndDeletion) -> Refusal | None:
    """
    Delete the row of a model whose files were deleted, and its claim.

    Returns why the row stays, if it was registered or used meanwhile. Raises ClaimLostError.
    """
    model = ended.model
    key = LookupKey(model.reference, model.provider, model.version)
    lock_versions(connection, key)
    end_claim(connection, ended.token)
    _update_fingerprints(connection, ended.fingerprints)
    found = _select_model(connection, model.id)
    if found is None or found.ref != model.ref:
        return None
    if found.local_path != model.local_path:
        return Refusal(KeptReason.CHANGED_SINCE, "it was registered with another path")
    if not found.is_being_deleted:
        detail = "its files were deleted while it was registered again"
        _set_state(connection, found.id, RestoredState(FileState.MISSING, detail, None))
        return Refusal(KeptReason.CHANGED_SINCE, detail)
    remove = remove_models if ended.cascades else remove_models_and_children
    try:
        remove(connection, key)
    except ModelInUseError as error:
        if not error.users:
            raise
        detail = "its files were deleted when the use began"
        _set_state(connection, found.id, RestoredState(FileState.MISSING, detail, None))
        return Refusal(KeptReason.IN_USE, detail)
    return None


def _rows_to_forget(connection: Connection, request: tuple[BeginDeletion, bool]) -> ChangedRows:
    return _rows_to_delete(connection, request[0])


@changes(_rows_to_forget)
def forget_model(connection: Connection, request: tuple[BeginDeletion, bool]) -> Refusal | None:
    """Delete the row of a model after the same checks; return why it is kept, or None."""
    begin, cascades = request
    begun = begin_deletion(connection, begin)
    if isinstance(begun, Refusal):
        return begun
    return finish_deletion(connection, EndDeletion(begun, begin.holder.token, cascades))


def _rows_of_cancelled(
    connection: Connection, request: tuple[EndDeletion, RestoredState]
) -> ChangedRows:
    return _rows_of_ended(connection, request[0])


@changes(_rows_of_cancelled, "files")
def cancel_deletion(connection: Connection, request: tuple[EndDeletion, RestoredState]) -> None:
    """Record that a model is not deleted, and delete its claim. Raises ClaimLostError."""
    ended, state = request
    lock_versions(
        connection,
        LookupKey(ended.model.reference, ended.model.provider, ended.model.version),
    )
    end_claim(connection, ended.token)
    _update_fingerprints(connection, ended.fingerprints)
    found = _select_model(connection, ended.model.id)
    if found is not None and found.ref == ended.model.ref and found.is_being_deleted:
        _set_state(connection, found.id, state)


def _set_state(connection: Connection, model_id: int, state: RestoredState) -> None:
    missing_since: Any = state.missing_since
    if state.state is FileState.MISSING and missing_since is None:
        missing_since = _seconds(now_ms(connection.dialect.name))
    connection.execute(
        MODELS.update()
        .where(model_columns.id == model_id)
        .values(state=state.state, state_detail=state.detail, missing_since=missing_since)
    )


def _update_fingerprints(connection: Connection, updated: Iterable[UpdatedFingerprint]) -> None:
    own = select(model_columns.id).where(of_host(connection))
    for each in updated:
        connection.execute(
            FILES.update()
            .where(
                F.model_id.in_(own),
                F.model_id == each.model_id,
                F.path == each.path,
                F.fingerprint == each.old,
            )
            .values(fingerprint=each.new)
        )

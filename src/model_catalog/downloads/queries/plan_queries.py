"""Query of a plan: what the database knows of all models, of one moment."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Select, or_, select

from model_catalog.connection.database_info import host_of
from model_catalog.domain.file_record import FileRecord
from model_catalog.domain.key_validation import ALL_HOSTS
from model_catalog.downloads.eviction.model_record import ModelRecord
from model_catalog.downloads.queries.batches import in_batches
from model_catalog.downloads.queries.shared_disk_queries import (
    NO_SHARERS,
    OtherSharers,
    select_names_of_others,
    select_other_sharers,
)
from model_catalog.mapping.child_tables import CLAIMS, FILES, USES
from model_catalog.repository.statements.database_time import is_valid, now_ms
from model_catalog.repository.statements.filters import MODELS, model_columns, own_models

F: Final = FILES.c


class ClaimRow(NamedTuple):
    """A valid claim of any version of a reference."""

    purpose: str
    host: str
    process_id: int


class SharedFile(NamedTuple):
    """A recorded file of a model, by which it is found that two models have the same file."""

    model_id: int
    local_path: str
    path: str
    fingerprint: str | None
    file_id: str | None


@dataclass(frozen=True, slots=True)
class EvictionRows:
    """What the database knows of all models, of one moment."""

    models: Sequence[ModelRecord]
    users: Mapping[int, str]
    """Who uses a model, by its id."""
    claims: Mapping[tuple[str, str], ClaimRow]
    """The valid claims by provider and reference."""
    files: Mapping[int, Sequence[FileRecord]]
    """The files of the models that may be deleted, by the id of the model."""
    shared: Collection[SharedFile]
    """These files, and those of other models that are also files of managed models."""
    others: OtherSharers = NO_SHARERS
    """The models of other hosts that need one of the paths."""


class RowsQuery(NamedTuple):
    """Which models' files to read beside those of managed models, and whose disk they are on."""

    ids: Collection[int] = ()
    is_shared: bool = False
    """Whether all hosts share the disk, so that the models of all may need the files."""


def select_rows(connection: Connection, query: RowsQuery) -> EvictionRows:
    """Return the rows that a plan is made from."""
    now = now_ms(connection.dialect.name)
    own = own_models(connection)
    models = [ModelRecord(*row) for row in connection.execute(select_models().where(*own))]
    users: dict[int, list[str]] = {}
    uses = select(USES.c.model_id, USES.c.holder_host, USES.c.holder_process_id)
    uses = uses.join(MODELS, model_columns.id == USES.c.model_id)
    uses = uses.where(*own, is_valid(USES, now))
    for model_id, host, process_id in connection.execute(uses):
        users.setdefault(model_id, []).append(f"process {process_id} on {host}")
    claims = select(
        CLAIMS.c.provider,
        CLAIMS.c.reference,
        CLAIMS.c.purpose,
        CLAIMS.c.holder_host,
        CLAIMS.c.holder_process_id,
    ).where(is_valid(CLAIMS, now))
    if not query.is_shared:
        claims = claims.where(or_(CLAIMS.c.host == host_of(connection), CLAIMS.c.host == ALL_HOSTS))
    listed = {
        model.id
        for model in models
        if model.inventoried_at is not None and _is_deletable(model, query)
    }
    files = _select_files_of(connection, sorted(listed))
    paths = {model.id: model.local_path for model in models}
    shared = {
        SharedFile(model_id, paths[model_id], file.path, file.fingerprint, file.file_id)
        for model_id, of_model in files.items()
        for file in of_model
    }
    shared |= _select_files_of_others(connection)
    others = NO_SHARERS
    if query.is_shared:
        deletable = [model for model in models if _is_deletable(model, query)]
        needed = {path for model in deletable for path in model.paths}
        for model in deletable:
            folders = (model.local_path, os.path.dirname(model.local_path))
            names = (file.path for file in files.get(model.id, ()))
            needed |= {os.path.join(*each) for each in product(folders, names)}
        others = select_other_sharers(connection, needed)
        of_hosts = _select_files_of_hosts(connection)
        shared |= of_hosts
        ids = {file.model_id for file in of_hosts}
        others.names.update(select_names_of_others(connection, ids))
    return EvictionRows(
        models,
        {model_id: ", ".join(sorted(set(names))) for model_id, names in users.items()},
        {(row[0], row[1]): ClaimRow(*row[2:]) for row in connection.execute(claims)},
        files,
        shared,
        others,
    )


def _is_deletable(model: ModelRecord, query: RowsQuery) -> bool:
    return model.managed_root is not None or model.is_being_deleted or model.id in query.ids


def select_models() -> Select[Any]:
    """Select the fields of ModelRecord of all models, sorted by id."""
    return select(*(model_columns[name] for name in ModelRecord._fields)).order_by(model_columns.id)


def _select_files_of(
    connection: Connection, model_ids: Sequence[int]
) -> dict[int, Sequence[FileRecord]]:
    files: dict[int, list[FileRecord]] = {}
    columns = (F.model_id, F.path, F.size_bytes, F.fingerprint, F.file_id, F.disk_bytes)
    for ids in in_batches(model_ids):
        statement = select(*columns).where(F.model_id.in_(ids))
        for row in connection.execute(statement.order_by(F.model_id, F.path)):
            file = FileRecord(
                row.path,
                row.size_bytes,
                fingerprint=row.fingerprint,
                file_id=row.file_id,
                disk_bytes=row.disk_bytes,
            )
            files.setdefault(row.model_id, []).append(file)
    return dict(files)


def _select_files_of_others(connection: Connection) -> set[SharedFile]:
    """Return the files of models that are not managed which managed models have too."""
    own = own_models(connection)
    managed = select(model_columns.id).where(*own, model_columns.managed_root.is_not(None))
    found: set[SharedFile] = set()
    # The number of a disk changes when it is mounted again. The fingerprint does not have it.
    for name in ("file_id", "fingerprint"):
        of_managed = select(F[name]).where(F.model_id.in_(managed), F[name].is_not(None))
        statement = select_shared_files().where(
            *own, model_columns.managed_root.is_(None), F[name].in_(of_managed)
        )
        found.update(SharedFile(*row) for row in connection.execute(statement))
    return found


def _select_files_of_hosts(connection: Connection) -> set[SharedFile]:
    """Return the files of models of other hosts which managed models of this host have too."""
    managed = select(model_columns.id).where(
        *own_models(connection), model_columns.managed_root.is_not(None)
    )
    # The number of a disk is another one on each host. The fingerprint does not have it.
    of_managed = select(F.fingerprint).where(F.model_id.in_(managed), F.fingerprint.is_not(None))
    statement = select_shared_files().where(
        model_columns.host != host_of(connection), F.fingerprint.in_(of_managed)
    )
    return {SharedFile(*row) for row in connection.execute(statement)}


def select_shared_files() -> Select[Any]:
    """Select the fields of SharedFile of all recorded files."""
    columns = (F.model_id, model_columns.local_path, F.path, F.fingerprint, F.file_id)
    statement = select(*columns).join(MODELS, model_columns.id == F.model_id)
    return statement.where(model_columns.inventoried_at.is_not(None))

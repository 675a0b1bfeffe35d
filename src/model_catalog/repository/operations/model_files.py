"""The recorded files of a model: list them, and register a model with its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, delete, select

from model_catalog.domain.fields import KEY_FIELDS, VERIFICATION_FIELDS
from model_catalog.domain.file_record import (
    FileRecord,
    expected_digest,
    merge_file_record,
    sorted_by_path,
)
from model_catalog.domain.file_validation import validate_files
from model_catalog.domain.validation import utc_now
from model_catalog.execution.executor import Operation, read, write_alone
from model_catalog.execution.observation.changed_rows import ChangedRows, changes
from model_catalog.mapping.child_tables import FILES
from model_catalog.mapping.tables import Model
from model_catalog.repository.operations.lookup import LookupKey, get_model_id, load_model
from model_catalog.repository.operations.registration import UpsertRow, register_one
from model_catalog.repository.statements.filters import MODELS, model_columns, of_host
from model_catalog.repository.statements.models import insert_into

FILE_COLUMNS: Final = tuple(column for column in FILES.c if column.key != "model_id")
"""The columns of `model_files` that are fields of `FileRecord`."""


class RowWithFiles(NamedTuple):
    """A model to register with its files."""

    row: UpsertRow
    row_if_same: UpsertRow
    """The row to write if the recorded files are equal: it keeps the results of verification."""
    files: Sequence[FileRecord]
    """Sorted by path."""


def list_files(key: LookupKey) -> Operation[LookupKey, list[FileRecord]]:
    """Return the operation that lists the recorded files of a model."""
    return read(select_files_of_key, key, may_lag=True)


def select_files_of_key(connection: Connection, key: LookupKey) -> list[FileRecord]:
    """Return the files of the model that a key means. Raises ModelNotFoundError."""
    return select_files(connection, get_model_id(connection, key, lock=False))


def register_with_files(
    model: Model, files: Sequence[FileRecord], found: Mapping[str, Any] | None = None
) -> Operation[RowWithFiles, Model]:
    """
    Return the operation that registers a model and replaces the recorded list of its files.

    `found` has the columns that an inspection of the files sets; without it the list is recorded
    as made now. A file that is listed again keeps its expected digest, unless its size or its
    digest is different. The model's digest is computed from its files, unless it was set.
    """
    if found is None:
        found = {"inventoried_at": utc_now()}
    kept = {name: value for name, value in found.items() if name not in VERIFICATION_FIELDS}
    value = RowWithFiles(
        UpsertRow.from_model(model, found),
        UpsertRow.from_model(model, kept),
        sorted_by_path(validate_files("files", files)),
    )
    return write_alone(register_one_with_files, value)


def _rows_of_one(_connection: Connection, value: RowWithFiles) -> ChangedRows:
    return ChangedRows(keys=[value.row.key])


@changes(_rows_of_one, "files")
def register_one_with_files(connection: Connection, value: RowWithFiles) -> Model:
    """Register a model, replace its files, and return it as it is recorded."""
    row, files = value.row, value.files
    own_digest = row.row.get("digest")
    recorded = connection.execute(
        select(model_columns.id, model_columns.digest)
        .where(
            of_host(connection),
            *(model_columns[name] == row.row[name] for name in KEY_FIELDS),
            model_columns.inventoried_at.is_not(None),
        )
        .with_for_update()
    ).one_or_none()
    if recorded is not None and own_digest in (None, recorded.digest):
        before = {file.path: file for file in select_files(connection, recorded.id)}
        files = [merge_file_record(file, before.get(file.path)) for file in files]
        if files == list(before.values()):
            # The results of a verification hold for files that are the same.
            row = value.row_if_same
    model_id = register_one(connection, row).id
    replace_files(connection, model_id, files)
    if own_digest is None and (digest := expected_digest(files)) is not None:
        connection.execute(
            MODELS.update().where(model_columns.id == model_id).values({"digest": digest})
        )
    return load_model(connection, model_id)


def select_files(connection: Connection, model_id: int) -> list[FileRecord]:
    """Return the files of a model, sorted by the bytes of their paths; empty if not known."""
    statement = (
        select(*FILE_COLUMNS)
        .join(MODELS, model_columns.id == FILES.c.model_id)
        .where(FILES.c.model_id == model_id, model_columns.inventoried_at.is_not(None))
    )
    # Sorted here and not in SQL: a path that is not UTF-8 is stored in an encoded form, which
    # sorts differently.
    return sorted_by_path(FileRecord(**row._asdict()) for row in connection.execute(statement))


def replace_files(connection: Connection, model_id: int, files: Sequence[FileRecord]) -> None:
    """Replace the recorded files of a model."""
    connection.execute(delete(FILES).where(FILES.c.model_id == model_id))
    rows = [
        {"model_id": model_id, **{column.key: getattr(file, column.key) for column in FILE_COLUMNS}}
        for file in files
    ]
    if rows:
        connection.execute(insert_into(FILES, connection.dialect.name), rows)

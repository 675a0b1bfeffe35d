"""Queries of verification: which models are due, and the results to record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple, Unpack

from sqlalchemy import (
    Case,
    ColumnElement,
    Connection,
    case,
    func,
    literal,
    select,
    true,
)

from model_catalog.domain.fields import KEY_FIELDS
from model_catalog.domain.file_record import BEING_DELETED, FileRecord, FileState
from model_catalog.domain.model_ref import ModelRef
from model_catalog.execution.executor import read, write
from model_catalog.execution.observation.changed_rows import ChangedRows, changes
from model_catalog.mapping.child_tables import FILES
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog, executor_of
from model_catalog.repository.operations.lookup import load_model
from model_catalog.repository.operations.model_files import register_with_files, replace_files
from model_catalog.repository.statements.filters import (
    MODELS,
    Filters,
    build_where,
    model_columns,
    of_host,
    own_models,
)
from model_catalog.repository.statements.models import has_path

_COLUMNS: Final = (
    *(model_columns[name] for name in KEY_FIELDS),
    model_columns.local_path,
    model_columns.size_bytes,
    model_columns.verified_at,
)


@dataclass(frozen=True, slots=True)
class VerificationCandidate:
    """A model to verify."""

    ref: ModelRef
    local_path: str
    size_bytes: int | None
    verified_at: datetime | None
    """When it was last verified, in UTC; None if never, or if it changed since then."""


class _Inspection(NamedTuple):
    model: Model
    values: Mapping[str, Any]
    files: Sequence[FileRecord] | None


class _FileReading(NamedTuple):
    model: Model
    file: FileRecord


async def verification_candidates(
    catalog: ModelCatalog, before: datetime | None, **filters: Unpack[Filters]
) -> list[VerificationCandidate]:
    """
    Return the models that pass all filters and were last verified before a time, if one is given.

    Models that were never verified, or that changed since, come first; then the longest unverified.
    """
    executor = executor_of(catalog)
    where = build_where(filters, executor.database.dialect)
    if before is not None:
        verified_at = _last_verified()
        where.append(verified_at.is_(None) | (verified_at < before))
    return await executor.run(read(select_candidates, where))


def select_candidates(
    connection: Connection, where: Sequence[ColumnElement[bool]]
) -> list[VerificationCandidate]:
    """Return the models that meet all conditions, in the order in which to verify them."""
    key = (model_columns[name] for name in KEY_FIELDS)
    statement = select(*_COLUMNS).where(*own_models(connection, where))
    statement = statement.order_by(_last_verified().asc().nulls_first(), *key)
    return [
        VerificationCandidate(ModelRef(*row[:3]), *row[3:]) for row in connection.execute(statement)
    ]


def _last_verified() -> Case[Any]:
    # A changed model counts as not verified. One that is known to be damaged stays changed: it
    # keeps its time, or each pass would read it first.
    is_unchanged = model_columns.state != literal(FileState.CHANGED, model_columns.state.type)
    return case(
        (is_unchanged | model_columns.found_digest.is_not(None), model_columns.verified_at),
        else_=None,
    )


async def save_inspection(
    catalog: ModelCatalog,
    model: Model,
    values: Mapping[str, Any],
    files: Sequence[FileRecord] | None = None,
) -> Model | None:
    """
    Set columns of a model that was read from the catalog, and its files if given; return it.

    Returns None, and changes nothing, if the model was removed since, or has another path, size or
    digest: the values are then not those of its files. The same if its files are being deleted.
    """
    return await executor_of(catalog).run(
        write(update_inspected, _Inspection(model, values, files))
    )


def _rows_of_inspected(_connection: Connection, value: _Inspection) -> ChangedRows:
    return ChangedRows(ids=[value.model.id])


@changes(_rows_of_inspected, "files")
def update_inspected(connection: Connection, value: _Inspection) -> Model | None:
    """Set columns and files of a model, if it is still the one that was read."""
    model = value.model
    path = literal(model.local_path, model_columns.local_path.type)
    statement = (
        MODELS.update()
        .where(
            model_columns.id == model.id,
            of_host(connection),
            has_path(path, connection.dialect.name),
            model_columns.size_bytes.is_not_distinct_from(model.size_bytes),
            model_columns.digest.is_not_distinct_from(model.digest),
            model_columns.state_detail.is_distinct_from(BEING_DELETED),
        )
        .values(value.values)
        .returning(model_columns.id)
    )
    model_id = connection.scalar(statement)
    if model_id is None:
        return None
    if value.files is not None:
        replace_files(connection, model_id, value.files)
    return load_model(connection, model_id)


async def save_file_digest(catalog: ModelCatalog, model: Model, file: FileRecord) -> None:
    """
    Record the digest that was computed from a file of a model.

    The first digest of a file becomes the expected one, unless it is recorded as the found one. A
    later one that differs is recorded as the found digest. Does nothing if the model was removed or
    has another path.
    """
    await executor_of(catalog).run(write(update_file_digest, _FileReading(model, file)))


def _rows_of_file(_connection: Connection, value: _FileReading) -> ChangedRows:
    return ChangedRows(ids=[value.model.id])


@changes(_rows_of_file, "files")
def update_file_digest(connection: Connection, value: _FileReading) -> None:
    """Set the digests of a file, if its model is still the one that was read."""
    model, file = value
    path = literal(model.local_path, model_columns.local_path.type)
    model_id = select(model_columns.id).where(
        model_columns.id == model.id,
        of_host(connection),
        has_path(path, connection.dialect.name),
        model_columns.inventoried_at.is_not(None),
    )
    found = literal(file.found_digest or file.digest, FILES.c.digest.type)
    # Compared in SQL with the digest recorded by now: another process may have read the file first.
    is_different = FILES.c.digest != found
    first: ColumnElement[str | None] = found
    if file.is_damaged and file.digest is None:
        # The name of its blob says that these bytes are not the expected ones.
        is_different = func.coalesce(is_different, true())
        first = literal(None, FILES.c.digest.type)
    connection.execute(
        FILES.update()
        .where(FILES.c.model_id == model_id.scalar_subquery(), FILES.c.path == file.path)
        .values(
            digest=func.coalesce(FILES.c.digest, first),
            found_digest=case((is_different, found), else_=None),
            fingerprint=case((is_different, FILES.c.fingerprint), else_=file.fingerprint),
            hashed_at=file.hashed_at,
        )
    )


async def register_inspected(
    catalog: ModelCatalog, model: Model, found: Mapping[str, Any], files: Sequence[FileRecord]
) -> Model:
    """
    Register a model with the columns and files that an inspection found, and return it.

    Does the same as `ModelCatalog.register_model` with `files`. The columns in `found` replace the
    values of `model`.
    """
    return await executor_of(catalog).run(register_with_files(model, files, found))

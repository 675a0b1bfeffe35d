"""The files of models, and what the disk was found to hold of them: stored, never looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Unpack

from sqlalchemy import (
    Connection,
    Text,
    case,
    delete,
    func,
    literal,
    null,
    select,
    type_coerce,
    union_all,
)

from model_catalog.domain.fields import KEY_FIELDS, VERIFICATION_FIELDS
from model_catalog.domain.file_record import (
    FileRecord,
    FileState,
    expected_digest,
    merge_file_record,
    sorted_by_path,
)
from model_catalog.domain.file_validation import validate_files
from model_catalog.domain.model_ref import ModelRef
from model_catalog.mapping.tables import Model
from model_catalog.repository.operations.registration import UpsertRow
from model_catalog.repository.statements.filters import (
    FILES,
    MODELS,
    Filters,
    build_where,
    model_columns,
)
from model_catalog.repository.statements.models import Key, Records

F: Final = FILES.c
_FILE_COLUMNS: Final = tuple(column for column in F if column.key != "model_id")


@dataclass(frozen=True, slots=True)
class VerificationCandidate:
    """A model that is to be verified, and when it was verified last."""

    ref: ModelRef
    local_path: str
    size_bytes: int | None
    verified_at: datetime | None


DUPLICATE_COLUMNS: Final = (
    *("digest", "size_bytes", "path", "fingerprint"),
    *(*KEY_FIELDS, "local_path", "store"),
)
"""Of what has a digest; `path` is None for a model of which no files are known."""


class Contents(Records):
    """The operations on the files of models."""

    async def list_files(
        self, reference: str, provider: str, version: str | None = None
    ) -> list[FileRecord]:
        """
        The recorded files of a model by the bytes of their paths; empty where they are not known.

        Raises ModelNotFoundError.
        """
        key = Key.of(reference, provider, version)

        def unit(connection: Connection) -> list[FileRecord]:
            model_id = self._id(connection, key, lock=False)
            return self._files(connection, model_id)

        return await self._work.read(unit)

    async def due(
        self, before: datetime | None, **filters: Unpack[Filters]
    ) -> list[VerificationCandidate]:
        """
        The models that pass the filters and were last verified before a time, if one is given.

        Those that were never verified, or have changed since, come first; then the oldest. What is
        known to be damaged waits its turn: it stays changed, and would be read by each pass.
        """
        unchanged = model_columns.state != literal(FileState.CHANGED, model_columns.state.type)
        verified = case(
            (unchanged | model_columns.found_digest.is_not(None), model_columns.verified_at),
            else_=None,
        )
        statement = select(
            model_columns.provider,
            model_columns.reference,
            model_columns.version,
            model_columns.local_path,
            model_columns.size_bytes,
            model_columns.verified_at,
        ).where(*build_where(filters, self._work.database.dialect))
        if before is not None:
            statement = statement.where(verified.is_(None) | (verified < before))
        order = (verified.asc().nulls_first(), *(model_columns[name] for name in KEY_FIELDS))

        def unit(connection: Connection) -> list[VerificationCandidate]:
            rows = connection.execute(statement.order_by(*order))
            return [VerificationCandidate(ModelRef(*row[:3]), *row[3:]) for row in rows]

        return await self._work.read(unit)

    async def repeated(self, after: str | None, limit: int) -> Sequence[Sequence[Any]]:
        """
        What has one of the next `limit` digests that are recorded more than once, by digest.

        The columns are REPEATED. What was found to have other bytes than the expected is left out.
        """
        of_models = (
            *(model_columns[name] for name in KEY_FIELDS),
            type_coerce(model_columns.local_path, Text),
            model_columns.store,
        )
        files = (
            select(F.digest, F.size_bytes, type_coerce(F.path, Text), F.fingerprint, *of_models)
            .join(MODELS, model_columns.id == F.model_id)
            .where(
                model_columns.inventoried_at.is_not(None),
                F.digest.is_not(None),
                F.found_digest.is_(None),
            )
        )
        whole = select(
            model_columns.digest, model_columns.size_bytes, null(), null(), *of_models
        ).where(
            model_columns.inventoried_at.is_(None),
            model_columns.digest.is_not(None),
            model_columns.found_digest.is_(None),
        )
        both = union_all(files, whole).subquery().alias(name="both")
        digest = both.c[0]
        several = select(digest).group_by(digest).having(func.count() > 1)
        if after is not None:
            several = several.where(digest > after)
        some = several.order_by(digest).limit(limit)
        statement = select(both).where(digest.in_(some)).order_by(digest)

        def unit(connection: Connection) -> Sequence[Sequence[Any]]:
            return connection.execute(statement).all()

        return await self._work.read(unit)

    async def store_found(
        self,
        model: Model,
        values: Mapping[str, Any],
        files: Sequence[FileRecord] | None = None,
    ) -> Model | None:
        """
        Record what was found of a model that was read, and perhaps its files in place of the known.

        None where it was removed, or given another path or size, since it was read: what was found
        is then another's. Nothing else of it is touched.
        """
        statement = (
            MODELS.update()
            .where(
                model_columns.id == model.id,
                self._lies_at(literal(model.local_path, model_columns.local_path.type)),
                model_columns.size_bytes.is_not_distinct_from(model.size_bytes),
                model_columns.digest.is_not_distinct_from(model.digest),
            )
            .values(values)
            .returning(model_columns.id)
        )

        def unit(connection: Connection) -> Model | None:
            model_id = connection.scalar(statement)
            if model_id is None:
                return None
            if files is not None:
                self._replace_files(connection, model_id, files)
            return self._model(connection, model_id)

        return await self._work.write(unit)

    async def store_reading(self, model: Model, file: FileRecord) -> None:
        """
        Record what the bytes of a file were found to be, beside what they should be.

        The first digest that is read of a file is the expected one from then on.
        """
        still = select(model_columns.id).where(
            model_columns.id == model.id,
            self._lies_at(literal(model.local_path, model_columns.local_path.type)),
            model_columns.inventoried_at.is_not(None),
        )
        read = literal(file.found_digest or file.digest, F.digest.type)
        # Held against what is expected by then: another process may have read it first.
        other = F.digest != read
        statement = (
            FILES.update()
            .where(F.model_id == still.scalar_subquery(), F.path == file.path)
            .values(
                digest=func.coalesce(F.digest, read),
                found_digest=case((other, read), else_=None),
                fingerprint=case((other, F.fingerprint), else_=file.fingerprint),
                hashed_at=file.hashed_at,
            )
        )

        def unit(connection: Connection) -> None:
            connection.execute(statement)

        await self._work.write(unit)

    async def register_found(
        self, model: Model, found: Mapping[str, Any], files: Sequence[FileRecord]
    ) -> Model:
        """
        As `register_model`, with what was found of its files, which take the place of the known.

        A file that is listed again keeps its expected digest unless its size or its digest is
        another; the model's digest is that of all its files unless it was set.
        """
        registration = UpsertRow.of(model, found)
        again = UpsertRow.of(
            model, {name: found[name] for name in found if name not in VERIFICATION_FIELDS}
        )
        listed = sorted_by_path(validate_files("files", files))
        of_key = (model_columns[name] == registration.row[name] for name in KEY_FIELDS)
        known = select(model_columns.id, model_columns.digest).where(
            *of_key, model_columns.inventoried_at.is_not(None)
        )

        def unit(connection: Connection) -> Model:
            before = connection.execute(known.with_for_update()).one_or_none()
            own = registration.row.get("digest")
            now, same = listed, False
            if before is not None and own in (None, before.digest):
                old = {file.path: file for file in self._files(connection, before.id)}
                now = [merge_file_record(file, old.get(file.path)) for file in listed]
                same = now == list(old.values())
            # What was verified of files that are the same still holds.
            model_id = self._store(connection, again if same else registration).id
            self._replace_files(connection, model_id, now)
            if own is None and (digest := expected_digest(now)) is not None:
                values = {"digest": digest}
                connection.execute(
                    MODELS.update().where(model_columns.id == model_id).values(values)
                )
            return self._model(connection, model_id)

        return await self._work.write_all(unit)

    def _files(self, connection: Connection, model_id: int) -> list[FileRecord]:
        statement = (
            select(*_FILE_COLUMNS)
            .join(MODELS, model_columns.id == F.model_id)
            .where(F.model_id == model_id, model_columns.inventoried_at.is_not(None))
        )
        # Here, for a path that is no UTF-8 is stored by another text than its bytes.
        return sorted_by_path(FileRecord(**row._asdict()) for row in connection.execute(statement))

    def _replace_files(
        self, connection: Connection, model_id: int, files: Sequence[FileRecord]
    ) -> None:
        connection.execute(delete(FILES).where(F.model_id == model_id))
        rows = [
            {"model_id": model_id, **{c.key: getattr(file, c.key) for c in _FILE_COLUMNS}}
            for file in files
        ]
        if rows:
            connection.execute(self._insert(FILES), rows)

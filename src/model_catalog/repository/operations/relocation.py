"""How the paths of many models get another beginning: a folder of them has moved."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import quote_from_bytes

from sqlalchemy import ColumnElement, Connection, Text, case, func, literal, or_, select

from model_catalog.domain import validation
from model_catalog.domain.file_record import FileState
from model_catalog.domain.model_ref import ModelRef
from model_catalog.errors import InvalidModelError
from model_catalog.mapping.column_types import BYTES_PREFIX
from model_catalog.repository.statements.filters import MODELS, model_columns
from model_catalog.repository.statements.models import Records


@dataclass(frozen=True, slots=True)
class RelocatedModel:
    """A model whose path begins otherwise, or would."""

    ref: ModelRef
    old_path: str
    new_path: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Provider, reference and version."""
        return self.ref.provider, self.ref.reference, self.ref.version or ""


class Relocation(Records):
    """The operation on the paths of many models."""

    async def relocate(
        self, old_prefix: str, new_prefix: str, *, dry_run: bool = False
    ) -> list[RelocatedModel]:
        """
        Let every model below one folder lie below another: the models' directory has moved.

        One statement; the disk is not asked, and a check tells afterwards what is there. Digests
        and files stay as they are recorded. With `dry_run` nothing is written. Returns the models
        by provider, reference and version. Raises InvalidModelError for a prefix that is not
        absolute, and for a new one that is no UTF-8.
        """
        old, new = _folder("old_prefix", old_prefix), _folder("new_prefix", new_prefix)
        path, moved, below = _prefix_expressions(old, new)
        names = (model_columns.provider, model_columns.reference, model_columns.version)
        look = select(*names, path).where(below).order_by(*names)
        change = (
            MODELS.update()
            .where(below)
            .values(
                local_path=moved,
                state=FileState.UNCHECKED,
                **dict.fromkeys(("state_detail", "missing_since", "mount_point")),
            )
            .returning(*names, model_columns.local_path)
        )

        def read(connection: Connection) -> list[RelocatedModel]:
            return [
                RelocatedModel(ModelRef(*row[:3]), row[3], new + row[3][len(old) :])
                for row in connection.execute(look)
            ]

        def write(connection: Connection) -> list[RelocatedModel]:
            found = [
                RelocatedModel(ModelRef(*row[:3]), old + row[3][len(new) :], row[3])
                for row in connection.execute(change)
            ]
            return sorted(found, key=lambda each: each.key)

        return await (self._work.read(read) if dry_run else self._work.write(write))


def _folder(field_: str, value: object) -> str:
    text = validation.path(field_, value)
    if not text.startswith(os.sep):
        raise InvalidModelError(field_, value, "is not absolute: paths are recorded whole")
    # `/models/` and `/models` are one folder, and `/` is the folder of all.
    return text.rstrip("/")


def _prefix_expressions(
    old: str, new: str
) -> tuple[ColumnElement[str], ColumnElement[str], ColumnElement[bool]]:
    """The path of a row, the path it gets, and whether it lies below the old folder."""
    try:
        new.encode()
    except UnicodeEncodeError as error:
        raise InvalidModelError(
            "new_prefix", new, "is no UTF-8, which no database appends to: name it otherwise"
        ) from error
    path = model_columns.local_path
    # As PathText stores it: what is no UTF-8 stands percent-encoded behind a mark.
    raw = func.coalesce(path, "", type_=Text)
    encoded_old = BYTES_PREFIX + quote_from_bytes(old.encode("utf-8", "surrogateescape"))
    encoded_new = BYTES_PREFIX + quote_from_bytes(new.encode())
    pairs = [(encoded_old, encoded_new)]
    if _is_utf8(old):
        pairs.insert(0, (old, new))
    tests = [(raw == before) | _begins(raw, before + "/") for before, _ in pairs]
    moved = case(
        *(
            (test, literal(after, Text) + func.substr(raw, len(before) + 1))
            for test, (before, after) in zip(tests, pairs, strict=True)
        )
    )
    return path, moved, or_(*tests)


def _begins(text: ColumnElement[str], prefix: str) -> ColumnElement[bool]:
    # Not LIKE, which has wildcards and an opinion on case.
    return func.substr(text, 1, len(prefix)) == literal(prefix, Text)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

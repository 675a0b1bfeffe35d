"""Replace the beginning of many paths, after a folder of models was moved."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import quote_from_bytes

from sqlalchemy import (
    ColumnElement,
    Connection,
    Text,
    and_,
    case,
    func,
    literal,
    or_,
    select,
)

from model_catalog.domain import validation
from model_catalog.domain.file_record import FileState
from model_catalog.domain.model_ref import ModelRef
from model_catalog.errors import InvalidModelError
from model_catalog.execution.executor import Operation, read, write
from model_catalog.execution.observation.changed_rows import ChangedRows, changes
from model_catalog.mapping.column_types import BYTES_PREFIX
from model_catalog.repository.statements.filters import MODELS, model_columns, own_models

_KEY_COLUMNS: Final = (model_columns.provider, model_columns.reference, model_columns.version)


@dataclass(frozen=True, slots=True)
class RelocatedModel:
    """A model whose path was changed, or would be in a dry run."""

    ref: ModelRef
    old_path: str
    new_path: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Provider, reference and version."""
        return self.ref.provider, self.ref.reference, self.ref.version or ""


class _Prefixes(NamedTuple):
    old: str
    new: str


def relocate(
    old_prefix: str, new_prefix: str, *, dry_run: bool
) -> Operation[_Prefixes, list[RelocatedModel]]:
    """Return the operation that changes the paths below `old_prefix`, or only lists them."""
    old = _absolute_folder("old_prefix", old_prefix)
    new = _absolute_folder("new_prefix", new_prefix)
    if not _is_utf8(new):
        raise InvalidModelError(
            "new_prefix", new, "is not valid UTF-8, so SQL cannot join it to a path: rename it"
        )
    prefixes = _Prefixes(old, new)
    return read(list_relocated, prefixes) if dry_run else write(relocate_paths, prefixes)


def list_relocated(connection: Connection, prefixes: _Prefixes) -> list[RelocatedModel]:
    """Return the models whose paths would change, by provider, reference and version."""
    old, new = prefixes
    _, is_below = _path_expressions(old, new)
    statement = (
        select(*_KEY_COLUMNS, model_columns.local_path)
        .where(*own_models(connection), is_below)
        .order_by(*_KEY_COLUMNS)
    )
    return [
        RelocatedModel(ModelRef(*key), path, new + path[len(old) :])
        for *key, path in connection.execute(statement)
    ]


def _rows_below(connection: Connection, prefixes: _Prefixes) -> ChangedRows:
    _, is_below = _path_expressions(*prefixes)
    return ChangedRows([and_(*own_models(connection), is_below)])


@changes(_rows_below)
def relocate_paths(connection: Connection, prefixes: _Prefixes) -> list[RelocatedModel]:
    """Change the paths, and return the models by provider, reference and version."""
    old, new = prefixes
    new_path, is_below = _path_expressions(old, new)
    statement = (
        MODELS.update()
        .where(*own_models(connection), is_below)
        .values(
            local_path=new_path,
            state=FileState.UNCHECKED,
            **dict.fromkeys(("state_detail", "missing_since", "mount_point")),
        )
        .returning(*_KEY_COLUMNS, model_columns.local_path)
    )
    relocated = [
        RelocatedModel(ModelRef(*key), old + path[len(new) :], path)
        for *key, path in connection.execute(statement)
    ]
    return sorted(relocated, key=lambda model: model.key)


def _absolute_folder(field: str, value: object) -> str:
    """Validate a folder, and return it without trailing slashes; the root folder becomes ``."""
    text = validation.path(field, value)
    if not text.startswith(os.sep):
        raise InvalidModelError(field, value, "is not absolute: pass the full path")
    return text.rstrip("/")


def _path_expressions(old: str, new: str) -> tuple[ColumnElement[str], ColumnElement[bool]]:
    """Return the new path of a row, and whether its path is below the old folder."""
    # PathText stores a path that is not UTF-8 percent-encoded, after a prefix.
    raw = func.coalesce(model_columns.local_path, "", type_=Text)
    encoded_old = BYTES_PREFIX + quote_from_bytes(old.encode("utf-8", "surrogateescape"))
    encoded_new = BYTES_PREFIX + quote_from_bytes(new.encode())
    pairs = [(encoded_old, encoded_new)]
    if _is_utf8(old):
        pairs.insert(0, (old, new))
    conditions = [(raw == before) | _starts_with(raw, before + "/") for before, _ in pairs]
    new_path = case(
        *(
            (condition, literal(after, Text) + func.substr(raw, len(before) + 1))
            for condition, (before, after) in zip(conditions, pairs, strict=True)
        )
    )
    return new_path, or_(*conditions)


def _starts_with(text: ColumnElement[str], prefix: str) -> ColumnElement[bool]:
    # LIKE has wildcards, and ignores the case of ASCII letters in SQLite.
    return func.substr(text, 1, len(prefix)) == literal(prefix, Text)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

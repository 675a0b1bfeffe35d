"""Validates the files of a model, as a caller or an import lists them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from model_catalog.domain import validation
from model_catalog.domain.file_record import ROLES, FileRecord
from model_catalog.errors import InvalidModelError
from model_catalog.files.digest import is_path_inside_model
from model_catalog.files.fingerprint import Fingerprint

MAX_FILES: Final = 10_000
"""Maximum number of files of one model."""

_FILE_ID: Final = re.compile(r"[0-9]{1,20}:[0-9]{1,20}")

MAX_FILE_PATH_BYTES: Final = 2600
"""
Maximum length of the path of a file inside its model, in bytes, because PostgreSQL indexes it.

A path that is not UTF-8 is stored percent-encoded, so its bytes count three times.
"""
MAX_PATHS_BYTES: Final = 4 * 2**20
"""Maximum length of all paths of a model together, in bytes: an export has them in one line."""


def validate_files(field: str, values: object) -> list[FileRecord]:
    """Validate the files of a model: at most 10,000, each path once and inside the model."""
    files = validate_imported_files(field, values)
    total = 0
    for file in files:
        size = len(file.path.encode("utf-8", "surrogateescape"))
        total += size
        # Nearly all paths are much shorter.
        if 3 * size > MAX_FILE_PATH_BYTES:
            _require_indexable(f"{field}.path", file.path, size)
    if total > MAX_PATHS_BYTES:
        raise InvalidModelError(
            field,
            total,
            f"are too many bytes in the paths of a model: at most {MAX_PATHS_BYTES} are allowed",
        )
    return files


def _require_indexable(field: str, path: str, size: int) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        size *= 3
    if size > MAX_FILE_PATH_BYTES:
        raise InvalidModelError(
            field,
            path,
            f"takes {size} bytes in an index: at most {MAX_FILE_PATH_BYTES} are allowed (bytes "
            "that are not UTF-8 take three)",
        )


def validate_imported_files(field: str, values: object) -> list[FileRecord]:
    """Validate the files of an import, which may have longer paths of an older release."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidModelError(field, values, "is not a list of files: give a list of FileRecord")
    by_path = {file.path: file for file in (_file(field, value) for value in values)}
    if len(by_path) > MAX_FILES:
        raise InvalidModelError(
            field, len(by_path), f"are too many: a model has at most {MAX_FILES} files"
        )
    return list(by_path.values())


def _file(field: str, value: object) -> FileRecord:
    if isinstance(value, Mapping):
        try:
            value = FileRecord(**value)
        except TypeError as error:
            raise InvalidModelError(
                field, value, "is not a file: give the fields of a FileRecord"
            ) from error
    if not isinstance(value, FileRecord):
        raise InvalidModelError(field, value, f"is a {type(value).__name__}: give a FileRecord")
    size = validation.non_negative_int(f"{field}.size_bytes", value.size_bytes)
    if size is None:
        raise InvalidModelError(f"{field}.size_bytes", None, "is missing: every file needs one")
    if value.role not in ROLES:
        raise InvalidModelError(
            f"{field}.role", value.role, f"is not a role: give one of {', '.join(ROLES)}"
        )
    return FileRecord(
        _path_inside_model(f"{field}.path", value.path),
        size,
        value.role,
        validation.digest(f"{field}.digest", value.digest),
        validation.digest(f"{field}.found_digest", value.found_digest),
        _fingerprint(f"{field}.fingerprint", value.fingerprint),
        validation.timestamp(f"{field}.hashed_at", value.hashed_at),
        _file_id(f"{field}.file_id", value.file_id),
        validation.non_negative_int(f"{field}.disk_bytes", value.disk_bytes),
    )


def _path_inside_model(field: str, value: object) -> str:
    """Validate a relative path. An import must not lead a reader out of the model's folder."""
    text = validation.path(field, value)
    if not is_path_inside_model(text):
        raise InvalidModelError(
            field, value, "is not a path inside the model: give a relative one, as in folder/name"
        )
    return text


def _file_id(field: str, value: object) -> str | None:
    if value is None:
        return None
    text = validation.lookup_text(field, value)
    if _FILE_ID.fullmatch(text) is None:
        raise InvalidModelError(field, value, "is invalid: give st_dev:st_ino, as in 2049:1311")
    return text


def _fingerprint(field: str, value: object) -> str | None:
    if value is None:
        return None
    try:
        return str(Fingerprint.parse(validation.lookup_text(field, value)))
    except InvalidModelError as error:
        raise InvalidModelError(field, value, error.reason) from None

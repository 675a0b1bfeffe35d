"""The NDJSON format of an export: writes a model as a line and parses the lines of an import."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

from model_catalog.domain import validation
from model_catalog.domain.fields import TIMESTAMP_FIELDS, VERIFICATION_FIELDS, validate_import
from model_catalog.domain.file_record import FileRecord, sorted_by_path
from model_catalog.domain.file_validation import validate_imported_files
from model_catalog.errors import InvalidModelError, shown

HEADER: Final = json.dumps({"format": "model-catalog", "version": 1}) + "\n"
"""The first line of an export. This version refuses a stream with another first line."""

MAX_LINE: Final = 64 * 2**20
"""
Maximum length of a line, in characters.

A model with the most files and the most tags allowed needs less, also if every character of its
texts is escaped.
"""


@dataclass(frozen=True, slots=True)
class LineError:
    """A line that cannot be imported, and the reason."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class ImportLine:
    """A parsed line of an import: the complete row of a model, its tags, aliases and files."""

    line: int
    row: dict[str, Any]
    tags: tuple[str, ...]
    aliases: tuple[str, ...]
    """The aliases that the user set."""
    store_aliases: tuple[str, ...]
    """The aliases that the model's store set."""
    files: tuple[FileRecord, ...]

    @property
    def key(self) -> tuple[str, ...]:
        """Provider, reference and version."""
        return self.row["provider"], self.row["reference"], self.row["version"]


def iso_time(timestamp: datetime) -> str:
    """Format a time as ISO 8601 in UTC with a four-digit year, as in `2026-11-23T14:05:09Z`."""
    return timestamp.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def to_line(row: Mapping[str, Any]) -> str:
    """Format a model as a line with its line break. Omits None and empty tuples."""
    return json.dumps(_to_json(row), sort_keys=True) + "\n"


def _to_json(value: Any) -> Any:
    match value:
        case datetime():
            return iso_time(value)
        case FileRecord():
            # They identify a file on this machine only.
            return _to_json({**asdict(value), "file_id": None, "disk_bytes": None})
        case bytes():
            # Another program wrote a text to SQLite that is not UTF-8.
            return value.decode("utf-8", "replace")
        case tuple():
            return [_to_json(each) for each in value]
        case Mapping():
            return {
                name: _to_json(each)
                for name, each in value.items()
                if each is not None and each != ()
            }
        case _:
            return value


def parse(line: str | bytes, number: int, *, trust_source: bool) -> ImportLine | LineError | None:
    """
    Parse and validate a line. Returns None for an empty line and for a valid first line.

    Without `trust_source` the results of verifications and signature checks, and the folder that
    the catalog manages, are left out.
    """
    try:
        text = line.decode() if isinstance(line, bytes) else line
        # Before blanks are removed: the end of a longer line was not read.
        if len(text.rstrip("\r\n")) > MAX_LINE:
            return LineError(number, f"it is longer than {MAX_LINE} characters")
        text = text.strip()
        if not text and number > 1:
            return None
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
        if number == 1:
            return _check_header(value)
        parsed = _import_line(value, number)
        return parsed if trust_source else _without_verdicts(parsed)
    except (InvalidModelError, ValueError) as error:
        # json.loads and bytes.decode raise ValueError.
        return LineError(number, str(error))
    except RecursionError:
        return LineError(number, "it is nested too deeply")


def _check_header(value: object) -> LineError | None:
    if value == json.loads(HEADER):
        return None
    return LineError(1, f"it is {shown(value)}: an export begins with {HEADER.strip()}")


def _import_line(value: object, number: int) -> ImportLine:
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 - a fault of the line
    tags = validation.tags("tags", value.pop("tags", []))
    aliases = validation.tags("aliases", value.pop("aliases", []))
    store_aliases = validation.tags("store_aliases", value.pop("store_aliases", []))
    listed = value.pop("files", [])
    if isinstance(listed, list):
        listed = [
            _parse_timestamps(each, _FILE_TIMESTAMPS) if isinstance(each, dict) else each
            for each in listed
        ]
    files = tuple(sorted_by_path(validate_imported_files("files", listed)))
    row = validate_import(_parse_timestamps(value, TIMESTAMP_FIELDS))
    if store_aliases and row["store"] is None:
        raise InvalidModelError("store_aliases", store_aliases, "need a store: set the field store")
    return ImportLine(number, row, tuple(tags), tuple(aliases), tuple(store_aliases), files)


def _without_verdicts(line: ImportLine) -> ImportLine:
    # A stream must not state which folders the catalog may delete files in.
    row = line.row | dict.fromkeys((*VERIFICATION_FIELDS, "managed_root"))
    files = tuple(replace(file, found_digest=None, hashed_at=None) for file in line.files)
    return replace(line, row=row, files=files)


_FILE_TIMESTAMPS: Final = ("hashed_at",)


def _parse_timestamps(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Replace the texts of timestamps by datetimes. A time without a zone is taken as UTC."""
    for name in names:
        if isinstance(values.get(name), str):
            timestamp = _parse_timestamp(name, values[name])
            values[name] = timestamp if timestamp.tzinfo else timestamp.replace(tzinfo=UTC)
    return values


def _parse_timestamp(name: str, text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise InvalidModelError(
            name, text, "is not a time: write one as in 2026-11-23T14:05:09Z"
        ) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("it has the same key twice")
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it contains {name}, which is not JSON")

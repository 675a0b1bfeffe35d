"""What a model looks like as a line of JSON, and what such a line says: no database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

from model_catalog.domain import fields, validation
from model_catalog.domain.file_record import FileRecord, sorted_by_path
from model_catalog.errors import InvalidModelError, shown

HEADER: Final = json.dumps({"format": "model-catalog", "version": 1}) + "\n"
"""The first line. A reader of this version refuses any other."""

MAX_LINE: Final = 16 * 2**20
"""Characters in a line: more than a model of as many files as it may have takes."""

_MOMENTS: Final = (
    "checked_at",
    "downloaded_at",
    "hashed_at",
    "inventoried_at",
    "last_used_at",
    "missing_since",
    "pinned_at",
    "signature_checked_at",
    "verified_at",
)


@dataclass(frozen=True, slots=True)
class LineError:
    """A line that cannot be read, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class ImportLine:
    """A line that could be read: a whole row, and what hangs on it."""

    line: int
    row: dict[str, Any]
    tags: tuple[str, ...]
    aliases: tuple[str, ...]
    store_aliases: tuple[str, ...]
    """Those that its store made."""
    files: tuple[FileRecord, ...]

    @property
    def key(self) -> tuple[str, ...]:
        """Provider, reference and version."""
        return self.row["provider"], self.row["reference"], self.row["version"]


def iso_time(moment: datetime) -> str:
    """A time as ISO 8601 in UTC, as in `2026-11-23T14:05:09Z`; the year has four digits."""
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def to_line(row: Mapping[str, Any]) -> str:
    """The line of a model, with its end; what is None is left out, and so is an empty list."""
    return json.dumps(_to_json(row), sort_keys=True) + "\n"


def _to_json(value: Any) -> Any:
    match value:
        case datetime():
            return iso_time(value)
        case FileRecord():
            return _to_json(asdict(value))
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


def parse(line: str | bytes, number: int) -> ImportLine | LineError | None:
    """What a line says; None for an empty one, and for the first where it is a catalog's."""
    try:
        text = (line.decode() if isinstance(line, bytes) else line).strip()
        if len(text) > MAX_LINE:
            return LineError(number, f"it is longer than {MAX_LINE} characters")
        if not text and number > 1:
            return None
        found = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
        return _head(found) if number == 1 else _entry(found, number)
    except (InvalidModelError, ValueError) as error:
        # ValueError is JSON's and UTF-8's own complaint.
        return LineError(number, str(error))
    except RecursionError:
        return LineError(number, "it is nested too deeply")


def _head(found: object) -> LineError | None:
    if found == json.loads(HEADER):
        return None
    return LineError(
        1, f"it is {shown(found)} and not {HEADER.strip()}, which a catalog begins with"
    )


def _entry(found: object, number: int) -> ImportLine:
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - of the line, not of a caller
    tags = validation.tags("tags", found.pop("tags", []))
    aliases = validation.tags("aliases", found.pop("aliases", []))
    store_aliases = validation.tags("store_aliases", found.pop("store_aliases", []))
    listed = found.pop("files", [])
    if isinstance(listed, list):
        listed = [_parse_timestamps(each) if isinstance(each, dict) else each for each in listed]
    files = tuple(sorted_by_path(validation.files("files", listed)))
    row = fields.validate_import(_parse_timestamps(found))
    if store_aliases and row["store"] is None:
        raise InvalidModelError("store_aliases", store_aliases, "are those of a store: name it")
    return ImportLine(number, row, tuple(tags), tuple(aliases), tuple(store_aliases), files)


def _parse_timestamps(found: dict[str, Any]) -> dict[str, Any]:
    """The same with its times, where they are written as text."""
    for name in _MOMENTS:
        if isinstance(found.get(name), str):
            moment = _moment(name, found[name])
            found[name] = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return found


def _moment(name: str, text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise InvalidModelError(
            name, text, "is no time: write one as in 2026-11-23T14:05:09Z"
        ) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it says the same thing twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"it has {name} in it, which is not JSON")

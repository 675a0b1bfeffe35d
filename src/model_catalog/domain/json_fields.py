"""A model as the command line prints it with `--json`, and as `Model.to_dict` returns it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from model_catalog.domain.fields import SHOWN_FIELDS
from model_catalog.domain.ndjson import iso_time

_FIRST_FIELDS: Final = (
    "provider",
    "reference",
    "version",
    "size_bytes",
    "downloaded_at",
    "local_path",
    "format",
    "architecture",
    "quantization",
    "context_length",
    "parameter_count",
    "license",
    "download_count",
    "last_used_at",
    "use_count",
    "pinned_at",
    "pin_reason",
    "tags",
    "description",
    "source_url",
    "state",
    "state_detail",
    "checked_at",
    "missing_since",
    "incomplete_reason",
)
# The other fields follow in the order of the field table, so that a new field is shown last.
JSON_FIELDS: Final = (
    *_FIRST_FIELDS,
    *(name for name in SHOWN_FIELDS if name not in _FIRST_FIELDS),
)
"""The names, in order."""


def to_json_fields(model: object) -> dict[str, Any]:
    """Return the shown fields of a model: times as ISO 8601 in UTC, tags as a list."""
    return {name: _to_json(getattr(model, name)) for name in JSON_FIELDS}


def _to_json(value: object) -> object:
    match value:
        case datetime():
            return iso_time(value)
        case tuple():
            return list(value)
        case StrEnum():
            return value.value
    return value

"""The fields of a model, and what a value of each has to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from types import NoneType
from typing import Any, Final

from model_catalog.domain import validation
from model_catalog.domain.file_record import FileState
from model_catalog.errors import InvalidModelError

KEY_FIELDS: Final = ("provider", "reference", "version")
"""What makes a model the same as another."""

_DESCRIBING: Final[Mapping[str, validation.Validator]] = {
    "format": validation.short_text,
    "architecture": validation.short_text,
    "quantization": validation.short_text,
    "license": validation.short_text,
    "context_length": validation.size_bytes,
    "parameter_count": validation.size_bytes,
}
HEADER_FIELDS: Final = tuple(_DESCRIBING)
"""What the header of a file may claim of a model, and a user may say otherwise."""

UPDATABLE_FIELDS: Final[Mapping[str, validation.Validator]] = {
    "local_path": validation.path,
    "size_bytes": validation.size_bytes,
    "downloaded_at": validation.timestamp,
    **_DESCRIBING,
    "source_url": validation.url,
    "digest": validation.digest,
    **{f"claimed_{name}": rule for name, rule in _DESCRIBING.items()},
    "description": lambda field, value: validation.long_text(
        field, value, validation.MAX_DESCRIPTION_BYTES
    ),
}
"""The fields of a model that are not its key, and what each may be."""

_RULES: Final[Mapping[str, validation.Validator]] = {
    "reference": lambda field, value: validation.non_blank_text(
        field, value, validation.MAX_REFERENCE
    ),
    "provider": validation.provider,
    "version": validation.version,
    **UPDATABLE_FIELDS,
}
REQUIRED_FIELDS: Final = ("reference", "provider", "local_path")
"""Those without which there is no model."""
INPUT_FIELDS: Final = _RULES.keys()
"""The fields that a model is given; the others are the catalog's to set."""

_PLAIN: Final = {str, int, datetime}

INSPECTION_FIELDS: Final[Mapping[str, validation.Validator]] = {
    "state": validation.state,
    "state_detail": lambda field, value: validation.long_text(
        field, value, validation.MAX_DETAIL_BYTES
    ),
    "checked_at": validation.timestamp,
    "missing_since": validation.timestamp,
    "mount_point": validation.optional_path,
    "found_digest": validation.digest,
    "verified_at": validation.timestamp,
    "inventoried_at": validation.timestamp,
    "incomplete_reason": lambda field, value: validation.long_text(
        field, value, validation.MAX_DETAIL_BYTES
    ),
    "signed_by": validation.digest,
    "signature_verdict": validation.verdict,
    "signature_detail": lambda field, value: validation.long_text(
        field, value, validation.MAX_DETAIL_BYTES
    ),
    "signature_checked_at": validation.timestamp,
}
"""What was found of a model's files. Another path, size or digest takes it away."""

STORE_FIELDS: Final[Mapping[str, validation.Validator]] = {
    "store": validation.short_text,
    "store_root": validation.optional_path,
}
"""In which store it lies. Another path takes it away."""

_COUNTED: Final[Mapping[str, validation.Validator]] = {
    "download_count": validation.size_bytes,
    "use_count": validation.size_bytes,
    "last_used_at": validation.timestamp,
    "pinned_at": validation.timestamp,
    "pin_reason": lambda field, value: validation.long_text(
        field, value, validation.MAX_REASON_BYTES
    ),
}
IMPORT_FIELDS: Final[Mapping[str, validation.Validator]] = {
    **_RULES,
    **_COUNTED,
    **INSPECTION_FIELDS,
    **STORE_FIELDS,
    # What was recorded under other rules, by the hive or an older release, may come back.
    "reference": validation.lookup_text,
    "provider": validation.lookup_text,
    "version": validation.lookup_text,
    "local_path": validation.stored_path,
}
"""Every field of a model that is not the database's own, and what each may be in an import."""


def validate_import(values: Mapping[str, object]) -> dict[str, Any]:
    """
    A model with every field, each checked; what is missing is None, 0, or `""` for the version.

    Raises InvalidModelError, also for a field that there is not.
    """
    for field, value in values.items():
        if field not in IMPORT_FIELDS:
            raise InvalidModelError(field, value, "is no field of a model")
    given: dict[str, object] = {
        "version": "",
        "download_count": 0,
        "use_count": 0,
        "state": FileState.UNCHECKED,
        **values,
    }
    for field in REQUIRED_FIELDS:
        if field not in values:
            raise InvalidModelError(field, None, "is missing: every model has one")
    found = {field: rule(field, given.get(field)) for field, rule in IMPORT_FIELDS.items()}
    for field in ("download_count", "use_count"):
        if found[field] is None:
            raise InvalidModelError(field, None, "is missing: give a number")
    return found


def validate_model(values: Mapping[str, object]) -> dict[str, Any]:
    """
    The values that may be written, each checked; the names this package does not know are left out.

    Raises InvalidModelError for the first that may not be, or that is missing.
    """
    for field in REQUIRED_FIELDS:
        if field not in values:
            raise InvalidModelError(field, None, "is missing: every model has one")
    return {field: rule(field, values[field]) for field, rule in _RULES.items() if field in values}


def validate_column(field: str, values: Sequence[object]) -> list[Any]:
    """
    The values of one field of many models, each checked; the same one only once.

    Raises InvalidModelError for one of them that may not be written.
    """
    rule = _RULES[field]
    kinds = set(map(type, values))
    kinds.discard(NoneType)
    # Of two types True is equal to 1, and of others a value may be equal to what it likes.
    if len(kinds) > 1 or not kinds <= _PLAIN:
        return [rule(field, value) for value in values]
    checked_ones = {value: rule(field, value) for value in set(values)}
    return [checked_ones[value] for value in values]


def validate_update(values: Mapping[str, object]) -> dict[str, Any]:
    """
    The values of an update, each checked.

    Raises InvalidModelError for a name that cannot be changed, and for a value that may not be.
    """
    for field, value in values.items():
        if field not in UPDATABLE_FIELDS:
            raise InvalidModelError(
                field, value, f"cannot be changed: these can: {', '.join(UPDATABLE_FIELDS)}"
            )
    return {field: UPDATABLE_FIELDS[field](field, value) for field, value in values.items()}

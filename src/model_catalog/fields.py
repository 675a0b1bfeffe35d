"""The fields of a model, and what a value of each has to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from model_catalog import rules
from model_catalog.errors import InvalidModelError
from model_catalog.inventory import FileState

_DESCRIBING: Final[Mapping[str, rules.Rule]] = {
    "format": rules.word,
    "architecture": rules.word,
    "quantization": rules.word,
    "license": rules.word,
    "context_length": rules.size_bytes,
    "parameter_count": rules.size_bytes,
}
CLAIMABLE: Final = tuple(_DESCRIBING)
"""What the header of a file may claim of a model, and a user may say otherwise."""

CHANGEABLE: Final[Mapping[str, rules.Rule]] = {
    "local_path": rules.path,
    "size_bytes": rules.size_bytes,
    "downloaded_at": rules.moment,
    **_DESCRIBING,
    "source_url": rules.url,
    "digest": rules.digest,
    **{f"claimed_{name}": rule for name, rule in _DESCRIBING.items()},
    "description": lambda field, value: rules.prose(field, value, rules.MAX_DESCRIPTION_BYTES),
}
"""The fields of a model that are not its key, and what each may be."""

_RULES: Final[Mapping[str, rules.Rule]] = {
    "reference": lambda field, value: rules.named(field, value, rules.MAX_REFERENCE),
    "provider": rules.provider,
    "version": rules.version,
    **CHANGEABLE,
}
_REQUIRED: Final = ("reference", "provider", "local_path")

FOUND: Final[Mapping[str, rules.Rule]] = {
    "state": rules.state,
    "state_detail": lambda field, value: rules.prose(field, value, rules.MAX_DETAIL_BYTES),
    "checked_at": rules.moment,
    "missing_since": rules.moment,
    "mount_point": rules.optional_path,
    "found_digest": rules.digest,
    "verified_at": rules.moment,
    "inventoried_at": rules.moment,
    "incomplete_reason": lambda field, value: rules.prose(field, value, rules.MAX_DETAIL_BYTES),
    "signed_by": rules.digest,
    "signature_verdict": rules.verdict,
    "signature_detail": lambda field, value: rules.prose(field, value, rules.MAX_DETAIL_BYTES),
    "signature_checked_at": rules.moment,
}
"""What was found of a model's files. Another path, size or digest takes it away."""

STORED: Final[Mapping[str, rules.Rule]] = {
    "store": rules.word,
    "store_root": rules.optional_path,
}
"""In which store it lies. Another path takes it away."""

_COUNTED: Final[Mapping[str, rules.Rule]] = {
    "download_count": rules.size_bytes,
    "use_count": rules.size_bytes,
    "last_used_at": rules.moment,
    "pinned_at": rules.moment,
    "pin_reason": lambda field, value: rules.prose(field, value, rules.MAX_REASON_BYTES),
}
WHOLE: Final[Mapping[str, rules.Rule]] = {
    **_RULES,
    **_COUNTED,
    **FOUND,
    **STORED,
    # What was recorded under other rules, by the hive or an older release, may come back.
    "reference": rules.lookup_text,
    "provider": rules.lookup_text,
    "version": rules.lookup_text,
    "local_path": rules.recorded_path,
}
"""Every field of a model that is not the database's own, and what each may be in an import."""


def whole(values: Mapping[str, object]) -> dict[str, Any]:
    """
    A model with every field, each checked; what is missing is None, 0, or `""` for the version.

    Raises InvalidModelError, also for a field that there is not.
    """
    for field, value in values.items():
        if field not in WHOLE:
            raise InvalidModelError(field, value, "is no field of a model")
    given: dict[str, object] = {
        "version": "",
        "download_count": 0,
        "use_count": 0,
        "state": FileState.UNCHECKED,
        **values,
    }
    for field in _REQUIRED:
        if field not in values:
            raise InvalidModelError(field, None, "is missing: every model has one")
    found = {field: rule(field, given.get(field)) for field, rule in WHOLE.items()}
    for field in ("download_count", "use_count"):
        if found[field] is None:
            raise InvalidModelError(field, None, "is missing: give a number")
    return found


def checked(values: Mapping[str, object]) -> dict[str, Any]:
    """
    The values that may be written, each checked; the names this package does not know are left out.

    Raises InvalidModelError for the first that may not be, or that is missing.
    """
    for field in _REQUIRED:
        if field not in values:
            raise InvalidModelError(field, None, "is missing: every model has one")
    return {field: rule(field, values[field]) for field, rule in _RULES.items() if field in values}


def changes(values: Mapping[str, object]) -> dict[str, Any]:
    """
    The values of an update, each checked.

    Raises InvalidModelError for a name that cannot be changed, and for a value that may not be.
    """
    for field, value in values.items():
        if field not in CHANGEABLE:
            raise InvalidModelError(
                field, value, f"cannot be changed: these can: {', '.join(CHANGEABLE)}"
            )
    return {field: CHANGEABLE[field](field, value) for field, value in values.items()}

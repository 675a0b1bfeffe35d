"""
The table of a model's fields: the class ModelRow. Everything that lists fields is derived from it.

A new column is one line in the mapping, one revision, one line in ModelRow and one test. A field
that users may update has a line in ModelChanges too, because no type checker can derive that class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum, StrEnum, auto
from types import NoneType
from typing import Annotated, Any, Final, NamedTuple, TypedDict, get_args, get_type_hints

from model_catalog.domain import key_validation, validation
from model_catalog.domain.file_record import FileState
from model_catalog.domain.model_ref import ModelRef
from model_catalog.domain.validation import Validator
from model_catalog.errors import InvalidModelError


class Group(Enum):
    """Who sets a field, and what resets it."""

    ROW_ID = auto()
    """The database sets it, and an export leaves it out."""
    HOST = auto()
    """The catalog that records the model sets it, and an export leaves it out."""
    KEY = auto()
    """The caller sets it; it identifies the model and cannot be updated."""
    USER = auto()
    """The caller sets it."""
    HEADER = auto()
    """The caller sets it. While it is None, the field `claimed_NAME` is read in its place."""
    CLAIM = auto()
    """The value that a file's header states for the HEADER field of the same name."""
    USAGE = auto()
    """The catalog sets it when a model is registered, used or pinned."""
    INSPECTION = auto()
    """The result of a check of the files. A changed path, size or digest resets it."""
    VERIFICATION = auto()
    """An INSPECTION field that depends on the bytes of the files."""
    SIGNATURE = auto()
    """A VERIFICATION field that describes the model's signature."""
    STORE = auto()
    """The external store that contains the model. A changed path resets it."""


class Field(NamedTuple):
    """The properties of one field; its name and its type are those in ModelRow."""

    group: Group
    validate: Validator
    """Checks a value of the caller and converts it to the value that is stored."""
    validate_import: Validator | None = None
    """Replaces `validate` for the values of an import, where older rules must pass."""
    default: Any = None
    """The value in a new row if the caller does not set it; equal to the server default."""
    is_required: bool = False
    is_shown: bool = True
    """Whether `ls` and `show` print it in their JSON, TSV and detail formats."""


class ModelRow(NamedTuple):
    """
    A model as a plain tuple: the fields of `Model`, and its tags.

    A ModelRow takes a fraction of the time and memory of a Model, and cannot be registered again.
    """

    reference: Annotated[
        str, Field(Group.KEY, key_validation.reference, validation.lookup_text, is_required=True)
    ]
    provider: Annotated[
        str, Field(Group.KEY, key_validation.provider, validation.lookup_text, is_required=True)
    ]
    local_path: Annotated[
        str, Field(Group.USER, validation.path, validation.stored_path, is_required=True)
    ]
    size_bytes: Annotated[int | None, Field(Group.USER, validation.non_negative_int)]
    downloaded_at: Annotated[datetime | None, Field(Group.USER, validation.timestamp)]
    id: Annotated[int, Field(Group.ROW_ID, validation.non_negative_int, is_shown=False)]
    version: Annotated[
        str, Field(Group.KEY, key_validation.version, validation.lookup_text, default="")
    ]
    format: Annotated[str | None, Field(Group.HEADER, validation.short_text)]
    architecture: Annotated[str | None, Field(Group.HEADER, validation.short_text)]
    quantization: Annotated[str | None, Field(Group.HEADER, validation.short_text)]
    license: Annotated[str | None, Field(Group.HEADER, validation.short_text)]
    context_length: Annotated[int | None, Field(Group.HEADER, validation.non_negative_int)]
    parameter_count: Annotated[int | None, Field(Group.HEADER, validation.non_negative_int)]
    source_url: Annotated[str | None, Field(Group.USER, validation.url)]
    claimed_format: Annotated[str | None, Field(Group.CLAIM, validation.short_text, is_shown=False)]
    claimed_architecture: Annotated[
        str | None, Field(Group.CLAIM, validation.short_text, is_shown=False)
    ]
    claimed_quantization: Annotated[
        str | None, Field(Group.CLAIM, validation.short_text, is_shown=False)
    ]
    claimed_license: Annotated[
        str | None, Field(Group.CLAIM, validation.short_text, is_shown=False)
    ]
    claimed_context_length: Annotated[
        int | None, Field(Group.CLAIM, validation.non_negative_int, is_shown=False)
    ]
    claimed_parameter_count: Annotated[
        int | None, Field(Group.CLAIM, validation.non_negative_int, is_shown=False)
    ]
    description: Annotated[str | None, Field(Group.USER, validation.description)]
    download_count: Annotated[int, Field(Group.USAGE, validation.non_negative_int, default=1)]
    use_count: Annotated[int, Field(Group.USAGE, validation.non_negative_int, default=0)]
    last_used_at: Annotated[datetime | None, Field(Group.USAGE, validation.timestamp)]
    pinned_at: Annotated[datetime | None, Field(Group.USAGE, validation.timestamp)]
    pin_reason: Annotated[str | None, Field(Group.USAGE, validation.reason)]
    state: Annotated[
        FileState, Field(Group.INSPECTION, validation.state, default=FileState.UNCHECKED)
    ]
    state_detail: Annotated[str | None, Field(Group.INSPECTION, validation.detail)]
    checked_at: Annotated[datetime | None, Field(Group.INSPECTION, validation.timestamp)]
    missing_since: Annotated[datetime | None, Field(Group.INSPECTION, validation.timestamp)]
    mount_point: Annotated[
        str | None, Field(Group.INSPECTION, validation.optional_path, is_shown=False)
    ]
    digest: Annotated[str | None, Field(Group.USER, validation.digest)]
    found_digest: Annotated[str | None, Field(Group.VERIFICATION, validation.digest)]
    verified_at: Annotated[datetime | None, Field(Group.VERIFICATION, validation.timestamp)]
    inventoried_at: Annotated[
        datetime | None, Field(Group.INSPECTION, validation.timestamp, is_shown=False)
    ]
    headers_read_at: Annotated[
        datetime | None, Field(Group.INSPECTION, validation.timestamp, is_shown=False)
    ]
    incomplete_reason: Annotated[str | None, Field(Group.INSPECTION, validation.detail)]
    unknown_reason: Annotated[str | None, Field(Group.INSPECTION, validation.detail)]
    listing_reason: Annotated[
        str | None, Field(Group.INSPECTION, validation.detail, is_shown=False)
    ]
    content_reason: Annotated[
        str | None, Field(Group.INSPECTION, validation.detail, is_shown=False)
    ]
    signed_by: Annotated[str | None, Field(Group.SIGNATURE, validation.digest)]
    signature_verdict: Annotated[str | None, Field(Group.SIGNATURE, validation.verdict)]
    signature_detail: Annotated[str | None, Field(Group.SIGNATURE, validation.detail)]
    signature_checked_at: Annotated[datetime | None, Field(Group.SIGNATURE, validation.timestamp)]
    store: Annotated[str | None, Field(Group.STORE, validation.short_text)]
    store_root: Annotated[str | None, Field(Group.STORE, validation.optional_path)]
    kind: Annotated[str | None, Field(Group.HEADER, validation.kind)]
    claimed_kind: Annotated[str | None, Field(Group.CLAIM, validation.kind, is_shown=False)]
    managed_root: Annotated[str | None, Field(Group.STORE, validation.optional_path)]
    host: Annotated[str, Field(Group.HOST, key_validation.host_or_none, default="")]
    tags: tuple[str, ...]

    @property
    def ref(self) -> ModelRef:
        """The name of the model, with its version."""
        return ModelRef(self.provider, self.reference, self.version)


class ModelChanges(TypedDict, total=False):
    """The fields that `update_model` can set; None clears a field that may be None."""

    local_path: str
    size_bytes: int | None
    downloaded_at: datetime | None
    kind: str | None
    format: str | None
    architecture: str | None
    quantization: str | None
    license: str | None
    context_length: int | None
    parameter_count: int | None
    source_url: str | None
    claimed_kind: str | None
    claimed_format: str | None
    claimed_architecture: str | None
    claimed_quantization: str | None
    claimed_license: str | None
    claimed_context_length: int | None
    claimed_parameter_count: int | None
    description: str | None
    digest: str | None


_HINTS: Final = {
    name: hint
    for name, hint in get_type_hints(ModelRow, include_extras=True).items()
    if hasattr(hint, "__metadata__")
}

FIELD_TYPES: Final[Mapping[str, Any]] = {name: hint.__origin__ for name, hint in _HINTS.items()}
"""The type of each field, as in `int | None`, in the order of ModelRow."""

FIELDS: Final[Mapping[str, Field]] = {name: hint.__metadata__[0] for name, hint in _HINTS.items()}
"""Every field that is a column of the models table, in the order of ModelRow."""


def _names_in(*groups: Group) -> tuple[str, ...]:
    return tuple(name for name, field in FIELDS.items() if field.group in groups)


KEY_FIELDS: Final = ("provider", "reference", "version")
"""The fields that name a model on its host, in the order of the index."""

UNIQUE_COLUMNS: Final = ("host", *KEY_FIELDS)
"""The columns of the unique key of the table, in the order of its index."""

REQUIRED_FIELDS: Final = tuple(name for name, field in FIELDS.items() if field.is_required)
"""The fields without a default."""

HEADER_FIELDS: Final = _names_in(Group.HEADER)
"""The fields that a file's header may state and a user may overrule."""

ATTRIBUTES: Final[Mapping[str, str]] = {
    name: f"user_{name}" if field.group is Group.HEADER else name for name, field in FIELDS.items()
}
"""The attribute of `Model` that stores each field. `Model.NAME` of a HEADER field is computed."""

UPDATABLE_FIELDS: Final[Mapping[str, Validator]] = {
    name: FIELDS[name].validate for name in _names_in(Group.USER, Group.HEADER, Group.CLAIM)
}
"""The fields that `update_model` can set: all that a caller sets except the key."""

_INPUT_VALIDATORS: Final[Mapping[str, Validator]] = {
    **{name: FIELDS[name].validate for name in _names_in(Group.KEY)},
    **UPDATABLE_FIELDS,
}

INPUT_FIELDS: Final = _INPUT_VALIDATORS.keys()
"""The fields that a caller sets, as keywords of `Model`. The catalog sets the others."""

_ATTRIBUTE_VALIDATORS: Final = tuple(
    (name, ATTRIBUTES[name], validate) for name, validate in _INPUT_VALIDATORS.items()
)

SIGNATURE_FIELDS: Final = _names_in(Group.SIGNATURE)
"""The results of a signature check."""

VERIFICATION_FIELDS: Final = _names_in(Group.VERIFICATION, Group.SIGNATURE)
"""The results that depend on the bytes of the files."""

INSPECTION_FIELDS: Final = _names_in(Group.INSPECTION, Group.VERIFICATION, Group.SIGNATURE)
"""The results of checks and verifications. A changed path, size or digest resets them."""

STORE_FIELDS: Final = _names_in(Group.STORE)
"""The external store of a model. A changed path resets them."""

IMPORT_FIELDS: Final[Mapping[str, Validator]] = {
    # Values that rbee-hive or an older release recorded under other rules must be importable.
    name: field.validate_import or field.validate
    for name, field in FIELDS.items()
    if field.group not in (Group.ROW_ID, Group.HOST)
}
"""The fields of a line of an import, and the validators of their values."""

TIMESTAMP_FIELDS: Final = tuple(
    name for name, kind in FIELD_TYPES.items() if datetime in (kind, *get_args(kind))
)
"""The fields whose values are points in time."""

SHOWN_FIELDS: Final = tuple(name for name, field in FIELDS.items() if field.is_shown)
"""The fields that the command line prints."""

COLUMN_DEFAULTS: Final[Mapping[str, Any]] = {name: field.default for name, field in FIELDS.items()}
"""The values of a new row in which nothing was set."""

_PLAIN: Final = {str, int, datetime}


def validate_import(values: Mapping[str, object]) -> dict[str, Any]:
    """
    Validate a line of an import and return every field of the row.

    A missing field is None, 0, `unchecked`, or `""` for the version. Raises InvalidModelError for
    the first unknown field, missing field or invalid value.
    """
    for name, value in values.items():
        if name not in IMPORT_FIELDS:
            raise InvalidModelError(name, value, "is not a field of a model")
    # A line that states no `download_count` counts no registration.
    given: dict[str, object] = {**COLUMN_DEFAULTS, "download_count": 0, **values}
    _require_fields(values)
    row = {name: validate(name, given[name]) for name, validate in IMPORT_FIELDS.items()}
    for name, value in row.items():
        if value is None and not is_nullable(name):
            raise InvalidModelError(name, None, "is missing: give a number")
    return row


def validate_model(values: Mapping[str, object]) -> dict[str, Any]:
    """
    Validate the fields that a caller may set and return the values to store.

    Ignores names that are not such fields. Raises InvalidModelError for the first missing field or
    invalid value.
    """
    _require_fields(values)
    return _with_valid_key(
        {
            name: validate(name, values[name])
            for name, validate in _INPUT_VALIDATORS.items()
            if name in values
        }
    )


def validate_attributes(attributes: Mapping[str, object]) -> dict[str, Any]:
    """Validate the attributes of a `Model`, and return its fields as `validate_model` does."""
    _require_fields(attributes)
    return _with_valid_key(
        {
            name: validate(name, attributes[attribute])
            for name, attribute, validate in _ATTRIBUTE_VALIDATORS
            if attribute in attributes
        }
    )


def _with_valid_key(row: dict[str, Any]) -> dict[str, Any]:
    if "version" in row:
        key_validation.key(row["provider"], row["reference"], row["version"])
    return row


def validate_stored(name: str, value: object) -> Any:
    """
    Validate a value of any field, also of one that only the catalog sets.

    Returns the value to store. Raises InvalidModelError.
    """
    if value is None and not is_nullable(name):
        raise InvalidModelError(name, None, "must not be None: set a value, or leave it unset")
    return FIELDS[name].validate(name, value)


def validate_column(field: str, values: Sequence[object]) -> list[Any]:
    """
    Validate the values of one field of many models. Equal values are validated once.

    Raises InvalidModelError for one of the invalid values.
    """
    validate = _INPUT_VALIDATORS[field]
    kinds = set(map(type, values))
    kinds.discard(NoneType)
    # Values of two types may be equal, as True and 1 are, and other types may define equality
    # freely. Then one value must not stand for another.
    if len(kinds) > 1 or not kinds <= _PLAIN:
        return [validate(field, value) for value in values]
    validated = {value: validate(field, value) for value in set(values)}
    return list(map(validated.__getitem__, values))


def validate_update(values: Mapping[str, object]) -> dict[str, Any]:
    """
    Validate the values of an update and return the values to store.

    Raises InvalidModelError for a field that cannot be updated and for an invalid value.
    """
    for name, value in values.items():
        if name not in UPDATABLE_FIELDS:
            fields = ", ".join(UPDATABLE_FIELDS)
            raise InvalidModelError(name, value, f"cannot be updated: use one of {fields}")
    return {name: UPDATABLE_FIELDS[name](name, value) for name, value in values.items()}


def is_nullable(name: str) -> bool:
    """Whether the field may be None."""
    return NoneType in get_args(FIELD_TYPES[name])


def _require_fields(values: Mapping[str, object]) -> None:
    for name in REQUIRED_FIELDS:
        if name not in values:
            raise InvalidModelError(name, None, "is missing: every model needs one")


class Sort(StrEnum):
    """The field that a listing is sorted by; ties are sorted by provider, reference and version."""

    DOWNLOADED_AT = "downloaded_at"
    LAST_USED_AT = "last_used_at"
    USE_COUNT = "use_count"
    DOWNLOAD_COUNT = "download_count"
    SIZE_BYTES = "size_bytes"
    CONTEXT_LENGTH = "context_length"
    PARAMETER_COUNT = "parameter_count"
    PROVIDER = "provider"
    REFERENCE = "reference"
    ARCHITECTURE = "architecture"
    QUANTIZATION = "quantization"
    FORMAT = "format"

    @property
    def descending_by_default(self) -> bool:
        """Whether the default direction is descending: for numbers and times, but not for names."""
        names = {Sort.PROVIDER, Sort.REFERENCE, Sort.ARCHITECTURE, Sort.QUANTIZATION, Sort.FORMAT}
        return self not in names

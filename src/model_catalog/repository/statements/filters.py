"""Which models: what is known of one, and the filters that all listings share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Any, Final, TypedDict, cast

from sqlalchemy import (
    ColumnElement,
    Table,
    func,
    or_,
    select,
    true,
)

from model_catalog.domain import fields, validation
from model_catalog.domain.file_record import FileState
from model_catalog.errors import InvalidModelError
from model_catalog.mapping.tables import Model, ModelFile, ModelTag, fold_case

MODELS: Final = cast("Table", Model.__table__)
TAGS: Final = cast("Table", ModelTag.__table__)
FILES: Final = cast("Table", ModelFile.__table__)
model_columns: Final = MODELS.c

EFFECTIVE_COLUMNS: Final[Mapping[str, ColumnElement[Any]]] = {
    name: (
        func.coalesce(model_columns[name], model_columns[f"claimed_{name}"])
        if name in fields.HEADER_FIELDS
        else model_columns[name]
    )
    for name in fields.FIELDS
}
"""The value of each field: the user's, or the value that the header states if that is NULL."""


class Filters(TypedDict, total=False):
    """
    What a listing may be narrowed by; a model has to pass all that are given. None is not given.

    Bounds of sizes and lengths are part of the range, moments are not: `downloaded_after` is later.
    """

    provider: str | None
    reference: str | None
    version: str | None
    """An exact one; no alias."""
    search: str | None
    """Somewhere in the reference, the description or a tag, without regard to case."""
    tags: Collection[str] | None
    """Has all of them, without regard to case."""
    any_tags: Collection[str] | None
    """Has one of them at least."""
    format: str | None
    architecture: str | None
    quantization: str | None
    license: str | None
    min_size_bytes: int | None
    max_size_bytes: int | None
    min_context_length: int | None
    """In tokens."""
    downloaded_after: datetime | None
    downloaded_before: datetime | None
    used_after: datetime | None
    used_before: datetime | None
    never_used: bool | None
    pinned: bool | None
    state: FileState | None
    """What the last look at the disk found."""
    digest: str | None
    """A SHA-256, of the model or of one of its files."""
    damaged: bool | None
    """Its bytes were not the expected ones when they were last verified."""
    incomplete: bool | None
    store: str | None
    """Lies in a store of this kind, as in `ollama`."""
    foreign: bool | None
    """Lies in a store that is not ours."""


def build_where(filters: Mapping[str, object], dialect: str) -> list[ColumnElement[bool]]:
    """The WHERE of some filters. Raises InvalidModelError, and TypeError for one that is none."""
    unknown = set(filters) - _CONDITIONS.keys()
    if unknown:
        raise TypeError(f"there is no filter {min(unknown)!r}: there are {', '.join(_CONDITIONS)}")
    return [
        _CONDITIONS[name](name, value, dialect)
        for name, value in filters.items()
        if value is not None
    ]


Condition = Callable[[str, object, str], ColumnElement[bool]]


def _equals(field: str, value: object, _dialect: str) -> ColumnElement[bool]:
    return EFFECTIVE_COLUMNS[field] == validation.lookup_text(field, value)


def _contains(field: str, value: object, dialect: str) -> ColumnElement[bool]:
    text = fold_case(validation.search(field, value))
    # Not LIKE: it has wildcards to escape, a limit on its pattern, and an opinion on case.
    position = func.instr if dialect == "sqlite" else func.strpos
    tagged = select(TAGS.c.model_id).where(position(TAGS.c.folded, text) > 0)
    return or_(
        position(model_columns.reference_folded, text) > 0,
        position(model_columns.description_folded, text) > 0,
        model_columns.id.in_(tagged),
    )


def _has_all(field: str, value: object, _dialect: str) -> ColumnElement[bool]:
    wanted = _wanted(field, value)
    # One count, however many they are: of a semijoin for each PostgreSQL's planner never returns.
    return _tagged(wanted, len(wanted)) if wanted else true()


def _has_any(field: str, value: object, _dialect: str) -> ColumnElement[bool]:
    return _tagged(_wanted(field, value), 1)


def _wanted(field: str, value: object) -> list[str]:
    return sorted({fold_case(tag) for tag in validation.filter_tags(field, value)})


def _tagged(wanted: Collection[str], at_least: int) -> ColumnElement[bool]:
    """The models that have so many of these tags."""
    models = select(TAGS.c.model_id).where(TAGS.c.folded.in_(wanted)).group_by(TAGS.c.model_id)
    return model_columns.id.in_(models.having(func.count() >= at_least))


def _at_least(name: str) -> Condition:
    return lambda field, value, _: (
        EFFECTIVE_COLUMNS[name] >= validation.non_negative_int(field, value)
    )


def _at_most(name: str) -> Condition:
    return lambda field, value, _: (
        EFFECTIVE_COLUMNS[name] <= validation.non_negative_int(field, value)
    )


def _later(column: ColumnElement[datetime]) -> Condition:
    return lambda field, value, _: column > validation.timestamp(field, value)


def _earlier(column: ColumnElement[datetime]) -> Condition:
    def condition(field: str, value: object, _dialect: str) -> ColumnElement[bool]:
        whole = validation.timestamp(field, value)
        # Rows hold whole seconds: one in the second that a bound cuts lies before the bound.
        return column < whole if whole == value else column <= whole

    return condition


def _flag(column: ColumnElement[Any], *, is_null: bool) -> Condition:
    def condition(field: str, value: object, _dialect: str) -> ColumnElement[bool]:
        if not isinstance(value, bool):
            raise InvalidModelError(field, value, "is neither True nor False")
        return column.is_(None) if value is is_null else column.is_not(None)

    return condition


def _has_digest(field: str, value: object, _dialect: str) -> ColumnElement[bool]:
    digest = validation.digest(field, value)
    of_a_file = select(FILES.c.model_id).where(FILES.c.digest == digest)
    return (model_columns.digest == digest) | (
        model_columns.id.in_(of_a_file) & model_columns.inventoried_at.is_not(None)
    )


_CONDITIONS: Final[Mapping[str, Condition]] = {
    "provider": _equals,
    "reference": _equals,
    "version": _equals,
    "search": _contains,
    "tags": _has_all,
    "any_tags": _has_any,
    "format": _equals,
    "architecture": _equals,
    "quantization": _equals,
    "license": _equals,
    "min_size_bytes": _at_least("size_bytes"),
    "max_size_bytes": _at_most("size_bytes"),
    "min_context_length": _at_least("context_length"),
    "downloaded_after": _later(model_columns.downloaded_at),
    "downloaded_before": _earlier(model_columns.downloaded_at),
    "used_after": _later(model_columns.last_used_at),
    "used_before": _earlier(model_columns.last_used_at),
    "never_used": _flag(model_columns.last_used_at, is_null=True),
    "pinned": _flag(model_columns.pinned_at, is_null=False),
    "state": lambda field, value, _: model_columns.state == validation.state(field, value),
    "digest": _has_digest,
    "damaged": _flag(model_columns.found_digest, is_null=False),
    "incomplete": _flag(model_columns.incomplete_reason, is_null=False),
    "store": _equals,
    "foreign": _flag(model_columns.store, is_null=False),
}

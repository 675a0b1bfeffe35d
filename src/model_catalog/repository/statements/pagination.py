"""In what order models are listed, and which part of it: the window that a page is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    and_,
    bindparam,
    or_,
    select,
    tuple_,
    union_all,
)

from model_catalog.domain import validation
from model_catalog.domain.fields import ModelRow
from model_catalog.errors import InvalidModelError
from model_catalog.mapping.column_types import UnixTimestamp
from model_catalog.mapping.tables import Model
from model_catalog.repository.statements.filters import EFFECTIVE_COLUMNS, model_columns


class Sort(StrEnum):
    """What a listing is sorted by. Equal models come by provider, reference and version."""

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
        """Numbers and times begin with the greatest, names with the first."""
        return self not in _NAMES


_NAMES: Final = {
    Sort.PROVIDER,
    Sort.REFERENCE,
    Sort.ARCHITECTURE,
    Sort.QUANTIZATION,
    Sort.FORMAT,
}
_KEY_NAMES: Final = ("provider", "reference", "version")
_KEY: Final = tuple(model_columns[name] for name in _KEY_NAMES)
_KEY_AFTER: Final = tuple(bindparam(f"after_{c.name}", type_=c.type) for c in _KEY)
_LIMIT: Final = bindparam("limit", type_=BigInteger)


class _Start(Enum):
    FIRST = auto()
    AFTER_VALUE = auto()
    AFTER_NULL = auto()


@dataclass(frozen=True, slots=True)
class SortOrder:
    """The order of a listing."""

    sort: Sort
    is_descending: bool

    @classmethod
    def validated(cls, sort: object, descending: object) -> SortOrder:
        """Raises InvalidModelError for what is none."""
        if not isinstance(sort, Sort):
            raise InvalidModelError("sort", sort, f"is no Sort: give one of {', '.join(Sort)}")
        if descending is None:
            return cls(sort, sort.descending_by_default)
        if not isinstance(descending, bool):
            raise InvalidModelError("descending", descending, "is neither True, False nor None")
        return cls(sort, descending)

    @property
    def column(self) -> ColumnElement[Any]:
        """What it is sorted by, before the key."""
        return EFFECTIVE_COLUMNS[self.sort.value]

    @property
    def columns(self) -> list[ColumnElement[Any]]:
        """Its ORDER BY: total, and the same on both databases; NULL comes last."""
        return self.by(self.column, *_KEY)

    def by(self, column: ColumnElement[Any], *key: ColumnElement[Any]) -> list[ColumnElement[Any]]:
        """The same of other columns with the same values."""
        sorted_by = column.desc() if self.is_descending else column.asc()
        return [sorted_by.nulls_last(), *key]

    @property
    def is_indexed(self) -> bool:
        """Whether an index has it."""
        return self.sort is Sort.DOWNLOADED_AT and self.is_descending


@dataclass(frozen=True, slots=True)
class Page:
    """
    A part of an order: its beginning or what comes behind a model, to the end or only so far.

    It is the same for all that begin behind some model: which one, and how far, are its values.
    """

    order: SortOrder
    start: _Start
    is_limited: bool

    @classmethod
    def validated(
        cls, order: SortOrder, after: Model | ModelRow | None, limit: int | None
    ) -> tuple[Page, dict[str, Any]]:
        """One and its values. Raises InvalidModelError for what has no place in the order."""
        start = _Start.FIRST
        values: dict[str, Any] = {}
        if after is not None:
            if not isinstance(after, Model | ModelRow):
                problem = f"is a {type(after).__name__}: give a Model"
                raise InvalidModelError("after", after, problem)
            name = order.sort.value
            value = _checked(name, getattr(after, name))
            start = _Start.AFTER_NULL if value is None else _Start.AFTER_VALUE
            if value is not None:
                values["after_value"] = value
            for name in _KEY_NAMES:
                values[f"after_{name}"] = validation.lookup_text(name, getattr(after, name))
        if limit is not None:
            values["limit"] = validation.limit("limit", limit)
        return cls(order, start, limit is not None), values

    def apply_to(
        self, models: Select[Any], where: Sequence[ColumnElement[bool]] = ()
    ) -> Select[Any]:
        """Narrow a query to it, and to those that pass `where`."""
        behind = [] if self.start is _Start.FIRST else [self._after_cursor(where)]
        ordered = models.where(*where, *behind).order_by(*self.order.columns)
        return ordered.limit(_LIMIT) if self.is_limited else ordered

    def _after_cursor(self, where: Sequence[ColumnElement[bool]]) -> ColumnElement[bool]:
        if not (self.is_limited and self.order.is_indexed):
            return or_(*self._parts)
        # Told by OR a database reads everything that comes before. Each part by itself begins where
        # it has to in the index, and ends when it has enough.
        key = (self.order.column, *_KEY)
        parts = (
            select(model_columns.id, *key)
            .where(part, *where)
            .order_by(*self.order.columns)
            .limit(_LIMIT)
            for part in self._parts
        )
        found = union_all(*(select(part.subquery()) for part in parts)).subquery()
        order = self.order.by(*(found.c[column.name] for column in key))
        return model_columns.id.in_(select(found.c.id).order_by(*order).limit(_LIMIT))

    @property
    def _parts(self) -> list[ColumnElement[bool]]:
        """What comes behind it, in the order of the listing; it need not be recorded any more."""
        column = self.order.column
        later = tuple_(*_KEY) > tuple_(*_KEY_AFTER)
        if self.start is _Start.AFTER_NULL:
            return [and_(column.is_(None), later)]
        value = bindparam("after_value", type_=column.type)
        further = column < value if self.order.is_descending else column > value
        return [and_(column == value, later), further, column.is_(None)]


def _checked(name: str, value: object) -> Any:
    """A value to compare a column with: of its type, and one that a driver takes."""
    if value is None and not model_columns[name].nullable:
        raise InvalidModelError(name, None, "is not known: give a model that was read")
    if value is None:
        return None
    if isinstance(model_columns[name].type, UnixTimestamp):
        return validation.timestamp(name, value)
    if isinstance(model_columns[name].type, Integer | BigInteger):
        return validation.non_negative_int(name, value)
    return validation.lookup_text(name, value)

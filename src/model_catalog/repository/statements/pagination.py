"""The order of listings, and pages of it by keyset pagination (the seek method)."""

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
from model_catalog.domain.fields import KEY_FIELDS, TIMESTAMP_FIELDS, ModelRow
from model_catalog.domain.page_token import Position
from model_catalog.errors import InvalidModelError
from model_catalog.mapping.column_types import UnixTimestamp
from model_catalog.mapping.tables import Model
from model_catalog.repository.statements.filters import EFFECTIVE_COLUMNS, model_columns


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
        return self not in _NAME_SORTS


_NAME_SORTS: Final = {
    Sort.PROVIDER,
    Sort.REFERENCE,
    Sort.ARCHITECTURE,
    Sort.QUANTIZATION,
    Sort.FORMAT,
}
_KEY: Final = tuple(model_columns[name] for name in KEY_FIELDS)
_KEY_AFTER: Final = tuple(bindparam(f"after_{c.name}", type_=c.type) for c in _KEY)
_LIMIT: Final = bindparam("limit", type_=BigInteger)


class _Start(Enum):
    """Where a page starts: at the first model, or after a model with or without a sorted value."""

    FIRST = auto()
    AFTER_VALUE = auto()
    AFTER_NULL = auto()


@dataclass(frozen=True, slots=True)
class SortOrder:
    """The order of a listing: by one field, then by key; NULL is last in both directions."""

    sort: Sort
    is_descending: bool

    @classmethod
    def validated(cls, sort: object, descending: object) -> SortOrder:
        """Return an order; `descending=None` is the default direction. Raises InvalidModelError."""
        if not isinstance(sort, Sort):
            raise InvalidModelError("sort", sort, f"is not a Sort: use one of {', '.join(Sort)}")
        if descending is None:
            return cls(sort, sort.descending_by_default)
        if not isinstance(descending, bool):
            raise InvalidModelError("descending", descending, "is neither True, False nor None")
        return cls(sort, descending)

    @property
    def column(self) -> ColumnElement[Any]:
        """The column of the sorted field."""
        return EFFECTIVE_COLUMNS[self.sort.value]

    @property
    def columns(self) -> list[ColumnElement[Any]]:
        """The ORDER BY of models: a total order, the same on every database."""
        return self.order_by(self.column, *_KEY)

    def order_by(
        self, column: ColumnElement[Any], *key: ColumnElement[Any]
    ) -> list[ColumnElement[Any]]:
        """Return the ORDER BY of a subquery with its own columns for the field and the key."""
        sorted_column = column.desc() if self.is_descending else column.asc()
        return [sorted_column.nulls_last(), *key]

    @property
    def is_by_time(self) -> bool:
        """Whether the sorted values are points in time."""
        return self.sort.value in TIMESTAMP_FIELDS

    def position_of(self, model: object) -> Position:
        """
        Return the position of a model in the order.

        Raises InvalidModelError for anything but a Model or a ModelRow, and for invalid fields.
        """
        if not isinstance(model, Model | ModelRow):
            problem = f"is a {type(model).__name__}: pass a Model or a ModelRow"
            raise InvalidModelError("after", model, problem)
        key = (getattr(model, name) for name in KEY_FIELDS)
        return self.validated_position(Position(getattr(model, self.sort.value), *key))

    def validated_position(self, position: Position) -> Position:
        """Validate a position, and return it as stored. Raises InvalidModelError."""
        key = (validation.lookup_text(name, getattr(position, name)) for name in KEY_FIELDS)
        return Position(_validate_sorted_value(self.sort.value, position.value), *key)

    @property
    def is_indexed(self) -> bool:
        """Whether an index has this order."""
        return self.sort is Sort.DOWNLOADED_AT and self.is_descending


@dataclass(frozen=True, slots=True)
class Page:
    """
    The shape of a page, which decides its SQL: its order, where it starts, whether it has a limit.

    The model it starts after and the limit are parameters, so that pages of the same shape share a
    prepared statement.
    """

    order: SortOrder
    start: _Start
    is_limited: bool

    @classmethod
    def validated(
        cls, order: SortOrder, after: Position | None, limit: int | None
    ) -> tuple[Page, dict[str, Any]]:
        """Return a page and its parameters. Raises InvalidModelError for an invalid limit."""
        start = _Start.FIRST
        values: dict[str, Any] = {}
        if after is not None:
            start = _Start.AFTER_NULL if after.value is None else _Start.AFTER_VALUE
            if after.value is not None:
                values["after_value"] = after.value
            for name in KEY_FIELDS:
                values[f"after_{name}"] = getattr(after, name)
        if limit is not None:
            values["limit"] = validation.limit("limit", limit)
        return cls(order, start, limit is not None), values

    def apply_to(
        self, models: Select[Any], where: Sequence[ColumnElement[bool]] = ()
    ) -> Select[Any]:
        """Narrow a SELECT of models to the page, and to the models that meet all conditions."""
        cursor = [] if self.start is _Start.FIRST else [self._after_cursor(where)]
        ordered = models.where(*where, *cursor).order_by(*self.order.columns)
        return ordered.limit(_LIMIT) if self.is_limited else ordered

    def _after_cursor(self, where: Sequence[ColumnElement[bool]]) -> ColumnElement[bool]:
        if not (self.is_limited and self.order.is_indexed):
            return or_(*self._ranges)
        # With OR a database reads all rows before the page. A query for each range starts at its
        # place in the index, and ends at the limit.
        key = (self.order.column, *_KEY)
        queries = (
            select(model_columns.id, *key)
            .where(range_, *where)
            .order_by(*self.order.columns)
            .limit(_LIMIT)
            for range_ in self._ranges
        )
        found = union_all(*(select(query.subquery()) for query in queries)).subquery()
        order = self.order.order_by(*(found.c[column.name] for column in key))
        return model_columns.id.in_(select(found.c.id).order_by(*order).limit(_LIMIT))

    @property
    def _ranges(self) -> list[ColumnElement[bool]]:
        """The conditions of the models after the cursor, in order; the cursor's row may be gone."""
        column = self.order.column
        has_later_key = tuple_(*_KEY) > tuple_(*_KEY_AFTER)
        if self.start is _Start.AFTER_NULL:
            return [and_(column.is_(None), has_later_key)]
        value = bindparam("after_value", type_=column.type)
        is_after = column < value if self.order.is_descending else column > value
        return [and_(column == value, has_later_key), is_after, column.is_(None)]


def _validate_sorted_value(name: str, value: object) -> Any:
    """
    Validate the sorted field of the model before a page, and return it as stored.

    None is valid only if the column may be NULL. Raises InvalidModelError.
    """
    if value is None and not model_columns[name].nullable:
        raise InvalidModelError(name, None, "is not known: pass a model that was read")
    if value is None:
        return None
    if isinstance(model_columns[name].type, UnixTimestamp):
        return validation.timestamp(name, value)
    if isinstance(model_columns[name].type, Integer | BigInteger):
        return validation.non_negative_int(name, value)
    return validation.lookup_text(name, value)

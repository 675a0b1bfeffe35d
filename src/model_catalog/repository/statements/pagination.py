"""The order of listings, and pages of it by keyset pagination (the seek method)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    UnaryExpression,
    and_,
    bindparam,
    or_,
    true,
)
from sqlalchemy.sql.operators import custom_op

from model_catalog.domain import validation
from model_catalog.domain.fields import KEY_FIELDS, TIMESTAMP_FIELDS, ModelRow, Sort
from model_catalog.domain.page_token import Position
from model_catalog.errors import InvalidModelError
from model_catalog.mapping.column_types import UnixTimestamp
from model_catalog.mapping.tables import Model
from model_catalog.repository.statements.filters import EFFECTIVE_COLUMNS, hint, model_columns
from model_catalog.repository.statements.index_ranges import (
    KEY,
    LATER_KEY,
    LIMIT,
    OWN,
    Range,
    count_ranges,
    name_ranges,
    null_range,
    provider_range,
    provider_ranges,
    select_ids,
    value_ranges,
)

_INDEXED_SORTS: Final = {
    Sort.DOWNLOADED_AT,
    Sort.LAST_USED_AT,
    Sort.USE_COUNT,
    Sort.SIZE_BYTES,
    Sort.PROVIDER,
    Sort.REFERENCE,
}


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
        return self.order_by(self.column)

    def order_by(self, column: ColumnElement[Any]) -> list[ColumnElement[Any]]:
        """Return the ORDER BY with an expression for the column of the sorted field."""
        sorted_column = column.desc() if self.is_descending else column.asc()
        return [sorted_column.nulls_last(), *KEY]

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
    def is_default(self) -> bool:
        """Whether it is the default order, newest first."""
        return self.sort is Sort.DOWNLOADED_AT and self.is_descending

    @property
    def is_indexed(self) -> bool:
        """Whether indexes have this order, or its parts."""
        return self.sort in _INDEXED_SORTS


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
    is_after_zero: bool = False
    """Whether the page starts after a model with the number 0."""

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
        is_after_zero = values.get("after_value") == 0
        return cls(order, start, limit is not None, is_after_zero), values

    @property
    def is_continued(self) -> bool:
        """Whether the page starts after a model."""
        return self.start is not _Start.FIRST

    @property
    def is_walkable(self) -> bool:
        """Whether the page can be read from its place in an index, up to its limit."""
        return self.is_limited and self.order.is_indexed

    @property
    def is_by_name(self) -> bool:
        """Whether the order is by reference, for which SQLite has no index."""
        return self.order.sort is Sort.REFERENCE

    def apply_to(
        self, models: Select[Any], where: Sequence[ColumnElement[bool]] = ()
    ) -> Select[Any]:
        """
        Narrow a SELECT of models to the page, and to the models that meet all conditions.

        The database reads and sorts all these models, if it has no index of the order.
        """
        return self._narrowed(models, where, self.order.columns)

    def sort(self, models: Select[Any], where: Sequence[ColumnElement[bool]]) -> Select[Any]:
        """Narrow a SELECT as `apply_to` does; SQLite does not read the index of the order."""
        # Few models meet the conditions: SQLite would read all models, one after the other.
        column: ColumnElement[Any] = UnaryExpression(self.order.column, operator=custom_op("+"))
        return self._narrowed(models, where, self.order.order_by(column))

    def _narrowed(
        self,
        models: Select[Any],
        where: Sequence[ColumnElement[bool]],
        order: Sequence[ColumnElement[Any]],
    ) -> Select[Any]:
        cursor = [] if self.start is _Start.FIRST else [or_(*self._later)]
        ordered = models.where(*where, *cursor).order_by(*order)
        return ordered.limit(LIMIT) if self.is_limited else ordered

    def walk(
        self, models: Select[Any], dialect: str, where: Sequence[ColumnElement[bool]] = ()
    ) -> Select[Any]:
        """Narrow a SELECT as `apply_to` does; the database reads the page from its index."""
        ranges = self.ranges()
        if len(ranges) > 1:
            return self.of_ids(models, select_ids(ranges, dialect, where))
        own = hint("likely", OWN) if dialect == "sqlite" else OWN
        only = models.where(own, *ranges[0].conditions, *where)
        return only.order_by(*ranges[0].order).limit(LIMIT)

    def of_ids(
        self, models: Select[Any], ids: Select[Any], where: Sequence[ColumnElement[bool]] = ()
    ) -> Select[Any]:
        """Narrow a SELECT of models to these ids, in the order of the page."""
        return models.where(model_columns.id.in_(ids), *where).order_by(*self.order.columns)

    def ranges(self, provider: ColumnElement[str] | None = None) -> list[Range]:
        """
        Return the ranges of the indexes that have the page, one after the other.

        Those in the order of the key have only the models of a provider, if it is given.
        """
        if provider is None:
            return self._ranges()
        if self.order.sort is not Sort.PROVIDER:
            return [each.of_provider(provider) for each in self._ranges()]
        descending, is_after = self.order.is_descending, self.is_continued
        return [provider_range(provider, descending=descending, is_after=is_after)]

    def _ranges(self) -> list[Range]:
        sort, descending = self.order.sort, self.order.is_descending
        column = self.order.column
        is_first = self.start is _Start.FIRST
        after = None if is_first else bindparam("after_value", type_=column.type)
        if sort is Sort.PROVIDER:
            return provider_ranges(descending=descending, is_after=not is_first)
        if sort is Sort.REFERENCE:
            return name_ranges(descending=descending, is_after=not is_first)
        if sort is Sort.USE_COUNT:
            return count_ranges(
                column, descending=descending, after=after, after_zero=self.is_after_zero
            )
        if sort is Sort.DOWNLOADED_AT and descending and is_first:
            # The index has those without a time where the order has them.
            return [Range(true(), (column.desc().nulls_last(), *KEY))]
        if self.start is _Start.AFTER_NULL:
            return [null_range(column, is_after=True)]
        values = value_ranges(column, descending=descending, after=after)
        return [*values, null_range(column, is_after=False)]

    @property
    def _later(self) -> list[ColumnElement[bool]]:
        """The conditions of the models after the cursor, in order; the cursor's row may be gone."""
        column = self.order.column
        if self.start is _Start.AFTER_NULL:
            return [and_(column.is_(None), LATER_KEY)]
        value = bindparam("after_value", type_=column.type)
        is_after = column < value if self.order.is_descending else column > value
        return [and_(column == value, LATER_KEY), is_after, column.is_(None)]


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

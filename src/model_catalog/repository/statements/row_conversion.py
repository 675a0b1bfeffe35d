"""The rows in which models are read, and what is made of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from sqlalchemy import ColumnElement, ScalarSelect, Select, func, select

from model_catalog.domain.fields import COLUMN_DEFAULTS, HEADER_FIELDS, ModelRow
from model_catalog.execution.prepared_statement import Row, raw_column
from model_catalog.mapping.column_types import (
    PathText,
    StateText,
    UnixTimestamp,
    decode_path,
    decode_state,
    decode_timestamp,
)
from model_catalog.mapping.tables import Model, fold_case, new_detached_model
from model_catalog.repository.statements.filters import (
    EFFECTIVE_COLUMNS,
    MODELS,
    TAGS,
    model_columns,
)

# A control character, which no tag and no alias has in it.
_BETWEEN: Final = "\x1f"


_TYPES: Final = [type(model_columns[name].type) for name in EFFECTIVE_COLUMNS]
_MOMENTS: Final = tuple(at for at, kind in enumerate(_TYPES) if kind is UnixTimestamp)
_PATHS: Final = tuple(at for at, kind in enumerate(_TYPES) if kind is PathText)
_STATE: Final = _TYPES.index(StateText)
_NAMES: Final = tuple(EFFECTIVE_COLUMNS)
_INTERNAL_COLUMNS: Final = [
    column.key for column in model_columns if column.key not in EFFECTIVE_COLUMNS
]
_make_row: Final = tuple.__new__


def select_models(dialect: str) -> Select[Any]:
    """Everything that is known of models as it is stored, with their tags."""
    fields = (raw_column(expression).label(name) for name, expression in EFFECTIVE_COLUMNS.items())
    return select(*fields, raw_column(aggregate_children(dialect, TAGS.c.tag)).label("_tags"))


def aggregate_children(
    dialect: str, text: ColumnElement[str], *which: ColumnElement[bool]
) -> ScalarSelect[str]:
    """The texts of a model's children in one, in any order; NULL where there are none."""
    children = select(string_agg(dialect, text)).where(
        text.table.c.model_id == model_columns.id, *which
    )
    return children.correlate(MODELS).scalar_subquery()


def string_agg(dialect: str, text: ColumnElement[str]) -> ColumnElement[str]:
    """Texts of several rows in one, as `split` takes them apart."""
    join = func.group_concat if dialect == "sqlite" else func.string_agg
    return join(text, _BETWEEN)


def split_aggregate(joined: str | None) -> tuple[str, ...]:
    """The texts that were joined in one, in the order of their folded forms."""
    if joined is None:
        return ()
    return tuple(sorted(joined.split(_BETWEEN), key=lambda text: (fold_case(text), text)))


def to_model(row: Row) -> Model:
    """The model in a row of what is `known`."""
    (values,) = _read((row,))
    return new_detached_model(dict(zip(_NAMES, values, strict=False)), values[-1])


def model_from_insert(model_id: int, row: Mapping[str, Any]) -> Model:
    """The model in a row that was written this moment, as it would be read."""
    values = {**COLUMN_DEFAULTS, **row, "id": model_id}
    for name in _INTERNAL_COLUMNS:
        del values[name]
    for name in HEADER_FIELDS:
        if values[name] is None:
            values[name] = values[f"claimed_{name}"]
    return new_detached_model(values, ())


def to_models(rows: Iterable[Row]) -> list[Model]:
    """The models in all of them."""
    return [
        new_detached_model(dict(zip(_NAMES, values, strict=False)), values[-1])
        for values in _read(rows)
    ]


def to_rows(rows: Iterable[Row]) -> list[ModelRow]:
    """What is `known` of models, without the models."""
    # As `_make` does it, but for a look at each row's length.
    return [_make_row(ModelRow, values) for values in _read(rows)]


def _read(rows: Iterable[Row]) -> Iterator[list[Any]]:
    """The values of each row, of what was stored; nearly all of them are what they were."""
    # It is the same list each time: to make one a row takes as long as to read it.
    values: list[Any] = []
    for row in rows:
        values[:] = row
        for at in _MOMENTS:
            if (moment := values[at]) is not None:
                values[at] = decode_timestamp(moment)
        for at in _PATHS:
            if (path := values[at]) is not None:
                values[at] = decode_path(path)
        values[_STATE] = decode_state(values[_STATE])
        tags = values[-1]
        values[-1] = () if tags is None else split_aggregate(tags)
        yield values

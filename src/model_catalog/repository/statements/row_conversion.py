"""The rows in which models are read, and what is made of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from sqlalchemy import ColumnElement, ScalarSelect, Select, func, select

from model_catalog.domain.fields import CLAIMABLE
from model_catalog.domain.file_record import FileState
from model_catalog.domain.model_row import ModelRow
from model_catalog.execution.prepared_statement import Row, stored
from model_catalog.mapping.column_types import (
    PathText,
    StateText,
    UnixSeconds,
    read_moment,
    read_path,
    read_state,
)
from model_catalog.mapping.tables import Model, detached, folded
from model_catalog.repository.statements.filters import KNOWN, MODELS, TAGS, C

# A control character, which no tag and no alias has in it.
_BETWEEN: Final = "\x1f"


_TYPES: Final = [type(C[name].type) for name in KNOWN]
_MOMENTS: Final = tuple(at for at, kind in enumerate(_TYPES) if kind is UnixSeconds)
_PATHS: Final = tuple(at for at, kind in enumerate(_TYPES) if kind is PathText)
_STATE: Final = _TYPES.index(StateText)
_NAMES: Final = tuple(KNOWN)
_NEW: Final = {
    **dict.fromkeys(KNOWN),
    "version": "",
    "download_count": 1,
    "use_count": 0,
    "state": FileState.UNCHECKED,
}
"""What is known of a model of which nothing was said, but for its key and its id."""
_UNSEEN: Final = [column.key for column in C if column.key not in KNOWN]
_make_row: Final = tuple.__new__


def known(dialect: str) -> Select[Any]:
    """Everything that is known of models as it is stored, with their tags."""
    fields = (stored(expression).label(name) for name, expression in KNOWN.items())
    return select(*fields, stored(joined(dialect, TAGS.c.tag)).label("_tags"))


def joined(
    dialect: str, text: ColumnElement[str], *which: ColumnElement[bool]
) -> ScalarSelect[str]:
    """The texts of a model's children in one, in any order; NULL where there are none."""
    children = select(join_of(dialect, text)).where(text.table.c.model_id == C.id, *which)
    return children.correlate(MODELS).scalar_subquery()


def join_of(dialect: str, text: ColumnElement[str]) -> ColumnElement[str]:
    """Texts of several rows in one, as `split` takes them apart."""
    join = func.group_concat if dialect == "sqlite" else func.string_agg
    return join(text, _BETWEEN)


def split(joined: str | None) -> tuple[str, ...]:
    """The texts that were joined in one, in the order of their folded forms."""
    if joined is None:
        return ()
    return tuple(sorted(joined.split(_BETWEEN), key=lambda text: (folded(text), text)))


def model_of(row: Row) -> Model:
    """The model in a row of what is `known`."""
    (values,) = _read((row,))
    return detached(dict(zip(_NAMES, values, strict=False)), values[-1])


def new_model(model_id: int, row: Mapping[str, Any]) -> Model:
    """The model in a row that was written this moment, as it would be read."""
    values = {**_NEW, **row, "id": model_id}
    for name in _UNSEEN:
        del values[name]
    for name in CLAIMABLE:
        if values[name] is None:
            values[name] = values[f"claimed_{name}"]
    return detached(values, ())


def models_of(rows: Iterable[Row]) -> list[Model]:
    """The models in all of them."""
    return [detached(dict(zip(_NAMES, values, strict=False)), values[-1]) for values in _read(rows)]


def rows_of(rows: Iterable[Row]) -> list[ModelRow]:
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
                values[at] = read_moment(moment)
        for at in _PATHS:
            if (path := values[at]) is not None:
                values[at] = read_path(path)
        values[_STATE] = read_state(values[_STATE])
        tags = values[-1]
        values[-1] = () if tags is None else split(tags)
        yield values

"""Many registrations at once: what is the same in all of them is worked out once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import groupby, islice, repeat
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeAlias

from sqlalchemy.orm.attributes import instance_state

from model_catalog.domain import fields
from model_catalog.domain.fields import KEY_FIELDS
from model_catalog.errors import InvalidModelError
from model_catalog.mapping.tables import Model, fold_case
from model_catalog.repository.operations.registration import (
    SEARCHED,
    StatementKey,
    UpsertRow,
    overwritten_columns,
    statement_key,
    utc_now,
)

ModelInput: TypeAlias = Model | Mapping[str, object]
"""A model, or the keywords of one."""

RowTuple: TypeAlias = tuple[Any, ...]
"""The values of a key, the shape, and the other values in the order of the shape's names."""

_KEY_COUNT: Final = len(KEY_FIELDS)
_key_of: Final = itemgetter(slice(_KEY_COUNT))
_shape_of: Final = itemgetter(_KEY_COUNT)

# Enough that what is done once for all of them is done seldom, and few enough to lie in a cache.
_CHUNK_SIZE: Final = 250


class InsertBatch(NamedTuple):
    """Registrations of one statement: the values of each column, in the order of their keys."""

    shape: StatementKey
    columns: dict[str, Sequence[Any]]

    @property
    def row_count(self) -> int:
        """How many there are."""
        return len(self.columns[KEY_FIELDS[0]])


async def collect_rows(models: Iterable[ModelInput]) -> list[RowTuple]:
    """
    What registering many writes, in the order in which they came.

    Other tasks have their turns in between. Raises InvalidModelError for the first that may not be
    stored.
    """
    models = iter(models)
    rows: list[RowTuple] = []
    while some := list(islice(models, _CHUNK_SIZE)):
        rows += _convert_by_column(some) or map(_row_of, map(_registration_of, some))
        if len(some) == _CHUNK_SIZE:
            await asyncio.sleep(0)
    return rows


def build_batches(rows: list[RowTuple]) -> list[InsertBatch]:
    """
    Each key once, with the fields of it that were set last.

    By their keys, so that two processes lock rows in the same order; what is next to one another
    and of one shape goes together.
    """
    if not _are_different(rows):
        rows = _merge_duplicates(rows)
    # No two are equal in their keys: what is behind those is compared with nothing.
    rows = sorted(rows)
    return [_batch(shape, same) for shape, same in groupby(rows, _shape_of)]


def _batch(shape: StatementKey, rows: Iterable[RowTuple]) -> InsertBatch:
    values = list(zip(*rows, strict=True))
    del values[_KEY_COUNT]
    return InsertBatch(shape, dict(zip(_names(shape), values, strict=True)))


@lru_cache(maxsize=256)
def _names(shape: StatementKey) -> tuple[str, ...]:
    """The columns of a row, without the shape."""
    return (*KEY_FIELDS, *(name for name in shape[0] if name not in KEY_FIELDS))


def _are_different(rows: Sequence[RowTuple]) -> bool:
    return len(set(map(_key_of, rows))) == len(rows)


def _registration_of(model: ModelInput) -> UpsertRow:
    if isinstance(model, Mapping):
        return UpsertRow.of_values(model)
    return UpsertRow.of(model)


def _row_of(registration: UpsertRow) -> RowTuple:
    shape = registration.shape
    values = [registration.row[name] for name in _names(shape)]
    return (*values[:_KEY_COUNT], shape, *values[_KEY_COUNT:])


def _merge_duplicates(rows: Iterable[RowTuple]) -> list[RowTuple]:
    """Each key once."""
    found: dict[RowTuple, UpsertRow] = {}
    for row in rows:
        shape = _shape_of(row)
        values = (*row[:_KEY_COUNT], *row[_KEY_COUNT + 1 :])
        registration = UpsertRow(dict(zip(_names(shape), values, strict=True)), frozenset(shape[1]))
        known = found.get(_key_of(row))
        found[_key_of(row)] = known.then(registration) if known else registration
    return [_row_of(registration) for registration in found.values()]


def _convert_by_column(models: Sequence[ModelInput]) -> list[RowTuple] | None:
    """
    The rows of models, worked out column by column for those that have the same fields.

    Column by column a value takes a third of the time. None where it has to be one by one: where
    one was read from a catalog, where a key comes twice in several shapes, and where the first is
    to be found that may not be stored.
    """
    alike: dict[tuple[object, ...], list[Mapping[str, Any]]] = {}
    for model in models:
        if type(model) is Model and instance_state(model).key is None:
            values: Mapping[str, Any] = vars(model)
        elif type(model) is dict and model.keys() <= fields.INPUT_FIELDS:
            values = model
        else:
            return None
        alike.setdefault(tuple(values), []).append(values)
    try:
        rows = [row for names, group in alike.items() for row in _rows(names, group)]
    except (InvalidModelError, KeyError):
        return None
    # Those of one shape are in the order in which they came.
    return rows if len(alike) == 1 or _are_different(rows) else None


def _rows(names: Iterable[object], group: Sequence[Mapping[str, Any]]) -> Iterable[RowTuple]:
    # A model may also have been set what is the catalog's to set.
    columns = {
        name: fields.validate_column(name, [values[name] for values in group])
        for name in fields.INPUT_FIELDS
        # What is missing is not among the names, and is asked for nevertheless.
        if name in names or name in fields.REQUIRED_FIELDS
    }
    columns.setdefault("version", [""] * len(group))
    moments = columns.get("downloaded_at", [None] * len(group))
    this_second = utc_now()
    columns["downloaded_at"] = [this_second if each is None else each for each in moments]
    columns["description_folded"] = [None] * len(group)
    for name in SEARCHED:
        if name in columns:
            columns[f"{name}_folded"] = [text and fold_case(text) for text in columns[name]]
    there = tuple(columns)
    shape = statement_key(there, overwritten_columns(there))
    values = [columns[name] for name in _names(shape)]
    return zip(*values[:_KEY_COUNT], repeat(shape), *values[_KEY_COUNT:], strict=False)

"""Register many models in one transaction: validated column by column, inserted in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import groupby, islice, repeat
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeAlias

from sqlalchemy import Connection
from sqlalchemy.orm.attributes import instance_state

from model_catalog.connection.database_info import host_of
from model_catalog.domain import fields, key_validation
from model_catalog.domain.fields import KEY_FIELDS
from model_catalog.domain.search_text import SEARCHED_FIELDS, fold_case
from model_catalog.domain.validation import utc_now
from model_catalog.errors import InvalidModelError
from model_catalog.execution.executor import Operation, write_alone
from model_catalog.execution.observation.changed_rows import ChangedRows, changes
from model_catalog.mapping.search_index.indexing import MAX_WAITING, index_if_many_wait
from model_catalog.mapping.tables import Model
from model_catalog.repository.operations.registration import (
    StatementKey,
    UpsertRow,
    overwritten_columns,
    statement_key,
)
from model_catalog.repository.statements.models import insert_if_absent, upsert_model
from model_catalog.repository.statements.totals.model_totals import count_new_models

ModelInput: TypeAlias = Model | Mapping[str, object]
"""A model, or the keywords of one."""

RowTuple: TypeAlias = tuple[Any, ...]
"""A row to register: the values of the key, the statement key, then the values of the other columns
in the order of `_column_names`."""

_KEY_LENGTH: Final = len(KEY_FIELDS)
_key_of: Final = itemgetter(slice(_KEY_LENGTH))
_statement_key_of: Final = itemgetter(_KEY_LENGTH)

# Large enough to amortise the work per chunk, small enough to stay in the CPU cache.
_CHUNK_SIZE: Final = 250

# More than a registration of 10,000 models adds, so that a program that only adds does not leave
# ever more of them uncounted.
_MAX_COUNTED: Final = 16_384


class InsertBatch(NamedTuple):
    """Rows that one statement writes: the values of each column, sorted by key."""

    statement_key: StatementKey
    columns: dict[str, Sequence[Any]]

    @property
    def row_count(self) -> int:
        """The number of rows."""
        return len(self.columns[KEY_FIELDS[0]])


class BulkRows:
    """The rows of a bulk registration, and the batches they are written in."""

    def __init__(self, rows: list[RowTuple]) -> None:
        self._rows: Final = rows
        self._batches: list[InsertBatch] | None = None

    @property
    def keys(self) -> list[RowTuple]:
        """The keys of the models."""
        return list(map(_key_of, self._rows))

    @property
    def batches(self) -> list[InsertBatch]:
        """The batches; they are built on first use, and only once if a transaction is retried."""
        if self._batches is None:
            self._batches = build_batches(self._rows)
        return self._batches


def register_rows(rows: list[RowTuple]) -> Operation[BulkRows, int]:
    """Return the operation that registers rows and returns the number of different models."""
    return write_alone(write_batches, BulkRows(rows))


def _rows_of_bulk(_connection: Connection, rows: BulkRows) -> ChangedRows:
    return ChangedRows(keys=rows.keys)


@changes(_rows_of_bulk)
def write_batches(connection: Connection, rows: BulkRows) -> int:
    """Insert or update all rows; return the number of different models."""
    for batch in rows.batches:
        columns = {**batch.columns, "host": [host_of(connection)] * batch.row_count}
        if connection.dialect.name == "sqlite":
            _write_on_sqlite(connection, batch, columns)
        else:
            upsert = upsert_model(connection.dialect.name, *batch.statement_key, returning=False)
            upsert.execute_many(connection, columns)
    count = sum(batch.row_count for batch in rows.batches)
    if connection.dialect.name == "sqlite":
        count_new_models(connection, at_most=_MAX_COUNTED)
        index_if_many_wait(connection, max(MAX_WAITING, 2 * count))
    return count


def _write_on_sqlite(
    connection: Connection, batch: InsertBatch, columns: dict[str, Sequence[Any]]
) -> None:
    """Insert the rows whose key is new, then update the others."""
    # The triggers for updates of models make an upsert of a new row twice as slow.
    max_id = connection.exec_driver_sql("SELECT max(id) FROM models").scalar()
    inserted = insert_if_absent("sqlite", batch.statement_key[0]).execute_many(connection, columns)
    if inserted != batch.row_count and max_id is not None:
        upsert = upsert_model("sqlite", *batch.statement_key, returning=False, max_id=True)
        upsert.execute_many(connection, {**columns, "max_id": [max_id] * batch.row_count})


async def collect_rows(models: Iterable[ModelInput]) -> list[RowTuple]:
    """
    Validate models, and return their rows in the same order.

    Other tasks run between two chunks. Raises InvalidModelError for the first invalid model.
    """
    models = iter(models)
    rows: list[RowTuple] = []
    while chunk := list(islice(models, _CHUNK_SIZE)):
        rows += _convert_by_column(chunk) or map(_to_tuple, map(_to_upsert_row, chunk))
        if len(chunk) == _CHUNK_SIZE:
            await asyncio.sleep(0)
    return rows


def build_batches(rows: list[RowTuple]) -> list[InsertBatch]:
    """
    Merge rows of the same key, and group the rows of each statement.

    Sorted by key: all writers lock rows in this order, which prevents deadlocks. Adjacent rows with
    the same statement key form a batch.
    """
    if not _are_keys_unique(rows):
        rows = _merge_duplicates(rows)
    # Keys are unique, so that the sort compares no other value.
    rows = sorted(rows)
    return [_to_batch(key, group) for key, group in groupby(rows, _statement_key_of)]


def _to_batch(key: StatementKey, rows: Iterable[RowTuple]) -> InsertBatch:
    values = list(zip(*rows, strict=True))
    del values[_KEY_LENGTH]
    return InsertBatch(key, dict(zip(_column_names(key), values, strict=True)))


@lru_cache(maxsize=256)
def _column_names(key: StatementKey) -> tuple[str, ...]:
    """Return the columns of a row, those of the key first."""
    return (*KEY_FIELDS, *(name for name in key[0] if name not in KEY_FIELDS))


def _are_keys_unique(rows: Sequence[RowTuple]) -> bool:
    return len(set(map(_key_of, rows))) == len(rows)


def _to_upsert_row(model: ModelInput) -> UpsertRow:
    if isinstance(model, Mapping):
        return UpsertRow.from_dict(model)
    return UpsertRow.from_model(model)


def _to_tuple(row: UpsertRow) -> RowTuple:
    key = row.statement_key
    values = [row.row[name] for name in _column_names(key)]
    return (*values[:_KEY_LENGTH], key, *values[_KEY_LENGTH:])


def _merge_duplicates(rows: Iterable[RowTuple]) -> list[RowTuple]:
    """Return one row for each key, with the fields that were set last."""
    merged: dict[RowTuple, UpsertRow] = {}
    for row in rows:
        key = _statement_key_of(row)
        values = (*row[:_KEY_LENGTH], *row[_KEY_LENGTH + 1 :])
        later = UpsertRow(dict(zip(_column_names(key), values, strict=True)), frozenset(key[1]))
        earlier = merged.get(_key_of(row))
        merged[_key_of(row)] = earlier.merged_with(later) if earlier else later
    return [_to_tuple(row) for row in merged.values()]


def _convert_by_column(models: Sequence[ModelInput]) -> list[RowTuple] | None:
    """
    Validate models column by column, for all that set the same fields at once.

    That takes a third of the time per value. Returns None if they must be converted one by one:
    if a model was read from a catalog, if the same key occurs with different fields, or if a model
    is invalid, to find the first one.
    """
    by_fields: dict[tuple[object, ...], list[Mapping[str, Any]]] = {}
    for model in models:
        if type(model) is Model and instance_state(model).key is None:
            values: Mapping[str, Any] = vars(model)
        elif type(model) is dict and model.keys() <= fields.INPUT_FIELDS:
            values = model
        else:
            return None
        by_fields.setdefault(tuple(values), []).append(values)
    try:
        rows = [row for names, group in by_fields.items() for row in _convert_group(names, group)]
    except (InvalidModelError, KeyError):
        return None
    # Rows of one group are in the order of the models; rows of more groups are not.
    return rows if len(by_fields) == 1 or _are_keys_unique(rows) else None


def _convert_group(
    names: Iterable[object], group: Sequence[Mapping[str, Any]]
) -> Iterable[RowTuple]:
    # A model may also have attributes that only the catalog sets: they are left out.
    columns = {}
    for name in fields.INPUT_FIELDS:
        # The names are those of attributes, or those of keywords.
        attribute = fields.ATTRIBUTES[name]
        given = attribute if attribute in names else name
        # A required field that is missing raises KeyError here.
        if given in names or name in fields.REQUIRED_FIELDS:
            columns[name] = fields.validate_column(name, [values[given] for values in group])
    if "version" in columns:
        key_columns = (columns[name] for name in KEY_FIELDS)
        for provider, reference, version in zip(*key_columns, strict=True):
            key_validation.key(provider, reference, version)
    columns.setdefault("version", [""] * len(group))
    downloaded_at = columns.get("downloaded_at", [None] * len(group))
    now = utc_now()
    columns["downloaded_at"] = [now if each is None else each for each in downloaded_at]
    columns["description_folded"] = [None] * len(group)
    for name in SEARCHED_FIELDS:
        if name in columns:
            columns[f"{name}_folded"] = [text and fold_case(text) for text in columns[name]]
    column_names = tuple(columns)
    key = statement_key(column_names, overwritten_columns(column_names))
    values = [columns[name] for name in _column_names(key)]
    return zip(*values[:_KEY_LENGTH], repeat(key), *values[_KEY_LENGTH:], strict=False)

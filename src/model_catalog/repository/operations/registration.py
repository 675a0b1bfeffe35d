"""Register one model, or a batch of them on PostgreSQL: validated rows, written by an upsert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from itertools import groupby
from typing import Any, Final, NamedTuple, TypeAlias

from sqlalchemy import Connection
from sqlalchemy.orm.attributes import instance_state

from model_catalog.connection.database_info import host_of
from model_catalog.domain import fields
from model_catalog.domain.fields import KEY_FIELDS
from model_catalog.domain.search_text import search_columns
from model_catalog.domain.validation import utc_now
from model_catalog.errors import InvalidModelError
from model_catalog.execution.executor import Operation, write
from model_catalog.execution.observation.changed_rows import ChangedRows, changes
from model_catalog.execution.prepared_statement import Row, sqlite_driver
from model_catalog.mapping.search_index.indexing import index_if_many_wait
from model_catalog.mapping.tables import Model
from model_catalog.repository.statements.batches import array_parameters, fetch_tags
from model_catalog.repository.statements.models import (
    ID_INDEX,
    KEY_INDEXES,
    insert_if_absent,
    select_tags,
    upsert_arrays,
    upsert_model,
    upsert_with_tags,
)
from model_catalog.repository.statements.row_conversion import (
    model_from_insert,
    to_model,
    to_model_of_server,
    to_models_of_server,
)
from model_catalog.repository.statements.totals.model_totals import count_new_models

# So that one registration in this many looks whether many models wait to be indexed or counted.
_STEP: Final = 256

StatementKey: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]
"""The columns of a row, and those of them that overwrite an existing row; both sorted."""


class UpsertRow(NamedTuple):
    """A validated row to register: `row` for a new model; for others, only its `overwritten`."""

    row: dict[str, Any]
    overwritten: frozenset[str]
    """The columns that overwrite those of an existing row."""

    @classmethod
    def from_model(cls, model: Model, found: Mapping[str, Any] | None = None) -> UpsertRow:
        """
        Return the row of a model: the fields that were set, and `found`, the facts of its files.

        For a model that was read from the catalog only the fields set since then overwrite the
        row.
        """
        if not isinstance(model, Model):
            raise InvalidModelError("model", model, f"is a {type(model).__name__}: pass a Model")
        # `sqlalchemy.inspect` returns the same object, but takes 1 us of the 7 us of this function.
        state = instance_state(model)
        row = fields.validate_attributes(vars(model))
        kept: AbstractSet[str] = frozenset()
        if state.key is not None:
            unmodified = state.unmodified
            kept = frozenset(name for name in row if fields.ATTRIBUTES[name] in unmodified)
        return cls._from_values(row, kept, found or {})

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> UpsertRow:
        """
        Return the row of a new model with these fields.

        Raises InvalidModelError for an invalid value and for a name that is not a keyword of
        `Model(...)`.
        """
        for name, value in values.items():
            if name not in fields.INPUT_FIELDS:
                raise InvalidModelError(f"{name}", value, "is not a field of Model(...)")
        return cls._from_values(fields.validate_model(values), frozenset(), {})

    @classmethod
    def _from_values(
        cls, row: dict[str, Any], kept: AbstractSet[str], found: Mapping[str, Any]
    ) -> UpsertRow:
        row.setdefault("version", "")
        if row.get("downloaded_at") is None:
            row["downloaded_at"] = utc_now()
            kept -= {"downloaded_at"}
        row["description_folded"] = None
        row |= search_columns(row)
        row |= found
        return cls(row, overwritten_columns(tuple(row), frozenset(kept - found.keys())))

    @property
    def key(self) -> tuple[str, ...]:
        """Provider, reference and version."""
        return tuple(self.row[name] for name in KEY_FIELDS)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of the row."""
        return tuple(self.row)

    @property
    def statement_key(self) -> StatementKey:
        """Rows with equal statement keys are written by the same statement."""
        return statement_key(self.names, self.overwritten)

    def merged_with(self, later: UpsertRow) -> UpsertRow:
        """Return the row that has the effect of registering this row and then `later`."""
        row = self.row | later.row
        sizes = {self.row.get("size_bytes"), later.row.get("size_bytes")} - {None}
        if "digest" in self.row and "digest" not in later.row and len(sizes) > 1:
            # A file of another size has another digest.
            row["digest"] = None
        # `later` may not set a description, but its `description_folded` is NULL all the same.
        return UpsertRow(row | search_columns(row), self.overwritten | later.overwritten)


# A program sets a handful of combinations of fields. Computing these results takes longer than
# validating the values.
@lru_cache(maxsize=256)
def overwritten_columns(
    names: tuple[str, ...], kept: frozenset[str] = frozenset()
) -> frozenset[str]:
    """Return the columns of a row that overwrite those of an existing row."""
    # The case-folded reference is overwritten although the key stays: in a table that was migrated
    # with SQL alone it may differ from what Python computes.
    overwritten = set(names).difference(kept, KEY_FIELDS)
    if "description" not in overwritten:
        overwritten.discard("description_folded")
    return frozenset(overwritten)


@lru_cache(maxsize=256)
def statement_key(names: tuple[str, ...], overwritten: frozenset[str]) -> StatementKey:
    """Return the key by which rows share a statement."""
    return tuple(sorted(names)), tuple(sorted(overwritten))


def register(model: Model) -> Operation[UpsertRow, Model]:
    """Return the operation that registers a model and returns the recorded one."""
    return write(
        register_one,
        UpsertRow.from_model(model),
        register_many,
        run_as_statement=register_in_one_statement,
    )


def _rows_of_one(_connection: Connection, row: UpsertRow) -> ChangedRows:
    return ChangedRows(keys=[row.key])


@changes(_rows_of_one)
def register_one(connection: Connection, row: UpsertRow) -> Model:
    """Insert or update a model, and return it as it is recorded."""
    dialect = connection.dialect
    driver = sqlite_driver(connection)
    values = {**row.row, "host": host_of(connection)}
    if driver is not None:
        # A new model need not be read back, and has no tags: that takes half the time. Reading the
        # id from RETURNING instead of `lastrowid` would take as long as the INSERT.
        insert = insert_if_absent(dialect.name, row.names)
        new_id = insert.insert_on_driver(driver, dialect, values)
        if new_id is not None:
            if not new_id % _STEP:
                _keep_up(connection)
            return model_from_insert(new_id, values)
    upsert = upsert_model(dialect.name, *row.statement_key, returning=True)
    (stored,) = upsert.fetch_all(connection, values)
    if driver is None and dialect.name == "postgresql":
        *stored, is_new = stored
        if is_new:
            # It has no tags: one round trip less.
            return to_model((*stored, None))
    if dialect.name == "sqlite" and not stored[ID_INDEX] % _STEP:
        _keep_up(connection)
    (tags,) = select_tags(dialect.name).fetch_all(connection, {"id": stored[ID_INDEX]})
    return to_model((*stored, *tags))


def _keep_up(connection: Connection) -> None:
    index_if_many_wait(connection, 2 * _STEP)
    count_new_models(connection)


def register_in_one_statement(connection: Connection, row: UpsertRow) -> Model:
    """Register a model on PostgreSQL as `register_one` does, without waiting for locks."""
    values = {**row.row, "host": host_of(connection)}
    (stored,) = upsert_with_tags(*row.statement_key).fetch_all(connection, values)
    return to_model_of_server(stored)


def register_many(connection: Connection, rows: Sequence[UpsertRow]) -> list[Model]:
    """
    Register models on PostgreSQL, in few statements; return each as it is recorded.

    It has the effect of registering them one after the other. The results are in this order.
    Adjacent rows that set the same columns are written by one statement. All writers lock rows in
    key order, which prevents deadlocks.
    """
    stored: dict[int, Row] = {}
    known_ids = []
    for indexes in group_by_statement(rows):
        batch = [rows[index] for index in indexes]
        names, overwritten = batch[0].statement_key
        values: dict[str, Any] = array_parameters(names, [each.row for each in batch])
        values["host"] = host_of(connection)
        returned = upsert_arrays(names, overwritten).fetch_all(connection, values)
        by_key = {}
        for *values_of_row, is_new in returned:
            by_key[tuple(values_of_row[index] for index in KEY_INDEXES)] = values_of_row
            if not is_new:
                known_ids.append(values_of_row[ID_INDEX])
        stored |= {index: by_key[each.key] for index, each in zip(indexes, batch, strict=True)}
    tags = fetch_tags(connection, known_ids) if known_ids else {}
    ordered = (stored[index] for index in range(len(rows)))
    return to_models_of_server((*row, tags.get(row[ID_INDEX])) for row in ordered)


def group_by_statement(rows: Sequence[UpsertRow]) -> Iterator[list[int]]:
    """Yield the indexes of the rows for each statement; no statement has the same key twice."""
    remaining = sorted(range(len(rows)), key=lambda index: rows[index].key)
    while remaining:
        firsts = [next(same) for _, same in groupby(remaining, lambda index: rows[index].key)]
        for _, alike in groupby(firsts, lambda index: rows[index].statement_key):
            yield list(alike)
        taken = set(firsts)
        remaining = [index for index in remaining if index not in taken]

"""SQL statements that select, insert, update and delete models; this module executes none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Table,
    bindparam,
    case,
    func,
    literal_column,
    null,
    or_,
    select,
)

from model_catalog.domain import fields, validation
from model_catalog.domain.fields import KEY_FIELDS, UNIQUE_COLUMNS
from model_catalog.domain.file_record import FileState
from model_catalog.execution.prepared_statement import PreparedStatement, raw_column
from model_catalog.mapping.child_tables import TAGS
from model_catalog.repository.statements.batches import array_table
from model_catalog.repository.statements.filters import MODELS, model_columns
from model_catalog.repository.statements.model_key import only_candidate, select_model_id
from model_catalog.repository.statements.row_conversion import (
    MODEL_COLUMNS,
    select_models,
    string_agg,
)

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql, sqlite

ID_INDEX: Final = MODEL_COLUMNS.index("id")
"""The position of the id in a row of `select_models`."""
KEY_INDEXES: Final = tuple(MODEL_COLUMNS.index(name) for name in KEY_FIELDS)
"""The positions of provider, reference and version in a row of `select_models`."""


@cache
def select_by_key(dialect: str, *, newest: bool) -> PreparedStatement:
    """Select the model that a key means; `newest` is for a key without a version."""
    host, provider, reference, version = _key_parameters()
    model_id = select_model_id(host, provider, reference, None if newest else version)
    return PreparedStatement(
        select_models(dialect).where(model_columns.id == model_id.scalar_subquery())
    )


@cache
def select_only_candidate(dialect: str, *, newest: bool) -> PreparedStatement:
    """Select the model that a key means in the usual case: see `only_candidate`."""
    host, provider, reference, version = _key_parameters()
    return PreparedStatement(
        only_candidate(
            select_models(dialect), host, provider, reference, None if newest else version
        )
    )


def _key_parameters() -> list[ColumnElement[Any]]:
    return [bindparam(name, type_=model_columns[name].type) for name in UNIQUE_COLUMNS]


@cache
def select_by_id(dialect: str) -> PreparedStatement:
    """Select the model with the parameter `id` on the host in the parameter `host`."""
    return PreparedStatement(
        select_models(dialect).where(
            model_columns.id == bindparam("id", type_=model_columns.id.type),
            model_columns.host == bindparam("host", type_=model_columns.host.type),
        )
    )


@cache
def select_tags(dialect: str) -> PreparedStatement:
    """Select the tags of the model with the parameter `id`, joined to one text."""
    of_model = TAGS.c.model_id == bindparam("id", type_=model_columns.id.type)
    return PreparedStatement(select(raw_column(string_agg(dialect, TAGS.c.tag))).where(of_model))


# Each combination of fields that a program sets is a statement of its own; a program has a handful
# of combinations.
@lru_cache(maxsize=64)
def upsert_model(
    dialect: str,
    names: tuple[str, ...],
    changed: tuple[str, ...],
    *,
    returning: bool,
    max_id: bool = False,
) -> PreparedStatement:
    """
    Insert a row with `host` and the columns `names`, or set the columns `changed` of the known row.

    With `max_id` a known row changes only if its id is at most the parameter `max_id`.

    With `returning` it returns the row as `select_models` does, but without the tags. On PostgreSQL
    the last value is whether the row is new: it then has no tags.
    """
    where = model_columns.id <= bindparam("max_id", type_=model_columns.id.type) if max_id else None
    upsert = _set_on_conflict(insert_into(MODELS, dialect), changed, where)
    return PreparedStatement(
        upsert.returning(*_returned_columns(dialect)) if returning else upsert, ("host", *names)
    )


@lru_cache(maxsize=64)
def upsert_with_tags(names: tuple[str, ...], changed: tuple[str, ...]) -> PreparedStatement:
    """
    Upsert a row on PostgreSQL as `upsert_model` does, and return it as `select_models` does.

    The tags are those at the start of the statement. A statement that waited for the row would not
    return a tag that was committed meanwhile. So the statement must not wait for locks.
    """
    insert = insert_into(MODELS, "postgresql").values(
        {name: bindparam(name, type_=model_columns[name].type) for name in ("host", *names)}
    )
    upsert = _set_on_conflict(insert, changed)
    *columns, _is_new = _returned_columns("postgresql")
    stored = upsert.returning(*columns).cte("stored")
    tags = select(string_agg("postgresql", TAGS.c.tag)).where(TAGS.c.model_id == stored.c.id)
    return PreparedStatement(select(*stored.c, raw_column(tags.scalar_subquery()).label("_tags")))


@lru_cache(maxsize=64)
def insert_if_absent(dialect: str, names: tuple[str, ...]) -> PreparedStatement:
    """Insert a row with the columns `names` and `host`, unless its key exists."""
    # A statement that can fail halfway, and whose table has triggers, keeps a journal of its own in
    # SQLite: that takes as long as the INSERT. OR FAIL does not undo what one row has written, but
    # all constraints of a row are checked before.
    insert = insert_into(MODELS, dialect).prefix_with("OR FAIL", dialect="sqlite")
    return PreparedStatement(
        insert.on_conflict_do_nothing(index_elements=UNIQUE_COLUMNS), ("host", *names)
    )


@lru_cache(maxsize=64)
def upsert_arrays(names: tuple[str, ...], changed: tuple[str, ...]) -> PreparedStatement:
    """
    Upsert many rows on PostgreSQL, and return each as `upsert_model` does.

    The parameters are those of `array_table`, and the `host` of all rows.
    """
    rows = array_table(model_columns[name] for name in names)
    insert = insert_into(MODELS, "postgresql").from_select(
        ("host", *names),
        select(bindparam("host", type_=model_columns.host.type), *(rows.c[name] for name in names)),
        include_defaults=False,
    )
    return PreparedStatement(
        _set_on_conflict(insert, changed).returning(*_returned_columns("postgresql"))
    )


def _set_on_conflict(
    insert: sqlite.Insert | postgresql.Insert,
    changed: tuple[str, ...],
    where: ColumnElement[bool] | None = None,
) -> sqlite.Insert | postgresql.Insert:
    new: dict[str, ColumnElement[Any]] = {name: insert.excluded[name] for name in changed}
    new |= reset_absence(reset_stale_results(new), new)
    new["download_count"] = _increment(model_columns.download_count)
    return insert.on_conflict_do_update(index_elements=UNIQUE_COLUMNS, set_=new, where=where)


def _returned_columns(dialect: str) -> Sequence[ColumnElement[Any]]:
    # A subquery in RETURNING cannot refer to the returned row on SQLite. On PostgreSQL it would not
    # see a tag that was committed while the upsert waited for the row. So the tags are selected
    # separately.
    *columns, _tags = select_models(dialect).selected_columns
    if dialect == "postgresql":
        columns.append(raw_column(literal_column("xmax = 0", Boolean())).label("_is_new"))
    return columns


def insert_into(table: Table, dialect: str) -> sqlite.Insert | postgresql.Insert:
    """Return an INSERT that has `on_conflict_do_update`: SQLAlchemy has one for each dialect."""
    # The dialect of PostgreSQL takes 30 ms to import, and a SQLite file does not need it.
    if dialect == "sqlite":
        from sqlalchemy.dialects import sqlite  # noqa: PLC0415

        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql  # noqa: PLC0415

    return postgresql.insert(table)


def has_path(path: ColumnElement[str], dialect: str) -> ColumnElement[bool]:
    """
    Return the condition that a model has this path.

    On SQLite it is also true for a path that is a blob: an old SQLite file may have such paths, and
    a blob is equal to no text.
    """
    if dialect == "sqlite":
        return or_(
            model_columns.local_path == path, func.typeof(model_columns.local_path) == "blob"
        )
    return model_columns.local_path == path


def reset_stale_results(new: Mapping[str, ColumnElement[Any]]) -> dict[str, ColumnElement[Any]]:
    """
    Return the columns to reset in an UPDATE that sets the columns `new`, with their expressions.

    - When the path, size or digest changes, the results of checks and verifications are reset.
    - When the size changes, the digest is cleared too.
    - When the path changes, the store is cleared too.

    A size that is or was NULL does not count as changed. A digest that was NULL does not count as
    changed either, but clearing a known digest does.
    """
    if not new.keys() & {"local_path", "size_bytes", "digest"}:
        return {}
    # `!=` with NULL is NULL, which CASE takes for false.
    changes = [
        model_columns[name] != new[name] for name in ("local_path", "size_bytes") if name in new
    ]
    if "digest" in new:
        changes.append(
            model_columns.digest.is_not(None) & model_columns.digest.is_distinct_from(new["digest"])
        )
    is_stale = or_(*changes)
    reset: dict[str, ColumnElement[Any]] = {
        name: case((is_stale, null()), else_=model_columns[name])
        for name in fields.INSPECTION_FIELDS
        if name != "state"
    }
    reset["state"] = case(
        (is_stale, _state_text(FileState.UNCHECKED)),
        else_=model_columns.state,
    )
    if "local_path" in new:
        is_moved = model_columns.local_path != new["local_path"]
        reset |= {
            name: case((is_moved, null()), else_=model_columns[name])
            for name in fields.STORE_FIELDS
        }
    if "size_bytes" in new:
        is_resized = model_columns.size_bytes != new["size_bytes"]
        reset["digest"] = case((is_resized, null()), else_=model_columns.digest)
    return {name: value for name, value in reset.items() if name not in new}


def reset_absence(
    reset: Mapping[str, ColumnElement[Any]], new: Mapping[str, ColumnElement[Any]]
) -> dict[str, ColumnElement[Any]]:
    """
    Return the columns to reset in an upsert, with their expressions; `reset` are the stale results.

    Registering states that the files are there now. So a model that was found missing or offline is
    unchecked again. Other results are about bytes that no check has contradicted, and stay.
    """
    # Not IN, whose values SQLAlchemy adds to the text at each execution.
    is_absent = or_(
        *(
            model_columns.state == _state_text(state)
            for state in (FileState.MISSING, FileState.OFFLINE)
        )
    )
    values: dict[str, ColumnElement[Any]] = {
        "state": _state_text(FileState.UNCHECKED),
        "state_detail": null(),
        "checked_at": null(),
        "missing_since": null(),
    }
    return {**reset} | {
        name: case((is_absent, value), else_=reset.get(name, model_columns[name]))
        for name, value in values.items()
        if name not in new
    }


def saturating_add(column: ColumnElement[int], more: int) -> ColumnElement[int]:
    """Return an expression that adds to a counter and stops at 2**63 - 1."""
    # In SQLite a sum beyond 2**63 is a floating-point number.
    return case((column <= validation.MAX_SIZE - more, column + more), else_=validation.MAX_SIZE)


# The constants of an upsert are part of its text. As 13 more parameters they took 0.8 us of 6.3 us
# for each row that `sqlite3` inserts.
def _increment(column: ColumnElement[int]) -> ColumnElement[int]:
    """Return the expression of `saturating_add` for 1, without parameters."""
    maximum = literal_column(f"{validation.MAX_SIZE}", column.type)
    return case((column < maximum, column + literal_column("1", column.type)), else_=maximum)


def _state_text(state: FileState) -> ColumnElement[FileState]:
    """Return a state as an expression without parameters."""
    return literal_column(f"'{state.value}'", model_columns.state.type)

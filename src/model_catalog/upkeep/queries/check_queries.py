"""
Bulk queries of `check_models`.

They read only the columns that a check compares, without type conversion, and write the new states
in batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar, Unpack

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Text,
    Update,
    bindparam,
    case,
    func,
    literal,
    select,
    type_coerce,
)

from model_catalog.connection.database_info import host_of
from model_catalog.domain.file_record import BEING_DELETED, FileState
from model_catalog.domain.file_validation import MAX_FILES
from model_catalog.domain.model_ref import ModelRef
from model_catalog.execution.executor import read, write_alone
from model_catalog.execution.observation.changed_rows import ChangedRows, changes
from model_catalog.mapping.child_tables import FILES
from model_catalog.mapping.column_types import decode_path, decode_state
from model_catalog.repository.model_catalog import ModelCatalog, executor_of
from model_catalog.repository.statements.filters import (
    MODELS,
    Filters,
    build_where,
    model_columns,
    of_host,
    own_models,
)
from model_catalog.repository.statements.models import has_path

T = TypeVar("T")

Row: TypeAlias = Sequence[Any]
"""One file of a model, or a model without files: the columns of _COLUMNS, as they are stored."""

# Without type conversion: most of a hundred thousand rows are unchanged, and raw values can be
# compared.
_COLUMNS: Final = (
    model_columns.id,
    type_coerce(model_columns.local_path, Text),
    model_columns.size_bytes,
    type_coerce(model_columns.state, Text),
    model_columns.state_detail,
    type_coerce(model_columns.mount_point, Text),
    model_columns.found_digest,
    type_coerce(FILES.c.path, Text),
    FILES.c.size_bytes,
    FILES.c.fingerprint,
)

_SELECT_ROWS: Final = select(*_COLUMNS).select_from(
    MODELS.outerjoin(
        FILES,
        (FILES.c.model_id == model_columns.id) & model_columns.inventoried_at.is_not(None),
    )
)
# Built once: building it takes as long as executing it.
_SELECT_ROWS_OF_ONE: Final = _SELECT_ROWS.where(
    model_columns.id == bindparam("of_id"),
    model_columns.host == bindparam("of_host", type_=model_columns.host.type),
)

# Over a host's sessions the event loop builds the parameters; other tasks must run in between.
_BATCH_SIZE: Final = 1000
"""Rows in one statement."""


@dataclass(slots=True)
class CheckedModel:
    """The recorded facts of a model that a check compares; `files` is empty if not known."""

    id: int
    local_path: str
    size_bytes: int | None
    state: FileState
    state_detail: str | None
    mount_point: str | None
    is_damaged: bool
    files: list[tuple[str, int, str | None]] = field(default_factory=list)
    """The path, the size in bytes and the fingerprint of each file."""

    @classmethod
    def from_rows(cls, rows: Sequence[Row]) -> CheckedModel:
        """Return the model of these rows, which are all rows of one model."""
        model_id, path, size_bytes, state, detail, mount, found_digest, *_ = rows[0]
        return cls(
            model_id,
            decode_path(path) or "",
            size_bytes,
            decode_state(state),
            detail,
            decode_path(mount),
            found_digest is not None,
            [(decode_path(row[7]) or "", row[8], row[9]) for row in rows if row[7] is not None],
        )


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of a check of one model: its new state, the reason, and its mount point."""

    model: CheckedModel
    state: FileState
    detail: str | None = None
    mount_point: str | None = None

    @property
    def is_changed(self) -> bool:
        """Whether it differs from what is recorded."""
        model = self.model
        return (
            self.state is not model.state
            or self.detail != model.state_detail
            or self.mount_point not in (None, model.mount_point)
        )


async def load_check_rows(
    catalog: ModelCatalog, after_id: int | None, limit: int, **filters: Unpack[Filters]
) -> Sequence[Row]:
    """
    Return the files of models that pass all filters, sorted by model id; the next page of them.

    `after_id` is the id of the last model of the page before. A page has all files of each of its
    models, and at most `limit` rows; if the first model has more files, only that model. A model
    whose files are not known is one row with None in the columns of the file.
    """
    executor = executor_of(catalog)
    where = build_where(filters, executor.database.dialect)
    statement = _SELECT_ROWS.order_by(model_columns.id)
    if after_id is not None:
        statement = statement.where(model_columns.id > after_id)

    rows = await executor.run(read(fetch_own, _OwnRows(statement.limit(limit + 1), where)))
    if len(rows) > limit and rows[0][0] == rows[-1][0]:
        limit = max(limit, MAX_FILES)
        rows = await executor.run(read(fetch_own, _OwnRows(statement.limit(limit + 1), where)))
    if len(rows) <= limit:
        return rows
    # The last model may have more rows than were read: it is left to the next page.
    end = len(rows) - 1
    while end and rows[end - 1][0] == rows[-1][0]:
        end -= 1
    return rows[:end] if end else rows


async def load_check_rows_of(
    catalog: ModelCatalog, model_id: int, host: str | None = None
) -> Sequence[Row]:
    """
    Return the files of one model as `load_check_rows` does; empty if there is no such model.

    `host` is the model's host; None is the catalog's.
    """
    return await executor_of(catalog).run(read(_fetch_rows_of_one, (model_id, host)))


def _fetch_rows_of_one(connection: Connection, value: tuple[int, str | None]) -> Sequence[Row]:
    model_id, host = value
    values = {"of_id": model_id, "of_host": host_of(connection) if host is None else host}
    return connection.execute(_SELECT_ROWS_OF_ONE, values).all()


class _OwnRows(NamedTuple):
    statement: Select[Any]
    where: Sequence[ColumnElement[bool]]


def fetch_own(connection: Connection, value: _OwnRows) -> Sequence[Row]:
    """Return the rows of a statement that are of the catalog's host and meet all conditions."""
    return connection.execute(value.statement.where(*own_models(connection, value.where))).all()


async def refs_by_id(catalog: ModelCatalog, model_ids: Sequence[int]) -> dict[int, ModelRef]:
    """Return the names of models by id; models that do not exist are left out."""
    return await executor_of(catalog).run(read(select_refs, model_ids))


def select_refs(connection: Connection, model_ids: Sequence[int]) -> dict[int, ModelRef]:
    """Return the names of models by id; ids that do not exist are left out."""
    names = select(
        model_columns.id, model_columns.provider, model_columns.reference, model_columns.version
    )
    refs: dict[int, ModelRef] = {}
    for ids in _batches(model_ids):
        rows = connection.execute(names.where(model_columns.id.in_(ids), of_host(connection)))
        refs |= {row[0]: ModelRef(*row[1:]) for row in rows}
    return refs


@dataclass(frozen=True, slots=True)
class _CheckUpdates:
    """What to write: the ids of unchanged models by state, and the parameters of changed ones."""

    now: datetime
    unchanged: dict[FileState, list[int]]
    changed: list[dict[str, Any]]


async def save_check_results(
    catalog: ModelCatalog,
    results: Iterable[CheckResult],
    now: datetime,
    present_ids: Sequence[int] = (),
) -> None:
    """
    Record the results of a check, for models that are still as they were when they were checked.

    `present_ids` are the models that were recorded as present and still are. `missing_since` is set
    for models that are missing, and cleared for models that are found again. Digests stay.
    """
    updates = _CheckUpdates(now, {FileState.PRESENT: list(present_ids)}, [])
    for result in results:
        if result.is_changed:
            updates.changed.append(_update_parameters(result))
        else:
            updates.unchanged.setdefault(result.state, []).append(result.model.id)
    if updates.changed or any(updates.unchanged.values()):
        await executor_of(catalog).run(write_alone(update_states, updates))


def _rows_of_changed(_connection: Connection, updates: _CheckUpdates) -> ChangedRows:
    return ChangedRows(ids=[parameters["of_id"] for parameters in updates.changed])


@changes(_rows_of_changed)
def update_states(connection: Connection, updates: _CheckUpdates) -> None:
    """Write the results of a check."""
    for state, ids in updates.unchanged.items():
        for batch in _batches(ids):
            connection.execute(
                MODELS.update()
                # A model that was registered with other content in the meantime is unchecked.
                .where(
                    model_columns.id.in_(batch), of_host(connection), model_columns.state == state
                )
                .values(checked_at=updates.now)
            )
    statement = _update_statement(updates.now, connection.dialect.name)
    statement = statement.where(of_host(connection))
    for parameters in _batches(updates.changed):
        connection.execute(statement, parameters)


def _update_statement(now: datetime, dialect: str) -> Update:
    state = bindparam("new_state", type_=model_columns.state.type)
    checked_at = literal(now, model_columns.checked_at.type)
    is_missing, is_offline, is_unreadable = (
        state == literal(each, model_columns.state.type)
        for each in (FileState.MISSING, FileState.OFFLINE, FileState.UNREADABLE)
    )
    missing_since = case(
        (is_missing, func.coalesce(model_columns.missing_since, checked_at)),
        # A disk that is not mounted does not show whether the model is there.
        (is_offline | is_unreadable, model_columns.missing_since),
        else_=None,
    )
    mount = bindparam("new_mount", type_=model_columns.mount_point.type)
    path = bindparam("of_path", type_=model_columns.local_path.type)
    return (
        MODELS.update()
        .where(
            model_columns.id == bindparam("of_id"),
            has_path(path, dialect),
            model_columns.state == bindparam("of_state", type_=model_columns.state.type),
            # Files that were seen may be deleted by now.
            model_columns.state_detail.is_distinct_from(BEING_DELETED),
        )
        .values(
            state=state,
            state_detail=bindparam("new_detail", type_=Text),
            checked_at=checked_at,
            missing_since=missing_since,
            mount_point=func.coalesce(mount, model_columns.mount_point),
        )
    )


def _update_parameters(result: CheckResult) -> dict[str, Any]:
    model = result.model
    return {
        "of_id": model.id,
        "of_path": model.local_path,
        "of_state": model.state,
        "new_state": result.state,
        "new_detail": result.detail,
        "new_mount": result.mount_point,
    }


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _BATCH_SIZE):
        yield items[start : start + _BATCH_SIZE]

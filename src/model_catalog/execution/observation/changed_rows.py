"""
Which models an operation changes, and what it changes of them.

Each function that writes states with `changes` which rows it may change. If the catalog has a hook
for changes, these rows are read before and after the function, in its transaction, and compared.
Without a hook nothing is read. On PostgreSQL another transaction may replace the row that a name
means between two statements. So functions that change one model lock its row first, and use
`recording` around the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, TypeVar, cast

from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    Select,
    Table,
    bindparam,
    select,
    tuple_,
    type_coerce,
)
from sqlalchemy.types import NullType

from model_catalog.connection.database_info import host_of
from model_catalog.domain.fields import KEY_FIELDS
from model_catalog.domain.file_record import FileState
from model_catalog.domain.model_ref import ModelRef
from model_catalog.domain.validation import utc_now
from model_catalog.execution.observation.hooks import Journal
from model_catalog.mapping.child_tables import ALIASES, FILES, TAGS
from model_catalog.mapping.tables import Model

if TYPE_CHECKING:
    from model_catalog.execution.observation.records import ChangeKind, ModelChange

Child: TypeAlias = Literal["tags", "aliases", "files"]
F = TypeVar("F", bound=Callable[..., Any])

_MODELS: Final = cast("Table", Model.__table__)
_CHILD_TABLES: Final[Mapping[Child, Table]] = {
    "tags": TAGS,
    "aliases": ALIASES,
    "files": FILES,
}

UNREPORTED_FIELDS: Final = frozenset({"use_count", "last_used_at", "checked_at"})
"""Each use and each check changes these fields. Hooks are not told of them."""

_STATE_FIELDS: Final = frozenset({"state", "state_detail", "missing_since", "mount_point"})
_COMPARED: Final = tuple(
    column
    for column in _MODELS.c
    if column.key not in {"id", "host", "state", *KEY_FIELDS, *UNREPORTED_FIELDS}
    and not column.key.endswith("_folded")
)

# Three parameters for each key. Releases of SQLite before 3.32 take 999 in a statement.
_KEYS_AT_ONCE: Final = 300
_IDS_AT_ONCE: Final = 500


class ChangedRows(NamedTuple):
    """The models that an operation may change."""

    where: Sequence[ColumnElement[bool]] = ()
    """Conditions of models that exist before it."""
    keys: Sequence[Sequence[str]] = ()
    """Provider, reference and version of models of the host, which it may also insert."""
    ids: Sequence[int] = ()
    """Ids of models that exist before it."""


Selector: TypeAlias = Callable[[Connection, Any], ChangedRows]
"""Returns the models that an operation may change, for its value."""


class Declaration(NamedTuple):
    """What a function that writes may change."""

    select: Selector | None
    """None for a function that records its changes itself, with `recording`."""
    children: Sequence[Child] = ()


_declared: Final[dict[object, Declaration | None]] = {}


def changes(select: Selector, *children: Child) -> Callable[[F], F]:
    """Declare the models that a function may change, and which of their child rows."""

    def declare(function: F) -> F:
        _declared[function] = Declaration(select, children)
        return function

    return declare


def records_changes(function: F) -> F:
    """Declare a function that changes many models, and records the changes with `recording`."""
    _declared[function] = Declaration(None)
    return function


def changes_no_model(function: F) -> F:
    """Declare a function that writes, but changes no model that hooks are told of."""
    _declared[function] = None
    return function


def declaration_of(function: object) -> Declaration | None:
    """Return what a function may change; None if it changes no model."""
    return _declared.get(function)


def is_declared(function: object) -> bool:
    """Return whether a function states what it changes."""
    return function in _declared


_journal: Final[ContextVar[Journal | None]] = ContextVar("model_catalog_journal", default=None)


def is_recording() -> bool:
    """Return whether the changes of the operation that runs are recorded."""
    return _journal.get() is not None


@contextmanager
def keeping(journal: Journal) -> Iterator[None]:
    """Have `recording` add changes to a journal, during a block."""
    token = _journal.set(journal)
    try:
        yield
    finally:
        _journal.reset(token)


@contextmanager
def recording(connection: Connection, rows: ChangedRows, *children: Child) -> Iterator[None]:
    """Record how a block changes models; do nothing if the catalog has no hook for changes."""
    journal = _journal.get()
    if journal is None:
        yield
        return
    with comparing(connection, rows, children, journal):
        yield


@contextmanager
def comparing(
    connection: Connection, rows: ChangedRows, children: Sequence[Child], journal: Journal
) -> Iterator[None]:
    """Read models before and after a block, and add their differences to a journal."""
    before = _read(connection, rows, children, locks=True)
    yield
    keys = rows.keys
    if len(keys) == 1 and len(before) == 1:
        # It is the model of this key.
        keys = ()
    after = _read(connection, ChangedRows(ids=tuple(before), keys=keys), children)
    if len(after) < len(before):
        # A deletion has changed the state first.
        journal.set_old_states({model_id: each.state for model_id, each in before.items()})
    journal.add(_differences(before, after))


def rows_with_alias(
    connection: Connection, aliases: Sequence[Sequence[str]]
) -> list[ColumnElement[bool]]:
    """Return conditions of the models with aliases: provider, reference and alias of each."""
    table = _CHILD_TABLES["aliases"].c
    names = tuple_(table.provider, table.reference, table.alias)
    targets = select(table.model_id).where(table.host == host_of(connection))
    return [
        _MODELS.c.id.in_(targets.where(names.in_(part)))
        for part in _parts([tuple(alias) for alias in aliases], _KEYS_AT_ONCE)
    ]


def delete_recorded(connection: Connection, statement: Delete) -> bool:
    """
    Delete models, and record which; return whether there was one.

    The statement itself tells, because on PostgreSQL it may find other rows than one before it.
    """
    if not is_recording():
        return bool(connection.execute(statement.returning(_MODELS.c.id)).all())
    names = (_MODELS.c[name] for name in KEY_FIELDS)
    returned = connection.execute(
        statement.returning(_MODELS.c.id, _MODELS.c.host, *names, _MODELS.c.state)
    )
    now = utc_now()
    removed = [
        replace(
            _change("removed", row[0], _Snapshot(row[1], tuple(row[2:5]), row[5], (), {}), now),
            old_state=row[5],
        )
        for row in returned
    ]
    if (journal := _journal.get()) is not None:
        journal.add(sorted(removed, key=lambda each: (each.provider, each.reference, each.version)))
    return bool(removed)


class _Snapshot(NamedTuple):
    """A model as it is compared."""

    host: str
    key: tuple[str, ...]
    state: FileState
    values: Sequence[object]
    """Those of `_COMPARED`, as the driver returns them."""
    children: Mapping[Child, int]
    """A number for the rows of each child table, which is another one for other rows."""


def _read(
    connection: Connection,
    rows: ChangedRows,
    children: Sequence[Child],
    *,
    locks: bool = False,
) -> dict[int, _Snapshot]:
    """Return the models of `rows`, by id, in the order in which they are found."""
    found: dict[int, _Snapshot] = {}
    for selected, values in _statements(connection, rows, locks=locks):
        for model_id, host, *rest in connection.execute(selected, values):
            provider, reference, version, state, *others = rest
            key = (provider, reference, version)
            found[model_id] = _Snapshot(host, key, state, others, dict.fromkeys(children, 0))
    for child in children:
        children_of = _select_children(child)
        for ids in _parts(sorted(found), _IDS_AT_ONCE):
            for model_id, *row in connection.execute(children_of, {"ids": ids}):
                numbers = cast("dict[Child, int]", found[model_id].children)
                # A sum: the order of the rows does not matter.
                numbers[child] += hash(tuple(row))
    return found


def _statements(
    connection: Connection, rows: ChangedRows, *, locks: bool
) -> Iterator[tuple[Select[Any], Mapping[str, Any]]]:
    for condition in rows.where:
        yield _select_models(locks=locks).where(condition), {}
    for ids in _parts(sorted(set(rows.ids)), _IDS_AT_ONCE):
        yield _select_by_id(locks=locks), {"ids": ids}
    host = host_of(connection)
    if len(rows.keys) == 1:
        yield _select_by_key(locks=locks), {"host": host, **_named(rows.keys[0])}
        return
    names = tuple_(*(_MODELS.c[name] for name in KEY_FIELDS))
    for keys in _parts(sorted({tuple(key) for key in rows.keys}), _KEYS_AT_ONCE):
        yield _select_models(locks=locks).where(_MODELS.c.host == host, names.in_(keys)), {}


def _named(key: Sequence[str]) -> dict[str, str]:
    return dict(zip(KEY_FIELDS, key, strict=True))


# To build a statement of fifty columns takes longer than to execute it.


@cache
def _select_models(*, locks: bool) -> Select[Any]:
    # Raw values: a conversion would refuse what other programs have written.
    raw = (type_coerce(column, NullType()) for column in _COMPARED)
    names = [_MODELS.c[name] for name in KEY_FIELDS]
    statement = select(_MODELS.c.id, _MODELS.c.host, *names, _MODELS.c.state, *raw)
    # All writers lock rows in the order of their keys, which prevents deadlocks.
    statement = statement.order_by(*names)
    # A change of another transaction, between this and the operation, is not one of ours.
    return statement.with_for_update(key_share=True) if locks else statement


@cache
def _select_by_id(*, locks: bool) -> Select[Any]:
    return _select_models(locks=locks).where(_MODELS.c.id.in_(bindparam("ids", expanding=True)))


@cache
def _select_by_key(*, locks: bool) -> Select[Any]:
    columns = (_MODELS.c[name] for name in ("host", *KEY_FIELDS))
    return _select_models(locks=locks).where(
        *(column == bindparam(column.key, type_=column.type) for column in columns)
    )


@cache
def _select_children(child: Child) -> Select[Any]:
    table = _CHILD_TABLES[child]
    columns = (type_coerce(each, NullType()) for each in table.c if each.key != "model_id")
    is_of_models = table.c.model_id.in_(bindparam("ids", expanding=True))
    return select(table.c.model_id, *columns).where(is_of_models)


def _differences(
    before: Mapping[int, _Snapshot], after: Mapping[int, _Snapshot]
) -> list[ModelChange]:
    """Return the changes, in the order of the keys before; new models are last."""
    now = utc_now()
    found: list[ModelChange] = []
    for model_id, old in before.items():
        new = after.get(model_id)
        # The statement that deletes rows records them, see `delete_recorded`.
        if new is not None:
            found += _updates(model_id, old, new, now)
    for model_id, new in after.items():
        if model_id not in before:
            registered = _change("registered", model_id, new, now)
            found.append(replace(registered, new_state=new.state))
    return found


def _updates(model_id: int, old: _Snapshot, new: _Snapshot, now: datetime) -> Iterator[ModelChange]:
    """Yield the changes of a model that exists before and after."""
    fields = _changed_fields(old, new)
    of_state: tuple[str, ...] = ()
    if new.state != old.state:
        of_state = tuple(name for name in fields if name in _STATE_FIELDS)
        fields = tuple(name for name in fields if name not in _STATE_FIELDS)
    if fields:
        provider, reference, version = old.key
        previous = None if new.key == old.key else ModelRef(provider, reference, version)
        updated = _change("updated", model_id, new, now, fields)
        yield replace(updated, old_state=old.state, new_state=new.state, previous_ref=previous)
    if of_state:
        changed = _change("state_changed", model_id, new, now, of_state)
        yield replace(changed, old_state=old.state, new_state=new.state)


def _change(
    kind: ChangeKind, model_id: int, model: _Snapshot, now: datetime, fields: tuple[str, ...] = ()
) -> ModelChange:
    # A catalog without the hook does not need it.
    from model_catalog.execution.observation.records import ModelChange  # noqa: PLC0415

    provider, reference, version = model.key
    return ModelChange(
        kind, provider, reference, version, model.host, model_id, fields, None, None, None, now
    )


def _changed_fields(old: _Snapshot, new: _Snapshot) -> tuple[str, ...]:
    """Return the names of the fields that differ, sorted."""
    pairs: list[tuple[str, object, object]] = [
        ("state", old.state, new.state),
        *zip(KEY_FIELDS, old.key, new.key, strict=True),
        *zip((column.key for column in _COMPARED), old.values, new.values, strict=True),
        *((child, old.children[child], new.children[child]) for child in old.children),
    ]
    return tuple(sorted(name for name, before, after in pairs if before != after))


T = TypeVar("T")


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]

"""Keeps the models that a host's session has loaded equal to what the catalog wrote through it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final
from weakref import WeakSet

from sqlalchemy import Connection, event, inspect, select
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.orm.attributes import instance_state, set_committed_value

from model_catalog.domain.fields import ATTRIBUTES
from model_catalog.mapping.computed_fields import STORED_TAGS
from model_catalog.mapping.tables import Model

_ATTRIBUTES: Final = (*ATTRIBUTES.values(), STORED_TAGS)
_WRITTEN: Final = "model_catalog_written"
"""The key in `Session.info` of the models whose new values a savepoint may undo."""

# Far below the number of parameters that a statement may have.
_CHUNK_SIZE: Final = 500


# The values are set, and not expired. Reading an expired attribute needs the database, which an
# AsyncSession allows only in an `await`: `model.tags` would raise MissingGreenlet.
def show_result(session: Session, connection: Connection, result: object) -> None:
    """
    Set the new values of the models that a session has loaded, after a write of the catalog.

    If `result` is a model, it alone was written, and its values are copied. Otherwise all loaded
    models are read again on `connection`. Changes that the host has not flushed stay.
    """
    if isinstance(result, Model):
        key = instance_state(result).key
        loaded = None if key is None else session.identity_map.get(key)
        if loaded is not None and loaded is not result:
            values = {name: vars(result)[name] for name in _ATTRIBUTES if name in vars(result)}
            _set_values(session, loaded, {**values, STORED_TAGS: result.tags})
    else:
        refresh(session, connection)


def refresh(session: Session, connection: Connection) -> None:
    """
    Read again all models that a session has loaded.

    A model whose row is gone leaves the session: it stays readable as it was.
    """
    by_id = {
        identity[0]: model
        for model in session.identity_map.values()
        if isinstance(model, Model) and (identity := inspect(model).identity)
    }
    for ids in _chunks(sorted(by_id)):
        columns = (getattr(Model, name) for name in _ATTRIBUTES)
        for row in connection.execute(select(*columns).where(Model.id.in_(ids))):
            values = dict(zip(_ATTRIBUTES, row, strict=True))
            _set_values(session, by_id.pop(values["id"]), values)
    for model in by_id.values():
        session.expunge(model)


def _chunks(ids: Sequence[int]) -> Iterator[list[int]]:
    remaining = iter(ids)
    while chunk := list(islice(remaining, _CHUNK_SIZE)):
        yield chunk


def _set_values(session: Session, model: Any, values: Mapping[str, Any]) -> None:
    state = inspect(model)
    changed = set(_ATTRIBUTES) - state.unmodified
    for name, value in values.items():
        if name not in changed:
            set_committed_value(model, name, value)
    # The case-folded copies are internal, and loaded on demand only.
    if copies := [name for name in vars(model) if name.endswith("_folded")]:
        session.expire(model, copies)
    if session.in_nested_transaction():
        _expire_on_rollback(session, model)


def _expire_on_rollback(session: Session, model: Any) -> None:
    """Have a session expire a model if the savepoint is rolled back, as it does for its own."""
    if _WRITTEN not in session.info:
        session.info[_WRITTEN] = WeakSet()
        event.listen(session, "after_soft_rollback", _on_rollback)
    session.info[_WRITTEN].add(model)


def _on_rollback(session: Session, _transaction: SessionTransaction) -> None:
    for model in session.info[_WRITTEN]:
        if model in session:
            session.expire(model)
    session.info[_WRITTEN].clear()

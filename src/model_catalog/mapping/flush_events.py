"""
What a host's session does when it flushes a `Model`: it validates the row as the catalog does.

SQLAlchemy calls these functions for objects of a session, and not for `insert(Model)`,
`update(Model)` and `delete(Model)`. The catalog itself writes without a session.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from sqlalchemy import Connection, delete, event, inspect, update
from sqlalchemy.orm import DeclarativeBase, Mapper
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.sql.elements import ClauseElement

from model_catalog.domain import key_validation
from model_catalog.domain.fields import (
    ATTRIBUTES,
    INSPECTION_FIELDS,
    KEY_FIELDS,
    STORE_FIELDS,
    validate_stored,
)
from model_catalog.domain.file_record import FileState
from model_catalog.domain.search_text import SEARCHED_FIELDS, search_columns
from model_catalog.domain.validation import utc_now
from model_catalog.errors import InvalidModelError
from model_catalog.mapping.child_tables import ALIASES, FILES, TAGS
from model_catalog.mapping.computed_fields import STORED_TAGS, read_tags

_UNKNOWN: Final = object()
"""The old value of an attribute that was set without being loaded."""


def listen_to_flushes(model_class: type[DeclarativeBase]) -> None:
    """Have sessions call the functions below for models that they write."""
    event.listen(model_class, "before_insert", before_insert, propagate=True)
    event.listen(model_class, "before_update", before_update, propagate=True)
    event.listen(model_class, "before_delete", before_delete, propagate=True)
    event.listen(model_class, "expire", on_expire, propagate=True)


def before_insert(_mapper: Mapper[Any], _connection: Connection, model: Any) -> None:
    """Validate a new row, and complete it as `register_model` does."""
    attributes = vars(model)
    values = {
        name: attributes[attribute]
        for name, attribute in ATTRIBUTES.items()
        if attribute in attributes
    }
    row = _validate(values)
    _validate_key(model)
    if row.get("downloaded_at") is None:
        row["downloaded_at"] = utc_now()
    _set_attributes(model, row)
    # Otherwise an AsyncSession could not read the tags after the flush.
    set_committed_value(model, STORED_TAGS, ())


def before_update(_mapper: Mapper[Any], connection: Connection, model: Any) -> None:
    """Validate the changed fields of a row, reset what they invalidate, and rename its aliases."""
    old = _old_values(model)
    row = _validate({name: vars(model).get(ATTRIBUTES[name]) for name in old})
    if not old.keys().isdisjoint(KEY_FIELDS):
        _validate_key(model)
    _set_attributes(model, {**_reset_stale_results(row, old), **row})
    if not old.keys().isdisjoint(("host", "provider", "reference")):
        names = {name: getattr(model, name) for name in ("host", "provider", "reference")}
        connection.execute(update(ALIASES).where(ALIASES.c.model_id == model.id).values(names))
    # A flush expires the attribute if it was not loaded.
    set_committed_value(model, STORED_TAGS, read_tags(model))


def before_delete(_mapper: Mapper[Any], connection: Connection, model: Any) -> None:
    """Delete the rows that belong to a model, on a connection that does not cascade by itself."""
    if connection.dialect.name != "sqlite":
        return
    if connection.exec_driver_sql("PRAGMA foreign_keys").scalar():
        return
    for child in (TAGS, FILES, ALIASES):
        connection.execute(delete(child).where(child.c.model_id == model.id))


def on_expire(model: Any, attributes: Iterable[str] | None) -> None:
    """Forget the tags that the catalog has read, if a session expires the whole object."""
    if attributes is None and hasattr(model, "_tags"):
        del model._tags  # noqa: SLF001 - a slot of Model


def _old_values(model: Any) -> dict[str, Any]:
    """Return the fields that were set to another value, each with its old value."""
    state = inspect(model)
    unmodified = state.unmodified
    histories = {
        name: state.attrs[attribute].history
        for name, attribute in ATTRIBUTES.items()
        if attribute not in unmodified
    }
    return {
        name: history.deleted[0] if history.deleted else _UNKNOWN
        for name, history in histories.items()
        if history.has_changes()
    }


def _validate(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values to store, and their case-folded copies. Raises InvalidModelError."""
    row = {
        name: value if _is_sql(value) else validate_stored(name, value)
        for name, value in values.items()
    }
    for name in SEARCHED_FIELDS:
        if _is_sql(row.get(name)):
            raise InvalidModelError(
                name, row[name], "is an SQL expression, which a search cannot find: set a text"
            )
    return row | search_columns(row)


def _validate_key(model: Any) -> None:
    """Validate the length of a whole key. Raises InvalidModelError."""
    key = [getattr(model, name) for name in KEY_FIELDS]
    if all(isinstance(text, str) for text in key):
        key_validation.key(*key)


def _is_sql(value: object) -> bool:
    return isinstance(value, ClauseElement) or hasattr(value, "__clause_element__")


def _set_attributes(model: Any, row: Mapping[str, Any]) -> None:
    for name, value in row.items():
        setattr(model, ATTRIBUTES.get(name, name), value)


def _reset_stale_results(row: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the fields to reset, with their values.

    The rule is that of `reset_stale_results` in repository/statements/models.py. An old value that
    was not loaded counts as another value.
    """
    is_moved = "local_path" in old
    is_resized = "size_bytes" in old and None not in (row["size_bytes"], old["size_bytes"])
    is_other_digest = "digest" in old and old["digest"] is not None
    reset: dict[str, Any] = {}
    if is_moved or is_resized or is_other_digest:
        reset |= {**dict.fromkeys(INSPECTION_FIELDS), "state": FileState.UNCHECKED}
    if is_moved:
        reset |= dict.fromkeys(STORE_FIELDS)
    if is_resized:
        reset["digest"] = None
    return reset

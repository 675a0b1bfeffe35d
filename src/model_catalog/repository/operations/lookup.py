"""Find, update, rename and remove one model by its key."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    delete,
    literal,
    select,
)
from sqlalchemy.exc import IntegrityError

from model_catalog.connection.database_info import host_of
from model_catalog.connection.error_mapping import (
    is_duplicate,
    is_foreign_key_violation,
    referring_table,
)
from model_catalog.domain import fields, key_validation, validation
from model_catalog.domain.model_ref import ModelRef, resolve_name
from model_catalog.domain.search_text import search_columns
from model_catalog.errors import InvalidModelError, ModelInUseError, ModelNotFoundError
from model_catalog.execution.executor import Operation, lookup, read, write
from model_catalog.execution.observation.changed_rows import (
    ChangedRows,
    delete_recorded,
    is_recording,
    recording,
    records_changes,
)
from model_catalog.execution.prepared_statement import sqlite_driver
from model_catalog.mapping.child_tables import ALIASES, FILES, TAGS
from model_catalog.mapping.tables import Model
from model_catalog.repository.statements.batches import fetch_only_candidates, fetch_rows_by_keys
from model_catalog.repository.statements.filters import MODELS, model_columns, of_host
from model_catalog.repository.statements.model_key import select_model_id, select_several_versions
from model_catalog.repository.statements.model_uses import find_referring_table, require_unused
from model_catalog.repository.statements.models import (
    reset_stale_results,
    select_by_id,
    select_by_key,
    select_only_candidate,
)
from model_catalog.repository.statements.row_conversion import to_model, to_model_of_server


class LookupKey(NamedTuple):
    """A validated key; `version` may be an alias, and None means the version downloaded last."""

    reference: str
    provider: str
    version: str | None

    @classmethod
    def validated(
        cls, reference: object, provider: object = None, version: object = None
    ) -> LookupKey:
        """Return the key that the arguments of a call name, see `resolve_name`."""
        return cls(*resolve_name(reference, provider, version))

    @property
    def parameters(self) -> dict[str, str | None]:
        """The parameters of a prepared statement, in a new dict without the host."""
        # `_asdict` takes 0.3 us longer, of the 20 us of a lookup.
        return {"reference": self.reference, "provider": self.provider, "version": self.version}

    @property
    def ref(self) -> ModelRef:
        """The name as one text can state it."""
        return ModelRef(self.provider, self.reference, self.version)

    @property
    def text(self) -> str:
        """The name in a message, also one that can no longer be recorded, such as a blank one."""
        if self.reference.strip() and self.provider.strip():
            return str(self.ref)
        return f"{self.provider}:{self.reference}"

    def select_id(self, connection: Connection) -> Select[int]:
        """Return a SELECT of the id of the model that the key means on the catalog's host."""
        return select_model_id(host_of(connection), self.provider, self.reference, self.version)

    def not_found(self) -> ModelNotFoundError:
        """Return the error for a key that no model has."""
        return ModelNotFoundError(self.reference, self.provider, self.version)


def find(key: LookupKey) -> Operation[LookupKey, Model | None]:
    """Return the operation that finds the model that a key means."""
    return lookup(find_one, key, find_many)


def find_one(connection: Connection, key: LookupKey) -> Model | None:
    """Return the model that a key means, or None."""
    driver = sqlite_driver(connection)
    if driver is not None:
        # A reference usually has one model, and a version is usually exact. The statement for that
        # takes less time than the one for the whole rule. On other drivers it would cost one more
        # round trip.
        dialect = connection.dialect
        values = key.parameters
        values["host"] = host_of(connection)
        candidate = select_only_candidate(dialect.name, newest=key.version is None)
        rows = candidate.fetch_all_from_driver(driver, dialect, values)
        if len(rows) == 1:
            return to_model(rows[0])
    return _find_by_rule(connection, key)


def _find_by_rule(connection: Connection, key: LookupKey) -> Model | None:
    dialect = connection.dialect.name
    values = {**key.parameters, "host": host_of(connection)}
    rows = select_by_key(dialect, newest=key.version is None).fetch_all(connection, values)
    convert = to_model if dialect == "sqlite" else to_model_of_server
    return convert(rows[0]) if rows else None


def find_many(connection: Connection, keys: Sequence[LookupKey]) -> list[Model | None]:
    """Return the model that each key means, or None; usually in one statement."""
    if connection.dialect.name == "sqlite":
        found = fetch_only_candidates(connection, keys)
        return [
            to_model(row) if (row := found.get(key)) else _find_by_rule(connection, key)
            for key in keys
        ]
    rows = fetch_rows_by_keys(connection, [key.parameters for key in keys])
    return [None if row is None else to_model_of_server(row) for row in rows]


def find_by_id(model_id: int) -> Operation[int, Model | None]:
    """Return the operation that finds the model with an id."""
    return lookup(find_one_by_id, validation.row_id("model_id", model_id))


def find_one_by_id(connection: Connection, model_id: int) -> Model | None:
    """Return the model with an id, or None."""
    values = {"id": model_id, "host": host_of(connection)}
    rows = select_by_id(connection.dialect.name).fetch_all(connection, values)
    return to_model(rows[0]) if rows else None


def update(key: LookupKey, changes: Mapping[str, object]) -> Operation[Any, Model]:
    """
    Return the operation that sets fields of one model and returns it.

    Without changes it only finds the model.
    """
    values = fields.validate_update(changes)
    if not values:
        return lookup(get_one, key)
    new = {name: literal(value, model_columns[name].type) for name, value in values.items()}
    return set_columns(key, {**values, **search_columns(values), **reset_stale_results(new)})


def get_one(connection: Connection, key: LookupKey) -> Model:
    """Return the model that a key means. Raises ModelNotFoundError."""
    model = find_one(connection, key)
    if model is None:
        raise key.not_found()
    return model


def set_columns(key: LookupKey, values: Mapping[str, Any]) -> Operation[Any, Model]:
    """Return the operation that sets columns of one model and returns it."""
    return write(set_columns_of_one, (key, values))


@records_changes
def set_columns_of_one(
    connection: Connection, key_and_values: tuple[LookupKey, Mapping[str, Any]]
) -> Model:
    """Set columns of the model that a key means, and return it. Raises ModelNotFoundError."""
    key, values = key_and_values
    which: Any = key.select_id(connection).scalar_subquery()
    rows = ChangedRows()
    if is_recording():
        which = get_model_id(connection, key)
        rows = ChangedRows(ids=[which])
    statement = MODELS.update().where(model_columns.id == which).values(values)
    with recording(connection, rows):
        model_id = connection.scalar(statement.returning(model_columns.id))
    if model_id is None:
        raise key.not_found()
    return load_model(connection, model_id)


class _NewName(NamedTuple):
    """The new reference and the new version of a model; None keeps the old one."""

    reference: str | None
    version: str | None


def rename(
    key: LookupKey, new_reference: str | None, new_version: str | None
) -> Operation[Any, Model]:
    """Return the operation that gives a model another reference, version or both."""
    if new_reference is None and new_version is None:
        problem = "is missing: give new_reference, new_version or both"
        raise InvalidModelError("new_reference", None, problem)
    name = _NewName(
        None if new_reference is None else key_validation.reference("new_reference", new_reference),
        None if new_version is None else key_validation.version("new_version", new_version),
    )
    return write(rename_one, (key, name))


@records_changes
def rename_one(connection: Connection, key_and_name: tuple[LookupKey, _NewName]) -> Model:
    """
    Rename a model and the reference of its aliases, and return it.

    Raises ModelNotFoundError, and InvalidModelError if the name is taken or changes an alias.
    """
    key, name = key_and_name
    model_id = get_model_id(connection, key)
    provider, reference, version, store = connection.execute(
        select(
            model_columns.provider,
            model_columns.reference,
            model_columns.version,
            model_columns.store,
        ).where(model_columns.id == model_id)
    ).one()
    new = LookupKey(
        reference if name.reference is None else name.reference,
        provider,
        version if name.version is None else name.version,
    )
    key_validation.key(new.provider, new.reference, new.version or "")
    if new == (reference, provider, version):
        return load_model(connection, model_id)
    if store is not None:
        problem = (
            "contains the model, and its next scan would record the old name again: set an alias"
        )
        raise InvalidModelError("store", store, problem)
    try:
        _require_free_name(connection, model_id, new)
        connection.execute(
            ALIASES.update().where(ALIASES.c.model_id == model_id).values(reference=new.reference)
        )
        values = {"reference": new.reference, "version": new.version}
        which = model_columns.id == model_id
        statement = MODELS.update().where(which).values({**values, **search_columns(values)})
        with recording(connection, ChangedRows(ids=[model_id])):
            connection.execute(statement)
    except IntegrityError as error:
        if not is_duplicate(error):
            raise
        # Another transaction took the name, or one of the aliases, since the statements before.
        raise _taken_error(new) from error
    return load_model(connection, model_id)


def _require_free_name(connection: Connection, model_id: int, new: LookupKey) -> None:
    """
    Raise InvalidModelError if another model has a name, or if an alias would change its meaning.

    A version has priority over an alias, so the two must not meet unless they mean the same model.
    """
    of_reference = and_(
        of_host(connection),
        model_columns.provider == new.provider,
        model_columns.reference == new.reference,
    )
    alias_of_reference = and_(
        ALIASES.c.host == host_of(connection),
        ALIASES.c.provider == new.provider,
        ALIASES.c.reference == new.reference,
    )
    own_aliases = select(ALIASES.c.alias).where(ALIASES.c.model_id == model_id)
    is_other_model = model_columns.id != model_id
    if connection.scalar(
        select(model_columns.id).where(
            of_reference, model_columns.version == new.version, is_other_model
        )
    ):
        raise _taken_error(new)
    taken = connection.scalar(
        select(ALIASES.c.alias)
        .where(
            alias_of_reference,
            ALIASES.c.model_id != model_id,
            (ALIASES.c.alias == new.version) | ALIASES.c.alias.in_(own_aliases),
        )
        .union_all(
            select(model_columns.version).where(
                of_reference, is_other_model, model_columns.version.in_(own_aliases)
            )
        )
        .limit(1)
    )
    if taken is not None:
        raise InvalidModelError(
            "alias",
            taken,
            f"would mean another model of {new.provider}:{new.reference}: move or remove it first",
        )


def _taken_error(new: LookupKey) -> InvalidModelError:
    ref = ModelRef(new.provider, new.reference, new.version)
    return InvalidModelError(
        "the name", str(ref), "is taken by another model: choose another name, or remove that model"
    )


def remove(key: LookupKey, *, cascades: bool) -> Operation[Any, bool]:
    """
    Return the operation that deletes one model, or without a version all versions of it.

    `cascades` is whether the database itself deletes the rows of child tables. The operation
    returns whether there was a model. It raises ModelInUseError if a process uses the model, or a
    table of another program refers to it.
    """
    return write(remove_models if cascades else remove_models_and_children, key)


@records_changes
def remove_models(connection: Connection, key: LookupKey) -> bool:
    """Delete the models that a key means; return whether there was one."""
    return delete_models(connection, _models_to_remove(connection, key), key.text, cascades=True)


@records_changes
def remove_models_and_children(connection: Connection, key: LookupKey) -> bool:
    """Delete as `remove_models` does, in a database that does not delete child rows by itself."""
    return delete_models(connection, _models_to_remove(connection, key), key.text, cascades=False)


def delete_models(
    connection: Connection, which: ColumnElement[bool], name: str, *, cascades: bool
) -> bool:
    """
    Delete the models that a condition selects; return whether there was one.

    `name` is their name in the error if one is in use. Raises ModelInUseError.
    """
    # Before the first change: a host's transaction keeps what an operation has changed.
    require_unused(connection, which, name)
    if not cascades:
        removed = select(model_columns.id).where(which)
        for child in (TAGS, ALIASES, FILES):
            connection.execute(delete(child).where(child.c.model_id.in_(removed)))
    try:
        return delete_recorded(connection, delete(MODELS).where(which))
    except IntegrityError as error:
        table = referring_table(error) or find_referring_table(connection, which)
        if table is None and not is_foreign_key_violation(error):
            raise
        raise ModelInUseError(table, name) from error


def _models_to_remove(connection: Connection, key: LookupKey) -> ColumnElement[bool]:
    if key.version is not None:
        return model_columns.id == key.select_id(connection).scalar_subquery()
    return and_(
        of_host(connection),
        model_columns.provider == key.provider,
        model_columns.reference == key.reference,
    )


def get_model_id(connection: Connection, key: LookupKey, *, lock: bool = True) -> int:
    """
    Return the id of the model that a key means. Raises ModelNotFoundError.

    With `lock` the row is locked until the transaction ends, so that it cannot be removed.
    """
    # SQLite has no FOR UPDATE, and SQLAlchemy leaves it out there: a write transaction is alone.
    select_id = key.select_id(connection)
    model_id = connection.scalar(select_id.with_for_update() if lock else select_id)
    if model_id is None:
        raise key.not_found()
    return model_id


def load_model(connection: Connection, model_id: int) -> Model:
    """Return the model with an id that exists on the catalog's host."""
    values = {"id": model_id, "host": host_of(connection)}
    (row,) = select_by_id(connection.dialect.name).fetch_all(connection, values)
    return to_model(row)


def find_several_versions(
    names: Collection[tuple[str, str]],
) -> Operation[Any, set[tuple[str, str]]]:
    """
    Return the operation that finds which names, (provider, reference), have several versions.

    Of many names it reads the key of every model of the host, and else only the keys of the names.
    """
    return read(select_several_versions, names)

"""The rows of models, read and written: what every part of the repository stands on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from itertools import groupby
from typing import Any, Final, NamedTuple, cast

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Table,
    Update,
    bindparam,
    case,
    delete,
    func,
    literal,
    null,
    or_,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite

from model_catalog.domain import fields, validation
from model_catalog.domain.fields import KEY_FIELDS
from model_catalog.domain.file_record import FileState
from model_catalog.errors import ModelNotFoundError
from model_catalog.execution.executor import Executor
from model_catalog.execution.prepared_statement import PreparedStatement, Row, raw_column
from model_catalog.mapping.tables import Model, ModelAlias
from model_catalog.repository.operations.registration import StatementKey, UpsertRow
from model_catalog.repository.statements.filters import (
    EFFECTIVE_COLUMNS,
    FILES,
    MODELS,
    TAGS,
    model_columns,
)
from model_catalog.repository.statements.postgres_batches import (
    array_parameters,
    array_table,
    find_many,
    load_tags,
)
from model_catalog.repository.statements.row_conversion import (
    model_from_insert,
    select_models,
    string_agg,
    to_model,
    to_models,
)

ALIASES: Final = cast("Table", ModelAlias.__table__)
_ID_AT: Final = list(EFFECTIVE_COLUMNS).index("id")
_KEY_AT: Final = [list(EFFECTIVE_COLUMNS).index(name) for name in KEY_FIELDS]


class Key(NamedTuple):
    """Which model is meant, checked; `version` may be an alias, and None is the newest."""

    reference: str
    provider: str
    version: str | None

    @classmethod
    def of(cls, reference: object, provider: object, version: object) -> Key:
        """Raises InvalidModelError for what can name no model."""
        return cls(
            validation.lookup_text("reference", reference),
            validation.lookup_text("provider", provider),
            None if version is None else validation.lookup_text("version", version),
        )

    @property
    def every_version(self) -> list[ColumnElement[bool]]:
        """The condition for all versions of it."""
        return [model_columns.provider == self.provider, model_columns.reference == self.reference]

    @property
    def model_id(self) -> Select[int]:
        """The id of the one that is meant, or no row: an exact version wins, then an alias."""
        return _meant(self.provider, self.reference, self.version)

    @property
    def values(self) -> dict[str, str | None]:
        """Its parts by their names."""
        return {"provider": self.provider, "reference": self.reference, "version": self.version}


def _meant(provider: Any, reference: Any, version: Any) -> Select[int]:
    ids = select(model_columns.id).where(
        model_columns.provider == provider, model_columns.reference == reference
    )
    if version is None:
        return ids.order_by(
            model_columns.downloaded_at.desc().nulls_last(), model_columns.id.desc()
        ).limit(1)
    aliased = select(ALIASES.c.model_id).where(
        ALIASES.c.provider == provider,
        ALIASES.c.reference == reference,
        ALIASES.c.alias == version,
    )
    exact = model_columns.version == version
    meant = exact | (model_columns.id == aliased.scalar_subquery())
    return ids.where(meant).order_by(exact.desc()).limit(1)


@cache
def select_by_key(dialect: str, *, newest: bool) -> PreparedStatement:
    """What is known of the model that a key's values mean; the newest where it has no version."""
    provider, reference, version = (
        bindparam(name, type_=model_columns[name].type) for name in KEY_FIELDS
    )
    meant = _meant(provider, reference, None if newest else version)
    # Nearly always there is one of that reference, or of that version.
    alone = select_models(dialect).where(
        model_columns.provider == provider, model_columns.reference == reference
    )
    alone = alone.limit(2) if newest else alone.where(model_columns.version == version)
    return PreparedStatement(
        select_models(dialect).where(model_columns.id == meant.scalar_subquery()),
        of_several=find_many,
        sooner=PreparedStatement(alone),
    )


@cache
def _one_by_id(dialect: str) -> PreparedStatement:
    return PreparedStatement(
        select_models(dialect).where(
            model_columns.id == bindparam("id", type_=model_columns.id.type)
        )
    )


# Every combination of fields that a program sets is a statement; it has a handful of them.
@lru_cache(maxsize=64)
def _upsert(
    dialect: str, names: tuple[str, ...], changed: tuple[str, ...], *, tells: bool
) -> PreparedStatement:
    upsert = _upserting(insert_into(MODELS, dialect), changed)
    return PreparedStatement(
        upsert.returning(*_returning_columns(dialect)) if tells else upsert, names
    )


@lru_cache(maxsize=64)
def _insert(dialect: str, names: tuple[str, ...]) -> PreparedStatement:
    insert = insert_into(MODELS, dialect)
    return PreparedStatement(insert.on_conflict_do_nothing(index_elements=KEY_FIELDS), names)


@lru_cache(maxsize=64)
def _upsert_several(names: tuple[str, ...], changed: tuple[str, ...]) -> PreparedStatement:
    rows = array_table(model_columns[name] for name in names)
    insert = postgresql.insert(MODELS).from_select(
        names, select(*(rows.c[name] for name in names)), include_defaults=False
    )
    return PreparedStatement(
        _upserting(insert, changed).returning(*_returning_columns("postgresql"))
    )


def _upserting(
    insert: sqlite.Insert | postgresql.Insert, changed: tuple[str, ...]
) -> sqlite.Insert | postgresql.Insert:
    new: dict[str, ColumnElement[Any]] = {name: insert.excluded[name] for name in changed}
    new |= reset_stale_results(new)
    new["download_count"] = saturating_add(model_columns.download_count)
    return insert.on_conflict_do_update(index_elements=KEY_FIELDS, set_=new)


def _returning_columns(dialect: str) -> Sequence[ColumnElement[Any]]:
    # In RETURNING a subquery is of no row of the table in particular: the tags come by themselves.
    *fields_of_it, _ = select_models(dialect).selected_columns
    return fields_of_it


@cache
def _tags_of(dialect: str) -> PreparedStatement:
    of_it = TAGS.c.model_id == bindparam("id", type_=model_columns.id.type)
    return PreparedStatement(select(raw_column(string_agg(dialect, TAGS.c.tag))).where(of_it))


def insert_into(table: Table, dialect: str) -> sqlite.Insert | postgresql.Insert:
    """An INSERT as a database has it: both have ON CONFLICT, and SQLAlchemy has two of them."""
    insert: sqlite.Insert | postgresql.Insert = (
        sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)
    )
    return insert


class Records:
    """Somewhere to work, and the few steps that the operations on models share."""

    _work: Executor

    def _model(self, connection: Connection, model_id: int) -> Model:
        (row,) = _one_by_id(self._work.database.dialect).rows(connection, {"id": model_id})
        return to_model(row)

    def _store(self, connection: Connection, registration: UpsertRow) -> Model:
        """Register a model; return it as it is recorded."""
        # What is new is known without being read again, and has no tags: that is half of the time.
        new_id = _insert(self._work.database.dialect, registration.names).inserted_id(
            connection, registration.row
        )
        if new_id is not None:
            return model_from_insert(new_id, registration.row)
        upsert = self._upsert(registration.shape, tells=True)
        (row,) = upsert.rows(connection, registration.row)
        (tags,) = _tags_of(self._work.database.dialect).rows(connection, {"id": row[_ID_AT]})
        return to_model([*row, *tags])

    def _id(self, connection: Connection, key: Key, *, lock: bool = True) -> int:
        """The id of the model that is meant, which stays until the transaction ends if locked."""
        # SQLite has no FOR UPDATE, and no need of it: a transaction that writes is alone.
        which = key.model_id.with_for_update() if lock else key.model_id
        model_id = connection.scalar(which)
        if model_id is None:
            raise ModelNotFoundError(key.reference, key.provider, key.version)
        return model_id

    async def _change(
        self, key: Key, values: Mapping[str, Any], *more: ColumnElement[bool]
    ) -> Model:
        """Set columns of one model, and return it. Raises ModelNotFoundError."""
        statement: Update = (
            MODELS.update()
            .where(model_columns.id == key.model_id.scalar_subquery(), *more)
            .values(values)
        )

        def unit(connection: Connection) -> Model:
            model_id = connection.scalar(statement.returning(model_columns.id))
            if model_id is None:
                raise ModelNotFoundError(key.reference, key.provider, key.version)
            return self._model(connection, model_id)

        return await self._work.write(unit)

    def _lies_at(self, path: ColumnElement[str]) -> ColumnElement[bool]:
        """Whether a row has this path; in an old SQLite file it may be a blob, equal to no text."""
        if self._work.database.dialect == "sqlite":
            return or_(
                model_columns.local_path == path, func.typeof(model_columns.local_path) == "blob"
            )
        return model_columns.local_path == path

    def _insert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        return insert_into(table, self._work.database.dialect)

    def _upsert(self, shape: StatementKey, *, tells: bool) -> PreparedStatement:
        """What stores models, and perhaps tells what is known of one afterwards."""
        return _upsert(self._work.database.dialect, *shape, tells=tells)

    def _forget(self, connection: Connection, *which: ColumnElement[bool]) -> int:
        """Delete models with everything that hangs on them; return how many there were."""
        if not self._work.database.cascades:
            gone = select(model_columns.id).where(*which)
            for table in (TAGS, ALIASES, FILES):
                connection.execute(delete(table).where(table.c.model_id.in_(gone)))
        return len(
            connection.execute(delete(MODELS).where(*which).returning(model_columns.id)).all()
        )


def register_batch(connection: Connection, registrations: Sequence[UpsertRow]) -> list[Model]:
    """
    Register models on PostgreSQL, one after the other; return each as it is recorded then.

    In few statements: of all that are of one shape, and next to one another by their keys, one. In
    that order everybody takes the rows, and so nobody waits for one who waits for him.
    """
    rows: dict[int, Row] = {}
    for batch in _group_by_statement(registrations):
        chosen = [registrations[at] for at in batch]
        names, changed = chosen[0].shape
        values = array_parameters(names, [each.row for each in chosen])
        stored_rows = _upsert_several(names, changed).rows(connection, values)
        by_key = {tuple(row[at] for at in _KEY_AT): row for row in stored_rows}
        rows |= {at: by_key[each.key] for at, each in zip(batch, chosen, strict=True)}
    tags = load_tags(connection, [row[_ID_AT] for row in rows.values()])
    ordered = (rows[at] for at in range(len(registrations)))
    return to_models([*row, tags.get(row[_ID_AT])] for row in ordered)


def _group_by_statement(registrations: Sequence[UpsertRow]) -> Iterator[list[int]]:
    """Which of them go together: in no statement may a key be twice."""
    waiting = sorted(range(len(registrations)), key=lambda at: registrations[at].key)
    while waiting:
        firsts = [next(same) for _, same in groupby(waiting, lambda at: registrations[at].key)]
        for _, alike in groupby(firsts, lambda at: registrations[at].shape):
            yield list(alike)
        taken = set(firsts)
        waiting = [at for at in waiting if at not in taken]


def reset_stale_results(new: Mapping[str, ColumnElement[Any]]) -> dict[str, ColumnElement[Any]]:
    """
    What else becomes of a row that is about to be given these values.

    Of another path, size or digest nothing was found yet; and the bytes of another size have
    another digest. What is unknown now or was unknown before speaks against nothing. What its user
    says lies at another path is no longer a part of the store in which it was.
    """
    if not new.keys() & {"local_path", "size_bytes", "digest"}:
        return {}
    # To SQL what is unequal to NULL is neither true nor false, and CASE takes that for false.
    others = [
        model_columns[name] != new[name] for name in ("local_path", "size_bytes") if name in new
    ]
    if "digest" in new:
        others.append(
            model_columns.digest.is_not(None) & model_columns.digest.is_distinct_from(new["digest"])
        )
    anew = or_(*others)
    changed: dict[str, ColumnElement[Any]] = {
        name: case((anew, null()), else_=model_columns[name])
        for name in fields.INSPECTION_FIELDS
        if name != "state"
    }
    changed["state"] = case(
        (anew, literal(FileState.UNCHECKED, model_columns.state.type)), else_=model_columns.state
    )
    if "local_path" in new:
        moved = model_columns.local_path != new["local_path"]
        changed |= {
            name: case((moved, null()), else_=model_columns[name]) for name in fields.STORE_FIELDS
        }
    if "size_bytes" in new:
        changed["digest"] = case(
            (model_columns.size_bytes != new["size_bytes"], null()), else_=model_columns.digest
        )
    return {name: value for name, value in changed.items() if name not in new}


def saturating_add(column: ColumnElement[int], more: int = 1) -> ColumnElement[int]:
    """
    A count that goes up, and stands still before it overflows.

    To SQLite a sum beyond 2**63 is a floating-point number.
    """
    return case((column <= validation.MAX_SIZE - more, column + more), else_=validation.MAX_SIZE)

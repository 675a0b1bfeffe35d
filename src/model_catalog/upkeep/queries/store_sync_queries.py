"""Bulk queries that synchronise one external model store with the catalog."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from sqlalchemy import (
    Connection,
    Text,
    bindparam,
    delete,
    select,
    type_coerce,
)

from model_catalog.connection.database_info import host_of
from model_catalog.domain.fields import KEY_FIELDS, UNIQUE_COLUMNS
from model_catalog.domain.file_record import BEING_DELETED, FileRecord
from model_catalog.execution.executor import read, write_alone
from model_catalog.execution.observation.changed_rows import ChangedRows, changes, rows_with_alias
from model_catalog.mapping.child_tables import ALIASES, FILES
from model_catalog.mapping.search_index.indexing import MAX_WAITING, index_if_many_wait
from model_catalog.repository.model_catalog import ModelCatalog, executor_of
from model_catalog.repository.statements.filters import MODELS, model_columns, of_host, own_models
from model_catalog.repository.statements.models import insert_into
from model_catalog.repository.statements.totals.model_totals import count_new_models
from model_catalog.upkeep.queries.label_copies import LabelCopy, copy_labels

F: Final = FILES.c
A: Final = ALIASES.c

T = TypeVar("T")

Row: TypeAlias = Sequence[Any]
ModelKey: TypeAlias = tuple[str, str, str]
"""Provider, reference and version."""
AliasKey: TypeAlias = tuple[str, str, str]
"""Provider, reference and alias."""

MODEL_COLUMNS: Final = (
    "id",
    *KEY_FIELDS,
    "local_path",
    "size_bytes",
    "state",
    "state_detail",
    "mount_point",
    "digest",
    "found_digest",
    "incomplete_reason",
    "unknown_reason",
    "listing_reason",
    "content_reason",
    "verified_at",
    "inventoried_at",
    "headers_read_at",
    "store",
    "store_root",
    "managed_root",
    "claimed_kind",
)
FILE_COLUMNS: Final = (
    "model_id",
    *("path", "size_bytes", "role", "digest", "found_digest", "fingerprint", "hashed_at"),
    *("file_id", "disk_bytes"),
)
# Type conversion of these takes longer than the rest of the query.
_RAW_COLUMNS: Final = {
    *("local_path", "mount_point", "store_root", "managed_root", "path", "state"),
    *("hashed_at", "verified_at", "inventoried_at", "headers_read_at"),
}

# Over a host's sessions the event loop processes the rows; other tasks must run in between.
_BATCH_SIZE: Final = 500
"""Rows in one statement."""

PLAIN_FOLDER: Final = "directory"
"""The store of models in a folder that no program manages."""


@dataclass(frozen=True, slots=True)
class StoreRows:
    """The recorded rows that a scan of a store is compared with."""

    models: Sequence[Row]
    """The columns of MODEL_COLUMNS; paths and times as they are stored."""
    files: Sequence[Row]
    """The columns of FILE_COLUMNS, of all these models."""
    aliases: Mapping[AliasKey, tuple[int, str | None]]
    """The id of the model that each alias points at, and the store that made the alias."""
    plain_roots: Collection[str] = ()
    """The roots at which models of a plain folder belong to the store: see `load_store_rows`."""


@dataclass(frozen=True, slots=True)
class ModelToStore:
    """A model to write: its columns, and its files; None leaves the recorded files unchanged."""

    key: ModelKey
    id: int | None
    """The id of the recorded model; None for a new one."""
    values: Mapping[str, Any]
    files: Sequence[FileRecord] | None
    recorded_key: ModelKey | None = None
    """The key of the recorded model if it gets another one; otherwise None."""
    copied_key: ModelKey | None = None
    """The key of the model that a new one was a part of. It gets that model's labels."""
    copied_id: int | None = None


@dataclass(frozen=True, slots=True)
class AliasChanges:
    """Changes of the aliases that a store makes."""

    store: str
    moved: Mapping[AliasKey, ModelKey]
    """Aliases to create or to move, and the models they point at."""
    removed: Collection[AliasKey]


class _StoreNames(NamedTuple):
    store: str
    root: str
    names: dict[str, list[str]]
    """References by provider."""
    plain_roots: Sequence[str]


class _StoreSync(NamedTuple):
    models: Sequence[ModelToStore]
    aliases: AliasChanges


async def load_store_rows(
    catalog: ModelCatalog,
    store: str,
    root: str,
    names: Iterable[tuple[str, str]],
    plain_roots: Sequence[str] = (),
) -> StoreRows:
    """
    Return the models of a store, and all versions of the given (provider, reference) pairs.

    `plain_roots` are folders whose models an earlier scan recorded as those of a plain folder.
    """
    references: dict[str, list[str]] = {}
    for provider, reference in names:
        references.setdefault(provider, []).append(reference)
    return await executor_of(catalog).run(
        read(select_store_rows, _StoreNames(store, root, references, plain_roots))
    )


def select_store_rows(connection: Connection, wanted: _StoreNames) -> StoreRows:
    """Return the rows of models, their files and their aliases."""
    models = select(*(_raw(model_columns[name]) for name in MODEL_COLUMNS))
    own = own_models(connection)
    files = select(*(_raw(F[name]) for name in FILE_COLUMNS))
    aliases = select(A.provider, A.reference, A.alias, A.model_id, A.store)
    in_store = (model_columns.store == wanted.store) & (model_columns.store_root == wanted.root)
    if wanted.plain_roots:
        in_store |= (model_columns.store == PLAIN_FOLDER) & model_columns.store_root.in_(
            wanted.plain_roots
        )

    rows = {row[0]: row for row in connection.execute(models.where(*own, in_store)).all()}
    for provider, references in wanted.names.items():
        for batch in _batches(references):
            named = models.where(
                of_host(connection),
                model_columns.provider == provider,
                model_columns.reference.in_(batch),
            )
            rows |= {row[0]: row for row in connection.execute(named).all()}
    file_rows: list[Row] = []
    targets: dict[AliasKey, tuple[int, str | None]] = {}
    for ids in _batches(sorted(rows)):
        file_rows += connection.execute(files.where(F.model_id.in_(ids))).all()
        targets |= {
            (row[0], row[1], row[2]): (row[3], row[4])
            for row in connection.execute(aliases.where(A.model_id.in_(ids))).all()
        }
    return StoreRows(list(rows.values()), file_rows, targets, wanted.plain_roots)


async def save_store_sync(
    catalog: ModelCatalog, models: Iterable[ModelToStore], aliases: AliasChanges
) -> set[ModelKey]:
    """
    Write models of a store and their aliases, all or none; return the keys that were not written.

    These are new models whose key was taken since the store rows were loaded, and known models that
    were removed since. An alias that the user has set since is not moved.
    """
    # Sorted by key: all writers lock rows in this order, which prevents deadlocks.
    ordered = sorted(models, key=lambda model: (sorted(model.values), model.key))
    return await executor_of(catalog).run(write_alone(write_store, _StoreSync(ordered, aliases)))


def _rows_of_sync(connection: Connection, value: _StoreSync) -> ChangedRows:
    return ChangedRows(
        rows_with_alias(connection, [*value.aliases.moved, *value.aliases.removed]),
        [model.key for model in value.models if model.id is None],
        [each for model in value.models for each in (model.id, model.copied_id) if each],
    )


@changes(_rows_of_sync, "tags", "aliases", "files")
def write_store(connection: Connection, value: _StoreSync) -> set[ModelKey]:
    """Write models and aliases of a store; return the keys of models that were not written."""
    ids: dict[ModelKey, int] = {}
    for _, alike in groupby(value.models, lambda model: sorted(model.values)):
        for batch in _batches(list(alike)):
            ids |= _insert_models(connection, batch)
            ids |= _update_models(connection, batch)
    _replace_files(connection, value.models, ids)
    copies = [
        LabelCopy(model.copied_id, model.copied_key, ids[model.key], model.key)
        for model in value.models
        if model.copied_id is not None and model.copied_key is not None and model.key in ids
    ]
    copy_labels(connection, copies)
    _update_aliases(connection, value.aliases, ids)
    if connection.dialect.name == "sqlite":
        index_if_many_wait(connection, max(MAX_WAITING, 2 * len(value.models)))
    return {model.key for model in value.models if model.key not in ids}


def _insert_models(connection: Connection, models: Sequence[ModelToStore]) -> dict[ModelKey, int]:
    host = host_of(connection)
    rows = [
        {**model.values, **dict(zip(KEY_FIELDS, model.key, strict=True)), "host": host}
        for model in models
        if model.id is None
    ]
    if not rows:
        return {}
    insert = insert_into(MODELS, connection.dialect.name)
    insert = insert.on_conflict_do_nothing(index_elements=UNIQUE_COLUMNS)
    inserted = connection.execute(
        insert.returning(model_columns.id, *(model_columns[name] for name in KEY_FIELDS)), rows
    )
    ids = {(row[1], row[2], row[3]): row[0] for row in inserted}
    count_new_models(connection)
    return ids


def _update_models(connection: Connection, models: Sequence[ModelToStore]) -> dict[ModelKey, int]:
    known = {model.id: model for model in models if model.id is not None}
    if not known:
        return {}
    keys = select(model_columns.id, *(model_columns[name] for name in KEY_FIELDS)).where(
        model_columns.id.in_(known),
        of_host(connection),
        # Files that the scan has found may be deleted by now.
        model_columns.state_detail.is_distinct_from(BEING_DELETED),
    )
    # The key is compared too: SQLite may give the id of a removed row to a new one.
    existing = {
        row[0]: (row[1], row[2], row[3])
        for row in connection.execute(keys.order_by(model_columns.id).with_for_update())
        if (row[1], row[2], row[3]) == (known[row[0]].recorded_key or known[row[0]].key)
    }
    _rename_aliases(connection, [known[model_id] for model_id in existing])
    values = known[min(known)].values
    if existing and values:
        update = MODELS.update().where(model_columns.id == bindparam("of_id"))
        update = update.values(
            {name: bindparam(f"new_{name}", type_=model_columns[name].type) for name in values}
        )
        rows = [
            {f"new_{name}": value for name, value in known[model_id].values.items()}
            | {"of_id": model_id}
            for model_id in existing
        ]
        connection.execute(update, rows)
    return {known[model_id].key: model_id for model_id in existing}


def _rename_aliases(connection: Connection, models: Sequence[ModelToStore]) -> None:
    """Give the aliases of renamed models their new reference."""
    rows = [
        {"of_id": model.id, "new_reference": model.key[1]}
        for model in models
        if model.recorded_key is not None and model.recorded_key[1] != model.key[1]
    ]
    if rows:
        update = ALIASES.update().where(A.model_id == bindparam("of_id"))
        connection.execute(update.values(reference=bindparam("new_reference")), rows)


def _replace_files(
    connection: Connection, models: Sequence[ModelToStore], ids: Mapping[ModelKey, int]
) -> None:
    listed = [model for model in models if model.files is not None and model.key in ids]
    for batch in _batches([ids[model.key] for model in listed if model.id is not None]):
        connection.execute(delete(FILES).where(F.model_id.in_(batch)))
    rows = (
        {"model_id": ids[model.key]}
        | {name: getattr(file, name) for name in FILE_COLUMNS if name != "model_id"}
        for model in listed
        for file in model.files or ()
    )
    insert = insert_into(FILES, connection.dialect.name)
    # An iterator: the rows of a large store need not be in memory at once.
    while part := list(islice(rows, _BATCH_SIZE)):
        connection.execute(insert, part)


def _update_aliases(
    connection: Connection, changes: AliasChanges, ids: Mapping[ModelKey, int]
) -> None:
    names = ("provider", "reference", "alias")
    host = host_of(connection)
    statement = delete(ALIASES).where(
        A.host == host,
        *(A[name] == bindparam(f"of_{name}", type_=A[name].type) for name in names),
        A.store == changes.store,
    )
    for removed in _batches(sorted(changes.removed)):
        connection.execute(
            statement,
            [dict(zip((f"of_{name}" for name in names), key, strict=True)) for key in removed],
        )
    insert = insert_into(ALIASES, connection.dialect.name)
    upsert = insert.on_conflict_do_update(
        index_elements=("host", *names),
        set_={"model_id": insert.excluded.model_id, "store": insert.excluded.store},
        where=A.store.is_not(None),
    )
    rows = [
        {
            **dict(zip(names, alias, strict=True)),
            "host": host,
            "model_id": ids[key],
            "store": changes.store,
        }
        for alias, key in sorted(changes.moved.items())
        if key in ids
    ]
    for batch in _batches(rows):
        connection.execute(upsert, batch)


def _raw(column: Any) -> Any:
    return type_coerce(column, Text) if column.key in _RAW_COLUMNS else column


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _BATCH_SIZE):
        yield items[start : start + _BATCH_SIZE]

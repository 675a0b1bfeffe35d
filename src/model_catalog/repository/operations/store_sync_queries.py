"""What is recorded of the models in a store, read and written many at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, TypeAlias, TypeVar

from sqlalchemy import Connection, Text, bindparam, delete, select, type_coerce

from model_catalog.domain.fields import KEY_FIELDS
from model_catalog.domain.file_record import FileRecord
from model_catalog.repository.statements.filters import FILES, MODELS, model_columns
from model_catalog.repository.statements.models import ALIASES, Records

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
    "verified_at",
    "inventoried_at",
    "store",
    "store_root",
)
FILE_COLUMNS: Final = (
    "model_id",
    *("path", "size_bytes", "role", "digest", "found_digest", "fingerprint", "hashed_at"),
)

_AT_ONCE: Final = 500
"""Rows in a statement: what becomes of them in the event loop is to take no time there."""


@dataclass(frozen=True, slots=True)
class StoreRows:
    """The rows of models, of their files and of the aliases of their references, as they are."""

    models: Sequence[Row]
    """MODEL_COLUMNS; the paths as they are stored."""
    files: Sequence[Row]
    """FILE_COLUMNS, of the models of which the files are known."""
    aliases: Mapping[AliasKey, tuple[int, str | None]]
    """The id of the model that each points at, and the store that made it."""


@dataclass(frozen=True, slots=True)
class ModelToStore:
    """What is to be recorded of a model: its columns, and its files, which None leaves as they are.

    `id` is that of the row it has; None for a new one.
    """

    key: ModelKey
    id: int | None
    values: Mapping[str, Any]
    files: Sequence[FileRecord] | None


@dataclass(frozen=True, slots=True)
class AliasChanges:
    """What is to become of the aliases that a store makes."""

    store: str
    moved: Mapping[AliasKey, ModelKey]
    removed: Collection[AliasKey]


class Adopting(Records):
    """The operations of an adoption."""

    async def stored(self, store: str, root: str, names: Iterable[tuple[str, str]]) -> StoreRows:
        """The models of a store, and all versions of some providers' references."""
        references: dict[str, list[str]] = {}
        for provider, reference in names:
            references.setdefault(provider, []).append(reference)
        named = [
            (provider, some)
            for provider, those in references.items()
            for some in _parts(those, _AT_ONCE)
        ]
        models = select(*(_raw(model_columns[name]) for name in MODEL_COLUMNS))
        files = select(*(_raw(F[name]) for name in FILE_COLUMNS))
        aliases = select(A.provider, A.reference, A.alias, A.model_id, A.store)
        here = (model_columns.store == store) & (model_columns.store_root == root)

        def unit(connection: Connection) -> StoreRows:
            rows = {row[0]: row for row in connection.execute(models.where(here)).all()}
            for provider, some in named:
                those = models.where(
                    model_columns.provider == provider, model_columns.reference.in_(some)
                )
                rows |= {row[0]: row for row in connection.execute(those).all()}
            listed: list[Row] = []
            pointed: dict[AliasKey, tuple[int, str | None]] = {}
            for ids in _parts(sorted(rows), _AT_ONCE):
                listed += (connection.execute(files.where(F.model_id.in_(ids)))).all()
                those = aliases.where(A.model_id.in_(ids))
                pointed |= {
                    (row[0], row[1], row[2]): (row[3], row[4])
                    for row in connection.execute(those).all()
                }
            return StoreRows(list(rows.values()), listed, pointed)

        return await self._work.read(unit)

    async def store_adoption(
        self, adoptees: Iterable[ModelToStore], pointers: AliasChanges
    ) -> set[ModelKey]:
        """
        Record models of a store, and their aliases, all or none; return those that were not.

        A new one whose name another has taken meanwhile is not recorded, nor is a known one that
        was removed meanwhile; an alias that the user has made his own meanwhile is not moved.
        """
        # By key, so that two processes lock rows in the same order.
        ordered = sorted(adoptees, key=lambda each: (sorted(each.values), each.key))
        shapes = [list(same) for _, same in groupby(ordered, lambda each: sorted(each.values))]

        def unit(connection: Connection) -> set[ModelKey]:
            ids: dict[ModelKey, int] = {}
            for same in shapes:
                for some in _parts(same, _AT_ONCE):
                    ids |= self._insert_models(connection, some)
                    ids |= self._update_models(connection, some)
            self._replace_all_files(connection, ordered, ids)
            self._point(connection, pointers, ids)
            return {each.key for each in ordered if each.key not in ids}

        return await self._work.write_all(unit)

    def _insert_models(
        self, connection: Connection, adoptees: Sequence[ModelToStore]
    ) -> dict[ModelKey, int]:
        rows = [
            {**each.values, **dict(zip(KEY_FIELDS, each.key, strict=True))}
            for each in adoptees
            if each.id is None
        ]
        if not rows:
            return {}
        insert = self._insert(MODELS).on_conflict_do_nothing(index_elements=KEY_FIELDS)
        made = connection.execute(
            insert.returning(model_columns.id, *(model_columns[name] for name in KEY_FIELDS)), rows
        )
        return {(row[1], row[2], row[3]): row[0] for row in made}

    def _update_models(
        self, connection: Connection, adoptees: Sequence[ModelToStore]
    ) -> dict[ModelKey, int]:
        known = {each.id: each for each in adoptees if each.id is not None}
        if not known:
            return {}
        names = select(model_columns.id, *(model_columns[name] for name in KEY_FIELDS)).where(
            model_columns.id.in_(known)
        )
        # SQLite gives the number of a row that was removed to another one.
        still = {
            row[0]: (row[1], row[2], row[3])
            for row in connection.execute(names.order_by(model_columns.id).with_for_update())
            if (row[1], row[2], row[3]) == known[row[0]].key
        }
        values = known[min(known)].values
        if still and values:
            update = MODELS.update().where(model_columns.id == bindparam("of_id"))
            update = update.values(
                {name: bindparam(f"new_{name}", type_=model_columns[name].type) for name in values}
            )
            rows = [
                {f"new_{name}": value for name, value in known[model_id].values.items()}
                | {"of_id": model_id}
                for model_id in still
            ]
            connection.execute(update, rows)
        return {key: model_id for model_id, key in still.items()}

    def _replace_all_files(
        self, connection: Connection, adoptees: Sequence[ModelToStore], ids: Mapping[ModelKey, int]
    ) -> None:
        listed = [each for each in adoptees if each.files is not None and each.key in ids]
        known = [ids[each.key] for each in listed if each.id is not None]
        for some in _parts(known, _AT_ONCE):
            connection.execute(delete(FILES).where(F.model_id.in_(some)))
        rows = (
            {"model_id": ids[each.key]}
            | {name: getattr(file, name) for name in FILE_COLUMNS if name != "model_id"}
            for each in listed
            for file in each.files or ()
        )
        for part in _batches(rows, _AT_ONCE):
            connection.execute(self._insert(FILES), part)

    def _point(
        self, connection: Connection, pointers: AliasChanges, ids: Mapping[ModelKey, int]
    ) -> None:
        names = ("provider", "reference", "alias")
        here = delete(ALIASES).where(
            *(A[name] == bindparam(f"of_{name}", type_=A[name].type) for name in names),
            A.store == pointers.store,
        )
        for removed in _parts(sorted(pointers.removed), _AT_ONCE):
            connection.execute(
                here,
                [dict(zip((f"of_{name}" for name in names), key, strict=True)) for key in removed],
            )
        insert = self._insert(ALIASES)
        upsert = insert.on_conflict_do_update(
            index_elements=names,
            set_={"model_id": insert.excluded.model_id, "store": insert.excluded.store},
            where=A.store.is_not(None),
        )
        rows = [
            {
                **dict(zip(names, alias, strict=True)),
                "model_id": ids[key],
                "store": pointers.store,
            }
            for alias, key in sorted(pointers.moved.items())
            if key in ids
        ]
        for part in _parts(rows, _AT_ONCE):
            connection.execute(upsert, part)


def _raw(column: Any) -> Any:
    """A column as it is stored: what SQLAlchemy makes of a value takes longer than all the rest."""
    return type_coerce(column, Text) if column.key in _AS_STORED else column


_AS_STORED: Final = {"local_path", "mount_point", "store_root", "path", "state", "hashed_at"}


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch

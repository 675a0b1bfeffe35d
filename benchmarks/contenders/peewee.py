"""peewee: synchronous, one connection, in the event loop's thread."""

from __future__ import annotations

from typing import Any

from peewee import AutoField, BigIntegerField, Proxy, SqliteDatabase, TextField, fn
from peewee import Model as Base

from benchmarks.harness.models_table import (
    BUSY_TIMEOUT_S,
    COLUMNS,
    DEFAULTS,
    KEY,
    UNIQUE,
    UPDATED,
    Registration,
    pragmas,
)

DATABASE = Proxy()


class Meta:
    database = DATABASE
    table_name = "models"


Model: Any = type(
    "Model",
    (Base,),
    {
        "Meta": Meta,
        **{
            name: (BigIntegerField if kind is int else TextField)(
                null=name not in DEFAULTS, default=DEFAULTS.get(name)
            )
            for name, kind in COLUMNS.items()
        },
        "id": AutoField(),
    },
)


class PeeweeOrm:
    """A registration is an upsert, as its documentation shows."""

    async def open(self, target: str, durability: str) -> None:
        self._database = SqliteDatabase(target, pragmas=pragmas(durability), timeout=BUSY_TIMEOUT_S)
        DATABASE.initialize(self._database)
        self._database.connect()

    async def close(self) -> None:
        self._database.close()

    async def find(self, reference: str, provider: str) -> Any:
        return Model.get_or_none(*_key(reference, provider), Model.version == "")

    async def register(self, entry: Registration) -> None:
        _upsert([entry])

    async def register_many(self, entries: list[Registration]) -> None:
        with self._database.atomic():
            # SQLite allows 32,766 parameters in a statement, and every column of a row is one.
            for first in range(0, len(entries), 500):
                _upsert(entries[first : first + 500])

    async def list(self) -> Any:
        return list(Model.select().order_by(Model.downloaded_at.desc(nulls="LAST"), *_names()))

    async def page(self, architecture: str, limit: int) -> Any:
        found = Model.select().where(Model.architecture == architecture)
        return list(found.order_by(Model.size_bytes.desc(nulls="LAST"), *_names()).limit(limit))

    async def total(self) -> int:
        return int(Model.select(fn.SUM(Model.size_bytes)).scalar() or 0)

    async def remove(self, reference: str, provider: str) -> bool:
        return bool(Model.delete().where(*_key(reference, provider)).execute())


def _key(reference: str, provider: str) -> tuple[Any, Any, Any]:
    return Model.host == "", Model.provider == provider, Model.reference == reference


def _names() -> list[Any]:
    return [getattr(Model, name) for name in KEY]


def _upsert(entries: list[Registration]) -> None:
    Model.insert_many([entry._asdict() for entry in entries]).on_conflict(
        conflict_target=[getattr(Model, name) for name in UNIQUE],
        preserve=[getattr(Model, name) for name in UPDATED],
        update={Model.download_count: Model.download_count + 1},
    ).execute()

"""Piccolo: on SQLite it opens a connection, with its own thread, for every query."""

from __future__ import annotations

import sqlite3
from typing import Any

from piccolo.columns import BigInt, Text
from piccolo.engine.sqlite import SQLiteEngine
from piccolo.query.functions import Sum
from piccolo.table import Table

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

DATABASE = SQLiteEngine(path="unset.db")

# Piccolo adds the column `id` itself.
Model: Any = type(
    "Model",
    (Table,),
    {
        name: (BigInt if kind is int else Text)(
            null=name not in DEFAULTS, default=DEFAULTS.get(name)
        )
        for name, kind in COLUMNS.items()
        if name != "id"
    },
    tablename="models",
    db=DATABASE,
)


class PiccoloOrm:
    """A registration is an upsert, its only way to update or insert."""

    async def open(self, target: str, durability: str) -> None:
        class Connection(sqlite3.Connection):
            """Sets the PRAGMAs, because Piccolo has no hook for new connections."""

            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, **options)
                for name, value in pragmas(durability).items():
                    self.execute(f"PRAGMA {name} = {value}")

        DATABASE.path = target
        DATABASE.connection_kwargs |= {"factory": Connection, "timeout": BUSY_TIMEOUT_S}

    async def close(self) -> None:
        pass

    async def find(self, reference: str, provider: str) -> Any:
        return await Model.objects().where(*_key(reference, provider), Model.version == "").first()

    async def register(self, entry: Registration) -> None:
        await _upsert([entry])

    async def register_many(self, entries: list[Registration]) -> None:
        async with DATABASE.transaction():
            # SQLite allows 32,766 parameters in a statement, and every column of a row is one.
            for first in range(0, len(entries), 500):
                await _upsert(entries[first : first + 500])

    async def list(self) -> Any:
        ordered = Model.objects().order_by(Model.downloaded_at, ascending=False)
        return await ordered.order_by(*(getattr(Model, name) for name in KEY))

    async def page(self, architecture: str, limit: int) -> Any:
        found = Model.objects().where(Model.architecture == architecture)
        ordered = found.order_by(Model.size_bytes, ascending=False)
        return await ordered.order_by(*(getattr(Model, name) for name in KEY)).limit(limit)

    async def total(self) -> int:
        return int((await Model.select(Sum(Model.size_bytes)).first())["sum"] or 0)

    async def remove(self, reference: str, provider: str) -> bool:
        deleted = Model.delete().where(*_key(reference, provider)).returning(Model.id)
        return bool(await deleted)


def _key(reference: str, provider: str) -> tuple[Any, Any, Any]:
    return Model.host == "", Model.provider == provider, Model.reference == reference


async def _upsert(entries: list[Registration]) -> None:
    await Model.insert(*(Model(**entry._asdict()) for entry in entries)).on_conflict(
        target=tuple(getattr(Model, name) for name in UNIQUE),
        action="DO UPDATE",
        values=[getattr(Model, name) for name in UPDATED],
    )

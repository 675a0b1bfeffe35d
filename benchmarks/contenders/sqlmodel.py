"""SQLModel: a new `AsyncSession` for each call."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, func
from sqlmodel import Field, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from benchmarks.contenders.sqlalchemy import engine_of, upsert
from benchmarks.harness.models_table import COLUMNS, DEFAULTS, KEY, UPDATED, Registration

Model: Any = type(
    "Model",
    (SQLModel,),
    {
        "__module__": __name__,
        "__tablename__": "models",
        "__annotations__": {name: kind | None for name, kind in COLUMNS.items()},
        **{name: Field(default=DEFAULTS.get(name)) for name in COLUMNS},
        "id": Field(default=None, primary_key=True),
    },
    table=True,
)


class SqlModelSessions:
    """Read and change the object or add a new one, then commit."""

    async def open(self, target: str, durability: str) -> None:
        self._engine = engine_of(target, durability)

    async def close(self) -> None:
        await self._engine.dispose()

    async def find(self, reference: str, provider: str) -> Any:
        async with self._session() as session:
            return (await session.exec(_one(provider, reference))).one_or_none()

    async def register(self, entry: Registration) -> None:
        async with self._session() as session:
            known = (await session.exec(_one(entry.provider, entry.reference))).one_or_none()
            if known is None:
                known = Model(**entry._asdict())
            else:
                for name in UPDATED:
                    setattr(known, name, getattr(entry, name))
                known.download_count += 1
            session.add(known)
            await session.commit()

    async def register_many(self, entries: list[Registration]) -> None:
        async with self._session() as session:
            await session.exec(
                upsert(self._engine, Model), params=[entry._asdict() for entry in entries]
            )
            await session.commit()

    async def list(self) -> Any:
        statement = select(Model).order_by(
            Model.downloaded_at.desc().nulls_last(), *(getattr(Model, name) for name in KEY)
        )
        async with self._session() as session:
            return (await session.exec(statement)).all()

    async def page(self, architecture: str, limit: int) -> Any:
        statement = (
            select(Model)
            .where(Model.architecture == architecture)
            .order_by(Model.size_bytes.desc().nulls_last(), *(getattr(Model, name) for name in KEY))
            .limit(limit)
        )
        async with self._session() as session:
            return (await session.exec(statement)).all()

    async def total(self) -> int:
        async with self._session() as session:
            return int((await session.exec(select(func.sum(Model.size_bytes)))).one() or 0)

    async def remove(self, reference: str, provider: str) -> bool:
        statement = delete(Model).where(
            Model.host == "", Model.provider == provider, Model.reference == reference
        )
        async with self._session() as session:
            deleted = await session.exec(statement)
            await session.commit()
            return bool(deleted.rowcount)

    def _session(self) -> AsyncSession:
        return AsyncSession(self._engine, expire_on_commit=False)


def _one(provider: str, reference: str) -> Any:
    return select(Model).where(
        Model.host == "",
        Model.provider == provider,
        Model.reference == reference,
        Model.version == "",
    )

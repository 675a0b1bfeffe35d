"""Advanced Alchemy: a new session and a repository for each call."""

from __future__ import annotations

from typing import Any

from advanced_alchemy.base import DefaultBase
from advanced_alchemy.filters import LimitOffset, OrderBy
from advanced_alchemy.repository import SQLAlchemyAsyncRepository
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from benchmarks.contenders.sqlalchemy import columns, engine_of
from benchmarks.harness.models_table import KEY, UNIQUE, Registration

Model: Any = type("Model", (DefaultBase,), {"__tablename__": "models", **columns()})


class Repository(SQLAlchemyAsyncRepository[Any]):
    model_type = Model


class AdvancedAlchemy:
    """Each call commits with `auto_commit`, as documented for programs without a web framework."""

    async def open(self, target: str, durability: str) -> None:
        self._engine = engine_of(target, durability)
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)

    async def close(self) -> None:
        await self._engine.dispose()

    async def find(self, reference: str, provider: str) -> Any:
        async with self._sessions() as session:
            return await _repository(session).get_one_or_none(
                host="", reference=reference, provider=provider, version=""
            )

    async def register(self, entry: Registration) -> None:
        async with self._sessions() as session:
            await _repository(session).upsert(
                Model(host="", **entry._asdict()), match_fields=list(UNIQUE), auto_refresh=False
            )

    async def register_many(self, entries: list[Registration]) -> None:
        async with self._sessions() as session:
            await _repository(session).upsert_many(
                [Model(host="", **entry._asdict()) for entry in entries], match_fields=list(UNIQUE)
            )

    async def list(self) -> Any:
        newest = OrderBy("downloaded_at", "desc")
        async with self._sessions() as session:
            return await _repository(session).get_many(
                newest, *(OrderBy(name, "asc") for name in KEY)
            )

    async def page(self, architecture: str, limit: int) -> Any:
        order = [OrderBy("size_bytes", "desc"), *(OrderBy(name, "asc") for name in KEY)]
        async with self._sessions() as session:
            return await _repository(session).get_many(
                *order, LimitOffset(limit, 0), architecture=architecture
            )

    async def total(self) -> int:
        async with self._sessions() as session:
            return int(await session.scalar(select(func.sum(Model.size_bytes))) or 0)

    async def remove(self, reference: str, provider: str) -> bool:
        async with self._sessions() as session:
            return bool(
                await _repository(session).delete_where(
                    host="", reference=reference, provider=provider
                )
            )


def _repository(session: AsyncSession) -> Repository:
    return Repository(session=session, auto_commit=True)

"""SQLAlchemy as its tutorials show it: a connection or session for each call, default pool."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Integer,
    MetaData,
    Table,
    Text,
    delete,
    event,
    func,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

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


def columns() -> dict[str, Column[Any]]:
    """All columns of the table, with Python defaults for those that a registration does not set."""
    number = BigInteger().with_variant(Integer(), "sqlite")
    return {
        name: Column(
            name,
            number if kind is int else Text(),
            primary_key=name == "id",
            default=DEFAULTS.get(name),
        )
        for name, kind in COLUMNS.items()
    }


class Base(DeclarativeBase):
    pass


Model: Any = type("Model", (Base,), {"__tablename__": "models", **columns()})
MODELS = Table("models", MetaData(), *columns().values())


def engine_of(target: str, durability: str) -> AsyncEngine:
    """A default engine for a file or a URL. SQLite's connections get the PRAGMAs."""
    if "://" in target:
        return create_async_engine(target)
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{target}", connect_args={"timeout": BUSY_TIMEOUT_S}
    )

    @event.listens_for(engine.sync_engine, "connect")
    def set_pragmas(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        for name, value in pragmas(durability).items():
            cursor.execute(f"PRAGMA {name} = {value}")
        cursor.close()

    return engine


def upsert(engine: AsyncEngine, table: Any) -> Any:
    insert = (sqlite if engine.dialect.name == "sqlite" else postgresql).insert(table)
    changed = {name: insert.excluded[name] for name in UPDATED}
    counted = table.c if isinstance(table, Table) else table
    return insert.on_conflict_do_update(
        index_elements=UNIQUE, set_={**changed, "download_count": counted.download_count + 1}
    )


class Core:
    """`engine.connect()` to read and `engine.begin()` to write. Each call builds its statement."""

    async def open(self, target: str, durability: str) -> None:
        self._engine = engine_of(target, durability)

    async def close(self) -> None:
        await self._engine.dispose()

    async def find(self, reference: str, provider: str) -> Any:
        statement = select(MODELS).where(
            MODELS.c.host == "",
            MODELS.c.provider == provider,
            MODELS.c.reference == reference,
            MODELS.c.version == "",
        )
        async with self._engine.connect() as connection:
            return (await connection.execute(statement)).one_or_none()

    async def register(self, entry: Registration) -> None:
        async with self._engine.begin() as connection:
            await connection.execute(upsert(self._engine, MODELS), entry._asdict())

    async def register_many(self, entries: list[Registration]) -> None:
        async with self._engine.begin() as connection:
            await connection.execute(
                upsert(self._engine, MODELS), [entry._asdict() for entry in entries]
            )

    async def list(self) -> Any:
        statement = select(MODELS).order_by(
            MODELS.c.downloaded_at.desc().nulls_last(), *(MODELS.c[name] for name in KEY)
        )
        async with self._engine.connect() as connection:
            return (await connection.execute(statement)).all()

    async def page(self, architecture: str, limit: int) -> Any:
        statement = (
            select(MODELS)
            .where(MODELS.c.architecture == architecture)
            .order_by(MODELS.c.size_bytes.desc().nulls_last(), *(MODELS.c[name] for name in KEY))
            .limit(limit)
        )
        async with self._engine.connect() as connection:
            return (await connection.execute(statement)).all()

    async def total(self) -> int:
        async with self._engine.connect() as connection:
            return int(await connection.scalar(select(func.sum(MODELS.c.size_bytes))) or 0)

    async def remove(self, reference: str, provider: str) -> bool:
        statement = delete(MODELS).where(
            MODELS.c.host == "", MODELS.c.provider == provider, MODELS.c.reference == reference
        )
        async with self._engine.begin() as connection:
            return (await connection.execute(statement)).rowcount > 0


class Orm:
    """A session for each call: read and change the object or add a new one, then commit."""

    async def open(self, target: str, durability: str) -> None:
        self._engine = engine_of(target, durability)
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)

    async def close(self) -> None:
        await self._engine.dispose()

    async def find(self, reference: str, provider: str) -> Any:
        async with self._sessions() as session:
            return (await session.execute(_one(provider, reference))).scalar_one_or_none()

    async def register(self, entry: Registration) -> None:
        async with self._sessions() as session:
            statement = _one(entry.provider, entry.reference)
            known = (await session.execute(statement)).scalar_one_or_none()
            if known is None:
                session.add(Model(**entry._asdict()))
            else:
                for name in UPDATED:
                    setattr(known, name, getattr(entry, name))
                known.download_count += 1
            await session.commit()

    async def register_many(self, entries: list[Registration]) -> None:
        async with self._sessions() as session:
            await session.execute(
                upsert(self._engine, Model), [entry._asdict() for entry in entries]
            )
            await session.commit()

    async def list(self) -> Any:
        statement = select(Model).order_by(
            Model.downloaded_at.desc().nulls_last(), *(getattr(Model, name) for name in KEY)
        )
        async with self._sessions() as session:
            return (await session.scalars(statement)).all()

    async def page(self, architecture: str, limit: int) -> Any:
        statement = (
            select(Model)
            .where(Model.architecture == architecture)
            .order_by(Model.size_bytes.desc().nulls_last(), *(getattr(Model, name) for name in KEY))
            .limit(limit)
        )
        async with self._sessions() as session:
            return (await session.scalars(statement)).all()

    async def total(self) -> int:
        async with self._sessions() as session:
            return int(await session.scalar(select(func.sum(Model.size_bytes))) or 0)

    async def remove(self, reference: str, provider: str) -> bool:
        statement = delete(Model).where(Model.provider == provider, Model.reference == reference)
        async with self._sessions() as session:
            deleted = await session.execute(statement)
            await session.commit()
            return bool(deleted.rowcount)


def _one(provider: str, reference: str) -> Any:
    return select(Model).where(
        Model.host == "",
        Model.provider == provider,
        Model.reference == reference,
        Model.version == "",
    )

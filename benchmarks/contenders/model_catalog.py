"""model-catalog itself, in the ways that a program can use it. Only public names are used."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, ClassVar

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine

from benchmarks.contenders.sqlalchemy import engine_of
from benchmarks.harness.models_table import Registration
from model_catalog import Model, ModelCatalog, Sort, open_catalog, prepare_engine
from model_catalog.upkeep import adopt, scan_store


def model_of(entry: Registration) -> Model:
    """The fields that a caller sets. The catalog sets `downloaded_at` and the search columns."""
    return Model(
        provider=entry.provider,
        reference=entry.reference,
        local_path=entry.local_path,
        size_bytes=entry.size_bytes,
        format=entry.format,
        architecture=entry.architecture,
        quantization=entry.quantization,
        license=entry.license,
        context_length=entry.context_length,
        parameter_count=entry.parameter_count,
    )


class Catalog:
    """`open_catalog` with its default options."""

    options: ClassVar[dict[str, Any]] = {}

    async def open(self, target: str, durability: str) -> None:
        self._stack = AsyncExitStack()
        opening: Any = open_catalog
        self.catalog: ModelCatalog = await self._stack.enter_async_context(
            opening(self.target(target), durability=durability, **self.options)
        )

    def target(self, target: str) -> str:
        return target

    async def close(self) -> None:
        await self._stack.aclose()

    async def find(self, reference: str, provider: str) -> Any:
        return await self.catalog.find_model(reference, provider)

    async def register(self, entry: Registration) -> None:
        await self.catalog.register_model(model_of(entry))

    async def register_many(self, entries: list[Registration]) -> None:
        await self.catalog.register_models(model_of(entry) for entry in entries)

    async def list(self) -> Any:
        return await self.catalog.list_models()

    async def stream(self) -> AsyncIterator[Any]:
        async for model in self.catalog.iter_models():
            yield model

    async def page(self, architecture: str, limit: int) -> Any:
        return await self.catalog.list_models(
            sort=Sort.SIZE_BYTES, limit=limit, architecture=architecture
        )

    async def newest(self, limit: int) -> Any:
        return await self.catalog.list_models(limit=limit)

    async def total(self) -> int:
        return await self.catalog.get_total_size()

    async def count_behind(self, architecture: str) -> int:
        return await self.catalog.count_models(architecture=architecture)

    async def total_behind(self, architecture: str) -> int:
        return await self.catalog.get_total_size(architecture=architecture)

    async def stats(self) -> Any:
        return await self.catalog.stats()

    async def remove(self, reference: str, provider: str) -> bool:
        return await self.catalog.remove_model(reference, provider)

    async def use(self, entry: Registration) -> None:
        await self.catalog.record_use(entry.reference, entry.provider)


class CatalogOfStores(Catalog):
    """The same, with the scan of another program's store."""

    async def scan_hub_cache(self, root: str) -> int:
        """Scan a cache of huggingface_hub and record it; returns the number of its models."""
        report = await adopt(self.catalog, await scan_store(self.catalog, "huggingface", root))
        return report.model_count


class PsycopgCatalog(Catalog):
    """On PostgreSQL with psycopg instead of asyncpg."""

    def target(self, target: str) -> str:
        return target.replace("+asyncpg", "+psycopg")


class InlineReads(Catalog):
    """With `reads="inline"`: `find_model` reads in the event loop's thread."""

    options: ClassVar[dict[str, Any]] = {"reads": "inline"}

    @staticmethod
    def is_available() -> bool:
        return "reads" in inspect.signature(open_catalog).parameters


class HostSessions(Catalog):
    """`ModelCatalog` over the sessions of a host: the engine that the contender `Orm` has."""

    async def open(self, target: str, durability: str) -> None:
        self._engine = self.engine(target, durability)
        self.catalog = ModelCatalog(async_sessionmaker(self._engine, expire_on_commit=False))

    def engine(self, target: str, durability: str) -> AsyncEngine:
        return engine_of(target, durability)

    async def close(self) -> None:
        await self._engine.dispose()


class PreparedHostSessions(HostSessions):
    """The same after `prepare_engine`."""

    def engine(self, target: str, durability: str) -> AsyncEngine:
        engine = create_async_engine(f"sqlite+aiosqlite:///{target}")
        prepare_engine(engine)

        # prepare_engine() sets synchronous = FULL. A host that wants NORMAL sets it afterwards.
        @event.listens_for(engine.sync_engine, "connect")
        def set_synchronous(connection: Any, _record: Any) -> None:
            connection.cursor().execute(f"PRAGMA synchronous = {durability.upper()}")

        return engine


class PlainRows(Catalog):
    """Models are listed as plain rows and registered as dicts."""

    @staticmethod
    def is_available() -> bool:
        return hasattr(ModelCatalog, "list_rows")

    async def register_many(self, entries: list[Registration]) -> None:
        catalog: Any = self.catalog
        await catalog.register_models(
            {
                "provider": entry.provider,
                "reference": entry.reference,
                "local_path": entry.local_path,
                "size_bytes": entry.size_bytes,
                "format": entry.format,
                "architecture": entry.architecture,
                "quantization": entry.quantization,
                "license": entry.license,
                "context_length": entry.context_length,
                "parameter_count": entry.parameter_count,
            }
            for entry in entries
        )

    async def list(self) -> Any:
        catalog: Any = self.catalog
        return await catalog.list_rows()

    async def stream(self) -> AsyncIterator[Any]:
        catalog: Any = self.catalog
        async for row in catalog.iter_rows():
            yield row

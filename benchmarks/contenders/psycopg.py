"""A PostgreSQL driver: psycopg, with handwritten SQL."""

from __future__ import annotations

from typing import Any, Final

import psycopg_pool

from benchmarks.harness.models_table import FIND, LIST, PAGE, REMOVE, TOTAL, UPSERT, Registration

_POOL_SIZE: Final = 10
"""The default size of asyncpg's pool."""


def with_psycopg_parameters(sql: str) -> str:
    """The statement with psycopg's parameters: %s."""
    return sql.replace("?", "%s")


class Psycopg:
    """psycopg's pool, with as many connections as asyncpg's."""

    async def open(self, target: str, durability: str) -> None:  # noqa: ARG002 - set by the server
        self._pool = psycopg_pool.AsyncConnectionPool(
            target.replace("+asyncpg", ""), min_size=_POOL_SIZE, max_size=_POOL_SIZE, open=False
        )
        await self._pool.open(wait=True)

    async def close(self) -> None:
        await self._pool.close()

    async def find(self, reference: str, provider: str) -> Any:
        async with self._pool.connection() as raw:
            return await (
                await raw.execute(with_psycopg_parameters(FIND), (provider, reference))
            ).fetchone()

    async def register(self, entry: Registration) -> None:
        async with self._pool.connection() as raw:
            await raw.execute(with_psycopg_parameters(UPSERT), entry)

    async def register_many(self, entries: list[Registration]) -> None:
        async with self._pool.connection() as raw, raw.cursor() as cursor:
            await cursor.executemany(with_psycopg_parameters(UPSERT), entries)

    async def list(self) -> Any:
        async with self._pool.connection() as raw:
            return await (await raw.execute(LIST)).fetchall()

    async def page(self, architecture: str, limit: int) -> Any:
        async with self._pool.connection() as raw:
            return await (
                await raw.execute(with_psycopg_parameters(PAGE), (architecture, limit))
            ).fetchall()

    async def total(self) -> int:
        async with self._pool.connection() as raw:
            (total,) = await (await raw.execute(TOTAL)).fetchone() or (0,)
            return int(total)

    async def remove(self, reference: str, provider: str) -> bool:
        async with self._pool.connection() as raw:
            return (
                await raw.execute(with_psycopg_parameters(REMOVE), (provider, reference))
            ).rowcount > 0

"""Databases on a PostgreSQL server, migrated to head, filled, and dropped at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count

import psycopg
from sqlalchemy import URL

from benchmarks.contenders import Installation
from benchmarks.harness.models_table import UPSERT, initial_rows
from benchmarks.versions.installations import migrate
from tests import postgres


class PostgresServer:
    """
    A server with one database for each number of rows and version, and copies.

    They are created on first use.
    """

    def __init__(self, server: URL, stack: ExitStack) -> None:
        self._server = server
        self._stack = stack
        self._databases: dict[tuple[int, str], URL] = {}
        self._copies: dict[str, ExitStack] = {}
        self._numbers = count()

    @property
    def durability(self) -> str:
        """The server's version and whether a COMMIT waits for the disk."""
        with psycopg.connect(postgres.dsn(self._server), autocommit=True) as raw:
            settings = [
                f"{name} {value}"
                for name in ("fsync", "synchronous_commit")
                for (value,) in raw.execute(f"SHOW {name}").fetchall()
            ]
            version = raw.info.server_version // 10_000
        return f"PostgreSQL {version}: {', '.join(settings)}"

    async def target(
        self, rows: int, installation: Installation | None = None, *, private: bool
    ) -> str:
        """
        The URL, for asyncpg, of a database with this many models; a new copy if `private`.

        It has the newest revision that the installation knows.
        """
        key = (rows, "" if installation is None else installation.label)
        if key not in self._databases:
            name = "_".join(filter(None, ("bench", *map(str, key))))
            url = self._stack.enter_context(postgres.database(self._server, name))
            await asyncio.to_thread(migrate, _asyncpg_target(url), installation)
            self._wait_for_disk(url)
            with psycopg.connect(postgres.dsn(url), autocommit=True) as raw:
                raw.cursor().executemany(UPSERT.replace("?", "%s"), list(initial_rows(rows)))
                raw.execute("ANALYZE")
            self._databases[key] = url
        if not private:
            return _asyncpg_target(self._databases[key])
        stack = self._stack.enter_context(ExitStack())
        name = f"bench_{rows}_copy_{next(self._numbers)}"
        url = stack.enter_context(postgres.database(self._server, name))
        with psycopg.connect(postgres.dsn(self._server), autocommit=True) as raw:
            raw.execute(f'DROP DATABASE "{url.database}"')
            raw.execute(
                f'CREATE DATABASE "{url.database}" TEMPLATE "{self._databases[key].database}"'
            )
        target = _asyncpg_target(url)
        self._copies[target] = stack
        return target

    def discard(self, target: str) -> None:
        """Drop a private copy."""
        self._copies.pop(target).close()

    def _wait_for_disk(self, url: URL) -> None:
        # The test databases set synchronous_commit = off; here a COMMIT has to reach the disk.
        with psycopg.connect(postgres.dsn(self._server), autocommit=True) as raw:
            raw.execute(f'ALTER DATABASE "{url.database}" RESET synchronous_commit')


def _asyncpg_target(url: URL) -> str:
    return url.set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)


@contextmanager
def postgres_server() -> Iterator[PostgresServer | None]:
    """A server, or None when neither a running server nor PostgreSQL's programs are found."""
    with ExitStack() as stack:
        url = stack.enter_context(postgres.server())
        yield None if url is None else PostgresServer(url, stack)

"""The databases on PostgreSQL: as many rows as are wanted, at head, dropped again at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psycopg
from sqlalchemy import URL
from tests import postgres

from benchmarks.harness.models_table import UPSERT, initial_rows
from model_catalog import upgrade


class PostgresServer:
    """Databases on one server, each made when it is first wanted."""

    def __init__(self, server: URL, stack: ExitStack) -> None:
        self._server = server
        self._stack = stack
        self._made: dict[int, URL] = {}

    @property
    def safety(self) -> str:
        """Which server it is, and whether it waits for its disk."""
        with psycopg.connect(postgres.dsn(self._server), autocommit=True) as raw:
            told = [
                f"{name} {value}"
                for name in ("fsync", "synchronous_commit")
                for (value,) in raw.execute(f"SHOW {name}").fetchall()
            ]
            version = raw.info.server_version // 10_000
        return f"PostgreSQL {version}: {', '.join(told)}"

    async def target(self, rows: int) -> str:
        """The URL of a database with so many rows, for asyncpg."""
        if rows not in self._made:
            url = self._stack.enter_context(postgres.database(self._server, f"bench_{rows}"))
            await upgrade(url.set(drivername="postgresql+asyncpg"))
            with psycopg.connect(postgres.dsn(url), autocommit=True) as raw:
                # Tests do without; here an acknowledged row is to be on the disk.
                raw.execute(f'ALTER DATABASE "{url.database}" RESET synchronous_commit')
                raw.cursor().executemany(UPSERT.replace("?", "%s"), list(initial_rows(rows)))
                raw.execute("ANALYZE")
            self._made[rows] = url
        found = self._made[rows].set(drivername="postgresql+asyncpg")
        return found.render_as_string(hide_password=False)


@contextmanager
def postgres_server() -> Iterator[PostgresServer | None]:
    """A server, or None where there is none to be had."""
    with ExitStack() as stack:
        url = stack.enter_context(postgres.server())
        yield None if url is None else PostgresServer(url, stack)

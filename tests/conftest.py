"""Every test of a catalog runs on SQLite, on PostgreSQL through asyncpg, and through psycopg."""

import asyncio
import gc
import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import postgres
import psycopg
import pytest
from sqlalchemy import URL, make_url

from model_catalog import Model, ModelCatalog, open_catalog, upgrade

BACKENDS = ("sqlite", "asyncpg", "psycopg")


def pytest_configure(config):
    # The tests must not depend on the environment of the machine.
    os.environ.pop("MODEL_CATALOG_URL", None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        # The second driver mostly sends the same statements as the first, so its tests are slow.
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if parameters.get("backend") == "psycopg":
            item.add_marker(pytest.mark.slow)
        ids = item.callspec.id.split("-") if hasattr(item, "callspec") else []
        if any(set(mark.args) & set(ids) for mark in item.iter_markers("slow_with")):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def pg_server(request) -> Iterator[URL]:
    with postgres.server() as url:
        if url is None:
            message = (
                f"NO POSTGRESQL: no server at ${postgres.ENVIRONMENT} or 127.0.0.1:5432 and no "
                "server binaries, so half of the tests do not run"
            )
            if os.environ.get("MODEL_CATALOG_TEST_PG_REQUIRED"):
                pytest.exit(message, returncode=1)
            pytest.skip(message)
        yield url


@pytest.fixture(scope="session")
def pg_blank(pg_server) -> Iterator[URL]:
    with postgres.database(pg_server, "blank") as url:
        yield url
        shared_connection(postgres.dsn(url)).close()


@pytest.fixture(scope="session")
def pg_migrated(pg_server) -> Iterator[URL]:
    with postgres.database(pg_server, "migrated") as url:
        asyncio.run(upgrade(url.set(drivername="postgresql+psycopg")))
        yield url
        shared_connection(postgres.dsn(url)).close()


@pytest.fixture(scope="session")
def sqlite_migrated(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("template") / "catalog.db"
    asyncio.run(upgrade(path))
    return path


@pytest.fixture
def sqlite_file(sqlite_migrated, tmp_path) -> Path:
    """A closed catalog file at the newest revision, without rows."""
    # A copy, because a migration takes longer than most tests.
    return Path(shutil.copy(sqlite_migrated, tmp_path / "catalog.db"))


@pytest.fixture
def filled(sqlite_file) -> Path:
    """A closed catalog file of many pages."""
    with closing(sqlite3.connect(sqlite_file)) as raw, raw:
        raw.executemany(
            "INSERT INTO models (provider, reference, local_path) VALUES ('hf', ?, ?)",
            [(f"m{number}", "/" + "x" * 500) for number in range(500)],
        )
    return sqlite_file


@cache
def shared_connection(dsn: str) -> psycopg.Connection:
    """Return the one connection that all tests share: connecting takes longer than most tests."""
    return psycopg.connect(dsn, autocommit=True)


@dataclass(frozen=True)
class Database:
    """The database of a test: the target to open, and access by a plain driver."""

    backend: str
    target: str
    path: Path | None = None
    url: URL | None = None

    @property
    def target_url(self) -> URL:
        """Return the target as a URL, for a host's own engine."""
        if self.path is not None:
            return URL.create("sqlite+aiosqlite", database=str(self.path))
        return make_url(self.target)

    def run(self, sql: str, *parameters: object) -> list[tuple]:
        """Execute one statement with a plain driver, commit, and return its rows."""
        if self.path is not None:
            with closing(sqlite3.connect(self.path)) as raw, raw:
                return raw.execute(sql, parameters).fetchall()
        raw = shared_connection(postgres.dsn(self.url))
        cursor = raw.execute(sql.replace("?", "%s") if parameters else sql, parameters or None)
        return cursor.fetchall() if cursor.description else []

    def delete_rows(self) -> None:
        """Delete all models, and number new ones from 1."""
        tables = (
            *("model_uses", "model_downloads", "model_claims", "model_catalog_leases"),
            *("model_hosts", "model_aliases", "model_tags", "model_files", "models"),
        )
        if self.path is not None:
            for table in tables:
                self.run(f"DELETE FROM {table}")
            return
        # TRUNCATE and ALTER SEQUENCE write new files and wait for the disk, so DELETE is faster.
        # But deleted rows stay in the file, and every later test would read them. A table of more
        # than 1 MiB is therefore truncated.
        ((size_bytes,),) = self.run("SELECT pg_relation_size('models')")
        if size_bytes > 2**20:
            statements = f"TRUNCATE {', '.join(tables)}"
        else:
            statements = "; ".join(f"DELETE FROM {table}" for table in tables)
        self.run(f"{statements}; SELECT setval('models_id_seq', 1, false)")

    @property
    def tables(self) -> set[str]:
        if self.path is not None:
            return {
                name for (name,) in self.run("SELECT name FROM sqlite_master WHERE type='table'")
            }
        return {
            name
            for (name,) in self.run("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        }

    def assert_nothing_left(self) -> None:
        """Assert that no connection, thread or lock is left after the catalog was closed."""
        deadline = time.monotonic() + 5
        while left := self._left():
            assert time.monotonic() < deadline, left
        if self.path is not None and self.path.is_file():
            with closing(sqlite3.connect(self.path, timeout=0)) as raw:
                raw.execute("BEGIN EXCLUSIVE")

    def assert_no_lock(self) -> None:
        """Assert that another program can write at once while the catalog is open."""
        if self.path is not None:
            with closing(sqlite3.connect(self.path, timeout=0, isolation_level=None)) as raw:
                raw.execute("BEGIN EXCLUSIVE")
            return
        # The server notices a little later that its client has stopped waiting.
        end = time.monotonic() + 2
        while held := self.run(
            "SELECT state, query FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND state NOT IN ('idle')"
        ):
            if time.monotonic() > end:
                break
            time.sleep(0.02)
        assert held == []

    def _left(self) -> list[str]:
        if self.path is not None:
            return [
                thread.name
                for thread in threading.enumerate()
                if "_connection_worker_thread" in thread.name or "model-catalog" in thread.name
            ]
        return self.run(
            "SELECT pid, state, query FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        )


def postgresql_database(backend: str, url: URL) -> Database:
    target = url.set(drivername=f"postgresql+{backend}").render_as_string(hide_password=False)
    return Database(backend, target, url=url)


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    return request.param


@pytest.fixture
def empty(backend, request, tmp_path) -> Iterator[Database]:
    """An empty database; on SQLite the file does not exist."""
    if backend == "sqlite":
        path = tmp_path / "catalog.db"
        found = Database(backend, str(path), path=path)
    else:
        found = postgresql_database(backend, request.getfixturevalue("pg_blank"))
        found.run("DROP SCHEMA IF EXISTS public CASCADE")
        found.run("CREATE SCHEMA public")
    yield found
    if backend != "sqlite" or found.path.is_file():
        found.assert_nothing_left()


@pytest.fixture
def database(backend, request) -> Iterator[Database]:
    """A database at the newest revision, without rows."""
    if backend == "sqlite":
        path = request.getfixturevalue("sqlite_file")
        found = Database(backend, str(path), path=path)
    else:
        found = postgresql_database(backend, request.getfixturevalue("pg_migrated"))
        found.delete_rows()
    yield found
    found.assert_nothing_left()


@pytest.fixture
async def catalog(database) -> AsyncIterator[ModelCatalog]:
    async with open_catalog(database.target) as found:
        yield found


@pytest.fixture
async def on_sqlite(sqlite_file) -> AsyncIterator[ModelCatalog]:
    """An open catalog on SQLite, for tests that do not depend on the database."""
    async with open_catalog(sqlite_file) as found:
        yield found


@pytest.fixture
def short_garbage_collections() -> Iterator[None]:
    """Let gc.collect() visit only objects of this test; all others take a quarter of a second."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def disk(tmp_path):
    """A separate file system in memory, mounted below the temporary folder."""
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "model-catalog-test", mount_point]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this process may not mount: run as root, or in `unshare -Urm`")
    yield mount_point
    subprocess.run(["umount", mount_point], capture_output=True, check=False)


def moment(second: int) -> datetime:
    """Return the time `second` seconds after the beginning of 2026."""
    return datetime.fromtimestamp(1767225600 + second, UTC)


def a_model(reference: str = "TinyLlama-1.1B-Chat-v1.0", **fields) -> Model:
    """Return a model with defaults for all fields that a test does not set."""
    fields = {"provider": "hf", "local_path": "/models/tinyllama.gguf", **fields}
    return Model(reference=reference, **fields)

"""A migration on PostgreSQL that waits for a transaction which has read the catalog's tables."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import postgres
import psycopg
import pytest
from alembic_host import CALLS, HostProject
from schema_shape import dump
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from model_catalog import (
    CatalogBusyError,
    downgrade,
    open_catalog,
    schema_state,
    upgrade,
    upgrade_connection,
)
from model_catalog.mapping.revisions import head_revision
from model_catalog.schema import host_connection

HEAD = head_revision()
ROOT = Path(__file__).parents[2]
ANSWERED_WITHIN_S = 1.0

pytestmark = [
    pytest.mark.parametrize("backend", ["asyncpg", "psycopg"]),
    pytest.mark.slow_with("alembic", "connection", "env"),
]


def with_open_catalog(database, _folder) -> None:
    async def run() -> None:
        async with open_catalog(database.target):
            pass

    asyncio.run(run())


def with_alembic(database, _folder) -> None:
    arguments = ("-x", f"url={database.target}", "upgrade", "head")
    subprocess.run([sys.executable, "-m", "alembic", *arguments], cwd=ROOT, check=True)


def with_upgrade_connection(database, _folder) -> None:
    async def run() -> None:
        engine = create_async_engine(database.target)
        async with engine.connect() as connection:
            await connection.run_sync(upgrade_connection)
        await engine.dispose()

    asyncio.run(run())


def in_an_open_transaction(database, _folder) -> None:
    async def run() -> None:
        engine = create_async_engine(database.target)
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE jobs (id INTEGER)"))
            await connection.run_sync(upgrade_connection)
        await engine.dispose()

    asyncio.run(run())


def in_the_env_py_of_a_host(database, folder) -> None:
    template, before, after = CALLS["upgrade_connection in an async env.py"]
    project = HostProject(folder, database, template)
    project.add_import("from model_catalog import upgrade_connection")
    project.replace(before, after)
    project.add_revision()
    project.upgrade()


MIGRATIONS = {
    "open": with_open_catalog,
    "alembic": with_alembic,
    "connection": with_upgrade_connection,
    "transaction": in_an_open_transaction,
    "env": in_the_env_py_of_a_host,
}


class Reads:
    """Reads the table `models` again and again in a thread, in a session of its own."""

    def __init__(self, url) -> None:
        self.durations_s: list[float] = []
        self._stop = threading.Event()
        self._url = url
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        with psycopg.connect(postgres.dsn(self._url), autocommit=True) as raw:
            while not self._stop.wait(0.01):
                start = time.monotonic()
                raw.execute("SELECT count(*) FROM models JOIN model_tags ON model_id = id")
                self.durations_s.append(time.monotonic() - start)


def wait_until(is_true, what: str) -> None:
    deadline = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def waits_for(database, mode: str) -> bool:
    waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND mode = ?"
    return bool(database.run(f"{waiting} AND relation = 'models'::regclass", mode))


@contextmanager
def table_held(database, statement: str) -> Iterator[Callable[[], None]]:
    """Execute a statement in a transaction that stays open; yields a function that ends it."""
    with psycopg.connect(postgres.dsn(database.url)) as other:
        other.execute(statement)
        yield other.rollback


@contextmanager
def running(migrate, database, folder, release) -> Iterator[threading.Thread]:
    """Migrate in a thread. At the end of the block call `release`; then the migration succeeds."""
    failed = []

    def run() -> None:
        try:
            migrate(database, folder)
        except BaseException as error:  # noqa: BLE001 - the test reports any error
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield thread
    finally:
        release()
        thread.join(30)
    assert not thread.is_alive()
    assert failed == []


@pytest.mark.slow
@pytest.mark.parametrize("migrate", MIGRATIONS.values(), ids=MIGRATIONS)
def test_other_reads_go_on_while_a_migration_waits_for_a_reader(empty, tmp_path, migrate):
    """
    A transaction has read `models` and stays open. The migration gives its locks up again and
    again, so that each SELECT is answered. When the reader has ended, it succeeds.
    """
    asyncio.run(upgrade(empty.target, "0018"))

    with (
        table_held(empty, "SELECT 1 FROM models") as release,
        Reads(empty.url) as reads,
        running(migrate, empty, tmp_path, release) as migration,
    ):
        for _ in range(2):
            wait_until(lambda: waits_for(empty, "AccessExclusiveLock"), "the migration waits")
            count = len(reads.durations_s)
            wait_until(lambda n=count: len(reads.durations_s) > n + 5, "reads go on")
        wait_until(lambda: waits_for(empty, "AccessExclusiveLock"), "it tries again")
        assert migration.is_alive()

    assert max(reads.durations_s) < ANSWERED_WITHIN_S
    assert asyncio.run(schema_state(empty.target)) == (HEAD, HEAD)


@pytest.mark.slow
def test_other_reads_go_on_while_a_downgrade_waits_for_a_reader(empty, tmp_path):
    """A downgrade drops columns, and takes the same locks."""
    asyncio.run(upgrade(empty.target))

    def migrate(database, _folder) -> None:
        asyncio.run(downgrade(database.target, "0018"))

    with (
        table_held(empty, "SELECT 1 FROM models") as release,
        Reads(empty.url) as reads,
        running(migrate, empty, tmp_path, release),
    ):
        wait_until(lambda: waits_for(empty, "AccessExclusiveLock"), "the migration waits")
        count = len(reads.durations_s)
        wait_until(lambda: len(reads.durations_s) > count + 20, "reads go on")

    assert max(reads.durations_s) < ANSWERED_WITHIN_S
    assert asyncio.run(schema_state(empty.target))[0] == "model_catalog_0018"


def test_reads_and_writes_go_on_while_a_migration_waits_for_a_vacuum(empty, tmp_path):
    """
    VACUUM holds a lock that only changes of a table conflict with. The migration waits for it
    without a lock of its own that others would queue behind.
    """
    asyncio.run(upgrade(empty.target, "0018"))
    insert = "INSERT INTO models (provider, reference, local_path) VALUES ('hf', ?, '/m')"

    with (
        table_held(empty, "LOCK TABLE models IN SHARE UPDATE EXCLUSIVE MODE") as release,
        Reads(empty.url) as reads,
        running(with_open_catalog, empty, tmp_path, release),
    ):
        wait_until(lambda: waits_for(empty, "ShareUpdateExclusiveLock"), "it waits")
        empty.run(insert, "m")
        count = len(reads.durations_s)
        wait_until(lambda: len(reads.durations_s) > count + 20, "reads go on")
        assert waits_for(empty, "ShareUpdateExclusiveLock")

    assert max(reads.durations_s) < ANSWERED_WITHIN_S
    assert empty.run("SELECT reference FROM models") == [("m",)]


async def test_a_joined_migration_gives_up_and_leaves_the_transaction_usable(empty, monkeypatch):
    """After its time it raises CatalogBusyError, and the host can commit its own changes."""
    await upgrade(empty.target, "0018")
    empty.run("CREATE TABLE jobs (id INTEGER)")
    before = dump(empty)
    monkeypatch.setattr(host_connection, "_LOCK_WAIT_MS", 300)
    engine = create_async_engine(empty.target)

    with table_held(empty, "SELECT 1 FROM models"):
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO jobs VALUES (1)"))
            with pytest.raises(CatalogBusyError, match="lock timeout"):
                await connection.run_sync(upgrade_connection)
            await connection.execute(text("INSERT INTO jobs VALUES (2)"))
            settings = await connection.exec_driver_sql("SHOW lock_timeout")
            assert settings.scalar() == "0"
    await engine.dispose()

    assert empty.run("SELECT id FROM jobs ORDER BY 1") == [(1,), (2,)]
    empty.run("DELETE FROM jobs")
    assert dump(empty) == before


async def test_a_migration_that_waits_for_a_reader_can_be_cancelled(empty):
    """The cancellation arrives within a second, and nothing is changed."""
    await upgrade(empty.target, "0018")
    before = dump(empty)

    with table_held(empty, "SELECT 1 FROM models"):
        task = asyncio.create_task(upgrade(empty.target))
        await asyncio.to_thread(
            wait_until, lambda: waits_for(empty, "AccessExclusiveLock"), "the migration waits"
        )
        start = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - start < 1

    assert dump(empty) == before

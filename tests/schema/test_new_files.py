"""The tables of a new SQLite file of our own are created in one thread."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import hive_files
import pytest
from child_programs import migration_was_killed
from conftest import Database
from sqlalchemy import Engine, event

from model_catalog import (
    CatalogBusyError,
    CatalogReadOnlyError,
    ForeignDatabaseError,
    check_schema,
    open_catalog,
    schema_state,
    upgrade,
)
from model_catalog.connection.timeouts import WRITE
from model_catalog.mapping.revisions import head_revision

HEAD = head_revision()


@pytest.fixture
def file(tmp_path) -> Database:
    """The path of an empty SQLite file."""
    path = tmp_path / "catalog.db"
    path.touch()
    return Database("sqlite", str(path), path=path)


@contextmanager
def called_before_the_lock(function: Callable[[], object]) -> Iterator[None]:
    """Call a function after the upgrade has found a new file, and before it has the lock."""
    calls = []

    # The listeners of the class are called before that of the engine, which sends BEGIN IMMEDIATE.
    def begin(connection) -> None:
        if not calls and connection.get_execution_options().get(WRITE):
            calls.append(1)
            function()

    event.listen(Engine, "begin", begin)
    try:
        yield
    finally:
        event.remove(Engine, "begin", begin)
    assert calls == [1]


@contextmanager
def write_lock_held(path: Path) -> Iterator[None]:
    """Hold SQLite's write lock on another connection."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


async def test_a_catalog_that_another_process_creates_meanwhile_is_used(file, caplog):
    """The second one to get the lock finds the tables, and creates nothing."""
    caplog.set_level("INFO")

    with called_before_the_lock(lambda: migration_was_killed(file.target, "never")):
        await upgrade(file.target)

    assert [message for message in caplog.messages if message.startswith("created")] == []
    assert await check_schema(file.target) == []


async def test_a_table_of_the_hive_that_appears_meanwhile_is_migrated(file):
    """It is no new file any more, so its rows are migrated by the revisions."""
    rows = [("m", "hf", "/m", 1, 1)]

    with called_before_the_lock(lambda: hive_files.write_hive_file(file.path, rows)):
        await upgrade(file.target)

    assert await schema_state(file.target) == (HEAD, HEAD)
    assert file.run("SELECT reference, provider, local_path FROM models") == [("m", "hf", "/m")]


async def test_a_foreign_table_that_appears_meanwhile_is_refused(file):
    """The file of the other program keeps its content."""
    create = "CREATE TABLE notes (text)"

    with called_before_the_lock(lambda: file.run(create)), pytest.raises(ForeignDatabaseError):
        await upgrade(file.target)

    assert file.run("SELECT sql FROM sqlite_master") == [(create,)]
    file.assert_nothing_left()


async def test_opening_a_new_file_waits_for_the_lock(file):
    """It creates the tables when the other program has released its lock."""
    with write_lock_held(file.path):
        task = asyncio.create_task(upgrade(file.target))
        done, _ = await asyncio.wait([task], timeout=0.3)
        assert not done
    await task

    assert await check_schema(file.target) == []


async def test_a_new_file_that_stays_locked_raises_busy(file):
    """The error tells how long it waited, and the file is unchanged."""
    with (
        write_lock_held(file.path),
        pytest.raises(CatalogBusyError, match=r"waited 0\.[2-9] s"),
    ):
        async with open_catalog(file.target, timeout_s=0.2):
            pass

    assert file.path.stat().st_size == 0
    file.assert_nothing_left()


async def test_waiting_for_the_lock_of_a_new_file_can_be_cancelled(file):
    """The caller continues at once, and the file is unchanged."""
    with write_lock_held(file.path):
        task = asyncio.create_task(upgrade(file.target))
        await asyncio.wait([task], timeout=0.3)
        task.cancel()
        await asyncio.wait([task], timeout=2)
        assert task.cancelled()

    assert file.path.stat().st_size == 0
    file.assert_nothing_left()
    await upgrade(file.target)


async def test_a_file_that_may_not_be_written_stays_empty(file, monkeypatch):
    """Its tables cannot be created, which is an error of the catalog."""
    from model_catalog.connection import engines

    monkeypatch.setattr(engines, "sqlite_uri", lambda path, _mode: f"file:{path}?mode=ro")

    with pytest.raises(CatalogReadOnlyError):
        await upgrade(file.target)

    assert file.path.stat().st_size == 0


async def test_a_table_that_refers_to_models_does_not_stop_the_creation(file):
    """Its rows refer to missing rows before and afterwards."""
    file.run("CREATE TABLE notes (model INTEGER REFERENCES models (id))")
    file.run("INSERT INTO notes VALUES (7)")

    await upgrade(file.target, shared=True)

    assert await schema_state(file.target) == (HEAD, HEAD)
    assert file.run("SELECT model FROM notes") == [(7,)]

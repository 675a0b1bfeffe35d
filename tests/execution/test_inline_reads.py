"""`reads="inline"`: single models are read in the event loop's thread."""

import asyncio
import sqlite3
from contextlib import closing

import pytest
from conftest import a_model

from model_catalog import (
    CatalogBusyError,
    CatalogClosedError,
    CatalogReplacedError,
    InvalidModelError,
    Model,
    open_catalog,
)


@pytest.fixture
async def inline(sqlite_file):
    async with open_catalog(sqlite_file, reads="inline", timeout_s=0.3) as catalog:
        yield catalog


@pytest.fixture
def other(sqlite_file):
    """Another program's connection. Without a write-ahead log its lock blocks all readers."""
    with closing(sqlite3.connect(sqlite_file, isolation_level=None)) as raw:
        raw.execute("PRAGMA journal_mode = DELETE")
        raw.execute("INSERT INTO models (provider, reference, local_path) VALUES ('hf', 'm', '/m')")
        yield raw


async def test_find_runs_before_any_other_task(inline):
    """
    `find_model` returns before the event loop runs another task.
    """
    other_task = asyncio.ensure_future(asyncio.sleep(0))

    assert await inline.find_model("m", "hf") is None

    assert not other_task.done()
    await other_task


async def test_committed_changes_are_found_at_once(inline):
    """
    The next find sees the changes of a call and of another program.
    """
    await inline.find_model("m", "hf")
    await inline.register_model(a_model("m"))
    with closing(sqlite3.connect(inline.database_files[0])) as raw, raw:
        raw.execute("UPDATE models SET size_bytes = 7")

    found = await inline.get_model("m", "hf")

    assert isinstance(found, Model)
    assert found.size_bytes == 7


async def test_find_in_a_transaction_sees_its_own_rows(inline):
    """
    A find in `transaction()` sees the rows of that transaction; a find outside sees only committed
    rows.
    """
    async with inline.transaction() as inner:
        await inner.register_model(a_model("m"))

        assert await inner.find_model("m", "hf") is not None
        assert await inline.find_model("m", "hf") is None


async def test_locked_file_is_read_in_a_thread(other, inline):
    """
    The event loop is not blocked, and the model is found when the lock is released.
    """
    await inline.find_model("m", "hf")
    other.execute("BEGIN EXCLUSIVE")

    waiting = asyncio.ensure_future(inline.find_model("m", "hf"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    other.execute("ROLLBACK")

    assert (await waiting).reference == "m"


async def test_wait_for_a_lock_times_out(other, inline):
    """
    If the lock is not released, the call raises CatalogBusyError at its timeout.
    """
    await inline.find_model("m", "hf")
    other.execute("BEGIN EXCLUSIVE")

    with pytest.raises(CatalogBusyError):
        await inline.find_model("m", "hf")


async def test_replaced_file_is_detected(inline, sqlite_file):
    """
    The path no longer leads to the file that was opened.
    """
    await inline.find_model("m", "hf")
    sqlite_file.replace(sqlite_file.with_name("moved"))

    with pytest.raises(CatalogReplacedError):
        await inline.find_model("m", "hf")


async def test_find_after_close_raises_closed(sqlite_file):
    """
    A closed catalog raises CatalogClosedError and has closed its file.
    """
    async with open_catalog(sqlite_file, reads="inline") as catalog:
        await catalog.find_model("m", "hf")

    with pytest.raises(CatalogClosedError):
        await catalog.find_model("m", "hf")
    assert not sqlite_file.with_name(f"{sqlite_file.name}-wal").exists()


async def test_unknown_read_mode_is_rejected(sqlite_file):
    """
    A misspelled mode raises an error; it is not replaced by the default.
    """
    with pytest.raises(InvalidModelError, match="not one of threads, inline"):
        async with open_catalog(sqlite_file, reads="inlined"):
            pass

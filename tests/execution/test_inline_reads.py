"""Single models read in the event loop's own thread, where a host has chosen so."""

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
    """Another program's connection, of which a lock lets nobody read: there is no log."""
    with closing(sqlite3.connect(sqlite_file, isolation_level=None)) as raw:
        raw.execute("PRAGMA journal_mode = DELETE")
        raw.execute("INSERT INTO models (provider, reference, local_path) VALUES ('hf', 'm', '/m')")
        yield raw


async def test_a_model_is_found_without_a_turn_of_the_loop(inline):
    """
    `find_model` and `get_model` answer before any other task has its turn.
    """
    turn = asyncio.ensure_future(asyncio.sleep(0))

    assert await inline.find_model("m", "hf") is None

    assert not turn.done()
    await turn


async def test_what_was_written_is_found_at_once(inline):
    """
    What a call has written, and what another program has committed, the next call finds.
    """
    await inline.find_model("m", "hf")
    await inline.register_model(a_model("m"))
    with closing(sqlite3.connect(inline.database_files[0])) as raw, raw:
        raw.execute("UPDATE models SET size_bytes = 7")

    found = await inline.get_model("m", "hf")

    assert isinstance(found, Model)
    assert found.size_bytes == 7


async def test_within_a_transaction_its_own_rows_are_found(inline):
    """
    Inside `transaction()` a model is looked for in that transaction, outside of it among what is
    committed.
    """
    async with inline.transaction() as both:
        await both.register_model(a_model("m"))

        assert await both.find_model("m", "hf") is not None
        assert await inline.find_model("m", "hf") is None


async def test_where_a_lock_is_in_the_way_a_thread_waits_for_it(other, inline):
    """
    The loop goes on meanwhile, and the model is found once the lock is given back.
    """
    await inline.find_model("m", "hf")
    other.execute("BEGIN EXCLUSIVE")

    waiting = asyncio.ensure_future(inline.find_model("m", "hf"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    other.execute("ROLLBACK")

    assert (await waiting).reference == "m"


async def test_a_wait_for_a_lock_has_an_end(other, inline):
    """
    A lock that nobody gives back ends the call with CatalogBusyError, in its time.
    """
    await inline.find_model("m", "hf")
    other.execute("BEGIN EXCLUSIVE")

    with pytest.raises(CatalogBusyError):
        await inline.find_model("m", "hf")


async def test_another_file_in_its_place_is_noticed(inline, sqlite_file):
    """
    As elsewhere: what was opened is not what the path leads to any more.
    """
    await inline.find_model("m", "hf")
    sqlite_file.replace(sqlite_file.with_name("moved"))

    with pytest.raises(CatalogReplacedError):
        await inline.find_model("m", "hf")


async def test_after_the_end_nothing_is_read(sqlite_file):
    """
    A closed catalog answers no call, and has its file no more.
    """
    async with open_catalog(sqlite_file, reads="inline") as catalog:
        await catalog.find_model("m", "hf")

    with pytest.raises(CatalogClosedError):
        await catalog.find_model("m", "hf")
    assert not sqlite_file.with_name(f"{sqlite_file.name}-wal").exists()


async def test_another_way_to_read_is_refused(sqlite_file):
    """
    There are two: a mistyped one is an error, and not the usual one.
    """
    with pytest.raises(InvalidModelError, match="not one of threads, inline"):
        async with open_catalog(sqlite_file, reads="inlined"):
            pass

"""Calls that share a thread and a transaction: what befalls one is nothing to the others."""

import asyncio
import gc
import sqlite3
import subprocess
import sys
import threading
import time
import weakref
from contextlib import closing

import pytest
from conftest import a_model
from sqlalchemy import Connection

from model_catalog import (
    CatalogBusyError,
    CatalogError,
    CatalogUnavailableError,
    WrongLoopError,
    open_catalog,
)
from model_catalog.execution.executor import Operation, write
from model_catalog.execution.sqlite_threads.connection_thread import ConnectionThread

END_S = 2.0
"""When what has to end at once has ended on a busy machine as well."""

COUNT = (
    "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT {})"
    " SELECT count(*) FROM numbers"
)
FOR_EVER = 10**9
A_WHILE = 10**6
"""Some tenths of a second: much longer than it is between two interrupts."""


def counting(rows: int):
    """A unit that only an interrupt ends before its time."""

    def unit(connection: Connection) -> int:
        return connection.exec_driver_sql(COUNT.format(rows)).scalar_one()

    return unit


def at_once(_connection: Connection) -> str:
    return "done"


def failing(_connection: Connection) -> None:
    raise ZeroDivisionError


def registering(reference: str, then=at_once):
    """A unit that writes a row, and then does something else."""

    def unit(connection: Connection) -> object:
        connection.exec_driver_sql(
            "INSERT INTO models (provider, reference, local_path) VALUES ('hf', ?, '/m')",
            (reference,),
        )
        return then(connection)

    return unit


def sleeping(seconds: float):
    """A unit that no interrupt reaches."""
    return lambda _connection: time.sleep(seconds)


async def timed(call):
    """What a call returned or raised, and how long it took."""
    start = time.monotonic()
    try:
        found = await call
    except Exception as error:  # noqa: BLE001 - it is looked at
        found = error
    return found, time.monotonic() - start


async def read_shared(executor, function):
    """Run a read that shares its snapshot with others."""
    return await executor.run(Operation(lambda connection, _: function(connection), None))


async def run_write(executor, function, timeout_s=None):
    """Run a write that shares its transaction with others."""
    return await executor.run(
        write(lambda connection, _: function(connection), None, timeout_s=timeout_s)
    )


def recorded(path) -> set[str]:
    with closing(sqlite3.connect(path)) as raw:
        return {reference for (reference,) in raw.execute("SELECT reference FROM models")}


async def test_a_call_that_is_stopped_is_told_before_its_batch_has_ended(on_sqlite, sqlite_file):
    """
    One of several that share a transaction is too slow: it is told so in its time, and the others
    are done, though they take long as well.
    """
    executor = on_sqlite._executor

    (slow, slow_s), (other, _), (third, _) = await asyncio.gather(
        timed(run_write(executor, registering("slow", counting(FOR_EVER)), 0.2)),
        timed(run_write(executor, registering("other", counting(A_WHILE)), 20)),
        timed(run_write(executor, registering("third", counting(A_WHILE)), 20)),
    )

    assert isinstance(slow, CatalogBusyError)
    assert "its statements took longer" in slow.reason
    assert slow_s < 0.2 + 0.15
    assert [other, third] == [A_WHILE, A_WHILE]
    assert recorded(sqlite_file) == {"other", "third"}


async def test_a_call_that_is_done_is_told_though_its_batch_is_not(on_sqlite, sqlite_file):
    """
    Where one of a batch fails each is done by itself. At its deadline one that was kept returns,
    and those that are still done are not stopped in its place.
    """
    executor = on_sqlite._executor

    (failed, _), (quick, quick_s), (other, _) = await asyncio.gather(
        timed(run_write(executor, failing, 20)),
        timed(run_write(executor, registering("quick"), 0.1)),
        timed(run_write(executor, registering("other", counting(5 * A_WHILE)), 20)),
    )

    assert isinstance(failed, ZeroDivisionError)
    assert quick == "done"
    assert quick_s < END_S
    assert other == 5 * A_WHILE
    assert recorded(sqlite_file) == {"quick", "other"}


async def test_nobody_is_told_of_the_error_of_another(on_sqlite, sqlite_file):
    """
    A call whose time was up when another of its batch failed is told that, not of the failure.
    """
    executor = on_sqlite._executor

    def late_failure(_connection: Connection) -> None:
        time.sleep(0.3)
        raise ZeroDivisionError

    (late, _), (failed, _) = await asyncio.gather(
        timed(run_write(executor, registering("late"), 0.1)),
        timed(run_write(executor, late_failure, 20)),
    )

    assert isinstance(failed, ZeroDivisionError)
    assert isinstance(late, CatalogBusyError)
    assert recorded(sqlite_file) == set()


async def test_what_takes_too_long_outside_the_database_is_not_kept_either(on_sqlite, sqlite_file):
    """
    No interrupt reaches it; its time is looked at before the commit.
    """
    late = run_write(on_sqlite._executor, registering("late", sleeping(0.4)), 0.1)

    with pytest.raises(CatalogBusyError, match="took longer"):
        await late

    assert recorded(sqlite_file) == set()


async def test_what_is_committed_is_told_before_the_rest_of_its_batch(on_sqlite):
    """
    A batch that takes long is cut, and those of its first part return while the second is done.
    """
    executor = on_sqlite._executor
    first = asyncio.create_task(run_write(executor, registering("first", sleeping(0.1))))
    second = asyncio.create_task(run_write(executor, registering("second", sleeping(1))))

    done, _ = await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)

    assert done == {first}
    await second


async def test_what_waits_to_be_done_again_may_still_be_given_up(on_sqlite, sqlite_file):
    """
    After a failure in its batch a call that has not had its turn is let go at its deadline.
    """
    executor = on_sqlite._executor

    (failed, _), (slow, _), (third, third_s) = await asyncio.gather(
        timed(run_write(executor, failing, 20)),
        timed(run_write(executor, registering("slow", sleeping(1.5)), 20)),
        timed(run_write(executor, registering("third"), 0.2)),
    )

    assert isinstance(failed, ZeroDivisionError)
    assert slow is None
    assert isinstance(third, CatalogBusyError)
    assert third_s < 1
    assert recorded(sqlite_file) == {"slow"}


async def test_a_refused_commit_leaves_nothing_open(on_sqlite, sqlite_file):
    """
    SQLite keeps the transaction whose COMMIT it refuses: it is undone, and the next call has one
    of its own.
    """

    def orphaning(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        connection.exec_driver_sql(
            "INSERT INTO model_tags (model_id, folded, tag) VALUES (99, 't', 't')"
        )

    with pytest.raises(CatalogError, match="FOREIGN KEY"):
        await run_write(on_sqlite._executor, orphaning)

    await on_sqlite.register_model(a_model("m"))
    with closing(sqlite3.connect(sqlite_file)) as raw:
        assert raw.execute("SELECT count(*) FROM model_tags").fetchall() == [(0,)]


async def test_one_of_a_batch_that_waits_for_a_lock_may_have_less_time(on_sqlite, sqlite_file):
    """
    It is told when its time is up, and so is one that stands behind the batch: what they waited
    for is the lock. The others go on waiting, and get it.
    """
    executor = on_sqlite._executor
    with closing(sqlite3.connect(sqlite_file, isolation_level=None)) as raw:
        raw.execute("BEGIN IMMEDIATE")
        patient = asyncio.create_task(timed(run_write(executor, registering("patient"), 20)))
        hasty = asyncio.create_task(timed(run_write(executor, registering("hasty"), 0.3)))
        while executor._writer._runner.waiting_for is None:
            await asyncio.sleep(0)
        behind = asyncio.create_task(timed(run_write(executor, registering("behind"), 0.3)))
        (first, first_s), (second, second_s) = await asyncio.gather(hasty, behind)
        assert not patient.done()
        raw.execute("ROLLBACK")

    assert [type(first), type(second)] == [CatalogBusyError] * 2
    assert max(first_s, second_s) < 1
    assert first.reason == second.reason == "database is locked"
    assert (await patient)[0] == "done"
    assert recorded(sqlite_file) == {"patient"}


async def test_a_look_waits_for_a_lock_as_well(sqlite_file):
    """
    Without a write-ahead log a writer shuts readers out for a moment: they are answered after it.
    """
    with closing(sqlite3.connect(sqlite_file, isolation_level=None)) as raw:
        raw.execute("PRAGMA journal_mode = DELETE")
        async with open_catalog(sqlite_file) as catalog:
            raw.execute("BEGIN EXCLUSIVE")
            looks = [catalog.list_models(), catalog.find_model("m", "hf"), catalog.count_models()]
            waiting = asyncio.gather(*looks)
            done, _ = await asyncio.wait([waiting], timeout=0.4)
            assert not done
            raw.execute("ROLLBACK")

            assert await waiting == [[], None, 0]


async def test_a_reader_that_gives_up_stops_no_other(on_sqlite):
    """
    Looks that share a snapshot: of one that was cancelled, whether it is done already or under way,
    nothing is felt by the others.
    """
    executor = on_sqlite._executor
    done = asyncio.create_task(read_shared(executor, at_once))
    first = asyncio.create_task(read_shared(executor, counting(A_WHILE)))
    slow = asyncio.create_task(read_shared(executor, counting(FOR_EVER)))
    last = asyncio.create_task(read_shared(executor, counting(A_WHILE)))
    await asyncio.sleep(0.05)

    start = time.monotonic()
    done.cancel()
    slow.cancel()
    await asyncio.wait([done])

    assert time.monotonic() - start < 0.1
    assert await asyncio.wait_for(asyncio.gather(first, last), 20) == [A_WHILE, A_WHILE]
    await asyncio.wait([slow])
    assert slow.cancelled()


async def test_a_look_that_waits_behind_a_stopped_one_is_answered(on_sqlite):
    """
    The deadline of a slow look ends it, and what shares its snapshot goes on.
    """
    on_sqlite._executor.timeout_s = 0.3
    slow = asyncio.create_task(timed(read_shared(on_sqlite._executor, counting(FOR_EVER))))
    await asyncio.sleep(0)
    on_sqlite._executor.timeout_s = 20
    other = asyncio.create_task(timed(read_shared(on_sqlite._executor, counting(A_WHILE))))

    error, slow_s = await slow
    assert isinstance(error, CatalogBusyError)
    assert "its statements took longer" in error.reason
    assert slow_s < 0.3 + 0.15
    assert (await other)[0] == A_WHILE


async def test_too_many_calls_for_their_time_are_not_all_undone(sqlite_file):
    """
    When more is asked for than can be done in time, what could be done is done and kept.
    """
    async with open_catalog(sqlite_file, timeout_s=1.0) as catalog:
        # To open the file is no part of it.
        await run_write(catalog._executor, at_once)
        found = await asyncio.gather(
            *(
                timed(run_write(catalog._executor, registering(f"m{number}", sleeping(0.01))))
                for number in range(200)
            )
        )
    kept = {f"m{number}" for number, (error, _) in enumerate(found) if error is None}

    assert recorded(sqlite_file) == kept
    assert len(kept) > 10
    assert {type(error) for error, _ in found} <= {type(None), CatalogBusyError}
    assert max(seconds for _, seconds in found) < END_S


async def test_a_thread_that_cannot_be_had_is_told(on_sqlite, monkeypatch):
    """
    Where the system gives no thread the call says so; the next one tries again, and the catalog
    closes.
    """

    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(CatalogUnavailableError, match="can't start new thread"):
            await asyncio.wait_for(on_sqlite.register_model(a_model("m")), END_S)

    await on_sqlite.register_model(a_model("m"))
    assert len(await on_sqlite.list_models()) == 1


async def test_a_use_in_another_loop_is_refused_while_one_is_counted(on_sqlite):
    """
    Uses are counted together within a loop, and not across two.
    """
    await on_sqlite.register_model(a_model("m"))
    busy = asyncio.create_task(run_write(on_sqlite._executor, sleeping(0.3)))
    await asyncio.sleep(0.05)
    here = asyncio.create_task(on_sqlite.record_use("m", "hf"))
    await asyncio.sleep(0.05)

    async def elsewhere():
        async with asyncio.timeout(END_S):
            await on_sqlite.record_use("m", "hf")

    with pytest.raises(WrongLoopError):
        await asyncio.to_thread(asyncio.run, elsewhere())

    await asyncio.gather(busy, here)
    assert (await on_sqlite.get_model("m", "hf")).use_count == 1


async def test_a_use_that_is_busy_says_how_long_it_waited(sqlite_file):
    """
    From its call on, also where it waited for the uses before it first.
    """
    async with open_catalog(sqlite_file, timeout_s=0.6) as catalog:
        await catalog.register_model(a_model("m"))
        with closing(sqlite3.connect(sqlite_file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            first = asyncio.create_task(timed(catalog.record_use("m", "hf")))
            await asyncio.sleep(0.3)
            second = asyncio.create_task(timed(catalog.record_use("m", "hf")))
            found = await asyncio.gather(first, second)

    for error, seconds in found:
        assert isinstance(error, CatalogBusyError)
        assert error.waited_s == pytest.approx(seconds, abs=0.1)


LEFT = """
import asyncio, os, sqlite3, sys, threading
from model_catalog import open_catalog
from model_catalog.execution.executor import write

threads, go_on = [], threading.Event()

def unit(connection, _value):
    threads.append(threading.current_thread())
    begun.set()
    go_on.wait(20)

loop = asyncio.new_event_loop()
begun = threading.Event()
block = open_catalog(sys.argv[1])
catalog = loop.run_until_complete(block.__aenter__())

async def call():
    task = asyncio.ensure_future(catalog._executor.run(write(unit, None)))
    await asyncio.to_thread(begun.wait, 20)
    return task

task = loop.run_until_complete(call())
loop.close()
go_on.set()
threads[0].join(20)
sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None).execute("BEGIN EXCLUSIVE")
print("free", threads[0].is_alive(), flush=True)
os._exit(0)
"""


def test_a_loop_that_is_closed_with_a_call_under_way_leaves_no_lock(sqlite_file):
    """
    Nobody is left to be told: the thread ends with its call, and its connection with it.
    """
    command = [sys.executable, "-X", "dev", "-c", LEFT, str(sqlite_file)]

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert (done.stdout, done.returncode) == ("free False\n", 0)
    assert "Exception in thread" not in done.stderr


async def test_what_was_answered_is_not_kept_until_its_time_is_up(on_sqlite):
    """
    A long list is the caller's alone, and gone when that drops it.
    """
    await on_sqlite.register_model(a_model("m"))
    (model,) = await on_sqlite.list_models()
    known = weakref.ref(model)

    del model
    gc.collect()

    assert known() is None


async def test_a_closed_catalog_leaves_nothing_in_the_loop(sqlite_file):
    """
    What would look after its calls does not look any more.
    """
    before = [each for each in gc.get_objects() if isinstance(each, ConnectionThread)]
    async with open_catalog(sqlite_file) as catalog:
        await catalog.count_models()
    del catalog

    gc.collect()

    there = [each for each in gc.get_objects() if isinstance(each, ConnectionThread)]
    assert len(there) == len(before)

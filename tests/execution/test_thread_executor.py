"""Calls that share a thread and a transaction do not affect one another."""

import asyncio
import gc
import sqlite3
import subprocess
import sys
import threading
import time
import weakref
from contextlib import closing
from dataclasses import replace

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
from model_catalog.execution.executor import Operation, lookup, write
from model_catalog.execution.prepared_statement import sqlite_driver
from model_catalog.execution.sqlite_threads.request_queue import RequestQueue

PROMPT_S = 2.0
"""The time within which a prompt call ends, even on a busy machine."""

COUNT = (
    "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT {})"
    " SELECT count(*) FROM numbers"
)
ENDLESS_ROWS = 10**9
SLOW_ROWS = 10**6
"""Takes some tenths of a second: much longer than the time between two interrupts."""


def counting(rows: int):
    """Return an operation that counts rows in SQLite, and that only an interrupt can stop."""

    def operation(connection: Connection) -> int:
        return connection.exec_driver_sql(COUNT.format(rows)).scalar_one()

    return operation


def finish_at_once(_connection: Connection) -> str:
    return "done"


def fail(_connection: Connection) -> None:
    raise ZeroDivisionError


def registering(reference: str, then=finish_at_once):
    """Return an operation that inserts a row and then calls `then`."""

    def operation(connection: Connection) -> object:
        connection.exec_driver_sql(
            "INSERT INTO models (provider, reference, local_path) VALUES ('hf', ?, '/m')",
            (reference,),
        )
        return then(connection)

    return operation


def sleeping(seconds: float):
    """Return an operation that sleeps in Python, so that no interrupt stops it."""
    return lambda _connection: time.sleep(seconds)


async def timed(call):
    """Return the result or the error of a call, and its duration in seconds."""
    start = time.monotonic()
    try:
        found = await call
    except Exception as error:  # noqa: BLE001 - the test checks it
        found = error
    return found, time.monotonic() - start


async def read_shared(executor, function):
    """Run a read that shares a snapshot with concurrent reads."""
    return await executor.run(Operation(lambda connection, _: function(connection), None))


async def run_write(executor, function, timeout_s=None):
    """Run a write that shares a transaction with concurrent writes."""
    return await executor.run(
        write(lambda connection, _: function(connection), None, timeout_s=timeout_s)
    )


def stored_references(path) -> set[str]:
    with closing(sqlite3.connect(path)) as raw:
        return {reference for (reference,) in raw.execute("SELECT reference FROM models")}


async def test_call_that_times_out_fails_before_its_batch_has_ended(on_sqlite, sqlite_file):
    """
    One call of a batch is too slow and fails at its timeout. The other calls are completed,
    although they are slow as well.
    """
    executor = on_sqlite._executor

    (slow, slow_s), (other, _), (third, _) = await asyncio.gather(
        timed(run_write(executor, registering("slow", counting(ENDLESS_ROWS)), 0.2)),
        timed(run_write(executor, registering("other", counting(SLOW_ROWS)), 20)),
        timed(run_write(executor, registering("third", counting(SLOW_ROWS)), 20)),
    )

    assert isinstance(slow, CatalogBusyError)
    assert "its statements took longer" in slow.reason
    assert slow_s < 0.2 + 0.15
    assert [other, third] == [SLOW_ROWS, SLOW_ROWS]
    assert stored_references(sqlite_file) == {"other", "third"}


async def test_lookups_of_a_batch_run_together(on_sqlite):
    """
    Lookups with the same function for many are one call of it, at most 64 a call.
    """
    calls = []

    def find_many(_connection: Connection, values):
        calls.append(list(values))
        return [value * 2 for value in values]

    def find_one(_connection: Connection, value):
        return value * 2

    executor = on_sqlite._executor
    found = await asyncio.gather(
        *(executor.run(lookup(find_one, value, find_many)) for value in range(100)),
        read_shared(executor, finish_at_once),
        executor.run(lookup(find_one, 100)),
    )

    assert found == [*range(0, 200, 2), "done", 200]
    assert calls == [list(range(64)), list(range(64, 100))]


async def test_a_lookup_that_fails_does_not_fail_the_others(on_sqlite):
    """
    If the lookups of a batch fail together, each runs on its own and gets its own error.
    """

    def find_one(_connection: Connection, value):
        return 6 / value

    def find_many(connection: Connection, values):
        return [find_one(connection, value) for value in values]

    executor = on_sqlite._executor
    found = await asyncio.gather(
        *(executor.run(lookup(find_one, value, find_many)) for value in (1, 0, 2)),
        return_exceptions=True,
    )

    assert (found[0], found[2]) == (6, 3)
    assert isinstance(found[1], ZeroDivisionError)


@pytest.mark.parametrize("end", ["timeout", "cancellation"])
async def test_a_lookup_that_ends_early_does_not_end_the_others(on_sqlite, end):
    """
    The statement that they share is interrupted, and each of the others runs on its own.
    """
    has_begun = threading.Event()

    def count(connection: Connection, rows):
        has_begun.set()
        return sqlite_driver(connection).execute(COUNT.format(rows)).fetchone()[0]

    def count_many(connection: Connection, values):
        return [count(connection, rows) for rows in values]

    executor = on_sqlite._executor
    timeout_s = 0.2 if end == "timeout" else None
    slow = replace(lookup(count, ENDLESS_ROWS, count_many), timeout_s=timeout_s)
    tasks = [asyncio.ensure_future(executor.run(slow))]
    tasks += [asyncio.ensure_future(executor.run(lookup(count, n, count_many))) for n in (3, 4)]
    if end == "cancellation":
        await asyncio.to_thread(has_begun.wait, PROMPT_S)
        tasks[0].cancel()
    error, *others = await asyncio.gather(*tasks, return_exceptions=True)

    wanted = CatalogBusyError if end == "timeout" else asyncio.CancelledError
    assert isinstance(error, wanted)
    assert others == [3, 4]


@pytest.mark.slow
async def test_completed_call_returns_before_its_batch_has_ended(on_sqlite, sqlite_file):
    """
    If one call of a batch fails, each call runs on its own. A committed call returns at its
    timeout, and the calls that still run are not interrupted in its place.
    """
    executor = on_sqlite._executor

    (failed, _), (quick, quick_s), (other, _) = await asyncio.gather(
        timed(run_write(executor, fail, 20)),
        timed(run_write(executor, registering("quick"), 0.1)),
        timed(run_write(executor, registering("other", counting(5 * SLOW_ROWS)), 20)),
    )

    assert isinstance(failed, ZeroDivisionError)
    assert quick == "done"
    assert quick_s < PROMPT_S
    assert other == 5 * SLOW_ROWS
    assert stored_references(sqlite_file) == {"quick", "other"}


async def test_call_does_not_get_the_error_of_another_call(on_sqlite, sqlite_file):
    """
    A call that timed out before another call of its batch failed raises its own timeout error.
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
    assert stored_references(sqlite_file) == set()


async def test_timeout_outside_the_database_rolls_back(on_sqlite, sqlite_file):
    """
    An interrupt does not stop Python code, so the timeout is checked before the commit.
    """
    late = run_write(on_sqlite._executor, registering("late", sleeping(0.4)), 0.1)

    with pytest.raises(CatalogBusyError, match="took longer"):
        await late

    assert stored_references(sqlite_file) == set()


@pytest.mark.slow
async def test_committed_calls_return_before_the_other_calls_of_a_slow_batch(on_sqlite):
    """
    A slow batch is split. The calls of the first part return while the second part runs.
    """
    executor = on_sqlite._executor
    first = asyncio.create_task(run_write(executor, registering("first", sleeping(0.1))))
    second = asyncio.create_task(run_write(executor, registering("second", sleeping(1))))

    done, _ = await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)

    assert done == {first}
    await second


@pytest.mark.slow
async def test_call_that_waits_for_a_retry_can_time_out(on_sqlite, sqlite_file):
    """
    After a failure in its batch, a call whose retry has not begun fails at its timeout.
    """
    executor = on_sqlite._executor

    (failed, _), (slow, _), (third, third_s) = await asyncio.gather(
        timed(run_write(executor, fail, 20)),
        timed(run_write(executor, registering("slow", sleeping(1.5)), 20)),
        timed(run_write(executor, registering("third"), 0.2)),
    )

    assert isinstance(failed, ZeroDivisionError)
    assert slow is None
    assert isinstance(third, CatalogBusyError)
    assert third_s < 1
    assert stored_references(sqlite_file) == {"slow"}


async def test_refused_commit_is_rolled_back(on_sqlite, sqlite_file):
    """
    SQLite keeps a transaction open if it refuses the COMMIT. The executor rolls it back, and the
    next call has its own transaction.
    """

    def insert_orphan(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        connection.exec_driver_sql(
            "INSERT INTO model_tags (model_id, folded, tag) VALUES (99, 't', 't')"
        )

    with pytest.raises(CatalogError, match="rows of another table refer to it"):
        await run_write(on_sqlite._executor, insert_orphan)

    await on_sqlite.register_model(a_model("m"))
    with closing(sqlite3.connect(sqlite_file)) as raw:
        assert raw.execute("SELECT count(*) FROM model_tags").fetchall() == [(0,)]


async def test_calls_of_a_batch_that_waits_for_a_lock_have_their_own_timeouts(
    on_sqlite, sqlite_file
):
    """
    A call of the batch and a call that is queued behind it time out and name the lock. The other
    calls keep waiting, and get the lock.
    """
    executor = on_sqlite._executor
    with closing(sqlite3.connect(sqlite_file, isolation_level=None)) as raw:
        raw.execute("BEGIN IMMEDIATE")
        long_wait = asyncio.create_task(timed(run_write(executor, registering("long"), 20)))
        short_wait = asyncio.create_task(timed(run_write(executor, registering("short"), 0.3)))
        while executor._writer._runner.waiting_for is None:
            await asyncio.sleep(0)
        queued = asyncio.create_task(timed(run_write(executor, registering("queued"), 0.3)))
        (first, first_s), (second, second_s) = await asyncio.gather(short_wait, queued)
        assert not long_wait.done()
        raw.execute("ROLLBACK")

    assert [type(first), type(second)] == [CatalogBusyError] * 2
    assert max(first_s, second_s) < 1
    assert first.reason == second.reason == "database is locked"
    assert (await long_wait)[0] == "done"
    assert stored_references(sqlite_file) == {"long"}


async def test_reads_wait_for_a_lock(sqlite_file):
    """
    Without a write-ahead log a writer blocks readers for a moment; then the reads are completed.
    """
    with closing(sqlite3.connect(sqlite_file, isolation_level=None)) as raw:
        raw.execute("PRAGMA journal_mode = DELETE")
        async with open_catalog(sqlite_file) as catalog:
            raw.execute("BEGIN EXCLUSIVE")
            reads = [catalog.list_models(), catalog.find_model("m", "hf"), catalog.count_models()]
            waiting = asyncio.gather(*reads)
            done, _ = await asyncio.wait([waiting], timeout=0.4)
            assert not done
            raw.execute("ROLLBACK")

            assert await waiting == [[], None, 0]


async def test_cancelled_read_does_not_stop_other_reads(on_sqlite):
    """
    Reads share a snapshot. Cancelling one, whether it is complete or running, does not affect the
    others.
    """
    executor = on_sqlite._executor
    done = asyncio.create_task(read_shared(executor, finish_at_once))
    first = asyncio.create_task(read_shared(executor, counting(SLOW_ROWS)))
    slow = asyncio.create_task(read_shared(executor, counting(ENDLESS_ROWS)))
    last = asyncio.create_task(read_shared(executor, counting(SLOW_ROWS)))
    await asyncio.sleep(0.05)

    start = time.monotonic()
    done.cancel()
    slow.cancel()
    await asyncio.wait([done])

    assert time.monotonic() - start < 0.1
    assert await asyncio.wait_for(asyncio.gather(first, last), 20) == [SLOW_ROWS, SLOW_ROWS]
    await asyncio.wait([slow])
    assert slow.cancelled()


async def test_read_behind_an_interrupted_read_is_completed(on_sqlite):
    """
    A slow read is interrupted at its timeout, and the other reads of its snapshot continue.
    """
    on_sqlite._executor.timeout_s = 0.3
    slow = asyncio.create_task(timed(read_shared(on_sqlite._executor, counting(ENDLESS_ROWS))))
    await asyncio.sleep(0)
    on_sqlite._executor.timeout_s = 20
    other = asyncio.create_task(timed(read_shared(on_sqlite._executor, counting(SLOW_ROWS))))

    error, slow_s = await slow
    assert isinstance(error, CatalogBusyError)
    assert "its statements took longer" in error.reason
    assert slow_s < 0.3 + 0.15
    assert (await other)[0] == SLOW_ROWS


@pytest.mark.slow
async def test_overload_completes_the_calls_that_fit_in_the_timeout(sqlite_file):
    """
    If there are more calls than can run within the timeout, those that could run are committed.
    """
    async with open_catalog(sqlite_file, timeout_s=1.0) as catalog:
        # Opening the file must not count.
        await run_write(catalog._executor, finish_at_once)
        found = await asyncio.gather(
            *(
                timed(run_write(catalog._executor, registering(f"m{number}", sleeping(0.01))))
                for number in range(200)
            )
        )
    completed = {f"m{number}" for number, (error, _) in enumerate(found) if error is None}

    assert stored_references(sqlite_file) == completed
    assert len(completed) > 10
    assert {type(error) for error, _ in found} <= {type(None), CatalogBusyError}
    assert max(seconds for _, seconds in found) < PROMPT_S


async def test_thread_that_cannot_start_raises_unavailable(on_sqlite, monkeypatch):
    """
    If the system cannot start a thread, the call raises. The next call tries again, and the catalog
    can be closed.
    """

    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(CatalogUnavailableError, match="can't start new thread"):
            await asyncio.wait_for(on_sqlite.register_model(a_model("m")), PROMPT_S)

    await on_sqlite.register_model(a_model("m"))
    assert len(await on_sqlite.list_models()) == 1


async def test_use_in_another_loop_is_rejected(on_sqlite):
    """
    Uses are batched within one event loop; a call in another loop raises WrongLoopError.
    """
    await on_sqlite.register_model(a_model("m"))
    busy = asyncio.create_task(run_write(on_sqlite._executor, sleeping(0.3)))
    await asyncio.sleep(0.05)
    here = asyncio.create_task(on_sqlite.record_use("m", "hf"))
    await asyncio.sleep(0.05)

    async def elsewhere():
        async with asyncio.timeout(PROMPT_S):
            await on_sqlite.record_use("m", "hf")

    with pytest.raises(WrongLoopError):
        await asyncio.to_thread(asyncio.run, elsewhere())

    await asyncio.gather(busy, here)
    assert (await on_sqlite.get_model("m", "hf")).use_count == 1


@pytest.mark.slow
async def test_use_that_times_out_states_its_own_waiting_time(sqlite_file):
    """
    The time counts from the call, also if it first waited for a previous batch of uses.
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


CLOSED_LOOP_PROGRAM = """
import asyncio, os, sqlite3, sys, threading
from model_catalog import open_catalog
from model_catalog.execution.executor import write

threads, proceed = [], threading.Event()

def wait_in_thread(connection, _value):
    threads.append(threading.current_thread())
    begun.set()
    proceed.wait(20)

loop = asyncio.new_event_loop()
begun = threading.Event()
block = open_catalog(sys.argv[1])
catalog = loop.run_until_complete(block.__aenter__())

async def call():
    task = asyncio.ensure_future(catalog._executor.run(write(wait_in_thread, None)))
    await asyncio.to_thread(begun.wait, 20)
    return task

task = loop.run_until_complete(call())
loop.close()
proceed.set()
threads[0].join(20)
sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None).execute("BEGIN EXCLUSIVE")
print("free", threads[0].is_alive(), flush=True)
os._exit(0)
"""


def test_loop_closed_during_a_call_leaves_no_lock(sqlite_file):
    """
    No task waits for the call any more: the thread finishes it, closes its connection and ends.
    """
    command = [sys.executable, "-X", "dev", "-c", CLOSED_LOOP_PROGRAM, str(sqlite_file)]

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert (done.stdout, done.returncode) == ("free False\n", 0)
    assert "Exception in thread" not in done.stderr


async def test_result_is_not_referenced_until_the_timeout(on_sqlite):
    """
    The executor keeps no reference to a result, so it is freed when the caller drops it.
    """
    await on_sqlite.register_model(a_model("m"))
    (model,) = await on_sqlite.list_models()
    known = weakref.ref(model)

    del model
    gc.collect()

    assert known() is None


@pytest.mark.slow
async def test_closed_catalog_leaves_no_timer_in_the_loop(sqlite_file):
    """
    The timer for deadlines is cancelled, so no object of the catalog stays referenced.
    """
    before = [each for each in gc.get_objects() if isinstance(each, RequestQueue)]
    async with open_catalog(sqlite_file) as catalog:
        await catalog.count_models()
    del catalog

    gc.collect()

    there = [each for each in gc.get_objects() if isinstance(each, RequestQueue)]
    assert len(there) == len(before)

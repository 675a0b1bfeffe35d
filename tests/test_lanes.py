"""Calls that share a thread and a transaction: what befalls one is nothing to the others."""

import asyncio
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest
from conftest import a_model
from sqlalchemy import Connection

from model_catalog import (
    CatalogBusyError,
    CatalogUnavailableError,
    WrongLoopError,
    open_catalog,
)

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


async def together(work, unit):
    """A look of the quick kind, which shares its snapshot with others."""
    return await work._reader(alone=False).call(unit, work.timeout_s)


def recorded(path) -> set[str]:
    with closing(sqlite3.connect(path)) as raw:
        return {reference for (reference,) in raw.execute("SELECT reference FROM models")}


async def test_a_call_that_is_stopped_is_told_before_its_batch_has_ended(on_sqlite, sqlite_file):
    """
    One of several that share a transaction is too slow: it is told so in its time, and the others
    are done, though they take long as well.
    """
    work = on_sqlite._work

    (slow, slow_s), (other, _), (third, _) = await asyncio.gather(
        timed(work.write(registering("slow", counting(FOR_EVER)), 0.2)),
        timed(work.write(registering("other", counting(A_WHILE)), 20)),
        timed(work.write(registering("third", counting(A_WHILE)), 20)),
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
    work = on_sqlite._work

    (failed, _), (quick, quick_s), (other, _) = await asyncio.gather(
        timed(work.write(failing, 20)),
        timed(work.write(registering("quick"), 0.1)),
        timed(work.write(registering("other", counting(5 * A_WHILE)), 20)),
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
    work = on_sqlite._work

    def late_failure(_connection: Connection) -> None:
        time.sleep(0.3)
        raise ZeroDivisionError

    (late, _), (failed, _) = await asyncio.gather(
        timed(work.write(registering("late"), 0.1)), timed(work.write(late_failure, 20))
    )

    assert isinstance(failed, ZeroDivisionError)
    assert isinstance(late, CatalogBusyError)
    assert recorded(sqlite_file) == set()


async def test_a_reader_that_gives_up_stops_no_other(on_sqlite):
    """
    Looks that share a snapshot: of one that was cancelled, whether it is done already or under way,
    nothing is felt by the others.
    """
    work = on_sqlite._work
    done = asyncio.create_task(together(work, at_once))
    first = asyncio.create_task(together(work, counting(A_WHILE)))
    slow = asyncio.create_task(together(work, counting(FOR_EVER)))
    last = asyncio.create_task(together(work, counting(A_WHILE)))
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
    on_sqlite._work.timeout_s = 0.3
    slow = asyncio.create_task(timed(together(on_sqlite._work, counting(FOR_EVER))))
    await asyncio.sleep(0)
    on_sqlite._work.timeout_s = 20
    other = asyncio.create_task(timed(together(on_sqlite._work, counting(A_WHILE))))

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
        await catalog._work.write(at_once)
        found = await asyncio.gather(
            *(
                timed(catalog._work.write(registering(f"m{number}", sleeping(0.01))))
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
    busy = asyncio.create_task(on_sqlite._work.write(sleeping(0.3)))
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

threads, go_on = [], threading.Event()

def unit(connection):
    threads.append(threading.current_thread())
    begun.set()
    go_on.wait(20)

loop = asyncio.new_event_loop()
begun = threading.Event()
block = open_catalog(sys.argv[1])
catalog = loop.run_until_complete(block.__aenter__())

async def call():
    task = asyncio.ensure_future(catalog._work.write(unit))
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

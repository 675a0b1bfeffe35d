"""Forks, event loops and closing: a catalog belongs to one process and one loop."""

import asyncio
import json
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import fork_programs
import pytest
from child_programs import PROCESSES
from conftest import a_model
from public_calls import READS, WRITES, fill

from model_catalog import (
    CatalogClosedError,
    CatalogError,
    WrongLoopError,
    open_catalog,
)

TIMEOUT_S = 0.3
PROMPT_S = 1.0
"""The time within which a call with TIMEOUT_S must have ended, even on a busy machine."""

CALLS = READS | WRITES


def run_fork_scenario(database, scenario):
    """Run a scenario of `fork_programs`; return the results of the child and the parent."""
    ours, theirs = PROCESSES.Pipe(duplex=False)
    parent = PROCESSES.Process(target=fork_programs.run, args=(scenario, database.target, theirs))
    parent.start()
    theirs.close()
    try:
        if not ours.poll(3 * fork_programs.WATCH_S):
            pytest.fail("the parent hangs")
        results = ours.recv()
        parent.join(fork_programs.WATCH_S)
        assert parent.exitcode == 0, "the parent does not exit"
    finally:
        parent.kill()
        parent.join()
        ours.close()
    if database.path is not None:
        with closing(sqlite3.connect(database.path)) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return results


def test_calls_in_a_forked_child_raise_wrong_loop(database):
    """
    Every call in the child raises WrongLoopError without hanging, and the parent keeps working.
    """
    child, left = run_fork_scenario(database, "use")

    assert isinstance(child, dict), child
    errors = {name: result if result == "works" else result[0] for name, result in child.items()}
    assert errors == dict.fromkeys(CALLS, "WrongLoopError")
    messages = [result[1] for result in child.values()]
    assert all("process" in message and "open it again" in message for message in messages)
    assert left == ["after", "before"]


def test_forked_child_can_open_its_own_catalog(database):
    """
    The child opens the same database, and the parent reads the rows that the child writes.
    """
    child, left = run_fork_scenario(database, "open_again")

    assert child == "works"
    assert left == ["after", "before", "child"]


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_forked_child_leaves_the_block_without_effect(database, where):
    """
    A child that leaves the parent's `async with` block, or a transaction in it, ends neither. All
    writes of the parent are stored.
    """
    child, count = run_fork_scenario(database, f"leave_{where}")

    assert child == "SystemExit"
    assert count == 2 + (fork_programs.MANY if where == "inside" else 0)


@pytest.mark.slow
def test_forked_child_over_a_host_engine_does_not_hang(database):
    """
    Over a host's engine each call in the child works or raises our error, and the parent's
    connections are not affected.
    """
    child, left = run_fork_scenario(database, "use_host_engine")

    assert isinstance(child, dict), child
    assert all(result == "works" or "Error" in result[0] for result in child.values())
    assert "after" in left


async def outcomes(catalog) -> dict[str, CatalogError | None]:
    """Return the result or the error of each public call."""
    found = {}
    for name, call in CALLS.items():
        try:
            found[name] = await call(catalog)
        except CatalogError as error:
            found[name] = error
    return found


def assert_all_are(found, kind) -> None:
    assert {name: value for name, value in found.items() if not isinstance(value, kind)} == {}


async def test_calls_in_another_loop_raise_wrong_loop(database):
    """
    In an event loop other than its own, every call raises WrongLoopError and does nothing.
    """
    async with open_catalog(database.target) as catalog:
        await fill(catalog)
        before = repr(await catalog.list_models())

        found = await asyncio.to_thread(asyncio.run, outcomes(catalog))

        assert_all_are(found, WrongLoopError)
        assert all("loop" in str(error) and "open it" in str(error) for error in found.values())
        assert repr(await catalog.list_models()) == before
        await catalog.record_use("m", "hf")


async def test_transaction_rejects_calls_in_another_loop(database):
    """
    A call in another loop raises WrongLoopError and does not affect the open transaction.
    """
    async with open_catalog(database.target) as catalog:
        async with catalog.transaction() as inner:
            await fill(inner)
            found = await asyncio.to_thread(asyncio.run, outcomes(inner))
        assert_all_are(found, WrongLoopError)
        assert len(await catalog.list_models()) == 1


def test_second_asyncio_run_is_another_loop(database):
    """
    A catalog opened in one asyncio.run cannot be used in the next; the first can use and close it.
    """
    block = open_catalog(database.target)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        catalog = first.run(block.__aenter__())
        first.run(fill(catalog))

        assert_all_are(second.run(outcomes(catalog)), WrongLoopError)

        assert len(first.run(catalog.list_models())) == 1
        first.run(block.__aexit__(None, None, None))
        assert_all_are(first.run(outcomes(catalog)), CatalogClosedError)


async def test_calls_after_close_raise_closed(database):
    """
    After the block every call raises CatalogClosedError, and no connection is opened.
    """
    async with open_catalog(database.target) as catalog:
        await fill(catalog)
        models = catalog.iter_models()
        async with catalog.transaction() as inner:
            pass

    found = await outcomes(catalog)

    assert_all_are(found, CatalogClosedError)
    with pytest.raises(CatalogClosedError):
        await anext(models)
    with pytest.raises(CatalogError):
        await inner.list_models()
    database.assert_nothing_left()


async def leave_normally() -> None:
    """Leave the block without an error."""


async def leave_by_an_error() -> None:
    raise ZeroDivisionError


async def leave_by_a_cancellation() -> None:
    asyncio.current_task().cancel()
    await asyncio.sleep(0)


WAYS_OUT = {
    "normally": leave_normally,
    "by an error": leave_by_an_error,
    "by a cancellation": leave_by_a_cancellation,
}


async def register_three(catalog, number):
    await catalog.register_models(a_model(f"{number}-{part}") for part in "abc")


async def register_three_in_transaction(catalog, number):
    async with catalog.transaction() as inner:
        for part in "abc":
            await inner.register_model(a_model(f"{number}-{part}"))
            await asyncio.sleep(0)


@pytest.mark.parametrize("way_out", WAYS_OUT.values(), ids=WAYS_OUT)
async def test_calls_in_progress_at_close_are_completed_or_rolled_back(database, way_out):
    """
    A catalog is closed at any moment while calls are in progress. Each call returns its result, or
    raises CatalogClosedError and has written nothing. None waits for ever.
    """
    kinds = (register_three, register_three_in_transaction)
    for moment in (0, 1, 3, 10, 40, 150):
        tasks, reads = {}, []
        try:
            async with open_catalog(database.target, timeout_s=5) as catalog:
                for number in range(8):
                    name = f"{moment}-{number}"
                    tasks[name] = asyncio.create_task(kinds[number % 2](catalog, name))
                    reads.append(asyncio.create_task(catalog.list_models()))
                for _ in range(moment):
                    await asyncio.sleep(0)
                await way_out()
        except (ZeroDivisionError, asyncio.CancelledError):
            assert way_out is not leave_normally
        async with asyncio.timeout(PROMPT_S):
            found = await asyncio.gather(*tasks.values(), return_exceptions=True)
            read = await asyncio.gather(*reads, return_exceptions=True)
        database.assert_nothing_left()

        assert [each for each in read if not isinstance(each, (list, CatalogClosedError))] == []
        recorded = database.run("SELECT reference FROM models")
        for name, error in zip(tasks, found, strict=True):
            assert error is None or isinstance(error, CatalogClosedError), repr(error)
            rows = [row for (row,) in recorded if row.rpartition("-")[0] == name]
            assert len(rows) == (3 if error is None else 0), (name, error)


async def test_open_transaction_is_rolled_back_at_close(database):
    """
    The task in the transaction gets an error at its next call, and nothing is stored.
    """
    written, proceed = asyncio.Event(), asyncio.Event()

    async def writer():
        async with catalog.transaction() as inner:
            await inner.register_model(a_model("m"))
            written.set()
            await proceed.wait()
            await inner.register_model(a_model("n"))

    async with open_catalog(database.target, timeout_s=TIMEOUT_S) as catalog:
        task = asyncio.create_task(writer())
        # The writer may fail on a busy machine, and would then never set the event.
        async with asyncio.timeout(3 * PROMPT_S):
            await written.wait()
        # Otherwise a block that waits for the writer would hang.
        asyncio.get_running_loop().call_later(3 * PROMPT_S, proceed.set)
        start = time.monotonic()
    duration_s = time.monotonic() - start
    database.assert_nothing_left()
    proceed.set()
    with pytest.raises(CatalogError):
        await task

    assert duration_s < PROMPT_S
    assert database.run("SELECT reference FROM models") == []


async def test_two_catalogs_of_one_database_close_independently(database):
    """
    Closing one does not affect the other.
    """
    async with open_catalog(database.target) as first:
        async with open_catalog(database.target) as second:
            await asyncio.gather(*(second.list_models() for _ in range(5)))
            await first.register_model(a_model("m"))

        with pytest.raises(CatalogClosedError):
            await second.list_models()
        await first.register_model(a_model("n"))
        assert len(await first.list_models()) == 2


@pytest.mark.slow_with("asyncpg")
async def test_opening_and_closing_leaks_no_threads_tasks_or_files(database):
    """
    After twenty catalogs there are as many threads, tasks and open files as after the first.
    """

    async def open_and_close():
        async with open_catalog(database.target) as catalog:
            await asyncio.gather(*(catalog.list_models() for _ in range(6)))
            await catalog.register_model(a_model("m"))

    def resources():
        # The loop's own threads (`asyncio_0`) grow in number and stay; they belong to the host.
        names = [thread.name for thread in threading.enumerate()]
        return (
            sorted(name for name in names if not name.startswith("asyncio_")),
            len(asyncio.all_tasks()),
            len(list(Path("/proc/self/fd").iterdir())),
        )

    await open_and_close()
    database.assert_nothing_left()
    before = resources()
    for _ in range(20):
        await open_and_close()
    database.assert_nothing_left()

    assert resources() == before


EXIT_PROGRAM = """
import asyncio, gc, json, sys, threading
from model_catalog import CatalogError, Model, open_catalog

how, target = sys.argv[1:]
model = Model(reference="m", provider="hf", local_path="/m")

async def main():
    # In development mode asyncio logs every slow iteration of its loop.
    asyncio.get_running_loop().slow_callback_duration = 60
    block = open_catalog(target)
    catalog = await block.__aenter__()
    calls = [catalog.register_model(model), catalog.record_use("m", "hf"), catalog.list_models()]
    tasks = [asyncio.create_task(call) for call in calls]
    await asyncio.sleep(0.001)
    if how == "closed":
        await block.__aexit__(None, None, None)
        await asyncio.gather(*tasks, return_exceptions=True)
        return catalog
    # Without a close, the end of the loop closes it.
    return block, catalog

kept = asyncio.run(main())
del kept
gc.collect()
print(json.dumps([thread.name for thread in threading.enumerate()]))
"""


async def run_exit_program(how, database):
    """Run a process that exits with its catalog closed or open; return its output."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "dev", "-W", "error", "-c", EXIT_PROGRAM, how, database.target),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(child.communicate(), 30)
    except TimeoutError:
        child.kill()
        await child.wait()
        pytest.fail("the process does not exit")
    assert child.returncode == 0
    return output, errors.decode()


@pytest.mark.slow
@pytest.mark.slow_with("asyncpg")
async def test_process_exits_without_warnings_or_threads(database):
    """
    A catalog is closed during calls, with warnings as errors: nothing is printed to standard error,
    and only the main thread is left.
    """
    output, errors = await run_exit_program("closed", database)

    assert errors == ""
    assert json.loads(output) == ["MainThread"]


@pytest.mark.slow
@pytest.mark.slow_with("asyncpg")
async def test_process_that_does_not_close_its_catalog_exits(database):
    """
    Python may warn, but the process does not hang on one of our threads.
    """
    await run_exit_program("never closed", database)


async def test_current_file_is_opened_without_an_async_engine(sqlite_file, monkeypatch):
    """
    No asynchronous driver is started for a file whose schema is current; a thread reads it.
    """

    def refuse(*_):
        pytest.fail("an asynchronous engine was created")

    monkeypatch.setattr("model_catalog.connection.open_database.create_engine", refuse)

    async with open_catalog(sqlite_file) as catalog:
        assert await catalog.list_models() == []

"""The life of a catalog: one process, one loop, and an end that leaves nothing behind."""

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
END_S = 1.0
"""When what waits no longer than TIMEOUT_S has to have ended, on a busy machine as well."""

CALLS = READS | WRITES


def forking(database, scenario):
    """What a process and the child that it forks say of a scenario."""
    ours, theirs = PROCESSES.Pipe(duplex=False)
    parent = PROCESSES.Process(target=fork_programs.run, args=(scenario, database.target, theirs))
    parent.start()
    theirs.close()
    try:
        if not ours.poll(3 * fork_programs.WATCH_S):
            pytest.fail("the parent hangs")
        said = ours.recv()
        parent.join(fork_programs.WATCH_S)
        assert parent.exitcode == 0, "the parent does not come to its end"
    finally:
        parent.kill()
        parent.join()
        ours.close()
    if database.path is not None:
        with closing(sqlite3.connect(database.path)) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return said


def test_a_forked_child_is_told_that_the_catalog_is_its_parents(database):
    """
    Every call in the child is refused by name, and hangs nowhere; the parent works on, as ever.
    """
    child, left = forking(database, "use")

    assert isinstance(child, dict), child
    kinds = {name: said if said == "works" else said[0] for name, said in child.items()}
    assert kinds == dict.fromkeys(CALLS, "WrongLoopError")
    assert all("process" in said[1] and "open it again" in said[1] for said in child.values())
    assert left == ["after", "before"]


def test_a_forked_child_opens_its_own(database):
    """
    The child opens the same database, and what it writes the parent reads.
    """
    child, left = forking(database, "open_again")

    assert child == "works"
    assert left == ["after", "before", "child"]


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_a_forked_child_leaves_the_block_without_a_trace(database, where):
    """
    A child that goes out through the parent's `async with`, and the transaction in it, ends
    neither: what the parent has written and goes on to write is there.
    """
    child, count = forking(database, f"leave_{where}")

    assert child == "SystemExit"
    assert count == 2 + (fork_programs.MANY if where == "inside" else 0)


def test_a_forked_child_of_a_host_does_not_hang(database):
    """
    Over a host's engine a call in the child works or is refused in words of ours, and the parent's
    connections are its own.
    """
    child, left = forking(database, "use_host_engine")

    assert isinstance(child, dict), child
    assert all(said == "works" or "Error" in said[0] for said in child.values())
    assert "after" in left


async def outcomes(catalog) -> dict[str, CatalogError | None]:
    """The error of each public call."""
    found = {}
    for name, call in CALLS.items():
        try:
            found[name] = await call(catalog)
        except CatalogError as error:
            found[name] = error
    return found


def assert_all_are(found, kind) -> None:
    assert {name: value for name, value in found.items() if not isinstance(value, kind)} == {}


async def test_another_threads_loop_is_refused(database):
    """
    A catalog belongs to the loop it was opened in: in another every call says so, and does nothing.
    """
    async with open_catalog(database.target) as catalog:
        await fill(catalog)
        before = repr(await catalog.list_models())

        found = await asyncio.to_thread(asyncio.run, outcomes(catalog))

        assert_all_are(found, WrongLoopError)
        assert all("loop" in str(error) and "open it" in str(error) for error in found.values())
        assert repr(await catalog.list_models()) == before
        await catalog.record_use("m", "hf")


async def test_the_catalog_of_a_transaction_is_of_its_loop_as_well(database):
    """
    Inside transaction() no other loop may call either, and the transaction is not hurt by it.
    """
    async with open_catalog(database.target) as catalog:
        async with catalog.transaction() as inner:
            await fill(inner)
            found = await asyncio.to_thread(asyncio.run, outcomes(inner))
        assert_all_are(found, WrongLoopError)
        assert len(await catalog.list_models()) == 1


def test_a_second_run_is_another_loop(database):
    """
    What one asyncio.run opened the next may not use; the first may, and close it.
    """
    block = open_catalog(database.target)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        catalog = first.run(block.__aenter__())
        first.run(fill(catalog))

        assert_all_are(second.run(outcomes(catalog)), WrongLoopError)

        assert len(first.run(catalog.list_models())) == 1
        first.run(block.__aexit__(None, None, None))
        assert_all_are(first.run(outcomes(catalog)), CatalogClosedError)


async def test_a_closed_catalog_says_so(database):
    """
    After the block every call is CatalogClosedError, and opens nothing again.
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


async def leave_at_once() -> None:
    """The block ends well."""


async def leave_by_an_error() -> None:
    raise ZeroDivisionError


async def leave_by_a_cancellation() -> None:
    asyncio.current_task().cancel()
    await asyncio.sleep(0)


WAYS_OUT = {
    "at once": leave_at_once,
    "by an error": leave_by_an_error,
    "by a cancellation": leave_by_a_cancellation,
}


async def register_three(catalog, number):
    await catalog.register_models(a_model(f"{number}-{part}") for part in "abc")


async def register_three_together(catalog, number):
    async with catalog.transaction() as inner:
        for part in "abc":
            await inner.register_model(a_model(f"{number}-{part}"))
            await asyncio.sleep(0)


@pytest.mark.parametrize("way_out", WAYS_OUT.values(), ids=WAYS_OUT)
async def test_what_is_in_flight_when_it_closes_is_done_or_undone(database, way_out):
    """
    Left at any moment with calls under way, a catalog closes; each call was done, and returns,
    or is CatalogClosedError and wrote nothing. None is left waiting.
    """
    kinds = (register_three, register_three_together)
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
            assert way_out is not leave_at_once
        async with asyncio.timeout(END_S):
            found = await asyncio.gather(*tasks.values(), return_exceptions=True)
            read = await asyncio.gather(*reads, return_exceptions=True)
        database.assert_nothing_left()

        assert [each for each in read if not isinstance(each, (list, CatalogClosedError))] == []
        recorded = database.run("SELECT reference FROM models")
        for name, error in zip(tasks, found, strict=True):
            assert error is None or isinstance(error, CatalogClosedError), repr(error)
            rows = [row for (row,) in recorded if row.rpartition("-")[0] == name]
            assert len(rows) == (3 if error is None else 0), (name, error)


async def test_a_transaction_that_is_open_when_it_closes_is_rolled_back(database):
    """
    A task that is not at the end of its transaction finds it over, and nothing of it is kept.
    """
    written, go_on = asyncio.Event(), asyncio.Event()

    async def writer():
        async with catalog.transaction() as inner:
            await inner.register_model(a_model("m"))
            written.set()
            await go_on.wait()
            await inner.register_model(a_model("n"))

    async with open_catalog(database.target, timeout_s=TIMEOUT_S) as catalog:
        task = asyncio.create_task(writer())
        await written.wait()
        # Else a block that waits for the writer would wait for ever.
        asyncio.get_running_loop().call_later(3 * END_S, go_on.set)
        start = time.monotonic()
    took = time.monotonic() - start
    database.assert_nothing_left()
    go_on.set()
    with pytest.raises(CatalogError):
        await task

    assert took < END_S
    assert database.run("SELECT reference FROM models") == []


async def test_two_catalogs_of_one_database_close_apart(database):
    """
    Closing one is nothing to the other.
    """
    async with open_catalog(database.target) as staying:
        async with open_catalog(database.target) as going:
            await asyncio.gather(*(going.list_models() for _ in range(5)))
            await staying.register_model(a_model("m"))

        with pytest.raises(CatalogClosedError):
            await going.list_models()
        await staying.register_model(a_model("n"))
        assert len(await staying.list_models()) == 2


async def test_opening_and_closing_leaves_nothing_of_the_process(database):
    """
    Twenty lives later there are as many threads, tasks and open files as after the first.
    """

    async def life():
        async with open_catalog(database.target) as catalog:
            await asyncio.gather(*(catalog.list_models() for _ in range(6)))
            await catalog.register_model(a_model("m"))

    def things():
        # The loop's own threads (`asyncio_0`) grow in number and stay: they are the host's.
        names = [thread.name for thread in threading.enumerate()]
        return (
            sorted(name for name in names if not name.startswith("asyncio_")),
            len(asyncio.all_tasks()),
            len(list(Path("/proc/self/fd").iterdir())),
        )

    await life()
    database.assert_nothing_left()
    before = things()
    for _ in range(20):
        await life()
    database.assert_nothing_left()

    assert things() == before


LIVES = """
import asyncio, gc, json, sys, threading
from model_catalog import CatalogError, Model, open_catalog

how, target = sys.argv[1:]
model = Model(reference="m", provider="hf", local_path="/m")

async def main():
    # In development mode asyncio tells of every turn of its loop that was slow.
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
    # Whoever does not close it leaves that to the end of the loop.
    return block, catalog

kept = asyncio.run(main())
del kept
gc.collect()
print(json.dumps([thread.name for thread in threading.enumerate()]))
"""


async def life(how, database):
    """What a process has to say that ends in one of these ways."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "dev", "-W", "error", "-c", LIVES, how, database.target),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(child.communicate(), 30)
    except TimeoutError:
        child.kill()
        await child.wait()
        pytest.fail("it does not come to its end")
    assert child.returncode == 0
    return output, errors.decode()


async def test_a_process_ends_with_nothing_to_say(database):
    """
    With calls under way when the catalog closes, and every warning an error, nothing is said, and
    no thread is left.
    """
    output, errors = await life("closed", database)

    assert errors == ""
    assert json.loads(output) == ["MainThread"]


async def test_a_process_that_never_closes_its_catalog_ends(database):
    """
    What Python says of that is its own affair; it hangs on no thread of ours.
    """
    await life("never closed", database)


async def test_a_file_that_is_up_to_date_is_opened_without_an_engine_of_the_loop(
    sqlite_file, monkeypatch
):
    """
    No driver that lives in the event loop is started for what a thread is going to read.
    """

    def refuse(*_):
        pytest.fail("an engine was made")

    monkeypatch.setattr("model_catalog.connection.open_database.create_engine", refuse)

    async with open_catalog(sqlite_file) as catalog:
        assert await catalog.list_models() == []

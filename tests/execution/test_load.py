"""Many at once, for long, and cancelled at any moment: nothing fails, is lost or left behind."""

import asyncio
import os
import random
import sqlite3
import threading
import time
from collections import Counter
from pathlib import Path

import anyio
import pytest
from child_programs import PROCESSES, write_for
from conftest import a_model
from public_calls import fill

from model_catalog import open_catalog

CALLERS = 1000
CALLS_EACH = 2
PATIENT_S = 120
"""How long a call may wait in the queue: what a slow machine takes is no error."""
PROCESS_COUNT = 8
SECONDS = {"sqlite": 30, "asyncpg": 8, "psycopg": 8}
"""PostgreSQL has its own tests of that; SQLite's writers meet in code of ours."""
CANCELLED_CALLS = 2000

ON_SQLITE = pytest.mark.parametrize("backend", ["sqlite"])


def report(capsys, what: str, took: list[float], wall_s: float) -> None:
    """Say what a service may expect."""
    took = sorted(took)
    middle, worst = (took[int(len(took) * share)] * 1000 for share in (0.5, 0.99))
    with capsys.disabled():
        print(
            f"\n{what}: {len(took)} calls in {wall_s:.1f} s, {len(took) / wall_s:.0f} a second; "
            f"half of them within {middle:.0f} ms, 99 % within {worst:.0f} ms"
        )


async def find(catalog, number):
    assert await catalog.find_model("shared", "hf") is not None


async def list_some(catalog, number):
    assert await catalog.list_models(limit=5)


async def register(catalog, number):
    await catalog.register_model(a_model(f"own {number}"))


async def register_again(catalog, number):
    await catalog.register_model(a_model("shared"))


async def use(catalog, number):
    await catalog.record_use("shared", "hf")


async def update(catalog, number):
    await catalog.update_model(f"m{number}", "hf", license=f"of {number}")


KINDS = (find, list_some, register, register_again, use, update)


@pytest.mark.slow
async def test_a_thousand_callers_at_once_are_all_served(database, capsys):
    """
    A thousand tasks that read and write at the same time meet no error, and each write counts.
    """
    took = []
    done = Counter()

    async def caller(number):
        for kind in random.Random(number).choices(KINDS, k=CALLS_EACH):
            start = time.monotonic()
            await kind(catalog, number)
            took.append(time.monotonic() - start)
            done[kind, number] += 1

    async with open_catalog(database.target, timeout_s=PATIENT_S) as catalog:
        await catalog.register_models(
            [a_model("shared"), *(a_model(f"m{number}") for number in range(CALLERS))]
        )
        start = time.monotonic()
        await asyncio.gather(*(caller(number) for number in range(CALLERS)))
        report(capsys, f"{CALLERS} callers on {database.backend}", took, time.monotonic() - start)
        shared = await catalog.get_model("shared", "hf")
        database.assert_no_lock()

    sums = Counter()
    for (kind, _), count in done.items():
        sums[kind] += count
    assert sum(sums.values()) == CALLERS * CALLS_EACH
    assert (shared.use_count, shared.download_count) == (sums[use], 1 + sums[register_again])
    assert {
        (name, count)
        for name, count in database.run(
            "SELECT reference, download_count FROM models WHERE reference LIKE 'own %'"
        )
    } == {(f"own {number}", count) for (kind, number), count in done.items() if kind is register}
    assert {
        row for (row,) in database.run("SELECT license FROM models WHERE license IS NOT NULL")
    } == {f"of {number}" for kind, number in done if kind is update}


@pytest.mark.slow
async def test_eight_processes_that_write_for_long_lose_nothing(database, capsys):
    """
    Eight processes write without a pause: none meets an error, and all that each was acknowledged
    is there, once.
    """
    seconds = SECONDS[database.backend]
    async with open_catalog(database.target) as catalog:
        await catalog.register_model(a_model("shared"))
    pipes = [PROCESSES.Pipe(duplex=False) for _ in range(PROCESS_COUNT)]
    writers = [
        PROCESSES.Process(target=write_for, args=(database.target, number, seconds, theirs))
        for number, (_, theirs) in enumerate(pipes)
    ]
    for writer in writers:
        writer.start()
    for _, theirs in pipes:
        theirs.close()
    results = [await asyncio.to_thread(ours.recv) for ours, _ in pipes]
    for (ours, _), writer in zip(pipes, writers, strict=True):
        writer.join()
        ours.close()

    report(
        capsys,
        f"{PROCESS_COUNT} processes on {database.backend}",
        [each for _, took in results for each in took],
        seconds,
    )
    sums = sum((Counter(counts) for counts, _ in results), Counter())
    rows = {
        (name, given)
        for name, given in database.run(
            "SELECT reference, license FROM models WHERE reference LIKE 'p%'"
        )
    }
    assert database.run(
        "SELECT use_count, download_count FROM models WHERE reference = 'shared'"
    ) == [(sums["used"], 1 + sums["registered again"])]
    assert rows == {
        (name, name)
        for number, (counts, _) in enumerate(results)
        for name in (f"p{number} {each}" for each in range(counts["registered"]))
    }
    assert sums["registered"] == sums["updated"] >= PROCESS_COUNT


@pytest.fixture
def statements(monkeypatch):
    """What each connection that this process opens to SQLite executes, by the connection."""
    found: dict[sqlite3.Connection, list[str]] = {}

    def connect(*args, **options):
        connection = sqlite3.Connection(*args, **options)
        found[connection] = []
        connection.set_trace_callback(found[connection].append)
        return connection

    for module in (sqlite3, sqlite3.dbapi2):
        monkeypatch.setattr(module, "connect", connect)
    return found


WRITING = ("BEGIN IMMEDIATE", "BEGIN EXCLUSIVE", "INSERT", "UPDATE", "DELETE")


def descriptors_of(path: Path) -> int:
    found = 0
    for each in Path("/proc/self/fd").iterdir():
        try:
            found += os.path.realpath(each) == str(path)
        except FileNotFoundError:
            continue
    return found


@ON_SQLITE
async def test_all_that_a_process_writes_goes_through_one_connection(database, statements):
    """
    Sixty-four tasks that write, amid as many that read, share one connection that writes: SQLite
    has faults where several of a process write back the log.
    """
    async with open_catalog(database.target) as catalog:
        await fill(catalog)
        await asyncio.gather(*(catalog.list_models() for _ in range(8)))
        for executed in statements.values():
            executed.clear()

        await asyncio.gather(
            *(
                call
                for number in range(64)
                for call in (
                    catalog.register_model(a_model(f"m{number}")),
                    catalog.list_models(),
                    catalog.record_use("m", "hf"),
                )
            )
        )
        async with catalog.transaction() as inner:
            await inner.register_model(a_model("n"))
        await catalog.tag_model("m", "hf", "coding")

        assert await catalog.count_models() == 66
    used = [executed for executed in statements.values() if executed]
    writers = [executed for executed in used if any(text.startswith(WRITING) for text in executed)]
    assert len(used) > 1
    assert len(writers) == 1


@ON_SQLITE
async def test_writers_that_queue_open_no_connections(database):
    """
    Sixty-four tasks that only write need no more of the file than one does.
    """
    async with open_catalog(database.target) as catalog:
        await catalog.register_model(a_model("first"))
        before = descriptors_of(database.path)

        writes = [asyncio.create_task(catalog.register_model(a_model(f"m{n}"))) for n in range(64)]
        most = before
        while not all(write.done() for write in writes):
            most = max(most, descriptors_of(database.path))
            await asyncio.sleep(0.001)
        await asyncio.gather(*writes)

        assert (before, most) in {(1, 1), (2, 2)}


async def by_a_task(call, delay_s):
    task = asyncio.ensure_future(call)
    await asyncio.wait([task], timeout=delay_s)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return False
    return True


async def by_a_timeout(call, delay_s):
    try:
        async with asyncio.timeout(delay_s):
            await call
    except TimeoutError:
        return False
    return True


async def by_move_on_after(call, delay_s):
    with anyio.move_on_after(delay_s) as scope:
        await call
    return not scope.cancelled_caught


async def by_a_task_group(call, delay_s):
    """A sibling fails, and the group cancels the call."""
    ended = []

    async def run():
        await call
        ended.append(True)

    async def fail():
        await anyio.sleep(delay_s)
        raise ZeroDivisionError

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            group.start_soon(fail)
    except* ZeroDivisionError:
        pass
    return bool(ended)


CANCELLERS = (by_a_task, by_a_timeout, by_move_on_after, by_a_task_group)


async def cancelled_register(catalog, name):
    await catalog.register_model(a_model(f"{name}-0"))


async def cancelled_batch(catalog, name):
    await catalog.register_models(a_model(f"{name}-{part}") for part in range(3))


async def cancelled_transaction(catalog, name):
    async with catalog.transaction() as inner:
        await inner.register_model(a_model(f"{name}-0"))
        await inner.list_models(limit=1)
        await inner.register_model(a_model(f"{name}-1"))


async def cancelled_use(catalog, name):
    await catalog.record_use("shared", "hf")


async def cancelled_read(catalog, name):
    await catalog.stats()
    await catalog.list_models(limit=3)


PARTS = {
    cancelled_register: 1,
    cancelled_batch: 3,
    cancelled_transaction: 2,
    cancelled_use: 0,
    cancelled_read: 0,
}


def things() -> tuple[list[str], int, int]:
    """Threads, tasks and open files of this process; asyncio keeps threads of its own."""
    threads = sorted(each.name for each in threading.enumerate())
    return (
        [name for name in threads if not name.startswith("asyncio_")],
        len(asyncio.all_tasks()),
        len(list(Path("/proc/self/fd").iterdir())),
    )


@pytest.mark.slow
async def test_of_two_thousand_calls_seven_in_ten_are_cancelled(database, caplog):
    """
    Cancelled at random moments, in every way there is, they leave no lock, thread, connection or
    task; what was acknowledged is there, and what was not is there wholly or not at all.
    """
    choose = random.Random(6)
    acknowledged, all_names, uses = set(), {}, Counter()
    cancelled = 0
    typical_s = 0.01

    async def caller(number):
        nonlocal cancelled, typical_s
        for each in range(CANCELLED_CALLS // 40):
            name, kind = f"c{number}x{each}", choose.choice(list(PARTS))
            all_names[name] = kind
            if choose.random() < 0.7:
                delay_s = choose.uniform(0, 1.2 * typical_s)
                ended = await choose.choice(CANCELLERS)(kind(catalog, name), delay_s)
            else:
                start = time.monotonic()
                await kind(catalog, name)
                typical_s = 0.9 * typical_s + 0.1 * (time.monotonic() - start)
                ended = True
            cancelled += not ended
            if kind is cancelled_use:
                uses[ended] += 1
            if ended:
                acknowledged.add(name)

    before = things()
    async with open_catalog(database.target) as catalog:
        await catalog.register_model(a_model("shared"))
        await asyncio.gather(*(caller(number) for number in range(40)))
        database.assert_no_lock()
        if database.path is None:
            assert (
                database.run(
                    "SELECT mode, query FROM pg_locks JOIN pg_stat_activity USING (pid)"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                == []
            )
        await asyncio.wait_for(catalog.register_model(a_model("last")), 1)
        shared = await catalog.get_model("shared", "hf")
    database.assert_nothing_left()

    assert things() == before
    assert CANCELLED_CALLS * 0.3 < cancelled < CANCELLED_CALLS * 0.7
    assert uses[True] <= shared.use_count <= uses[True] + uses[False]
    found = Counter(
        name.partition("-")[0] for (name,) in database.run("SELECT reference FROM models")
    )
    for name, kind in all_names.items():
        assert found[name] in (0, PARTS[kind]), (name, kind)
        if name in acknowledged:
            assert found[name] == PARTS[kind], (name, kind)
    assert [each.getMessage() for each in caplog.records if each.levelname == "ERROR"] == []

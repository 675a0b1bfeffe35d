"""Load: many concurrent, long-running and cancelled calls lose and leak nothing."""

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
QUEUE_TIMEOUT_S = 120
"""A long timeout, so that a slow machine does not fail the test."""
PROCESS_COUNT = 8
WRITE_SECONDS = {"sqlite": 5, "asyncpg": 3, "psycopg": 3}
"""SQLite runs longer, because our own code queues its writers."""
CANCELLED_CALLS = 800

# asyncpg 0.32 forgets a future if it is cancelled just after the socket of a connection was opened.
ASYNCPG_CONNECTION_LOST = "unexpected connection_lost() call"

ON_SQLITE = pytest.mark.parametrize("backend", ["sqlite"])


def report(capsys, title: str, durations_s: list[float], wall_s: float) -> None:
    """Print the throughput and the latency percentiles."""
    durations_s = sorted(durations_s)
    count = len(durations_s)
    p50_ms, p99_ms = (durations_s[int(count * share)] * 1000 for share in (0.5, 0.99))
    with capsys.disabled():
        print(
            f"\n{title}: {count} calls in {wall_s:.1f} s, {count / wall_s:.0f} a second; "
            f"p50 {p50_ms:.0f} ms, p99 {p99_ms:.0f} ms"
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
async def test_thousand_concurrent_callers_get_no_error(database, capsys):
    """
    A thousand tasks read and write at the same time without an error, and each write is stored.
    """
    durations_s = []
    completed = Counter()

    async def caller(number):
        for kind in random.Random(number).choices(KINDS, k=CALLS_EACH):
            start = time.monotonic()
            await kind(catalog, number)
            durations_s.append(time.monotonic() - start)
            completed[kind, number] += 1

    async with open_catalog(database.target, timeout_s=QUEUE_TIMEOUT_S) as catalog:
        await catalog.register_models(
            [a_model("shared"), *(a_model(f"m{number}") for number in range(CALLERS))]
        )
        start = time.monotonic()
        await asyncio.gather(*(caller(number) for number in range(CALLERS)))
        report(
            capsys,
            f"{CALLERS} callers on {database.backend}",
            durations_s,
            time.monotonic() - start,
        )
        shared = await catalog.get_model("shared", "hf")
        database.assert_no_lock()

    sums = Counter()
    for (kind, _), count in completed.items():
        sums[kind] += count
    assert sum(sums.values()) == CALLERS * CALLS_EACH
    assert (shared.use_count, shared.download_count) == (sums[use], 1 + sums[register_again])
    assert {
        (name, count)
        for name, count in database.run(
            "SELECT reference, download_count FROM models WHERE reference LIKE 'own %'"
        )
    } == {
        (f"own {number}", count) for (kind, number), count in completed.items() if kind is register
    }
    assert {
        row for (row,) in database.run("SELECT license FROM models WHERE license IS NOT NULL")
    } == {f"of {number}" for kind, number in completed if kind is update}


@pytest.mark.slow
async def test_eight_writing_processes_lose_nothing(database, capsys):
    """
    Eight processes write without a pause and without an error. Every acknowledged write is stored
    exactly once.
    """
    seconds = WRITE_SECONDS[database.backend]
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
        [each for _, durations_s in results for each in durations_s],
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
    """Record the statements of each SQLite connection that this process opens."""
    found: dict[sqlite3.Connection, list[str]] = {}

    def connect(*args, **options):
        connection = sqlite3.Connection(*args, **options)
        found[connection] = []
        connection.set_trace_callback(found[connection].append)
        return connection

    for module in (sqlite3, sqlite3.dbapi2):
        monkeypatch.setattr(module, "connect", connect)
    return found


WRITE_STATEMENTS = ("BEGIN IMMEDIATE", "BEGIN EXCLUSIVE", "INSERT", "UPDATE", "DELETE")


def open_descriptor_count(path: Path) -> int:
    count = 0
    for each in Path("/proc/self/fd").iterdir():
        try:
            count += os.path.realpath(each) == str(path)
        except FileNotFoundError:
            continue
    return count


@ON_SQLITE
async def test_all_writes_of_a_process_use_one_connection(database, statements):
    """
    Sixty-four writing tasks among reading tasks share one writing connection. SQLite has had bugs
    when several connections of a process checkpoint the write-ahead log.
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
    writers = [
        executed for executed in used if any(text.startswith(WRITE_STATEMENTS) for text in executed)
    ]
    assert len(used) > 1
    assert len(writers) == 1


@ON_SQLITE
async def test_queued_writers_open_no_connections(database):
    """
    Sixty-four writing tasks open the file no more often than one does.
    """
    async with open_catalog(database.target) as catalog:
        await catalog.register_model(a_model("first"))
        before = open_descriptor_count(database.path)

        writes = [asyncio.create_task(catalog.register_model(a_model(f"m{n}"))) for n in range(64)]
        max_count = before
        while not all(write.done() for write in writes):
            max_count = max(max_count, open_descriptor_count(database.path))
            await asyncio.sleep(0.001)
        await asyncio.gather(*writes)

        assert (before, max_count) in {(1, 1), (2, 2)}


async def cancel_task(call, delay_s):
    task = asyncio.ensure_future(call)
    await asyncio.wait([task], timeout=delay_s)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return False
    return True


async def use_asyncio_timeout(call, delay_s):
    try:
        async with asyncio.timeout(delay_s):
            await call
    except TimeoutError:
        return False
    return True


async def use_move_on_after(call, delay_s):
    with anyio.move_on_after(delay_s) as scope:
        await call
    return not scope.cancelled_caught


async def fail_in_task_group(call, delay_s):
    """Cancel the call by the failure of a sibling task in an anyio task group."""
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


CANCELLERS = (cancel_task, use_asyncio_timeout, use_move_on_after, fail_in_task_group)


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


ROWS_OF_CALL = {
    cancelled_register: 1,
    cancelled_batch: 3,
    cancelled_transaction: 2,
    cancelled_use: 0,
    cancelled_read: 0,
}


def process_resources() -> tuple[list[str], int, int]:
    """Return the threads, tasks and open files of this process, without asyncio's own threads."""
    threads = sorted(each.name for each in threading.enumerate())
    return (
        [name for name in threads if not name.startswith("asyncio_")],
        len(asyncio.all_tasks()),
        len(list(Path("/proc/self/fd").iterdir())),
    )


@pytest.mark.slow
async def test_calls_with_cancellations_leak_nothing(database, caplog):
    """
    Seven in ten calls are cancelled at random moments, in four ways. They leave no lock, thread,
    connection or task. Acknowledged calls are stored; others are stored completely or not at all.
    """
    choose = random.Random(6)
    acknowledged, all_names, uses = set(), {}, Counter()
    cancelled = 0
    typical_s = 0.01

    async def caller(number):
        nonlocal cancelled, typical_s
        for each in range(CANCELLED_CALLS // 40):
            name, kind = f"c{number}x{each}", choose.choice(list(ROWS_OF_CALL))
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

    before = process_resources()
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

    after = process_resources()
    # A thread of the driver that the fixture has used may still be ending when the test begins.
    assert set(after[0]) <= set(before[0])
    assert after[1:] == before[1:]
    assert CANCELLED_CALLS * 0.3 < cancelled < CANCELLED_CALLS * 0.7
    assert uses[True] <= shared.use_count <= uses[True] + uses[False]
    found = Counter(
        name.partition("-")[0] for (name,) in database.run("SELECT reference FROM models")
    )
    for name, kind in all_names.items():
        assert found[name] in (0, ROWS_OF_CALL[kind]), (name, kind)
        if name in acknowledged:
            assert found[name] == ROWS_OF_CALL[kind], (name, kind)
    errors = [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]
    assert [each for each in errors if ASYNCPG_CONNECTION_LOST not in each] == []

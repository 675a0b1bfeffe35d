"""A cancelled call leaves no lock, no checked-out connection and no partial write."""

import asyncio
import gc
import logging
import random
import sqlite3
import time
from contextlib import closing

import anyio
import postgres
import psycopg
import pytest
from conftest import Database, a_model
from sqlalchemy import NullPool
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import CatalogBusyError, ModelCatalog, open_catalog
from model_catalog.concurrency.completion import run_to_completion
from model_catalog.concurrency.retry import Backoff

PROMPT_S = 1.0
"""Far less than the default timeout of 30 seconds, and far more than a busy machine needs."""


@pytest.fixture
async def quiet(caplog, short_garbage_collections):
    """Assert that neither the loop nor the log reports an error during a test or after it."""
    caplog.set_level(logging.DEBUG, "model_catalog")
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    yield
    gc.collect()
    await asyncio.sleep(0)
    assert reported == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.fixture
async def catalog(database, quiet):
    async with open_catalog(database.target) as found:
        yield found


async def run_iterations(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def count_iterations(call) -> int:
    """Return how many loop iterations a call takes if it is not cancelled."""
    task = asyncio.ensure_future(call)
    count = 0
    while not task.done():
        await asyncio.sleep(0)
        count += 1
    await task
    return count


async def by_asyncio(call, count: int | None):
    """Run a call and cancel its task after `count` iterations; return False if it was cancelled."""
    task = asyncio.ensure_future(call)
    if count is not None:
        await run_iterations(count)
        task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return False
    return True


async def by_two_cancellations(call, count: int | None):
    """Cancel as `by_asyncio` does, and cancel again while the first cancellation is pending."""
    task = asyncio.ensure_future(call)
    if count is not None:
        await run_iterations(count)
        task.cancel()
        await run_iterations(count // 4)
        task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return False
    return True


async def by_anyio(call, count: int | None):
    """Cancel by an anyio scope, which cancels in every iteration until the call ends."""

    async def cancel(scope):
        await run_iterations(count)
        scope.cancel()

    with anyio.CancelScope() as scope:
        canceller = asyncio.ensure_future(cancel(scope)) if count is not None else None
        await call
    if canceller is not None:
        await canceller
    return not scope.cancelled_caught


async def by_deadline(call, count: int | None):
    """Cancel by an anyio deadline of `count` times 20 microseconds."""
    with anyio.move_on_after(None if count is None else count / 50_000) as scope:
        await call
    return not scope.cancelled_caught


CANCELLERS = {
    "asyncio": by_asyncio,
    "asyncio twice": by_two_cancellations,
    "anyio scope": by_anyio,
    "anyio deadline": by_deadline,
}


async def register(catalog, name):
    await catalog.register_model(a_model(f"{name}-one", size_bytes=7))


async def register_many(catalog, name):
    await catalog.register_models(a_model(f"{name}-{n}", size_bytes=7) for n in range(3))


async def register_in_transaction(catalog, name):
    async with catalog.transaction() as outer:
        await outer.register_model(a_model(f"{name}-0", size_bytes=7))
        await outer.list_models(provider="nobody")
        async with outer.transaction() as inner:
            await inner.register_model(a_model(f"{name}-1", size_bytes=7))
        await outer.register_model(a_model(f"{name}-2", size_bytes=7))


async def remove(catalog, name):
    await catalog.remove_model(f"{name}-old", "hf")


async def find(catalog, name):
    await catalog.find_model(f"{name}-old", "hf")


async def list_some(catalog, name):
    await catalog.list_models(reference=f"{name}-old")
    async for _ in catalog.iter_models(reference=f"{name}-old"):
        await catalog.get_total_size()


# The rows of a call before it, and after it was acknowledged.
CALLS = {
    register: (set(), {"one"}),
    register_many: (set(), {"0", "1", "2"}),
    register_in_transaction: (set(), {"0", "1", "2"}),
    remove: ({"old"}, set()),
    find: ({"old"}, {"old"}),
    list_some: ({"old"}, {"old"}),
}


def rows_by_call(database) -> dict[str, set[str]]:
    """Return the complete rows of each call, read with a plain driver."""
    found = {}
    for reference, size in database.run("SELECT reference, size_bytes FROM models"):
        assert size == 7
        name, _, part = reference.partition("-")
        found.setdefault(name, set()).add(part)
    return found


assert_no_lock = Database.assert_no_lock


async def run_and_cancel(database, cancelled_by, *, seed: int, calls: int, at_a_time: int = 15):
    """Run many concurrent calls and cancel 70 % of them, each at a random moment."""
    choose = random.Random(seed)
    async with open_catalog(database.target) as catalog:
        plan = [(choose.choice(list(CALLS)), f"c{number}") for number in range(calls)]
        await catalog.register_models(
            a_model(f"{name}-old", size_bytes=7) for call, name in plan if "old" in CALLS[call][0]
        )
        # Measured with the same concurrency and instrumentation, which take longer. Starting at a
        # third of the duration, the first cancellations are certain to hit.
        for attempt in range(2):
            uncancelled = (
                count_iterations(choose.choice(list(CALLS))(catalog, f"w{attempt}x{number}"))
                for number in range(at_a_time)
            )
            longest = max(await asyncio.gather(*uncancelled)) // 3
        outcomes, after = {}, {}
        for first in range(0, calls, at_a_time):
            batch = plan[first : first + at_a_time]
            whens = [choose.randrange(longest) if choose.random() < 0.7 else None for _ in batch]
            done = await asyncio.gather(
                *(
                    cancelled_by(call(catalog, name), when)
                    for (call, name), when in zip(batch, whens, strict=True)
                )
            )
            outcomes.update(zip((name for _, name in batch), done, strict=True))
            # The speed of the machine varies: neither all calls nor none should be cancelled.
            hit = done.count(False) / at_a_time
            longest = max(1, int(longest * (1.5 if hit > 0.5 else 0.5 if hit < 0.3 else 1)))
            stored = rows_by_call(database)
            after.update({name: stored.get(name, set()) for _, name in batch})
        checked_out = checked_out_connections(catalog)
        assert_no_lock(database)
        async with asyncio.timeout(PROMPT_S):
            await register(catalog, "last")
        final = rows_by_call(database)
    return plan, outcomes, after, final, checked_out


def checked_out_connections(catalog) -> int:
    """Return the number of checked-out pool connections; 0 on SQLite, whose threads keep theirs."""
    pool = catalog._executor._engine.pool
    return 0 if isinstance(pool, NullPool) else pool.checkedout()


def assert_all_or_nothing(plan, outcomes, after, final) -> None:
    for call, name in plan:
        before, acknowledged = CALLS[call]
        # Nothing is written after the call has returned.
        assert final.get(name, set()) == after[name], (call, name)
        assert after[name] in (before, acknowledged), (call, name)
        if outcomes[name]:
            assert after[name] == acknowledged, (call, name)


@pytest.mark.slow
async def test_transaction_cancelled_at_any_moment_is_ended(catalog, database):
    """
    When the cancellation is delivered, the connection is back in the pool, without help of the
    garbage collector.
    """
    gc.disable()
    try:
        whole = await count_iterations(register_in_transaction(catalog, "whole"))
        for count in range(0, whole, max(1, whole // 25)):
            await by_asyncio(register_in_transaction(catalog, f"c{count}"), count)

            assert checked_out_connections(catalog) == 0
        assert_no_lock(database)
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.parametrize("cancelled_by", CANCELLERS.values(), ids=CANCELLERS)
async def test_cancelled_calls_are_complete_or_absent(database, quiet, cancelled_by):
    """
    Of 75 calls 70 % are cancelled. Acknowledged calls are stored, cancelled calls are stored
    completely or not at all, and no lock or connection is left.
    """
    result = await run_and_cancel(database, cancelled_by, seed=1, calls=75)

    plan, outcomes, after, final, checked_out = result
    assert_all_or_nothing(plan, outcomes, after, final)
    assert checked_out == 0
    assert True in outcomes.values()
    assert False in outcomes.values()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cancelled_by", "seed"),
    [(by_asyncio, 2), (by_two_cancellations, 5), (by_anyio, 5), (by_deadline, 2)],
    ids=CANCELLERS,
)
async def test_many_cancelled_calls_are_complete_or_absent(database, quiet, cancelled_by, seed):
    """
    The same with 200 calls, 10 or 25 at a time, and other random orders.
    """
    result = await run_and_cancel(database, cancelled_by, seed=seed, calls=200, at_a_time=5 * seed)

    plan, outcomes, after, final, checked_out = result
    assert_all_or_nothing(plan, outcomes, after, final)
    assert checked_out == 0


@pytest.mark.slow
@pytest.mark.parametrize("cancelled_by", [by_asyncio, by_anyio], ids=["asyncio", "anyio"])
async def test_opening_can_be_cancelled_at_any_moment(database, quiet, cancelled_by):
    """
    A cancelled opening leaves no connection, and the catalog can be opened again.
    """

    async def open_and_list():
        async with open_catalog(database.target) as catalog:
            await catalog.list_models()

    longest = max([await count_iterations(open_and_list()) for _ in range(2)])
    for attempt in range(14):
        await cancelled_by(open_and_list(), longest * attempt // 12)
        database.assert_nothing_left()

    await open_and_list()


@pytest.fixture
def other_client(database):
    """Another program's connection, which has a lock on the rows to write until its rollback."""
    if database.path is not None:
        other = sqlite3.connect(database.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
    else:
        other = psycopg.connect(postgres.dsn(database.url))
        other.execute("INSERT INTO models (provider, reference, local_path) VALUES ('hf','m','/')")
    with closing(other):
        yield other
        other.rollback()


async def register_one(catalog):
    await catalog.register_model(a_model("m"))


async def register_several(catalog):
    await catalog.register_models([a_model("m"), a_model("n")])


async def register_in_block(catalog):
    async with catalog.transaction() as outer:
        await outer.register_model(a_model("m"))


WRITES = pytest.mark.parametrize(
    "write", [register_one, register_several, register_in_block], ids=["one", "many", "transaction"]
)


async def until_blocked(database, task):
    """Wait until a task is blocked by a lock; on SQLite it has retried a few times by then."""
    if database.path is not None:
        await asyncio.sleep(0.3)
        return
    while not database.run(
        "SELECT 1 FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ):
        assert not task.done()
        await asyncio.sleep(0.001)


@pytest.mark.slow
@WRITES
async def test_call_that_waits_for_a_lock_can_be_cancelled(catalog, database, other_client, write):
    """
    A call that waits for another program's lock ends at once and has written nothing.
    """
    if database.path is None and write is not register_one:
        pytest.skip("a transaction on PostgreSQL waits in the server, up to timeout_s")
    task = asyncio.create_task(write(catalog))
    await until_blocked(database, task)

    start = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert time.monotonic() - start < PROMPT_S
    other_client.rollback()
    assert await catalog.list_models() == []
    assert_no_lock(database)


@pytest.mark.slow
@WRITES
async def test_call_that_waits_for_a_lock_times_out(database, quiet, other_client, write):
    """
    After timeout_s the call raises CatalogBusyError, on every database.
    """
    async with open_catalog(database.target, timeout_s=0.3) as catalog:
        start = time.monotonic()
        with pytest.raises(CatalogBusyError):
            await asyncio.wait_for(write(catalog), 10)
        waited = time.monotonic() - start

        assert 0.3 <= waited < 0.3 + PROMPT_S
        other_client.rollback()
        await write(catalog)
        assert await catalog.find_model("m", "hf") is not None


@pytest.mark.slow
@WRITES
async def test_call_that_waits_for_a_lock_continues_when_it_is_released(
    catalog, database, other_client, write
):
    """
    When the other program releases its lock, the call is completed.
    """
    task = asyncio.create_task(write(catalog))
    await until_blocked(database, task)

    other_client.rollback()
    await asyncio.wait_for(task, PROMPT_S)

    assert await catalog.find_model("m", "hf") is not None


@pytest.mark.slow
@WRITES
async def test_queued_write_can_be_cancelled(catalog, database, write):
    """
    Writes to SQLite are queued. A cancelled write leaves the queue at once, and does not delay the
    others.
    """
    if database.path is None:
        pytest.skip("PostgreSQL's writers do not queue")
    written = asyncio.Event()
    proceed = asyncio.Event()

    async def writer():
        async with catalog.transaction() as slow:
            await slow.register_model(a_model("slow"))
            written.set()
            await proceed.wait()

    first = asyncio.create_task(writer())
    await written.wait()
    queue = [asyncio.create_task(write(catalog)) for _ in range(3)]
    await run_iterations(20)

    start = time.monotonic()
    queue[0].cancel()
    queue[2].cancel()
    await asyncio.wait([queue[0], queue[2]])
    assert time.monotonic() - start < PROMPT_S
    assert not first.done()
    assert not queue[1].done()

    proceed.set()
    await asyncio.wait_for(asyncio.gather(first, queue[1]), PROMPT_S)
    assert await catalog.find_model("slow", "hf") is not None
    assert await catalog.find_model("m", "hf") is not None


@pytest.mark.slow
async def test_timeout_of_the_caller_is_respected(catalog, database, other_client):
    """
    asyncio.timeout around a call that waits for a lock ends the call in time.
    """
    start = time.monotonic()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await register_one(catalog)

    assert time.monotonic() - start < 0.2 + PROMPT_S
    other_client.rollback()
    assert await catalog.list_models() == []


@pytest.mark.slow
@pytest.mark.parametrize("cancelled_by", CANCELLERS.values(), ids=CANCELLERS)
async def test_transaction_is_rolled_back_when_its_body_is_cancelled(
    catalog, database, cancelled_by
):
    """
    The rows that were written before the cancellation are gone, and no lock is left.
    """

    async def body():
        async with catalog.transaction() as outer:
            await outer.register_model(a_model("m"))
            await asyncio.Event().wait()

    assert await cancelled_by(body(), 5000) is False

    assert_no_lock(database)
    assert database.run("SELECT count(*) FROM models") == [(0,)]
    await asyncio.wait_for(register_one(catalog), PROMPT_S)


@pytest.mark.slow
async def test_abandoned_iteration_leaves_no_transaction(catalog, database):
    """
    Breaking out of iter_models leaves no transaction and no connection.
    """
    await catalog.register_models(a_model(f"m{number}") for number in range(3))

    async for _ in catalog.iter_models():
        break

    assert checked_out_connections(catalog) == 0
    assert_no_lock(database)


async def test_run_to_completion_returns_the_result_or_raises(quiet):
    """
    run_to_completion returns the result of its coroutine, or raises its error.
    """

    async def work(error=None):
        await asyncio.sleep(0)
        if error is not None:
            raise error
        return 7

    assert await run_to_completion(work()) == 7
    with pytest.raises(ZeroDivisionError):
        await run_to_completion(work(ZeroDivisionError()))


async def test_run_to_completion_delays_cancellation(quiet):
    """
    However often the caller is cancelled, the cancellation is delivered after the work has ended.
    """
    release = asyncio.Event()
    ended = []

    async def work():
        await release.wait()
        ended.append(True)

    caller = asyncio.create_task(run_to_completion(work()))
    await run_iterations(2)
    for _ in range(20):
        caller.cancel()
        await run_iterations(1)
        assert not caller.done()
    release.set()

    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended == [True]


async def test_failure_after_a_cancellation_is_logged(quiet, caplog):
    """
    The caller gets the cancellation, and the error is only logged, at debug level.
    """
    release = asyncio.Event()

    async def work():
        await release.wait()
        raise ZeroDivisionError

    caller = asyncio.create_task(run_to_completion(work()))
    await run_iterations(2)
    caller.cancel()
    await run_iterations(2)
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await caller

    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert record.exc_info[0] is ZeroDivisionError


async def test_on_cancel_is_called_once(quiet):
    """
    on_cancel is called at the first cancellation, and not without a cancellation.
    """
    release = asyncio.Event()
    calls = []

    def on_cancel():
        calls.append(True)
        release.set()

    async def work():
        await release.wait()
        return 7

    caller = asyncio.create_task(run_to_completion(work(), on_cancel=on_cancel))
    await run_iterations(2)
    caller.cancel()
    await run_iterations(5)
    assert calls == [True]
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert await run_to_completion(work(), on_cancel=on_cancel) == 7

    assert calls == [True]


async def test_cancelled_work_raises_cancelled_error(quiet):
    """
    A CancelledError of the work is raised, although the caller was not cancelled.
    """

    async def work():
        await asyncio.sleep(0)
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await run_to_completion(work())

    assert asyncio.current_task().cancelling() == 0


async def test_anyio_scope_ends_after_the_work(quiet):
    """
    An anyio scope cancels in every iteration; it ends as cancelled after the work is done.
    """
    ended = []

    async def work():
        await run_iterations(50)
        ended.append(True)

    with anyio.move_on_after(0) as scope:
        await run_to_completion(work())

    assert ended == [True]
    assert scope.cancelled_caught


async def test_backoff_raises_at_its_timeout(quiet):
    """
    Retries end at the timeout, and the error states how long they took.
    """
    busy = CatalogBusyError("x.db", "locked")
    backoff = Backoff(0.1)

    start = time.monotonic()
    with pytest.raises(CatalogBusyError, match=r"x.db is busy: locked \(waited 0\.1 s\)") as caught:
        async with asyncio.timeout(10):
            while True:
                await backoff.wait_or_raise(busy)

    assert 0.1 <= time.monotonic() - start < 0.1 + PROMPT_S
    assert caught.value.__cause__ is busy


@pytest.mark.slow
async def test_transaction_over_a_host_engine_can_be_cancelled_at_any_moment(database, quiet):
    """
    The connection goes back to the host's pool, even if the transaction was cancelled while it
    began.
    """
    engine = create_async_engine(database.target_url)
    catalog = ModelCatalog(async_sessionmaker(engine))

    async def register_in_transaction():
        async with catalog.transaction() as outer:
            await outer.register_model(a_model("m"))

    longest = max([await count_iterations(register_in_transaction()) for _ in range(2)])
    for moment in range(0, longest, max(1, longest // 40)):
        await by_asyncio(register_in_transaction(), moment)
        assert engine.pool.checkedout() == 0, moment
    await register_in_transaction()
    await engine.dispose()

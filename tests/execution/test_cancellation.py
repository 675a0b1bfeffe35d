"""A cancelled call: it leaves no lock, no connection and no half of a write behind."""

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

AT_ONCE_S = 1.0
"""Far less than the thirty seconds a call waits for others, far more than a busy machine needs."""


@pytest.fixture
async def quiet(caplog):
    """Nothing is reported to the loop or as an error while a test runs, or after it."""
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


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def length_of(call) -> int:
    """How many turns of the loop a call takes that nobody disturbs."""
    task = asyncio.ensure_future(call)
    count = 0
    while not task.done():
        await asyncio.sleep(0)
        count += 1
    await task
    return count


async def by_asyncio(call, count: int | None):
    """Run a call, and cancel its task after so many turns; False if it was cancelled."""
    task = asyncio.ensure_future(call)
    if count is not None:
        await turns(count)
        task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return False
    return True


async def by_two_cancellations(call, count: int | None):
    """As `by_asyncio`, with a second cancellation while the first one is being waited for."""
    task = asyncio.ensure_future(call)
    if count is not None:
        await turns(count)
        task.cancel()
        await turns(count // 4)
        task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return False
    return True


async def by_anyio(call, count: int | None):
    """As `by_asyncio`, by the scope around it: anyio cancels at every turn until it is obeyed."""

    async def cancel(scope):
        await turns(count)
        scope.cancel()

    with anyio.CancelScope() as scope:
        canceller = asyncio.ensure_future(cancel(scope)) if count is not None else None
        await call
    if canceller is not None:
        await canceller
    return not scope.cancelled_caught


async def by_deadline(call, count: int | None):
    """As `by_anyio`, by the clock: so many fifty-thousandths of a second."""
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


async def register_together(catalog, name):
    async with catalog.transaction() as both:
        await both.register_model(a_model(f"{name}-0", size_bytes=7))
        await both.list_models(provider="nobody")
        async with both.transaction() as inner:
            await inner.register_model(a_model(f"{name}-1", size_bytes=7))
        await both.register_model(a_model(f"{name}-2", size_bytes=7))


async def remove(catalog, name):
    await catalog.remove_model(f"{name}-old", "hf")


async def find(catalog, name):
    await catalog.find_model(f"{name}-old", "hf")


async def list_some(catalog, name):
    await catalog.list_models(reference=f"{name}-old")
    async for _ in catalog.iter_models(reference=f"{name}-old"):
        await catalog.get_total_size()


# What is there of a call's own names: before it, and once it was acknowledged.
CALLS = {
    register: (set(), {"one"}),
    register_many: (set(), {"0", "1", "2"}),
    register_together: (set(), {"0", "1", "2"}),
    remove: ({"old"}, set()),
    find: ({"old"}, {"old"}),
    list_some: ({"old"}, {"old"}),
}


def names(database) -> dict[str, set[str]]:
    """What is recorded for each call, read by a driver of the test's own; whole rows only."""
    found = {}
    for reference, size in database.run("SELECT reference, size_bytes FROM models"):
        assert size == 7
        name, _, part = reference.partition("-")
        found.setdefault(name, set()).add(part)
    return found


assert_no_lock = Database.assert_no_lock


async def disturb(database, cancelled_by, *, seed: int, calls: int, at_a_time: int = 15):
    """Run many calls at once and cancel seven in ten of them, each at a moment of its own."""
    choose = random.Random(seed)
    async with open_catalog(database.target) as catalog:
        plan = [(choose.choice(list(CALLS)), f"c{number}") for number in range(calls)]
        await catalog.register_models(
            a_model(f"{name}-old", size_bytes=7) for call, name in plan if "old" in CALLS[call][0]
        )
        # As many as will be disturbed at a time, and watched as closely: that takes longer. From a
        # third of it on, so that the first are hit for certain.
        for attempt in range(2):
            undisturbed = (
                length_of(choose.choice(list(CALLS))(catalog, f"w{attempt}x{number}"))
                for number in range(at_a_time)
            )
            longest = max(await asyncio.gather(*undisturbed)) // 3
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
            # A machine is not equally fast all the time: neither all are to be hit nor none.
            hit = done.count(False) / at_a_time
            longest = max(1, int(longest * (1.5 if hit > 0.5 else 0.5 if hit < 0.3 else 1)))
            recorded = names(database)
            after.update({name: recorded.get(name, set()) for _, name in batch})
        checked_out = in_use(catalog)
        assert_no_lock(database)
        async with asyncio.timeout(AT_ONCE_S):
            await register(catalog, "last")
        final = names(database)
    return plan, outcomes, after, final, checked_out


def in_use(catalog) -> int:
    """The connections of a server's pool that somebody has; those to a file are held anyway."""
    pool = catalog._executor._engine.pool
    return 0 if isinstance(pool, NullPool) else pool.checkedout()


def assert_all_or_nothing(plan, outcomes, after, final) -> None:
    for call, name in plan:
        before, acknowledged = CALLS[call]
        # What it did was known when it returned: nothing is written behind the caller's back.
        assert final.get(name, set()) == after[name], (call, name)
        assert after[name] in (before, acknowledged), (call, name)
        if outcomes[name]:
            assert after[name] == acknowledged, (call, name)


async def test_a_transaction_cancelled_while_it_begins_is_ended(catalog, database):
    """
    Whenever the cancellation comes, its connection is back when it is delivered; not only once
    somebody looks for garbage.
    """
    gc.disable()
    try:
        whole = await length_of(register_together(catalog, "whole"))
        for count in range(0, whole, max(1, whole // 25)):
            await by_asyncio(register_together(catalog, f"c{count}"), count)

            assert in_use(catalog) == 0
        assert_no_lock(database)
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.parametrize("cancelled_by", CANCELLERS.values(), ids=CANCELLERS)
async def test_a_call_may_be_cancelled_at_any_moment(database, quiet, cancelled_by):
    """
    Of hundreds of calls at once seven in ten are cancelled: what was acknowledged is there, what
    was cancelled is there wholly or not at all, and the catalog is free at once.
    """
    result = await disturb(database, cancelled_by, seed=1, calls=75)

    plan, outcomes, after, final, checked_out = result
    assert_all_or_nothing(plan, outcomes, after, final)
    assert checked_out == 0
    assert True in outcomes.values()
    assert False in outcomes.values()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 5], ids="seed {}".format)
@pytest.mark.parametrize("cancelled_by", CANCELLERS.values(), ids=CANCELLERS)
async def test_thousands_of_calls_may_be_cancelled(database, quiet, cancelled_by, seed):
    """
    The same for longer, and in other orders.
    """
    result = await disturb(database, cancelled_by, seed=seed, calls=600, at_a_time=5 * seed)

    plan, outcomes, after, final, checked_out = result
    assert_all_or_nothing(plan, outcomes, after, final)
    assert checked_out == 0


@pytest.mark.parametrize("cancelled_by", [by_asyncio, by_anyio], ids=["asyncio", "anyio"])
async def test_opening_may_be_cancelled_at_any_moment(database, quiet, cancelled_by):
    """
    An opening that is given up leaves no connection, and the next one opens.
    """

    async def life():
        async with open_catalog(database.target) as catalog:
            await catalog.list_models()

    longest = max([await length_of(life()) for _ in range(2)])
    for attempt in range(14):
        await cancelled_by(life(), longest * attempt // 12)
        database.assert_nothing_left()

    await life()


@pytest.fixture
def held(database):
    """A lock that another program holds on what is about to be written, and a way to let it go."""
    if database.path is not None:
        other = sqlite3.connect(database.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
    else:
        other = psycopg.connect(postgres.dsn(database.url))
        other.execute("INSERT INTO models (provider, reference, local_path) VALUES ('hf','m','/')")
    with closing(other):
        yield other
        other.rollback()


async def one(catalog):
    await catalog.register_model(a_model("m"))


async def many(catalog):
    await catalog.register_models([a_model("m"), a_model("n")])


async def together(catalog):
    async with catalog.transaction() as both:
        await both.register_model(a_model("m"))


WRITES = pytest.mark.parametrize("write", [one, many, together], ids=["one", "many", "together"])


async def waiting_for_a_lock(database, task):
    """Return when a task has met somebody else's lock; on SQLite it has then tried a few times."""
    if database.path is not None:
        await asyncio.sleep(0.3)
        return
    while not database.run(
        "SELECT 1 FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ):
        assert not task.done()
        await asyncio.sleep(0.001)


@WRITES
async def test_a_wait_for_another_program_can_be_cancelled(catalog, database, held, write):
    """
    A call that waits for somebody else's lock is given up at once, and has written nothing.
    """
    if database.path is None and write is not one:
        pytest.skip("a transaction on PostgreSQL waits in the server, up to timeout_s")
    task = asyncio.create_task(write(catalog))
    await waiting_for_a_lock(database, task)

    start = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert time.monotonic() - start < AT_ONCE_S
    held.rollback()
    assert await catalog.list_models() == []
    assert_no_lock(database)


@WRITES
async def test_a_wait_for_another_program_has_an_end(database, quiet, held, write):
    """
    After timeout_s the call is CatalogBusyError, on every database.
    """
    async with open_catalog(database.target, timeout_s=0.3) as catalog:
        start = time.monotonic()
        with pytest.raises(CatalogBusyError):
            await asyncio.wait_for(write(catalog), 10)
        waited = time.monotonic() - start

        assert 0.3 <= waited < 0.3 + AT_ONCE_S
        held.rollback()
        await write(catalog)
        assert await catalog.find_model("m", "hf") is not None


@WRITES
async def test_a_wait_for_another_program_is_rewarded(catalog, database, held, write):
    """
    When the lock is given back the call goes on.
    """
    task = asyncio.create_task(write(catalog))
    await waiting_for_a_lock(database, task)

    held.rollback()
    await asyncio.wait_for(task, AT_ONCE_S)

    assert await catalog.find_model("m", "hf") is not None


@WRITES
async def test_a_place_in_the_queue_can_be_given_up(catalog, database, write):
    """
    SQLite's writers queue in turn; who is cancelled in the queue leaves it, and nobody waits for
    him.
    """
    if database.path is None:
        pytest.skip("PostgreSQL's writers do not queue")
    written = asyncio.Event()
    go_on = asyncio.Event()

    async def writer():
        async with catalog.transaction() as slow:
            await slow.register_model(a_model("slow"))
            written.set()
            await go_on.wait()

    first = asyncio.create_task(writer())
    await written.wait()
    queue = [asyncio.create_task(write(catalog)) for _ in range(3)]
    await turns(20)

    start = time.monotonic()
    queue[0].cancel()
    queue[2].cancel()
    await asyncio.wait([queue[0], queue[2]])
    assert time.monotonic() - start < AT_ONCE_S
    assert not first.done()
    assert not queue[1].done()

    go_on.set()
    await asyncio.wait_for(asyncio.gather(first, queue[1]), AT_ONCE_S)
    assert await catalog.find_model("slow", "hf") is not None
    assert await catalog.find_model("m", "hf") is not None


async def test_a_timeout_of_the_callers_own_is_kept(catalog, database, held):
    """
    asyncio.timeout round a call that waits for a lock ends it in time.
    """
    start = time.monotonic()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await one(catalog)

    assert time.monotonic() - start < 0.2 + AT_ONCE_S
    held.rollback()
    assert await catalog.list_models() == []


@pytest.mark.parametrize("cancelled_by", CANCELLERS.values(), ids=CANCELLERS)
async def test_a_transaction_whose_body_is_cancelled_is_rolled_back(
    catalog, database, cancelled_by
):
    """
    What was written before the cancellation is gone, and the next writer does not wait.
    """

    async def body():
        async with catalog.transaction() as both:
            await both.register_model(a_model("m"))
            await asyncio.Event().wait()

    assert await cancelled_by(body(), 5000) is False

    assert_no_lock(database)
    assert database.run("SELECT count(*) FROM models") == [(0,)]
    await asyncio.wait_for(one(catalog), AT_ONCE_S)


async def test_a_generator_that_is_left_leaves_nothing_open(catalog, database):
    """
    Breaking out of iter_models, or being cancelled in it, holds no transaction.
    """
    await catalog.register_models(a_model(f"m{number}") for number in range(3))

    async for _ in catalog.iter_models():
        break

    assert in_use(catalog) == 0
    assert_no_lock(database)


async def test_work_gives_its_result(quiet):
    """
    What is waited for to its end returns what it returns, and raises what it raises.
    """

    async def work(error=None):
        await asyncio.sleep(0)
        if error is not None:
            raise error
        return 7

    assert await run_to_completion(work()) == 7
    with pytest.raises(ZeroDivisionError):
        await run_to_completion(work(ZeroDivisionError()))


async def test_work_is_waited_for_however_often_its_caller_is_cancelled(quiet):
    """
    The cancellation is delivered when the work has ended, and not before.
    """
    release = asyncio.Event()
    ended = []

    async def work():
        await release.wait()
        ended.append(True)

    caller = asyncio.create_task(run_to_completion(work()))
    await turns(2)
    for _ in range(20):
        caller.cancel()
        await turns(1)
        assert not caller.done()
    release.set()

    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended == [True]


async def test_work_that_fails_after_its_caller_was_cancelled_is_logged(quiet, caplog):
    """
    The caller hears of the cancellation; the error is in the log for who looks, and nowhere else.
    """
    release = asyncio.Event()

    async def work():
        await release.wait()
        raise ZeroDivisionError

    caller = asyncio.create_task(run_to_completion(work()))
    await turns(2)
    caller.cancel()
    await turns(2)
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await caller

    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert record.exc_info[0] is ZeroDivisionError


async def test_work_may_be_hurried_when_its_caller_is_gone(quiet):
    """
    on_cancel is called once, at the first cancellation; without one it is not called.
    """
    release = asyncio.Event()
    calls = []

    def hurry():
        calls.append(True)
        release.set()

    async def work():
        await release.wait()
        return 7

    caller = asyncio.create_task(run_to_completion(work(), on_cancel=hurry))
    await turns(2)
    caller.cancel()
    await turns(5)
    assert calls == [True]
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert await run_to_completion(work(), on_cancel=hurry) == 7

    assert calls == [True]


async def test_work_that_is_itself_cancelled_cancels_its_caller(quiet):
    """
    A driver that gives up by CancelledError is no result; its caller was asked for nothing.
    """

    async def work():
        await asyncio.sleep(0)
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await run_to_completion(work())

    assert asyncio.current_task().cancelling() == 0


async def test_a_scope_that_cancels_at_every_turn_is_answered_once(quiet):
    """
    anyio's scope ends as cancelled, with the work done.
    """
    ended = []

    async def work():
        await turns(50)
        ended.append(True)

    with anyio.move_on_after(0) as scope:
        await run_to_completion(work())

    assert ended == [True]
    assert scope.cancelled_caught


async def test_patience_ends(quiet):
    """
    Trying again goes on for the time it was given; the error then says how long that was.
    """
    busy = CatalogBusyError("x.db", "locked")
    backoff = Backoff(0.1)

    start = time.monotonic()
    with pytest.raises(CatalogBusyError, match=r"x.db is busy: locked \(waited 0\.1 s\)") as caught:
        async with asyncio.timeout(10):
            while True:
                await backoff.wait_or_raise(busy)

    assert 0.1 <= time.monotonic() - start < 0.1 + AT_ONCE_S
    assert caught.value.__cause__ is busy


async def test_a_hosts_transaction_may_be_cancelled_at_any_moment(database, quiet):
    """
    Over a host's engine as well: its connection goes back to the pool, also where the cancellation
    came as the transaction began.
    """
    engine = create_async_engine(database.target_url)
    catalog = ModelCatalog(async_sessionmaker(engine))

    async def life():
        async with catalog.transaction() as both:
            await both.register_model(a_model("m"))

    longest = max([await length_of(life()) for _ in range(2)])
    for moment in range(0, longest, max(1, longest // 40)):
        await by_asyncio(life(), moment)
        assert engine.pool.checkedout() == 0, moment
    await life()
    await engine.dispose()

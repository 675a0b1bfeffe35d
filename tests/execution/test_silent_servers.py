"""A server that stops answering: each call ends in its time, and tells what may have been kept."""

import asyncio
import re
import time
from contextlib import asynccontextmanager, suppress

import pytest
from conftest import a_model
from fault_proxy import COMMIT, Link, fault_proxy
from public_calls import PUBLIC_READS, PUBLIC_WRITES, fill
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from model_catalog import (
    CatalogBusyError,
    CatalogError,
    CatalogUnavailableError,
    ModelCatalog,
    check_schema,
    open_catalog,
    schema_state,
    upgrade,
)
from model_catalog.execution.postgresql import own_sessions

# Each waits for timeouts.
pytestmark = [pytest.mark.slow, pytest.mark.parametrize("backend", ["asyncpg", "psycopg"])]

TIMEOUT_S = 0.5
OVERRUN_S = 1.0
"""A call overruns its timeout by at most 0.5 s. The rest is for a busy machine."""

INSERT = re.compile(rb"INSERT INTO")
UPSERT = re.compile(rb"tinyllama")
"""The values of a lone registration, which are sent when the statement is executed."""


@pytest.fixture
async def proxy(database):
    async with open_catalog(database.target) as catalog:
        await fill(catalog)
    async with fault_proxy(database.target_url) as found:
        yield found
    # Behind the proxy the server has not heard that its clients are gone.
    database.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


@asynccontextmanager
async def own_catalog(url, timeout_s):
    async with open_catalog(url, timeout_s=timeout_s) as catalog:
        yield catalog


@asynccontextmanager
async def host_catalog(url, timeout_s):
    engine = create_async_engine(url)
    try:
        yield ModelCatalog(async_sessionmaker(engine), timeout_s=timeout_s)
    finally:
        # SQLAlchemy waits for the server when it closes connections of asyncpg.
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await engine.dispose()


OVER = pytest.mark.parametrize("over", [own_catalog, host_catalog], ids=["own", "host"])


async def timed(call):
    """Return the CatalogError of a call, or None, and its duration in seconds."""
    start = time.monotonic()
    error = None
    try:
        async with asyncio.timeout(20):
            await call
    except CatalogError as caught:
        error = caught
    return error, time.monotonic() - start


def assert_in_time(seconds, timeout_s=TIMEOUT_S):
    assert seconds < timeout_s + OVERRUN_S


@OVER
async def test_every_call_ends_in_its_time_when_the_server_falls_silent(proxy, over):
    """
    All public calls at once, on connections that were in use before: each raises an error in time.
    """
    async with over(proxy.url, TIMEOUT_S) as catalog:
        await asyncio.gather(*(timed(catalog.list_models()) for _ in range(5)))
        proxy.silence()
        calls = [call(catalog) for call in (PUBLIC_READS | PUBLIC_WRITES).values()]
        found = await asyncio.gather(*map(timed, calls))

        assert all(
            isinstance(error, CatalogBusyError | CatalogUnavailableError) for error, _ in found
        )
        assert_in_time(max(seconds for _, seconds in found))
        proxy.resume()
        await catalog.register_model(a_model("after"))


@OVER
async def test_calls_to_a_silent_server_can_be_cancelled(database, proxy, over):
    """
    A read ends at once, and a write gets a second. Neither waits for its timeout, and the
    transaction of the write is rolled back.
    """
    calls = PUBLIC_READS | PUBLIC_WRITES
    names = ["find_model", "list_models", "register_models", "transaction", "record_use"]
    async with over(proxy.url, 30) as catalog:
        await asyncio.gather(*(catalog.list_models() for _ in range(5)))
        before = database.run("SELECT * FROM models")
        proxy.silence()
        tasks = [asyncio.create_task(calls[name](catalog)) for name in names]
        for _ in range(20):
            await asyncio.sleep(0)
        start = time.monotonic()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

        assert all(task.cancelled() for task in tasks)
        assert time.monotonic() - start < 1.0 + OVERRUN_S
    assert database.run("SELECT * FROM models") == before


@OVER
async def test_forgotten_connections_cost_no_call_its_result(proxy, over, monkeypatch):
    """
    A firewall has forgotten every connection of the pool: calls succeed on new ones, and the pool
    has recovered after the first.
    """
    # A firewall forgets a connection that was idle for minutes, not one that was used just now.
    monkeypatch.setattr(own_sessions, "_FRESH_S", 0.0)
    calls = PUBLIC_READS | PUBLIC_WRITES
    names = ["find_model", "list_models", "register_model", "transaction", "record_use"]
    async with over(proxy.url, 2) as catalog:
        await asyncio.gather(*(catalog.list_models() for _ in range(5)))
        proxy.silence(new=False)
        first = await asyncio.gather(*(timed(calls[name](catalog)) for name in names))
        later = await asyncio.gather(*(timed(catalog.list_models()) for _ in range(5)))

    assert [error for error, _ in first + later] == [None] * 10
    assert max(seconds for _, seconds in later) < TIMEOUT_S


async def test_opening_and_migrating_end_in_their_time(proxy):
    """
    Opening, upgrading and reading the revision give up when the server does not answer at all.
    """

    async def opening():
        async with open_catalog(proxy.url, timeout_s=TIMEOUT_S):
            pass

    proxy.silence()
    calls = [
        opening(),
        upgrade(proxy.url, timeout_s=TIMEOUT_S),
        schema_state(proxy.url, timeout_s=TIMEOUT_S),
        check_schema(proxy.url, timeout_s=TIMEOUT_S),
    ]
    found = await asyncio.gather(*map(timed, calls))

    assert all(isinstance(error, CatalogError) for error, _ in found)
    assert_in_time(max(seconds for _, seconds in found))


@pytest.mark.parametrize("call", [upgrade, schema_state, check_schema])
async def test_opening_and_migrating_can_be_cancelled(proxy, call):
    """
    A cancellation ends them within a second, whatever their timeout.
    """
    proxy.silence()
    task = asyncio.create_task(call(proxy.url))
    while not proxy.links:
        await asyncio.sleep(0)
    start = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert time.monotonic() - start < 1.0 + OVERRUN_S


@pytest.mark.parametrize(
    "message", [rb"CREATE TABLE model_tags", COMMIT.pattern], ids=["statement", "commit"]
)
async def test_a_migration_ends_when_the_server_falls_silent(empty, message):
    """
    At whatever statement: the migration ends in its time, and tells if it may have been committed.
    """
    async with fault_proxy(empty.target_url) as proxy:
        proxy.strike_at(re.compile(message), Link.silence)
        error, seconds = await timed(upgrade(proxy.url, timeout_s=TIMEOUT_S))

        if message == COMMIT.pattern:
            assert isinstance(error, CatalogUnavailableError)
            assert error.outcome_unknown
        else:
            assert isinstance(error, CatalogBusyError)
        # The migration has worked until the message.
        assert_in_time(seconds, TIMEOUT_S + 1)
    assert "models" not in empty.tables


async def test_leaving_the_block_does_not_wait_for_a_silent_server(proxy):
    """
    The connections are closed without an answer of the server.
    """
    async with open_catalog(proxy.url, timeout_s=30) as catalog:
        await asyncio.gather(*(catalog.list_models() for _ in range(3)))
        proxy.silence()
        start = time.monotonic()

    assert time.monotonic() - start < OVERRUN_S


@OVER
async def test_a_transaction_ends_in_its_time(proxy, over):
    """
    A transaction whose body fails is left with the error of its body, and one that commits with an
    unknown outcome.
    """
    async with over(proxy.url, TIMEOUT_S) as catalog:
        start = time.monotonic()
        with pytest.raises(KeyError):
            async with catalog.transaction() as inner:
                await inner.register_model(a_model("a"))
                proxy.silence()
                raise KeyError
        assert_in_time(time.monotonic() - start, 0.5)
        proxy.resume()

        start = time.monotonic()
        with pytest.raises(CatalogUnavailableError) as caught:
            async with catalog.transaction() as inner:
                await inner.register_model(a_model("b"))
                proxy.silence()
        assert caught.value.outcome_unknown
        assert_in_time(time.monotonic() - start)
        proxy.resume()
        await catalog.register_model(a_model("after"))


WRITES_OVER_A_CUT = ["register_model", "register_models", "record_use", "transaction"]


@OVER
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("register_model", Link.silence),
        ("transaction", Link.hold_answers),
        *((name, Link.cut) for name in WRITES_OVER_A_CUT),
        *((name, Link.cut_by_answer) for name in WRITES_OVER_A_CUT),
    ],
)
async def test_a_lost_answer_to_commit_is_an_unknown_outcome(database, proxy, over, name, fault):
    """
    Whether COMMIT reached the server or only its answer was lost: the error says that the call may
    have been kept. A statement without a transaction commits too.
    """
    is_silent = fault in (Link.silence, Link.hold_answers)
    async with over(proxy.url, TIMEOUT_S if is_silent else 10) as catalog:
        await timed(catalog.list_models())
        is_one_statement = over is own_catalog and name == "register_model"
        proxy.strike_at(UPSERT if is_one_statement else COMMIT, fault)
        error, seconds = await timed(PUBLIC_WRITES[name](catalog))

        assert isinstance(error, CatalogUnavailableError)
        assert error.outcome_unknown
        assert "read them before" in str(error)
        assert_in_time(seconds)


@OVER
async def test_a_connection_that_is_lost_before_commit_is_a_known_outcome(database, proxy, over):
    """
    Nothing was kept, and the error says so.
    """
    async with over(proxy.url, 10) as catalog:
        await catalog.list_models()
        proxy.strike_at(INSERT, Link.cut)
        error, _ = await timed(catalog.register_models([a_model("n")]))

        assert isinstance(error, CatalogUnavailableError)
        assert not error.outcome_unknown
        assert database.run("SELECT reference FROM models") == [("m",)]


async def test_a_bulk_registration_of_a_locked_row_ends(database):
    """
    Far more rows than the sockets hold, and another client has locked one of them.
    """
    path = "/" + 500 * "m"
    models = [
        {"reference": f"m{n:05}", "provider": "hf", "local_path": path} for n in range(20_000)
    ]
    async with open_catalog(database.target, timeout_s=30) as catalog:
        await catalog.register_models(models[:100])
    engine = create_async_engine(database.target_url)
    async with AsyncSession(engine) as other, open_catalog(database.target, timeout_s=1) as catalog:
        await ModelCatalog(other).update_model("hf:m00050", license="mit")
        error, seconds = await timed(catalog.register_models(models))

        assert isinstance(error, CatalogBusyError)
        assert_in_time(seconds, 1)
    await engine.dispose()
    assert database.run("SELECT count(*) FROM models") == [(100,)]

"""Calls that share connections of a host's pool on SQLite."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from contextvars import Context

import pytest
from conftest import a_model
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine

from model_catalog import (
    CatalogBusyError,
    InvalidModelError,
    ModelCatalog,
    ModelNotFoundError,
)


@pytest.fixture
async def engine(sqlite_file) -> AsyncIterator[AsyncEngine]:
    """A host's engine with two connections."""
    found = create_async_engine(
        f"sqlite+aiosqlite:///{sqlite_file}", pool_size=2, max_overflow=0, pool_timeout=20
    )
    yield found
    await found.dispose()


@pytest.fixture
async def host_catalog(engine) -> ModelCatalog:
    catalog = ModelCatalog(async_sessionmaker(engine), timeout_s=5)
    await catalog.register_model(a_model("known"))
    return catalog


async def test_a_call_that_finds_no_free_connection_ends_at_its_timeout(engine):
    """
    The host has taken all connections of its pool. When it gives one back, calls work again.
    """
    catalog = ModelCatalog(async_sessionmaker(engine), timeout_s=0.1)
    await catalog.register_model(a_model("known"))
    async with engine.connect(), engine.connect():
        for call in (catalog.find_model("known", "hf"), catalog.register_model(a_model("m"))):
            with pytest.raises(CatalogBusyError, match="no connection was free"):
                await call

    assert await catalog.find_model("m", "hf") is None
    assert await catalog.find_model("known", "hf") is not None


async def test_a_connection_returns_to_its_pool_before_the_call_returns(engine, host_catalog):
    """
    A host may dispose of its engine after its last call; no connection is left in use.
    """
    for _ in range(3):
        await asyncio.gather(
            *(host_catalog.find_model("known", "hf") for _ in range(8)),
            *(host_catalog.register_model(a_model(f"m{n}")) for n in range(8)),
        )
        assert engine.pool.checkedout() == 0


async def test_a_connection_returns_to_its_pool_before_a_batch_that_failed_is_answered(
    engine, host_catalog
):
    """
    The calls of such a batch are run and answered one by one; the last one waits for the return.
    """
    for number in range(20):
        results = await asyncio.gather(
            host_catalog.update_model("unknown", "hf", license="mit"),
            *(host_catalog.register_model(a_model(f"m{number}-{n}")) for n in range(3)),
            return_exceptions=True,
        )
        assert engine.pool.checkedout() == 0, number
        assert [isinstance(each, ModelNotFoundError) for each in results] == [True] + 3 * [False]


async def test_one_rejected_write_of_a_batch_affects_only_its_own_call(sqlite_file, host_catalog):
    """
    The batch is rolled back, and each of its writes is repeated alone.
    """
    with closing(sqlite3.connect(sqlite_file)) as raw:
        raw.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON models WHEN NEW.reference = 'm3'"
            " BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )

    results = await asyncio.gather(
        *(host_catalog.register_model(a_model(f"m{n}")) for n in range(8)), return_exceptions=True
    )

    failed = [number for number, result in enumerate(results) if isinstance(result, Exception)]
    assert failed == [3]
    assert await host_catalog.count_models() == 8


async def test_a_write_waits_for_the_hosts_transaction_on_another_connection(engine, host_catalog):
    """
    The transaction of the host has the write lock. The call is repeated until it has ended.
    """
    async with engine.connect() as connection:
        await connection.execute(text("UPDATE models SET pin_reason = 'x'"))
        writing = asyncio.create_task(host_catalog.register_model(a_model("m")))
        finding = await host_catalog.find_model("m", "hf")
        await connection.commit()
    await writing

    assert finding is None
    assert await host_catalog.find_model("m", "hf") is not None


async def test_a_write_waits_for_an_open_transaction_of_the_catalog(host_catalog):
    """
    `transaction()` runs on a session, and the writes of other tasks take turns with it.
    """
    async with host_catalog.transaction() as inner:
        await inner.register_model(a_model("inner"))
        # A context of its own: a task of this one would be told that it waits for itself.
        outer = asyncio.get_running_loop().create_task(
            host_catalog.register_model(a_model("outer")), context=Context()
        )
        assert await host_catalog.find_model("inner", "hf") is None
        assert not outer.done()
    await outer

    assert await host_catalog.count_models() == 3


@pytest.mark.parametrize("is_shared", [True, False], ids=["one catalog", "a catalog per request"])
async def test_writers_that_wait_for_their_turn_hold_no_connection(sqlite_file, is_shared):
    """
    `transaction()` has the turn of the writers and needs a connection, which no other writer has.
    """
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{sqlite_file}", pool_size=1, max_overflow=0, pool_timeout=20
    )
    sessions = async_sessionmaker(engine)
    shared = ModelCatalog(sessions, timeout_s=5)
    await shared.register_model(a_model("known"))

    async def request(number: int) -> None:
        catalog = shared if is_shared else ModelCatalog(sessions, timeout_s=5)
        await catalog.find_model("known", "hf")
        await catalog.register_model(a_model(f"single {number}"))
        async with catalog.transaction() as inner:
            await inner.register_model(a_model(f"inner {number}"))
        await catalog.register_models([a_model(f"bulk {number}")])

    await asyncio.gather(*(request(number) for number in range(8)))

    assert await shared.count_models() == 1 + 3 * 8
    await engine.dispose()


@pytest.mark.parametrize("reset", [None, "commit", "rollback"])
async def test_a_connection_is_in_use_until_its_batch_has_ended(sqlite_file, reset):
    """
    Also if the host's pool neither rolls back nor commits a connection that returns to it.
    """
    engine = create_async_engine(f"sqlite+aiosqlite:///{sqlite_file}", pool_reset_on_return=reset)
    loop = asyncio.get_running_loop()
    in_use = []

    async def run_other_tasks() -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    def in_thread() -> None:
        asyncio.run_coroutine_threadsafe(run_other_tasks(), loop).result()
        in_use.append(engine.pool.checkedout())

    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection, _record):
        connection.create_function("in_thread", 0, in_thread)

    with closing(sqlite3.connect(sqlite_file)) as raw:
        raw.execute("CREATE TRIGGER t BEFORE INSERT ON models BEGIN SELECT in_thread(); END")
    catalog = ModelCatalog(async_sessionmaker(engine))
    for number in range(3):
        await catalog.register_model(a_model(f"m{number}"))
    await engine.dispose()

    assert in_use == [1, 1, 1]


async def test_a_cancelled_write_that_has_not_started_has_no_effect(engine, host_catalog):
    """
    It waits for a connection, and is taken out of its batch.
    """
    async with engine.connect(), engine.connect():
        writing = asyncio.create_task(host_catalog.register_model(a_model("m")))
        other = asyncio.create_task(host_catalog.register_model(a_model("n")))
        await asyncio.sleep(0.01)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
    await other

    assert await host_catalog.find_model("m", "hf") is None
    assert await host_catalog.find_model("n", "hf") is not None


def test_one_catalog_works_in_one_loop_after_another(sqlite_file):
    """
    A Celery worker may run each task in a loop of its own; the executors of closed loops go.
    """
    engine = create_async_engine(f"sqlite+aiosqlite:///{sqlite_file}")
    catalog = ModelCatalog(async_sessionmaker(engine))

    async def task(number: int) -> int:
        await catalog.register_model(a_model(f"m{number}"))
        found = await catalog.count_models()
        await engine.dispose()
        return found

    assert [asyncio.run(task(number)) for number in range(4)] == [1, 2, 3, 4]
    assert len(catalog._executor._batching) == 1


async def test_invalid_rows_of_a_bulk_registration_change_nothing(host_catalog):
    """
    The error comes before anything is written, and the catalog goes on.
    """
    with pytest.raises(InvalidModelError):
        await host_catalog.register_models([a_model("a"), a_model("", provider="hf")])

    assert await host_catalog.count_models() == 1


@pytest.mark.slow
def test_a_loop_that_ends_during_a_call_leaves_a_usable_database(sqlite_file):
    """
    `asyncio.run` cancels all tasks, also the one that runs the batch.
    """
    engine = create_async_engine(f"sqlite+aiosqlite:///{sqlite_file}", pool_size=1)
    catalog = ModelCatalog(async_sessionmaker(engine))

    async def main() -> None:
        await catalog.register_model(a_model("known"))
        for number in range(30):
            asyncio.get_running_loop().create_task(catalog.register_model(a_model(f"m{number}")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(main())

    async def check() -> set[str]:
        await catalog.register_model(a_model("after"))
        page = await catalog.list_models()
        await engine.dispose()
        return {model.reference for model in page}

    # Each call that the loop's end cancelled is kept or not, as its batch had begun or not.
    kept = asyncio.run(check())
    assert {"known", "after"} <= kept
    assert kept <= {"known", "after", *(f"m{number}" for number in range(30))}

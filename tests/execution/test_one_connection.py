"""Calls over a host's engine whose tasks all share one connection, as a database in memory does."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from conftest import a_model
from sqlalchemy import StaticPool
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    async_sessionmaker,
    create_async_engine,
)

from model_catalog import (
    CatalogBusyError,
    ModelCatalog,
    TransactionError,
    prepare_engine,
    upgrade,
)


@pytest.fixture(params=[False, True], ids=["plain", "prepared"])
async def in_memory(request) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine("sqlite+aiosqlite://")
    if request.param:
        prepare_engine(engine)
    await upgrade(engine)
    yield engine
    await engine.dispose()


async def assert_tasks_take_turns(bind: AsyncEngine | AsyncConnection) -> None:
    catalogs = [ModelCatalog(async_sessionmaker(bind)) for _ in range(2)]

    async def request(number: int) -> None:
        catalog = catalogs[number % 2]
        await catalog.register_model(a_model(f"single {number}"))
        await asyncio.gather(catalog.list_models(), catalog.find_model(f"single {number}", "hf"))
        async with catalog.transaction() as inner:
            await inner.register_model(a_model(f"inner {number}"))
            await inner.find_model(f"single {number}", "hf")

    await asyncio.gather(*(request(number) for number in range(10)))

    assert await catalogs[0].count_models() == 20


async def test_no_write_is_lost_in_memory(in_memory):
    """
    A call ends with a rollback of the connection, which must not be that of another call.
    """
    await assert_tasks_take_turns(in_memory)


async def test_no_write_is_lost_on_the_one_connection_of_a_pool(database):
    """
    The same on a file and on a server, with SQLAlchemy's StaticPool.
    """
    engine = create_async_engine(database.target_url, poolclass=StaticPool)
    await assert_tasks_take_turns(engine)
    await engine.dispose()


async def test_a_call_waits_for_the_transaction_of_another_task(in_memory):
    """
    A read waits too, for at most its timeout. In the task of the transaction it is refused.
    """
    catalog = ModelCatalog(async_sessionmaker(in_memory))
    impatient = ModelCatalog(async_sessionmaker(in_memory), timeout_s=0.05)
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def write() -> None:
        async with catalog.transaction() as inner:
            await inner.register_model(a_model("m"))
            begun.set()
            await may_end.wait()
            with pytest.raises(TransactionError, match="transaction\\(\\) returned"):
                await catalog.find_model("m", "hf")

    writing = asyncio.create_task(write())
    await begun.wait()
    with pytest.raises(CatalogBusyError, match="another task uses the connection"):
        await impatient.find_model("m", "hf")
    may_end.set()
    await writing

    assert await impatient.find_model("m", "hf") is not None


@pytest.mark.parametrize("is_begun", [False, True], ids=["no transaction", "open transaction"])
async def test_tasks_take_turns_on_a_connection_of_the_host(database, is_begun):
    """
    A factory is bound to it. A call does not take the transaction of another for the host's.
    """
    engine = create_async_engine(database.target_url)
    if database.backend == "sqlite":
        prepare_engine(engine)
    async with engine.connect() as connection:
        outer = await connection.begin() if is_begun else None
        await assert_tasks_take_turns(connection)
        if outer is not None:
            await outer.commit()
    await engine.dispose()

    assert database.run("SELECT count(*) FROM models") == [(20,)]

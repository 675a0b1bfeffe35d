"""What a call over a host's sessions costs: hops to aiosqlite's thread, and round trips."""

import asyncio
import logging
import queue
from collections.abc import AsyncIterator

import aiosqlite.core
import pytest
from conftest import a_model
from counting_proxy import CountingProxy
from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session

from model_catalog import Model, ModelCatalog, prepare_engine
from model_catalog.concurrency import threads


async def find(catalog: ModelCatalog) -> None:
    assert await catalog.find_model("known", "hf") is not None


async def find_in_64_tasks(catalog: ModelCatalog) -> None:
    await asyncio.gather(*(find(catalog) for _ in range(64)))


async def list_all(catalog: ModelCatalog) -> None:
    assert await catalog.list_models() != []


async def register(catalog: ModelCatalog) -> None:
    await catalog.register_model(a_model("new"))


async def register_again(catalog: ModelCatalog) -> None:
    await catalog.register_model(a_model("known"))


async def register_in_64_tasks(catalog: ModelCatalog) -> None:
    await asyncio.gather(*(catalog.register_model(a_model(f"n{n}")) for n in range(64)))


async def register_1000(catalog: ModelCatalog) -> None:
    await catalog.register_models(a_model(f"b{n}") for n in range(1000))


class CountingQueue(queue.SimpleQueue):
    """The queue of aiosqlite's thread, which counts what is put in."""

    count = 0

    def put_nowait(self, item):
        CountingQueue.count += 1
        super().put_nowait(item)


@pytest.fixture
def hops(monkeypatch) -> type[CountingQueue]:
    monkeypatch.setattr(aiosqlite.core, "SimpleQueue", CountingQueue)
    return CountingQueue


@pytest.fixture(params=["plain", pytest.param("prepared", marks=pytest.mark.slow)])
async def sqlite_engine(request, sqlite_file, hops) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{sqlite_file}")
    if request.param == "prepared":
        prepare_engine(engine)
    yield engine
    await engine.dispose()


@pytest.mark.parametrize(
    "call", [find, find_in_64_tasks, list_all, register, register_in_64_tasks, register_1000]
)
async def test_a_call_is_one_hop_and_the_rollback_of_the_pool(sqlite_engine, hops, call):
    """
    The host's thread runs a call with its BEGIN and COMMIT as one function. SQLAlchemy's pool then
    rolls back, whoever used the connection.
    """
    catalog = ModelCatalog(async_sessionmaker(sqlite_engine))
    await catalog.register_model(a_model("known"))

    before = hops.count
    await call(catalog)

    assert hops.count - before == 2


async def test_a_find_that_a_host_listens_to_takes_no_more_hops_than_the_orm(sqlite_engine, hops):
    """
    Then SQLAlchemy executes the SELECT in four hops, and rolls back. It needs no BEGIN and no
    PRAGMA.
    """
    event.listen(sqlite_engine.sync_engine, "before_cursor_execute", lambda *_: None)
    sessions = async_sessionmaker(sqlite_engine)
    catalog = ModelCatalog(sessions)
    await catalog.register_model(a_model("known"))
    await find(catalog)

    start = hops.count
    await find(catalog)
    middle = hops.count
    async with sessions() as session:
        await session.execute(select(Model.reference))

    assert 2 < middle - start <= hops.count - middle + 1


@pytest.fixture
async def proxied(database) -> AsyncIterator[tuple[AsyncEngine, CountingProxy]]:
    """A host's engine with one connection, which goes through a proxy."""
    url = database.target_url
    proxy = CountingProxy(url.host, url.port)
    async with proxy.listening() as port:
        unencrypted = {"sslmode" if database.backend == "psycopg" else "ssl": "disable"}
        engine = create_async_engine(
            url.set(host="127.0.0.1", port=port).update_query_dict(unencrypted), pool_size=1
        )
        yield engine, proxy
        await engine.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncpg", "psycopg"], indirect=True)
@pytest.mark.parametrize(
    ("call", "count"),
    [
        (find, 1),
        (find_in_64_tasks, 1),
        (register, 3),
        (register_again, 4),
        (register_in_64_tasks, 3),
    ],
)
async def test_a_call_takes_few_round_trips(proxied, call, count):
    """
    A find is one. A registration is BEGIN with its limits, the upsert, and COMMIT. The tags of a
    model that exists are one more.
    """
    engine, proxy = proxied
    catalog = ModelCatalog(async_sessionmaker(engine))
    # asyncpg asks for the types of a statement once for each connection.
    for name in ("known", "other"):
        await catalog.register_model(a_model(name))
        await call(catalog)
    await catalog.remove_model("new", "hf")
    for number in range(64):
        await catalog.remove_model(f"n{number}", "hf")

    before = proxy.round_trip_count
    await call(catalog)

    assert proxy.round_trip_count - before == count


def listen_to_engine(engine, name, seen) -> None:
    event.listen(engine, name, lambda *_: seen.append(name))


def listen_to_class(engine, _name, seen) -> None:
    event.listen(type(engine), "before_cursor_execute", note := lambda *_: seen.append("x"))
    engine.forget = lambda: event.remove(type(engine), "before_cursor_execute", note)


def listen_to_sessions(_engine, _name, seen) -> None:
    event.listen(Session, "after_begin", note := lambda *_: seen.append("x"))
    _engine.forget = lambda: event.remove(Session, "after_begin", note)


def log_statements(engine, _name, seen) -> None:
    class Handler(logging.Handler):
        def emit(self, record) -> None:
            seen.append(record)

    logger = logging.getLogger("sqlalchemy.engine.Engine")
    logger.addHandler(handler := Handler())
    engine.echo = True
    engine.forget = lambda: logger.removeHandler(handler)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite", "asyncpg"], indirect=True)
@pytest.mark.parametrize(
    ("listen", "name"),
    [
        (listen_to_engine, "before_cursor_execute"),
        (listen_to_engine, "begin"),
        (listen_to_engine, "commit"),
        (listen_to_engine, "checkout"),
        (listen_to_engine, "reset"),
        (listen_to_class, "class"),
        (listen_to_sessions, "sessions"),
        (log_statements, "echo"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_a_host_listens_to_it_hears(database, listen, name):
    """
    A tracer that is installed after the first call sees each of the following calls, and each task
    has a connection and a transaction of its own.
    """
    engine = create_async_engine(database.target_url)
    catalog = ModelCatalog(async_sessionmaker(engine))
    await catalog.register_model(a_model("known"))
    seen = []
    listen(engine.sync_engine, name, seen)

    try:
        counts = []
        for call in (find, register, find):
            await asyncio.gather(*(call(catalog) for _ in range(3)))
            counts.append(len(seen))
            seen.clear()
    finally:
        getattr(engine.sync_engine, "forget", lambda: None)()
        await engine.dispose()

    assert min(counts) >= 3, counts


class TenantSession(AsyncSession):
    """A session of a host that does something of its own."""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite", "asyncpg"], indirect=True)
async def test_a_session_class_of_a_host_is_used(database):
    """
    It may set the tenant of a transaction, so each call makes a session.
    """
    engine = create_async_engine(database.target_url)
    made = []

    class Counted(TenantSession):
        def __init__(self, *arguments, **options) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    catalog = ModelCatalog(async_sessionmaker(engine, class_=Counted))
    await catalog.register_model(a_model("known"))
    before = len(made)
    await find_in_64_tasks(catalog)
    await engine.dispose()

    assert len(made) - before >= 64


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite", "asyncpg", "psycopg"], indirect=True)
async def test_the_settings_of_a_hosts_connection_stay(database):
    """
    After each call the only connection of the pool has the host's timeouts and isolation level.
    """
    options = (
        {"connect_args": {"timeout": 7}}
        if database.path is not None
        else {"isolation_level": "REPEATABLE READ"}
    )
    engine = create_async_engine(database.target_url, pool_size=1, max_overflow=0, **options)
    names = (
        ["PRAGMA busy_timeout"]
        if database.path is not None
        else ["SHOW lock_timeout", "SHOW statement_timeout", "SHOW transaction_isolation"]
    )

    async def settings():
        async with engine.connect() as connection:
            return [(await connection.exec_driver_sql(name)).scalar() for name in names]

    before = await settings()
    catalog = ModelCatalog(async_sessionmaker(engine))
    await catalog.register_model(a_model("known"))
    found = []
    for call in (find, register, register_1000, list_all, register_in_64_tasks):
        await call(catalog)
        found.append(await settings())
    with pytest.raises(ZeroDivisionError):
        async with catalog.transaction() as inner:
            await inner.register_model(a_model("m"))
            raise ZeroDivisionError
    found.append(await settings())
    await engine.dispose()

    assert before[0] in (7000, "0")
    assert found == [before] * 6


@pytest.mark.slow
async def test_the_loop_of_an_ordinary_service_is_never_put_to_sleep(sqlite_file, monkeypatch):
    """
    Twenty clients send requests with pauses, each of which finds and registers a model.
    """
    sleeps = []
    sleep = threads.time.sleep
    monkeypatch.setattr(
        threads.time, "sleep", lambda seconds: (sleeps.append(seconds), sleep(seconds))
    )
    engine = create_async_engine(f"sqlite+aiosqlite:///{sqlite_file}")
    catalog = ModelCatalog(async_sessionmaker(engine))
    await catalog.register_model(a_model("known"))
    sleeps.clear()

    async def client(number: int) -> None:
        for request in range(5):
            await asyncio.sleep(0.002 * (number % 5 + 1))
            await find(catalog)
            await catalog.register_model(a_model(f"m{number}-{request}"))

    await asyncio.gather(*(client(number) for number in range(20)))
    for _ in range(50):
        await find(catalog)
    await engine.dispose()

    assert sleeps == []

"""Calls in a transaction that a host has begun, on its session or on its connection."""

import asyncio
from collections.abc import AsyncIterator

import host_engines
import pytest
from conftest import Database, a_model
from sqlalchemy import text
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
)

from model_catalog import (
    CatalogBusyError,
    ModelCatalog,
    ModelInUseError,
    ModelNotFoundError,
    TransactionError,
)
from model_catalog.execution.executor import read

ENGINES = ("plain", "prepared", "own BEGIN", "autocommit off")
MODES = (
    "create_savepoint",
    pytest.param("conditional_savepoint", marks=pytest.mark.slow),
    pytest.param("rollback_only", marks=pytest.mark.slow),
)


@pytest.fixture(
    params=[
        *(
            pytest.param(("sqlite", name), id=f"sqlite {name}", marks=host_engines.marks(name))
            for name in ENGINES
        ),
        pytest.param(("asyncpg", "plain"), id="asyncpg"),
        pytest.param(("psycopg", "plain"), id="psycopg", marks=pytest.mark.slow),
    ]
)
def host(request) -> tuple[str, str]:
    """The driver of a host, and how it has set up its engine."""
    return request.param


@pytest.fixture
def backend(host) -> str:
    return host[0]


@pytest.fixture
async def engine(host, database: Database) -> AsyncIterator[AsyncEngine]:
    engine = host_engines.ENGINES[host[1]](database.target_url)
    yield engine
    await engine.dispose()


@pytest.fixture
async def connection(engine) -> AsyncIterator[AsyncConnection]:
    async with engine.connect() as connection:
        yield connection


async def use_in_every_way(catalog: ModelCatalog) -> None:
    """Write with single calls, in bulk, in parallel and in transactions, with some that fail."""
    await catalog.register_model(a_model("m"))
    await catalog.register_models([a_model("n"), a_model("o")])
    with pytest.raises(ModelNotFoundError):
        await catalog.update_model("nothing", "hf", size_bytes=1)
    await asyncio.gather(*(catalog.register_model(a_model(f"p{n}")) for n in range(5)))
    with pytest.raises(ZeroDivisionError):
        async with catalog.transaction() as inner:
            await inner.remove_model("m", "hf")
            raise ZeroDivisionError
    async with catalog.transaction() as inner:
        await inner.remove_model("n", "hf")
        assert await inner.find_model("n", "hf") is None


REMAINING = ["m", "o", "p0", "p1", "p2", "p3", "p4"]


async def references(catalog: ModelCatalog) -> list[str]:
    return sorted(model.reference for model in await catalog.list_models())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("keeps", [True, False], ids=["commit", "rollback"])
async def test_factory_bound_to_a_connection_writes_in_its_transaction(
    connection, database, mode, keeps
):
    """
    The transaction of the host's connection decides what is kept, as in SQLAlchemy's recipe for
    tests.
    """
    outer = await connection.begin()
    catalog = ModelCatalog(async_sessionmaker(connection, join_transaction_mode=mode))

    await use_in_every_way(catalog)
    found = await references(catalog)
    await (outer.commit() if keeps else outer.rollback())

    assert found == REMAINING
    assert database.run("SELECT count(*) FROM models") == [(len(REMAINING) if keeps else 0,)]


async def test_session_bound_to_a_connection_writes_in_its_transaction(connection, database):
    """
    A commit of the host's session is undone by the rollback of the connection's transaction.
    """
    outer = await connection.begin()

    async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
        catalog = ModelCatalog(session)
        await use_in_every_way(catalog)
        found = await references(catalog)
        await session.commit()
    await outer.rollback()

    assert found == REMAINING
    assert database.run("SELECT count(*) FROM models") == [(0,)]


async def test_calls_leave_the_settings_of_a_host_connection(connection, database):
    """
    After a call, the host's transaction has its own timeouts and its own isolation level.
    """
    settings = ("busy_timeout",) if database.path else ("lock_timeout", "statement_timeout")

    async def read_settings():
        show = "PRAGMA {}" if database.path else "SHOW {}"
        answers = [await connection.execute(text(show.format(name))) for name in settings]
        return [answer.scalar() for answer in answers]

    catalog = ModelCatalog(async_sessionmaker(connection))
    options = connection.sync_connection.get_execution_options()
    await catalog.register_model(a_model("before"))
    assert connection.sync_connection.get_execution_options() == options
    async with connection.begin():
        before = await read_settings()
        await catalog.register_model(a_model("m"))
        assert await read_settings() == before


async def test_call_beside_a_transaction_block_on_its_connection_is_refused(connection):
    """
    A call of the outer catalog would wait for the block of its own task, and says so.
    """
    async with connection.begin():
        catalog = ModelCatalog(async_sessionmaker(connection))
        async with catalog.transaction():
            with pytest.raises(TransactionError, match=r"transaction\(\) returned"):
                await catalog.count_models()


ON_SQLITE = pytest.mark.parametrize(
    "host",
    [pytest.param(("sqlite", name), id=name, marks=host_engines.marks(name)) for name in ENGINES],
)


@pytest.fixture
def slow_insert(database) -> None:
    """Have the registration of a model named "slow" take many seconds."""
    database.run("CREATE TABLE deployments (name TEXT)")
    database.run(
        "CREATE TRIGGER slow BEFORE INSERT ON models WHEN NEW.reference = 'slow' BEGIN"
        " SELECT count(*) FROM (WITH RECURSIVE numbers(n) AS"
        " (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT 1000000000) SELECT n FROM numbers);"
        " END"
    )


INSERT = "INSERT INTO deployments VALUES ('{}')"


@ON_SQLITE
@pytest.mark.parametrize("nested", [False, True], ids=["transaction", "savepoint"])
@pytest.mark.parametrize("bulk", [False, True], ids=["one", "bulk"])
async def test_interrupted_write_ends_the_transaction_of_the_host_session(
    engine, database, slow_insert, nested, bulk
):
    """
    SQLite rolls the transaction back. The session refuses statements and commits until the host
    rolls back, so that no later row is kept without the earlier ones.
    """
    async with AsyncSession(engine) as session:
        catalog = ModelCatalog(session)
        impatient = ModelCatalog(session, timeout_s=0.1)
        await session.execute(text(INSERT.format("before")))
        if nested:
            savepoint = await session.begin_nested()
        with pytest.raises(CatalogBusyError):
            if bulk:
                await impatient.register_models([a_model("m"), a_model("slow")])
            else:
                await impatient.register_model(a_model("slow"))
        if nested:
            await savepoint.rollback()
        with pytest.raises(PendingRollbackError):
            await session.execute(text(INSERT.format("after")))
        with pytest.raises(TransactionError, match="roll"):
            await catalog.register_model(a_model("after"))
        with pytest.raises(TransactionError, match="roll"):
            async with catalog.transaction() as inner:
                await inner.register_model(a_model("after"))
        with pytest.raises(PendingRollbackError):
            await session.commit()
        await session.rollback()

        await session.execute(text(INSERT.format("healed")))
        await catalog.register_model(a_model("healed"))
        await session.commit()

    assert database.run("SELECT name FROM deployments") == [("healed",)]
    assert database.run("SELECT reference FROM models") == [("healed",)]


@ON_SQLITE
async def test_interrupted_write_ends_the_transaction_of_the_host_connection(
    connection, database, slow_insert
):
    """
    Over a factory that is bound to a connection, the connection's transaction is invalid.
    """
    outer = await connection.begin()
    joined = {"join_transaction_mode": "create_savepoint"}
    catalog = ModelCatalog(async_sessionmaker(connection, **joined))
    impatient = ModelCatalog(async_sessionmaker(connection, **joined), timeout_s=0.1)
    await connection.execute(text(INSERT.format("before")))
    with pytest.raises(CatalogBusyError):
        await impatient.register_model(a_model("slow"))

    with pytest.raises(PendingRollbackError):
        await connection.execute(text(INSERT.format("after")))
    with pytest.raises(TransactionError, match="roll"):
        await catalog.register_model(a_model("after"))
    with pytest.raises(PendingRollbackError):
        await outer.commit()
    await outer.rollback()

    async with connection.begin():
        await catalog.register_model(a_model("healed"))
    assert database.run("SELECT name FROM deployments") == []
    assert database.run("SELECT reference FROM models") == [("healed",)]


@ON_SQLITE
async def test_interrupted_read_leaves_the_transaction_of_the_host_session(engine, database):
    """
    SQLite keeps the transaction when a read is interrupted, and the host may commit it.
    """
    database.run("CREATE TABLE deployments (name TEXT)")

    def count_slowly(connection, _):
        return connection.exec_driver_sql(
            "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers"
            " LIMIT 1000000000) SELECT count(*) FROM numbers"
        ).scalar()

    async with AsyncSession(engine) as session:
        catalog = ModelCatalog(session)
        impatient = ModelCatalog(session, timeout_s=0.1)
        await session.execute(text(INSERT.format("before")))
        with pytest.raises(CatalogBusyError):
            await impatient._executor.run(read(count_slowly, None))
        await catalog.register_model(a_model("after"))
        await session.commit()

    assert database.run("SELECT name FROM deployments") == [("before",)]
    assert database.run("SELECT reference FROM models") == [("after",)]


@pytest.mark.parametrize(
    "host",
    [("asyncpg", "plain"), pytest.param(("psycopg", "plain"), marks=pytest.mark.slow)],
    ids=["asyncpg", "psycopg"],
)
async def test_failed_call_on_postgresql_does_not_let_a_commit_succeed(engine, database):
    """
    PostgreSQL answers COMMIT after an error with a rollback and no error. The session refuses it,
    and it works again after its own rollback.
    """
    database.run("CREATE TABLE deployments (model_id BIGINT REFERENCES models)")
    try:
        async with AsyncSession(engine) as session:
            catalog = ModelCatalog(session)
            model = await catalog.register_model(a_model("m"))
            await session.execute(text(f"INSERT INTO deployments VALUES ({model.id})"))
            with pytest.raises(ModelInUseError):
                await catalog.remove_model("m", "hf")
            with pytest.raises(PendingRollbackError):
                await session.commit()
            await session.rollback()
            async with session.begin_nested() as savepoint:
                model = await catalog.register_model(a_model("m"))
                await session.execute(text(f"INSERT INTO deployments VALUES ({model.id})"))
                async with session.begin_nested() as inner:
                    with pytest.raises(ModelInUseError):
                        await catalog.remove_model("m", "hf")
                    await inner.rollback()
                await savepoint.commit()
            await session.commit()
        assert database.run("SELECT count(*) FROM deployments") == [(1,)]
    finally:
        database.run("DROP TABLE deployments")

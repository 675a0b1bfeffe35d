"""A PostgreSQL server that restarts, drops connections, or reports serialization failures."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager

import postgres
import psycopg
import pytest
from conftest import Database, a_model, postgresql_database
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import (
    CatalogBusyError,
    CatalogUnavailableError,
    ModelCatalog,
    open_catalog,
    upgrade,
)
from model_catalog.connection.interruption.interruptible_run import InterruptibleRun
from model_catalog.connection.postgresql.dropping import (
    drop_connection,
    replace_pooled_connections,
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgres.Cluster]:
    """A server that only these tests use, with a short deadlock timeout."""
    if not (postgres.find_binary("initdb") and postgres.find_binary("postgres")):
        if os.environ.get("MODEL_CATALOG_TEST_PG_REQUIRED"):
            pytest.fail("no server binaries")
        pytest.skip("no server binaries: these tests restart the server, so they need their own")
    with postgres.throwaway_cluster("deadlock_timeout=10ms") as cluster:
        asyncio.run(upgrade(cluster.url.set(drivername="postgresql+psycopg")))
        yield cluster


@pytest.fixture(params=["asyncpg", "psycopg"])
def backend(request) -> str:
    return request.param


class ClusterDatabase(Database):
    """The database of the cluster; each statement uses a new connection."""

    def run(self, sql, *parameters):
        with psycopg.connect(postgres.dsn(self.url), autocommit=True) as raw:
            cursor = raw.execute(sql, parameters or None)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture
def database(cluster, backend) -> Iterator[ClusterDatabase]:
    found = postgresql_database(backend, cluster.url)
    found = ClusterDatabase(found.backend, found.target, url=found.url)
    found.run("DELETE FROM models")
    yield found
    found.assert_nothing_left()


@contextmanager
def installed_trigger(database, body, *, when="BEFORE INSERT OR UPDATE"):
    """Install a trigger whose body runs whenever a model is written."""
    database.run(
        "CREATE OR REPLACE FUNCTION test_trigger() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN {body} RETURN NEW; END $$"
    )
    database.run(
        f"CREATE TRIGGER test_trigger {when} ON models FOR EACH ROW EXECUTE FUNCTION test_trigger()"
    )
    try:
        yield
    finally:
        database.run("DROP TRIGGER test_trigger ON models")
        database.run("DROP FUNCTION test_trigger")


async def until_server_sleeps(database) -> None:
    """Wait until the server runs pg_sleep."""
    while not await asyncio.to_thread(
        database.run, "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    ):
        await asyncio.sleep(0.01)


async def use_all_connections(catalog: ModelCatalog, count: int = 8) -> None:
    """Use every connection of the pool at the same time."""
    await asyncio.gather(
        *(catalog.list_models() for _ in range(count)),
        *(catalog.register_model(a_model(f"m{number}")) for number in range(count)),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "stop_signal",
    [
        pytest.param(signal.SIGINT, id="fast", marks=pytest.mark.slow),
        pytest.param(signal.SIGQUIT, id="immediate"),
    ],
)
async def test_restart_between_two_calls_is_not_noticed(cluster, database, stop_signal):
    """
    After a fast or an immediate shutdown and a restart, the next calls work on every connection of
    the pool.
    """
    async with open_catalog(database.target) as catalog:
        await use_all_connections(catalog)

        cluster.stop(stop_signal)
        cluster.start()
        await use_all_connections(catalog)

        assert len(await catalog.list_models()) == 8
        cluster.stop(stop_signal)
        cluster.start()
        async with catalog.transaction() as inner:
            await inner.register_model(a_model("after"))
        await catalog.record_use("after", "hf")


@pytest.mark.slow
async def test_dropped_connections_are_not_noticed(database):
    """
    If an administrator terminates all idle connections, the next calls make new ones.
    """
    async with open_catalog(database.target) as catalog:
        await use_all_connections(catalog)
        database.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await use_all_connections(catalog)


@pytest.mark.slow
async def test_dropped_connections_of_a_host_engine_are_not_noticed(database):
    """
    If `open_catalog` was given a host's engine, the next calls make new connections as well.
    """
    engine = create_async_engine(database.url)
    try:
        async with open_catalog(engine) as catalog:
            for call in (
                lambda: catalog.register_model(a_model("m")),
                lambda: catalog.find_model("m", "hf"),
                catalog.list_models,
                lambda: catalog.record_use("m", "hf"),
                lambda: register_in_transaction(catalog),
            ):
                await catalog.count_models()
                database.run(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                await call()
    finally:
        await engine.dispose()


async def register_one(catalog):
    await catalog.register_model(a_model("slow"))


async def register_batch(catalog):
    await catalog.register_models([a_model("other"), a_model("slow")])


async def register_in_transaction(catalog):
    async with catalog.transaction() as inner:
        await inner.register_model(a_model("other"))
        await inner.register_model(a_model("slow"))


@pytest.mark.parametrize("write", [register_one, register_batch, register_in_transaction])
async def test_restart_during_a_call_raises_unavailable(cluster, database, write):
    """
    The call raises CatalogUnavailableError and stores nothing; the next call works.
    """
    async with open_catalog(database.target) as catalog:
        with installed_trigger(
            database, "IF NEW.reference = 'slow' THEN PERFORM pg_sleep(60); END IF;"
        ):
            call = asyncio.create_task(write(catalog))
            await until_server_sleeps(database)
            await asyncio.to_thread(cluster.stop, signal.SIGQUIT)
            with pytest.raises(CatalogUnavailableError):
                await asyncio.wait_for(call, 5)
            cluster.start()

        assert await catalog.list_models() == []
        await write(catalog)
        assert await catalog.find_model("slow", "hf") is not None


async def test_calls_fail_at_once_while_the_server_is_down(cluster, database):
    """
    Each call raises CatalogUnavailableError long before its timeout. After a restart calls work.
    """
    async with open_catalog(database.target, timeout_s=10) as catalog:
        await use_all_connections(catalog)
        cluster.stop(signal.SIGQUIT)
        start = time.monotonic()
        for _ in range(3):
            with pytest.raises(CatalogUnavailableError):
                await catalog.list_models()
            with pytest.raises(CatalogUnavailableError):
                await catalog.register_model(a_model("m"))
        assert time.monotonic() - start < 5
        cluster.start()
        await use_all_connections(catalog)


@asynccontextmanager
async def host_catalogs(database, level, count=1):
    """Make catalogs over a host's engines with another isolation level."""
    engines = [
        create_async_engine(database.target, isolation_level=level, pool_size=10)
        for _ in range(count)
    ]
    try:
        yield [ModelCatalog(async_sessionmaker(engine), timeout_s=20) for engine in engines]
    finally:
        for engine in engines:
            await engine.dispose()


LEVELS = pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])


@pytest.mark.slow
@pytest.mark.slow_with("REPEATABLE READ")
@LEVELS
async def test_serialization_failures_are_retried(database, level):
    """
    With any isolation level of a host, concurrent changes of one row all take effect exactly once.
    """
    async with host_catalogs(database, level, count=2) as catalogs:
        await catalogs[0].register_model(a_model("m"))
        await asyncio.gather(
            *(
                call
                for catalog in catalogs
                for _ in range(6)
                for call in (
                    catalog.record_use("m", "hf"),
                    catalog.register_model(a_model("m")),
                    catalog.tag_model("m", "hf", "chat"),
                    catalog.stats(),
                )
            )
        )
        model = await catalogs[0].get_model("m", "hf")

    assert (model.use_count, model.download_count) == (12, 13)


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"], ids=["serialization", "deadlock"])
async def test_temporary_failure_is_retried(database, sqlstate):
    """
    A call that fails twice with a retryable error is tried a third time, and takes effect once.
    """
    database.run("CREATE SEQUENCE IF NOT EXISTS attempts")
    database.run("ALTER SEQUENCE attempts RESTART")
    # A rollback does not reset a sequence.
    refuse = (
        f"IF nextval('attempts') < 3 THEN RAISE 'not now' USING ERRCODE = '{sqlstate}'; END IF;"
    )

    async with open_catalog(database.target) as catalog:
        with installed_trigger(database, refuse):
            await catalog.register_model(a_model("m"))

        assert (await catalog.get_model("m", "hf")).download_count == 1
    assert database.run("SELECT last_value FROM attempts") == [(3,)]


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"], ids=["serialization", "deadlock"])
async def test_lasting_failure_raises_busy_at_the_timeout(database, sqlstate):
    """
    A retryable error is retried until the timeout, and then raises CatalogBusyError.
    """
    async with open_catalog(database.target, timeout_s=0.3) as catalog:
        with installed_trigger(database, f"RAISE 'not now' USING ERRCODE = '{sqlstate}';"):
            start = time.monotonic()
            with pytest.raises(CatalogBusyError, match=r"waited 0\.[2-9] s"):
                await catalog.register_model(a_model("m"))
            assert 0.25 <= time.monotonic() - start < 1.0
            # A call in a transaction cannot repeat the calls before it, so it is not retried.
            start = time.monotonic()
            with pytest.raises(CatalogBusyError):
                async with catalog.transaction() as inner:
                    await inner.register_model(a_model("m"))
            assert time.monotonic() - start < 1.0


@pytest.mark.slow
async def test_deadlock_is_retried(database):
    """
    A call that locks two rows in the opposite order to another client succeeds after that client
    has ended its transaction.
    """
    async with open_catalog(database.target, timeout_s=10) as catalog:
        await catalog.register_models([a_model("a"), a_model("b")])
        # Long enough for the other client to wait when the call locks its second row.
        slow = installed_trigger(
            database, "IF NEW.reference = 'b' THEN PERFORM pg_sleep(0.3); END IF;"
        )
        with slow, psycopg.connect(postgres.dsn(database.url)) as other:
            # The other client must not be the victim of the deadlock.
            other.execute("SET deadlock_timeout = '60s'")
            other.execute("SELECT FROM models WHERE reference = 'b' FOR UPDATE")
            call = asyncio.create_task(catalog.register_models([a_model("a"), a_model("b")]))
            await until_server_sleeps(database)
            await asyncio.to_thread(
                other.execute, "SELECT FROM models WHERE reference = 'a' FOR UPDATE"
            )
            assert not call.done()
            other.rollback()
            await asyncio.wait_for(call, 5)

        assert {model.download_count for model in await catalog.list_models()} == {2}


async def test_a_pool_is_replaced_while_another_task_connects(database):
    """A listener of the host may wait while it connects. A silent connection is found then."""
    engine = create_async_engine(database.target_url)
    catalog = ModelCatalog(async_sessionmaker(engine))

    @event.listens_for(engine.sync_engine.pool, "connect", insert=True)
    def find_a_silent_connection(*_: object) -> None:
        replace_pooled_connections(engine.sync_engine)

    try:
        assert await catalog.list_models() == []
    finally:
        await engine.dispose()


async def test_a_late_interruption_leaves_a_returned_connection_alone(database):
    """Another call may be using the connection by then."""
    engine = create_async_engine(database.target_url)
    run = InterruptibleRun("the catalog")
    try:
        async with engine.connect() as connection:
            used = connection.sync_connection.connection.driver_connection
            run.set_connection(connection)
            run.interrupt()

        run.drop()

        async with engine.connect() as connection:
            assert connection.sync_connection.connection.driver_connection is used
            assert await connection.scalar(text("SELECT 1")) == 1
    finally:
        await engine.dispose()


async def test_a_connection_is_dropped_twice(database):
    """The second time, its socket is not connected any more."""
    engine = create_async_engine(database.target_url)
    try:
        async with engine.connect() as connection:
            driver = connection.sync_connection.connection.driver_connection
            process_id = await connection.scalar(text("SELECT pg_backend_pid()"))
            drop_connection(driver)
            while database.run(f"SELECT 1 FROM pg_stat_activity WHERE pid = {process_id}"):
                await asyncio.sleep(0.01)
            drop_connection(driver)
            await connection.invalidate()
    finally:
        await engine.dispose()

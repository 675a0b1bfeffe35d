"""A PostgreSQL server that restarts, drops its clients, or refuses what cannot be serialized."""

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
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import (
    CatalogBusyError,
    CatalogUnavailableError,
    ModelCatalog,
    open_catalog,
    upgrade,
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgres.Cluster]:
    """A server that belongs to these tests alone, and finds a deadlock quickly."""
    if not (postgres.find_binary("initdb") and postgres.find_binary("postgres")):
        if os.environ.get("MODEL_CATALOG_TEST_PG_REQUIRED"):
            pytest.fail("no server binaries")
        pytest.skip("no server binaries: a server that is somebody else's is not to be restarted")
    with postgres.throwaway_cluster("deadlock_timeout=10ms") as cluster:
        asyncio.run(upgrade(cluster.url.set(drivername="postgresql+psycopg")))
        yield cluster


@pytest.fixture(params=["asyncpg", "psycopg"])
def backend(request) -> str:
    return request.param


class Own(Database):
    """The database of the cluster: every look at it is a connection of its own."""

    def run(self, sql, *parameters):
        with psycopg.connect(postgres.dsn(self.url), autocommit=True) as raw:
            cursor = raw.execute(sql, parameters or None)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture
def database(cluster, backend) -> Iterator[Own]:
    found = postgresql_database(backend, cluster.url)
    found = Own(found.backend, found.target, url=found.url)
    found.run("DELETE FROM models")
    yield found
    found.assert_nothing_left()


@contextmanager
def trigger(database, body, *, when="BEFORE INSERT OR UPDATE"):
    """Something that the server does whenever a model is written."""
    database.run(
        "CREATE OR REPLACE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN {body} RETURN NEW; END $$"
    )
    database.run(f"CREATE TRIGGER meddle {when} ON models FOR EACH ROW EXECUTE FUNCTION meddle()")
    try:
        yield
    finally:
        database.run("DROP TRIGGER meddle ON models")
        database.run("DROP FUNCTION meddle")


async def has_begun(database) -> None:
    """Return when the server is at work on something slow."""
    while not await asyncio.to_thread(
        database.run, "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    ):
        await asyncio.sleep(0.01)


async def many(catalog: ModelCatalog, count: int = 8) -> None:
    """Have every connection of the pool in use."""
    await asyncio.gather(
        *(catalog.list_models() for _ in range(count)),
        *(catalog.register_model(a_model(f"m{number}")) for number in range(count)),
    )


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGINT, id="fast", marks=pytest.mark.slow),
        pytest.param(signal.SIGQUIT, id="immediate"),
    ],
)
async def test_a_restart_between_two_calls_is_not_noticed(cluster, database, how):
    """
    Whether the server took its leave or was gone all at once, the next calls are answered, on every
    connection of the pool.
    """
    async with open_catalog(database.target) as catalog:
        await many(catalog)

        cluster.stop(how)
        cluster.start()
        await many(catalog)

        assert len(await catalog.list_models()) == 8
        cluster.stop(how)
        cluster.start()
        async with catalog.transaction() as inner:
            await inner.register_model(a_model("after"))
        await catalog.record_use("after", "hf")


async def test_dropped_connections_are_not_noticed(database):
    """
    Where an administrator ends all idle connections the next calls make new ones.
    """
    async with open_catalog(database.target) as catalog:
        await many(catalog)
        database.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await many(catalog)


async def one(catalog):
    await catalog.register_model(a_model("slow"))


async def batch(catalog):
    await catalog.register_models([a_model("other"), a_model("slow")])


async def together(catalog):
    async with catalog.transaction() as inner:
        await inner.register_model(a_model("other"))
        await inner.register_model(a_model("slow"))


@pytest.mark.parametrize("write", [one, batch, together])
async def test_a_restart_during_a_call_is_told(cluster, database, write):
    """
    The call is CatalogUnavailableError and nothing of it is kept; the next one works.
    """
    async with open_catalog(database.target) as catalog:
        with trigger(database, "IF NEW.reference = 'slow' THEN PERFORM pg_sleep(60); END IF;"):
            call = asyncio.create_task(write(catalog))
            await has_begun(database)
            await asyncio.to_thread(cluster.stop, signal.SIGQUIT)
            with pytest.raises(CatalogUnavailableError):
                await asyncio.wait_for(call, 5)
            cluster.start()

        assert await catalog.list_models() == []
        await write(catalog)
        assert await catalog.find_model("slow", "hf") is not None


async def test_a_server_that_is_down_is_unavailable_until_it_is_up(cluster, database):
    """
    Meanwhile each call says so, at once and not when its time is up; then all is as before.
    """
    async with open_catalog(database.target, timeout_s=10) as catalog:
        await many(catalog)
        cluster.stop(signal.SIGQUIT)
        start = time.monotonic()
        for _ in range(3):
            with pytest.raises(CatalogUnavailableError):
                await catalog.list_models()
            with pytest.raises(CatalogUnavailableError):
                await catalog.register_model(a_model("m"))
        assert time.monotonic() - start < 5
        cluster.start()
        await many(catalog)


@asynccontextmanager
async def host(database, level, count=1):
    """Catalogs over engines of a host's that have an isolation level of their own."""
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


@LEVELS
async def test_what_cannot_be_serialized_is_done_again(database, level):
    """
    Whatever isolation a host has chosen, many who change one row at once all do, and each once.
    """
    async with host(database, level, count=2) as catalogs:
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


@pytest.mark.parametrize("state", ["40001", "40P01"])
async def test_a_refusal_that_passes_is_not_noticed(database, state):
    """
    A call that the server refuses twice for the sake of others is made a third time, and its effect
    is there once.
    """
    database.run("CREATE SEQUENCE IF NOT EXISTS attempts")
    database.run("ALTER SEQUENCE attempts RESTART")
    # A sequence counts on where a transaction is undone.
    refuse = f"IF nextval('attempts') < 3 THEN RAISE 'not now' USING ERRCODE = '{state}'; END IF;"

    async with open_catalog(database.target) as catalog:
        with trigger(database, refuse):
            await catalog.register_model(a_model("m"))

        assert (await catalog.get_model("m", "hf")).download_count == 1
    assert database.run("SELECT last_value FROM attempts") == [(3,)]


@pytest.mark.parametrize("state", ["40001", "40P01"])
async def test_a_refusal_that_lasts_is_told_in_time(database, state):
    """
    It is tried again until the call's time is up, and then CatalogBusyError.
    """
    async with open_catalog(database.target, timeout_s=0.3) as catalog:
        with trigger(database, f"RAISE 'not now' USING ERRCODE = '{state}';"):
            start = time.monotonic()
            with pytest.raises(CatalogBusyError, match=r"waited 0\.[2-9] s"):
                await catalog.register_model(a_model("m"))
            assert 0.25 <= time.monotonic() - start < 1.0
            # What came before it cannot be done again by a call.
            start = time.monotonic()
            with pytest.raises(CatalogBusyError):
                async with catalog.transaction() as inner:
                    await inner.register_model(a_model("m"))
            assert time.monotonic() - start < 1.0


async def test_a_deadlock_is_survived(database):
    """
    A call that takes two rows which somebody else takes in the other order gets through when he
    has ended, however the server decided.
    """
    async with open_catalog(database.target, timeout_s=10) as catalog:
        await catalog.register_models([a_model("a"), a_model("b")])
        # Long enough for the other to be waiting already when the call comes to its second row.
        slow = trigger(database, "IF NEW.reference = 'b' THEN PERFORM pg_sleep(0.3); END IF;")
        with slow, psycopg.connect(postgres.dsn(database.url)) as other:
            # So that it is the call which is the victim.
            other.execute("SET deadlock_timeout = '60s'")
            other.execute("SELECT FROM models WHERE reference = 'b' FOR UPDATE")
            call = asyncio.create_task(catalog.register_models([a_model("a"), a_model("b")]))
            await has_begun(database)
            await asyncio.to_thread(
                other.execute, "SELECT FROM models WHERE reference = 'a' FOR UPDATE"
            )
            assert not call.done()
            other.rollback()
            await asyncio.wait_for(call, 5)

        assert {model.download_count for model in await catalog.list_models()} == {2}

"""Sessions of PostgreSQL that only the catalog uses: round trips, limits, locks, and tracers."""

import asyncio
import time
from contextlib import asynccontextmanager, closing, contextmanager

import postgres
import psycopg
import pytest
from conftest import a_model
from counting_proxy import CountingProxy
from fault_proxy import fault_proxy
from sqlalchemy import Engine, event, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from model_catalog import CatalogError, ModelCatalog, Sort, open_catalog
from model_catalog.execution.postgresql import own_sessions
from model_catalog.execution.postgresql.driver_statements import fetch_in_parts

pytestmark = pytest.mark.parametrize("backend", ["asyncpg", "psycopg"])


async def find(catalog: ModelCatalog) -> None:
    assert await catalog.find_model("known", "hf") is not None


async def find_in_64_tasks(catalog: ModelCatalog) -> None:
    await asyncio.gather(*(find(catalog) for _ in range(64)))


async def register_new(catalog: ModelCatalog) -> None:
    await catalog.register_model(a_model(f"new-{time.monotonic_ns()}"))


async def register_known(catalog: ModelCatalog) -> None:
    assert (await catalog.register_model(a_model("known"))).tags == ("chat",)


async def list_page(catalog: ModelCatalog) -> None:
    assert await catalog.list_models(limit=50) != []


async def list_filtered(catalog: ModelCatalog) -> None:
    found = await catalog.list_models(sort=Sort.SIZE_BYTES, limit=50, provider="hf")
    assert found != []


async def list_token_page(catalog: ModelCatalog) -> None:
    assert (await catalog.list_page(limit=50)).models != []


async def list_rows(catalog: ModelCatalog) -> None:
    assert await catalog.list_rows() != []


CALLS = [
    find,
    find_in_64_tasks,
    register_new,
    register_known,
    list_page,
    list_filtered,
    list_token_page,
    list_rows,
]


@asynccontextmanager
async def counted(database):
    """Yield a catalog and the proxy that counts its round trips."""
    url = database.target_url
    proxy = CountingProxy(url.host, url.port)
    unencrypted = {"sslmode" if database.backend == "psycopg" else "ssl": "disable"}
    async with proxy.listening() as port:
        through = url.set(host="127.0.0.1", port=port).update_query_dict(unencrypted)
        async with open_catalog(through) as catalog:
            await catalog.register_model(a_model("known"))
            await catalog.tag_model("known", "hf", "chat")
            yield catalog, proxy


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
async def test_a_call_is_one_round_trip(database, call):
    """
    A statement without a transaction needs no BEGIN, no limits and no COMMIT.
    """
    async with counted(database) as (catalog, proxy):
        # asyncpg asks for the types of a statement once, and psycopg prepares at the fifth time.
        for _ in range(7):
            await call(catalog)

        before = proxy.round_trip_count
        await call(catalog)

        assert proxy.round_trip_count - before == 1


async def test_a_write_after_a_pause_asks_the_server_first(database, monkeypatch):
    """
    The connection may be lost, and a write that was sent to it would have an unknown outcome.
    """
    async with counted(database) as (catalog, proxy):
        for _ in range(7):
            await register_new(catalog)
        monkeypatch.setattr(own_sessions, "_FRESH_S", 0.0)

        before = proxy.round_trip_count
        await register_new(catalog)

        assert proxy.round_trip_count - before == 2


async def test_a_registration_that_waited_returns_the_tags_of_that_time(database):
    """
    Another program locks the row, adds a tag and commits while the registration waits.
    """
    async with open_catalog(database.target) as catalog:
        known = await catalog.register_model(a_model("known"))
        with closing(psycopg.connect(postgres.dsn(database.url))) as other:
            other.execute("SELECT FROM models WHERE reference = 'known' FOR UPDATE")
            call = asyncio.create_task(catalog.register_model(a_model("known")))
            while not database.run(
                "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                " AND datname = current_database()"
            ):
                await asyncio.sleep(0.001)
            other.execute(
                "INSERT INTO model_tags (model_id, tag, folded) VALUES (%s, 'late', 'late')",
                [known.id],
            )
            other.commit()

            assert (await call).tags == ("late",)


@contextmanager
def slow_registrations(database):
    """Let each registration take five seconds."""
    database.run(
        "CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN PERFORM pg_sleep(5); RETURN NEW; END $$"
    )
    database.run(
        "CREATE TRIGGER slow BEFORE INSERT ON models FOR EACH ROW EXECUTE FUNCTION sleep()"
    )
    try:
        yield
    finally:
        database.run("DROP TRIGGER slow ON models")
        database.run("DROP FUNCTION sleep")


@pytest.mark.slow
async def test_the_server_stops_the_statement_of_a_caller_that_has_gone(database):
    """
    The server hears nothing from the client any more. Its own limit ends the statement.
    """
    working = (
        "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%INSERT%'"
        " AND datname = current_database() AND pid <> pg_backend_pid()"
    )
    async with (
        fault_proxy(database.target_url) as proxy,
        open_catalog(proxy.url, timeout_s=1) as catalog,
    ):
        await register_new(catalog)
        with slow_registrations(database):
            call = asyncio.create_task(register_new(catalog))
            while not database.run(working):
                await asyncio.sleep(0.001)
            proxy.silence()
            with pytest.raises(CatalogError):
                await call

            end = time.monotonic() + 1.5
            while database.run(working):
                assert time.monotonic() < end
                await asyncio.sleep(0.01)
        proxy.resume()
    assert len(database.run("SELECT 1 FROM models")) == 1


async def test_a_tracer_of_all_engines_hears_each_statement(database):
    """
    Then SQLAlchemy executes the statements, as OpenTelemetry expects.
    """
    heard = []

    def listen(_connection, _cursor, statement, *_):
        heard.append(statement)

    async with open_catalog(database.target) as catalog:
        await catalog.register_model(a_model("known"))
        await catalog.tag_model("known", "hf", "chat")
        event.listen(Engine, "before_cursor_execute", listen)
        try:
            for call in CALLS:
                before = len(heard)
                await call(catalog)
                assert len(heard) > before, call
        finally:
            event.remove(Engine, "before_cursor_execute", listen)


async def test_a_schema_with_a_percent_sign_and_a_role_with_limits(database):
    """
    The names of the tables reach the driver as they are, and the catalog's limits are its own.
    """
    role = f'ALTER ROLE CURRENT_USER IN DATABASE "{database.url.database}"'
    database.run(f"{role} SET lock_timeout = 7")
    try:
        async with open_catalog(database.target, schema="10%") as catalog:
            await catalog.register_model(a_model("known"))
            await catalog.tag_model("known", "hf", "chat")
            for call in CALLS:
                await call(catalog)
    finally:
        database.run('DROP SCHEMA IF EXISTS "10%" CASCADE')
        database.run(f"{role} RESET lock_timeout")


async def test_an_error_while_parts_are_fetched_is_translated(database):
    """
    The timeout of a statement whose rows are fetched in parts is a DBAPIError for both drivers.
    """
    engine = create_async_engine(database.target_url)
    slow = select(func.pg_sleep(60)).execution_options(yield_per=10)
    async with engine.connect() as connection:
        await connection.execute(text("SET LOCAL statement_timeout = 100"))

        with pytest.raises(DBAPIError, match="canceling statement due to statement timeout"):
            await connection.run_sync(lambda raw: list(fetch_in_parts(raw, slow, 10)))
    await engine.dispose()

"""PgBouncer in transaction mode: each transaction may get another session of the server."""

import asyncio
import re
import time

import postgres
import psycopg
import pytest
from conftest import a_model, postgresql_database
from fault_proxy import Link, fault_proxy
from pooler import pooler
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import CatalogBusyError, ModelCatalog, check_schema, open_catalog, upgrade
from model_catalog.connection.engines import create_engine
from model_catalog.connection.target import resolve_target

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("backend", ["asyncpg", "psycopg"])]

FIELDS = ("license", "format", "quantization", "architecture")
COUNT_PREPARED = text("SELECT count(*) FROM pg_prepared_statements")


@pytest.fixture
def pooled(database, tmp_path):
    """The target of a migrated database behind a pooler with two sessions."""
    with pooler(database.url, tmp_path, sessions=2) as url:
        yield postgresql_database(database.backend, url).target


@pytest.fixture
def one_session(database, tmp_path):
    """The same with one session, so that a test sees what the catalog left in it."""
    with pooler(database.url, tmp_path, sessions=1) as url:
        yield postgresql_database(database.backend, url)


async def update_often(catalog, field):
    for number in range(20):
        await catalog.update_model(field, "hf", **{field: f"{field}-{number}"})
        assert (await catalog.find_model(field, "hf")).reference == field


async def assert_only_own_values(catalog):
    for model in await catalog.list_models():
        assert {field: getattr(model, field) for field in FIELDS} == {
            field: f"{field}-19" if field == model.reference else None for field in FIELDS
        }


async def test_each_program_writes_and_finds_only_its_own_values(pooled):
    """Four programs set different fields of different models over two sessions of the server."""
    async with open_catalog(pooled) as catalog:
        await catalog.register_models([a_model(field) for field in FIELDS])

    async def program(field):
        async with open_catalog(pooled) as catalog:
            await update_often(catalog, field)

    await asyncio.gather(*map(program, FIELDS))

    async with open_catalog(pooled) as catalog:
        await assert_only_own_values(catalog)


async def test_batches_transactions_and_migrations_work_behind_a_pooler(empty, tmp_path):
    """A database is migrated through the pooler, and calls at the same time share their batches."""
    with pooler(empty.url, tmp_path, sessions=2) as url:
        target = postgresql_database(empty.backend, url).target
        await asyncio.gather(*(upgrade(target) for _ in range(4)))
        async with open_catalog(target) as catalog, open_catalog(target) as other:
            for each in (catalog, other):
                await asyncio.gather(*(each.register_model(a_model(f"m{n}")) for n in range(40)))
                async with each.transaction() as inner:
                    await inner.tag_model("m1", "hf", "chat")
            found = await asyncio.gather(
                *(each.find_model(f"m{n}", "hf") for n in range(40) for each in (catalog, other))
            )
            listed = [model.reference async for model in catalog.iter_models()]
        assert [model.reference for model in found] == [f"m{n}" for n in range(40) for _ in "ab"]
        assert sorted(listed) == sorted(f"m{n}" for n in range(40))
        assert await check_schema(target) == []


async def test_nothing_of_the_catalog_stays_in_the_session_of_the_server(one_session):
    """Timeouts, the search path, locks and prepared statements end with the transaction."""
    settings = ["lock_timeout", "statement_timeout", "search_path", "transaction_isolation"]

    def state():
        with psycopg.connect(postgres.dsn(one_session.url), prepare_threshold=None) as raw:
            return (
                [raw.execute(f"SHOW {name}").fetchone() for name in settings],
                raw.execute("SELECT name FROM pg_prepared_statements").fetchall(),
                raw.execute(
                    "SELECT * FROM pg_locks JOIN pg_database ON database = pg_database.oid"
                    " WHERE locktype = 'advisory' AND datname = current_database()"
                ).fetchall(),
            )

    before = state()
    try:
        await upgrade(one_session.target, schema="pooled")
        async with open_catalog(one_session.target, schema="pooled") as catalog:
            for number in range(8):
                await catalog.register_model(a_model(f"m{number}"))
                await catalog.find_model(f"m{number}", "hf")
                await catalog.list_models()
            async with catalog.transaction() as inner:
                await inner.tag_model("m1", "hf", "chat")
    finally:
        one_session.run("DROP SCHEMA pooled CASCADE")

    assert state() == before
    assert before[1:] == ([], [])


ASKED_FOR = {"asyncpg": "statement_cache_size=100", "psycopg": "prepare_threshold=0"}


async def count_prepared(target):
    """Return how many statements our engine leaves in a session after it used one ten times."""
    engine = create_engine(resolve_target(target), None)
    try:
        async with engine.connect() as connection:
            for _ in range(10):
                count = await connection.scalar(COUNT_PREPARED)
            return count
    finally:
        await engine.dispose()


async def test_statements_are_prepared_except_behind_a_pooler(database, one_session, backend):
    """The parameters of the URL decide where they say something."""
    off = "statement_cache_size=0" if backend == "asyncpg" else "prepare_threshold=none"

    assert await count_prepared(database.target) > 0
    assert await count_prepared(f"{database.target}?{off}") == 0
    assert await count_prepared(one_session.target) == 0
    # Last, because its statement stays in the session of the server.
    assert await count_prepared(f"{one_session.target}?{ASKED_FOR[backend]}") > 0


async def test_opening_ends_in_its_time_when_a_new_connection_falls_silent(database):
    """The server answers the driver, and falls silent when it is asked for its process ID."""
    async with fault_proxy(database.url) as proxy:
        target = postgresql_database(database.backend, proxy.url).target
        for _ in range(2):
            proxy.strike_at(re.compile(rb"pg_backend_pid"), Link.silence)
            start = time.monotonic()
            with pytest.raises(CatalogBusyError):
                async with open_catalog(target, timeout_s=0.5):
                    pass
            assert proxy.has_struck.is_set()
            assert time.monotonic() - start < 1.5
        async with open_catalog(target) as catalog:
            assert await catalog.list_models() == []


async def test_a_host_engine_with_the_documented_arguments_is_safe(pooled, backend):
    """docs/operations.md names the arguments that a host's engine needs behind a pooler."""
    arguments = {"statement_cache_size": 0} if backend == "asyncpg" else {"prepare_threshold": None}
    engines = [create_async_engine(make_url(pooled), connect_args=arguments) for _ in FIELDS]
    catalogs = [ModelCatalog(async_sessionmaker(engine)) for engine in engines]
    await catalogs[0].register_models([a_model(field) for field in FIELDS])

    await asyncio.gather(*map(update_often, catalogs, FIELDS))

    await assert_only_own_values(catalogs[0])
    for engine in engines:
        await engine.dispose()

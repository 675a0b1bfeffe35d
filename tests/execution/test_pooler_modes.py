"""PgBouncer in transaction and in session mode, with and without `?pooler=` in the URL."""

import asyncio
import re

import postgres
import psycopg
import pytest
from conftest import a_model, postgresql_database
from fault_proxy import Link, fault_proxy
from pooler import pooler
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import (
    CatalogError,
    InvalidTargetError,
    ModelCatalog,
    backup,
    open_catalog,
    upgrade,
)
from model_catalog.connection.engines import create_engine
from model_catalog.connection.target import resolve_target
from model_catalog.downloads import get_or_download, list_downloads, use_model, wait_for_download
from model_catalog.repository.model_catalog import executor_of

on_a_server = pytest.mark.parametrize("backend", ["asyncpg", "psycopg"])
in_each_mode = pytest.mark.parametrize("mode", ["transaction", "session"])
with_a_parameter = pytest.mark.parametrize("has_parameter", [False, True], ids=["plain", "named"])

COUNT_PREPARED = text("SELECT count(*) FROM pg_prepared_statements")
FIELDS = ("license", "format", "quantization", "architecture")


@pytest.fixture
def pooled(database, tmp_path, mode, has_parameter):
    """Return a function that runs PgBouncer with a number of sessions, and yields its target."""

    def start(sessions):
        return pooler(database.url, tmp_path, sessions=sessions, mode=mode)

    def target(url, backend=database.backend):
        parameter = f"?pooler={mode}" if has_parameter else ""
        return postgresql_database(backend, url).target + parameter

    return start, target


async def write_and_compare(catalog, name, number):
    """Write values of one program with different statements, and compare everything it reads."""
    model = a_model(name, license=f"license of {name}", size_bytes=number)
    assert (await catalog.register_model(model)).size_bytes == number
    field = FIELDS[number % len(FIELDS)]
    await catalog.update_model(name, "hf", **{field: f"{field} of {name}"})
    await catalog.tag_model(name, "hf", name, "shared")
    await catalog.set_alias(name, "hf", f"alias-{name}")
    await catalog.record_use(name, "hf")
    found = await catalog.find_model(name, "hf", f"alias-{name}")
    expected = {"license": f"license of {name}", field: f"{field} of {name}"}
    assert {each: getattr(found, each) for each in FIELDS} == {
        each: expected.get(each) for each in FIELDS
    }
    assert (found.reference, found.size_bytes, found.use_count) == (name, number, 1)
    assert set(found.tags) == {name, "shared"}
    assert [each.reference for each in await catalog.list_models(tags=[name])] == [name]
    if number % 3 == 0:
        await catalog.remove_alias(name, "hf", f"alias-{name}")
        assert await catalog.remove_model(name, "hf")
        assert await catalog.find_model(name, "hf") is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "mode", "has_parameter"),
    [
        # All four catalogs have the same mode and parameter, and two of them the backend.
        *(("asyncpg", "transaction", True), ("asyncpg", "session", False)),
        *(("psycopg", "transaction", False), ("psycopg", "session", True)),
    ],
)
async def test_many_tasks_with_both_drivers_read_only_what_they_wrote(pooled, backend, mode):
    """Forty tasks of four catalogs share three sessions of the server."""
    start, target = pooled
    # In session mode each connection of a client needs a session.
    with start(3 if mode == "transaction" else 40) as url:
        targets = [target(url, driver) for driver in ("asyncpg", "psycopg", backend, backend)]

        async def program(number, of_catalog):
            async with open_catalog(of_catalog) as catalog:
                await asyncio.gather(
                    *(
                        write_and_compare(catalog, f"m-{number}-{each}", 10 * number + each)
                        for each in range(10)
                    )
                )
                assert await catalog.count_models(search=f"m-{number}-") > 0

        await asyncio.gather(*(program(*each) for each in enumerate(targets)))
        async with open_catalog(targets[0]) as catalog:
            kept = [number for number in range(40) if number % 3]
            assert await catalog.count_models() == len(kept)
            assert await catalog.get_total_size() == sum(kept)


async def call_everything(target, folder):
    """Call what the catalog does in several transactions, and with several connections."""
    async with open_catalog(target) as catalog, open_catalog(target) as other:
        await write_and_compare(catalog, "m", 1)
        path = folder / "w.safetensors"
        started, release = asyncio.Event(), asyncio.Event()

        async def download(_claim):
            started.set()
            await release.wait()
            path.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ")
            return path

        calls = [
            asyncio.create_task(get_or_download(each, "hf:new", download))
            for each in (catalog, other)
        ]
        await started.wait()
        waiting = asyncio.create_task(wait_for_download(other, "hf:new", timeout_s=20))
        # A notification, or a listener that begins, would end this wait at once.
        listener = executor_of(other).listener("of a test")
        async with listener.listening():
            await listener.wait(0.5)
            is_listening = listener.is_listening
        release.set()
        assert {model.reference for model in await asyncio.gather(*calls)} == {"new"}
        assert (await waiting).state == "done"
        assert len(await list_downloads(catalog)) == 1
        async with use_model(catalog, "hf:new"):
            pass
        async with catalog.transaction() as inner:
            await inner.tag_model("m", "hf", "chat")
        await catalog.register_models(a_model(f"n{number}") for number in range(300))
        assert len([row async for row in catalog.iter_rows()]) == 302
        copy = await backup(catalog, folder / "copy.ndjson")
        assert copy.read_text().count("\n") > 302
    return is_listening


@pytest.mark.slow
@on_a_server
@in_each_mode
@with_a_parameter
async def test_nothing_of_any_call_stays_in_a_session(pooled, tmp_path, mode, has_parameter):
    """After downloads, uses, listeners and a backup a session of the server is as it was."""

    def state(url):
        with psycopg.connect(postgres.dsn(url), prepare_threshold=None, autocommit=True) as raw:
            return {
                query: raw.execute(query).fetchall()
                for query in (
                    (
                        "SELECT name, setting FROM pg_settings WHERE source = 'session'"
                        " AND name NOT IN ('client_encoding', 'application_name')"
                    ),
                    "SELECT pg_listening_channels()",
                    "SELECT name FROM pg_prepared_statements",
                    (
                        "SELECT locktype FROM pg_locks JOIN pg_database d ON database = d.oid"
                        " WHERE locktype = 'advisory' AND datname = current_database()"
                    ),
                    "SELECT relname FROM pg_class WHERE relpersistence = 't'",
                    "SELECT name FROM pg_cursors WHERE is_holdable",
                )
            }

    start, target = pooled
    with start(1 if mode == "transaction" else 20) as url:
        before = state(url)
        await upgrade(target(url))
        is_listening = await call_everything(target(url), tmp_path)
        after = state(url)

    assert after == before
    # Without the parameter, a pooler in session mode looks like one in transaction mode.
    assert is_listening == (mode == "session" and has_parameter)


@pytest.mark.slow
@on_a_server
async def test_the_parameter_says_whether_statements_are_prepared(database, tmp_path):
    """In session mode the parameter gives prepared statements back; in transaction mode none."""

    async def count_prepared(target):
        engine = create_engine(resolve_target(target), None)
        try:
            async with engine.connect() as connection:
                for _ in range(10):
                    count = await connection.scalar(COUNT_PREPARED)
                return count
        finally:
            await engine.dispose()

    for mode, is_prepared in (("transaction", False), ("session", True)):
        with pooler(database.url, tmp_path, sessions=2, mode=mode) as url:
            target = f"{postgresql_database(database.backend, url).target}?pooler={mode}"
            assert (await count_prepared(target) > 0) == is_prepared


@on_a_server
async def test_a_named_pooler_is_not_asked(database):
    """With the parameter, a new connection takes no round trip to find out what it is."""
    for parameter, is_asked in (("", True), ("?pooler=transaction", False)):
        async with fault_proxy(database.url) as proxy:
            proxy.strike_at(re.compile(rb"pg_backend_pid"), Link.resume)
            engine = create_engine(
                resolve_target(postgresql_database(database.backend, proxy.url).target + parameter),
                None,
            )
            async with engine.connect():
                pass
            await engine.dispose()
            assert proxy.has_struck.is_set() == is_asked


@on_a_server
@pytest.mark.parametrize("value", ["statement", "yes", "transaction&pooler=session"])
async def test_an_unknown_mode_is_refused(backend, value):
    """The error lists the modes."""
    with pytest.raises(InvalidTargetError, match="transaction or session"):
        await upgrade(f"postgresql+{backend}://u@127.0.0.1:1/d?pooler={value}")


WITH_NAMES = {"asyncpg": {"statement_cache_size": 100}, "psycopg": {"prepare_threshold": 0}}


@pytest.mark.slow
@on_a_server
async def test_a_statement_that_a_pooler_lost_is_explained(database, tmp_path, backend):
    """Prepared statements through a pooler fail; the error says what the URL needs."""
    with pooler(database.url, tmp_path, sessions=2) as url:
        target = make_url(postgresql_database(backend, url).target)
        engines = [create_async_engine(target, connect_args=WITH_NAMES[backend]) for _ in range(4)]
        catalogs = [ModelCatalog(async_sessionmaker(engine)) for engine in engines]
        await catalogs[0].register_models(a_model(field) for field in FIELDS)

        async def program(catalog, field):
            for number in range(20):
                await catalog.update_model(field, "hf", **{field: f"{number}"})
                await catalog.list_models(limit=1)

        found = await asyncio.gather(
            *(program(*each) for each in zip(catalogs, FIELDS, strict=True)),
            return_exceptions=True,
        )
        for engine in engines:
            await engine.dispose()

    errors = [each for each in found if isinstance(each, BaseException)]
    assert errors
    for error in errors:
        assert isinstance(error, CatalogError)
        assert "?pooler=transaction" in str(error)


@pytest.mark.slow
@on_a_server
async def test_a_parameter_that_a_pooler_refuses_is_named(database, tmp_path):
    """PgBouncer refuses settings of the session that it cannot keep apart."""
    with pooler(database.url, tmp_path, sessions=1) as url:
        target = postgresql_database(database.backend, url).target
        if database.backend == "psycopg":
            target += "?options=-c%20search_path%3Dpublic"
            with pytest.raises(CatalogError, match="options"):
                await upgrade(target)
        else:
            # asyncpg has no parameter for them.
            with pytest.raises(InvalidTargetError, match="options"):
                await upgrade(f"{target}?options=-c%20search_path%3Dpublic")

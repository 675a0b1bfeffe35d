"""Units of work: all or nothing, in their turn, and never longer than they are given."""

import asyncio
import sqlite3
import time
from contextlib import closing, contextmanager

import postgres
import pytest
from conftest import a_model
from sqlalchemy import NullPool
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

from model_catalog import (
    CatalogBusyError,
    CatalogError,
    InvalidModelError,
    ModelCatalog,
    TransactionError,
    open_catalog,
    schema_state,
)


@contextmanager
def refusing(database, how="ABORT"):
    """A database that refuses a model called `bad`, as a full disk would: in a statement."""
    if database.path is not None:
        database.run(
            "CREATE TRIGGER refuse BEFORE INSERT ON models WHEN NEW.reference = 'bad'"
            f" BEGIN SELECT RAISE({how}, 'no room'); END"
        )
        yield
        return
    database.run(
        "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'no room'; END $$"
    )
    database.run(
        "CREATE TRIGGER refuse BEFORE INSERT ON models FOR EACH ROW"
        " WHEN (NEW.reference = 'bad') EXECUTE FUNCTION refuse()"
    )
    try:
        yield
    finally:
        database.run("DROP TRIGGER refuse ON models")
        database.run("DROP FUNCTION refuse")


@pytest.mark.parametrize("how", ["ABORT", "ROLLBACK"])
async def test_a_failure_that_is_caught_does_not_lose_the_rest_silently(catalog, database, how):
    """
    A call that the database failed ends its transaction: later calls and the end of the block say
    so, and nothing is kept.
    """
    lost = pytest.raises(TransactionError, match="an earlier call in this transaction failed")
    with refusing(database, how), lost:
        async with catalog.transaction() as together:
            await together.register_model(a_model("before"))
            with pytest.raises(CatalogError):
                await together.register_model(a_model("bad"))
            with pytest.raises(TransactionError):
                await together.register_model(a_model("after"))

    assert await catalog.list_models() == []


async def test_a_failure_in_a_savepoint_loses_the_savepoint_alone(catalog, database):
    """
    Around a call that may fail a transaction() within the transaction saves the rest.
    """
    with refusing(database):
        async with catalog.transaction() as together:
            await together.register_model(a_model("before"))
            with pytest.raises(CatalogError):
                async with together.transaction() as inner:
                    await inner.register_model(a_model("bad"))
            await together.register_model(a_model("after"))

    assert {model.reference for model in await catalog.list_models()} == {"before", "after"}


async def test_what_took_the_whole_transaction_with_it_is_told(tmp_path):
    """
    Where SQLite undoes more than the savepoint, the error is the one that did it, and the rest of
    the transaction is not committed by itself.
    """
    async with open_catalog(tmp_path / "catalog.db") as catalog:
        with closing(sqlite3.connect(tmp_path / "catalog.db")) as raw:
            raw.execute(
                "CREATE TRIGGER refuse BEFORE INSERT ON models WHEN NEW.reference = 'bad'"
                " BEGIN SELECT RAISE(ROLLBACK, 'no room'); END"
            )
        with pytest.raises(TransactionError):
            async with catalog.transaction() as together:
                await together.register_model(a_model("before"))
                with pytest.raises(CatalogError, match="no room"):
                    await together.register_models([a_model("bad")])
                await together.register_model(a_model("after"))

        assert await catalog.list_models() == []


async def test_what_is_merely_not_there_ends_no_transaction(catalog):
    """
    A model that is not found, or a value that may not be stored, is no failure of the database.
    """
    async with catalog.transaction() as together:
        await together.register_model(a_model("m"))
        with pytest.raises(CatalogError):
            await together.pin_model("other", "hf")
        with pytest.raises(InvalidModelError):
            await together.register_model(a_model(""))

    assert len(await catalog.list_models()) == 1


@pytest.mark.parametrize("backend", ["asyncpg", "psycopg"])
async def test_a_read_waits_no_longer_than_it_is_given(database):
    """
    A reader that a migration holds up is told so in its time.
    """
    async with open_catalog(database.target, timeout_s=0.3) as catalog:
        busy = pytest.raises(CatalogBusyError, match=r"waited 0\.[3-9] s")
        with postgres.table_locked(database.url), busy:
            await catalog.find_model("m", "hf")
        assert await catalog.find_model("m", "hf") is None


@pytest.mark.parametrize("backend", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("look", ["find", "state"])
async def test_a_look_that_is_held_up_can_be_cancelled(database, look):
    """
    Whoever waits for somebody's lock in a server is let go when he no longer wants to.
    """
    async with open_catalog(database.target) as catalog:
        with postgres.table_locked(database.url):
            waiting = asyncio.create_task(
                catalog.find_model("m", "hf") if look == "find" else schema_state(database.target)
            )
            deadline = time.monotonic() + 10
            while not waiting.done() and not database.run(
                "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                " AND datname = current_database()"
            ):
                assert time.monotonic() < deadline
                await asyncio.sleep(0)
            began = time.monotonic()
            waiting.cancel()
            if look == "find":
                with pytest.raises(asyncio.CancelledError):
                    await waiting
            else:
                await asyncio.wait([waiting])
            assert time.monotonic() - began < 5


async def test_a_batch_takes_its_rows_in_the_order_of_their_keys(catalog):
    """
    Whatever fields its models have set and in whatever order they come, so that two batches cannot
    each hold a row that the other waits for.
    """
    models = [a_model(f"m{n:02}", **({"size_bytes": n} if n % 2 else {})) for n in range(20)]

    await catalog.register_models(reversed(models))

    # Each is given its number as it is written.
    taken = sorted(await catalog.list_models(), key=lambda model: model.id)
    assert [model.reference for model in taken] == [f"m{n:02}" for n in range(20)]


async def test_two_batches_over_the_same_rows_both_get_through(database):
    """
    Processes that register the same models at once wait for each other and lose none.
    """
    forth = [a_model(f"m{n}", **({"size_bytes": n} if n % 2 else {})) for n in range(40)]
    back = [a_model(f"m{n}", **({} if n % 2 else {"format": "x"})) for n in range(40)]

    async with open_catalog(database.target) as one, open_catalog(database.target) as other:
        await asyncio.gather(
            *(
                catalog.register_models(models)
                for catalog in (one, other)
                for models in (forth, back) * 8
            )
        )

        assert {model.download_count for model in await one.list_models()} == {32}


def test_an_engine_may_be_used_in_one_loop_after_another(tmp_path):
    """
    A host's engine without a pool outlives its event loop, as in a suite of tests.
    """
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/catalog.db", poolclass=NullPool)

    async def burst():
        async with open_catalog(engine) as catalog:
            await asyncio.gather(*(catalog.register_model(a_model(f"m{n}")) for n in range(20)))
            return await catalog.count_models()

    assert [asyncio.run(burst()), asyncio.run(burst())] == [20, 20]


@pytest.mark.parametrize("backend", ["asyncpg", "psycopg"])
async def test_a_hosts_autocommit_does_not_keep_half_a_transaction(database):
    """
    transaction() is one also over an engine that commits every statement by itself.
    """
    engine = create_async_engine(database.target_url, isolation_level="AUTOCOMMIT")
    catalog = ModelCatalog(async_sessionmaker(engine))

    with pytest.raises(ZeroDivisionError):
        async with catalog.transaction() as together:
            await together.register_model(a_model("m"))
            raise ZeroDivisionError

    assert await catalog.list_models() == []
    await engine.dispose()


@pytest.mark.parametrize(
    "sessions", [async_sessionmaker(), AsyncSession()], ids=["factory", "session"]
)
def test_a_session_that_belongs_to_no_database_is_refused(sessions):
    """
    A factory without an engine says so in our words.
    """
    with pytest.raises(CatalogError, match="the host's session"):
        ModelCatalog(sessions)


@pytest.mark.parametrize("timeout_s", ["5", -1, True, None, float("nan")])
def test_a_time_to_wait_is_a_number(timeout_s):
    """
    Seconds, 0 or more.
    """
    engine = create_async_engine("sqlite+aiosqlite:///never-opened.db")

    with pytest.raises(InvalidModelError, match="timeout_s"):
        ModelCatalog(async_sessionmaker(engine), timeout_s=timeout_s)

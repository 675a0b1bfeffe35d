"""Executors: transactions are atomic, ordered, and limited by their timeout."""

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
def rejecting_bad_model(database, conflict="ABORT"):
    """Make the database reject a model called `bad`, in a statement, as a full disk would."""
    if database.path is not None:
        database.run(
            "CREATE TRIGGER refuse BEFORE INSERT ON models WHEN NEW.reference = 'bad'"
            f" BEGIN SELECT RAISE({conflict}, 'no room'); END"
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


@pytest.mark.parametrize("conflict", ["ABORT", "ROLLBACK"])
async def test_caught_failure_rolls_the_transaction_back_with_an_error(catalog, database, conflict):
    """
    A call that the database rejects ends its transaction. Later calls and the end of the block
    raise TransactionError, and nothing is stored.
    """
    failed = pytest.raises(TransactionError, match="an earlier call in this transaction failed")
    with rejecting_bad_model(database, conflict), failed:
        async with catalog.transaction() as outer:
            await outer.register_model(a_model("before"))
            with pytest.raises(CatalogError):
                await outer.register_model(a_model("bad"))
            with pytest.raises(TransactionError):
                await outer.register_model(a_model("after"))

    assert await catalog.list_models() == []


async def test_failure_in_a_savepoint_rolls_back_only_the_savepoint(catalog, database):
    """
    A nested transaction() around a call that may fail keeps the other calls.
    """
    with rejecting_bad_model(database):
        async with catalog.transaction() as outer:
            await outer.register_model(a_model("before"))
            with pytest.raises(CatalogError):
                async with outer.transaction() as inner:
                    await inner.register_model(a_model("bad"))
            await outer.register_model(a_model("after"))

    assert {model.reference for model in await catalog.list_models()} == {"before", "after"}


async def test_rollback_of_the_whole_transaction_by_sqlite_is_reported(tmp_path):
    """
    If SQLite rolls back more than the savepoint, the call raises the original error. Later calls of
    the transaction are not committed on their own.
    """
    async with open_catalog(tmp_path / "catalog.db") as catalog:
        with closing(sqlite3.connect(tmp_path / "catalog.db")) as raw:
            raw.execute(
                "CREATE TRIGGER refuse BEFORE INSERT ON models WHEN NEW.reference = 'bad'"
                " BEGIN SELECT RAISE(ROLLBACK, 'no room'); END"
            )
        with pytest.raises(TransactionError):
            async with catalog.transaction() as outer:
                await outer.register_model(a_model("before"))
                with pytest.raises(CatalogError, match="no room"):
                    await outer.register_models([a_model("bad")])
                await outer.register_model(a_model("after"))

        assert await catalog.list_models() == []


async def test_missing_or_invalid_model_does_not_end_the_transaction(catalog):
    """
    A model that is not found, or an invalid value, is not a failure of the database.
    """
    async with catalog.transaction() as outer:
        await outer.register_model(a_model("m"))
        with pytest.raises(CatalogError):
            await outer.pin_model("other", "hf")
        with pytest.raises(InvalidModelError):
            await outer.register_model(a_model(""))

    assert len(await catalog.list_models()) == 1


@pytest.mark.parametrize("backend", ["asyncpg", "psycopg"])
async def test_blocked_read_times_out(database):
    """
    A read that a migration blocks raises CatalogBusyError at its timeout.
    """
    async with open_catalog(database.target, timeout_s=0.3) as catalog:
        busy = pytest.raises(CatalogBusyError, match=r"waited 0\.[3-9] s")
        with postgres.table_locked(database.url), busy:
            await catalog.find_model("m", "hf")
        assert await catalog.find_model("m", "hf") is None


@pytest.mark.parametrize("backend", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("read", ["find", "schema state"])
async def test_blocked_read_can_be_cancelled(database, read):
    """
    A read that waits for a lock in the server ends soon after its cancellation.
    """
    async with open_catalog(database.target) as catalog:
        with postgres.table_locked(database.url):
            waiting = asyncio.create_task(
                catalog.find_model("m", "hf") if read == "find" else schema_state(database.target)
            )
            deadline = time.monotonic() + 10
            while not waiting.done() and not database.run(
                "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                " AND datname = current_database()"
            ):
                assert time.monotonic() < deadline
                await asyncio.sleep(0)
            start = time.monotonic()
            waiting.cancel()
            if read == "find":
                with pytest.raises(asyncio.CancelledError):
                    await waiting
            else:
                await asyncio.wait([waiting])
            assert time.monotonic() - start < 5


async def test_bulk_registration_writes_rows_in_the_order_of_their_keys(catalog):
    """
    The order does not depend on the order of the models or on the fields that are set, so two bulk
    registrations cannot deadlock.
    """
    models = [a_model(f"m{n:02}", **({"size_bytes": n} if n % 2 else {})) for n in range(20)]

    await catalog.register_models(reversed(models))

    # Ids are assigned in the order in which rows are written.
    written = sorted(await catalog.list_models(), key=lambda model: model.id)
    assert [model.reference for model in written] == [f"m{n:02}" for n in range(20)]


async def test_concurrent_bulk_registrations_of_the_same_models_succeed(database):
    """
    Two catalogs that register the same models at the same time lose no registration.
    """
    ascending = [a_model(f"m{n}", **({"size_bytes": n} if n % 2 else {})) for n in range(40)]
    others = [a_model(f"m{n}", **({} if n % 2 else {"format": "x"})) for n in range(40)]

    async with open_catalog(database.target) as one, open_catalog(database.target) as other:
        await asyncio.gather(
            *(
                catalog.register_models(models)
                for catalog in (one, other)
                for models in (ascending, others) * 8
            )
        )

        assert {model.download_count for model in await one.list_models()} == {32}


def test_engine_can_be_used_in_consecutive_loops(tmp_path):
    """
    A host's engine without a pool works in several event loops in turn, as in a test suite.
    """
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/catalog.db", poolclass=NullPool)

    async def register_many():
        async with open_catalog(engine) as catalog:
            await asyncio.gather(*(catalog.register_model(a_model(f"m{n}")) for n in range(20)))
            return await catalog.count_models()

    assert [asyncio.run(register_many()), asyncio.run(register_many())] == [20, 20]


@pytest.mark.parametrize("backend", ["asyncpg", "psycopg"])
async def test_transaction_is_atomic_over_an_autocommit_engine(database):
    """
    transaction() works over a host's engine that commits every statement on its own.
    """
    engine = create_async_engine(database.target_url, isolation_level="AUTOCOMMIT")
    catalog = ModelCatalog(async_sessionmaker(engine))

    with pytest.raises(ZeroDivisionError):
        async with catalog.transaction() as outer:
            await outer.register_model(a_model("m"))
            raise ZeroDivisionError

    assert await catalog.list_models() == []
    await engine.dispose()


@pytest.mark.parametrize(
    "sessions", [async_sessionmaker(), AsyncSession()], ids=["factory", "session"]
)
def test_session_without_an_engine_is_rejected(sessions):
    """
    A factory or session without an engine raises CatalogError.
    """
    with pytest.raises(CatalogError, match="the host's session"):
        ModelCatalog(sessions)


@pytest.mark.parametrize("timeout_s", ["5", -1, True, None, float("nan")])
def test_invalid_timeout_is_rejected(timeout_s):
    """
    A timeout is a number of seconds, 0 or more.
    """
    engine = create_async_engine("sqlite+aiosqlite:///never-opened.db")

    with pytest.raises(InvalidModelError, match="timeout_s"):
        ModelCatalog(async_sessionmaker(engine), timeout_s=timeout_s)

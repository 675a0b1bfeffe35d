"""Deadlines: whatever a call waits for, it ends when its time is up, and says what for."""

import asyncio
import gc
import math
import time
from contextlib import asynccontextmanager, closing, contextmanager, suppress

import postgres
import psycopg
import pytest
from child_programs import PROCESSES, keep_sqlite_lock
from conftest import a_model
from public_calls import PUBLIC_READS, PUBLIC_WRITES, READS, WRITES, fill, open_transaction
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from model_catalog import (
    CatalogBusyError,
    CatalogUnavailableError,
    ModelCatalog,
    TransactionError,
    open_catalog,
)
from model_catalog.concurrency.completion import run_to_completion
from model_catalog.execution.interruption import InterruptibleRun
from model_catalog.schema.migration_lock import _ADVISORY_LOCK

TIMEOUT_S = 0.4
END_S = 2.5
"""When a call of TIMEOUT_S has to have ended, on a machine that has other things to do as well."""

ON_SQLITE = pytest.mark.parametrize("backend", ["sqlite"])
ON_POSTGRESQL = pytest.mark.parametrize("backend", ["asyncpg", "psycopg"])

# Many seconds of counting: SQLite has no sleep, and what it does meanwhile only an interrupt ends.
COUNTING = (
    "(WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT 10000000)"
    " SELECT count(*) FROM numbers)"
)
TABLES = ("models", "model_tags", "model_aliases", "model_files")


@contextmanager
def another_process(path, *statements):
    """A lock that another process holds on a SQLite file."""
    began, stop = PROCESSES.Event(), PROCESSES.Event()
    holder = PROCESSES.Process(
        target=keep_sqlite_lock, args=(str(path), list(statements), began, stop)
    )
    holder.start()
    try:
        assert began.wait(20)
        yield
    finally:
        stop.set()
        holder.join()


@contextmanager
def rows_taken(database):
    """Somebody else's unfinished change: on SQLite of the file, on PostgreSQL of every row."""
    if database.path is not None:
        with another_process(database.path, "BEGIN IMMEDIATE"):
            yield
        return
    with closing(psycopg.connect(postgres.dsn(database.url))) as other:
        for table in TABLES:
            other.execute(f"SELECT FROM {table} FOR UPDATE")
        yield
        other.rollback()


def let_go(database):
    """Where a test failed with a lock held, the next is not to wait for it."""
    if database.path is None:
        database.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


@contextmanager
def slow_to_read(database):
    """In place of its table a view on it that takes many seconds to read."""
    database.run("ALTER TABLE models RENAME TO slow_models")
    if database.path is not None:
        database.run(f"CREATE VIEW models AS SELECT * FROM slow_models WHERE {COUNTING} > 0")
    else:
        database.run("CREATE VIEW models AS SELECT slow_models.* FROM slow_models, pg_sleep(5)")
    try:
        yield
    except BaseException:
        let_go(database)
        raise
    finally:
        database.run("DROP VIEW models")
        database.run("ALTER TABLE slow_models RENAME TO models")


def drop_triggers(database, tables):
    for table in tables:
        if database.path is None:
            database.run(f"DROP TRIGGER slow ON {table}")
        else:
            for event in ("INSERT", "UPDATE", "DELETE"):
                database.run(f"DROP TRIGGER slow_{table}_{event}")
    if database.path is None:
        database.run("DROP FUNCTION sleep")


@contextmanager
def slow_to_write(database, tables=TABLES, *, when="BEFORE"):
    """Triggers that take many seconds: before each write or, on PostgreSQL, at the commit."""
    if database.path is None:
        database.run(
            "CREATE OR REPLACE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_sleep(5); RETURN NULL; END $$"
        )
    for table in tables:
        if database.path is not None:
            for event in ("INSERT", "UPDATE", "DELETE"):
                database.run(
                    f"CREATE TRIGGER slow_{table}_{event} BEFORE {event} ON {table}"
                    f" BEGIN SELECT {COUNTING}; END"
                )
        elif when == "BEFORE":
            database.run(
                f"CREATE TRIGGER slow BEFORE INSERT OR UPDATE OR DELETE ON {table}"
                " EXECUTE FUNCTION sleep()"
            )
        else:
            database.run(
                f"CREATE CONSTRAINT TRIGGER slow AFTER INSERT OR UPDATE OR DELETE ON {table}"
                " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sleep()"
            )
    try:
        yield
    except BaseException:
        let_go(database)
        raise
    finally:
        drop_triggers(database, tables)


@contextmanager
def schema_taken(database):
    """Somebody else's upgrade, in the midst of it."""
    with psycopg.connect(postgres.dsn(database.url)) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", [_ADVISORY_LOCK])
        yield
        other.rollback()


@asynccontextmanager
async def opened(database):
    """A catalog of little patience, with what the calls are made on."""
    async with open_catalog(database.target) as patient:
        await fill(patient)
    async with open_catalog(database.target, timeout_s=TIMEOUT_S) as catalog:
        yield catalog


@asynccontextmanager
async def host(database, **options):
    """A host's own engine."""
    engine = create_async_engine(database.target_url, **options)
    try:
        yield engine
    finally:
        await engine.dispose()


def over(engine):
    return ModelCatalog(async_sessionmaker(engine), timeout_s=TIMEOUT_S)


async def ended(call):
    """What a call raised, or None, and how long it took."""
    start = time.monotonic()
    try:
        await call
    except CatalogBusyError as error:
        return error, time.monotonic() - start
    return None, time.monotonic() - start


async def answered(call, *arguments):
    """
    What a call returns that nobody holds up, and whose time is short all the same: a machine that
    does something else meanwhile is busy as well, but not twice.
    """
    with suppress(CatalogBusyError):
        return await call(*arguments)
    return await call(*arguments)


async def all_end_busy(catalog, calls, *, by=END_S):
    """All of the calls at once, each of which has to be busy in its time and say so."""
    found = await asyncio.gather(*(ended(call(catalog)) for call in calls.values()))
    wrong = {
        name: (error, f"{seconds:.2f} s")
        for name, (error, seconds) in zip(calls, found, strict=True)
        if error is None
        or not seconds < by
        or not TIMEOUT_S * 0.9 <= error.waited_s < by
        or f"{error.reason} (waited {error.waited_s:.1f} s)" not in str(error)
    }
    assert wrong == {}
    return {error.reason for error, _ in found}


def test_every_public_call_is_looked_at():
    """
    A method that is added to the catalog gets its deadline shown here.
    """
    public = {name for name in dir(ModelCatalog) if not name.startswith("_")}

    assert public - {"database_files"} == PUBLIC_READS.keys() | PUBLIC_WRITES.keys()


async def test_no_write_outwaits_another_process(database):
    """
    While another process holds the lock, every call that writes ends in its time, also those that
    stand in a queue; calls that read are answered; and when the lock is given back all write.
    """
    async with opened(database) as catalog:
        with rows_taken(database):
            await all_end_busy(catalog, WRITES)
            for read in READS.values():
                await answered(read, catalog)
        for write in WRITES.values():
            await answered(write, catalog)


async def test_no_read_outlasts_its_deadline(database):
    """
    A query that would take long is stopped in the database when its time is up, and the next one
    is answered at once.
    """
    async with opened(database) as catalog:
        with slow_to_read(database):
            await all_end_busy(catalog, READS)
            database.assert_no_lock()
        for read in READS.values():
            start = time.monotonic()
            await answered(read, catalog)
            assert time.monotonic() - start < END_S


async def test_no_write_outlasts_its_deadline(database):
    """
    The same of a statement that writes: nothing of it is kept, and nothing stays locked.
    """
    async with opened(database) as catalog:
        before = repr(await catalog.list_models())
        with slow_to_write(database):
            await all_end_busy(catalog, WRITES)
            database.assert_no_lock()
        assert repr(await catalog.list_models()) == before
        for write in WRITES.values():
            start = time.monotonic()
            await answered(write, catalog)
            assert time.monotonic() - start < END_S


@ON_POSTGRESQL
async def test_no_commit_outlasts_its_deadline(database):
    """
    What a server does at the commit is part of the call. Where it gives no answer in time nobody
    knows whether it was kept, and the error says that.
    """
    writes = [WRITES[name] for name in ("register_models", "transaction", "update_model")]
    async with opened(database) as catalog:
        with slow_to_write(database, when="COMMIT"):
            for write in writes:
                start = time.monotonic()
                with pytest.raises(CatalogUnavailableError, match="not known"):
                    await write(catalog)
                assert time.monotonic() - start < END_S
        await answered(open_transaction, catalog)


@ON_POSTGRESQL
@pytest.mark.parametrize("write", ["register_model", "transaction"])
async def test_what_was_kept_is_not_said_to_be_unknown(database, write):
    """
    The server has answered COMMIT, and only giving the connection back takes too long: the call
    was kept, and says so.
    """
    async with host(database) as engine:

        @event.listens_for(engine.sync_engine, "reset")
        def dawdle(connection, _record, _state):
            cursor = connection.cursor()
            cursor.execute("SELECT pg_sleep(3)")
            cursor.close()

        start = time.monotonic()
        await WRITES[write](over(engine))

        assert time.monotonic() - start < END_S
        assert database.run("SELECT reference FROM models") == [("m",)]


@ON_SQLITE
async def test_a_reader_that_holds_up_a_commit_is_waited_for_no_longer(database):
    """
    With a rollback journal, as on a network file system, a commit waits for readers: not for long.
    """
    database.run("PRAGMA journal_mode = DELETE")
    calls = {name: WRITES[name] for name in ("register_model", "transaction")}

    async with host(database) as engine:
        catalog = over(engine)
        with another_process(database.path, "BEGIN", "SELECT * FROM models"):
            await all_end_busy(catalog, calls)
        assert await catalog.list_models() == []
        await catalog.register_model(a_model("m"))


@ON_SQLITE
@pytest.mark.parametrize("journal", ["wal", "delete"])
async def test_a_hosts_engine_may_be_more_patient_than_the_catalog(database, journal):
    """
    sqlite3 waits five seconds for a lock unless it is told otherwise: a call does not.
    """
    database.run(f"PRAGMA journal_mode = {journal}")
    names = ["register_model", "transaction"] + (["list_models"] if journal == "delete" else [])

    async with host(database) as engine:
        with another_process(database.path, "BEGIN EXCLUSIVE"):
            await all_end_busy(over(engine), {name: (READS | WRITES)[name] for name in names})
        await over(engine).register_model(a_model("m"))


async def test_no_call_outwaits_an_exhausted_pool(database):
    """
    A host that has all connections of its pool in use is told so by the catalog's deadline.
    """
    names = ("find_model", "register_model", "transaction")

    async with host(database, pool_size=1, max_overflow=0, pool_timeout=5 * END_S) as engine:
        catalog = over(engine)
        async with engine.connect():
            reasons = await all_end_busy(catalog, {name: (READS | WRITES)[name] for name in names})
        assert any("connection" in reason for reason in reasons), reasons
        await catalog.register_model(a_model("m"))
        assert len(await catalog.list_models()) == 1


@ON_SQLITE
async def test_no_write_outwaits_another_task(database):
    """
    A task that keeps a transaction open holds up the others as long as they like to wait.
    """
    written, go_on = asyncio.Event(), asyncio.Event()

    async def slow_writer():
        async with catalog.transaction() as slow:
            await slow.register_model(a_model("slow"))
            written.set()
            await go_on.wait()

    async with opened(database) as catalog:
        writer = asyncio.create_task(slow_writer())
        await written.wait()
        reasons = await all_end_busy(catalog, WRITES)
        go_on.set()
        await writer
        assert all("another task of this process" in reason for reason in reasons), reasons
        assert await catalog.find_model("slow", "hf") is not None
        await WRITES["register_model"](catalog)


@ON_SQLITE
async def test_a_wait_for_ones_turn_counts(database):
    """
    The time in the queue and the time at the lock are one time; so are a use that waits for
    the uses before it and its own write.
    """
    timeout_s = 0.8
    async with open_catalog(database.target, timeout_s=timeout_s) as catalog:
        await fill(catalog)
        with rows_taken(database):
            first = [
                asyncio.create_task(ended(catalog.record_use("m", "hf"))),
                asyncio.create_task(ended(catalog.register_model(a_model("m")))),
            ]
            await asyncio.sleep(timeout_s / 4)
            later = await asyncio.gather(
                *(ended(catalog.record_use("m", "hf")) for _ in range(3)),
                *(ended(catalog.register_model(a_model("m"))) for _ in range(3)),
            )
            await asyncio.gather(*first)

    assert [type(error) for error, _ in later] == [CatalogBusyError] * 6
    assert max(seconds for _, seconds in later) < 1.6 * timeout_s


async def test_no_write_in_a_transaction_outlasts_its_deadline(database):
    """
    A statement inside transaction() has the same time; with it the transaction is over, nothing of
    which is kept.
    """
    async with opened(database) as catalog:
        with slow_to_write(database, ["model_tags"]), pytest.raises(TransactionError):
            async with catalog.transaction() as inner:
                await inner.register_model(a_model("before"))
                await all_end_busy(inner, {"tag_model": WRITES["tag_model"]})
        database.assert_no_lock()
        assert [model.reference for model in await catalog.list_models()] == ["m"]
        await answered(open_transaction, catalog)


async def test_no_read_in_a_transaction_outlasts_its_deadline(database):
    """
    Nor may a query keep the others from writing for longer than that.
    """
    async with opened(database) as catalog:
        with slow_to_read(database), pytest.raises(TransactionError):
            async with catalog.transaction() as inner:
                await all_end_busy(inner, {"list_models": READS["list_models"]})
        database.assert_no_lock()
        async with catalog.transaction() as inner:
            # Until it has read, SQLite takes the table for the view that was there.
            assert len(await inner.list_models()) == 1
            await inner.register_model(a_model("after"))


@ON_POSTGRESQL
async def test_a_transaction_whose_statement_its_driver_has_ended_is_over(database, monkeypatch):
    """
    Where a server does not end a statement itself in time, its caller is told the same.
    """

    async def no_limits(*_):
        pass

    async with opened(database) as catalog:
        monkeypatch.setattr("model_catalog.execution.postgres_transaction.set_timeouts", no_limits)
        with slow_to_read(database), pytest.raises(TransactionError):
            async with catalog.transaction() as inner:
                await all_end_busy(inner, {"list_models": READS["list_models"]})
        database.assert_no_lock()


@ON_POSTGRESQL
async def test_a_row_that_is_taken_holds_up_a_transaction_no_longer(database):
    """
    Inside transaction() a lock is waited for as long as outside.
    """
    async with opened(database) as catalog:
        with rows_taken(database), pytest.raises(CatalogBusyError) as caught:
            start = time.monotonic()
            async with catalog.transaction() as inner:
                await inner.register_model(a_model("before"))
                await inner.update_model("m", "hf", license="mit")

        assert time.monotonic() - start < END_S
        assert TIMEOUT_S * 0.9 <= caught.value.waited_s < END_S
        database.assert_no_lock()
        assert [model.reference for model in await catalog.list_models()] == ["m"]
        await answered(open_transaction, catalog)


async def test_a_call_in_a_hosts_own_transaction_has_an_end(database):
    """
    Over a host's session the call ends as well, and the host may roll back and go on.
    """
    async with opened(database), host(database) as engine, AsyncSession(engine) as session:
        catalog = ModelCatalog(session, timeout_s=TIMEOUT_S)
        with slow_to_read(database):
            await all_end_busy(catalog, {"list_models": READS["list_models"]})
            await session.rollback()
        assert len(await catalog.list_models()) == 1


async def test_opening_waits_no_longer_than_it_is_given(empty):
    """
    A catalog that another process is bringing up to date is waited for as long as the call allows.
    """
    if empty.path is not None:
        empty.path.touch()
        lock = another_process(empty.path, "BEGIN IMMEDIATE")
    else:
        lock = schema_taken(empty)

    with lock:
        start = time.monotonic()
        with pytest.raises(CatalogBusyError):
            async with asyncio.timeout(5 * END_S), open_catalog(empty.target, timeout_s=TIMEOUT_S):
                pass
        assert time.monotonic() - start < END_S
    async with open_catalog(empty.target, timeout_s=5):
        pass


@pytest.mark.parametrize("timeout_s", [0, 1e-9, 1e12, math.inf], ids=str)
async def test_a_free_catalog_answers_whatever_time_it_is_given(database, timeout_s):
    """
    No time is a time in which nobody is waited for, and a time without end is one as well.
    """

    async def calls():
        async with open_catalog(database.target, timeout_s=timeout_s) as catalog:
            await catalog.register_model(a_model("m"))
            async with catalog.transaction() as inner:
                await inner.register_model(a_model("n"))
            await catalog.record_use("m", "hf")

            assert len(await catalog.list_models()) == 2

    await answered(calls)


async def test_without_any_time_nobody_is_waited_for(database):
    """
    With a timeout of 0 a write that would wait is refused at once.
    """
    async with open_catalog(database.target, timeout_s=5) as patient:
        await fill(patient)
    async with open_catalog(database.target, timeout_s=0) as catalog:
        with rows_taken(database):
            error, seconds = await ended(catalog.register_model(a_model("m")))

        assert isinstance(error, CatalogBusyError)
        assert seconds < TIMEOUT_S
        await catalog.register_model(a_model("m"))


@pytest.mark.slow
async def test_a_large_catalog_is_searched_no_longer_than_allowed(database):
    """
    An ordinary query over 200,000 models is stopped as any other, and answered to who can wait.
    """
    many = (
        "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?) "
        if database.path is not None
        else "WITH numbers AS (SELECT generate_series(1, ?::bigint) AS n) "
    )
    database.run(
        "INSERT INTO models (provider, reference, local_path, downloaded_at, reference_folded)"
        f" {many} SELECT 'hf', 'model ' || n, '/models/' || n, n, ? || n FROM numbers",
        200_000,
        "model " * 300,
    )
    async with open_catalog(database.target, timeout_s=0.05) as hasty:
        for _ in range(3):
            error, seconds = await ended(hasty.list_models(search="nowhere to be found"))
            assert isinstance(error, CatalogBusyError)
            assert seconds < 0.5
    async with open_catalog(database.target) as patient:
        assert await patient.list_models(search="nowhere to be found") == []
        assert await patient.count_models() == 200_000


@ON_POSTGRESQL
async def test_a_connection_that_is_given_up_while_it_is_made_is_closed(database):
    """
    Whenever a call's time is up, the server has no connection of it afterwards that nobody uses,
    also where somebody keeps the call's error.
    """

    async def connect(run):
        with run:
            async with engine.connect():
                pass

    errors = []
    gc.disable()
    try:
        for number in range(60):
            async with host(database) as engine:
                run = InterruptibleRun("a server")
                try:
                    await run_to_completion(
                        connect(run),
                        timeout_s=number * 0.0003,
                        on_timeout=run.interrupt,
                    )
                except CatalogBusyError as error:
                    errors.append(error)
        database.assert_nothing_left()
    finally:
        gc.enable()
    assert errors


async def test_each_transaction_on_a_connection_of_the_hosts_waits_briefly(sqlite_file):
    """
    Also the one after a COMMIT, which waits for readers as long as it may.
    """
    engine = create_async_engine(f"sqlite+aiosqlite:///{sqlite_file}")
    waits = []
    async with engine.connect() as connection:
        catalog = ModelCatalog(async_sessionmaker(connection))
        for _ in range(2):
            async with catalog.transaction() as inner:
                await inner.register_model(a_model("m"))
                answer = await connection.exec_driver_sql("PRAGMA busy_timeout")
                waits.append(answer.scalar())
    await engine.dispose()

    assert waits == [100, 100]

"""Timeouts: whatever a call waits for, it ends at its timeout and states the reason."""

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
from model_catalog.connection.interruption.interruptible_run import InterruptibleRun
from model_catalog.schema.postgres_schema import ADVISORY_LOCK

TIMEOUT_S = 0.4
PROMPT_S = 2.5
"""The time within which a call with TIMEOUT_S must have ended, even on a busy machine."""

ON_SQLITE = pytest.mark.parametrize("backend", ["sqlite"])
ON_POSTGRESQL = pytest.mark.parametrize("backend", ["asyncpg", "psycopg"])

# SQLite has no sleep. This counts for many seconds, and only an interrupt ends it.
SLOW_COUNT = (
    "(WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT 10000000)"
    " SELECT count(*) FROM numbers)"
)
TABLES = ("models", "model_tags", "model_aliases", "model_files")


@contextmanager
def sqlite_lock(path, *statements):
    """Lock a SQLite file from another process during the block."""
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
def rows_locked(database):
    """Lock the SQLite file, or every PostgreSQL row, from another client during the block."""
    if database.path is not None:
        with sqlite_lock(database.path, "BEGIN IMMEDIATE"):
            yield
        return
    with closing(psycopg.connect(postgres.dsn(database.url))) as other:
        for table in TABLES:
            other.execute(f"SELECT FROM {table} FOR UPDATE")
        yield
        other.rollback()


def terminate_other_connections(database):
    """End all PostgreSQL connections, so that a failed test leaves no lock for the next one."""
    if database.path is None:
        database.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


@contextmanager
def slow_reads(database):
    """Replace the table `models` by a view that takes many seconds to read."""
    database.run("ALTER TABLE models RENAME TO slow_models")
    if database.path is not None:
        database.run(f"CREATE VIEW models AS SELECT * FROM slow_models WHERE {SLOW_COUNT} > 0")
    else:
        database.run("CREATE VIEW models AS SELECT slow_models.* FROM slow_models, pg_sleep(5)")
    try:
        yield
    except BaseException:
        terminate_other_connections(database)
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
def slow_writes(database, tables=TABLES, *, when="BEFORE"):
    """Install triggers that take many seconds, before each write or at a PostgreSQL commit."""
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
                    f" BEGIN SELECT {SLOW_COUNT}; END"
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
        terminate_other_connections(database)
        raise
    finally:
        drop_triggers(database, tables)


@contextmanager
def migration_lock_held(database):
    """Take the migration lock, as another process does during an upgrade."""
    with psycopg.connect(postgres.dsn(database.url)) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", [ADVISORY_LOCK])
        yield
        other.rollback()


@asynccontextmanager
async def filled_catalog(database):
    """Open a catalog with a short timeout and the rows that the calls need."""
    async with open_catalog(database.target) as slow_catalog:
        await fill(slow_catalog)
    async with open_catalog(database.target, timeout_s=TIMEOUT_S) as catalog:
        yield catalog


@asynccontextmanager
async def host_engine(database, **options):
    """Make a host's own engine."""
    engine = create_async_engine(database.target_url, **options)
    try:
        yield engine
    finally:
        await engine.dispose()


def catalog_over(engine):
    return ModelCatalog(async_sessionmaker(engine), timeout_s=TIMEOUT_S)


async def timed(call):
    """Return the CatalogBusyError of a call, or None, and its duration in seconds."""
    start = time.monotonic()
    try:
        await call
    except CatalogBusyError as error:
        return error, time.monotonic() - start
    return None, time.monotonic() - start


async def call_twice_if_busy(call, *arguments):
    """
    Return the result of a call that is not blocked. Its timeout is short, so on a busy machine it
    may time out once; then it is called again.
    """
    with suppress(CatalogBusyError):
        return await call(*arguments)
    return await call(*arguments)


async def assert_all_time_out(catalog, calls, *, within_s=PROMPT_S):
    """Run calls concurrently and assert that each times out with CatalogBusyError."""
    found = await asyncio.gather(*(timed(call(catalog)) for call in calls.values()))
    wrong = {
        name: (error, f"{seconds:.2f} s")
        for name, (error, seconds) in zip(calls, found, strict=True)
        if error is None
        or not seconds < within_s
        or not TIMEOUT_S * 0.9 <= error.waited_s < within_s
        or f"{error.reason} (waited {error.waited_s:.1f} s)" not in str(error)
    }
    assert wrong == {}
    return {error.reason for error, _ in found}


def test_every_public_method_is_tested():
    """
    A method that is added to the catalog must be added to `public_calls`.
    """
    public = {name for name in dir(ModelCatalog) if not name.startswith("_")}

    assert public - {"database_files", "host"} == PUBLIC_READS.keys() | PUBLIC_WRITES.keys()


@pytest.mark.slow
@pytest.mark.slow_with("asyncpg")
async def test_writes_time_out_while_another_process_has_the_lock(database):
    """
    While another process has the lock, every write times out, also in the queue, and reads work.
    When the lock is released, the writes work too.
    """
    async with filled_catalog(database) as catalog:
        with rows_locked(database):
            await assert_all_time_out(catalog, WRITES)
            for read in READS.values():
                await call_twice_if_busy(read, catalog)
        for write in WRITES.values():
            await call_twice_if_busy(write, catalog)


@pytest.mark.slow
async def test_slow_reads_time_out(database):
    """
    A slow query is stopped in the database at the timeout, and the next query works at once.
    """
    async with filled_catalog(database) as catalog:
        with slow_reads(database):
            await assert_all_time_out(catalog, READS)
            database.assert_no_lock()
        for read in READS.values():
            start = time.monotonic()
            await call_twice_if_busy(read, catalog)
            assert time.monotonic() - start < PROMPT_S


@pytest.mark.slow
async def test_slow_writes_time_out(database):
    """
    A slow write is stopped at the timeout; nothing of it is stored, and no lock is left.
    """
    async with filled_catalog(database) as catalog:
        before = repr(await catalog.list_models())
        with slow_writes(database):
            await assert_all_time_out(catalog, WRITES)
            database.assert_no_lock()
        assert repr(await catalog.list_models()) == before
        for write in WRITES.values():
            start = time.monotonic()
            await call_twice_if_busy(write, catalog)
            assert time.monotonic() - start < PROMPT_S


@pytest.mark.slow
@ON_POSTGRESQL
async def test_slow_commit_times_out_with_an_unknown_outcome(database):
    """
    The commit is part of the call. Without an answer within the timeout, the error says that the
    outcome is not known.
    """
    writes = [WRITES[name] for name in ("register_models", "transaction", "update_model")]
    async with filled_catalog(database) as catalog:
        with slow_writes(database, when="COMMIT"):
            for write in writes:
                start = time.monotonic()
                with pytest.raises(CatalogUnavailableError, match="not known"):
                    await write(catalog)
                assert time.monotonic() - start < PROMPT_S
        await call_twice_if_busy(open_transaction, catalog)


@pytest.mark.slow
@ON_POSTGRESQL
@pytest.mark.parametrize("write", ["register_model", "transaction"])
async def test_committed_call_is_not_reported_as_unknown(database, write):
    """
    If the server has answered COMMIT and only the return of the connection is slow, the call
    succeeds.
    """
    async with host_engine(database) as engine:

        @event.listens_for(engine.sync_engine, "reset")
        def reset_slowly(connection, _record, _state):
            cursor = connection.cursor()
            cursor.execute("SELECT pg_sleep(3)")
            cursor.close()

        start = time.monotonic()
        await WRITES[write](catalog_over(engine))

        assert time.monotonic() - start < PROMPT_S
        assert database.run("SELECT reference FROM models") == [("m",)]


@pytest.mark.slow
@ON_SQLITE
async def test_commit_that_waits_for_a_reader_times_out(database):
    """
    With a rollback journal, as on a network file system, a commit waits for readers, up to the
    timeout.
    """
    database.run("PRAGMA journal_mode = DELETE")
    calls = {name: WRITES[name] for name in ("register_model", "transaction")}

    async with host_engine(database) as engine:
        catalog = catalog_over(engine)
        with sqlite_lock(database.path, "BEGIN", "SELECT * FROM models"):
            await assert_all_time_out(catalog, calls)
        assert await catalog.list_models() == []
        await catalog.register_model(a_model("m"))


@pytest.mark.slow
@ON_SQLITE
@pytest.mark.parametrize("journal", ["wal", "delete"])
async def test_timeout_is_shorter_than_the_busy_timeout_of_a_host_engine(database, journal):
    """
    sqlite3 waits five seconds for a lock by default; a call ends at its own timeout.
    """
    database.run(f"PRAGMA journal_mode = {journal}")
    names = ["register_model", "transaction"] + (["list_models"] if journal == "delete" else [])

    async with host_engine(database) as engine:
        with sqlite_lock(database.path, "BEGIN EXCLUSIVE"):
            await assert_all_time_out(
                catalog_over(engine), {name: (READS | WRITES)[name] for name in names}
            )
        await catalog_over(engine).register_model(a_model("m"))


async def test_calls_time_out_when_the_pool_is_exhausted(database):
    """
    If all connections of a host's pool are in use, a call times out and names the pool.
    """
    names = ("find_model", "register_model", "transaction")

    async with host_engine(
        database, pool_size=1, max_overflow=0, pool_timeout=5 * PROMPT_S
    ) as engine:
        catalog = catalog_over(engine)
        async with engine.connect():
            reasons = await assert_all_time_out(
                catalog, {name: (READS | WRITES)[name] for name in names}
            )
        assert any("connection" in reason for reason in reasons), reasons
        await catalog.register_model(a_model("m"))
        assert len(await catalog.list_models()) == 1


@ON_SQLITE
async def test_writes_time_out_while_another_task_writes(database):
    """
    While a task keeps a transaction open, the writes of other tasks wait up to their timeout.
    """
    written, proceed = asyncio.Event(), asyncio.Event()

    async def slow_writer():
        async with catalog.transaction() as slow:
            await slow.register_model(a_model("slow"))
            written.set()
            await proceed.wait()

    async with filled_catalog(database) as catalog:
        writer = asyncio.create_task(slow_writer())
        await written.wait()
        reasons = await assert_all_time_out(catalog, WRITES)
        proceed.set()
        await writer
        assert all("another task of this process" in reason for reason in reasons), reasons
        assert await catalog.find_model("slow", "hf") is not None
        await WRITES["register_model"](catalog)


@pytest.mark.slow
@ON_SQLITE
async def test_time_in_the_queue_counts(database):
    """
    The timeout includes the time in the queue and the time at the lock. For a use it includes the
    wait for the previous batch of uses.
    """
    timeout_s = 0.8
    async with open_catalog(database.target, timeout_s=timeout_s) as catalog:
        await fill(catalog)
        with rows_locked(database):
            first = [
                asyncio.create_task(timed(catalog.record_use("m", "hf"))),
                asyncio.create_task(timed(catalog.register_model(a_model("m")))),
            ]
            await asyncio.sleep(timeout_s / 4)
            later = await asyncio.gather(
                *(timed(catalog.record_use("m", "hf")) for _ in range(3)),
                *(timed(catalog.register_model(a_model("m"))) for _ in range(3)),
            )
            await asyncio.gather(*first)

    assert [type(error) for error, _ in later] == [CatalogBusyError] * 6
    assert max(seconds for _, seconds in later) < 1.6 * timeout_s


@pytest.mark.slow
async def test_slow_write_in_a_transaction_times_out(database):
    """
    A call in transaction() has the same timeout. It ends the transaction, and nothing is stored.
    """
    async with filled_catalog(database) as catalog:
        with slow_writes(database, ["model_tags"]), pytest.raises(TransactionError):
            async with catalog.transaction() as inner:
                await inner.register_model(a_model("before"))
                await assert_all_time_out(inner, {"tag_model": WRITES["tag_model"]})
        database.assert_no_lock()
        assert [model.reference for model in await catalog.list_models()] == ["m"]
        await call_twice_if_busy(open_transaction, catalog)


@pytest.mark.slow
async def test_slow_read_in_a_transaction_times_out(database):
    """
    So a query in a transaction cannot block other writers for longer than the timeout.
    """
    async with filled_catalog(database) as catalog:
        with slow_reads(database), pytest.raises(TransactionError):
            async with catalog.transaction() as inner:
                await assert_all_time_out(inner, {"list_models": READS["list_models"]})
        database.assert_no_lock()
        async with catalog.transaction() as inner:
            # Until its first read, this connection's cached schema still has the view.
            assert len(await inner.list_models()) == 1
            await inner.register_model(a_model("after"))


@ON_POSTGRESQL
async def test_statement_that_the_driver_cancels_ends_the_transaction(database, monkeypatch):
    """
    If the server does not stop a statement at its own limit, the driver cancels it with the same
    result.
    """

    async def no_limits(*_):
        pass

    async with filled_catalog(database) as catalog:
        monkeypatch.setattr("model_catalog.execution.postgres_transaction.set_timeouts", no_limits)
        with slow_reads(database), pytest.raises(TransactionError):
            async with catalog.transaction() as inner:
                await assert_all_time_out(inner, {"list_models": READS["list_models"]})
        database.assert_no_lock()


@ON_POSTGRESQL
async def test_locked_row_in_a_transaction_times_out(database):
    """
    A call in transaction() waits for a lock up to the same timeout.
    """
    async with filled_catalog(database) as catalog:
        with rows_locked(database), pytest.raises(CatalogBusyError) as caught:
            start = time.monotonic()
            async with catalog.transaction() as inner:
                await inner.register_model(a_model("before"))
                await inner.update_model("m", "hf", license="mit")

        assert time.monotonic() - start < PROMPT_S
        assert TIMEOUT_S * 0.9 <= caught.value.waited_s < PROMPT_S
        database.assert_no_lock()
        assert [model.reference for model in await catalog.list_models()] == ["m"]
        await call_twice_if_busy(open_transaction, catalog)


@pytest.mark.slow
async def test_call_in_a_host_transaction_times_out(database):
    """
    A call over a host's session times out too, and the host can roll back and continue.
    """
    async with (
        filled_catalog(database),
        host_engine(database) as engine,
        AsyncSession(engine) as session,
    ):
        catalog = ModelCatalog(session, timeout_s=TIMEOUT_S)
        with slow_reads(database):
            await assert_all_time_out(catalog, {"list_models": READS["list_models"]})
            await session.rollback()
        assert len(await catalog.list_models()) == 1


@pytest.mark.slow
async def test_opening_times_out_during_another_upgrade(empty):
    """
    While another process upgrades the catalog, opening waits up to its timeout.
    """
    if empty.path is not None:
        empty.path.touch()
        lock = sqlite_lock(empty.path, "BEGIN IMMEDIATE")
    else:
        lock = migration_lock_held(empty)

    with lock:
        start = time.monotonic()
        with pytest.raises(CatalogBusyError):
            async with (
                asyncio.timeout(5 * PROMPT_S),
                open_catalog(empty.target, timeout_s=TIMEOUT_S),
            ):
                pass
        assert time.monotonic() - start < PROMPT_S
    async with open_catalog(empty.target, timeout_s=5):
        pass


@pytest.mark.parametrize("timeout_s", [0, 1e-9, 1e12, math.inf], ids=str)
async def test_any_timeout_works_without_contention(database, timeout_s):
    """
    A timeout of zero or infinity is valid; without contention the calls succeed.
    """

    async def calls():
        async with open_catalog(database.target, timeout_s=timeout_s) as catalog:
            await catalog.register_model(a_model("m"))
            async with catalog.transaction() as inner:
                await inner.register_model(a_model("n"))
            await catalog.record_use("m", "hf")

            assert len(await catalog.list_models()) == 2

    await call_twice_if_busy(calls)


async def test_zero_timeout_does_not_wait_for_a_lock(database):
    """
    With a timeout of 0, a write that would wait raises CatalogBusyError at once.
    """
    async with open_catalog(database.target, timeout_s=5) as slow_catalog:
        await fill(slow_catalog)

    async def calls():
        async with open_catalog(database.target, timeout_s=0) as catalog:
            with rows_locked(database):
                error, seconds = await timed(catalog.register_model(a_model("m")))

            assert isinstance(error, CatalogBusyError)
            assert seconds < TIMEOUT_S
            await catalog.register_model(a_model("m"))

    await call_twice_if_busy(calls)


@pytest.mark.slow
async def test_search_of_a_large_catalog_times_out(database):
    """
    A search over 60,000 models is stopped at a short timeout, and succeeds with a long one.

    The index does not have texts of two characters, so all models are read. Each character of them
    could be the first one of a match.
    """
    many = (
        "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?) "
        if database.path is not None
        else "WITH numbers AS (SELECT generate_series(1, ?::bigint) AS n) "
    )
    database.run(
        "INSERT INTO models (provider, reference, local_path, downloaded_at, reference_folded)"
        f" {many} SELECT 'hf', 'model ' || n, '/models/' || n, n, ? || n FROM numbers",
        60_000,
        "z" * 1_800,
    )
    async with open_catalog(database.target, timeout_s=0.05) as short_timeout:
        for _ in range(3):
            error, seconds = await timed(short_timeout.list_models(search="zq"))
            assert isinstance(error, CatalogBusyError)
            assert seconds < 0.5
    async with open_catalog(database.target) as catalog:
        assert await catalog.list_models(search="zq") == []
        assert await catalog.count_models() == 60_000


@ON_POSTGRESQL
async def test_connection_attempt_that_times_out_is_closed(database):
    """
    At whatever moment a connection attempt times out, the server keeps no connection of it, even
    while its error is referenced.
    """

    async def connect(run):
        with run:
            async with engine.connect():
                pass

    errors = []
    gc.disable()
    try:
        for number in range(60):
            async with host_engine(database) as engine:
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


async def test_each_transaction_on_a_host_connection_has_a_short_busy_timeout(sqlite_file):
    """
    Also a transaction after a COMMIT, which has a longer busy timeout because it waits for readers.
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

"""`upgrade_connection` on a host's connection: in its own transaction, or in the host's."""

import asyncio
import sqlite3
import threading
import time
from contextlib import closing, contextmanager

import postgres
import psycopg
import pytest
from conftest import Database
from schema_shape import dump
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine

from model_catalog import (
    CatalogBusyError,
    ForeignDatabaseError,
    InvalidTargetError,
    SchemaTooNewError,
    UpgradeFailedError,
    check_schema,
    prepare_engine,
    schema_state,
    upgrade,
    upgrade_connection,
)
from model_catalog.mapping.revisions import head_revision
from model_catalog.schema import host_connection
from model_catalog.schema.postgres_schema import ADVISORY_LOCK
from model_catalog.schema.revision import VERSION_TABLE

HEAD = head_revision()
LEVELS = ["default", "SERIALIZABLE", "AUTOCOMMIT"]


@pytest.fixture
def file(tmp_path) -> Database:
    """The path of a SQLite file that does not exist yet."""
    path = tmp_path / "host.db"
    return Database("sqlite", str(path), path=path)


def host_engine(database: Database, *, foreign_keys: bool = False, **options):
    """Create a synchronous engine of a host."""
    url = database.target_url.set(
        drivername="sqlite" if database.path else "postgresql+psycopg",
    )
    engine = create_engine(url, **options)
    if foreign_keys and database.path:
        event.listen(
            engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys = ON")
        )
    return engine


def settings(connection) -> tuple:
    """Return the settings of a host's connection that a migration changes for a while."""
    if connection.dialect.name == "sqlite":
        raw = connection.connection.driver_connection
        names = ("foreign_keys", "busy_timeout")
        return (raw.isolation_level, *(raw.execute(f"PRAGMA {n}").fetchone() for n in names))
    found = (
        connection.exec_driver_sql("SHOW lock_timeout").scalar(),
        connection.exec_driver_sql("SHOW default_transaction_isolation").scalar(),
    )
    connection.rollback()
    return found


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("foreign_keys", [False, True], ids=["plain", "foreign keys on"])
def test_upgrade_connection_commits_its_own_transaction(empty, foreign_keys, level):
    """
    On a connection without a transaction it upgrades, commits, and leaves the connection as it
    was: with its settings and without a transaction.
    """
    options = {} if level == "default" else {"isolation_level": level}
    engine = host_engine(empty, foreign_keys=foreign_keys, **options)

    with engine.connect() as connection:
        before = settings(connection), connection.get_execution_options().get("isolation_level")
        upgrade_connection(connection)
        is_open = connection.in_transaction()
        after = settings(connection), connection.get_execution_options().get("isolation_level")
        upgrade_connection(connection)
    engine.dispose()

    assert not is_open
    assert after[0] == before[0]
    assert after[1] in (before[1], level)
    assert asyncio.run(check_schema(empty.target)) == []


async def test_upgrade_connection_runs_in_run_sync(empty):
    """`await connection.run_sync(upgrade_connection)` upgrades with an async driver."""
    engine = create_async_engine(empty.target_url)
    prepare_engine(engine)

    async with engine.connect() as connection:
        await connection.run_sync(upgrade_connection, "0003")
        assert not connection.in_transaction()
        await connection.run_sync(upgrade_connection)
    await engine.dispose()

    assert await check_schema(empty.target) == []


@pytest.mark.parametrize("start", [None, "0003"], ids=["nothing", "0003"])
@pytest.mark.parametrize("commits", [True, False], ids=["committed", "rolled back"])
def test_upgrade_connection_joins_an_open_transaction(empty, commits, start):
    """The migration and the host's own changes are committed or rolled back as one."""
    if start is not None:
        asyncio.run(upgrade(empty.target, start))
    empty.run("CREATE TABLE jobs (id INTEGER)")
    before = dump(empty)
    engine = host_engine(empty)

    with engine.connect() as connection:
        transaction = connection.begin()
        connection.execute(text("INSERT INTO jobs VALUES (1)"))
        upgrade_connection(connection)
        connection.execute(text("INSERT INTO jobs VALUES (2)"))
        if empty.url is not None:
            assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "0"
        (transaction.commit if commits else transaction.rollback)()
    engine.dispose()

    if commits:
        assert empty.run("SELECT id FROM jobs ORDER BY 1") == [(1,), (2,)]
        assert asyncio.run(check_schema(empty.target)) == []
    else:
        assert dump(empty) == before


@pytest.mark.parametrize("writes", [True, False], ids=["after a write", "before any write"])
def test_foreign_keys_in_an_open_transaction_are_refused(file, writes):
    """SQLite could not stop their enforcement, and a rebuilt table would lose referring rows."""
    asyncio.run(upgrade(file.path, "0001"))
    file.run("CREATE TABLE jobs (id INTEGER)")
    before = dump(file)
    engine = host_engine(file, foreign_keys=True)

    with (
        pytest.raises(UpgradeFailedError, match="before the transaction begins"),
        engine.begin() as connection,
    ):
        if writes:
            connection.execute(text("INSERT INTO jobs VALUES (1)"))
        upgrade_connection(connection)
    engine.dispose()

    assert dump(file) == before


def test_upgrade_connection_keeps_the_rows_that_refer_to_a_model(file):
    """Foreign keys are off while a table is rebuilt, and on again afterwards."""
    asyncio.run(upgrade(file.path, "0001"))
    file.run("INSERT INTO models VALUES ('m', 'hf', '/m', 1, 2)")
    file.run(
        "CREATE TABLE pins (reference TEXT, provider TEXT, FOREIGN KEY (reference, provider)"
        " REFERENCES models (reference, provider) ON DELETE CASCADE)"
    )
    file.run("INSERT INTO pins VALUES ('m', 'hf')")
    file.run(f"DROP TABLE {VERSION_TABLE}")
    engine = host_engine(file, foreign_keys=True)

    with engine.connect() as connection:
        upgrade_connection(connection, "0001")
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    engine.dispose()

    assert file.run("SELECT * FROM pins") == [("m", "hf")]


def test_autocommit_in_an_open_transaction_is_refused(empty):
    """
    On PostgreSQL nothing could be rolled back. On SQLite the migration sends its own BEGIN, which
    the end of the block commits.
    """
    engine = host_engine(empty, isolation_level="AUTOCOMMIT")

    with engine.begin() as connection:
        if empty.url is None:
            upgrade_connection(connection)
        else:
            with pytest.raises(UpgradeFailedError, match="isolation level AUTOCOMMIT"):
                upgrade_connection(connection)
    engine.dispose()

    assert asyncio.run(schema_state(empty.target))[0] == (None if empty.url else HEAD)


@pytest.mark.parametrize("start", [None, "0003"], ids=["nothing", "0003"])
@pytest.mark.parametrize("joins", [False, True], ids=["own transaction", "joined transaction"])
def test_a_failed_migration_changes_nothing(empty, joins, start):
    """A transaction of the host goes on without the migration, and its settings are restored."""
    if start is not None:
        asyncio.run(upgrade(empty.target, start))
    empty.run("CREATE TABLE jobs (id INTEGER)")
    before = dump(empty)
    engine = host_engine(empty)

    @event.listens_for(engine, "before_cursor_execute")
    def refuse(_connection, _cursor, statement, *_) -> None:
        if statement.startswith(f"INSERT INTO {VERSION_TABLE}"):
            raise RuntimeError("refused")

    with engine.connect() as connection:
        settings_before = settings(connection)
        if joins:
            connection.execute(text("INSERT INTO jobs VALUES (1)"))
        with pytest.raises(RuntimeError, match="refused"):
            upgrade_connection(connection)
        if joins:
            connection.execute(text("INSERT INTO jobs VALUES (2)"))
            connection.commit()
        settings_after = settings(connection)
    engine.dispose()

    assert settings_after == settings_before
    assert empty.run("SELECT id FROM jobs ORDER BY 1") == ([(1,), (2,)] if joins else [])
    empty.run("DELETE FROM jobs")
    assert dump(empty) == before


@contextmanager
def migration_lock_held(database: Database):
    """Hold the migration lock on another connection; yields a function that releases it."""
    if database.path is not None:
        with closing(
            sqlite3.connect(database.path, isolation_level=None, check_same_thread=False)
        ) as raw:
            raw.execute("BEGIN IMMEDIATE")
            yield raw.rollback
        return
    with psycopg.connect(postgres.dsn(database.url), autocommit=True) as raw:
        raw.execute(f"SELECT pg_advisory_lock({ADVISORY_LOCK})")
        yield lambda: raw.execute(f"SELECT pg_advisory_unlock({ADVISORY_LOCK})")


@pytest.mark.slow
@pytest.mark.parametrize("joins", [False, True], ids=["own transaction", "joined transaction"])
def test_upgrade_connection_waits_for_another_migration(empty, joins):
    """It goes on when the other one has ended."""
    asyncio.run(upgrade(empty.target, "0001"))
    engine = host_engine(empty)

    with engine.connect() as connection, migration_lock_held(empty) as release:
        if joins:
            connection.begin()
        timer = threading.Timer(0.3, release)
        timer.start()
        upgrade_connection(connection)
        assert timer.finished.is_set()
        connection.commit()
    engine.dispose()

    assert asyncio.run(schema_state(empty.target)) == (HEAD, HEAD)


@pytest.mark.parametrize("prepared", [False, True], ids=["plain", "prepared"])
async def test_a_lock_that_is_never_released_raises_busy(empty, prepared, monkeypatch):
    """It waits a limited time, and changes nothing."""
    await upgrade(empty.target, "0001")
    before = dump(empty)
    monkeypatch.setattr(host_connection, "_LOCK_WAIT_MS", 200)
    engine = create_async_engine(empty.target_url)
    if prepared:
        prepare_engine(engine)

    with migration_lock_held(empty), pytest.raises(CatalogBusyError):
        async with engine.connect() as connection:
            await connection.run_sync(upgrade_connection)
    await engine.dispose()

    assert dump(empty) == before


@pytest.mark.slow
@pytest.mark.parametrize("is_released", [False, True], ids=["kept", "released"])
async def test_upgrade_over_a_prepared_engine_waits_for_a_lock_when_it_connects(file, is_released):
    """The PRAGMAs of the first connection need a lock that another program holds."""
    await upgrade(file.path, "0018")
    engine = create_async_engine(file.target_url)
    prepare_engine(engine)

    with closing(
        sqlite3.connect(file.path, isolation_level=None, check_same_thread=False)
    ) as other:
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN EXCLUSIVE")
        if is_released:
            threading.Timer(0.2, other.rollback).start()
            await upgrade(engine, timeout_s=20)
        else:
            start = time.monotonic()
            with pytest.raises(CatalogBusyError):
                await upgrade(engine, timeout_s=0.2)
            assert time.monotonic() - start < 0.2 + 0.5
    await engine.dispose()

    expected = HEAD if is_released else "model_catalog_0018"
    assert (await schema_state(file.path))[0] == expected


def test_a_current_database_is_not_locked(database):
    """At the newest revision it waits for no migration and leaves no transaction open."""
    engine = host_engine(database)

    with migration_lock_held(database), engine.connect() as connection:
        upgrade_connection(connection)
        assert not connection.in_transaction()
    engine.dispose()


def test_a_newer_or_foreign_database_is_refused(empty):
    """Neither is changed, and the connection is not left in a transaction."""
    engine = host_engine(empty)
    empty.run("CREATE TABLE models (id INTEGER)")
    with engine.connect() as connection:
        with pytest.raises(ForeignDatabaseError, match="a table 'models' with the columns id"):
            upgrade_connection(connection)
        assert not connection.in_transaction()
    empty.run("DROP TABLE models")
    asyncio.run(upgrade(empty.target))
    empty.run(f"UPDATE {VERSION_TABLE} SET version_num = '0099'")
    before = dump(empty)

    with engine.connect() as connection:
        with pytest.raises(SchemaTooNewError, match=f"'0099'.*{HEAD}"):
            upgrade_connection(connection)
        with pytest.raises(UpgradeFailedError, match="does not exist"):
            upgrade_connection(connection, "0042")
    engine.dispose()

    assert dump(empty) == before


def test_an_older_goal_is_refused(empty):
    """upgrade_connection never downgrades."""
    asyncio.run(upgrade(empty.target))
    engine = host_engine(empty)

    with engine.connect() as connection, pytest.raises(UpgradeFailedError, match="use downgrade"):
        upgrade_connection(connection, "0001")
    engine.dispose()


async def test_another_object_than_a_connection_is_refused(file):
    """The error says what to give."""
    engine = create_async_engine(file.target_url)

    for wrong in (engine, engine.sync_engine, str(file.path), None):
        with pytest.raises(InvalidTargetError, match=r"run_sync\(upgrade_connection\)"):
            upgrade_connection(wrong)
    async with engine.connect() as connection:
        with pytest.raises(InvalidTargetError, match=r"run_sync\(upgrade_connection\)"):
            upgrade_connection(connection)
    await engine.dispose()


def test_upgrade_connection_adopts_a_database_in_memory():
    """A host's tests may use `sqlite://`."""
    engine = create_engine("sqlite://")

    with engine.connect() as connection:
        upgrade_connection(connection)
        tables = connection.exec_driver_sql("SELECT count(*) FROM models").scalar()
    engine.dispose()

    assert tables == 0

"""Upgrades and downgrades: complete or without effect, and without effect on a host."""

import asyncio
import itertools
import logging
import random
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import hive_files
import postgres
import psycopg
import pytest
from alembic.operations import BatchOperations
from child_programs import migration_was_killed
from conftest import Database, a_model
from schema_shape import digest, dump, shape
from sqlalchemy import Engine, event, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from model_catalog import (
    CatalogBusyError,
    CatalogUnavailableError,
    ForeignDatabaseError,
    SchemaOutOfDateError,
    SchemaTooNewError,
    UpgradeFailedError,
    check_schema,
    downgrade,
    open_catalog,
    prepare_engine,
    schema_state,
    upgrade,
)
from model_catalog.mapping.added_objects import added_tables
from model_catalog.mapping.base import Base
from model_catalog.mapping.revisions import head_revision
from model_catalog.schema import migration_lock
from model_catalog.schema.revision import APPLICATION_ID, VERSION_TABLE

HEAD = head_revision()
FIRST = "model_catalog_0001"

ADVISORY_LOCK = 0x4D436174616C6F67


@pytest.fixture
def file(tmp_path) -> Database:
    """The path of a SQLite file that does not exist yet."""
    path = tmp_path / "catalog.db"
    return Database("sqlite", str(path), path=path)


async def test_schema_state_returns_the_current_and_the_newest_revision(empty):
    """The current revision is None if the database has no catalog yet."""
    await hive_files.create_hive_table(empty)
    first = await schema_state(empty.target)

    await upgrade(empty.target, "0001")
    second = await schema_state(empty.target)
    await upgrade(empty.target)
    third = await schema_state(empty.target)

    assert first == (None if empty.path else FIRST, HEAD)
    assert [second, third] == [(FIRST, HEAD), (HEAD, HEAD)]


@pytest.mark.parametrize("form", ["URL text", "URL object", "AsyncEngine"])
async def test_a_target_can_be_a_url_or_an_engine(empty, form):
    """
    upgrade, schema_state, check_schema and downgrade take a URL as text, a URL object and an engine
    of a host.
    """
    url = empty.target_url
    engine = create_async_engine(url)
    target = {
        "URL text": url.render_as_string(hide_password=False),
        "URL object": url,
        "AsyncEngine": engine,
    }[form]

    await upgrade(target)
    states = [await schema_state(target)]
    problems = await check_schema(target)
    await downgrade(target, "0001")
    states.append(await schema_state(target))
    await engine.dispose()

    assert states == [(HEAD, HEAD), (FIRST, HEAD)]
    assert problems == []


@pytest.mark.parametrize("kind", [str, Path], ids=["text", "Path"])
async def test_a_target_can_be_a_path(file, kind):
    """A path may be text or a Path."""
    await upgrade(kind(file.path))

    assert await schema_state(kind(file.path)) == (HEAD, HEAD)
    assert await check_schema(kind(file.path)) == []


@pytest.mark.parametrize(
    "function",
    [schema_state, check_schema, lambda at: downgrade(at, "0001")],
    ids=["schema_state", "check_schema", "downgrade"],
)
async def test_reading_creates_no_file(file, function):
    """For a missing file the call raises CatalogUnavailableError and creates nothing."""
    with pytest.raises(CatalogUnavailableError, match="the file does not exist"):
        await function(file.path)

    assert list(file.path.parent.iterdir()) == []


async def test_reading_does_not_change_a_hive_file(file):
    """schema_state and check_schema change no byte of a file of the Rust hive."""
    hive_files.write_hive_file(file.path, hive_files.VALID_ROWS)
    before = digest(file)

    state = await schema_state(file.path)
    problems = await check_schema(file.path)

    assert state == (None, HEAD)
    assert len(problems) == 1
    assert digest(file) == before


async def test_opening_a_current_file_connects_once(sqlite_migrated):
    """The connection that reads the revision is the one that later reads the models."""
    connections = []

    @event.listens_for(Engine, "connect")
    def count(connection, _record) -> None:
        connections.append(connection)

    try:
        async with open_catalog(sqlite_migrated) as catalog:
            await catalog.find_model("m", "hf")
    finally:
        event.remove(Engine, "connect", count)

    assert len(connections) == 1


@pytest.mark.slow
@pytest.mark.parametrize("is_new", [False, True], ids=["current", "new"])
def test_opening_a_file_imports_neither_alembic_nor_aiosqlite(sqlite_migrated, tmp_path, is_new):
    """
    Importing Alembic takes longer than opening or creating a catalog. aiosqlite takes three trips
    to its thread for each statement.
    """
    path = tmp_path / "new.db" if is_new else sqlite_migrated
    script = (
        "import asyncio, sys, model_catalog\n"
        "async def run():\n"
        "    async with model_catalog.open_catalog(sys.argv[1]) as catalog:\n"
        "        await catalog.list_models()\n"
        "asyncio.run(run())\n"
        "print({'alembic', 'aiosqlite'} & sys.modules.keys())\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=False
    )

    assert (done.stdout, done.stderr) == ("set()\n", "")


@pytest.mark.slow
async def test_six_databases_are_upgraded_concurrently(tmp_path):
    """Six upgrades of different databases in one event loop do not interfere."""
    files = [Database("sqlite", "", path=tmp_path / f"{number}.db") for number in range(6)]
    for number, file in enumerate(files[:3]):
        hive_files.write_hive_file(file.path, [(f"m{number}", "hf", "/m", number, number)])

    await asyncio.gather(*(upgrade(file.path) for file in files))

    assert [file.run("SELECT reference FROM models") for file in files] == [
        [("m0",)],
        [("m1",)],
        [("m2",)],
        [],
        [],
        [],
    ]
    assert all(shape(file) == shape(files[0]) for file in files)


async def test_concurrent_upgrades_of_one_database_run_once(empty):
    """Of six concurrent upgrades in one event loop, one does the work."""
    await asyncio.gather(*(upgrade(empty.target) for _ in range(6)))

    assert await check_schema(empty.target) == []


async def test_an_upgrade_waits_for_a_lock_that_it_meets_when_it_connects(file):
    """
    The PRAGMAs of a new connection wait for a lock, as the migration itself does.
    """
    hive_files.write_hive_file(file.path, [])
    attempts = []

    with closing(sqlite3.connect(file.path, isolation_level=None)) as other:
        # The revision is read on a synchronous engine before, so the lock is taken in between.
        def lock_or_release(dialect, *_) -> None:
            if dialect.is_async:
                attempts.append(1)
                if len(attempts) == 1:
                    other.execute("BEGIN EXCLUSIVE")
                elif len(attempts) == 2:
                    other.execute("ROLLBACK")

        event.listen(Engine, "do_connect", lock_or_release)
        try:
            await upgrade(file.target)
        finally:
            event.remove(Engine, "do_connect", lock_or_release)

    assert len(attempts) == 2
    assert await schema_state(file.target) == (HEAD, HEAD)


def test_threads_with_their_own_loops_upgrade_concurrently(empty, tmp_path):
    """Three threads upgrade one database, and three others each another one."""
    targets = [empty.target] * 3 + [str(tmp_path / f"{number}.db") for number in range(3)]
    barrier = threading.Barrier(len(targets))
    failed = []

    def run(target: str) -> None:
        barrier.wait(10)
        try:
            asyncio.run(upgrade(target))
        except Exception as error:  # noqa: BLE001 - the test reports any error
            failed.append(error)

    threads = [threading.Thread(target=run, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
    assert {asyncio.run(schema_state(target)) for target in targets} == {(HEAD, HEAD)}


@contextmanager
def migrated_by_another_process_at(engine, moment: str, target: str):
    """At the first such event, another process upgrades the database."""
    done = []

    def migrate(*_) -> None:
        if not done:
            done.append(migration_was_killed(target, "never"))

    event.listen(engine.sync_engine, moment, migrate)
    try:
        yield
    finally:
        event.remove(engine.sync_engine, moment, migrate)
    assert done == [False]


async def test_an_upgrade_never_downgrades(empty):
    """
    An upgrade to an older revision fails if another process has upgraded to the newest meanwhile.
    """
    engine = create_async_engine(empty.target_url)

    with (
        migrated_by_another_process_at(engine, "checkin", empty.target),
        pytest.raises(UpgradeFailedError, match=r"use downgrade\(\) instead"),
    ):
        await upgrade(engine, "0001")
    await engine.dispose()

    assert await schema_state(empty.target) == (HEAD, HEAD)


async def test_schema_state_during_another_migration_raises_no_error(empty):
    """Tables that become ours between two statements are not reported as foreign."""
    engine = create_async_engine(empty.target_url)

    with migrated_by_another_process_at(engine, "after_cursor_execute", empty.target):
        state = await schema_state(engine)
    await engine.dispose()

    assert state == (HEAD, HEAD)


@pytest.mark.parametrize(
    ("revision", "function", "message"),
    [
        ("0042", upgrade, "does not exist"),
        ("heads", upgrade, "does not exist"),
        ("", upgrade, "does not exist"),
        ("0001", upgrade, r"use downgrade\(\) instead"),
        ("+1", downgrade, "does not exist"),
        ("base", upgrade, r"use downgrade\(\) instead"),
    ],
    ids=["unknown", "heads", "empty", "older", "relative", "base"],
)
async def test_an_invalid_revision_is_refused(database, revision, function, message):
    """upgrade and downgrade accept a known revision in their direction, `head` or `base`."""
    before = dump(database)

    with pytest.raises(UpgradeFailedError, match=message):
        await function(database.target, revision)

    assert dump(database) == before


async def test_a_newer_database_is_refused(database):
    """It is not changed, and the error names its revision and ours."""
    database.run(f"UPDATE {VERSION_TABLE} SET version_num = '0099'")
    before = digest(database)

    for attempt in (
        upgrade(database.target),
        downgrade(database.target, "0001"),
        check_schema(database.target),
        open_and_close(database.target),
        open_and_close(database.target, upgrade=False),
    ):
        with pytest.raises(SchemaTooNewError, match=f"'0099'.*{HEAD}") as caught:
            await attempt
        assert (caught.value.current, caught.value.head) == ("0099", HEAD)
    state = await schema_state(database.target)

    assert state == ("0099", HEAD)
    assert digest(database) == before
    database.run(f"UPDATE {VERSION_TABLE} SET version_num = '{HEAD}'")


async def open_and_close(target, **options) -> None:
    async with open_catalog(target, **options):
        pass


@pytest.mark.parametrize("start", hive_files.INITIAL_STATES)
async def test_upgrade_false_refuses_an_older_database(empty, start):
    """
    A database that is not at the newest revision raises SchemaOutOfDateError and is not changed.
    """
    await hive_files.prepare_database(empty, start)
    if empty.path is not None and start == "nothing":
        empty.run("PRAGMA user_version = 0")
    before = dump(empty)

    with pytest.raises(SchemaOutOfDateError, match="model-catalog db upgrade") as caught:
        await open_and_close(empty.target, upgrade=False)

    assert caught.value.head == HEAD
    assert dump(empty) == before


async def test_upgrade_false_opens_a_current_database(database):
    """upgrade=False is for hosts that migrate the database themselves."""
    async with open_catalog(database.target, upgrade=False) as catalog:
        await catalog.register_model(a_model())

    assert database.run("SELECT count(*) FROM models") == [(1,)]


FOREIGN = {
    "other columns": "CREATE TABLE models (id INTEGER PRIMARY KEY, name TEXT)",
    "one more column": (
        "CREATE TABLE models (reference TEXT, provider TEXT, local_path TEXT, size_bytes BIGINT,"
        " downloaded_at BIGINT, sha TEXT, PRIMARY KEY (reference, provider))"
    ),
    "other key": (
        "CREATE TABLE models (reference TEXT, provider TEXT, local_path TEXT PRIMARY KEY,"
        " size_bytes BIGINT, downloaded_at BIGINT)"
    ),
    "view": (
        "CREATE VIEW models AS SELECT 'm' AS reference, 'hf' AS provider, '/m' AS local_path,"
        " 1 AS size_bytes, 1 AS downloaded_at"
    ),
}


@pytest.mark.parametrize("as_engine", [False, True], ids=["ours", "host engine"])
@pytest.mark.parametrize("ddl", FOREIGN.values(), ids=FOREIGN)
async def test_a_foreign_table_is_refused_and_not_changed(empty, ddl, as_engine):
    """A table `models` that is not the hive's belongs to another program."""
    empty.run(ddl)
    before = digest(empty)
    engine = create_async_engine(empty.target_url)
    target = engine if as_engine else empty.target

    for attempt in (upgrade(target), schema_state(target), open_and_close(target, upgrade=False)):
        with pytest.raises(ForeignDatabaseError, match="a table 'models' with the columns"):
            await attempt
    await engine.dispose()

    assert digest(empty) == before
    empty.run("DROP VIEW models" if "VIEW" in ddl else "DROP TABLE models")


async def test_a_foreign_file_is_refused_and_not_changed(file):
    """No byte of a SQLite file with tables of another program changes."""
    file.run("CREATE TABLE urls (id INTEGER PRIMARY KEY, url TEXT)")
    before = digest(file)

    for attempt in (upgrade(file.path), schema_state(file.path), open_and_close(file.path)):
        with pytest.raises(ForeignDatabaseError, match="the tables 'urls' and no catalog"):
            await attempt

    assert digest(file) == before


async def test_a_foreign_application_id_is_refused(file):
    """A file with the application_id of another program is refused even if it has no table."""
    file.run("PRAGMA application_id = 1196444487")
    before = digest(file)

    with pytest.raises(ForeignDatabaseError, match="application id 1196444487"):
        await upgrade(file.path)

    assert digest(file) == before


async def test_a_host_engine_may_have_tables_and_an_application_id(file):
    """The catalog is created beside the host's tables, and the application id is kept."""
    file.run("PRAGMA application_id = 1196444487")
    file.run("CREATE TABLE urls (id INTEGER PRIMARY KEY, url TEXT)")
    engine = create_async_engine(file.target_url)

    await upgrade(engine)
    async with open_catalog(engine) as catalog:
        await catalog.register_model(a_model())
    await engine.dispose()

    assert file.run("PRAGMA application_id") == [(1196444487,)]
    assert file.tables == {"urls", VERSION_TABLE, *Base.metadata.tables} | added_tables("sqlite")
    async with open_catalog(file.path) as catalog:
        assert len(await catalog.list_models()) == 1


async def test_our_own_file_gets_our_application_id(file):
    """The application_id of a SQLite file of our own is `MCat`."""
    hive_files.write_hive_file(file.path, hive_files.VALID_ROWS)

    await upgrade(file.path)

    assert file.run("PRAGMA application_id") == [(0x4D436174,)] == [(APPLICATION_ID,)]


def create_host_tables(database: Database) -> list[str]:
    """Create tables of a host with its own migrations, and return the statements that read them."""
    database.run("CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)")
    database.run("INSERT INTO alembic_version VALUES ('c0ffee')")
    database.run("CREATE TABLE hosts (id INTEGER PRIMARY KEY, name TEXT UNIQUE)")
    database.run("CREATE TABLE deployments (host INTEGER REFERENCES hosts ON DELETE CASCADE)")
    database.run("INSERT INTO hosts VALUES (1, 'a'), (2, 'b')")
    database.run("INSERT INTO deployments VALUES (1), (2)")
    return [f"SELECT * FROM {name}" for name in ("alembic_version", "hosts", "deployments")]


@pytest.mark.slow
@pytest.mark.parametrize("target_kind", ["host engine", "URL"])
async def test_the_migrations_of_a_host_are_not_affected(empty, target_kind):
    """
    A host keeps its tables and its alembic_version in the same database; ours is another table.
    """
    queries = create_host_tables(empty)
    before = [empty.run(query) for query in queries]
    tables = {key: value for key, value in shape(empty).items() if isinstance(value, str)}
    engine = create_async_engine(empty.target_url)
    target = empty.target if target_kind == "URL" else engine
    shared = target_kind == "URL"

    await upgrade(target, shared=shared)
    await downgrade(target, "0001")
    await upgrade(target)
    problems = await check_schema(target)
    await engine.dispose()

    assert [empty.run(query) for query in queries] == before
    assert empty.run(f"SELECT * FROM {VERSION_TABLE}") == [(HEAD,)]
    assert problems == []
    assert tables.items() <= shape(empty).items()


async def test_broken_references_of_a_host_do_not_stop_an_upgrade(file):
    """Rows of a host that referred to missing rows before are ignored."""
    create_host_tables(file)
    file.run("INSERT INTO deployments VALUES (99)")
    engine = create_async_engine(file.target_url)

    await upgrade(engine)
    await engine.dispose()

    assert await schema_state(file.path) == (HEAD, HEAD)
    assert file.run("SELECT * FROM deployments") == [(1,), (2,), (99,)]


async def test_a_migration_that_breaks_a_reference_is_rolled_back(file):
    """It fails if rows would refer to missing rows of the catalog that were there before."""
    file.run("CREATE TABLE models (id INTEGER PRIMARY KEY)")
    file.run("INSERT INTO models VALUES (1), (2)")
    file.run("CREATE TABLE deployments (model_id INTEGER REFERENCES models (id))")
    file.run("INSERT INTO deployments VALUES (1), (2), (99)")
    before = dump(file)
    engine = create_async_engine(file.target_url)

    with pytest.raises(UpgradeFailedError, match="1 rows of deployments would refer to rows"):
        async with migration_lock.migration_transaction(engine, "host.db") as connection:
            await connection.execute(text("DELETE FROM models WHERE id = 2"))
    await engine.dispose()

    assert dump(file) == before


async def test_rebuilding_a_table_keeps_the_rows_that_refer_to_it(file):
    """With foreign keys on, dropping the old table would delete them, so they are switched off."""
    hive_files.write_hive_file(file.path, [("m", "hf", "/m", 1, 2)])
    file.run(
        "CREATE TABLE pins (reference TEXT, provider TEXT, FOREIGN KEY (reference, provider)"
        " REFERENCES models (reference, provider) ON DELETE CASCADE)"
    )
    file.run("INSERT INTO pins VALUES ('m', 'hf')")
    engine = create_async_engine(file.target_url)
    prepare_engine(engine)

    await upgrade(engine, "0001")
    await engine.dispose()

    assert file.run("SELECT * FROM pins") == [("m", "hf")]
    assert file.run("PRAGMA foreign_key_check") == []


async def test_a_referenced_primary_key_is_not_dropped(file):
    """A downgrade fails if a host's table refers to the id of models."""
    await upgrade(file.path)
    file.run("CREATE TABLE pins (model INTEGER REFERENCES models (id))")
    before = dump(file)

    with pytest.raises(UpgradeFailedError, match="foreign key mismatch"):
        await downgrade(file.path, "0001")

    assert dump(file) == before


def foreign_keys_on(connection, _record) -> None:
    connection.execute("PRAGMA foreign_keys = ON")


HOST_SETTINGS = {
    "plain engine": lambda _: None,
    "prepared engine": prepare_engine,
    "its own foreign keys": lambda engine: event.listen(
        engine.sync_engine, "connect", foreign_keys_on
    ),
}


@pytest.mark.parametrize("outcome", ["upgraded", "failed", "cancelled"])
@pytest.mark.parametrize("configure", HOST_SETTINGS.values(), ids=HOST_SETTINGS)
async def test_a_host_connection_is_restored_after_an_upgrade(
    file, configure, outcome, monkeypatch
):
    """
    After success, failure or cancellation the engine works and its connection has its settings.
    """
    await upgrade(file.path, "0001")
    engine = create_async_engine(file.target_url, pool_size=1, max_overflow=0)
    configure(engine)
    before = await settings(engine), dump(file)
    if outcome == "failed":
        monkeypatch.setattr(BatchOperations, "create_check_constraint", refuse)

    task = asyncio.create_task(upgrade(engine))
    if outcome == "cancelled":
        with call_at_statement("DROP TABLE models", task.cancel):
            await asyncio.wait([task])
    await asyncio.wait([task])

    assert task.cancelled() is (outcome == "cancelled")
    assert outcome != "upgraded" or task.exception() is None
    assert outcome != "failed" or isinstance(task.exception(), RuntimeError)
    after = await settings(engine), dump(file)
    await engine.dispose()
    assert after[0] == before[0]
    assert (after[1] == before[1]) is (outcome != "upgraded")


@pytest.mark.slow
@pytest.mark.parametrize("level", ["AUTOCOMMIT", "SERIALIZABLE"])
async def test_the_isolation_level_of_a_host_has_no_effect(empty, level, monkeypatch):
    """
    With AUTOCOMMIT or SERIALIZABLE a migration is still one transaction that sees earlier
    migrations. The level is restored afterwards.
    """
    await upgrade(empty.target, "0001")
    engine = create_async_engine(empty.target_url, isolation_level=level, pool_size=1)
    async with engine.connect() as connection:
        default = await connection.get_isolation_level()
    before = dump(empty)

    with monkeypatch.context() as broken:
        broken.setattr(BatchOperations, "create_check_constraint", refuse)
        with pytest.raises(RuntimeError, match="refused"):
            await upgrade(engine)
    after = dump(empty)
    async with migration_lock.migration_transaction(engine, "host") as connection:
        within = await connection.get_isolation_level()
    await upgrade(engine)
    async with engine.connect() as connection:
        again = await connection.get_isolation_level()
    await engine.dispose()

    assert after == before
    assert within == ("READ COMMITTED" if empty.url else default)
    assert again == default
    assert await check_schema(empty.target) == []


async def settings(engine) -> tuple:
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        foreign_keys = (await connection.execute(text("PRAGMA foreign_keys"))).scalar()
        return engine.pool, driver, driver.isolation_level, foreign_keys


def refuse(*_, **__) -> None:
    raise RuntimeError("refused")


@contextmanager
def call_at_statement(where, call):
    """Call a function before the statement with a number, or before one with a prefix."""
    count = 0

    def check(_connection, _cursor, statement, *_) -> None:
        nonlocal count
        count += 1
        if where == count or (isinstance(where, str) and statement.lstrip().startswith(where)):
            call()

    event.listen(Engine, "before_cursor_execute", check)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", check)


def cancel_from_any_thread(task: asyncio.Task) -> None:
    """Cancel a task in its loop. In another thread, return when the task has noticed it."""
    loop = task.get_loop()

    async def cancel() -> None:
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)

    if asyncio._get_running_loop() is loop:
        task.cancel()
    else:
        asyncio.run_coroutine_threadsafe(cancel(), loop).result(10)


async def test_an_upgrade_does_not_configure_logging(empty):
    """An upgrade sets no level, adds no handler and disables no logger."""
    watched = [logging.getLogger(name) for name in (None, "alembic", "sqlalchemy", "host")]
    state = [(found.level, found.disabled, list(found.handlers)) for found in watched]

    await upgrade(empty.target)

    assert [(found.level, found.disabled, list(found.handlers)) for found in watched] == state


@pytest.mark.parametrize("start", hive_files.INITIAL_STATES)
@pytest.mark.parametrize(
    "where", ["CREATE INDEX", f"INSERT INTO {VERSION_TABLE}"], ids=["first index", "last statement"]
)
async def test_a_failed_upgrade_changes_nothing(empty, start, where):
    """If a statement fails, those before it are rolled back, and the next upgrade works."""
    await hive_files.prepare_database(empty, start)
    if empty.path is not None and start == "nothing":
        empty.path.touch()
    before = dump(empty)

    with call_at_statement(where, refuse), pytest.raises(RuntimeError, match="refused"):
        await upgrade(empty.target)
    after = dump(empty)
    await upgrade(empty.target)

    assert after == before
    assert await check_schema(empty.target) == []
    assert empty.run("SELECT count(*) FROM models") == [
        (0 if start == "nothing" else len(hive_files.PORTABLE_ROWS),)
    ]


# On SQLite other programs' objects are in test_host_objects.py.
@pytest.mark.parametrize("backend", ["asyncpg", "psycopg"], indirect=True)
async def test_a_refused_statement_raises_upgrade_failed_error(empty):
    """A view that depends on the table prevents its change, and the error gives the reason."""
    await hive_files.create_hive_table(empty)
    empty.run(
        "CREATE VIEW paths AS SELECT reference, provider, local_path FROM models"
        " GROUP BY reference, provider"
    )
    before = dump(empty)

    with pytest.raises(UpgradeFailedError, match=r"left unchanged: .*(paths|pk_models)") as caught:
        await upgrade(empty.target)
    after = dump(empty)
    empty.run("DROP VIEW paths")
    await upgrade(empty.target)

    assert caught.value.revision == HEAD
    assert after == before
    assert await check_schema(empty.target) == []


@pytest.mark.slow
@pytest.mark.parametrize("start", hive_files.INITIAL_STATES)
@pytest.mark.parametrize(
    "first", [1, pytest.param(5, marks=pytest.mark.slow)], ids=["some statements", "others"]
)
async def test_a_cancelled_upgrade_changes_nothing(empty, start, first):
    """Cancelled at every ninth statement, it has no effect or is complete. The next one works."""
    await hive_files.prepare_database(empty, start)
    if empty.path is not None and start == "nothing":
        empty.path.touch()
    before = dump(empty)

    for number in itertools.count(first, 9):
        task = asyncio.create_task(upgrade(empty.target))
        with call_at_statement(number, partial(cancel_from_any_thread, task)):
            await asyncio.wait([task])
        if not task.cancelled():
            break
        if dump(empty) != before:
            assert await check_schema(empty.target) == []
            break
        empty.assert_nothing_left()
    await upgrade(empty.target)

    assert number > 10
    assert await check_schema(empty.target) == []
    assert empty.run("SELECT count(*) FROM models") == [
        (0 if start == "nothing" else len(hive_files.PORTABLE_ROWS),)
    ]


@contextmanager
def migration_lock_held(database: Database):
    """Hold the migration lock on another connection."""
    if database.path is not None:
        with closing(sqlite3.connect(database.path, isolation_level=None)) as raw:
            raw.execute("BEGIN IMMEDIATE")
            yield
        return
    with psycopg.connect(postgres.dsn(database.url), autocommit=True) as raw:
        raw.execute(f"SELECT pg_advisory_lock({ADVISORY_LOCK})")
        yield


@pytest.mark.slow
@pytest.mark.parametrize("waits", [False, True], ids=["alone", "while another holds the lock"])
@pytest.mark.parametrize("start", hive_files.INITIAL_STATES)
async def test_a_cancellation_at_any_loop_iteration_is_clean(empty, start, waits):
    """
    Also while it waits for a lock, a cancelled upgrade leaves no partial change and no connection.
    """
    await hive_files.prepare_database(empty, start)
    if empty.path is not None and start == "nothing":
        empty.path.touch()
    before = dump(empty)
    rng = random.Random(f"{empty.backend} {start}")

    for _ in range(6):
        with migration_lock_held(empty) if waits else nullcontext():
            task = asyncio.create_task(upgrade(empty.target))
            for _ in range(int(2 ** rng.uniform(0, 12))):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task], timeout=10)
            assert task.cancelled() or (not waits and task.exception() is None)
        if not waits and dump(empty) != before:
            break
        assert dump(empty) == before
        empty.assert_nothing_left()
    await upgrade(empty.target)

    assert await check_schema(empty.target) == []
    assert empty.run("SELECT count(*) FROM models") == [
        (0 if start == "nothing" else len(hive_files.PORTABLE_ROWS),)
    ]


async def test_waiting_for_the_lock_can_be_cancelled(empty):
    """An upgrade that waits for another migration is cancelled at once, without effect."""
    await upgrade(empty.target, "0001")
    before = dump(empty)
    attempts = []

    def count_attempt() -> None:
        attempts.append(1)
        if len(attempts) == 3:
            task.cancel()

    with migration_lock_held(empty):
        task = asyncio.create_task(upgrade(empty.target))
        with call_at_statement(
            "BEGIN IMM" if empty.path else "SELECT pg_try_advisory", count_attempt
        ):
            await asyncio.wait([task], timeout=10)
        assert task.cancelled()

    assert len(attempts) == 3
    assert dump(empty) == before


async def test_a_lock_that_is_never_released_raises_busy(empty):
    """An upgrade does not wait forever for another migration, and changes nothing."""
    await upgrade(empty.target, "0001")
    before = dump(empty)

    busy = pytest.raises(CatalogBusyError, match=r"waited 0\.[2-9] s")
    with migration_lock_held(empty), busy:
        async with open_catalog(empty.target, timeout_s=0.2):
            pass

    assert dump(empty) == before


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncpg", "psycopg"])
async def test_a_reader_that_never_ends_raises_busy(empty):
    """
    An upgrade waits a limited time for a reader, and changes nothing.
    """
    await upgrade(empty.target, "0001")
    before = dump(empty)

    with psycopg.connect(postgres.dsn(empty.url)) as reader:
        reader.execute("SELECT count(*) FROM models")
        start = time.monotonic()
        with pytest.raises(CatalogBusyError, match=r"is busy: .*waited [1-9]"):
            async with asyncio.timeout(20), open_catalog(empty.target, timeout_s=1):
                pass
        assert time.monotonic() - start < 10

    assert dump(empty) == before
    await upgrade(empty.target)


@pytest.mark.slow
async def test_an_upgrade_waits_for_another_migration(empty):
    """It continues when the lock is released."""
    await upgrade(empty.target, "0001")

    with migration_lock_held(empty):
        task = asyncio.create_task(upgrade(empty.target))
        done, _ = await asyncio.wait([task], timeout=0.2)
        assert not done
    await task

    assert await schema_state(empty.target) == (HEAD, HEAD)


async def test_opening_a_current_database_takes_no_lock(database):
    """It waits for no migration and no writer."""
    with migration_lock_held(database):
        async with asyncio.timeout(10):
            await upgrade(database.target)
            async with open_catalog(database.target) as catalog:
                assert await catalog.list_models() == []


def test_the_log_of_an_upgrade_has_no_password(empty, caplog):
    """The log names the database without its password."""
    if empty.url is None:
        pytest.skip("a file has no password")
    secret = make_url(empty.target).set(password="s3cret")

    with caplog.at_level(logging.INFO):
        asyncio.run(upgrade(secret))

    messages = [
        record.getMessage() for record in caplog.records if record.name.startswith("model_")
    ]
    assert len(messages) == 1
    assert "s3cret" not in caplog.text

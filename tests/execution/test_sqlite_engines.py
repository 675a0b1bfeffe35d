"""A host's SQLite engines that begin transactions in another way than SQLAlchemy's default."""

import sqlite3
from contextlib import closing

import host_engines
import pytest
import sqlalchemy as sa
from conftest import a_model
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from model_catalog import (
    CatalogBusyError,
    InvalidTargetError,
    ModelCatalog,
    open_catalog,
    upgrade,
    upgrade_connection,
)

ENGINES = [
    pytest.param(make, id=name, marks=host_engines.marks(name))
    for name, make in host_engines.WITH_OWN_TRANSACTIONS.items()
]


def url(path):
    return f"sqlite+aiosqlite:///{path}"


@pytest.fixture(params=ENGINES)
async def engine(request, tmp_path):
    engine = request.param(url(tmp_path / "host.db"))
    yield engine
    await engine.dispose()


async def test_catalog_works_over_the_engine(engine, tmp_path):
    """
    upgrade, single calls, bulk calls and transactions work, and commit what they have written.
    """
    await upgrade(engine)
    catalog = ModelCatalog(async_sessionmaker(engine))

    await catalog.register_model(a_model("m"))
    await catalog.register_models([a_model("n"), a_model("o")])
    async with catalog.transaction() as inner:
        await inner.remove_model("n", "hf")
    with pytest.raises(ZeroDivisionError):
        async with catalog.transaction() as inner:
            await inner.remove_model("m", "hf")
            raise ZeroDivisionError
    async with open_catalog(engine) as opened:
        assert await opened.count_models() == 2

    with closing(sqlite3.connect(tmp_path / "host.db", timeout=0)) as raw:
        assert raw.execute("SELECT reference FROM models ORDER BY 1").fetchall() == [("m",), ("o",)]
        raw.execute("BEGIN EXCLUSIVE")


async def test_transaction_has_the_write_lock_from_its_beginning(engine, tmp_path):
    """
    transaction() takes the lock before it reads, so that no other program writes in between.
    """
    await upgrade(engine)
    catalog = ModelCatalog(async_sessionmaker(engine))

    async with catalog.transaction():
        with (
            closing(sqlite3.connect(tmp_path / "host.db", timeout=0)) as raw,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            raw.execute("BEGIN IMMEDIATE")


async def test_sessions_of_the_host_behave_as_before(engine, tmp_path):
    """
    The host's transactions, DDL in them, rollbacks and savepoints work beside the catalog's calls.
    """
    await upgrade(engine)
    catalog = ModelCatalog(async_sessionmaker(engine))

    async with AsyncSession(engine) as session:
        await session.execute(text("CREATE TABLE undone (name TEXT)"))
        await session.rollback()
        await session.execute(text("CREATE TABLE deployments (name TEXT UNIQUE)"))
        await session.commit()
        await session.execute(text("INSERT INTO deployments VALUES ('a')"))
        with pytest.raises(IntegrityError):
            async with session.begin_nested():
                await session.execute(text("INSERT INTO deployments VALUES ('a')"))
        async with session.begin_nested():
            await session.execute(text("INSERT INTO deployments VALUES ('b')"))
        async with session.begin_nested() as undone:
            await session.execute(text("INSERT INTO deployments VALUES ('c')"))
            await undone.rollback()
        await ModelCatalog(session).register_model(a_model("m"))
        await session.commit()
        await session.execute(text("INSERT INTO deployments VALUES ('d')"))
    await catalog.register_model(a_model("n"))

    with closing(sqlite3.connect(tmp_path / "host.db")) as raw:
        assert raw.execute("SELECT name FROM deployments").fetchall() == [("a",), ("b",)]
        assert raw.execute("SELECT count(*) FROM models").fetchone() == (2,)
        tables = raw.execute("SELECT name FROM sqlite_master WHERE name = 'undone'").fetchall()
        assert tables == []


@pytest.mark.parametrize(
    "make",
    [
        host_engines.own_begin_prepared,
        pytest.param(host_engines.autocommit_off_prepared, marks=host_engines.NEEDS_AUTOCOMMIT),
    ],
    ids=["own BEGIN", "autocommit off"],
)
async def test_prepare_engine_sets_its_pragmas(make, tmp_path):
    """
    Foreign keys and the write-ahead log are on, although the host begins transactions itself.
    """
    engine = make(url(tmp_path / "host.db"))
    async with engine.connect() as connection:
        assert await connection.scalar(text("PRAGMA foreign_keys")) == 1
        assert await connection.scalar(text("PRAGMA journal_mode")) == "wal"
    await engine.dispose()


@pytest.mark.parametrize("enforced", [True, False], ids=["enforced", "not enforced"])
async def test_upgrade_deletes_no_row_of_a_table_that_refers_to_models(engine, tmp_path, enforced):
    """
    A migration that rebuilds a table runs without enforcement, which is restored afterwards.
    """

    @event.listens_for(engine.sync_engine, "connect")
    def enforce(connection, _record):
        cursor = connection.cursor()
        if host_engines.HAS_AUTOCOMMIT and (
            has_begun := connection.driver_connection.in_transaction
        ):
            cursor.execute("ROLLBACK")
        cursor.execute(f"PRAGMA foreign_keys = {int(enforced)}")
        if host_engines.HAS_AUTOCOMMIT and has_begun:
            cursor.execute("BEGIN")
        cursor.close()

    # The next revision rebuilds `models`.
    await upgrade(engine, "model_catalog_0002")
    with closing(sqlite3.connect(tmp_path / "host.db")) as raw, raw:
        raw.execute("INSERT INTO models (provider, reference, local_path) VALUES ('hf', 'm', '/m')")
        raw.execute("CREATE TABLE uses (model INTEGER REFERENCES models (id) ON DELETE CASCADE)")
        raw.execute("INSERT INTO uses SELECT id FROM models")

    await upgrade(engine)

    async with engine.connect() as connection:
        assert await connection.scalar(text("PRAGMA foreign_keys")) == enforced
        assert await connection.scalar(text("SELECT count(*) FROM uses")) == 1


@host_engines.NEEDS_AUTOCOMMIT
def test_upgrade_connection_works_with_autocommit_off(tmp_path):
    """
    The synchronous upgrade leaves the transaction that sqlite3 has begun, and restores it.
    """
    engine = sa.create_engine(
        f"sqlite:///{tmp_path / 'host.db'}", connect_args={"autocommit": False}
    )
    with engine.connect() as connection:
        raw = connection.connection.driver_connection
        raw.execute("ROLLBACK")
        raw.execute("PRAGMA foreign_keys = ON")
        raw.execute("BEGIN")
        upgrade_connection(connection)
        assert raw.execute("PRAGMA foreign_keys").fetchone() == (1,)
        assert raw.in_transaction
        connection.exec_driver_sql("SELECT * FROM models")
    engine.dispose()


async def test_engine_works_after_an_interrupted_write(engine, tmp_path, caplog):
    """
    SQLite ends the transaction of an interrupted write. The connection is used again afterwards.
    """
    await upgrade(engine)
    with closing(sqlite3.connect(tmp_path / "host.db")) as raw, raw:
        raw.execute(
            "CREATE TRIGGER slow BEFORE INSERT ON models WHEN NEW.reference = 'slow' BEGIN"
            " SELECT count(*) FROM (WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL"
            " SELECT n + 1 FROM numbers LIMIT 1000000000) SELECT n FROM numbers); END"
        )
    catalog = ModelCatalog(async_sessionmaker(engine))
    impatient = ModelCatalog(async_sessionmaker(engine), timeout_s=0.3)

    with pytest.raises(CatalogBusyError):
        await impatient.register_model(a_model("slow"))
    with pytest.raises(CatalogBusyError):
        async with impatient.transaction() as inner:
            await inner.register_model(a_model("m"))
            await inner.register_model(a_model("slow"))
    await catalog.register_model(a_model("n"))

    assert [model.reference for model in await catalog.list_models()] == ["n"]
    assert caplog.records == []


@host_engines.NEEDS_AUTOCOMMIT
async def test_engine_whose_commit_does_nothing_is_refused(sqlite_file):
    """
    With `autocommit=True` nothing that the catalog has begun would be committed.
    """
    options = {"connect_args": {"autocommit": True}}
    engine = create_async_engine(url(sqlite_file), **options)
    catalog = ModelCatalog(async_sessionmaker(engine))
    for call in (
        lambda: upgrade(engine, "base"),
        lambda: catalog.register_model(a_model("m")),
        catalog.count_models,
    ):
        with pytest.raises(InvalidTargetError, match="autocommit=True"):
            await call()
    await engine.dispose()

    sync_engine = sa.create_engine(f"sqlite:///{sqlite_file.with_name('new.db')}", **options)
    with (
        sync_engine.connect() as connection,
        pytest.raises(InvalidTargetError, match="autocommit=True"),
    ):
        upgrade_connection(connection)
    sync_engine.dispose()

"""
Random calls in a host's transactions, with faults between them, against a model in memory.

MODEL_CATALOG_RANDOM_STEPS sets the number of steps, and MODEL_CATALOG_RANDOM_SEED the first seed. A
failure names the seed of its episode.
"""

import asyncio
import os
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field

import host_engines
import postgres
import psycopg
import pytest
from conftest import Database, a_model
from sqlalchemy import Delete, Insert, Update, text, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session

from model_catalog import CatalogError, Model, ModelCatalog

STEPS = int(os.environ.get("MODEL_CATALOG_RANDOM_STEPS", "150"))
SEED = int(os.environ.get("MODEL_CATALOG_RANDOM_SEED", "1"))
EPISODE_STEPS = 50

SLOW = {
    "sqlite": "CREATE TRIGGER slow BEFORE INSERT ON models WHEN NEW.reference = 'slow' BEGIN"
    " SELECT count(*) FROM (WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1"
    " FROM numbers LIMIT 1000000000) SELECT n FROM numbers); END",
    "postgresql": "CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN PERFORM pg_sleep(20); RETURN NEW; END $$;"
    " CREATE TRIGGER slow BEFORE INSERT ON models FOR EACH ROW"
    " WHEN (NEW.reference = 'slow') EXECUTE FUNCTION sleep()",
}


@dataclass
class State:
    """The rows of the host and of the catalog: names, and sizes by reference."""

    names: set[str] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)

    def copy(self) -> "State":
        return State(set(self.names), dict(self.sizes))


class Host:
    """A host's session or connection with a transaction, and the catalogs over it."""

    def __init__(self, patient: ModelCatalog, impatient: ModelCatalog) -> None:
        self.patient = patient
        self.impatient = impatient
        self.commits_each_call = False

    async def connection(self) -> AsyncConnection:
        """Return the connection of the open transaction."""
        raise NotImplementedError

    async def begin(self) -> None:
        """Begin a transaction, unless the host has one open."""


class SessionHost(Host):
    def __init__(self, session: AsyncSession) -> None:
        super().__init__(ModelCatalog(session), ModelCatalog(session, timeout_s=0.1))
        self.begin_nested = session.begin_nested
        self.commit, self.rollback = session.commit, session.rollback
        self._session = session

    async def connection(self) -> AsyncConnection:
        # A router sends this, and so what the host reads, to the leader.
        return await self._session.connection({"mapper": Model.__mapper__, "clause": update(Model)})


class ConnectionHost(Host):
    def __init__(self, connection: AsyncConnection, mode: str) -> None:
        sessions = async_sessionmaker(connection, join_transaction_mode=mode)
        super().__init__(ModelCatalog(sessions), ModelCatalog(sessions, timeout_s=0.1))
        self.begin_nested = connection.begin_nested
        self.commit, self.rollback = connection.commit, connection.rollback
        self._connection = connection

    async def begin(self) -> None:
        # Without it, each call would be committed, as over an engine.
        if self._connection.get_transaction() is None:
            await self._connection.begin()

    async def connection(self) -> AsyncConnection:
        return self._connection


class FactoryHost(Host):
    """Each call is a transaction of its own; the host has none."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        super().__init__(ModelCatalog(sessions), ModelCatalog(sessions, timeout_s=0.1))
        self.commits_each_call = True


def routing(leader: AsyncEngine, follower: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    class RoutingSession(Session):
        def get_bind(self, mapper=None, clause=None):
            is_write = self._flushing or isinstance(clause, Insert | Update | Delete)
            return (leader if is_write else follower).sync_engine

    return async_sessionmaker(sync_session_class=RoutingSession)


@asynccontextmanager
async def open_host(database: Database, dice: random.Random) -> AsyncIterator[Host]:
    """Open a session or a connection of a host, of a random kind, on an engine of a random kind."""
    kinds = ["plain"]
    if database.path is not None:
        kinds = [name for name in host_engines.ENGINES if "auto" not in name or AUTOCOMMIT]
    make = host_engines.ENGINES[dice.choice(kinds)]
    async with AsyncExitStack() as stack:
        engines = [make(database.target_url), create_async_engine(database.target_url)]
        for engine in engines:
            stack.push_async_callback(engine.dispose)
        kind = dice.choice(["session", "connection", "routing session", "factory", "router"])
        if kind == "connection":
            connection = await stack.enter_async_context(engines[0].connect())
            modes = ["create_savepoint", "rollback_only", "conditional_savepoint"]
            yield ConnectionHost(connection, dice.choice(modes))
            return
        sessions = async_sessionmaker(engines[0])
        if kind in ("routing session", "router"):
            sessions = routing(*engines)
        if kind in ("factory", "router"):
            yield FactoryHost(sessions)
        else:
            yield SessionHost(await stack.enter_async_context(sessions()))


AUTOCOMMIT = host_engines.HAS_AUTOCOMMIT


class Episode:
    """
    Random steps on one host.

    After an error, the failed step has changed nothing, or the transaction is dead: then everything
    is refused until the host rolls back. What the database has after a commit or a rollback is
    always what the model has.
    """

    def __init__(self, host: Host, database: Database, committed: State, seed: int) -> None:
        self.host = host
        self.database = database
        self.committed = committed
        self.working = committed.copy()
        # The states before each open savepoint, and its object.
        self.savepoints: list[tuple[State, object]] = []
        self.dice = random.Random(seed)
        self.log: list[str] = []
        self.error_count = 0

    async def run(self, steps: int) -> State:
        for _ in range(steps):
            step = self.dice.choices(*zip(*self.steps(), strict=True))[0]
            self.log.append(step.__name__)
            await self.host.begin()
            await step()
        await self.roll_back()
        return self.committed

    def steps(self) -> list[tuple[Callable[[], Awaitable[None]], int]]:
        calls = [
            (self.register, 8), (self.register_many, 2), (self.change, 3), (self.remove, 4),
            (self.look, 4), (self.use_block, 4), (self.be_slow, 1), (self.be_cancelled, 3),
        ]  # fmt: skip
        if not self.host.commits_each_call:
            calls += [
                (self.insert, 6), (self.delete, 2), (self.insert_again, 1), (self.look_as_host, 3),
                (self.begin_savepoint, 2), (self.end_savepoint, 3), (self.commit, 4),
                (self.roll_back, 2),
            ]  # fmt: skip
        faults = [(self.be_locked_out, 1)]
        if self.database.path is None:
            faults += [(self.lose_connection, 1)]
        elif not self.host.commits_each_call:
            faults += [(self.fill_disk, 1)]
        return calls + faults

    # What every step ends with

    async def attempt(
        self, call: Callable[[], Awaitable[object]], expected: State, kinds: type = CatalogError
    ) -> object:
        """Make a call that changes the state as expected; an error must change nothing."""
        try:
            result = await call()
        except kinds as error:
            self.log.append(f"  {type(error).__name__}: {error}"[:120])
            await self.after_error()
            return None
        self.working = expected
        if self.host.commits_each_call:
            self.committed = expected.copy()
        return result

    async def after_error(self) -> None:
        self.error_count += 1
        if self.host.commits_each_call:
            await self.check_database()
        elif self.dice.random() < 0.5:
            await self.look_as_host()

    async def die(self) -> None:
        """The transaction refuses everything, so the host rolls it back."""
        self.log.append("  the transaction is dead")
        await self.roll_back()

    async def roll_back(self) -> None:
        if self.host.commits_each_call:
            return
        try:
            await self.host.rollback()
        except SQLAlchemyError as error:
            # The connection was lost.
            self.log.append(f"  {type(error).__name__}")
            await self.host.rollback()
        self.savepoints.clear()
        self.working = self.committed.copy()
        await self.check_database()

    async def check_database(self) -> None:
        names = {name for (name,) in self.database.run("SELECT name FROM deployments")}
        sizes = dict(self.database.run("SELECT reference, size_bytes FROM models"))
        assert State(names, sizes) == self.committed

    # Calls of the catalog

    def some_name(self) -> str:
        return f"m{self.dice.randrange(12)}"

    async def register(self) -> None:
        name, size = self.some_name(), self.dice.randrange(1000)
        expected = self.working.copy()
        expected.sizes[name] = size
        await self.attempt(
            lambda: self.host.patient.register_model(a_model(name, size_bytes=size)), expected
        )

    async def register_many(self) -> None:
        expected = self.working.copy()
        sizes = {self.some_name(): self.dice.randrange(1000) for _ in range(5)}
        expected.sizes |= sizes
        models = [a_model(name, size_bytes=size) for name, size in sizes.items()]
        await self.attempt(lambda: self.host.patient.register_models(models), expected)

    async def change(self) -> None:
        name, size = self.some_name(), self.dice.randrange(1000)
        expected = self.working.copy()
        if name in expected.sizes:
            expected.sizes[name] = size
        await self.attempt(
            lambda: self.host.patient.update_model(name, "hf", size_bytes=size), expected
        )

    async def remove(self) -> None:
        name = self.some_name()
        expected = self.working.copy()
        expected.sizes.pop(name, None)
        await self.attempt(lambda: self.host.patient.remove_model(name, "hf"), expected)

    async def look(self) -> None:
        models = await self.attempt(self.host.patient.list_models, self.working)
        if models is not None:
            assert {model.reference: model.size_bytes for model in models} == self.working.sizes

    async def use_block(self) -> None:
        """Two calls in transaction(), which is left by an error half of the time."""
        name, size = self.some_name(), self.dice.randrange(1000)
        fails = self.dice.random() < 0.5
        expected = self.working.copy()
        if not fails:
            expected.sizes[name] = size
            expected.sizes.pop("m0", None)

        async def block() -> None:
            async with self.host.patient.transaction() as inner:
                await inner.register_model(a_model(name, size_bytes=size))
                await inner.remove_model("m0", "hf")
                assert await inner.find_model("m0", "hf") is None
                if fails:
                    raise ZeroDivisionError

        if name == "m0" and not fails:
            expected.sizes.pop("m0", None)
        try:
            await self.attempt(block, expected)
        except ZeroDivisionError:
            if self.host.commits_each_call:
                await self.check_database()

    async def be_slow(self) -> None:
        """A write that is stopped at its timeout."""
        await self.attempt(
            lambda: self.host.impatient.register_models(
                [a_model("stopped", size_bytes=1), a_model("slow", size_bytes=1)]
            ),
            State({"the write was not stopped"}),
        )

    async def be_cancelled(self) -> None:
        """A cancelled call has been made as a whole, or not at all."""
        name, size = self.some_name(), 1000 + len(self.log)
        with_it = self.working.copy()
        with_it.sizes[name] = size
        task = asyncio.ensure_future(
            self.host.patient.register_model(a_model(name, size_bytes=size))
        )
        await asyncio.sleep(self.dice.random() * 0.003)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            self.log.append("  cancelled")
        except CatalogError as error:
            self.log.append(f"  {type(error).__name__}: {error}"[:120])
            await self.after_error()
            return
        else:
            await self.attempt(lambda: asyncio.sleep(0), with_it)
            return
        if self.host.commits_each_call:
            sizes = dict(self.database.run("SELECT reference, size_bytes FROM models"))
            self.committed = with_it.copy() if sizes == with_it.sizes else self.committed
            self.working = self.committed.copy()
            await self.check_database()
            return
        try:
            sizes = await self.read_sizes()
        except SQLAlchemyError:
            await self.die()
            return
        if sizes == with_it.sizes:
            self.working = with_it
        assert sizes == self.working.sizes

    # Statements of the host

    async def execute(self, sql: str, expected: State) -> None:
        async def call() -> None:
            connection = await self.host.connection()
            await connection.execute(text(sql))

        error_count = self.error_count
        await self.attempt(call, expected, SQLAlchemyError)
        if self.database.path is None and self.error_count > error_count and not self.savepoints:
            # After its own error a host has to roll back: PostgreSQL answers COMMIT with a
            # rollback, and no error.
            await self.die()

    async def insert(self) -> None:
        name = f"n{len(self.log)}-{self.dice.random()}"
        expected = self.working.copy()
        expected.names.add(name)
        await self.execute(f"INSERT INTO deployments VALUES ('{name}')", expected)

    async def insert_again(self) -> None:
        """An error of the host itself. On PostgreSQL it ends the transaction or the savepoint."""
        name = next(iter(self.working.names), None)
        if name is not None:
            await self.execute(
                f"INSERT INTO deployments VALUES ('{name}')", State({"a name was stored twice"})
            )

    async def delete(self) -> None:
        name = next(iter(sorted(self.working.names)), "none")
        expected = self.working.copy()
        expected.names.discard(name)
        await self.execute(f"DELETE FROM deployments WHERE name = '{name}'", expected)

    async def read_sizes(self) -> dict[str, int]:
        connection = await self.host.connection()
        rows = await connection.execute(text("SELECT reference, size_bytes FROM models"))
        return {row[0]: row[1] for row in rows}

    async def look_as_host(self) -> None:
        try:
            connection = await self.host.connection()
            names = set((await connection.execute(text("SELECT name FROM deployments"))).scalars())
            sizes = await self.read_sizes()
        except SQLAlchemyError as error:
            self.log.append(f"  {type(error).__name__}")
            await self.die()
            return
        assert State(names, sizes) == self.working

    async def begin_savepoint(self) -> None:
        async def call() -> object:
            await self.host.connection()
            return await self.host.begin_nested()

        before = self.working.copy()
        savepoint = await self.attempt(call, self.working, SQLAlchemyError)
        if savepoint is not None:
            self.savepoints.append((before, savepoint))

    async def end_savepoint(self) -> None:
        if not self.savepoints:
            return
        before, savepoint = self.savepoints.pop()
        if self.dice.random() < 0.5:
            self.log.append("  release")
            try:
                await savepoint.commit()
            except SQLAlchemyError:
                await self.die()
            return
        self.log.append("  roll back to it")
        try:
            await savepoint.rollback()
        except SQLAlchemyError:
            await self.die()
        else:
            self.working = before
            await self.look_as_host()

    async def commit(self) -> None:
        try:
            await self.host.connection()
            while self.savepoints:
                await self.savepoints.pop()[1].commit()
            await self.host.commit()
        except SQLAlchemyError as error:
            self.log.append(f"  {type(error).__name__}")
            await self.die()
            return
        self.committed = self.working.copy()
        await self.check_database()

    # Faults

    async def be_locked_out(self) -> None:
        """Another program holds the lock that a call needs."""
        with self.other_writer() as is_locked:
            if is_locked:
                await self.attempt(
                    lambda: self.host.impatient.register_model(a_model("locked", size_bytes=1)),
                    State({"the lock was ignored"}),
                )

    @contextmanager
    def other_writer(self):
        if self.database.path is None:
            with psycopg.connect(postgres.dsn(self.database.url)) as other:
                other.execute(
                    "INSERT INTO models (provider, reference, local_path)"
                    " VALUES ('hf', 'locked', '/')"
                )
                yield True
                other.rollback()
            return
        with closing(sqlite3.connect(self.database.path, timeout=0, isolation_level=None)) as other:
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                # The host has the lock itself.
                yield False
                return
            yield True
            other.execute("ROLLBACK")

    async def lose_connection(self) -> None:
        self.database.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            " AND datname = current_database()"
        )

    async def fill_disk(self) -> None:
        """SQLite may use no further page, so that a call finds the disk full."""
        try:
            connection = await self.host.connection()
            raw = await connection.get_raw_connection()
            pages = (await connection.exec_driver_sql("PRAGMA page_count")).scalar()
            await connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        except SQLAlchemyError:
            await self.die()
            return
        driver = raw.driver_connection
        models = [a_model(f"full{n}", size_bytes=1, description=4000 * "x") for n in range(50)]
        try:
            await self.attempt(
                lambda: self.host.patient.register_models(models), State({"there was room"})
            )
        finally:
            await driver.execute("PRAGMA max_page_count = 1000000000")


@pytest.mark.slow
async def test_database_has_what_the_calls_and_transactions_said(database):
    """
    Nothing is kept that was not committed, nothing committed is lost, and no transaction goes on
    without its beginning.
    """
    database.run("CREATE TABLE deployments (name VARCHAR(60) UNIQUE)")
    database.run(SLOW["sqlite" if database.path else "postgresql"])
    committed = State()
    try:
        for number in range(-(-STEPS // EPISODE_STEPS)):
            seed = SEED + number
            dice = random.Random(seed)
            async with open_host(database, dice) as host:
                episode = Episode(host, database, committed, seed)
                try:
                    committed = await episode.run(EPISODE_STEPS)
                except BaseException as error:
                    kind = f"{type(host).__name__} of seed {seed}"
                    error.add_note("\n".join([kind, *episode.log[-40:]]))
                    raise
    finally:
        database.run("DROP TABLE deployments")
        if database.path is None:
            database.run("DROP FUNCTION sleep CASCADE")

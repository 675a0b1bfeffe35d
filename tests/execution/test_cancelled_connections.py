"""Calls on PostgreSQL that are interrupted at every point where they wait."""

import asyncio
import gc
from collections.abc import Coroutine
from contextlib import suppress

import psycopg.waiting
import pytest
from conftest import a_model
from sqlalchemy import event
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import CatalogError, ModelCatalog, open_catalog

pytestmark = [
    pytest.mark.parametrize("backend", ["asyncpg", "psycopg"]),
    pytest.mark.usefixtures("short_garbage_collections"),
]


class Stepped(Coroutine):
    """A coroutine that reports each time that it waits."""

    def __init__(self, coroutine, on_wait):
        self._coroutine = coroutine
        self._on_wait = on_wait

    def send(self, value):
        waits_for = self._coroutine.send(value)
        self._on_wait()
        return waits_for

    def throw(self, *error):
        waits_for = self._coroutine.throw(*error)
        self._on_wait()
        return waits_for

    def close(self):
        self._coroutine.close()

    def __await__(self):
        return self


class Interrupter:
    """Makes the tasks of one call, and interrupts it at chosen waits, counted from 1."""

    def __init__(self, interrupt, waits=frozenset()):
        self.tasks = []
        self.wait_count = 0
        self._interrupt = interrupt
        self._waits = waits

    def _on_wait(self):
        self.wait_count += 1
        if self.wait_count in self._waits:
            # It comes before the task that waits goes on.
            asyncio.get_running_loop().call_soon(self._interrupt, self)

    async def run(self, coroutine):
        """Run a call, and wait until all its tasks have ended."""
        loop = asyncio.get_running_loop()

        def make_task(loop, coroutine, **options):
            task = asyncio.Task(Stepped(coroutine, self._on_wait), loop=loop, **options)
            self.tasks.append(task)
            return task

        loop.set_task_factory(make_task)
        try:
            self.tasks.append(call := loop.create_task(coroutine))
            await asyncio.wait([call])
            while any(not task.done() for task in self.tasks):
                await asyncio.wait(self.tasks)
        finally:
            loop.set_task_factory(None)
        with suppress(CatalogError, asyncio.CancelledError):
            call.result()


def cancel_caller(interrupter):
    interrupter.tasks[0].cancel()


def cancel_all_tasks(interrupter):
    # As asyncio.run() does at the end.
    for task in interrupter.tasks:
        task.cancel()


def reach_deadline(interrupter):
    loop = asyncio.get_running_loop()
    for timer in list(loop._scheduled):
        if getattr(timer._callback, "__name__", "") == "expire" and not timer.cancelled():
            timer._run()
            timer.cancel()


async def find(catalog: ModelCatalog) -> None:
    await catalog.find_model("m", "hf")


async def register(catalog: ModelCatalog) -> None:
    await catalog.register_model(a_model("m"))


async def register_twice(catalog: ModelCatalog) -> None:
    await asyncio.gather(*(catalog.register_model(a_model(name)) for name in "mn"))


async def update(catalog: ModelCatalog) -> None:
    await catalog.update_model("m", "hf", license="mit")


async def transaction(catalog: ModelCatalog) -> None:
    async with catalog.transaction() as inner:
        await inner.register_model(a_model("m"))


async def interrupt_everywhere(catalog, pool, call, interrupt):
    """Interrupt a call at each of its waits, and assert that the pool has all connections."""
    await catalog.register_model(a_model("m"))
    counter = Interrupter(interrupt)
    await counter.run(call(catalog))
    for first in range(1, counter.wait_count + 1):
        for times in (1, 3):
            await Interrupter(interrupt, range(first, first + times)).run(call(catalog))
            gc.collect()
            assert pool.checkedout() == 0, (first, times)


@pytest.fixture(autouse=True)
def busy_loop(monkeypatch):
    """Let psycopg yield to the loop in each call, as it does when the loop is busy."""
    monkeypatch.setattr(psycopg.waiting, "MAX_BUSY_TIME", -1.0, raising=False)


@pytest.mark.slow
@pytest.mark.parametrize("interrupt", [cancel_caller, cancel_all_tasks, reach_deadline])
@pytest.mark.parametrize("call", [find, register, register_twice, update, transaction])
async def test_an_interrupted_call_returns_its_connection(database, call, interrupt, caplog):
    """
    Interrupted once, or again at the next waits, it leaves no connection outside the pool, and no
    transaction on the server.
    """
    if (call, interrupt, database.backend) == (register_twice, cancel_all_tasks, "psycopg"):
        pytest.skip("a connection that is being made may stay open until the process ends")
    async with open_catalog(database.target) as catalog:
        await interrupt_everywhere(catalog, catalog._executor._engine.pool, call, interrupt)
        database.assert_no_lock()
    assert "garbage collector" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("interrupt", [cancel_caller, reach_deadline])
@pytest.mark.parametrize("call", [find, update])
async def test_an_interrupted_session_returns_its_connection(database, call, interrupt, caplog):
    """
    A host's session sets the mode of its connection too.
    """
    engine = create_async_engine(database.target_url, isolation_level="SERIALIZABLE")
    # A session with options is used by itself, and not its engine.
    sessions = async_sessionmaker(engine.execution_options(isolation_level="REPEATABLE READ"))
    event.listen(engine.sync_engine, "begin", lambda _: None)
    try:
        await interrupt_everywhere(ModelCatalog(sessions), engine.pool, call, interrupt)
        database.assert_no_lock()
    finally:
        await engine.dispose()
    assert "garbage collector" not in caplog.text

"""Beside a loop that never rests threads are done with their work all the same."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager

import pytest
from conftest import a_model
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import ModelCatalog, open_catalog
from model_catalog.concurrency.threads import LoopThrottle, to_thread
from model_catalog.upkeep import check_models

TURN_S = 100e-6
MOST_TURNS = 30_000
"""Three seconds of computing. What starves takes as long for one or two steps."""


@asynccontextmanager
async def busy_loop():
    """A block beside which another task computes, and goes on after each turn; but not for ever."""
    over = False
    turns = 0

    async def compute():
        nonlocal turns
        while not over and turns < MOST_TURNS:
            until = time.perf_counter() + TURN_S
            while time.perf_counter() < until:
                pass
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(compute())
    await asyncio.sleep(0)
    try:
        yield
        assert turns < MOST_TURNS
    finally:
        over = True
        await task


async def find(catalog):
    assert await catalog.find_model("m", "hf") is not None


async def register(catalog):
    await catalog.register_model(a_model("m"))


async def transact(catalog):
    async with catalog.transaction() as inner:
        await inner.register_model(a_model("m"))
        await inner.find_model("m", "hf")


async def list_all(catalog):
    assert len(await catalog.list_models()) == 1


async def check(catalog):
    assert (await check_models(catalog)).model_count == 1


@pytest.mark.parametrize("call", [find, register, transact, list_all, check])
async def test_calls_end_beside_a_busy_loop(on_sqlite, call):
    """
    Whatever a thread does for one: it has Python's lock again after each of its system calls.
    """
    await on_sqlite.register_model(a_model("m"))

    async with busy_loop():
        for _ in range(10):
            await call(on_sqlite)


@pytest.mark.parametrize("call", [find, register, transact])
async def test_calls_over_a_hosts_sessions_end_beside_a_busy_loop(sqlite_file, call):
    """
    Where a driver has a thread, and a call is many steps to it and back.
    """
    engine = create_async_engine(f"sqlite+aiosqlite:///{sqlite_file}")
    catalog = ModelCatalog(async_sessionmaker(engine))
    await catalog.register_model(a_model("m"))

    async with busy_loop():
        for _ in range(3):
            await call(catalog)

    await engine.dispose()


async def test_a_catalog_opens_and_closes_beside_a_busy_loop(sqlite_file):
    """
    The first look at the file, the first connection, and the end of the threads.
    """
    async with busy_loop():
        for _ in range(3):
            async with open_catalog(sqlite_file) as catalog:
                assert await catalog.count_models() == 0


async def test_a_catalog_is_made_beside_a_busy_loop(tmp_path):
    """
    Every migration, in a thousand steps to a driver's thread and back.
    """
    async with busy_loop(), open_catalog(tmp_path / "new.db") as catalog:
        assert await catalog.count_models() == 0


async def test_a_loop_that_has_nothing_to_do_is_hardly_looked_at(monkeypatch):
    """
    To wake it up would take Python's lock away from the thread that it waits for. And when that
    has ended nothing looks any more.
    """
    loop = asyncio.get_running_loop()
    looks = 0
    call_later = loop.call_later

    def counted(delay, callback, *args, **options):
        nonlocal looks
        looks += isinstance(getattr(callback, "__self__", None), LoopThrottle)
        return call_later(delay, callback, *args, **options)

    monkeypatch.setattr(loop, "call_later", counted)
    goes_on = threading.Event()
    waiting = asyncio.create_task(to_thread(goes_on.wait))
    await asyncio.sleep(0.4)
    while_it_waited = looks
    goes_on.set()
    await waiting
    await asyncio.sleep(0.06)
    afterwards = looks
    await asyncio.sleep(0.2)

    assert 2 <= while_it_waited <= 16
    assert looks == afterwards

"""Threads make progress beside an event loop that is always busy."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest
from conftest import a_model
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import ModelCatalog, open_catalog
from model_catalog.concurrency.threads import LoopThrottle, to_thread
from model_catalog.upkeep import check_models

STEP_S = 100e-6
MAX_STEPS = 30_000
"""Three seconds of computing. A starved thread needs that long for one or two steps."""


@asynccontextmanager
async def busy_loop():
    """Run a task that computes in short steps during the block; it ends after MAX_STEPS."""
    over = False
    steps = 0

    async def compute():
        nonlocal steps
        while not over and steps < MAX_STEPS:
            until = time.perf_counter() + STEP_S
            while time.perf_counter() < until:
                pass
            steps += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(compute())
    await asyncio.sleep(0)
    try:
        yield
        assert steps < MAX_STEPS
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
async def test_calls_finish_beside_a_busy_loop(on_sqlite, call):
    """
    A thread that works for a call gets the GIL back after each of its system calls.
    """
    await on_sqlite.register_model(a_model("m"))

    async with busy_loop():
        for _ in range(10):
            await call(on_sqlite)


@pytest.mark.parametrize("call", [find, register, transact])
async def test_calls_over_host_sessions_finish_beside_a_busy_loop(sqlite_file, call):
    """
    aiosqlite has a thread, and a call switches to it and back many times.
    """
    engine = create_async_engine(f"sqlite+aiosqlite:///{sqlite_file}")
    catalog = ModelCatalog(async_sessionmaker(engine))
    await catalog.register_model(a_model("m"))

    async with busy_loop():
        for _ in range(3):
            await call(catalog)

    await engine.dispose()


async def test_catalog_opens_and_closes_beside_a_busy_loop(sqlite_file):
    """
    Opening checks the file and connects in threads; closing ends the threads.
    """
    async with busy_loop():
        for _ in range(3):
            async with open_catalog(sqlite_file) as catalog:
                assert await catalog.count_models() == 0


async def test_catalog_is_created_beside_a_busy_loop(tmp_path):
    """
    The migrations switch to the driver's thread and back about a thousand times.
    """
    async with busy_loop(), open_catalog(tmp_path / "new.db") as catalog:
        assert await catalog.count_models() == 0


async def test_idle_loop_is_rarely_checked(monkeypatch):
    """
    Waking an idle loop would take the GIL away from the working thread. Once that thread has
    ended, the loop is not checked at all.
    """
    loop = asyncio.get_running_loop()
    check_count = 0
    call_later = loop.call_later

    def counted(delay, callback, *args, **options):
        nonlocal check_count
        check_count += isinstance(getattr(callback, "__self__", None), LoopThrottle)
        return call_later(delay, callback, *args, **options)

    monkeypatch.setattr(loop, "call_later", counted)
    finish = threading.Event()
    waiting = asyncio.create_task(to_thread(finish.wait))
    await asyncio.sleep(0.4)
    count_while_waiting = check_count
    finish.set()
    await waiting
    await asyncio.sleep(0.06)
    count_afterwards = check_count
    await asyncio.sleep(0.2)

    assert 2 <= count_while_waiting <= 16
    assert check_count == count_afterwards


async def test_opening_does_not_wait_for_the_default_executor(tmp_path):
    """
    All threads of the loop's default executor are busy with work of the host.
    """
    finish = threading.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    work = loop.run_in_executor(None, finish.wait)
    try:
        async with asyncio.timeout(5), open_catalog(tmp_path / "catalog.db") as catalog:
            assert await catalog.count_models() == 0
    finally:
        finish.set()
        await work

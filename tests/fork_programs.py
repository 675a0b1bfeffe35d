"""Scenarios of a process that forks while a catalog is open: each returns both outcomes."""

import asyncio
import gc
import json
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from multiprocessing.connection import Connection

from conftest import a_model
from public_calls import READS, WRITES
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import CatalogError, ModelCatalog, open_catalog, prepare_engine
from model_catalog.connection.target import resolve_target

WATCH_S = 8.0
"""A child that has sent nothing for this long hangs, and is killed."""

MANY = 1500
"""Number of models of one page each: more than SQLite's cache, so some pages are written early."""


class Child:
    """A forked process and the pipe that carries its result."""

    def __init__(self) -> None:
        reader, self._writer = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(self._writer)
            self._reader = reader

    def exit_with(self, result: object) -> None:
        """Send the result and exit; called in the child."""
        os.write(self._writer, json.dumps(result).encode())
        os._exit(0)

    def result(self) -> object:
        """Return the child's result; "hung" if it sent none in time, "died" if it ended without."""
        ready, _, _ = select.select([self._reader], [], [], WATCH_S)
        if not ready:
            os.kill(self.pid, signal.SIGKILL)
        data = os.read(self._reader, 100_000)
        os.close(self._reader)
        os.waitpid(self.pid, 0)
        return json.loads(data) if data else "died" if ready else "hung"


def run_in_child(act: Callable[[], object]) -> object:
    """Fork, call `act` in the child, and return its result or its error."""
    child = Child()
    if child.pid:
        return child.result()
    try:
        result = act()
    except BaseException as error:  # noqa: BLE001 - the parent reports any error
        result = [type(error).__name__, str(error)]
    child.exit_with(result)
    raise AssertionError


async def outcome(call) -> list[str] | str:
    """Return the class and the message of a call's error, or "works"."""
    try:
        await call
    except CatalogError as error:
        return [type(error).__name__, str(error)]
    return "works"


def all_outcomes(catalog: ModelCatalog) -> dict[str, object]:
    """Return the outcome of every public call, in a new event loop."""

    async def run() -> dict[str, object]:
        return {
            name: await outcome(call(catalog)) for name, call in sorted((READS | WRITES).items())
        }

    return asyncio.run(run())


async def names(catalog: ModelCatalog) -> list[str]:
    return sorted(model.reference for model in await catalog.list_models())


async def open_all_connections(catalog: ModelCatalog) -> None:
    """Open every connection of the pool."""
    await catalog.register_model(a_model("before"))
    await asyncio.gather(*(catalog.list_models() for _ in range(20)))


async def use(target: str) -> object:
    """The child calls the parent's catalog and runs the garbage collector."""

    def act() -> object:
        outcomes = all_outcomes(catalog)
        gc.collect()
        return outcomes

    async with open_catalog(target, timeout_s=5) as catalog:
        await open_all_connections(catalog)
        result = run_in_child(act)
        await catalog.register_model(a_model("after"))
        return result, await names(catalog)


async def open_again(target: str) -> object:
    """The child opens a catalog of its own."""

    async def act() -> str:
        async with open_catalog(target, timeout_s=5) as catalog:
            await catalog.register_model(a_model("child"))
        gc.collect()
        return "works"

    async with open_catalog(target, timeout_s=5) as catalog:
        await open_all_connections(catalog)
        result = run_in_child(lambda: asyncio.run(act()))
        await catalog.register_model(a_model("after"))
        return result, await names(catalog)


async def leave(target: str, *, inside: bool) -> object:
    """
    The child leaves the blocks in which it was forked; `inside` means in a large transaction.

    It does not close the event loop: that would affect the parent's loop, which is not our concern.
    """
    child = None
    try:
        async with AsyncExitStack() as blocks:
            catalog = await blocks.enter_async_context(open_catalog(target, timeout_s=5))
            await open_all_connections(catalog)
            if inside:
                catalog = await blocks.enter_async_context(catalog.transaction())
                await catalog.register_models(
                    a_model(f"m{number}", local_path="/" + "x" * 4000) for number in range(MANY)
                )
            child = Child()
            if child.pid == 0:
                sys.exit()
            result = child.result()
            await catalog.register_model(a_model("after"))
    except BaseException as error:
        if child is None or child.pid:
            raise
        error_name = type(error).__name__
    if child.pid == 0:
        del catalog, blocks
        gc.collect()
        child.exit_with(error_name)
    async with open_catalog(target) as catalog:
        return result, await catalog.count_models()


async def leave_outside(target: str) -> object:
    return await leave(target, inside=False)


async def leave_inside(target: str) -> object:
    return await leave(target, inside=True)


async def use_host_engine(target: str) -> object:
    """The child calls a catalog over a host's engine whose pool has all connections open."""
    url = make_url(target) if "://" in target else resolve_target(target).url
    engine = create_async_engine(url)
    prepare_engine(engine)
    catalog = ModelCatalog(async_sessionmaker(engine), timeout_s=1)
    await open_all_connections(catalog)

    def act() -> object:
        outcomes = all_outcomes(catalog)
        gc.collect()
        return outcomes

    result = run_in_child(act)
    await catalog.register_model(a_model("after"))
    found = await names(catalog)
    await engine.dispose()
    return result, found


SCENARIOS = {
    each.__name__: each for each in (use, open_again, leave_outside, leave_inside, use_host_engine)
}


def run(scenario: str, target: str, pipe: Connection) -> None:
    """Run a scenario and send its result; the entry point of a process."""
    pipe.send(asyncio.run(SCENARIOS[scenario](target)))

"""What processes do that fork while a catalog is open: each says how it, and its child, went."""

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
"""After this long without a word a child hangs. It is killed."""

MANY = 1500
"""Models of a page each: more than SQLite's cache holds, so that some are written at once."""


class Child:
    """A forked process, and what it has to say."""

    def __init__(self) -> None:
        reader, self._writer = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(self._writer)
            self._reader = reader

    def end(self, said: object) -> None:
        """The child's last word."""
        os.write(self._writer, json.dumps(said).encode())
        os._exit(0)

    def said(self) -> object:
        """What the child said; "hung" where it said nothing, "died" where it fell over."""
        ready, _, _ = select.select([self._reader], [], [], WATCH_S)
        if not ready:
            os.kill(self.pid, signal.SIGKILL)
        words = os.read(self._reader, 100_000)
        os.close(self._reader)
        os.waitpid(self.pid, 0)
        return json.loads(words) if words else "died" if ready else "hung"


def forked(act: Callable[[], object]) -> object:
    """What a child that does something says of it."""
    child = Child()
    if child.pid:
        return child.said()
    try:
        said = act()
    except BaseException as error:  # noqa: BLE001 - the parent is to hear of it, whatever it is
        said = [type(error).__name__, str(error)]
    child.end(said)
    raise AssertionError


async def outcome(call) -> list[str] | str:
    """The class and the words of a call's error; "works" where there is none."""
    try:
        await call
    except CatalogError as error:
        return [type(error).__name__, str(error)]
    return "works"


def all_outcomes(catalog: ModelCatalog) -> dict[str, object]:
    """Every public call, in a loop of its own."""

    async def run() -> dict[str, object]:
        return {
            name: await outcome(call(catalog)) for name, call in sorted((READS | WRITES).items())
        }

    return asyncio.run(run())


async def names(catalog: ModelCatalog) -> list[str]:
    return sorted(model.reference for model in await catalog.list_models())


async def busy_with(catalog: ModelCatalog) -> None:
    """Have every connection of the pool open."""
    await catalog.register_model(a_model("before"))
    await asyncio.gather(*(catalog.list_models() for _ in range(20)))


async def use(target: str) -> object:
    """The child calls the parent's catalog, and collects its garbage."""

    def act() -> object:
        said = all_outcomes(catalog)
        gc.collect()
        return said

    async with open_catalog(target, timeout_s=5) as catalog:
        await busy_with(catalog)
        said = forked(act)
        await catalog.register_model(a_model("after"))
        return said, await names(catalog)


async def open_again(target: str) -> object:
    """The child opens a catalog of its own."""

    async def act() -> str:
        async with open_catalog(target, timeout_s=5) as catalog:
            await catalog.register_model(a_model("child"))
        gc.collect()
        return "works"

    async with open_catalog(target, timeout_s=5) as catalog:
        await busy_with(catalog)
        said = forked(lambda: asyncio.run(act()))
        await catalog.register_model(a_model("after"))
        return said, await names(catalog)


async def leave(target: str, *, inside: bool) -> object:
    """
    The child leaves the blocks that it was forked in; `inside` a transaction, with much written.

    Not the loop: what a child does to it is done to the parent's, and none of our making.
    """
    child = None
    try:
        async with AsyncExitStack() as blocks:
            catalog = await blocks.enter_async_context(open_catalog(target, timeout_s=5))
            await busy_with(catalog)
            if inside:
                catalog = await blocks.enter_async_context(catalog.transaction())
                await catalog.register_models(
                    a_model(f"m{number}", local_path="/" + "x" * 4000) for number in range(MANY)
                )
            child = Child()
            if child.pid == 0:
                sys.exit()
            said = child.said()
            await catalog.register_model(a_model("after"))
    except BaseException as error:
        if child is None or child.pid:
            raise
        how = type(error).__name__
    if child.pid == 0:
        del catalog, blocks
        gc.collect()
        child.end(how)
    async with open_catalog(target) as catalog:
        return said, await catalog.count_models()


async def leave_outside(target: str) -> object:
    return await leave(target, inside=False)


async def leave_inside(target: str) -> object:
    return await leave(target, inside=True)


async def use_a_hosts(target: str) -> object:
    """The child calls a catalog over the engine of a host, with all connections of its pool."""
    url = make_url(target) if "://" in target else resolve_target(target).url
    engine = create_async_engine(url)
    prepare_engine(engine)
    catalog = ModelCatalog(async_sessionmaker(engine), timeout_s=1)
    await busy_with(catalog)

    def act() -> object:
        said = all_outcomes(catalog)
        gc.collect()
        return said

    said = forked(act)
    await catalog.register_model(a_model("after"))
    found = await names(catalog)
    await engine.dispose()
    return said, found


SCENARIOS = {
    each.__name__: each for each in (use, open_again, leave_outside, leave_inside, use_a_hosts)
}


def run(scenario: str, target: str, pipe: Connection) -> None:
    """Begin a process's life with this."""
    pipe.send(asyncio.run(SCENARIOS[scenario](target)))

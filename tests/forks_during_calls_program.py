"""
Fork while calls of a catalog are on their way, and print what became of parent and child.

    python forks_during_calls_program.py URL own|host|transaction exit|exception|_exit|call

The child leaves by SystemExit, an exception or `os._exit`, or calls the parent's catalog first.
"""

import asyncio
import json
import os
import sys
import time
from contextlib import AsyncExitStack

from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import CatalogError, Model, ModelCatalog, open_catalog, prepare_engine

MODELS = 1500
WAIT_S = 8.0


class LeftError(Exception):
    """The exception by which a child leaves."""


def a_model(reference: str) -> Model:
    return Model(reference=reference, provider="hf", local_path="/" + "x" * 500)


async def open_with(stack: AsyncExitStack, url: str, kind: str) -> ModelCatalog:
    if kind != "host":
        return await stack.enter_async_context(open_catalog(url, timeout_s=20))
    async with open_catalog(url):
        pass
    engine = create_async_engine(url)
    prepare_engine(engine)
    stack.push_async_callback(engine.dispose, close=True)
    return ModelCatalog(async_sessionmaker(engine), timeout_s=20)


async def leave(catalog: ModelCatalog, how: str) -> None:
    if how == "_exit":
        os._exit(3)
    if how == "exception":
        raise LeftError
    if how == "call":
        try:
            await catalog.count_models()
        except CatalogError as error:
            print(type(error).__name__, file=sys.stderr)
    raise SystemExit(3)


async def wait_for(child: int) -> int | None:
    """Return the exit code of the child; None if it has not ended in time."""
    end_s = time.monotonic() + WAIT_S
    while time.monotonic() < end_s:
        gone, status = os.waitpid(child, os.WNOHANG)
        if gone:
            return os.waitstatus_to_exitcode(status)
        await asyncio.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


async def main(url: str, kind: str, how: str) -> None:
    parent = os.getpid()
    async with AsyncExitStack() as stack:
        catalog = await open_with(stack, url, kind)
        await catalog.register_models(a_model(f"m{n}") for n in range(MODELS))
        if kind == "transaction":
            catalog = await stack.enter_async_context(catalog.transaction())
        calls = [
            asyncio.create_task(catalog.list_models()),
            asyncio.create_task(catalog.register_models(a_model(f"n{n}") for n in range(MODELS))),
            asyncio.create_task(catalog.register_model(a_model("single"))),
            asyncio.create_task(catalog.record_use("m1", "hf")),
            asyncio.create_task(catalog.find_model("m1", "hf")),
        ]
        await asyncio.sleep(0.05)
        child = os.fork()
        if child == 0:
            await leave(catalog, how)
        ended = await wait_for(child)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        # Only a thread of its own wakes the loop here.
        await asyncio.wait_for(asyncio.to_thread(time.sleep, 0.01), 5)
        await catalog.register_model(a_model("after"))
        errors = [repr(each) for each in outcomes if isinstance(each, BaseException)]
        count = await catalog.count_models()
    if os.getpid() == parent:
        print(json.dumps({"child": ended, "errors": errors, "count": count}))


asyncio.run(main(*sys.argv[1:]))

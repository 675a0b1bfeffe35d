"""
Print what a catalog acknowledges and then "ready"; after a line of input call it until Ctrl-C.

    python interrupted_program.py TARGET WAY
"""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable

from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import Model, ModelCatalog, open_catalog, prepare_engine, sync
from model_catalog.connection.target import resolve_target

TIMEOUT_S = 60
WRITES = 5


def a_model(reference: str) -> Model:
    return Model(reference=reference, provider="hf", local_path="/m")


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


async def register(catalog: ModelCatalog, reference: str) -> None:
    await catalog.register_model(a_model(reference))
    say(reference)


async def write(catalog: ModelCatalog) -> None:
    await catalog.register_model(a_model("m0"))


async def write_many(catalog: ModelCatalog) -> None:
    await catalog.register_models(a_model(f"m{n}") for n in range(1000))


async def write_at_once(catalog: ModelCatalog) -> None:
    calls = [register(catalog, f"m{n}") for n in range(50)]
    await asyncio.gather(*calls, *(catalog.record_use("m0", "hf") for _ in range(20)))


async def in_transaction(catalog: ModelCatalog) -> None:
    async with catalog.transaction() as inner:
        await inner.register_model(a_model("not committed"))
        await inner.register_model(a_model("m0"))


async def under_load(catalog: ModelCatalog) -> None:
    async def client(number: int) -> None:
        for turn in range(10**9):
            await register(catalog, f"{number}-{turn}")

    await asyncio.gather(*map(client, range(8)))


async def read(catalog: ModelCatalog) -> None:
    await asyncio.gather(catalog.list_models(), catalog.find_model("m0", "hf"))


CALLS: dict[str, Callable[[ModelCatalog], Awaitable[None]]] = {
    each.__name__: each
    for each in (write, write_many, write_at_once, in_transaction, under_load, read)
}


async def use(catalog: ModelCatalog, call: str) -> None:
    for number in range(WRITES):
        await register(catalog, f"before{number}")
    say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    await CALLS[call](catalog)


async def use_opened(target: str, call: str) -> None:
    async with open_catalog(target, timeout_s=TIMEOUT_S) as catalog:
        await use(catalog, call)


async def use_host_engine(target: str, call: str) -> None:
    engine = create_async_engine(resolve_target(target).url)
    prepare_engine(engine)
    await use(ModelCatalog(async_sessionmaker(engine), timeout_s=TIMEOUT_S), call)


async def opening(target: str, _call: str) -> None:
    say("ready")
    sys.stdin.readline()
    async with open_catalog(target, timeout_s=TIMEOUT_S):
        say("open")


def use_sync(target: str, call: str) -> None:
    with sync.open_catalog(target, timeout_s=TIMEOUT_S) as catalog:
        catalog.run(use, call)


def use_sync_unclosed(target: str, call: str) -> None:
    sync.open_catalog(target, timeout_s=TIMEOUT_S).run(use, call)


def opening_sync(target: str, _call: str) -> None:
    say("ready")
    sys.stdin.readline()
    sync.open_catalog(target, timeout_s=TIMEOUT_S)


def in_asyncio_run(main: Callable[[str, str], Awaitable[None]]) -> Callable[[str, str], None]:
    return lambda target, call: asyncio.run(main(target, call))


WAYS: dict[str, Callable[[str, str], None]] = {
    "async": in_asyncio_run(use_opened),
    "host": in_asyncio_run(use_host_engine),
    "async-opening": in_asyncio_run(opening),
    "sync": use_sync,
    "sync-unclosed": use_sync_unclosed,
    "sync-opening": opening_sync,
}

if __name__ == "__main__":
    # A shell starts background jobs with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    WAYS[sys.argv[2]](sys.argv[1], sys.argv[3])

"""
Write to a catalog, print what was acknowledged, and let the interpreter exit without closing it.

    python unclosed_program.py TARGET WAY
"""

import asyncio
import sys
import threading
from collections.abc import Callable

from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import Model, ModelCatalog, open_catalog, prepare_engine, sync
from model_catalog.connection.target import resolve_target

WRITES = 20
kept: list[object] = []
"""What the program never releases: the module is torn down with it."""


def a_model(reference: str) -> Model:
    return Model(reference=reference, provider="hf", local_path="/m")


def acknowledge(reference: str) -> None:
    sys.stdout.write(f"{reference}\n")
    sys.stdout.flush()


async def register(catalog: ModelCatalog, reference: str) -> None:
    await catalog.register_model(a_model(reference))
    acknowledge(reference)


async def start(target: str) -> ModelCatalog:
    block = open_catalog(target)
    kept.append(block)
    catalog = await block.__aenter__()
    kept.append(catalog)
    await asyncio.gather(*(register(catalog, f"m{n}") for n in range(WRITES)))
    # asyncpg reports each connection that it is opening when its loop ends: open them all now.
    await asyncio.gather(*(catalog.list_models() for _ in range(2 * WRITES)))
    return catalog


async def idle(target: str) -> None:
    await start(target)


async def in_progress(target: str) -> None:
    catalog = await start(target)
    kept.extend(asyncio.create_task(register(catalog, f"late{n}")) for n in range(WRITES))
    kept.extend(asyncio.create_task(catalog.list_models()) for _ in range(4))
    await asyncio.sleep(0.002)


async def in_transaction(target: str) -> None:
    catalog = await start(target)
    transaction = catalog.transaction()
    kept.append(transaction)
    inner = await transaction.__aenter__()
    await inner.register_model(a_model("not committed"))


async def over_a_host_engine(target: str) -> None:
    async with open_catalog(target):
        pass
    engine = create_async_engine(resolve_target(target).url)
    prepare_engine(engine)
    catalog = ModelCatalog(async_sessionmaker(engine))
    kept.extend((engine, catalog))
    await asyncio.gather(*(register(catalog, f"m{n}") for n in range(WRITES)))


def with_sync_facade(target: str) -> sync.SyncCatalog:
    catalog = sync.open_catalog(target)
    kept.append(catalog)
    for number in range(WRITES):
        catalog.register_model(a_model(f"m{number}"))
        acknowledge(f"m{number}")
    return catalog


def with_sync_calls_in_a_thread(target: str) -> None:
    catalog = with_sync_facade(target)
    is_writing = threading.Event()

    def write() -> None:
        number = 0
        while True:
            catalog.register_model(a_model(f"late{number}"))
            acknowledge(f"late{number}")
            number += 1
            is_writing.set()

    threading.Thread(target=write, daemon=True).start()
    is_writing.wait()


def with_sync_transaction(target: str) -> None:
    transaction = with_sync_facade(target).transaction()
    kept.append(transaction)
    transaction.__enter__().register_model(a_model("not committed"))


def run(main: Callable) -> Callable[[str], None]:
    return lambda target: asyncio.run(main(target))


def run_in_an_unclosed_loop(main: Callable) -> Callable[[str], None]:
    def go(target: str) -> None:
        loop = asyncio.new_event_loop()
        kept.append(loop)
        loop.run_until_complete(main(target))

    return go


ASYNC_WAYS = {
    "idle": idle,
    "in-progress": in_progress,
    "in-transaction": in_transaction,
    "host-engine": over_a_host_engine,
}
WAYS: dict[str, Callable] = {
    **{f"run-{name}": run(way) for name, way in ASYNC_WAYS.items()},
    "loop-idle": run_in_an_unclosed_loop(idle),
    "loop-in-progress": run_in_an_unclosed_loop(in_progress),
    "loop-in-transaction": run_in_an_unclosed_loop(in_transaction),
    "sync-idle": with_sync_facade,
    "sync-in-progress": with_sync_calls_in_a_thread,
    "sync-in-transaction": with_sync_transaction,
}

if __name__ == "__main__":
    WAYS[sys.argv[2]](sys.argv[1])

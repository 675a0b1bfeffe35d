"""
Start children by multiprocessing while a catalog is open and written to; print their answers.

    python child_processes_program.py TARGET fork|spawn|forkserver async|sync
"""

import asyncio
import json
import multiprocessing
import os
import sys
import threading
from concurrent.futures import ProcessPoolExecutor

from model_catalog import CatalogError, Model, ModelCatalog, open_catalog, sync

CHILDREN = 4
inherited: list[ModelCatalog | sync.SyncCatalog] = []


def a_model(reference: str) -> Model:
    return Model(reference=reference, provider="hf", local_path="/m")


def use_inherited() -> str:
    """Call the parent's catalog in a child; return the class of the error."""
    if not inherited:
        return "none"
    try:
        if isinstance(inherited[0], ModelCatalog):
            asyncio.run(inherited[0].count_models())
        else:
            inherited[0].count_models()
    except CatalogError as error:
        return type(error).__name__
    return "works"


async def register(target: str, reference: str) -> None:
    async with open_catalog(target) as catalog:
        await catalog.register_model(a_model(reference))


def work(target: str, number: int) -> tuple[str, int]:
    """Register a model in a child: with an async catalog, or with a blocking one."""
    outcome = use_inherited()
    if number % 2:
        asyncio.run(register(target, f"child{number}"))
    else:
        with sync.open_catalog(target) as catalog:
            catalog.register_model(a_model(f"child{number}"))
    return outcome, os.getpid()


async def parent_async(target: str, method: str) -> dict[str, object]:
    async with open_catalog(target) as catalog:
        inherited.append(catalog)
        is_over = asyncio.Event()

        async def write() -> int:
            count = 0
            while not is_over.is_set():
                await catalog.register_model(a_model(f"parent{count}"))
                count += 1
            return count

        writer = asyncio.create_task(write())
        loop = asyncio.get_running_loop()
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            calls = [loop.run_in_executor(pool, work, target, n) for n in range(CHILDREN)]
            answers = await asyncio.gather(*calls)
        is_over.set()
        return summary(answers, await writer, await catalog.count_models())


def parent_sync(target: str, method: str) -> dict[str, object]:
    with sync.open_catalog(target) as catalog:
        inherited.append(catalog)
        is_over = threading.Event()
        written: list[int] = []

        def write() -> None:
            while not is_over.is_set():
                catalog.register_model(a_model(f"parent{len(written)}"))
                written.append(len(written))

        writer = threading.Thread(target=write)
        writer.start()
        with multiprocessing.get_context(method).Pool(2) as pool:
            answers = pool.starmap(work, [(target, n) for n in range(CHILDREN)])
            pool.close()
            pool.join()
        is_over.set()
        writer.join()
        return summary(answers, len(written), catalog.count_models())


def summary(answers: list[tuple[str, int]], written: int, count: int) -> dict[str, object]:
    return {
        "inherited": sorted({outcome for outcome, _ in answers}),
        "is_in_children": os.getpid() not in {process for _, process in answers},
        "has_written": written > 0,
        "missing": written + CHILDREN - count,
    }


if __name__ == "__main__":
    given_target, given_method, kind = sys.argv[1:]
    if kind == "async":
        found = asyncio.run(parent_async(given_target, given_method))
    else:
        found = parent_sync(given_target, given_method)
    print(json.dumps(found))

"""Calls while no event loop of asyncio is running, as under trio."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

import public_calls
import pytest
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from model_catalog import (
    ModelCatalog,
    WrongLoopError,
    backup,
    check_schema,
    downgrade,
    open_catalog,
    restore,
    schema_state,
    upgrade,
)
from model_catalog.upkeep import (
    check_models,
    find_duplicates,
    find_moved,
    register_path,
    scan_store,
    verify_models,
    watch,
)


def run_without_asyncio(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Begin to run a coroutine, as the event loop of another library does."""
    try:
        coroutine.send(None)
    finally:
        coroutine.close()


async def enter(context: AbstractAsyncContextManager) -> None:
    async with context:
        pass


FUNCTIONS: dict[str, Callable] = {
    "open_catalog": lambda path, _: enter(open_catalog(path)),
    "upgrade": lambda path, _: upgrade(path),
    "downgrade": lambda path, _: downgrade(path, "base"),
    "schema_state": lambda path, _: schema_state(path),
    "check_schema": lambda path, _: check_schema(path),
    "backup": lambda path, _: backup(path, path.with_name("copy.db")),
    "restore": lambda path, _: restore(path, path.with_name("copy.db")),
    "check_models": lambda _, catalog: check_models(catalog),
    "find_duplicates": lambda _, catalog: find_duplicates(catalog),
    "find_moved": lambda path, catalog: find_moved(catalog, [path.parent]),
    "register_path": lambda path, catalog: register_path(catalog, path, "m", "hf"),
    "scan_store": lambda path, catalog: scan_store(catalog, "folder", path.parent),
    "verify_models": lambda _, catalog: anext(verify_models(catalog)),
    "watch": lambda _, catalog: enter(watch(catalog)),
}


@pytest.fixture(params=["factory", "session"])
def host_catalog(request, sqlite_file) -> ModelCatalog:
    engine = create_async_engine(f"sqlite+aiosqlite:///{sqlite_file}")
    return ModelCatalog(
        async_sessionmaker(engine) if request.param == "factory" else AsyncSession(engine)
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_says_that_it_needs_asyncio(host_catalog, sqlite_file, name):
    """
    Every function raises WrongLoopError with a word about trio, and no error of asyncio.
    """
    with pytest.raises(WrongLoopError, match=r"asyncio.*trio"):
        run_without_asyncio(FUNCTIONS[name](sqlite_file, host_catalog))


def test_methods_say_that_they_need_asyncio(host_catalog):
    """
    Every method over a host's session or factory raises WrongLoopError.
    """
    for call in (public_calls.PUBLIC_READS | public_calls.PUBLIC_WRITES).values():
        with pytest.raises(WrongLoopError, match=r"asyncio.*trio"):
            run_without_asyncio(call(host_catalog))


def test_methods_of_an_open_catalog_say_that_they_need_asyncio(sqlite_file):
    """
    So does a catalog that open_catalog has opened in an event loop.
    """
    loop = asyncio.new_event_loop()
    context = open_catalog(sqlite_file)
    catalog = loop.run_until_complete(context.__aenter__())

    with pytest.raises(WrongLoopError, match=r"asyncio.*trio"):
        run_without_asyncio(catalog.count_models())

    loop.run_until_complete(context.__aexit__(None, None, None))
    loop.close()

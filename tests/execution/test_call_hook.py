"""The hook `on_call`: one record for each call that has ended, whatever its end."""

import asyncio
import io
import logging
import threading

import pytest
from conftest import a_model
from public_calls import PUBLIC_READS, PUBLIC_WRITES, fill
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import (
    CatalogBusyError,
    HostRegistry,
    InvalidModelError,
    ModelCatalog,
    ModelNotFoundError,
    open_catalog,
    sync,
)
from model_catalog.upkeep import check_models


@pytest.fixture
def calls() -> list:
    return []


@pytest.fixture
async def catalog(database, calls):
    async with open_catalog(database.target, on_call=calls.append) as found:
        yield found


def told(calls) -> list:
    return [(call.name, call.rows, call.error) for call in calls]


async def test_each_call_is_told_when_it_has_ended(catalog, calls):
    """
    A record has the name of the method, the rows and the times; a lookup waits less than it lasts.
    """
    await catalog.register_model(a_model("m"))
    await catalog.register_models([a_model("a"), a_model("b")])
    await catalog.find_model("m", "hf")
    await catalog.find_model("none", "hf")
    await catalog.list_models()

    assert told(calls) == [
        ("register_model", 1, None),
        ("register_models", 2, None),
        ("find_model", 1, None),
        ("find_model", 0, None),
        ("list_models", 3, None),
    ]
    assert all(0 <= call.waited_s <= call.duration_s for call in calls)


async def test_every_public_method_is_told_once(catalog, calls):
    """
    Each method of the catalog is told under its name, and no call under two names.
    """
    await fill(catalog)

    for name, call in (PUBLIC_READS | PUBLIC_WRITES).items():
        calls.clear()
        await call(catalog)
        names = [each.name for each in calls]
        inner = {
            "fleet": ["Fleet.who_has"],
            "rename_model": ["rename_model", "rename_model"],
            "transaction": ["register_model", "transaction"],
        }
        assert names == inner.get(name, [name])
        assert [each.error for each in calls] == [None] * len(calls)


async def test_failed_calls_are_told_with_the_class_of_their_error(catalog, calls):
    """
    An invalid argument, a missing model and an error in a transaction are told.
    """
    with pytest.raises(InvalidModelError):
        await catalog.register_model("no model")
    with pytest.raises(ModelNotFoundError):
        await catalog.get_model("none", "hf")
    with pytest.raises(ZeroDivisionError):
        async with catalog.transaction():
            _ = 1 / 0

    assert told(calls) == [
        ("register_model", None, "InvalidModelError"),
        ("get_model", None, "ModelNotFoundError"),
        ("transaction", None, "ZeroDivisionError"),
    ]


async def test_a_call_that_times_out_is_told_with_its_wait(database, calls):
    """
    While another catalog holds the lock of the row or the file, a write fails after its timeout.
    """
    async with (
        open_catalog(database.target) as other,
        open_catalog(database.target, timeout_s=0.2, on_call=calls.append) as catalog,
    ):
        await other.register_model(a_model("m"))
        async with other.transaction() as inner:
            await inner.update_model("m", "hf", license="mit")
            with pytest.raises(CatalogBusyError):
                await catalog.update_model("m", "hf", license="gpl")

    (call,) = calls
    assert (call.name, call.error) == ("update_model", "CatalogBusyError")
    assert call.duration_s >= 0.1
    if database.path is not None:
        assert call.waited_s >= 0.1


async def test_a_cancelled_call_is_told(catalog, calls):
    """
    A call that is cancelled while it waits is told as CancelledError.
    """
    async with catalog.transaction():
        if catalog.database_files:
            waiting = asyncio.create_task(outside(catalog))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        else:
            waiting = asyncio.create_task(catalog.list_models())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    assert calls[0].error == "CancelledError"


async def outside(catalog) -> None:
    await catalog.count_models()


async def test_a_hook_that_raises_breaks_no_call(database, caplog):
    """
    The call returns, and each class of error is logged once.
    """
    errors = [ValueError("one"), ValueError("two"), KeyError("three")]

    def raising(_call) -> None:
        raise errors.pop(0)

    async with open_catalog(database.target, on_call=raising) as catalog:
        for _ in range(3):
            assert await catalog.count_models() == 0

    records = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert [each.exc_info[0] for each in records] == [ValueError, KeyError]
    assert {each.model_catalog_hook for each in records} == {"on_call"}
    assert {each.model_catalog_url for each in records} == {catalog._executor.database.name}


@pytest.mark.parametrize("hook", ["text", pytest.param(asyncio.sleep, id="coroutine function")])
async def test_a_hook_must_be_a_plain_function(sqlite_file, hook):
    """
    What cannot be called at once is refused before the database is opened.
    """
    with pytest.raises(InvalidModelError, match="on_call"):
        async with open_catalog(sqlite_file, on_call=hook):
            pass
    with pytest.raises(InvalidModelError, match="on_change"):
        async with open_catalog(sqlite_file, on_change=hook):
            pass


async def test_an_iteration_is_told_without_the_time_of_the_loop_body(catalog, calls):
    """
    The record of an iteration counts the models that were read, also if the loop ends early.
    """
    await catalog.register_models([a_model(f"m{number}") for number in range(3)])
    calls.clear()
    loop = asyncio.get_running_loop()
    body_s = 0.0

    models = catalog.iter_models()
    async for _ in models:
        begin = loop.time()
        await asyncio.to_thread(threading.Event().wait, 0.05)
        body_s += loop.time() - begin
        if len(calls) == 0 and body_s > 0.08:
            break
    await models.aclose()

    (call,) = calls
    assert (call.name, call.rows, call.error) == ("iter_models", 2, None)
    assert call.duration_s < body_s


class Extended(ModelCatalog):
    """A subclass with an iteration, and a method that returns something else."""

    is_closed = False

    async def read_references(self):
        try:
            async for model in self.iter_models():
                yield model.reference
        finally:
            self.is_closed = True

    async def register_models(self, models):
        async with self.transaction() as inner:
            for model in models:
                await inner.register_model(model)

    async def list_page(self, **options):
        return vars(await super().get_model("m", "hf")).keys()


async def test_methods_of_a_subclass_work_as_without_a_hook(sqlite_file, calls):
    """
    An iteration that is closed ends the method's own. A result of another type has no rows. A
    transaction in a method is a part of it.
    """
    async with open_catalog(sqlite_file):
        engine = create_async_engine(f"sqlite+aiosqlite:///{sqlite_file}")
    catalog = Extended(async_sessionmaker(engine), on_call=calls.append)
    try:
        assert await catalog.register_models([a_model("m")]) is None
        assert "reference" in await catalog.list_page()
        references = catalog.read_references()
        assert await anext(references) == "m"
        await references.aclose()
    finally:
        await engine.dispose()

    assert catalog.is_closed
    assert told(calls) == [
        ("register_models", None, None),
        ("list_page", None, None),
        ("read_references", 1, None),
    ]


async def test_calls_in_tasks_of_a_call_are_told(database, calls):
    """
    A method of a subclass is one call; a task that it has started and that outlives it is another.
    """
    tasks = []

    class Own(ModelCatalog):
        async def find_model(self, *arguments, **options):
            tasks.append(asyncio.create_task(self.count_models()))
            return await super().find_model(*arguments, **options)

    engine = create_async_engine(database.target_url)
    catalog = Own(async_sessionmaker(engine), on_call=calls.append)
    assert await catalog.find_model("m", "hf") is None
    await tasks[0]
    async with catalog.transaction() as inner:
        assert isinstance(inner, Own)
        await inner.count_models()
    await engine.dispose()

    names = [call.name for call in calls]
    assert names[0] == "find_model"
    assert names[-2:] == ["count_models", "transaction"]


@pytest.mark.parametrize("over", ["factory", "session"])
async def test_calls_over_sessions_of_a_host_are_told(database, calls, over):
    """
    A catalog over a factory and one over a session tell of their calls.
    """
    engine = create_async_engine(database.target_url)
    factory = async_sessionmaker(engine)
    async with factory() as session:
        sessions = factory if over == "factory" else session
        catalog = ModelCatalog(sessions, on_call=calls.append)
        await catalog.register_model(a_model("m"))
        assert await catalog.count_models() == 1
    await engine.dispose()

    assert told(calls) == [("register_model", 1, None), ("count_models", None, None)]


async def test_operations_of_upkeep_have_the_name_of_their_package(catalog, calls):
    """
    A check runs operations itself; their names say which.
    """
    await catalog.register_model(a_model("m"))
    calls.clear()

    await check_models(catalog)

    assert {call.name.partition(".")[0] for call in calls} == {"upkeep"}
    assert "upkeep.update_states" in {call.name for call in calls}


async def test_methods_of_other_classes_have_their_class_in_the_name(catalog, calls):
    """
    A fleet and a registry of hosts tell of their calls too.
    """
    registry = HostRegistry(catalog)
    await registry.register_host("gpu-07")
    await catalog.fleet().totals_by_host()
    await registry.remove_host("gpu-07")

    assert told(calls) == [
        ("HostRegistry.register_host", 1, None),
        ("Fleet.totals_by_host", 1, None),
        ("HostRegistry.remove_host", 1, None),
    ]


def test_the_blocking_catalog_tells_of_its_calls(database, calls):
    """
    `sync.open_catalog` takes the same hook, which is called in the thread of the catalog.
    """
    threads = set()

    def note(call) -> None:
        threads.add(threading.get_ident())
        calls.append(call)

    with sync.open_catalog(database.target, on_call=note) as catalog:
        catalog.register_model(a_model("m"))
        with catalog.transaction() as inner:
            inner.count_models()
        catalog.export_catalog(io.StringIO())

    names = [call.name for call in calls]
    assert names == ["register_model", "count_models", "transaction", "export_catalog"]
    assert threading.get_ident() not in threads


async def test_without_a_hook_the_methods_are_the_plain_ones(catalog, database):
    """
    A catalog without a hook for calls has the class ModelCatalog, and no executor around its own.
    """
    async with open_catalog(database.target) as plain:
        assert type(plain) is ModelCatalog
        assert type(plain._executor).__name__ in ("ThreadExecutor", "PostgresExecutor")
    assert isinstance(catalog, ModelCatalog)

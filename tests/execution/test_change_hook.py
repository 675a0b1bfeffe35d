"""The hook `on_change`: told after the commit, in its order, and never of what was rolled back."""

import asyncio
import io
import json
import logging
import threading
from contextlib import asynccontextmanager

import pytest
from conftest import a_model
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from model_catalog import (
    CatalogBusyError,
    InvalidImportError,
    ModelCatalog,
    ModelNotFoundError,
    open_catalog,
    sync,
)
from model_catalog.domain.ndjson import HEADER
from model_catalog.execution.observation import hooks

ROADS = ["own", "sessions", "watched sessions"]


@asynccontextmanager
async def opened(database, road, **options):
    """A catalog of its own, or over a factory; a listener makes each call use a session."""
    if road == "own":
        async with open_catalog(database.target, **options) as catalog:
            yield catalog
        return
    engine = create_async_engine(database.target_url)
    if road == "watched sessions":
        event.listen(engine.sync_engine, "before_cursor_execute", lambda *_: None)
    try:
        yield ModelCatalog(async_sessionmaker(engine), **options)
    finally:
        await engine.dispose()


@pytest.fixture(params=ROADS)
def road(request) -> str:
    return request.param


@pytest.fixture
def seen() -> list:
    return []


@pytest.fixture
async def catalog(database, road, seen):
    async with opened(database, road, on_change=seen.extend) as found:
        await found.count_models()
        yield found


def told(changes) -> list:
    return [(each.kind, each.reference) for each in changes]


async def test_a_change_is_told_before_the_call_returns(catalog, seen):
    """
    Each write of a model is one change, with the fields that differ; a write of equal values is
    none.
    """
    await catalog.register_model(a_model("m"))
    assert told(seen) == [("registered", "m")]

    await catalog.update_model("m", "hf", license="mit")
    await catalog.update_model("m", "hf", license="mit")
    await catalog.tag_model("m", "hf", "chat")
    await catalog.record_use("m", "hf")
    await catalog.rename_model("m", "hf", new_version="v1")
    await catalog.remove_model("m", "hf")

    assert [(each.kind, each.fields) for each in seen[1:]] == [
        ("updated", ("license",)),
        ("updated", ("tags",)),
        ("updated", ("version",)),
        ("removed", ()),
    ]
    assert str(seen[3].previous_ref) == "hf:m@"
    assert str(seen[3].ref) == str(seen[4].ref) == "hf:m@v1"


async def test_a_failed_write_is_not_told(catalog, seen):
    """
    A missing model, and a transaction that is left by an error, change nothing.
    """
    with pytest.raises(ModelNotFoundError):
        await catalog.update_model("m", "hf", license="mit")
    with pytest.raises(ZeroDivisionError):
        async with catalog.transaction() as inner:
            await inner.register_model(a_model("m"))
            _ = 1 / 0

    assert seen == []
    assert await catalog.count_models() == 0


async def test_a_transaction_is_told_at_its_commit(catalog, seen):
    """
    Changes wait for the commit. Those of a savepoint that was rolled back are not told.
    """
    async with catalog.transaction() as outer:
        await outer.register_model(a_model("first"))
        with pytest.raises(ZeroDivisionError):
            async with outer.transaction() as inner:
                await inner.register_model(a_model("undone"))
                _ = 1 / 0
        async with outer.transaction() as inner:
            await inner.register_models([a_model("second")])
        assert seen == []

    assert told(seen) == [("registered", "first"), ("registered", "second")]


async def test_calls_that_share_a_transaction_fail_alone(catalog, seen):
    """
    Of calls that are made at the same time, those that fail are not told, and the others are.
    """
    await catalog.register_models([a_model(f"m{number}") for number in range(8)])
    seen.clear()

    results = await asyncio.gather(
        *(catalog.update_model(f"m{number}", "hf", license="mit") for number in range(4)),
        catalog.update_model("none", "hf", license="mit"),
        *(catalog.register_model(a_model(f"n{number}")) for number in range(4)),
        return_exceptions=True,
    )

    assert sum(isinstance(each, ModelNotFoundError) for each in results) == 1
    expected = [("updated", f"m{number}") for number in range(4)]
    expected += [("registered", f"n{number}") for number in range(4)]
    assert sorted(told(seen)) == sorted(expected)


async def test_fifty_tasks_are_told_in_the_order_of_their_commits(catalog, seen):
    """
    Fifty tasks rename one model. Each change begins with the name with which the one before ends.
    """
    await catalog.register_model(a_model("m", version="v"))
    seen.clear()

    await asyncio.gather(
        *(catalog.rename_model("m", "hf", new_version=f"v{number}") for number in range(50))
    )

    assert len(seen) == 50
    assert [each.previous_ref.version for each in seen] == ["v", *(each.version for each in seen)][
        :-1
    ]


@pytest.mark.parametrize("first_ends_by", ["commit", "drop"])
async def test_a_commit_that_is_answered_first_waits_for_those_before_it(first_ends_by, seen):
    """
    PostgreSQL releases locks before it answers COMMIT, so the next commit may be answered first.
    """
    told_to = hooks.Hooks(None, seen.extend, "test")
    first, second = hooks.Journal(told_to), hooks.Journal(told_to)
    for name, journal in (("first", first), ("second", second)):
        journal.add([name])
        journal.prepare()

    second()
    waiting = asyncio.create_task(told_to.wait_for(second))
    await asyncio.sleep(0)
    assert (seen, waiting.done()) == ([], False)
    if first_ends_by == "commit":
        first()
    else:
        first.drop()
    await waiting

    assert seen == (["first", "second"] if first_ends_by == "commit" else ["second"])


async def test_the_last_change_of_a_model_is_its_last_commit(database, road):
    """
    Fifty tasks register and remove five models. Of each model the removal is told last.
    """
    stale: set[str] = set()
    order: list[tuple[str, str]] = []

    def note(changes) -> None:
        order.extend((each.kind, each.reference) for each in changes)
        stale.update(each.reference for each in changes)

    async with opened(database, road, on_change=note) as catalog:

        async def churn(number: int) -> None:
            name = f"m{number % 5}"
            await catalog.register_model(a_model(name))
            await catalog.remove_model(name, "hf")

        await asyncio.gather(*(churn(number) for number in range(50)))
        left = {model.reference for model in await catalog.list_models()}

    assert left == set()
    assert stale == {f"m{number}" for number in range(5)}
    for name in stale:
        kinds = [kind for kind, reference in order if reference == name]
        assert kinds[-1] == "removed"
        # Between two removals the model was registered again.
        assert "removed removed" not in " ".join(kinds)


async def test_a_cancelled_write_that_was_committed_is_told(catalog, seen, database):
    """
    What is told is what is recorded, also of a call whose caller was cancelled.
    """
    for number in range(20):
        task = asyncio.create_task(catalog.register_model(a_model(f"m{number}")))
        for _ in range(number):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await catalog.register_model(a_model("last"))

    rows = {reference for (reference,) in database.run("SELECT reference FROM models")}
    assert {each.reference for each in seen} == rows


async def test_a_write_that_times_out_is_not_told(database, road, seen):
    """
    While another catalog holds the lock, a write fails, and nothing is told of it.
    """
    async with (
        open_catalog(database.target) as other,
        opened(database, road, timeout_s=0.2, on_change=seen.extend) as catalog,
    ):
        await other.register_model(a_model("m"))
        async with other.transaction() as inner:
            await inner.update_model("m", "hf", license="mit")
            with pytest.raises(CatalogBusyError):
                await catalog.update_model("m", "hf", license="gpl")

    assert seen == []


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_a_hook_that_raises_breaks_no_write(database, road, caplog, error):
    """
    The write returns and is recorded. The error is logged once.
    """

    def raising(_changes) -> None:
        raise error("of the hook")

    async with opened(database, road, on_change=raising) as catalog:
        await catalog.register_model(a_model("m"))
        await catalog.register_model(a_model("n"))
        assert await catalog.count_models() == 2

    records = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert [each.model_catalog_hook for each in records] == ["on_change"]


async def test_a_task_that_the_hook_starts_may_write(database, road):
    """
    It is not a part of the transaction whose commit is told.
    """
    tasks = []

    def mirror(changes) -> None:
        if changes[0].version != "copy":
            copy = a_model("m", version="copy")
            tasks.append(asyncio.create_task(catalog.register_model(copy)))

    async with opened(database, road, on_change=mirror) as catalog:
        async with catalog.transaction() as inner:
            await inner.register_model(a_model("m"))
        (task,) = tasks
        await task

        assert await catalog.count_models() == 2


async def test_the_hook_is_called_in_the_thread_of_the_loop(database, road):
    """
    No lock is needed in a hook.
    """
    threads = set()
    note = threads.add
    async with opened(database, road, on_change=lambda _: note(threading.get_ident())) as catalog:
        await catalog.register_model(a_model("m"))
        async with catalog.transaction() as inner:
            await inner.register_model(a_model("n"))

    assert threads == {threading.get_ident()}


LINES = [
    json.dumps({"reference": f"m{number}", "provider": "hf", "local_path": "/imported"})
    for number in range(250)
]


async def test_an_import_is_told_after_its_commit(catalog, seen):
    """
    An import of several pages tells of each model; one that is rolled back tells of none.
    """
    broken = json.dumps({"reference": "x", "provider": "hf", "local_path": "/a\u0000b"})
    with pytest.raises(InvalidImportError):
        await catalog.import_catalog(io.StringIO(HEADER + "\n".join([*LINES, broken])))
    assert seen == []

    result = await catalog.import_catalog(io.StringIO(HEADER + "\n".join(LINES)))
    assert (result.written, len(seen)) == (250, 250)
    assert {each.kind for each in seen} == {"registered"}

    seen.clear()
    await catalog.import_catalog(io.StringIO(HEADER + "\n".join(LINES)), "keep")
    assert seen == []


@pytest.mark.slow
async def test_many_changes_are_told_in_parts(database, monkeypatch):
    """
    A call of the hook has at most 1,000 changes. Others wait for the commit in a temporary file.
    """
    monkeypatch.setattr(hooks, "_MAX_IN_MEMORY", 500)
    parts = []
    async with open_catalog(database.target, on_change=parts.append) as catalog:
        await catalog.register_models(
            {"reference": f"m{number}", "provider": "hf", "local_path": "/m"}
            for number in range(2500)
        )

    assert [len(part) for part in parts] == [1000, 1000, 500]
    assert len({each.reference for part in parts for each in part}) == 2500


async def test_the_changes_of_other_catalogs_are_not_told(catalog, seen, database):
    """
    Another catalog, another process and plain SQL are not seen.
    """
    async with open_catalog(database.target) as other:
        await other.register_model(a_model("m"))
    database.run("UPDATE models SET license = 'mit'")

    assert seen == []
    assert await catalog.count_models() == 1


@pytest.fixture
async def factory(database):
    engine = create_async_engine(database.target_url)
    yield async_sessionmaker(engine)
    await engine.dispose()


async def test_a_hosts_session_tells_after_its_commit(factory, seen):
    """
    Over a session of the host, changes are told when the host commits, in several transactions.
    """
    async with factory() as session:
        catalog = ModelCatalog(session, on_change=seen.extend)
        await catalog.register_model(a_model("m"))
        await catalog.register_models([a_model("n")])
        assert seen == []
        await session.commit()
        assert told(seen) == [("registered", "m"), ("registered", "n")]

        await catalog.update_model("m", "hf", license="mit")
        await session.commit()

    assert told(seen)[2:] == [("updated", "m")]


async def test_a_hosts_session_does_not_tell_of_a_rollback(factory, seen):
    """
    A rollback, a close without a commit, and a savepoint that is rolled back tell of nothing.
    """
    async with factory() as session:
        catalog = ModelCatalog(session, on_change=seen.extend)
        await catalog.register_model(a_model("rolled back"))
        await session.rollback()
        nested = await session.begin_nested()
        await catalog.register_model(a_model("undone"))
        await nested.rollback()
        async with session.begin_nested():
            await catalog.register_model(a_model("kept"))
        with pytest.raises(ZeroDivisionError):
            async with catalog.transaction() as inner:
                await inner.register_model(a_model("undone as well"))
                _ = 1 / 0
        await session.commit()
        await catalog.register_model(a_model("closed"))
        await session.close()
        await session.commit()

    assert told(seen) == [("registered", "kept")]


async def test_catalogs_of_one_session_share_its_listeners(factory, seen):
    """
    A service may make a catalog for each request over a session that lives longer.
    """
    async with factory() as session:
        for number in range(3):
            catalog = ModelCatalog(session, on_change=seen.extend)
            await catalog.register_model(a_model(f"m{number}"))
        listeners = len(list(session.sync_session.dispatch.after_commit))
        await session.commit()

    assert listeners == 1
    assert told(seen) == [("registered", f"m{number}") for number in range(3)]


async def test_a_session_on_a_connection_of_the_host_tells_nothing(factory, seen):
    """
    The session does not commit the transaction of the connection, which may be rolled back.
    """
    engine = factory.kw["bind"]
    async with engine.connect() as connection, connection.begin() as transaction:
        async with AsyncSession(connection) as session:
            await ModelCatalog(session, on_change=seen.extend).register_model(a_model("m"))
            await session.commit()
        joined = ModelCatalog(async_sessionmaker(connection), on_change=seen.extend)
        await joined.register_model(a_model("n"))
        async with joined.transaction() as inner:
            await inner.register_model(a_model("o"))
        await transaction.rollback()

    assert seen == []


def test_the_blocking_catalog_tells_of_changes(database, seen):
    """
    `sync.open_catalog` takes the same hook.
    """
    with sync.open_catalog(database.target, on_change=seen.extend) as catalog:
        catalog.register_model(a_model("m"))
        assert told(seen) == [("registered", "m")]

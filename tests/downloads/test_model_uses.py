"""Models in use: they are neither removed nor evicted."""

import asyncio
import logging
import os
import time

import postgres
import psycopg
import pytest
from download_helpers import NAME
from sqlalchemy import Engine, event, make_url, text

from model_catalog import (
    InvalidModelError,
    Model,
    ModelInUseError,
    ModelNotFoundError,
    TransactionError,
    open_catalog,
)
from model_catalog.downloads import list_users, use_model


@pytest.fixture
async def model(catalog):
    return await catalog.register_model(
        Model(reference="org/tiny", provider="hf", version="v1", local_path="/m")
    )


async def test_a_model_in_use_is_not_removed(catalog, database, model):
    """
    Nothing of it is deleted. When the last of two uses has ended, it can be removed.
    """
    await catalog.tag_model(model, "chat")
    async with use_model(catalog, NAME), use_model(catalog, model):
        with pytest.raises(ModelInUseError, match=f"used by process {os.getpid()} on") as caught:
            await catalog.remove_model(NAME)
        users = await list_users(catalog, NAME)
        tags = (await catalog.get_model(NAME)).tags
    removed = await catalog.remove_model(NAME)

    assert caught.value.model == NAME
    assert [user.ref for user in users] == [model.ref] * 2
    assert tags == ("chat",)
    assert removed
    assert database.run("SELECT count(*) FROM model_uses") == [(0,)]


async def test_a_use_counts_and_sets_the_time_of_the_last_use(catalog, model):
    """
    `record_use` need not be called.
    """
    before = time.time() - 1
    async with use_model(catalog, NAME) as used:
        pass
    after = await catalog.get_model(NAME)

    assert (used.id, used.use_count, after.use_count) == (model.id, 1, 1)
    assert used.last_used_at.timestamp() >= before


async def test_a_use_ends_when_the_block_raises_or_is_cancelled(catalog, database, model):
    """
    No row is left.
    """
    entered = asyncio.Event()

    async def hold():
        async with use_model(catalog, NAME):
            entered.set()
            await asyncio.Event().wait()

    with pytest.raises(RuntimeError):
        async with use_model(catalog, NAME):
            raise RuntimeError
    task = asyncio.create_task(hold())
    await entered.wait()
    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled()
    assert database.run("SELECT count(*) FROM model_uses") == [(0,)]


async def test_a_use_that_has_expired_protects_no_more(catalog, database, model):
    """
    Its process was killed. The row goes with the model.
    """
    now_ms = int(time.time() * 1000)
    database.run(
        "INSERT INTO model_uses VALUES ('t', ?, 'h', 1, ?, ?, ?)",
        *(model.id, now_ms - 90_000, now_ms - 90_000, now_ms - 60_000),
    )

    users = await list_users(catalog)
    removed = await catalog.remove_model(NAME)

    assert users == []
    assert removed


async def test_the_database_itself_refuses_to_delete_a_model_in_use(database, model):
    """
    A program with plain SQL cannot delete it either, on PostgreSQL.
    """
    if database.path is not None:
        pytest.skip("SQLite enforces foreign keys only on connections that ask for it")
    async with open_catalog(database.target) as catalog, use_model(catalog, NAME):
        with pytest.raises(Exception, match="model_uses"):
            database.run("DELETE FROM models")


async def test_a_model_whose_row_is_gone_is_reported_in_the_log(catalog, database, model, caplog):
    """
    The block goes on. Its lease could not be renewed.
    """
    with caplog.at_level(logging.WARNING):
        async with use_model(catalog, NAME, lease_s=1):
            database.run("DELETE FROM model_uses")
            database.run("DELETE FROM models")
            async with asyncio.timeout(20):
                while not caplog.records:
                    await asyncio.sleep(0.01)

    assert "the use of hf:org/tiny@v1 could not be renewed" in caplog.text


async def test_a_use_whose_row_was_lost_is_recorded_again(catalog, database, model):
    """
    The process was stopped for so long that another one deleted its use.
    """
    async with use_model(catalog, NAME, lease_s=1):
        database.run("DELETE FROM model_uses")
        async with asyncio.timeout(20):
            while not await list_users(catalog):
                await asyncio.sleep(0.01)
        with pytest.raises(ModelInUseError):
            await catalog.remove_model(NAME)


async def test_a_model_that_is_not_recorded_cannot_be_used(catalog):
    """
    Neither can one in a transaction, or with a lease that is too short.
    """
    with pytest.raises(ModelNotFoundError):
        async with use_model(catalog, NAME):
            pass
    with pytest.raises(TransactionError, match="outside of transaction"):
        async with catalog.transaction() as inner, use_model(inner, NAME):
            pass
    with pytest.raises(InvalidModelError, match="lease_s"):
        async with use_model(catalog, NAME, lease_s=0):
            pass
    with pytest.raises(ModelNotFoundError):
        await list_users(catalog, NAME)


async def test_a_model_in_a_host_session_is_not_removed_while_it_is_used(database, model):
    """
    The host's transaction can go on.
    """
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    from model_catalog import ModelCatalog

    engine = create_async_engine(database.target_url)
    async with (
        open_catalog(database.target) as catalog,
        use_model(catalog, NAME),
        AsyncSession(engine) as session,
    ):
        with pytest.raises(ModelInUseError):
            await ModelCatalog(session).remove_model(NAME)
        await session.execute(text("SELECT 1"))
        await session.commit()
    await engine.dispose()

    assert database.run("SELECT count(*) FROM models") == [(1,)]


async def test_the_process_of_a_use_that_is_just_beginning_is_named(database, model):
    """
    Its transaction has not ended when the removal begins. SQLite has one writer at a time.
    """
    if database.path is not None:
        pytest.skip("a write transaction of SQLite is alone")
    async with open_catalog(database.target) as catalog:
        with psycopg.connect(postgres.dsn(make_url(database.target_url))) as connection:
            connection.execute(
                "INSERT INTO model_uses SELECT 't', id, 'other-host', 7, 0, 0, 9000000000000"
                " FROM models"
            )
            removal = asyncio.create_task(catalog.remove_model(model))
            await asyncio.wait([removal], timeout=0.1)
            connection.commit()
            with pytest.raises(ModelInUseError, match="process 7 on other-host"):
                await removal


async def test_a_model_that_is_removed_while_a_use_begins_is_not_found(database):
    """
    It was registered after the use has locked the rows of its reference.
    """
    if database.path is not None:
        pytest.skip("a write transaction of SQLite is alone")
    steps = []

    def change(connection, cursor, statement, *_):
        if "INSERT INTO model_uses" in statement and len(steps) == 1:
            steps.append("removed")
            database.run("DELETE FROM models")

    def register(connection, cursor, statement, *_):
        if "FOR UPDATE" in statement and not steps:
            steps.append("registered")
            database.run(
                "INSERT INTO models (reference, provider, version, local_path)"
                " VALUES ('new', 'hf', '', '/m')"
            )

    async with open_catalog(database.target) as catalog:
        event.listen(Engine, "before_cursor_execute", change)
        event.listen(Engine, "after_cursor_execute", register)
        try:
            with pytest.raises(ModelNotFoundError):
                async with use_model(catalog, "hf:new"):
                    pass
        finally:
            event.remove(Engine, "before_cursor_execute", change)
            event.remove(Engine, "after_cursor_execute", register)

    assert steps == ["registered", "removed"]

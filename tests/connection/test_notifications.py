"""Notifications of a PostgreSQL server wake up tasks that wait."""

import asyncio
import gc

import postgres
import pytest
from conftest import shared_connection

from model_catalog import open_catalog
from model_catalog.repository.model_catalog import executor_of

CHANNEL = "of a test"


@pytest.fixture(params=["asyncpg", "psycopg"])
def url(request, pg_migrated):
    return pg_migrated.set(drivername=f"postgresql+{request.param}")


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def notify(url):
    shared_connection(postgres.dsn(url)).execute(f'NOTIFY "{CHANNEL}"')


async def test_a_notification_wakes_up_all_tasks_that_wait(url):
    """
    They share one connection, which ends with the last of them.
    """
    async with open_catalog(url) as catalog, asyncio.timeout(20):
        listener = executor_of(catalog).listener(CHANNEL)
        async with listener.listening(), listener.listening():
            await until(lambda: listener.is_listening)
            waiting = [asyncio.create_task(listener.wait(3600)) for _ in range(2)]
            await asyncio.sleep(0)
            notify(url)
            await asyncio.gather(*waiting)
        after = listener.is_listening

    assert not after


async def test_a_connection_that_was_lost_only_ends_the_notifications(url):
    """
    The tasks that wait look for themselves after their time.
    """
    async with open_catalog(url) as catalog:
        listener = executor_of(catalog).listener(CHANNEL)
        async with listener.listening():
            await until(lambda: listener.is_listening)
            shared_connection(postgres.dsn(url)).execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            await until(lambda: not listener.is_listening)
            await listener.wait(0.01)


async def test_a_task_that_is_cancelled_gives_the_connection_back(url):
    """
    The catalog can be closed, and used before that.
    """
    async with open_catalog(url) as catalog:
        listener = executor_of(catalog).listener(CHANNEL)

        async def wait():
            async with listener.listening():
                while True:
                    await listener.wait(3600)

        task = asyncio.create_task(wait())
        await until(lambda: listener.is_listening)
        task.cancel()
        await asyncio.wait([task])

        assert task.cancelled()
        assert not listener.is_listening
        assert await catalog.find_model("hf:not recorded") is None


@pytest.mark.slow
async def test_a_refusal_to_listen_is_not_reported_to_the_event_loop(pg_migrated):
    """
    psycopg raises an error of its own. No task takes it: those that wait look for themselves.
    """
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    async with open_catalog(pg_migrated.set(drivername="postgresql+psycopg")) as catalog:
        listener = executor_of(catalog).listener('a "quoted" name')
        async with listener.listening():
            await asyncio.wait([listener._task])
    del listener, catalog
    gc.collect()

    assert reported == []

"""Downloads of one catalog over a host's sessions in several event loops, at once or in turn."""

import asyncio
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from download_helpers import NAME, Downloader
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

from model_catalog import ModelCatalog, prepare_engine
from model_catalog.downloads import get_or_download


@pytest.fixture
def host_catalog(sqlite_file):
    """A catalog over sessions that a host uses in several event loops."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{sqlite_file}", poolclass=NullPool)
    prepare_engine(engine)
    catalog = ModelCatalog(async_sessionmaker(engine))
    # SQLAlchemy prepares an engine in the loop that connects first.
    asyncio.run(catalog.find_model(NAME))
    return catalog


def test_two_threads_with_a_loop_each_download_once(host_catalog, tmp_path):
    """
    The task in the other loop waits by asking the database, not for an event of the first loop.
    """
    began, release = threading.Event(), threading.Event()
    download = Downloader(tmp_path)

    async def download_slowly(claim):
        began.set()
        await asyncio.to_thread(release.wait, 20)
        return await download(claim)

    async def wait_for_the_other_loop():
        began.wait(20)
        task = asyncio.create_task(get_or_download(host_catalog, NAME, download, timeout_s=5))
        await asyncio.wait([task], timeout=0.1)
        release.set()
        return await task

    with ThreadPoolExecutor() as threads:
        first = threads.submit(
            lambda: asyncio.run(get_or_download(host_catalog, NAME, download_slowly))
        )
        second = threads.submit(lambda: asyncio.run(wait_for_the_other_loop()))
        models = [first.result(), second.result()]

    assert models[0].id == models[1].id
    assert download.count == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine")
def test_a_download_of_a_closed_loop_does_not_stop_the_next_one(
    host_catalog, sqlite_file, tmp_path
):
    """
    The host keeps the task, so the task never ends. Its claim expires.
    """

    async def begin():
        began = asyncio.Event()

        async def download(_claim):
            began.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(get_or_download(host_catalog, NAME, download))
        await began.wait()
        return task

    loop = asyncio.new_event_loop()
    kept = loop.run_until_complete(begin())
    loop.close()
    with sqlite3.connect(sqlite_file) as connection:
        connection.execute("DELETE FROM model_claims")
    connection.close()
    download = Downloader(tmp_path)
    model = asyncio.run(get_or_download(host_catalog, NAME, download, timeout_s=5))

    assert not kept.done()
    assert model.size_bytes
    assert download.count == 1

"""Use counts: exact, in few transactions, with a time that never goes back."""

import asyncio
import multiprocessing
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import postgres
import psycopg
import pytest
from conftest import a_model, moment
from sqlalchemy import event

from model_catalog import (
    CatalogBusyError,
    InvalidModelError,
    ModelNotFoundError,
    TransactionError,
    open_catalog,
)


async def test_record_use_counts_and_sets_the_time(catalog):
    """
    record_use adds to the count and sets last_used_at; finding a model does neither.
    """
    before = await catalog.register_model(a_model("m"))
    await catalog.record_use("m", "hf")
    await catalog.record_use("m", "hf", count=4)
    await catalog.find_model("m", "hf")

    model = await catalog.get_model("m", "hf")

    assert (before.use_count, before.last_used_at) == (0, None)
    assert model.use_count == 5
    assert model.last_used_at >= model.downloaded_at
    assert model.download_count == 1


async def test_read_methods_do_not_write(catalog, database):
    """
    The row of the model is unchanged after every read method.
    """
    await catalog.register_model(a_model("m"))
    await catalog.tag_model("m", "hf", "chat")
    before = database.run("SELECT * FROM models")

    await catalog.find_model("m", "hf")
    await catalog.list_models(search="m", tags=["chat"])
    [model async for model in catalog.iter_models()]
    await catalog.count_models()
    await catalog.stats()
    await catalog.list_tags()
    await catalog.list_aliases()

    assert database.run("SELECT * FROM models") == before


async def test_a_thousand_tasks_count_exactly_in_few_transactions(database):
    """
    None of a thousand concurrent uses is lost, and they share transactions.
    """
    async with open_catalog(database.target) as catalog:
        await catalog.register_models(a_model(f"m{n}") for n in range(3))
        commits = []
        event.listen(catalog._executor._engine, "commit", commits.append)

        await asyncio.gather(*(catalog.record_use(f"m{n % 3}", "hf") for n in range(1000)))

        counts = {model.reference: model.use_count for model in await catalog.list_models()}
    assert counts == {"m0": 334, "m1": 333, "m2": 333}
    assert len(commits) < 20


def use(target, times):
    async def run():
        async with open_catalog(target) as catalog:
            await asyncio.gather(*(catalog.record_use("m", "hf") for _ in range(times)))

    asyncio.run(run())


@pytest.mark.slow
async def test_eight_processes_count_exactly(catalog, database):
    """
    Uses of eight processes add up.
    """
    await catalog.register_model(a_model("m"))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["model_catalog.opening", "asyncpg", "psycopg"])
    users = [context.Process(target=use, args=(database.target, 125)) for _ in range(8)]

    for user in users:
        user.start()
    await asyncio.to_thread(lambda: [user.join() for user in users])

    assert [user.exitcode for user in users] == [0] * 8
    assert (await catalog.get_model("m", "hf")).use_count == 1000


async def test_only_the_caller_with_the_unknown_model_gets_the_error(catalog):
    """
    Calls that share a transaction do not share their errors.
    """
    await catalog.register_model(a_model("m"))

    results = await asyncio.gather(
        *(catalog.record_use(name, "hf") for name in ("m", "nothing", "m")),
        return_exceptions=True,
    )

    assert [type(result) for result in results] == [type(None), ModelNotFoundError, type(None)]
    assert (await catalog.get_model("m", "hf")).use_count == 2


async def test_a_use_is_counted_for_the_given_version(catalog):
    """
    The version is given by name, by alias, or is the newest.
    """
    for number, version in enumerate(("v1", "v2")):
        await catalog.register_model(a_model("m", version=version, downloaded_at=moment(number)))
    await catalog.set_alias("m", "hf", "stable", "v1")

    await catalog.record_use("m", "hf", "v1")
    await catalog.record_use("m", "hf", "stable")
    await catalog.record_use("m", "hf")

    assert {model.version: model.use_count for model in await catalog.list_models()} == {
        "v1": 2,
        "v2": 1,
    }


async def test_a_clock_that_goes_back_does_not_change_last_used_at(catalog, database):
    """
    A use with an earlier time is counted, and last_used_at stays.
    """
    await catalog.register_model(a_model("m"))
    await catalog.record_use("m", "hf")
    database.run("UPDATE models SET last_used_at = 32503680000")

    await catalog.record_use("m", "hf")

    assert database.run("SELECT use_count, last_used_at FROM models") == [(2, 32503680000)]


async def test_use_count_stops_before_it_overflows(catalog, database):
    """
    2**63 - 1 is the greatest count on both databases.
    """
    await catalog.register_model(a_model("m"))
    database.run("UPDATE models SET use_count = 9223372036854775806")

    await catalog.record_use("m", "hf", count=5)

    assert (await catalog.get_model("m", "hf")).use_count == 2**63 - 1


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "1", None, 2**31])
@pytest.mark.slow_with("asyncpg")
async def test_an_invalid_count_is_refused(catalog, count):
    """
    A count is an int of at least 1.
    """
    await catalog.register_model(a_model("m"))

    with pytest.raises(InvalidModelError, match="count"):
        await catalog.record_use("m", "hf", count=count)

    assert (await catalog.get_model("m", "hf")).use_count == 0


async def test_record_use_of_the_outer_catalog_in_its_transaction_is_refused(catalog):
    """
    The outer catalog would wait for its own transaction; the inner one counts within it.
    """
    await catalog.register_model(a_model("m"))

    async with catalog.transaction() as inner:
        with pytest.raises(TransactionError):
            await catalog.record_use("m", "hf")
        await inner.record_use("m", "hf")

    assert (await catalog.get_model("m", "hf")).use_count == 1


async def test_all_uses_that_were_not_cancelled_are_counted(catalog):
    """
    A cancelled use may or may not be counted; other callers are not affected.
    """
    await catalog.register_model(a_model("m"))
    tasks = [asyncio.create_task(catalog.record_use("m", "hf")) for _ in range(100)]
    for _ in range(3):
        await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()

    results = await asyncio.gather(*tasks, return_exceptions=True)
    await catalog.record_use("m", "hf")

    done = sum(result is None for result in results)
    assert done >= 50
    assert done + 1 <= (await catalog.get_model("m", "hf")).use_count <= 101


async def test_a_use_that_is_cancelled_in_the_queue_is_not_counted(catalog):
    """
    A call that is cancelled before its batch starts is left out of the batch.
    """
    await catalog.register_model(a_model("m"))
    first = asyncio.create_task(catalog.record_use("m", "hf"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second = asyncio.create_task(catalog.record_use("m", "hf"))
    await asyncio.sleep(0)

    second.cancel()
    await first
    with pytest.raises(asyncio.CancelledError):
        await second

    assert (await catalog.get_model("m", "hf")).use_count == 1


@pytest.mark.slow
def test_a_program_that_records_uses_exits_without_warnings(sqlite_migrated, tmp_path):
    """
    It leaves no task, no thread and no warning.
    """
    script = (
        "import asyncio, sys\n"
        "from model_catalog import Model, open_catalog\n"
        "async def main():\n"
        "    async with open_catalog(sys.argv[1]) as catalog:\n"
        "        model = Model(reference='m', provider='p', local_path='/m')\n"
        "        await catalog.register_model(model)\n"
        "        await asyncio.gather(*(catalog.record_use('m', 'p') for _ in range(50)))\n"
        "        task = asyncio.create_task(catalog.record_use('m', 'p'))\n"
        "        await asyncio.sleep(0)\n"
        "        task.cancel()\n"
        "        await asyncio.wait([task])\n"
        "asyncio.run(main())\n"
    )
    shutil.copy(sqlite_migrated, tmp_path / "c.db")
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", script, tmp_path / "c.db"]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
async def test_uses_that_wait_for_another_writer_end_at_their_own_timeouts(sqlite_file):
    """
    A hundred uses, begun one after another, end when their own time is up, and record nothing.
    """

    async def timed_use():
        start = time.monotonic()
        with pytest.raises(CatalogBusyError):
            await catalog.record_use("m", "hf")
        return time.monotonic() - start

    async with open_catalog(sqlite_file, timeout_s=0.4) as catalog:
        await catalog.register_model(a_model("m"))
        with closing(sqlite3.connect(sqlite_file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            uses = []
            for _ in range(100):
                uses.append(asyncio.create_task(timed_use()))
                await asyncio.sleep(0.002)
            durations_s = await asyncio.gather(*uses)

        assert (await catalog.get_model("m", "hf")).use_count == 0
    assert max(durations_s) < 0.4 + 0.5


@pytest.mark.parametrize("backend", ["asyncpg", "psycopg"])
async def test_locked_row_delays_only_its_own_uses(database):
    """
    While another program has locked a model, uses of other models are recorded at once.
    """
    async with open_catalog(database.target) as catalog:
        await catalog.register_models([a_model("locked"), a_model("free")])
        with closing(psycopg.connect(postgres.dsn(database.url))) as other:
            other.execute("SELECT FROM models WHERE reference = 'locked' FOR UPDATE")
            blocked = [asyncio.create_task(catalog.record_use("locked", "hf")) for _ in range(50)]
            for _ in range(10):
                async with asyncio.timeout(2):
                    await catalog.record_use("free", "hf")
            ended = sum(use.done() for use in blocked)

        await asyncio.gather(*blocked)
        counts = {model.reference: model.use_count for model in await catalog.list_models()}
    assert ended == 0
    assert counts == {"locked": 50, "free": 10}


@pytest.mark.parametrize("backend", ["asyncpg"])
async def test_locked_newest_version_is_not_passed_over(database):
    """
    A use of the newest version waits for it, and is not recorded for an older one.
    """
    async with open_catalog(database.target) as catalog:
        for number, version in enumerate(("v1", "v2")):
            await catalog.register_model(
                a_model("m", version=version, downloaded_at=moment(number))
            )
        with closing(psycopg.connect(postgres.dsn(database.url))) as other:
            other.execute("SELECT FROM models WHERE version = 'v2' FOR UPDATE")
            use = asyncio.create_task(catalog.record_use("m", "hf"))
            await asyncio.wait([use], timeout=0.05)

        await use
        counts = {model.version: model.use_count for model in await catalog.list_models()}
    assert counts == {"v1": 0, "v2": 1}

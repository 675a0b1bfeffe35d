"""Uses: counted without loss, in few transactions, and never back in time."""

import asyncio
import multiprocessing
import shutil
import subprocess
import sys

import pytest
from conftest import a_model, moment
from sqlalchemy import event

from model_catalog import (
    InvalidModelError,
    ModelNotFoundError,
    TransactionError,
    open_catalog,
)


async def test_a_use_is_counted_and_dated(catalog):
    """
    record_use adds to the count and remembers the time; finding a model does neither.
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


async def test_reading_never_writes(catalog, database):
    """
    Of all that reads, nothing leaves a trace in the database.
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
    None of a thousand uses at once is lost, and they share their commits.
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


async def test_eight_processes_count_exactly(catalog, database):
    """
    Uses of several processes add up.
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


async def test_one_unknown_model_among_many_is_told_to_its_caller_alone(catalog):
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


async def test_a_use_is_of_the_version_that_is_named(catalog):
    """
    By its name, by an alias, or the newest.
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


async def test_a_clock_that_goes_back_does_not_move_the_last_use_back(catalog, database):
    """
    A use that is dated before the last one counts and changes no date.
    """
    await catalog.register_model(a_model("m"))
    await catalog.record_use("m", "hf")
    database.run("UPDATE models SET last_used_at = 32503680000")

    await catalog.record_use("m", "hf")

    assert database.run("SELECT use_count, last_used_at FROM models") == [(2, 32503680000)]


async def test_a_count_stands_still_before_it_overflows(catalog, database):
    """
    2**63 - 1 uses are as many as can be counted, on both databases.
    """
    await catalog.register_model(a_model("m"))
    database.run("UPDATE models SET use_count = 9223372036854775806")

    await catalog.record_use("m", "hf", count=5)

    assert (await catalog.get_model("m", "hf")).use_count == 2**63 - 1


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "1", None, 2**31])
async def test_a_count_that_is_none_is_refused(catalog, count):
    """
    A use happens at least once, and a whole number of times.
    """
    await catalog.register_model(a_model("m"))

    with pytest.raises(InvalidModelError, match="count"):
        await catalog.record_use("m", "hf", count=count)

    assert (await catalog.get_model("m", "hf")).use_count == 0


async def test_a_use_inside_ones_own_transaction_is_refused_at_once(catalog):
    """
    The outer catalog would wait for the transaction; the inner one counts within it.
    """
    await catalog.register_model(a_model("m"))

    async with catalog.transaction() as inner:
        with pytest.raises(TransactionError):
            await catalog.record_use("m", "hf")
        await inner.record_use("m", "hf")

    assert (await catalog.get_model("m", "hf")).use_count == 1


async def test_cancelled_uses_are_counted_or_not_and_the_rest_are(catalog):
    """
    Whoever is cancelled may or may not have been counted; nobody else is hurt.
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


async def test_a_use_whose_caller_is_gone_before_it_is_written_is_not(catalog):
    """
    A call that is cancelled while it waits for its turn is left out of the write.
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


def test_nothing_is_left_to_say_at_exit(sqlite_migrated, tmp_path):
    """
    A program that records uses and ends leaves no task, thread or warning behind.
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

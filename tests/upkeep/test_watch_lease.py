"""Several watches of one database: one works at a time."""

import asyncio
import logging
import subprocess
import sys
import time
from contextlib import AsyncExitStack

import pytest
from conftest import a_model
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import (
    ModelCatalog,
    downgrade,
    open_catalog,
    prepare_engine,
    schema_state,
    upgrade,
)
from model_catalog.upkeep import register_path, watch

SHORT_S = 0.02
SELECT_LEASE = "SELECT holder, renewed_at_ms, expires_at_ms FROM model_catalog_leases"


async def until(condition, timeout_s=20):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def insert_lease(database, renewed_in_s, expires_in_s):
    now_ms = time.time() * 1000
    database.run(
        "INSERT INTO model_catalog_leases"
        " (name, holder, renewed_at_ms, expires_at_ms) VALUES ('watch', 'another process', ?, ?)",
        int(now_ms + renewed_in_s * 1000),
        int(now_ms + expires_in_s * 1000),
    )


async def test_one_of_three_watches_works_and_another_takes_over(database):
    """
    The others wait. When the block of the first ends, one of them continues.
    """
    async with AsyncExitStack() as stack:
        catalogs = [
            await stack.enter_async_context(open_catalog(database.target)) for _ in range(3)
        ]
        first_block = AsyncExitStack()
        first = await first_block.enter_async_context(watch(catalogs[0], interval_s=SHORT_S))
        await until(lambda: first.check_count)
        others = [
            await stack.enter_async_context(watch(catalog, interval_s=SHORT_S))
            for catalog in catalogs[1:]
        ]
        await until(lambda: first.check_count >= 5)
        waiting = [report.check_count for report in others]
        await first_block.aclose()
        await until(lambda: any(report.check_count >= 2 for report in others))
        working = sorted(report.is_active for report in others)
        counts = sorted(report.check_count for report in others)

    assert waiting == [0, 0]
    assert working == [False, True]
    assert counts[0] == 0
    assert database.run(SELECT_LEASE) == []


LEASES = {
    "expired": (-90, -30),
    "in the future, because the clock was set back": (3600, 3660),
}


@pytest.mark.parametrize(("renewed", "expires"), LEASES.values(), ids=LEASES)
async def test_a_lease_that_is_not_valid_is_taken_at_once(catalog, database, renewed, expires):
    """
    It is what a process left behind that was killed.
    """
    insert_lease(database, renewed, expires)

    async with watch(catalog, interval_s=3600) as watching:
        await until(lambda: watching.check_count)
        ((holder, renewed_at_ms, expires_at_ms),) = database.run(SELECT_LEASE)

    assert holder != "another process"
    assert expires_at_ms - renewed_at_ms == 60_000


async def test_a_valid_lease_is_taken_when_it_expires(catalog, database):
    """
    A watch waits for that time, and not for its whole interval.
    """
    insert_lease(database, -1, 0.3)
    began_at = time.monotonic()

    async with watch(catalog, interval_s=3600) as watching:
        await until(lambda: watching.check_count)

    assert 0.2 < time.monotonic() - began_at < 10


async def test_a_watch_that_sleeps_or_waits_holds_nothing(catalog, database):
    """
    Other programs write at once, and no transaction is open.
    """
    events = []
    options = {"interval_s": 3600, "scrub_per_day": 0}
    async with watch(catalog, **options, on_event=events.append) as working:
        # Otherwise the second watch may get the lease.
        await until(lambda: events)
        async with open_catalog(database.target) as second, watch(second, **options):
            # In a thread, so that what the second watch has begun can end.
            await asyncio.to_thread(database.assert_no_lock)
            assert working.is_active


async def test_a_watch_over_the_sessions_of_a_host_takes_part(database):
    """
    It uses the lease of the same database, and leaves nothing behind.
    """
    engine = create_async_engine(database.target_url)
    prepare_engine(engine)
    hosted = ModelCatalog(async_sessionmaker(engine))

    async with open_catalog(database.target) as catalog:
        async with watch(hosted, interval_s=SHORT_S) as working:
            await until(lambda: working.check_count)
            async with watch(catalog, interval_s=SHORT_S) as waiting:
                await until(lambda: working.check_count >= 5)
        assert waiting.check_count == 0
    await engine.dispose()

    assert database.run(SELECT_LEASE) == []


@pytest.mark.slow
async def test_a_watch_of_a_closed_database_still_ends(tmp_path):
    """
    The lease that cannot be released expires by itself.
    """
    async with open_catalog(tmp_path / "catalog.db") as catalog:
        block = watch(catalog, interval_s=3600)
        watching = await block.__aenter__()
        await until(lambda: watching.check_count)

    await block.__aexit__(None, None, None)


@pytest.mark.slow
async def test_a_watch_stops_when_its_lease_was_taken(catalog, database, caplog):
    """
    As after a suspension of the machine. It waits then, and says so.
    """
    caplog.set_level(logging.INFO, "model_catalog.upkeep")

    async with watch(catalog, interval_s=SHORT_S) as watching:
        await until(lambda: watching.check_count)
        database.run("UPDATE model_catalog_leases SET holder = 'another process'")
        await until(lambda: not watching.is_active)
        count = watching.check_count
        await asyncio.sleep(5 * SHORT_S)
        assert watching.check_count == count
        database.run("DELETE FROM model_catalog_leases")
        await until(lambda: watching.is_active)

    assert "another process watches the catalog now" in caplog.messages


PROGRAM = """
import asyncio, sys
from model_catalog import open_catalog
from model_catalog.upkeep import watch

async def main():
    async with open_catalog(sys.argv[1]) as catalog, watch(catalog, interval_s=0.1) as watching:
        while not watching.check_count:
            await asyncio.sleep(0.01)
        print("working", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_another_process_takes_over_from_a_killed_one(catalog, database):
    """
    With a short interval after two seconds at the latest, and not before.
    """
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, database.target], stdout=subprocess.PIPE
    ) as process:
        await asyncio.to_thread(process.stdout.readline)
        async with watch(catalog, interval_s=0.1) as watching:
            await asyncio.sleep(0.3)
            before = watching.check_count
            process.kill()
            killed_at = time.monotonic()
            await until(lambda: watching.check_count)
            waited_s = time.monotonic() - killed_at

    assert before == 0
    assert waited_s < 5


async def test_what_is_recorded_is_not_logged_again(on_sqlite, tmp_path, caplog):
    """
    Neither by the next check, nor by the scrub, nor after a restart of the service.
    """
    gone, damaged = tmp_path / "gone.bin", tmp_path / "damaged.bin"
    for path in (gone, damaged):
        path.write_bytes(b"weights")
        await register_path(on_sqlite, path, provider="hf", reference=path.stem, digest=True)
    gone.unlink()
    damaged.write_bytes(b"WEIGHTS")

    for _ in range(2):
        async with watch(on_sqlite, interval_s=SHORT_S, scrub_per_day=1) as watching:
            await until(lambda: watching.check_count >= 4)

    messages = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert sorted(message.partition(":")[2].split()[:3] for message in messages) == [
        ["damaged@", "is", "changed:"],
        ["damaged@", "is", "mismatch:"],
        ["gone@", "is", "missing:"],
    ]


async def test_another_reason_is_logged(on_sqlite, tmp_path, caplog):
    """
    A model that stays changed for another reason differs from what is recorded.
    """
    path = tmp_path / "m.bin"
    path.write_bytes(b"weights")
    await register_path(on_sqlite, path, provider="hf", reference="m")

    async with watch(on_sqlite, interval_s=SHORT_S, scrub_per_day=0) as watching:
        for content in (b"more weights", b"even more weights"):
            path.write_bytes(content)
            count = watching.check_count
            await until(lambda at=count: watching.check_count >= at + 3)

    messages = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert len(messages) == len(set(messages)) == 2


async def test_a_downgrade_drops_the_leases_and_keeps_the_models(empty):
    """
    Up, down and up again, with rows.
    """
    async with open_catalog(empty.target) as catalog:
        await catalog.register_model(a_model("m"))
    insert_lease(empty, -1, 60)

    await downgrade(empty.target, "0015")
    without = empty.tables
    await upgrade(empty.target)

    assert "model_catalog_leases" not in without
    assert empty.run(SELECT_LEASE) == []
    assert empty.run("SELECT reference FROM models") == [("m",)]
    current, head = await schema_state(empty.target)
    assert current == head

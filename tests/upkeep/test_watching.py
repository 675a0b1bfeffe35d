"""The periodic look after a catalog, as a service runs it beside its work."""

import asyncio
import logging
import sqlite3
import time
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from conftest import a_model

from model_catalog import CatalogError, FileState, InvalidModelError, open_catalog
from model_catalog.upkeep import CheckReport, VerifiedModel, register_path, watch
from model_catalog.upkeep.watcher import _DAY_S, WatchReport, _Watcher

NAME = ("m", "local")
SHORT_S = 0.02
MIB = 1024 * 1024


@pytest.fixture
def store(tmp_path):
    """A folder of models."""
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


class Heard:
    """What a watch told of, and the waiting for it."""

    def __init__(self):
        self.events = []
        self._news = asyncio.Event()

    def __call__(self, event):
        self.events.append(event)
        self._news.set()

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    async def until(self, kind, count=1):
        async with asyncio.timeout(20):
            while len(self.of(kind)) < count:
                self._news.clear()
                await self._news.wait()


async def recorded(catalog, path, reference="m", **options):
    return (
        await register_path(catalog, path, provider="local", reference=reference, **options)
    ).model


def a_file(folder, name="m.bin", size_bytes=100):
    path = folder / name
    path.write_bytes(name[:1].encode() * size_bytes)
    return path


async def test_it_checks_at_once_and_again_and_again(catalog, store):
    """
    The first check does not wait for the interval, and what it finds is recorded and kept.
    """
    path = a_file(store)
    await recorded(catalog, path)
    path.unlink()
    heard = Heard()

    async with watch(catalog, interval_s=3600, on_event=heard) as watching:
        await heard.until(CheckReport)
        assert watching.check_count == 1
        assert watching.last.counts == {FileState.MISSING: 1}
    async with watch(catalog, interval_s=SHORT_S, on_event=heard) as watching:
        await heard.until(CheckReport, 4)

    assert watching.check_count >= 3
    assert (await catalog.get_model(*NAME)).state is FileState.MISSING


async def test_it_ends_with_the_block(on_sqlite, store):
    """
    No task is left, and what the block raises is what is raised.
    """
    before = asyncio.all_tasks()
    with pytest.raises(LookupError, match="the host's own"):
        async with watch(on_sqlite, interval_s=SHORT_S):
            raise LookupError("the host's own")

    assert asyncio.all_tasks() == before


async def test_it_stops_at_once_in_the_middle_of_a_file(on_sqlite, store):
    """
    A file that would be hashed for minutes is no reason to wait at a shutdown.
    """
    path = store / "m.bin"
    with path.open("wb") as file:
        file.truncate(64 * 1024 * MIB)
    await recorded(on_sqlite, path)
    heard = Heard()
    async with watch(on_sqlite, on_event=heard):
        await heard.until(CheckReport)
        # The hashing has its disk's turn as soon as the loop is free.
        while not is_open(path):
            await asyncio.sleep(0.01)
        leaving_at = time.monotonic()

    assert time.monotonic() - leaving_at < 1
    assert (await on_sqlite.get_model(*NAME)).verified_at is None


def is_open(path):
    """Whether this process has a file open."""
    descriptors = Path("/proc/self/fd").iterdir()
    return any(each.exists() and each.samefile(path) for each in descriptors)


async def test_a_host_that_is_cancelled_meanwhile_is_heard(on_sqlite, store):
    """
    The end of the block swallows no cancellation of the task that it is in.
    """

    async def serve():
        async with watch(on_sqlite):
            # Comes as soon as the block waits for the end of its own task.
            asyncio.get_running_loop().call_soon(serving.cancel)

    serving = asyncio.create_task(serve())

    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_errors_are_survived_logged_and_told(on_sqlite, tmp_path, store, caplog):
    """
    A table that is away for a while ends no watch: each failure is logged and told, and the next
    check that can be made is.
    """
    await recorded(on_sqlite, a_file(store), digest=True)
    heard = Heard()
    with closing(sqlite3.connect(tmp_path / "catalog.db")) as raw:
        raw.execute("ALTER TABLE models RENAME TO away")
        async with watch(
            on_sqlite, interval_s=SHORT_S, scrub_per_day=1, on_event=heard
        ) as watching:
            await heard.until(CatalogError, 3)
            raw.execute("ALTER TABLE away RENAME TO models")
            await heard.until(CheckReport)

    assert watching.failure_count >= 3
    assert watching.last.counts == {FileState.PRESENT: 1}
    messages = [record.getMessage() for record in caplog.records]
    assert any("the watch continues" in message for message in messages)


async def test_what_is_not_as_recorded_is_a_warning(on_sqlite, store, caplog):
    """
    With the name of the model, its state and the reason.
    """
    path = a_file(store)
    await recorded(on_sqlite, path)
    path.unlink()
    heard = Heard()

    async with watch(on_sqlite, on_event=heard, scrub_per_day=0):
        await heard.until(CheckReport)

    (record,) = (each for each in caplog.records if each.name.startswith("model_catalog"))
    assert record.levelno == logging.WARNING
    assert "missing: " in record.getMessage()
    assert "m.bin" in record.getMessage()


async def test_a_callback_that_raises_ends_nothing(on_sqlite, caplog):
    """
    What is wrong in the host's own code is logged with its trace, and the next event is told.
    """
    heard = Heard()

    def fail(event):
        heard(event)
        raise ZeroDivisionError

    async with watch(on_sqlite, interval_s=SHORT_S, on_event=fail):
        await heard.until(CheckReport, 3)

    (first, *_) = (record for record in caplog.records if record.exc_info)
    assert first.exc_info[0] is ZeroDivisionError
    assert "on_event raised an error" in first.getMessage()


async def test_damage_is_found_by_the_scrub(catalog, store):
    """
    What the status of a file does not tell is read in its turn, and told.
    """
    path = a_file(store)
    await recorded(catalog, path, digest=True)
    path.write_bytes(b"x" * 100)
    heard = Heard()

    async with watch(catalog, on_event=heard, scrub_per_day=1) as watching:
        await heard.until(VerifiedModel)

    (found,) = heard.of(VerifiedModel)
    assert found.verdict == "mismatch"
    assert watching.verified_bytes == 100
    assert await catalog.count_models(damaged=True) == 1


async def test_nothing_is_read_where_nothing_is_to_be_read(on_sqlite, store):
    """
    A part of 0 is no scrub at all.
    """
    await recorded(on_sqlite, a_file(store))
    heard = Heard()

    async with watch(on_sqlite, interval_s=SHORT_S, scrub_per_day=0, on_event=heard) as watching:
        await heard.until(CheckReport, 3)

    assert watching.verified_bytes == 0
    assert heard.of(VerifiedModel) == []


async def test_the_scrub_reads_its_part_of_each_day_and_no_more(on_sqlite, store):
    """
    Of 100 files, some of them one model, a tenth is read a day: what a file was too long is made up
    for by waiting, and what was not read for a week is not all read in the eighth day's first hour.
    """
    for number in range(40):
        await recorded(on_sqlite, a_file(store, f"{number}"), f"{number}", digest=True)
    folder = store / "folder"
    folder.mkdir()
    for number in range(60):
        a_file(folder, f"{number:02}.bin")
    await recorded(on_sqlite, folder, "folder", digest=True)
    seen = WatchReport()
    watcher = _Watcher(on_sqlite, [], 0.1, None, seen)
    by_hour = []
    for _ in range(72):
        # An hour that went by, for the only clock it has is how long ago the last scrub was.
        watcher._allowance_at -= _DAY_S / 24
        before = seen.verified_bytes
        await watcher._scrub()
        by_hour.append(seen.verified_bytes - before)

    assert 3 * 1000 - 100 <= seen.verified_bytes <= 3 * 1000 + 100
    assert max(by_hour) <= 200
    watcher._allowance_at -= 7 * _DAY_S
    before = seen.verified_bytes
    await watcher._scrub()
    assert seen.verified_bytes - before <= 1000


@pytest.mark.parametrize(
    "options",
    [
        {"interval_s": 0},
        {"interval_s": -1},
        {"interval_s": float("nan")},
        {"interval_s": float("inf")},
        {"interval_s": "60"},
        {"interval_s": True},
        {"interval_s": None},
        {"scrub_per_day": -0.1},
        {"scrub_per_day": 1.5},
        {"scrub_per_day": float("nan")},
    ],
    ids=str,
)
async def test_an_interval_that_is_none_is_refused(on_sqlite, options):
    """
    Before the block begins.
    """
    with pytest.raises(InvalidModelError, match=r"interval_s|scrub_per_day"):
        async with watch(on_sqlite, **options):
            pytest.fail("the block began")


async def test_services_that_start_together_do_not_stay_together(on_sqlite, monkeypatch):
    """
    Each wait is the interval, give or take a tenth.
    """
    waits = []
    sleep = asyncio.sleep

    async def listen(delay_s):
        waits.append(delay_s)
        await sleep(0)

    heard = Heard()
    monkeypatch.setattr("model_catalog.upkeep.watcher.asyncio.sleep", listen)
    async with watch(on_sqlite, interval_s=100.0, on_event=heard):
        await heard.until(CheckReport, 8)

    assert all(90 <= wait_s <= 110 for wait_s in waits)
    assert len(set(waits)) == len(waits)


async def test_a_service_watches_for_as_long_as_it_lives(store, tmp_path):
    """
    A lifespan opens the catalog, watches, and serves; a request sees what the watch found.
    """
    heard = Heard()

    @asynccontextmanager
    async def lifespan(app):
        async with (
            open_catalog(tmp_path / "catalog.db") as catalog,
            watch(catalog, interval_s=SHORT_S, roots=[store], on_event=heard) as watching,
        ):
            await catalog.register_model(a_model(local_path=str(store / "gone")))
            yield {"catalog": catalog, "watching": watching}

    a_file(store)
    async with lifespan(None) as state:
        while await state["catalog"].count_models(state=FileState.MISSING) == 0:
            await asyncio.sleep(0)

    assert state["watching"].failure_count == 0

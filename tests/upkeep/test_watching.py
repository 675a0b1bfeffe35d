"""Watch a catalog in the background, as a service does."""

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


class EventRecorder:
    """Records the events of a watch, and waits for them."""

    def __init__(self):
        self.events = []
        self._changed = asyncio.Event()

    def __call__(self, event):
        self.events.append(event)
        self._changed.set()

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    async def until(self, kind, count=1):
        async with asyncio.timeout(20):
            while len(self.of(kind)) < count:
                self._changed.clear()
                await self._changed.wait()


async def register(catalog, path, reference="m", **options):
    return (
        await register_path(catalog, path, provider="local", reference=reference, **options)
    ).model


def create_file(folder, name="m.bin", size_bytes=100):
    path = folder / name
    path.write_bytes(name[:1].encode() * size_bytes)
    return path


async def test_a_watch_checks_immediately_and_at_each_interval(catalog, store):
    """
    The first check does not wait for the interval. Its result is recorded and kept in the report.
    """
    path = create_file(store)
    await register(catalog, path)
    path.unlink()
    events = EventRecorder()

    async with watch(catalog, interval_s=3600, on_event=events) as watching:
        await events.until(CheckReport)
        assert watching.check_count == 1
        assert watching.last.counts == {FileState.MISSING: 1}
    async with watch(catalog, interval_s=SHORT_S, on_event=events) as watching:
        await events.until(CheckReport, 4)

    assert watching.check_count >= 3
    assert (await catalog.get_model(*NAME)).state is FileState.MISSING


async def test_a_watch_ends_with_its_block(on_sqlite, store):
    """
    No task is left, and an error of the block is raised unchanged.
    """
    before = asyncio.all_tasks()
    with pytest.raises(LookupError, match="the host's own"):
        async with watch(on_sqlite, interval_s=SHORT_S):
            raise LookupError("the host's own")

    assert asyncio.all_tasks() == before


async def test_a_watch_stops_in_the_middle_of_a_file(on_sqlite, store):
    """
    A shutdown does not wait until a large file has been hashed.
    """
    path = store / "m.bin"
    with path.open("wb") as file:
        file.truncate(64 * 1024 * MIB)
    await register(on_sqlite, path)
    events = EventRecorder()
    async with watch(on_sqlite, on_event=events):
        await events.until(CheckReport)
        # Wait until the scrub has opened the file.
        while not is_open(path):
            await asyncio.sleep(0.01)
        leaving_at = time.monotonic()

    assert time.monotonic() - leaving_at < 1
    assert (await on_sqlite.get_model(*NAME)).verified_at is None


def is_open(path):
    """Return whether this process has a file open."""
    descriptors = Path("/proc/self/fd").iterdir()
    return any(each.exists() and each.samefile(path) for each in descriptors)


async def test_cancellation_at_the_end_of_the_block_is_raised(on_sqlite, store):
    """
    The block waits for the watch at its end, and must not swallow a cancellation of its own task.
    """

    async def serve():
        async with watch(on_sqlite):
            # Cancels this task while the block waits for the end of the watch.
            asyncio.get_running_loop().call_soon(serving.cancel)

    serving = asyncio.create_task(serve())

    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_errors_are_logged_reported_and_do_not_end_the_watch(
    on_sqlite, tmp_path, store, caplog
):
    """
    While a table does not exist, each failure is logged and passed to `on_event`. When it exists
    again, the next check succeeds.
    """
    await register(on_sqlite, create_file(store), digest=True)
    events = EventRecorder()
    with closing(sqlite3.connect(tmp_path / "catalog.db")) as raw:
        raw.execute("ALTER TABLE models RENAME TO renamed")
        async with watch(
            on_sqlite, interval_s=SHORT_S, scrub_per_day=1, on_event=events
        ) as watching:
            await events.until(CatalogError, 3)
            raw.execute("ALTER TABLE renamed RENAME TO models")
            await events.until(CheckReport)

    assert watching.failure_count >= 3
    assert watching.last.counts == {FileState.PRESENT: 1}
    messages = [record.getMessage() for record in caplog.records]
    assert any("the watch continues" in message for message in messages)


async def test_a_finding_is_logged_as_a_warning(on_sqlite, store, caplog):
    """
    The warning contains the name of the model, its state and the reason.
    """
    path = create_file(store)
    await register(on_sqlite, path)
    path.unlink()
    events = EventRecorder()

    async with watch(on_sqlite, on_event=events, scrub_per_day=0):
        await events.until(CheckReport)

    (record,) = (each for each in caplog.records if each.name.startswith("model_catalog"))
    assert record.levelno == logging.WARNING
    assert "missing: " in record.getMessage()
    assert "m.bin" in record.getMessage()


async def test_an_error_in_the_callback_does_not_end_the_watch(on_sqlite, caplog):
    """
    The error of the host's callback is logged with its traceback, and the next event is passed to
    it.
    """
    events = EventRecorder()

    def fail(event):
        events(event)
        raise ZeroDivisionError

    async with watch(on_sqlite, interval_s=SHORT_S, on_event=fail):
        await events.until(CheckReport, 3)

    (first, *_) = (record for record in caplog.records if record.exc_info)
    assert first.exc_info[0] is ZeroDivisionError
    assert "on_event raised an error" in first.getMessage()


async def test_the_scrub_finds_damage(catalog, store):
    """
    The scrub reads the file and reports damage that a status check cannot see.
    """
    path = create_file(store)
    await register(catalog, path, digest=True)
    path.write_bytes(b"x" * 100)
    events = EventRecorder()

    async with watch(catalog, on_event=events, scrub_per_day=1) as watching:
        await events.until(VerifiedModel)

    (found,) = events.of(VerifiedModel)
    assert found.verdict == "mismatch"
    assert watching.verified_bytes == 100
    assert await catalog.count_models(damaged=True) == 1


async def test_a_scrub_of_zero_reads_nothing(on_sqlite, store):
    """
    With `scrub_per_day=0` the watch only checks.
    """
    await register(on_sqlite, create_file(store))
    events = EventRecorder()

    async with watch(on_sqlite, interval_s=SHORT_S, scrub_per_day=0, on_event=events) as watching:
        await events.until(CheckReport, 3)

    assert watching.verified_bytes == 0
    assert events.of(VerifiedModel) == []


@pytest.mark.slow
async def test_the_scrub_reads_its_daily_part_and_no_more(on_sqlite, store):
    """
    A tenth of 100 files is read in a day, although 60 of them are one model. Bytes read beyond the
    allowance are made up for by waiting. After a week without reading, at most one day is made up
    at once.
    """
    for number in range(40):
        await register(on_sqlite, create_file(store, f"{number}"), f"{number}", digest=True)
    folder = store / "folder"
    folder.mkdir()
    for number in range(60):
        create_file(folder, f"{number:02}.bin")
    await register(on_sqlite, folder, "folder", digest=True)
    report = WatchReport()
    watcher = _Watcher(on_sqlite, [], 0.1, None, report)
    by_hour = []
    for _ in range(72):
        # Simulates an hour: the scrub measures the time since its last run.
        watcher._allowance_at -= _DAY_S / 24
        before = report.verified_bytes
        await watcher._scrub()
        by_hour.append(report.verified_bytes - before)

    assert 3 * 1000 - 100 <= report.verified_bytes <= 3 * 1000 + 100
    assert max(by_hour) <= 200
    watcher._allowance_at -= 7 * _DAY_S
    before = report.verified_bytes
    await watcher._scrub()
    assert report.verified_bytes - before <= 1000


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
async def test_invalid_options_are_refused(on_sqlite, options):
    """
    The error is raised before the block starts.
    """
    with pytest.raises(InvalidModelError, match=r"interval_s|scrub_per_day"):
        async with watch(on_sqlite, **options):
            pytest.fail("the block began")


async def test_intervals_vary_so_that_services_spread_out(on_sqlite, monkeypatch):
    """
    Each wait is the interval plus or minus ten percent, at random.
    """
    waits = []
    sleep = asyncio.sleep

    async def record_wait(delay_s):
        waits.append(delay_s)
        await sleep(0)

    events = EventRecorder()
    monkeypatch.setattr("model_catalog.upkeep.watcher.asyncio.sleep", record_wait)
    async with watch(on_sqlite, interval_s=100.0, on_event=events):
        await events.until(CheckReport, 8)

    assert all(90 <= wait_s <= 110 for wait_s in waits)
    assert len(set(waits)) == len(waits)


@pytest.mark.slow
async def test_a_lifespan_opens_the_catalog_and_watches_it(store, tmp_path):
    """
    A request sees the state that the watch has recorded.
    """
    events = EventRecorder()

    @asynccontextmanager
    async def lifespan(app):
        async with (
            open_catalog(tmp_path / "catalog.db") as catalog,
            watch(catalog, interval_s=SHORT_S, roots=[store], on_event=events) as watching,
        ):
            await catalog.register_model(a_model(local_path=str(store / "gone")))
            yield {"catalog": catalog, "watching": watching}

    create_file(store)
    async with lifespan(None) as state:
        while await state["catalog"].count_models(state=FileState.MISSING) == 0:
            await asyncio.sleep(0)

    assert state["watching"].failure_count == 0

"""Start and stop a watch, and let it survive errors."""

import asyncio
import logging
import sqlite3
import time
from contextlib import asynccontextmanager, closing

import pytest
from conftest import a_model

from model_catalog import CatalogError, FileState, InvalidModelError, open_catalog
from model_catalog.upkeep import CheckReport, VerifiedModel, check_models, register_path, watch

MIB = 1024 * 1024


@pytest.fixture
def catalog(on_sqlite):
    """SQLite only: these tests are about files, which are the same for every database."""
    return on_sqlite


class EventRecorder:
    """Records the events of a watch, and waits until a condition is met."""

    def __init__(self):
        self.events = []
        self._changed = asyncio.Event()

    def __call__(self, event):
        self.events.append(event)
        self._changed.set()

    async def until(self, condition):
        async with asyncio.timeout(30):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def of(self, kind):
        return [each for each in self.events if isinstance(each, kind)]


async def test_a_watch_checks_repeatedly(catalog, tmp_path):
    """
    The second check sees a model that was registered after the first one.
    """
    events = EventRecorder()
    async with watch(catalog, interval_s=0.01, on_event=events) as report:
        await events.until(lambda: events.of(CheckReport))
        await catalog.register_model(a_model(local_path="/nowhere"))
        await events.until(
            lambda: any(FileState.MISSING in each.counts for each in events.of(CheckReport))
        )

    assert report.check_count >= 2
    assert report.last.counts == {FileState.MISSING: 1}


async def test_a_watch_ends_quickly_and_leaves_no_task(catalog, tmp_path):
    """
    It does not wait for the next check, nor for a large file that is being hashed.
    """
    with (tmp_path / "m.bin").open("wb") as file:
        file.truncate(2000 * MIB)
    await register_path(catalog, tmp_path / "m.bin", provider="local", reference="m")
    tasks = asyncio.all_tasks()
    events = EventRecorder()

    began = time.monotonic()
    async with watch(catalog, interval_s=3600, scrub_per_day=1, on_event=events):
        await events.until(lambda: events.of(CheckReport))
        began = time.monotonic()
    ended = time.monotonic()

    assert asyncio.all_tasks() == tasks
    # Hashing the rest of the file would take longer, even on an idle machine.
    assert ended - began < 2


async def test_a_watch_survives_errors_of_the_database(catalog, tmp_path, caplog):
    """
    The error is logged and reported, and a later check succeeds.
    """
    await catalog.register_model(a_model(local_path="/nowhere"))
    events = EventRecorder()
    rename(tmp_path / "catalog.db", "models", "renamed")

    with caplog.at_level(logging.WARNING):
        async with watch(catalog, interval_s=0.01, on_event=events) as report:
            await events.until(lambda: len(events.of(CatalogError)) >= 2)
            rename(tmp_path / "catalog.db", "renamed", "models")
            await events.until(lambda: events.of(CheckReport))

    assert report.failure_count >= 2
    assert report.last.counts == {FileState.MISSING: 1}
    assert "the watch continues: the catalog at" in caplog.text
    assert "'/nowhere' does not exist" in caplog.text


def rename(path, old, new):
    with closing(sqlite3.connect(path, timeout=10)) as raw:
        raw.execute(f"ALTER TABLE {old} RENAME TO {new}")


async def test_a_failing_callback_is_logged_and_called_again(catalog, caplog):
    """
    The callback is the host's code, and its error does not end the watch.
    """
    calls = 0
    twice = asyncio.Event()

    def fail(_event):
        nonlocal calls
        calls += 1
        if calls == 2:
            twice.set()
        raise RuntimeError("error in the host")

    async with watch(catalog, interval_s=0.01, on_event=fail), asyncio.timeout(30):
        await twice.wait()

    assert "error in the host" in caplog.text


async def test_the_scrub_reads_one_file_when_the_allowance_is_small(catalog, tmp_path):
    """
    A file larger than the allowance is read completely. The watch then waits until the allowance is
    positive again.
    """
    for name in "abcd":
        (tmp_path / name).write_bytes(bytes(MIB))
        await register_path(catalog, tmp_path / name, provider="local", reference=name)
    events = EventRecorder()

    async with watch(catalog, interval_s=0.01, scrub_per_day=1 / 30, on_event=events) as report:
        await events.until(lambda: len(events.of(CheckReport)) >= 20)

    # 1/30 of 4 MiB a day is one or two bytes in a second. One file uses up the allowance of days.
    assert report.verified_bytes == MIB
    assert report.failure_count == 0
    assert len(events.of(VerifiedModel)) == 1


async def test_a_watch_without_scrub_only_checks(catalog, tmp_path):
    """
    With `scrub_per_day=0` no model is verified.
    """
    (tmp_path / "m").write_bytes(b"m")
    await register_path(catalog, tmp_path / "m", provider="local", reference="m")
    events = EventRecorder()

    async with watch(catalog, interval_s=0.01, scrub_per_day=0, on_event=events):
        await events.until(lambda: len(events.of(CheckReport)) >= 5)

    assert events.of(VerifiedModel) == []


@pytest.mark.parametrize(
    "options",
    [
        {"interval_s": 0},
        {"interval_s": -1},
        {"interval_s": "1h"},
        {"scrub_per_day": 2},
        {"scrub_per_day": -0.1},
    ],
    ids=str,
)
async def test_invalid_intervals_and_parts_are_refused(catalog, options):
    """
    The error is raised before the first check.
    """
    with pytest.raises(InvalidModelError):
        async with watch(catalog, **options):
            pass


async def test_a_service_starts_a_watch_in_its_lifespan(tmp_path):
    """
    The watch is an async context manager, used inside that of the catalog.
    """
    events = EventRecorder()

    @asynccontextmanager
    async def lifespan():
        async with (
            open_catalog(tmp_path / "service.db") as catalog,
            watch(catalog, interval_s=3600, on_event=events),
        ):
            yield catalog

    async with lifespan() as catalog:
        await events.until(lambda: events.of(CheckReport))
        assert (await check_models(catalog)).model_count == 0

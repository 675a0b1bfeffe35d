"""The periodic look after a catalog: it goes on, and ends when it is asked to."""

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
    """What is on the disk is the same to every database."""
    return on_sqlite


class Events:
    """What a watch told, and a wait for more of it."""

    def __init__(self):
        self.seen = []
        self._more = asyncio.Event()

    def __call__(self, event):
        self.seen.append(event)
        self._more.set()

    async def until(self, condition):
        async with asyncio.timeout(30):
            while not condition():
                self._more.clear()
                await self._more.wait()

    def of(self, kind):
        return [each for each in self.seen if isinstance(each, kind)]


async def test_it_checks_at_once_and_again(catalog, tmp_path):
    """
    What was recorded before the second check is seen by it.
    """
    events = Events()
    async with watch(catalog, interval_s=0.01, on_event=events) as seen:
        await events.until(lambda: events.of(CheckReport))
        await catalog.register_model(a_model(local_path="/nowhere"))
        await events.until(
            lambda: any(FileState.MISSING in each.counts for each in events.of(CheckReport))
        )

    assert seen.check_count >= 2
    assert seen.last.counts == {FileState.MISSING: 1}


async def test_it_ends_at_once_and_leaves_nothing(catalog, tmp_path):
    """
    Also where a check is an hour away, or a large file is being hashed.
    """
    with (tmp_path / "m.bin").open("wb") as file:
        file.truncate(2000 * MIB)
    await register_path(catalog, tmp_path / "m.bin", provider="local", reference="m")
    tasks = asyncio.all_tasks()
    events = Events()

    began = time.monotonic()
    async with watch(catalog, interval_s=3600, scrub_per_day=1, on_event=events):
        await events.until(lambda: events.of(CheckReport))
        began = time.monotonic()
    ended = time.monotonic()

    assert asyncio.all_tasks() == tasks
    # The file alone would take longer than a busy machine takes for this.
    assert ended - began < 2


async def test_it_survives_what_fails(catalog, tmp_path, caplog):
    """
    An error is told and logged, and the next check finds what there is.
    """
    await catalog.register_model(a_model(local_path="/nowhere"))
    events = Events()
    rename(tmp_path / "catalog.db", "models", "away")

    with caplog.at_level(logging.WARNING):
        async with watch(catalog, interval_s=0.01, on_event=events) as seen:
            await events.until(lambda: len(events.of(CatalogError)) >= 2)
            rename(tmp_path / "catalog.db", "away", "models")
            await events.until(lambda: events.of(CheckReport))

    assert seen.failure_count >= 2
    assert seen.last.counts == {FileState.MISSING: 1}
    assert "the watch continues: the catalog at" in caplog.text
    assert "'/nowhere' does not exist" in caplog.text


def rename(path, old, new):
    with closing(sqlite3.connect(path, timeout=10)) as raw:
        raw.execute(f"ALTER TABLE {old} RENAME TO {new}")


async def test_a_callback_that_fails_ends_nothing(catalog, caplog):
    """
    It is the host's own code, and its error is logged.
    """
    calls = 0
    twice = asyncio.Event()

    def fail(_event):
        nonlocal calls
        calls += 1
        if calls == 2:
            twice.set()
        raise RuntimeError("of the host's own")

    async with watch(catalog, interval_s=0.01, on_event=fail), asyncio.timeout(30):
        await twice.wait()

    assert "of the host's own" in caplog.text


async def test_it_reads_no_more_than_its_part(catalog, tmp_path):
    """
    As much of the catalog as a day allows, for the time that has gone by; a file that is larger is
    read, and then paid off by waiting.
    """
    for name in "abcd":
        (tmp_path / name).write_bytes(bytes(MIB))
        await register_path(catalog, tmp_path / name, provider="local", reference=name)
    events = Events()

    async with watch(catalog, interval_s=0.01, scrub_per_day=1 / 30, on_event=events) as seen:
        await events.until(lambda: len(events.of(CheckReport)) >= 20)

    # In less than a second a day's 1/30 of 4 MiB is a byte or two: one file is in debt for it.
    assert seen.verified_bytes == MIB
    assert seen.failure_count == 0
    assert len(events.of(VerifiedModel)) == 1


async def test_nothing_is_read_where_nothing_is_to_be(catalog, tmp_path):
    """
    A part of 0 only checks.
    """
    (tmp_path / "m").write_bytes(b"m")
    await register_path(catalog, tmp_path / "m", provider="local", reference="m")
    events = Events()

    async with watch(catalog, interval_s=0.01, scrub_per_day=0, on_event=events):
        await events.until(lambda: len(events.of(CheckReport)) >= 5)

    assert events.of(VerifiedModel) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"interval_s": 0},
        {"interval_s": -1},
        {"interval_s": "1h"},
        {"scrub_per_day": 2},
        {"scrub_per_day": -0.1},
    ],
    ids=str,
)
async def test_what_is_no_interval_or_part_is_refused(catalog, wrong):
    """
    Before anything is begun.
    """
    with pytest.raises(InvalidModelError):
        async with watch(catalog, **wrong):
            pass


async def test_a_service_starts_it_in_its_lifespan(tmp_path):
    """
    An async context manager within another one is all there is to it.
    """
    events = Events()

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

"""Calls on many models: the event loop goes on meanwhile, and the memory stays small."""

import asyncio
import gc
import io
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import a_model
from sqlalchemy import Column

from model_catalog import InvalidImportError, ModelCatalog, StorageFullError
from model_catalog.concurrency.gc_pauses import full_collections_paused
from model_catalog.domain.ndjson import HEADER
from model_catalog.repository.export_writer import ExportSpool

MODEL_COUNT = 3000


async def register(catalog: ModelCatalog, count: int) -> None:
    await catalog.register_models(
        [a_model(f"m{number:06}", version=f"v{number}") for number in range(count)]
    )


async def export(catalog: ModelCatalog) -> bytes:
    stream = io.BytesIO()
    await catalog.export_catalog(stream)
    return stream.getvalue()


async def import_again(catalog: ModelCatalog) -> None:
    text = await export(catalog)
    await catalog.import_catalog(io.BytesIO(text), on_conflict="replace")


CALLS = {
    "list": lambda catalog: catalog.list_models(),
    "rows": lambda catalog: catalog.list_rows(),
    "export": export,
    "import": import_again,
}


class CallCounter:
    """Counts the Python functions that the event loop's thread calls between two iterations."""

    def __init__(self) -> None:
        self.count = 0
        self.most = 0

    def on_event(self, _frame, event, _argument) -> None:
        self.count += event == "call"

    async def tick(self) -> None:
        while True:
            self.most = max(self.most, self.count)
            self.count = 0
            await asyncio.sleep(0)


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_the_event_loop_goes_on_during_a_long_call(catalog, call):
    """Between two iterations it handles some rows, and not all of them."""
    await register(catalog, MODEL_COUNT)
    await call(catalog)
    counter = CallCounter()
    ticking = asyncio.create_task(counter.tick())

    sys.setprofile(counter.on_event)
    try:
        await call(catalog)
    finally:
        sys.setprofile(None)
        ticking.cancel()

    # A page of an import is converted at once: 100 lines of 120 calls.
    assert counter.most < (6 if call is import_again else 3) * MODEL_COUNT


@contextmanager
def collections() -> Iterator[list[int]]:
    """Yield a list that gets the generation of each collection of `gc`."""
    generations: list[int] = []

    def on_collection(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            generations.append(info["generation"])

    gc.callbacks.append(on_collection)
    try:
        yield generations
    finally:
        gc.callbacks.remove(on_collection)


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_no_full_collection_runs_during_a_long_call(on_sqlite, call):
    """All threads would wait for it."""
    await register(on_sqlite, 10_000)
    gc.collect()

    with collections() as generations:
        kept = await call(on_sqlite)

    assert 2 not in generations
    # The models of a list are old objects: otherwise the next collections would traverse them.
    young_count = sum(len(gc.get_objects(generation=number)) for number in (0, 1))
    assert not isinstance(kept, list) or young_count < 2 * len(kept)
    assert gc.isenabled()
    assert gc.get_threshold()[2] < 1000


def test_pauses_of_full_collections_may_overlap():
    """The last one restores the thresholds, unless the program has set others meanwhile."""
    before = gc.get_threshold()

    with full_collections_paused():
        with full_collections_paused():
            assert gc.get_threshold()[2] > 1_000_000
        assert gc.get_threshold()[2] > 1_000_000
    assert gc.get_threshold() == before

    with full_collections_paused():
        gc.set_threshold(500, 5, 5)
    assert gc.get_threshold() == (500, 5, 5)
    gc.set_threshold(*before)


@pytest.mark.slow
async def test_an_export_needs_little_memory(catalog):
    """The memory does not grow with the number of models: only a page of them is in it."""
    await catalog.register_models(
        [a_model(f"m{number:06}", description="x" * 4000) for number in range(MODEL_COUNT)]
    )
    # What the first call imports and caches stays.
    with Path("/dev/null").open("wb") as stream:
        await catalog.export_catalog(stream)
        tracemalloc.start()

        count = await catalog.export_catalog(stream)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == MODEL_COUNT
    # SQLite's own memory is not traced. Before, the rows took 15 MB.
    assert peak < 12_000_000, peak


async def test_an_export_sees_one_snapshot_while_its_stream_is_slow(catalog):
    """What is registered after the first line was written is not in it."""
    await register(catalog, 5)
    began, goes_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    class SlowStream(io.BytesIO):
        def write(self, content) -> int:
            if content == HEADER.encode():
                loop.call_soon_threadsafe(began.set)
                asyncio.run_coroutine_threadsafe(goes_on.wait(), loop).result()
            return super().write(content)

    stream = SlowStream()
    exporting = asyncio.create_task(catalog.export_catalog(stream))
    await began.wait()
    await catalog.register_model(a_model("later"))
    goes_on.set()

    assert await exporting == 5
    assert b"later" not in stream.getvalue()


async def test_a_spool_without_room_raises_storage_full_error(on_sqlite, monkeypatch):
    """Nothing is written to the stream then."""
    await register(on_sqlite, 2000)
    make = ExportSpool.__init__

    def make_small(self, database) -> None:
        make(self, database)
        self._spooled.execute("PRAGMA max_page_count = 20")

    monkeypatch.setattr(ExportSpool, "__init__", make_small)
    stream = io.BytesIO()

    with pytest.raises(StorageFullError):
        await on_sqlite.export_catalog(stream)

    assert stream.getvalue() == b""


@pytest.mark.slow
async def test_a_refused_line_in_a_page_of_an_import_changes_nothing(catalog):
    """All lines of the pages before it are rolled back, on every database."""
    await register(catalog, 600)
    text = await export(catalog)
    for number in range(600):
        await catalog.remove_model(f"m{number:06}", "hf", f"v{number}")
    lines = text.splitlines(keepends=True)
    lines[550] = lines[550].replace(b'"/models/tinyllama.gguf"', b"7")

    with pytest.raises(InvalidImportError):
        await catalog.import_catalog(io.BytesIO(b"".join(lines)))

    assert await catalog.count_models() == 0


@pytest.mark.slow
@pytest.mark.parametrize("call", [export, import_again])
async def test_the_pages_of_a_long_call_leave_no_cycles(catalog, call):
    """An export and an import let the collector find young objects only: others would stay."""
    await register(catalog, 1500)
    await call(catalog)  # the statements are made once
    gc.collect()
    gc.disable()
    try:
        await call(catalog)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [repr(each) for each in gc.garbage if isinstance(each, Column)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()

    assert left == []

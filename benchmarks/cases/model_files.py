"""Benchmarks of model files: headers, digests, and checks of a hundred thousand files."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import sqlite3
import struct
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from benchmarks.contenders import CATALOG
from benchmarks.harness.benchmark import ALLOWED, Benchmark, Environment
from benchmarks.harness.rounds import Result, run_rounds
from model_catalog import Model, ModelCatalog, open_catalog
from model_catalog.files.digest import file_digest
from model_catalog.files.fingerprint import file_fingerprint
from model_catalog.files.formats.header_reader import read_header
from model_catalog.upkeep import check_models, register_path
from model_catalog.upkeep.checks.file_status import MountCache, StatusSummary, check_statuses
from model_catalog.upkeep.checks.model_check import BATCH_SIZE
from model_catalog.upkeep.queries.check_queries import load_check_rows, save_check_results

MAX_BLOCK_S: Final = 0.05
FILES_PER_MODEL: Final = (1, 10)


@dataclass(frozen=True)
class Sizes:
    """The sizes of the generated files."""

    tokens: int = 150_000
    hashed_bytes: int = 1024**3
    files: int = 100_000
    rounds: int = 5


QUICK_SIZES: Final = Sizes(tokens=50_000, hashed_bytes=2**28, files=10_000, rounds=3)


def row_titles(sizes: Sizes) -> Mapping[str, str]:
    """The titles of the rows of the report."""
    titles = {
        "header": f"header of {sizes.tokens:,} tokens",
        "digest": f"sha256 of {sizes.hashed_bytes // 2**20:,} MiB",
        "digest blocks": "sha256: longest block of the event loop",
    }
    for files_each in FILES_PER_MODEL:
        titles[f"check {files_each}"] = f"check of {sizes.files:,} files, {files_each} per model"
        titles[f"check {files_each} blocks"] = (
            f"{titles[f'check {files_each}']}: longest block of the event loop"
        )
    return titles


def _benchmark(
    name: str, measure: Callable[[Path, Sizes], Awaitable[Mapping[str, Result]]]
) -> Benchmark:
    async def run(environment: Environment) -> Mapping[str, Result]:
        sizes = QUICK_SIZES if environment.settings.quick else Sizes()
        with tempfile.TemporaryDirectory(dir=environment.folder) as folder:
            return await measure(Path(folder), sizes)

    return Benchmark(name, run)


def _block_result(longest_s: float) -> Result:
    """The longest block of the event loop, and the longest allowed one."""
    return Result({ALLOWED: {0: MAX_BLOCK_S}, CATALOG: {0: longest_s}})


async def headers(folder: Path, sizes: Sizes) -> Mapping[str, Result]:
    try:
        from gguf import GGUFReader
    except ImportError:
        return {}
    path = folder / "tokenizer.gguf"
    path.write_bytes(make_gguf(sizes.tokens))
    result = await run_rounds(
        {"gguf": lambda: GGUFReader(path), CATALOG: lambda: read_header(path)},
        max(2, sizes.rounds // 2),
    )
    return {row_titles(sizes)["header"]: result}


def make_gguf(tokens: int) -> bytes:
    """A GGUF file of version 3 that has a tokenizer and no weights."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    listed = b"".join(text(f"token {number}") for number in range(tokens))
    scores = struct.pack(f"<{tokens}f", *range(tokens))
    pairs = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("llama.context_length") + struct.pack("<II", 4, 4096),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, tokens) + listed,
        text("tokenizer.ggml.scores") + struct.pack("<IIQ", 9, 6, tokens) + scores,
    ]
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, len(pairs)) + b"".join(pairs)
    return head + bytes(-len(head) % 32)


async def digests(folder: Path, sizes: Sizes) -> Mapping[str, Result]:
    path = folder / "large.bin"
    with path.open("wb") as file:
        for _ in range(sizes.hashed_bytes // 2**20):
            file.write(os.urandom(2**20))

    def hash_file() -> object:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    result = await run_rounds(
        {"hashlib": hash_file, CATALOG: lambda: file_digest(path)}, sizes.rounds
    )
    async with open_catalog(folder / "digest.db") as catalog, longest_block() as longest:
        await register_path(catalog, path, provider="p", reference="r", digest=True)
    path.unlink()
    titles = row_titles(sizes)
    return {titles["digest"]: result, titles["digest blocks"]: _block_result(longest[0])}


async def all_checks(folder: Path, sizes: Sizes) -> Mapping[str, Result]:
    return {
        title: result
        for files_each in FILES_PER_MODEL
        for title, result in (await checks(folder / f"{files_each}", sizes, files_each)).items()
    }


async def checks(folder: Path, sizes: Sizes, files_each: int) -> Mapping[str, Result]:
    paths = create_files(folder, sizes.files)
    async with open_catalog(folder / "catalog.db") as catalog:
        await record_models(catalog, folder / "catalog.db", paths, files_each)
        gc.collect()
        # The objects of the benchmark itself are excluded from garbage collections.
        gc.freeze()
        async with longest_block() as longest:
            await check_models(catalog)
        pages = await all_pages(catalog)

        def stat_all() -> None:
            for path in paths:
                os.stat(path)

        async def writes() -> None:
            now = datetime.now(UTC)
            for seen in pages:
                await save_check_results(catalog, seen.results, now, seen.present_ids)

        result = await run_rounds(
            {"stat": stat_all, CATALOG: lambda: check_models(catalog), "writes": writes},
            sizes.rounds,
        )
    samples = {name: dict(taken) for name, taken in result.samples.items()}
    samples[ALLOWED] = {
        number: 3 * stat + samples["writes"][number] for number, stat in samples["stat"].items()
    }
    titles = row_titles(sizes)
    return {
        titles[f"check {files_each}"]: Result(samples),
        titles[f"check {files_each} blocks"]: _block_result(longest[0]),
    }


def create_files(folder: Path, count: int) -> list[str]:
    paths = []
    for number in range(count):
        inner = folder / f"{number // 1000}" / f"{number // 10}"
        if number % 10 == 0:
            inner.mkdir(parents=True)
        path = os.path.join(inner, f"{number}")
        os.mknod(path)
        paths.append(path)
    return paths


async def record_models(
    catalog: ModelCatalog, database: Path, paths: list[str], files_each: int
) -> None:
    """Register models with their files. The files are inserted by sqlite3, unmeasured."""
    firsts = range(0, len(paths), files_each)
    await catalog.register_models(
        Model(
            reference=f"{first}",
            provider="p",
            local_path=paths[first] if files_each == 1 else os.path.dirname(paths[first]),
            size_bytes=0,
        )
        for first in firsts
    )
    with closing(sqlite3.connect(database)) as raw, raw:
        ids = dict(raw.execute("SELECT CAST(reference AS INTEGER), id FROM models"))
        raw.execute("UPDATE models SET inventoried_at = 1")
        raw.executemany(
            "INSERT INTO model_files (model_id, path, role, size_bytes, fingerprint)"
            " VALUES (?, ?, 'weights', 0, ?)",
            (
                (
                    ids[number - number % files_each],
                    os.path.basename(path),
                    str(file_fingerprint(path)),
                )
                for number, path in enumerate(paths)
            ),
        )


async def all_pages(catalog: ModelCatalog) -> list[StatusSummary]:
    """The file status of every batch of models, as a check computes it."""
    disks, found, last = MountCache(), [], None
    while rows := await load_check_rows(catalog, last, BATCH_SIZE):
        last = rows[-1][0]
        found.append(check_statuses(rows, disks, lambda: False))
    return found


@asynccontextmanager
async def longest_block() -> AsyncIterator[list[float]]:
    """Measure the longest CPU time, in seconds, between two iterations of the event loop."""
    longest = [0.0]

    async def watch() -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            longest[0] = max(longest[0], now - last)
            last = now

    watching = asyncio.create_task(watch())
    try:
        yield longest
    finally:
        watching.cancel()


BENCHMARKS: Final = (
    _benchmark("header", headers),
    _benchmark("sha256", digests),
    _benchmark("check", all_checks),
)

"""What is read from the disk: headers, digests, and the status of a hundred thousand files."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import sqlite3
import struct
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.rounds import in_turns
from model_catalog import Model, ModelCatalog, open_catalog
from model_catalog.files.digest import sha256
from model_catalog.files.fingerprint import fingerprint
from model_catalog.files.header import read_header
from model_catalog.upkeep import check_models, register_path
from model_catalog.upkeep.checking import BATCH
from model_catalog.upkeep.looking import Disks, Seen, look_through


@dataclass(frozen=True)
class Row:
    """One line of the report: what was measured, its value, and what it is to stay below."""

    name: str
    value: float
    limit: float
    unit: str = "x"

    @property
    def holds(self) -> bool:
        return self.value <= self.limit


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    tokens: int = 150_000
    hashed_bytes: int = 1024**3
    files: int = 100_000
    rounds: int = 5


async def run(sizes: Sizes) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="model-catalog-benchmark-") as name:
        folder = Path(name)
        return [
            *await headers(folder, sizes),
            *await digests(folder, sizes),
            *await checks(folder / "single", sizes, 1),
            *await checks(folder / "of ten", sizes, 10),
        ]


async def headers(folder: Path, sizes: Sizes) -> list[Row]:
    try:
        from gguf import GGUFReader
    except ImportError:
        return []
    path = folder / "tokenizer.gguf"
    path.write_bytes(gguf_of(sizes.tokens))
    result = await in_turns(
        {"gguf": lambda: GGUFReader(path), "ours": lambda: read_header(path)},
        max(2, sizes.rounds // 2),
    )
    return [
        Row(f"header of {sizes.tokens:,} tokens, of gguf's time", result.ratios["ours"], 1 / 50)
    ]


def gguf_of(tokens: int) -> bytes:
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


async def digests(folder: Path, sizes: Sizes) -> list[Row]:
    path = folder / "large.bin"
    with path.open("wb") as file:
        for _ in range(sizes.hashed_bytes // 2**20):
            file.write(os.urandom(2**20))

    def alone() -> object:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    result = await in_turns({"hashlib": alone, "ours": lambda: sha256(path)}, sizes.rounds)
    async with open_catalog(folder / "held.db") as catalog, held() as longest:
        await register_path(catalog, path, provider="p", reference="r", digest=True)
    path.unlink()
    return [
        Row("SHA-256 of a large file, of hashlib's time", result.ratios["ours"], 1.05),
        Row("the loop held while hashing", longest[0] * 1000, 50, " ms"),
    ]


async def checks(folder: Path, sizes: Sizes, files_each: int) -> list[Row]:
    paths = make_files(folder, sizes.files)
    async with open_catalog(folder / "catalog.db") as catalog:
        await record(catalog, folder / "catalog.db", paths, files_each)
        gc.collect()
        # What the benchmark itself holds on to would be looked through at each collection.
        gc.freeze()
        async with held() as longest:
            await check_models(catalog)
        pages = await all_pages(catalog)

        def bare() -> None:
            for path in paths:
                os.stat(path)

        async def writes() -> None:
            now = datetime.now(UTC)
            for seen in pages:
                await catalog.store_checks(seen.looks, now, seen.present_ids)

        result = await in_turns(
            {"stat": bare, "check": lambda: check_models(catalog), "writes": writes}, sizes.rounds
        )
    allowed = 3 * result.seconds["stat"] + result.seconds["writes"]
    what = f"check of {sizes.files:,} files, {files_each} a model"
    return [
        Row(f"{what}, of 3x os.stat and its writes", result.seconds["check"] / allowed, 1.0),
        Row(f"{what}, of os.stat alone", result.ratios["check"], float("inf")),
        Row(f"{what}, the loop held", longest[0] * 1000, 50, " ms"),
    ]


def make_files(folder: Path, count: int) -> list[str]:
    paths = []
    for number in range(count):
        inner = folder / f"{number // 1000}" / f"{number // 10}"
        if number % 10 == 0:
            inner.mkdir(parents=True)
        path = os.path.join(inner, f"{number}")
        os.mknod(path)
        paths.append(path)
    return paths


async def record(catalog: ModelCatalog, database: Path, paths: list[str], files_each: int) -> None:
    """Models with their files; these by a plain driver, for it is not what is measured."""
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
                (ids[number - number % files_each], os.path.basename(path), str(fingerprint(path)))
                for number, path in enumerate(paths)
            ),
        )


async def all_pages(catalog: ModelCatalog) -> list[Seen]:
    """What a check sees, a batch each."""
    disks, found, last = Disks(), [], None
    while rows := await catalog.holdings(last, BATCH):
        last = rows[-1][0]
        found.append(look_through(rows, disks, lambda: False))
    return found


@asynccontextmanager
async def held() -> AsyncIterator[list[float]]:
    """The longest time, in seconds, that the event loop's thread computed between two turns."""
    longest = [0.0]

    async def tick() -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            longest[0] = max(longest[0], now - last)
            last = now

    ticking = asyncio.create_task(tick())
    try:
        yield longest
    finally:
        ticking.cancel()

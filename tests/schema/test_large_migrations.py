"""The migration of a million models: its time, disk and memory, and readers meanwhile."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from model_catalog import upgrade
from model_catalog.mapping.revisions import head_revision
from model_catalog.schema.revision import VERSION_TABLE

pytestmark = pytest.mark.slow

BEFORE = "0026"
MODELS = 1_000_000
MEBIBYTE = 2**20
UPGRADE = """
import asyncio, resource, sys
from model_catalog import upgrade
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("started", flush=True)
asyncio.run(upgrade(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.fixture(scope="module")
def million(tmp_path_factory) -> Path:
    """A closed file of a million models, at the revision before the indexes of listings."""
    path = tmp_path_factory.mktemp("million") / "catalog.db"
    asyncio.run(upgrade(path, BEFORE))
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA synchronous = OFF")
        with raw:
            raw.execute(
                "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers"
                f" LIMIT {MODELS}) INSERT INTO models (provider, reference, local_path, size_bytes,"
                " downloaded_at, architecture, reference_folded) SELECT 'hf',"
                " printf('org-%03d/model-%08d-Instruct-GGUF', n % 977, n),"
                " printf('/var/lib/models/model-%08d.gguf', n), n * 2654435761 % 4294967296 * 7,"
                " 1700000000 + n, 'llama', printf('org-%03d/model-%08d', n % 977, n) FROM numbers"
            )
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


def start_upgrade(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", UPGRADE, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def revision(path: Path) -> str:
    with closing(sqlite3.connect(path)) as raw:
        (found,) = raw.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone()
    return str(found)


def used_bytes(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.iterdir())


def test_a_killed_migration_leaves_the_file_as_it_was(million):
    """The process is killed while it creates indexes; the file has its revision and all models."""
    process = start_upgrade(million)
    wal = million.with_name(million.name + "-wal")
    # A row of the migration is in the log: it is in the middle of its transaction.
    while process.poll() is None and not (wal.exists() and wal.stat().st_size > 8 * MEBIBYTE):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)

    assert process.wait() == -signal.SIGKILL
    assert process.stdout is not None
    process.stdout.close()
    assert revision(million) == f"model_catalog_{BEFORE}"
    with closing(sqlite3.connect(million)) as raw:
        assert raw.execute("SELECT count(*) FROM models").fetchone() == (MODELS,)
        assert raw.execute("PRAGMA quick_check").fetchone() == ("ok",)


def test_a_million_models_are_migrated_while_others_read(million, capsys):
    """It prints the time, the disk space and the memory; the longest read is no long one."""
    size = million.stat().st_size
    largest = 0
    longest = 0.0
    reads = 0

    start = time.perf_counter()
    process = start_upgrade(million)
    with closing(sqlite3.connect(million)) as reader:
        while process.poll() is None:
            begun = time.perf_counter()
            reader.execute("SELECT id FROM models WHERE provider = 'hf' LIMIT 1").fetchone()
            longest = max(longest, time.perf_counter() - begun)
            reads += 1
            largest = max(largest, used_bytes(million.parent))
            time.sleep(0.02)
    seconds = time.perf_counter() - start
    assert process.stdout is not None
    with process.stdout as output:
        memory = int(output.read()) * (1 if sys.platform == "darwin" else 1024)
    process.wait()

    with closing(sqlite3.connect(million)) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with capsys.disabled():
        print(
            f"\n{MODELS:,} models: {seconds:.1f} s, the file grew from {size / MEBIBYTE:.0f} to"
            f" {million.stat().st_size / MEBIBYTE:.0f} MiB, with the backup and the log"
            f" {largest / MEBIBYTE:.0f} MiB at most, {memory / MEBIBYTE:.0f} MiB of memory"
            f" above the imports; {reads} reads, the longest {longest * 1e3:.0f} ms"
        )
    assert process.returncode == 0
    assert revision(million) == head_revision()
    assert reads > 10
    assert longest < 2
    assert memory < 256 * MEBIBYTE

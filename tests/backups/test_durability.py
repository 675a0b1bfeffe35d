"""Durability: which rows survive a kill of the process and a power failure."""

import asyncio
import random
import shutil
import sqlite3
import time
from contextlib import closing

import pytest
from child_programs import PROCESSES, register_until_killed

from model_catalog import check_schema, open_catalog
from model_catalog.connection.sqlite_pragmas import JournalMode, connection_pragmas

ROUNDS = 60
CUTS = 50


@pytest.mark.slow
def test_a_killed_writer_loses_no_acknowledged_row(sqlite_migrated, tmp_path):
    """
    After kill -9 at 60 random moments all acknowledged rows exist, and at most one more. The pages
    are valid, and the next process opens the file without extra steps.
    """
    path = tmp_path / "catalog.db"
    shutil.copy(sqlite_migrated, path)
    rng = random.Random(6)
    acknowledged, total = 0, 0
    for number in range(ROUNDS):
        ours, theirs = PROCESSES.Pipe(duplex=False)
        writer = PROCESSES.Process(target=register_until_killed, args=(str(path), number, theirs))
        writer.start()
        theirs.close()
        # Its first message has the number of rows it found, and the result of an integrity check.
        found, pages = ours.recv()
        assert pages == [("ok",)]
        assert acknowledged <= found <= acknowledged + 1, number
        time.sleep(rng.uniform(0, 0.04))
        writer.kill()
        writer.join()
        acknowledged = 0
        try:
            while True:
                acknowledged = ours.recv()
        except EOFError:
            ours.close()
        total += acknowledged

    assert total > ROUNDS
    assert asyncio.run(check_schema(path)) == []
    with closing(sqlite3.connect(path)) as raw:
        (count,) = raw.execute("SELECT count(*) FROM models").fetchone()
    assert total <= count <= total + ROUNDS


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["full", "normal"])
def test_a_power_failure_loses_only_what_durability_allows(sqlite_migrated, tmp_path, durability):
    """
    A simulated disk keeps only synced data, every other time with torn sectors, and fails 50
    times. With `full` all acknowledged rows exist. With `normal` the last ones may be missing, but
    the rest is valid and has no gap.
    """
    pytest.importorskip("apsw", reason="simulating a power failure needs apsw, of the extra [dev]")
    import apsw
    import power_loss

    missing_count = 0
    for number in range(CUTS):
        rng = random.Random(number)
        folder = tmp_path / f"{number}"
        left = folder / "left"
        left.mkdir(parents=True)
        shutil.copy(sqlite_migrated, folder / "catalog.db")
        disk = power_loss.Disk(f"{durability}{number}")
        raw = apsw.Connection(str(folder / "catalog.db"), vfs=disk.name)
        for pragma in connection_pragmas(durability):
            raw.execute(pragma).fetchall()
        JournalMode(folder / "catalog.db", "it", durability).apply(
            lambda statement: next(iter(raw.execute(statement).fetchone() or ()), None)  # noqa: B023
        )
        # With frequent checkpoints, the power may fail during one.
        raw.execute("PRAGMA wal_autocheckpoint = 20").fetchall()

        acknowledged = rng.randrange(5, 40)
        for row in range(acknowledged):
            raw.execute("BEGIN IMMEDIATE")
            raw.execute(
                "INSERT INTO models (provider, reference, local_path) VALUES ('hf', ?, ?)",
                (f"m{row:03}", "/" + "x" * rng.randrange(6000)),
            )
            raw.execute("COMMIT")
        disk.cut_power(left, rng, torn=number % 2 == 1)
        raw.close()

        with closing(sqlite3.connect(left / "catalog.db")) as found:
            assert found.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            rows = [row for (row,) in found.execute("SELECT reference FROM models ORDER BY 1")]
        assert rows == [f"m{row:03}" for row in range(len(rows))]
        missing_count += acknowledged - len(rows)
        shutil.rmtree(folder)

    if durability == "full":
        assert missing_count == 0
    else:
        # Otherwise the simulated disk would never lose anything.
        assert missing_count > 0


async def test_a_catalog_opens_after_a_power_failure(sqlite_migrated, tmp_path):
    """After a power failure during a write, the catalog opens without a repair."""
    pytest.importorskip("apsw", reason="simulating a power failure needs apsw, of the extra [dev]")
    import apsw
    import power_loss

    shutil.copy(sqlite_migrated, tmp_path / "catalog.db")
    disk = power_loss.Disk("opened")
    raw = apsw.Connection(str(tmp_path / "catalog.db"), vfs=disk.name)
    for statement in (*connection_pragmas("full"), "PRAGMA journal_mode = WAL"):
        raw.execute(statement).fetchall()
    for row in range(50):
        raw.execute(
            "INSERT INTO models (provider, reference, local_path) VALUES ('hf', ?, '/')",
            (f"{row}",),
        )
    raw.execute("BEGIN IMMEDIATE; UPDATE models SET local_path = hex(zeroblob(5000))")
    left = tmp_path / "left"
    left.mkdir()
    disk.cut_power(left, random.Random(1), torn=True)
    raw.close()

    async with open_catalog(left / "catalog.db", create=False) as catalog:
        assert {model.local_path for model in await catalog.list_models()} == {"/"}
        assert await catalog.count_models() == 50

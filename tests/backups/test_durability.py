"""What was acknowledged outlives a kill and, unless less was asked for, a power cut."""

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

ROUNDS = 200
CUTS = 100


@pytest.mark.slow
def test_a_killed_writer_has_lost_nothing_it_acknowledged(sqlite_migrated, tmp_path):
    """
    kill -9 at 200 random moments: every acknowledged row is there, at most the one that was being
    written is there beside them, the pages hold together, and the next process opens the file as
    if nothing had been.
    """
    path = tmp_path / "catalog.db"
    shutil.copy(sqlite_migrated, path)
    chance = random.Random(6)
    acknowledged, total = 0, 0
    for number in range(ROUNDS):
        ours, theirs = PROCESSES.Pipe(duplex=False)
        writer = PROCESSES.Process(target=register_until_killed, args=(str(path), number, theirs))
        writer.start()
        theirs.close()
        # Its first word is what it found of the round before, and how the pages are.
        found, pages = ours.recv()
        assert pages == [("ok",)]
        assert acknowledged <= found <= acknowledged + 1, number
        time.sleep(chance.uniform(0, 0.04))
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
def test_a_power_cut_costs_what_was_agreed(sqlite_migrated, tmp_path, durability):
    """
    A disk that keeps only what was synced, and, every other time, torn sectors of the rest, loses
    its power 100 times. With `full` every acknowledged row is there. With `normal` the last ones
    may be gone, but what is there is a beginning of what was written, and sound.
    """
    pytest.importorskip("apsw", reason="a SQLite whose disk can lose power is an extra: [dev]")
    import apsw
    import power_loss

    behind = 0
    for number in range(CUTS):
        chance = random.Random(number)
        folder = tmp_path / f"{number}"
        left = folder / "left"
        left.mkdir(parents=True)
        shutil.copy(sqlite_migrated, folder / "catalog.db")
        disk = power_loss.Disk(f"{durability}{number}")
        raw = apsw.Connection(str(folder / "catalog.db"), vfs=disk.name)
        for habit in connection_pragmas(durability):
            raw.execute(habit).fetchall()
        JournalMode(folder / "catalog.db", "it", durability).apply(
            lambda statement: next(iter(raw.execute(statement).fetchone() or ()), None)  # noqa: B023
        )
        # A log that is written back often is one that may be cut while it is.
        raw.execute("PRAGMA wal_autocheckpoint = 20").fetchall()

        acknowledged = chance.randrange(5, 40)
        for row in range(acknowledged):
            raw.execute("BEGIN IMMEDIATE")
            raw.execute(
                "INSERT INTO models (provider, reference, local_path) VALUES ('hf', ?, ?)",
                (f"m{row:03}", "/" + "x" * chance.randrange(6000)),
            )
            raw.execute("COMMIT")
        disk.cut_power(left, chance, torn=number % 2 == 1)
        raw.close()

        with closing(sqlite3.connect(left / "catalog.db")) as found:
            assert found.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            rows = [row for (row,) in found.execute("SELECT reference FROM models ORDER BY 1")]
        assert rows == [f"m{row:03}" for row in range(len(rows))]
        behind += acknowledged - len(rows)
        shutil.rmtree(folder)

    if durability == "full":
        assert behind == 0
    else:
        # Else the disk of this test would lose nothing to anybody.
        assert behind > 0


async def test_what_a_power_cut_left_is_opened_as_ever(sqlite_migrated, tmp_path):
    """
    After a cut in the midst of a write the catalog opens without anybody's help.
    """
    pytest.importorskip("apsw", reason="a SQLite whose disk can lose power is an extra: [dev]")
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

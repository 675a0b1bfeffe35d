"""Concurrent processes that open, migrate or register, and that are killed meanwhile."""

import asyncio
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing

import hive_files
import pytest
from child_programs import (
    PROCESSES,
    migration_was_killed,
    open_and_register,
    register_repeatedly,
    set_barrier,
)
from conftest import Database
from schema_shape import dump, shape

from model_catalog import check_schema, open_catalog, schema_state, upgrade

pytestmark = pytest.mark.slow

PROCESS_COUNT = 8
STRIDE = 8
"""A migration is one transaction, so it is killed at every eighth of its statements."""


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    """A pool of eight processes that start their work at the same moment."""
    barrier = PROCESSES.Barrier(PROCESS_COUNT, timeout=60)
    with ProcessPoolExecutor(PROCESS_COUNT, PROCESSES, set_barrier, (barrier,)) as pool:
        yield pool


def delete_everything(database: Database) -> None:
    if database.path is None:
        database.run("DROP SCHEMA IF EXISTS public CASCADE")
        database.run("CREATE SCHEMA public")
        return
    for path in database.path.parent.glob(database.path.name + "*"):
        path.unlink()


def assert_valid(database: Database) -> None:
    assert asyncio.run(check_schema(database.target)) == []
    if database.path is not None:
        with closing(sqlite3.connect(database.path)) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize("start", hive_files.INITIAL_STATES)
def test_eight_processes_open_one_catalog_at_once(empty, processes, start):
    """One process migrates, the others wait for it, and then all of them register models."""
    # PostgreSQL has two drivers, so it gets half of the rounds with each.
    for _ in range(8 if empty.path is not None else 4):
        delete_everything(empty)
        asyncio.run(hive_files.prepare_database(empty, start))
        rows = [] if start == "nothing" else hive_files.PORTABLE_ROWS

        counts = list(
            processes.map(
                open_and_register, [empty.target] * PROCESS_COUNT, map(str, range(PROCESS_COUNT))
            )
        )

        assert max(counts) == len(rows) + PROCESS_COUNT
        assert sorted(
            map(repr, empty.run(hive_files.LIST + " WHERE provider <> 'starter'"))
        ) == sorted(map(repr, rows))
        assert sorted(empty.run("SELECT reference FROM models WHERE provider = 'starter'")) == [
            (str(number),) for number in range(PROCESS_COUNT)
        ]
        assert_valid(empty)


def test_eight_processes_register_one_model(database, processes):
    """Repeated registrations of one key by eight processes make one row and raise no error."""
    ids = processes.map(
        register_repeatedly,
        [database.target] * PROCESS_COUNT,
        [10] * PROCESS_COUNT,
        range(PROCESS_COUNT),
    )

    # On PostgreSQL a call that is repeated takes another id from the sequence.
    assert len(set().union(*ids)) == 1
    ((reference, size),) = database.run("SELECT reference, size_bytes FROM models")
    assert reference == "m"
    assert size in range(PROCESS_COUNT)
    assert_valid(database)


def test_eight_processes_create_a_catalog_and_register_one_model(empty, processes):
    """The same, while the catalog is being created."""
    ids = processes.map(
        register_repeatedly,
        [empty.target] * PROCESS_COUNT,
        [5] * PROCESS_COUNT,
        range(PROCESS_COUNT),
    )

    assert len(set().union(*ids)) == 1
    assert empty.run("SELECT count(*) FROM models") == [(1,)]
    assert_valid(empty)


def prepare(database: Database, start: str) -> dict[str, object]:
    asyncio.run(hive_files.prepare_database(database, start))
    if database.path is not None and start == "nothing":
        database.path.touch()
    return dump(database)


@pytest.mark.parametrize("start", hive_files.INITIAL_STATES)
@pytest.mark.parametrize(
    "where",
    ["CREATE INDEX", "INSERT INTO model_catalog_version", "COMMIT"],
    ids=["at the first index", "at the last statement", "before the commit"],
)
def test_a_killed_upgrade_changes_nothing(empty, start, where):
    """After kill -9 during an upgrade the database is unchanged, and the next upgrade succeeds."""
    before = prepare(empty, start)

    assert migration_was_killed(empty.target, where)
    empty.assert_nothing_left()
    after = dump(empty)
    asyncio.run(upgrade(empty.target))

    assert after == before
    assert_valid(empty)
    assert empty.run("SELECT count(*) FROM models") == [
        (0 if start == "nothing" else len(hive_files.PORTABLE_ROWS),)
    ]


@pytest.mark.parametrize("where", ["DELETE FROM models", "COMMIT"], ids=["early", "late"])
def test_a_killed_downgrade_changes_nothing(empty, where):
    """After kill -9 during a downgrade the database is unchanged, and the next one succeeds."""
    asyncio.run(hive_files.create_hive_table(empty))
    old = shape(empty)
    asyncio.run(upgrade(empty.target))
    before = dump(empty)

    assert migration_was_killed(empty.target, where, "0001")
    empty.assert_nothing_left()
    after = dump(empty)
    assert not migration_was_killed(empty.target, "never", "0001")

    assert after == before
    assert empty.run("SELECT count(*) FROM models") == [(len(hive_files.PORTABLE_ROWS),)]
    assert empty.path is not None or shape(empty) == old


@pytest.mark.slow
@pytest.mark.parametrize("start", hive_files.INITIAL_STATES)
def test_an_upgrade_killed_at_any_statement_changes_nothing(empty, start):
    """The upgrade is killed at its first statement, then at its ninth, until one run completes."""
    before = prepare(empty, start)

    number = 1
    while migration_was_killed(empty.target, number):
        empty.assert_nothing_left()
        if dump(empty) != before:
            # It was killed after the COMMIT, when it looked whether the search index is whole.
            break
        number += STRIDE

    assert number > 10
    assert_valid(empty)
    assert_valid(empty)
    assert empty.run("SELECT count(*) FROM models") == [
        (0 if start == "nothing" else len(hive_files.PORTABLE_ROWS),)
    ]


@pytest.mark.slow
def test_a_downgrade_killed_at_any_statement_changes_nothing(empty):
    """
    The downgrade is killed at its first statement, then at its ninth, until one run completes.
    """
    asyncio.run(hive_files.create_hive_table(empty))
    asyncio.run(upgrade(empty.target))
    before = dump(empty)

    number = 1
    while migration_was_killed(empty.target, number, "0001"):
        empty.assert_nothing_left()
        assert dump(empty) == before, number
        number += STRIDE

    assert number > 10
    assert empty.run("SELECT count(*) FROM models") == [(len(hive_files.PORTABLE_ROWS),)]


async def test_opening_does_not_wait_for_the_migration_of_another_catalog(tmp_path):
    """One waits for a lock of its file. Another file is created and opened meanwhile."""
    waiting, other = tmp_path / "waiting.db", tmp_path / "other.db"
    await upgrade(waiting, "0018")

    with closing(sqlite3.connect(waiting, isolation_level=None)) as raw:
        raw.execute("BEGIN IMMEDIATE")
        migration = asyncio.create_task(upgrade(waiting))
        await asyncio.wait([migration], timeout=0.1)
        async with asyncio.timeout(5), open_catalog(other, timeout_s=5) as catalog:
            assert await catalog.count_models() == 0
        assert not migration.done()
    await migration

    assert (await schema_state(waiting))[0] == (await schema_state(other))[0]

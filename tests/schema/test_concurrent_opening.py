"""Processes that begin, register and are killed at the same time as others."""

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

from model_catalog import check_schema, upgrade

pytestmark = pytest.mark.slow

EIGHT = 8


@pytest.fixture(scope="module")
def starters() -> Iterator[ProcessPoolExecutor]:
    """Eight processes, which do everything in the same moment."""
    gate = PROCESSES.Barrier(EIGHT, timeout=60)
    with ProcessPoolExecutor(EIGHT, PROCESSES, set_barrier, (gate,)) as pool:
        yield pool


def begin_anew(database: Database) -> None:
    if database.path is None:
        database.run("DROP SCHEMA IF EXISTS public CASCADE")
        database.run("CREATE SCHEMA public")
        return
    for path in database.path.parent.glob(database.path.name + "*"):
        path.unlink()


def assert_sound(database: Database) -> None:
    assert asyncio.run(check_schema(database.target)) == []
    if database.path is not None:
        with closing(sqlite3.connect(database.path)) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize("start", hive_files.INITIAL_STATES)
@pytest.mark.parametrize(
    "rounds", [1, pytest.param(50, marks=pytest.mark.slow)], ids=["once", "many times"]
)
def test_eight_processes_open_one_catalog_at_once(empty, starters, start, rounds):
    """
    Whoever starts first migrates, the others wait for it, and all of them begin to work.
    """
    # PostgreSQL is here twice, by two drivers: it has half of the rounds with each.
    for _ in range(rounds if empty.path is not None else (rounds + 1) // 2):
        begin_anew(empty)
        asyncio.run(hive_files.prepare_database(empty, start))
        rows = [] if start == "nothing" else hive_files.PORTABLE_ROWS

        counts = list(
            starters.map(open_and_register, [empty.target] * EIGHT, map(str, range(EIGHT)))
        )

        assert max(counts) == len(rows) + EIGHT
        assert sorted(
            map(repr, empty.run(hive_files.LIST + " WHERE provider <> 'starter'"))
        ) == sorted(map(repr, rows))
        assert sorted(empty.run("SELECT reference FROM models WHERE provider = 'starter'")) == [
            (str(number),) for number in range(EIGHT)
        ]
        assert_sound(empty)


def test_eight_processes_register_one_model(database, starters):
    """
    The same key from eight processes, again and again, is one row and no error.
    """
    ids = starters.map(register_repeatedly, [database.target] * EIGHT, [10] * EIGHT, range(EIGHT))

    assert set().union(*ids) == {1}
    ((reference, size),) = database.run("SELECT reference, size_bytes FROM models")
    assert reference == "m"
    assert size in range(EIGHT)
    assert_sound(database)


def test_eight_processes_that_never_opened_it_register_one_model(empty, starters):
    """
    The same, where the catalog comes into being in that moment.
    """
    ids = starters.map(register_repeatedly, [empty.target] * EIGHT, [5] * EIGHT, range(EIGHT))

    assert set().union(*ids) == {1}
    assert empty.run("SELECT count(*) FROM models") == [(1,)]
    assert_sound(empty)


def prepared(database: Database, start: str) -> dict[str, object]:
    asyncio.run(hive_files.prepare_database(database, start))
    if database.path is not None and start == "nothing":
        database.path.touch()
    return dump(database)


@pytest.mark.parametrize("start", hive_files.INITIAL_STATES)
@pytest.mark.parametrize(
    "where",
    ["UPDATE models SET size_bytes", "UPDATE model_catalog_version", "COMMIT"],
    ids=["before the second revision", "at the last statement", "before the commit"],
)
def test_an_upgrade_that_is_killed_leaves_everything_as_it_was(empty, start, where):
    """
    After kill -9 in the midst of an upgrade the database is as it was, and the next one works.
    """
    before = prepared(empty, start)

    assert migration_was_killed(empty.target, where)
    empty.assert_nothing_left()
    after = dump(empty)
    asyncio.run(upgrade(empty.target))

    assert after == before
    assert_sound(empty)
    assert empty.run("SELECT count(*) FROM models") == [
        (0 if start == "nothing" else len(hive_files.PORTABLE_ROWS),)
    ]


@pytest.mark.parametrize("where", ["DELETE FROM models", "COMMIT"], ids=["early", "late"])
def test_a_downgrade_that_is_killed_leaves_everything_as_it_was(empty, where):
    """
    After kill -9 in the midst of a downgrade the database is as it was, and the next one works.
    """
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
def test_an_upgrade_may_be_killed_at_any_statement(empty, start):
    """
    Killed at the first statement, at the second, and so on until one lives: never is anything half
    done.
    """
    before = prepared(empty, start)

    number = 1
    while migration_was_killed(empty.target, number):
        empty.assert_nothing_left()
        assert dump(empty) == before, number
        number += 1

    assert number > 10
    assert_sound(empty)
    assert empty.run("SELECT count(*) FROM models") == [
        (0 if start == "nothing" else len(hive_files.PORTABLE_ROWS),)
    ]


@pytest.mark.slow
def test_a_downgrade_may_be_killed_at_any_statement(empty):
    """
    The same on the way back.
    """
    asyncio.run(hive_files.create_hive_table(empty))
    asyncio.run(upgrade(empty.target))
    before = dump(empty)

    number = 1
    while migration_was_killed(empty.target, number, "0001"):
        empty.assert_nothing_left()
        assert dump(empty) == before, number
        number += 1

    assert number > 10
    assert empty.run("SELECT count(*) FROM models") == [(len(hive_files.PORTABLE_ROWS),)]

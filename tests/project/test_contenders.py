"""Who is measured beside the catalog has the same table, the same safety, and right answers."""

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import postgres
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.contenders import CONTENDERS
from benchmarks.harness import models_table as table

from model_catalog.connection.sqlite_pragmas import connection_pragmas
from model_catalog.repository.statements.filters import MODELS

pytestmark = pytest.mark.slow


async def test_all_have_the_table_that_the_migrations_make(sqlite_migrated):
    """
    Each of its columns, and nothing else; and connections that are told what ours are.
    """
    with closing(sqlite3.connect(sqlite_migrated)) as raw:
        made = {name for _, name, *_ in raw.execute("PRAGMA table_info(models)")}

    assert set(table.COLUMNS) == made == {column.key for column in MODELS.c}
    for durability in table.DURABILITIES:
        told = {f"PRAGMA {name} = {value}" for name, value in table.pragmas(durability).items()}
        assert told == {*connection_pragmas(durability), "PRAGMA journal_mode = WAL"}


def entrants(database):
    return [
        pytest.param(
            each,
            id=each.name,
            marks=pytest.mark.filterwarnings("ignore")  # a library's own affair
            if each.kind == "peer"
            else [],
        )
        for each in CONTENDERS
        if each.database == database
    ]


async def answers(entrant, target):
    """What a contender says of the same questions, and of what it was told."""
    if entrant.missing:
        pytest.skip(f"there is no {entrant.missing}")
    who = entrant.make()
    known, new = table.registration(3), table.registration(10**6)
    await who.open(target, "full")
    try:
        found = await who.find(known.reference, known.provider)
        assert known.reference in str(vars(found) if hasattr(found, "__dict__") else found)
        assert await who.find(new.reference, new.provider) is None
        before = await who.total()
        await who.register(new)
        await who.register(new)
        assert await who.find(new.reference, new.provider) is not None
        assert await who.total() == before + new.size_bytes
        many = list(table.registrations(40, first=2 * 10**6))
        await who.register_many(many)
        assert len(await who.list()) == 141
        assert len(await who.page("llama", 5)) == 5
        assert await who.remove(new.reference, new.provider)
        assert not await who.remove(new.reference, new.provider)
        return before
    finally:
        await who.close()


@pytest.fixture
def hundred(sqlite_migrated, tmp_path):
    path = tmp_path / "catalog.db"
    shutil.copy(sqlite_migrated, path)
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.executemany(table.UPSERT, table.initial_rows(100))
    return path


@pytest.mark.parametrize("entrant", entrants("sqlite"))
async def test_all_contenders_answer_alike(entrant, hundred):
    """
    Who forgets a row, or does not count what was registered again, has won nothing.
    """
    assert await answers(entrant, str(hundred)) == sum(
        e.size_bytes for e in table.initial_rows(100)
    )

    with closing(sqlite3.connect(hundred)) as raw:
        ((one,),) = raw.execute("SELECT count(*) FROM models WHERE state = 'unchecked' AND id = 4")
        ((rows,),) = raw.execute("SELECT count(*) FROM models")
    assert (one, rows) == (1, 140)


@pytest.mark.parametrize("entrant", entrants("postgresql"))
async def test_all_contenders_answer_alike_on_postgresql(entrant, pg_migrated):
    """
    The same, where a server keeps the rows.
    """
    import psycopg

    with psycopg.connect(postgres.dsn(pg_migrated), autocommit=True) as raw:
        raw.execute("DELETE FROM models")
        raw.cursor().executemany(table.UPSERT.replace("?", "%s"), list(table.initial_rows(100)))
    target = pg_migrated.set(drivername="postgresql+asyncpg")

    told = await answers(entrant, target.render_as_string(hide_password=False))

    assert told == sum(each.size_bytes for each in table.initial_rows(100))


@pytest.mark.parametrize("mode", ["cold", "memory", "register"])
def test_a_child_says_what_it_has_measured(mode, hundred):
    """
    A process of its own opens, works and closes; how much memory it took is its own peak.
    """
    with closing(sqlite3.connect(hundred)) as raw, raw:
        raw.executemany(table.UPSERT, table.initial_rows(1000))
    more = ["5000000", "3"] if mode == "register" else []
    words = [
        sys.executable,
        "-m",
        "benchmarks.harness.child",
        mode,
        "aiosqlite",
        hundred,
        "full",
        *more,
    ]

    done = subprocess.run(words, input="go\n", capture_output=True, text=True, cwd=ROOT, check=True)

    said = done.stdout.split()
    assert said == {"cold": ["-"], "register": ["ready", "done"]}.get(mode, said)
    if mode == "memory":
        # A thousand rows of 42 columns, and no interpreter, which takes ten times as much.
        assert 0 < int(said[0]) < 2**23
    with closing(sqlite3.connect(hundred)) as raw:
        ((rows,),) = raw.execute("SELECT count(*) FROM models")
    assert rows == (1003 if mode == "register" else 1000)

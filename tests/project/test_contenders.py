"""All contenders use the same table, are equally durable, and return correct results."""

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
from benchmarks.harness import models_table

from model_catalog.connection.sqlite_pragmas import connection_pragmas
from model_catalog.repository.statements.filters import MODELS

pytestmark = pytest.mark.slow


async def test_the_columns_and_pragmas_are_those_of_the_catalog(sqlite_migrated):
    """Contenders map every column of a migrated database, and use the catalog's PRAGMAs."""
    with closing(sqlite3.connect(sqlite_migrated)) as raw:
        migrated = {name for _, name, *_ in raw.execute("PRAGMA table_info(models)")}

    assert set(models_table.COLUMNS) == migrated == {column.key for column in MODELS.c}
    for durability in models_table.DURABILITIES:
        pragmas = {
            f"PRAGMA {name} = {value}" for name, value in models_table.pragmas(durability).items()
        }
        assert pragmas == {*connection_pragmas(durability), "PRAGMA journal_mode = WAL"}


def contenders(database):
    return [
        pytest.param(
            spec,
            id=spec.name,
            # Warnings of other libraries are not defects of this project.
            marks=pytest.mark.filterwarnings("ignore") if spec.kind == "library" else [],
        )
        for spec in CONTENDERS
        if spec.database == database
    ]


async def check_results(spec, target):
    """Call every method of a contender and check the results. Returns the first total."""
    if spec.missing:
        pytest.skip(spec.missing)
    contender = spec.make()
    known, new = models_table.registration(3), models_table.registration(10**6)
    await contender.open(target, "full")
    try:
        found = await contender.find(known.reference, known.provider)
        assert known.reference in str(vars(found) if hasattr(found, "__dict__") else found)
        assert await contender.find(new.reference, new.provider) is None
        before = await contender.total()
        await contender.register(new)
        await contender.register(new)
        assert await contender.find(new.reference, new.provider) is not None
        assert await contender.total() == before + new.size_bytes
        many = list(models_table.registrations(40, first=2 * 10**6))
        await contender.register_many(many)
        assert len(await contender.list()) == 141
        assert len(await contender.page("llama", 5)) == 5
        assert await contender.remove(new.reference, new.provider)
        assert not await contender.remove(new.reference, new.provider)
        return before
    finally:
        await contender.close()


@pytest.fixture
def hundred_models(sqlite_migrated, tmp_path):
    """A database with a hundred models."""
    path = tmp_path / "catalog.db"
    shutil.copy(sqlite_migrated, path)
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.executemany(models_table.UPSERT, models_table.initial_rows(100))
    return path


TOTAL_SIZE = sum(row.size_bytes for row in models_table.initial_rows(100))


@pytest.mark.parametrize("spec", contenders("sqlite"))
async def test_a_contender_on_sqlite_returns_correct_results(spec, hundred_models):
    """It finds, counts and removes the models that were registered, and keeps the others."""
    assert await check_results(spec, str(hundred_models)) == TOTAL_SIZE

    with closing(sqlite3.connect(hundred_models)) as raw:
        ((unchanged,),) = raw.execute(
            "SELECT count(*) FROM models WHERE state = 'unchecked' AND id = 4"
        )
        ((rows,),) = raw.execute("SELECT count(*) FROM models")
    assert (unchanged, rows) == (1, 140)


@pytest.mark.parametrize("spec", contenders("postgresql"))
async def test_a_contender_on_postgresql_returns_correct_results(spec, pg_migrated):
    """It finds, counts and removes the models that were registered."""
    import psycopg

    with psycopg.connect(postgres.dsn(pg_migrated), autocommit=True) as raw:
        raw.execute("DELETE FROM models")
        rows = list(models_table.initial_rows(100))
        raw.cursor().executemany(models_table.UPSERT.replace("?", "%s"), rows)
    target = pg_migrated.set(drivername="postgresql+asyncpg")

    total = await check_results(spec, target.render_as_string(hide_password=False))

    assert total == TOTAL_SIZE


@pytest.mark.parametrize("mode", ["cold", "memory", "register"])
def test_a_child_process_prints_what_it_measured(mode, hundred_models):
    """It opens the database, runs and closes. The memory is the growth of its own peak."""
    with closing(sqlite3.connect(hundred_models)) as raw, raw:
        raw.executemany(models_table.UPSERT, models_table.initial_rows(1000))
    more = ["5000000", "3"] if mode == "register" else []
    child = [sys.executable, "-m", "benchmarks.harness.child"]
    command = [*child, mode, "aiosqlite", hundred_models, "full", *more]

    done = subprocess.run(
        command, input="go\n", capture_output=True, text=True, cwd=ROOT, check=True
    )

    output = done.stdout.split()
    assert output == {"cold": ["-"], "register": ["ready", "done"]}.get(mode, output)
    if mode == "memory":
        # A thousand rows of 44 columns. The interpreter alone would be ten times as large.
        assert 0 < int(output[0]) < 2**23
    with closing(sqlite3.connect(hundred_models)) as raw:
        ((rows,),) = raw.execute("SELECT count(*) FROM models")
    assert rows == (1003 if mode == "register" else 1000)

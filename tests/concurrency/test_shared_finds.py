"""Finds that share a query or a snapshot do not share each other's errors."""

import asyncio
import os

import pytest
from conftest import a_model
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import CatalogCorruptError, CatalogError, ModelCatalog, open_catalog

ROLE = f"model_catalog_reader_{os.getpid()}"
GOOD = [f"m{number:02}" for number in range(40)]
REFUSE_ONE_ROW = f"""
    CREATE ROLE {ROLE} LOGIN;
    GRANT USAGE ON SCHEMA public TO {ROLE};
    GRANT SELECT ON ALL TABLES IN SCHEMA public TO {ROLE};
    CREATE FUNCTION readable(name text) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN
            IF name = 'bad' THEN RAISE 'this row cannot be read' USING ERRCODE = '22000'; END IF;
            RETURN true;
        END $$;
    ALTER TABLE models ENABLE ROW LEVEL SECURITY;
    CREATE POLICY reading ON models FOR SELECT TO {ROLE} USING (readable(reference))"""


async def fill(database) -> None:
    async with open_catalog(database.target) as catalog:
        await catalog.register_models(
            a_model(name, description="x" * 3000) for name in [*GOOD, "bad"]
        )


async def find_all(catalog) -> list[object]:
    """Find the bad model among the good ones, all at once; return models and errors by name."""
    names = [*GOOD[:20], "bad", *GOOD[20:]]
    found = await asyncio.gather(
        *(catalog.find_model(name, "hf") for name in names), return_exceptions=True
    )
    assert [model.reference for model in found[:20] + found[21:]] == GOOD
    return found[20]


@pytest.fixture
def refused_row(empty):
    """A database that refuses to read one row, and its target for a role that is refused."""
    asyncio.run(fill(empty))
    empty.run(REFUSE_ONE_ROW)
    yield empty.target_url.set(username=ROLE).render_as_string(hide_password=False)
    empty.run(f"DROP OWNED BY {ROLE}; DROP ROLE {ROLE}")


@pytest.mark.parametrize("backend", ["asyncpg", "psycopg"])
async def test_a_row_that_the_server_refuses_fails_only_its_own_find(refused_row):
    """A policy of the server raises an error for one row. The other finds get their models."""
    async with open_catalog(refused_row) as catalog:
        error = await find_all(catalog)

    assert type(error) is CatalogError
    assert "this row cannot be read" in str(error)


@pytest.mark.parametrize("backend", ["sqlite"])
async def test_a_damaged_page_fails_only_the_find_that_reads_it(database):
    """A page of one description is overwritten on the disk. SQLite then refuses to commit."""
    await fill(database)
    database.run("UPDATE models SET description = ? WHERE reference = 'bad'", "bad!" * 5000)
    database.run("VACUUM")
    database.run("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(database.path.read_bytes())
    # Each page of the long text begins with the number of the next one.
    overflow = next(
        at for at in range(0, len(content), 4096) if not content[at + 4 : at + 100].strip(b"bad!")
    )
    content[overflow : overflow + 4] = b"\xff\xff\xff\xff"
    database.path.write_bytes(content)

    engine = create_async_engine(database.target_url)
    async with open_catalog(database.target) as catalog:
        for each in (catalog, ModelCatalog(async_sessionmaker(engine))):
            # Twice: the next finds begin a new snapshot on the same connection.
            errors = [await find_all(each), await find_all(each)]
            assert [type(error) for error in errors] == [CatalogCorruptError] * 2
    await engine.dispose()


@pytest.mark.parametrize("backend", ["sqlite", "asyncpg", "psycopg"])
async def test_cancelled_finds_leave_the_others_their_answers(database):
    """Callers give up at different moments: before their batch, in it and after it."""
    await fill(database)

    async with open_catalog(database.target) as catalog:
        for turns in range(12):
            tasks = [asyncio.create_task(catalog.find_model(name, "hf")) for name in GOOD]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)

            assert [model.reference for model in done[1::2]] == GOOD[1::2]

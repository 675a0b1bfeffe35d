"""The search index is checked, completed, copied and dropped with its database."""

import sqlite3
from contextlib import closing

import postgres
import psycopg
import pytest
from conftest import a_model
from sqlalchemy import create_engine

from model_catalog import check_schema, downgrade, open_catalog, schema_state, upgrade
from model_catalog.backups.restore import backup
from model_catalog.backups.salvage import repair
from model_catalog.mapping.search_index import indexing, objects

INDEX, STATE, CHANGES = objects.INDEX, objects.STATE, objects.CHANGES


@pytest.fixture
async def indexed(sqlite_file):
    """A file with three indexed models."""
    async with open_catalog(sqlite_file) as catalog:
        for name in ("alpha", "beta", "gamma"):
            await catalog.register_model(a_model(name))
    engine = create_engine(f"sqlite:///{sqlite_file}")
    with engine.begin() as connection:
        indexing.index_all(connection)
    engine.dispose()
    return sqlite_file


def run(path, *statements):
    with closing(sqlite3.connect(path)) as raw, raw:
        for statement in statements:
            found = raw.execute(statement).fetchall()
    return found


async def found(path, word):
    async with open_catalog(path) as catalog:
        return [model.reference for model in await catalog.list_models(search=word)]


DAMAGES = {
    "a model that the index lacks": [
        f"INSERT INTO {INDEX} ({INDEX}) VALUES ('delete-all')",
        f"INSERT INTO {INDEX} (rowid, folded) VALUES (1, 'alpha')",
    ],
    "a missing trigger, and what it did not see": [
        f"DROP TRIGGER {INDEX}_models_updated",
        "UPDATE models SET description_folded = 'fresh words' WHERE id = 2",
    ],
    "a missing index": [f"DROP TABLE {INDEX}"],
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_check_finds_a_broken_index_and_an_upgrade_mends_it(indexed, damage):
    """The check names the fix, and afterwards every model is found again."""
    run(indexed, *DAMAGES[damage])

    problems = await check_schema(indexed)
    await upgrade(indexed)

    (problem,) = (each for each in problems if each.startswith("search index: "))
    assert problem.endswith("`model-catalog db upgrade` completes it")
    assert await check_schema(indexed) == []
    assert await found(indexed, "beta") == ["beta"]
    if "fresh" in str(DAMAGES[damage]):
        assert await found(indexed, "fresh words") == ["beta"]


async def test_an_upgrade_indexes_the_models_that_wait(sqlite_file):
    """Those of another program too, and only if they are not few."""
    run(
        sqlite_file,
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 600)"
        " INSERT INTO models (provider, reference, reference_folded, local_path)"
        " SELECT 'hf', 'm' || i, 'm' || i, '/m' FROM n",
    )

    await upgrade(sqlite_file)

    assert run(sqlite_file, f"SELECT indexed_to FROM {STATE}") == [(600,)]
    assert await found(sqlite_file, "m599") == ["m599"]


async def test_a_downgrade_drops_the_index_and_an_upgrade_fills_it_again(indexed):
    """Nothing of it is left between them."""
    await downgrade(indexed, "0027")
    left = run(indexed, f"SELECT name FROM sqlite_master WHERE name LIKE '{INDEX}%'")
    await upgrade(indexed)

    assert left == []
    assert run(indexed, f"SELECT indexed_to FROM {STATE}") == [(3,)]
    assert await found(indexed, "gam") == ["gamma"]


@pytest.mark.slow
async def test_copies_of_a_file_are_searched_like_the_file(indexed, tmp_path):
    """A backup has the index, a repaired file fills its own, and VACUUM keeps it."""
    copy = await backup(indexed, tmp_path / "copy.db")
    report = await repair(indexed, tmp_path / "repaired.db")
    with closing(sqlite3.connect(indexed, isolation_level=None)) as raw:
        raw.execute("VACUUM")

    for path in (copy, report.path, indexed):
        assert await found(path, "ALPH") == ["alpha"]
        assert await check_schema(path) == []


async def test_the_state_tells_whether_a_search_has_an_index(indexed):
    """A file whose index is missing is still searched."""
    with_index = await schema_state(indexed)
    run(indexed, f"DELETE FROM {STATE}", f"DROP TABLE {INDEX}")
    without = await schema_state(indexed)

    assert with_index == without
    assert (with_index.has_search_index, without.has_search_index) == (True, False)
    assert await found(indexed, "beta") == ["beta"]


@pytest.mark.parametrize("backend", ["asyncpg"])
async def test_a_role_that_may_not_create_the_extension_searches_without_it(empty):
    """The upgrade succeeds, and a later one adds the indexes once the extension is there."""
    role = "search_index_role"
    empty.run("DROP EXTENSION IF EXISTS pg_trgm")
    empty.run(f"CREATE ROLE {role} LOGIN")
    try:
        empty.run(f"GRANT USAGE, CREATE ON SCHEMA public TO {role}")
        target = empty.url.set(drivername="postgresql+asyncpg", username=role, password=None)
        await upgrade(target)
        before = (await schema_state(target)).has_search_index, await check_schema(target)
        async with open_catalog(target) as catalog:
            await catalog.register_model(a_model("alpha"))
            searched = await catalog.count_models(search="LPH")
        with psycopg.connect(postgres.dsn(empty.url), autocommit=True) as raw:
            raw.execute("CREATE EXTENSION pg_trgm SCHEMA public")
        problems = await check_schema(target)
        await upgrade(target)
        after = (await schema_state(target)).has_search_index, await check_schema(target)
    finally:
        empty.run(f"DROP OWNED BY {role} CASCADE")
        empty.run(f"DROP ROLE {role}")

    assert (before, searched, after) == ((False, []), 1, (True, []))
    assert problems == ["search index: it is missing; `model-catalog db upgrade` completes it"]

"""A database with tables of another program is shared only if that is asked for."""

import subprocess
import sys
from pathlib import Path

import pytest
from schema_shape import dump
from sqlalchemy.ext.asyncio import create_async_engine

from model_catalog import (
    ForeignDatabaseError,
    check_schema,
    open_catalog,
    schema_state,
    upgrade,
)
from model_catalog.mapping.revisions import head_revision

ROOT = Path(__file__).parents[2]
HEAD = head_revision()


@pytest.fixture
def shared(empty):
    """A database with a table of another program."""
    empty.run("CREATE TABLE urls (id INTEGER PRIMARY KEY, url TEXT)")
    empty.run("INSERT INTO urls VALUES (1, 'a')")
    return empty


async def open_and_close(target, **options) -> None:
    async with open_catalog(target, **options):
        pass


def run(*words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


async def by_engine(database) -> None:
    engine = create_async_engine(database.target_url)
    await upgrade(engine)
    await engine.dispose()


def by_command(database) -> None:
    assert run("model_catalog", "db", "upgrade", "--shared", "--db", database.target)[0] == 0


def by_alembic(database) -> None:
    words = ("alembic", "-x", f"url={database.target}", "-x", "shared=yes", "upgrade", "head")
    assert run(*words)[0] == 0


ASKED = {
    "upgrade": lambda database: upgrade(database.target, shared=True),
    "open_catalog": lambda database: open_and_close(database.target, shared=True),
    "the host's engine": by_engine,
    "the command": by_command,
    "alembic": by_alembic,
}


@pytest.mark.slow_with("the command", "alembic")
@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
async def test_a_database_is_shared_if_that_is_asked_for(shared, ask):
    """
    The catalog is created beside the tables of the other program. After that it opens without the
    option.
    """
    waiting = ask(shared)
    if waiting is not None:
        await waiting

    async with open_catalog(shared.target) as catalog:
        assert await catalog.list_models() == []
    assert await schema_state(shared.target) == (HEAD, HEAD)
    assert await check_schema(shared.target) == []
    assert shared.run("SELECT * FROM urls") == [(1, "a")]
    if shared.path is not None:
        assert shared.run("PRAGMA application_id") == [(0,)]


async def test_a_database_is_not_shared_by_default(shared):
    """Nothing is changed, and the error says how to ask."""
    before = dump(shared)

    for attempt in (
        upgrade(shared.target),
        schema_state(shared.target),
        open_and_close(shared.target),
        open_and_close(shared.target, upgrade=False),
    ):
        with pytest.raises(ForeignDatabaseError, match="the tables 'urls' and no cat") as caught:
            await attempt
        for way in ("shared=True", "--shared", "AsyncEngine"):
            assert way in str(caught.value)
    assert dump(shared) == before
    assert await schema_state(shared.target, shared=True) == (None, HEAD)


@pytest.mark.slow
def test_a_command_does_not_share_a_database_by_default(shared):
    """Both commands say which tables they found. A misspelt option is an error."""
    before = dump(shared)

    by_cli = run("model_catalog", "db", "upgrade", "--db", shared.target)
    by_alembic = run("alembic", "-x", f"url={shared.target}", "upgrade", "head")
    misspelt = run("alembic", "-x", f"url={shared.target}", "-x", "shared=on", "upgrade", "head")

    for code, output in (by_cli, by_alembic):
        assert code != 0
        assert "the tables 'urls' and no catalog" in output
    assert misspelt[0] != 0
    assert "shared=on: give `yes` or `no`" in misspelt[1]
    assert dump(shared) == before


async def test_a_table_models_of_another_program_cannot_be_shared(empty):
    """The error does not advise to share the database."""
    empty.run("CREATE TABLE models (id INTEGER PRIMARY KEY, name TEXT)")

    with pytest.raises(ForeignDatabaseError, match="needs a table of that name") as caught:
        await upgrade(empty.target, shared=True)

    assert "shared=True" not in str(caught.value)


async def test_our_own_database_may_be_opened_as_shared(empty):
    """Without tables of another program the option has no effect."""
    await upgrade(empty.target, shared=True)

    assert await schema_state(empty.target) == (HEAD, HEAD)
    if empty.path is not None:
        assert empty.path.read_bytes()[68:72] == b"MCat"

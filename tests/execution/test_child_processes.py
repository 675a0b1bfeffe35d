"""Children by fork, spawn and forkserver, that open a catalog which their parent has open too."""

import json
import multiprocessing
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from model_catalog import WrongLoopError, sync

TESTS = Path(__file__).parents[1]
# Python 3.12 and later warn of any fork beside a thread.
PYTHON = [sys.executable, "-W", "ignore::DeprecationWarning"]


def rows_of(path: Path, statement: str) -> list[tuple]:
    with closing(sqlite3.connect(path)) as raw:
        return raw.execute(statement).fetchall()


def run(program: str, *arguments: str) -> str:
    """Run a program, which prints no messages; return its output."""
    done = subprocess.run(
        [*PYTHON, TESTS / program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "method", "kind"),
    [
        ("sqlite", "fork", "sync"),
        ("asyncpg", "fork", "async"),
        ("psycopg", "fork", "sync"),
        ("sqlite", "spawn", "async"),
        ("asyncpg", "forkserver", "sync"),
    ],
)
def test_children_of_multiprocessing_open_their_own_catalog(database, method, kind):
    """
    The parent writes all the time. Each child registers a model by a catalog of its own. One that
    is inherited by `fork` raises WrongLoopError. All that was acknowledged is there.
    """
    found = json.loads(run("child_processes_program.py", database.target, method, kind))

    assert found == {
        "inherited": ["WrongLoopError" if method == "fork" else "none"],
        "is_in_children": True,
        "has_written": True,
        "missing": 0,
    }


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
async def test_a_catalog_cannot_be_passed_to_a_child(on_sqlite, sqlite_file, method):
    """The error says to pass its target, and the catalog can be used further."""
    context = multiprocessing.get_context(method)

    with sync.open_catalog(sqlite_file) as blocking:
        for each in (on_sqlite, blocking):
            process = context.Process(target=print, args=(each,))
            with pytest.raises(WrongLoopError, match="pass its target"):
                process.start()

    assert await on_sqlite.count_models() == 0


@pytest.mark.slow_with("writing", "inline")
@pytest.mark.parametrize("kind", ["idle", "writing", "inline"])
def test_a_forked_child_writes_on_after_its_parent_has_closed(sqlite_file, kind):
    """
    SQLite keeps the locks of a file in memory that a child inherits without the locks. The parent
    would delete the log to which the child writes.
    """
    output = run("surviving_child_program.py", str(sqlite_file), kind)

    acknowledged = set(output.split())
    listed = rows_of(sqlite_file, "SELECT reference FROM models")
    assert acknowledged == {f"child{number}" for number in range(5)}
    assert acknowledged | {"before", "child"} <= {name for (name,) in listed}
    assert rows_of(sqlite_file, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.slow
def test_a_child_that_is_forked_in_a_transaction_cannot_open_the_file(sqlite_file):
    """The open transaction stays the parent's. The child is told, instead of losing writes."""
    output = run("surviving_child_program.py", str(sqlite_file), "transaction")

    assert output.split() == ["CatalogUnavailableError"]
    listed = rows_of(sqlite_file, "SELECT reference FROM models ORDER BY 1")
    assert listed == [("before",), ("in transaction",)]


SERVICE = """
import asyncio, os, sys
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from model_catalog import Model, ModelCatalog

async def use(name):
    await catalog.register_model(Model(reference=name, provider="hf", local_path="/m"))

async def main():
    await use("parent")
    if sys.argv[2] == "disposed":
        await engine.dispose()

engine = create_async_engine(f"sqlite+aiosqlite:///{sys.argv[1]}")
catalog = ModelCatalog(async_sessionmaker(engine))
asyncio.run(main())
child = os.fork()
if child == 0:
    asyncio.run(use("child"))
    asyncio.run(use("child again"))
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.slow
@pytest.mark.parametrize("state", ["open", "disposed"])
def test_a_service_that_forks_with_open_connections_is_warned_once(sqlite_file, state):
    """The catalog does not close connections of a service's own engine."""
    done = subprocess.run(
        [*PYTHON, "-c", SERVICE, sqlite_file, state],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stderr.count("may lose writes") == (state == "open"), done.stderr
    listed = rows_of(sqlite_file, "SELECT reference FROM models ORDER BY 1")
    assert listed == [("child",), ("child again",), ("parent",)]

"""Interpreters that exit without closing their catalog: they end, and nothing is lost."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BACKENDS
from unclosed_program import WAYS, WRITES

# The second driver, where its own clean-up is what matters.
CASES = [
    (backend, way)
    for way in WAYS
    for backend in BACKENDS
    if backend != "psycopg" or way.startswith(("run-in", "loop-in-progress"))
]
PROGRAM = Path(__file__).parents[1] / "unclosed_program.py"
ENDS_WITHIN_S = 15
MAX_MESSAGES = 1
"""Lines on the standard error, from Python or a driver."""


@pytest.mark.slow_with("asyncpg", "idle", "progress", "engine", "loop", "sync")
@pytest.mark.parametrize(("backend", "way"), CASES)
def test_an_interpreter_that_exits_without_closing_loses_nothing(database, way):
    """
    It exits with 0 and at most one message, whatever is open or on its way. Every write that was
    acknowledged is there, and an open transaction is not.
    """
    done = subprocess.run(
        [sys.executable, PROGRAM, database.target, way],
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN_S,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) <= MAX_MESSAGES, done.stderr
    acknowledged = set(done.stdout.split())
    recorded = {name for (name,) in database.run("SELECT reference FROM models")}
    assert len(acknowledged) >= WRITES
    assert acknowledged - recorded == set()
    assert "not committed" not in recorded


SERVICE = """
import asyncio, sys
from contextlib import asynccontextmanager
from model_catalog import Model, open_catalog

model = Model(reference="m", provider="hf", local_path="/m")
kept = []

@asynccontextmanager
async def lifespan():
    async with open_catalog(sys.argv[1]) as catalog:
        async with catalog.transaction() as inner:
            await inner.register_model(model)
            yield

async def main():
    kept.append(lifespan())
    await kept[0].__aenter__()

asyncio.run(main())
"""


@pytest.mark.slow_with("asyncpg")
def test_a_generator_around_a_catalog_is_closed_with_its_loop(database):
    """
    `asyncio.run` closes all generators at once, in any order. Each block ends once, without a
    message, and the open transaction is rolled back.
    """
    done = subprocess.run(
        [sys.executable, "-c", SERVICE, database.target],
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN_S,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert database.run("SELECT reference FROM models") == []

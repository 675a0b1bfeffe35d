"""A process that forks while calls are on their way, or that ends without closing its catalog."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import make_url

from model_catalog.connection.target import resolve_target

TESTS = Path(__file__).parents[1]
MODELS = 1500
EXIT_CODES = {"exit": 3, "exception": 1, "_exit": 3, "call": 3}

# Python 3.12 and later warn of any fork beside a thread.
PYTHON = [sys.executable, "-W", "ignore::DeprecationWarning"]


def url_of(database) -> str:
    target = database.target
    url = make_url(target) if "://" in target else resolve_target(target).url
    return url.render_as_string(hide_password=False)


def fork_during_calls(database, kind, how):
    """Run the program; return its result and its messages."""
    program = str(TESTS / "forks_during_calls_program.py")
    done = subprocess.run(
        [*PYTHON, program, url_of(database), kind, how],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def without_psycopg(lines):
    """Leave out the line, and its continuation, in which psycopg logs the end of a pipeline."""
    start = next((n for n, line in enumerate(lines) if "psycopg.AsyncPipeline" in line), len(lines))
    assert len(lines) - start <= 5
    return lines[:start]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("own", "exit"),
        ("own", "_exit"),
        ("own", "call"),
        ("host", "exit"),
        ("host", "exception"),
        ("transaction", "exit"),
    ],
)
def test_a_child_that_is_forked_during_calls_ends(database, kind, how):
    """It ends however it leaves, every call of the parent succeeds, and neither prints warnings."""
    found, messages = fork_during_calls(database, kind, how)

    assert found == {"child": EXIT_CODES[how], "errors": [], "count": 2 * MODELS + 2}
    expected = {"exception": "LeftError", "call": "WrongLoopError"}.get(how, "")
    lines = messages.splitlines()
    if how == "exception":
        # The traceback of the child's own exception.
        assert lines.count("Traceback (most recent call last):") == 1
        assert lines[-1].endswith(expected)
    else:
        assert without_psycopg(lines) == expected.split()

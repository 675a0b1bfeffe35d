"""The examples run: the tests of the services, and the code of the notebook."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SERVICE = EXAMPLES / "fastapi_service"
HIVE = EXAMPLES / "hive"


def run(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_tests_of_the_service_pass(pg_server):
    """On SQLite and on PostgreSQL."""
    pytest.importorskip("fastapi")
    server = pg_server.set(drivername="postgresql+asyncpg")
    # pytest-asyncio, which the service does not use, demands a setting.
    words = ("-m", "pytest", "-p", "no:asyncio", "-p", "no:cacheprovider", "-q")

    done = run(
        *words, cwd=SERVICE, TEST_POSTGRESQL_URL=server.render_as_string(hide_password=False)
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


@pytest.mark.slow
def test_the_tests_of_the_hive_pass():
    """With processes of the service, and a hub on the loopback interface."""
    pytest.importorskip("fastapi")
    pytest.importorskip("huggingface_hub")
    words = ("-m", "pytest", "-p", "no:asyncio", "-p", "no:cacheprovider", "-q")

    done = run(*words, cwd=HIVE)

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_hive_is_small():
    """Its issue allows 150 lines."""
    lines = [path.read_text().splitlines() for path in (HIVE / "hive").glob("*.py")]

    assert sum(map(len, lines)) <= 150


@pytest.mark.slow
def test_the_services_are_typed(tmp_path):
    """mypy --strict reports nothing."""
    pytest.importorskip("fastapi")
    pytest.importorskip("mypy")

    # With one cache, mypy reads the libraries once: 10 s for each service otherwise.
    mypy = ("-m", "mypy", "--config-file=", "--strict", f"--cache-dir={tmp_path}")
    services = {SERVICE: "placements", HIVE: "hive"}
    for service, package in services.items():
        done = run(*mypy, package, "tests", cwd=service)

        assert done.returncode == 0, done.stdout


def test_the_cells_of_the_notebook_run(tmp_path, monkeypatch, capsys):
    """One after another in one namespace, while an event loop is running."""
    cells = re.findall(r"```python\n(.*?)```", (EXAMPLES / "notebook.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}

    async def run_cells():
        for cell in cells:
            exec(compile(cell, "notebook.md", "exec"), namespace)

    asyncio.run(run_cells())

    printed = capsys.readouterr().out
    assert "local:notes@  7  " in printed
    assert "ok local:notes@" in printed

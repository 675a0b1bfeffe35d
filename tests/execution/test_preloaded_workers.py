"""gunicorn with `--preload`: the application opens a catalog before its workers are forked."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

pytest.importorskip("gunicorn")

# Python 3.12 and later warn of any fork beside a thread.
PYTHON = [sys.executable, "-W", "ignore::DeprecationWarning"]
TESTS = Path(__file__).parents[1]
WORKERS = 2
REQUESTS = 40
ENDS_WITHIN_S = 10

pytestmark = pytest.mark.slow


@contextmanager
def gunicorn(target: str, worker_class: str):
    """Run the service; yields its master process and its port."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--preload", "--workers", str(WORKERS), "--worker-class", worker_class]
    options += ["--bind", f"127.0.0.1:{port}", "--log-level", "warning", "--no-control-socket"]
    master = subprocess.Popen(
        [*PYTHON, "-m", "gunicorn", *options, "preloaded_app:app"],
        cwd=TESTS,
        env={**os.environ, "CATALOG_TARGET": target},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield master, port
    finally:
        if master.poll() is None:
            os.killpg(master.pid, signal.SIGKILL)
            master.wait()


def register(port: int, reference: str) -> list[str]:
    """Ask the service to register a model; return the words of its answer."""
    deadline = time.monotonic() + 20
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.request("GET", f"/{reference}")
            response = connection.getresponse()
            assert response.status == 200
            return response.read().decode().split()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        finally:
            connection.close()


@pytest.mark.parametrize(
    ("backend", "worker_class"),
    [("sqlite", "sync"), ("sqlite", "gthread"), ("asyncpg", "sync"), ("psycopg", "gthread")],
)
def test_workers_of_a_preloaded_application_open_their_own_catalog(database, worker_class):
    """
    The inherited catalog raises WrongLoopError in a worker, and its own one works. SIGTERM ends
    master and workers without a message, and every registration that was answered is there.
    """
    names = [f"m{number}" for number in range(REQUESTS)]

    with gunicorn(database.target, worker_class) as (master, port):
        register(port, "first")
        with ThreadPoolExecutor(4) as clients:
            answers = list(clients.map(lambda name: register(port, name), names))
        master.terminate()
        _, messages = master.communicate(timeout=ENDS_WITHIN_S)

    assert (master.returncode, messages) == (0, "")
    assert {tuple(words) for _, *words in answers} == {("WrongLoopError", "preloaded")}
    recorded = {name for (name,) in database.run("SELECT reference FROM models")}
    assert recorded == {"preloaded", "first", *names}

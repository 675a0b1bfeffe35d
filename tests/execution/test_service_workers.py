"""Two uvicorn workers over a host's sessions: no acknowledged write is lost, whatever ends them."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from model_catalog import check_schema, sync, upgrade

pytestmark = pytest.mark.slow

SERVICE = Path(__file__).parents[2] / "examples" / "fastapi_service"
CLIENT_COUNT = 6
STEP = 60
"""The acknowledged writes between two signals."""


class Load:
    """Clients that register models over HTTP, each one model after another."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.acknowledged: list[str] = []
        self.is_over = threading.Event()
        self.workers_end = threading.Event()
        """Whether workers shut down, each within a time limit."""
        self._progress = threading.Condition()

    def register(self, client: int) -> None:
        """Register models until the load is over. A request that fails is not repeated."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        number = 0
        while not self.is_over.is_set():
            reference = f"{client}-{number}"
            number += 1
            body = {"provider": "hf", "reference": reference, "local_path": f"/{reference}"}
            try:
                connection.request(
                    "PUT", "/models", json.dumps(body), {"Content-Type": "application/json"}
                )
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException):
                # A worker has ended, or none accepts connections.
                connection.close()
                self.is_over.wait(0.02)
                continue
            # uvicorn itself answers 500 for a request that it cancels at the end of that time.
            is_cancelled = response.status == 500 and self.workers_end.is_set()
            assert response.status in (200, 503) or is_cancelled, response.status
            if response.status == 200:
                with self._progress:
                    self.acknowledged.append(reference)
                    self._progress.notify_all()
        connection.close()

    def wait_for_progress(self, count: int = STEP) -> None:
        """Wait until this many more writes were acknowledged."""
        with self._progress:
            goal = len(self.acknowledged) + count
            assert self._progress.wait_for(lambda: len(self.acknowledged) >= goal, 30)


def workers_of(process_id: int) -> list[int]:
    """Return the worker processes of uvicorn, without the resource tracker of multiprocessing."""
    children = Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()
    return [
        int(child)
        for child in children
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


@contextmanager
def uvicorn_with_two_workers(database_url: str):
    """Run the example's service; yields its supervisor and its port."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["-m", "uvicorn", "--factory", "placements.app:create_app", "--workers", "2"]
    # Without a limit uvicorn 0.54 goes on for as long as a client sends requests over a connection
    # that it accepted at the moment of its shutdown.
    words += ["--timeout-graceful-shutdown", "2"]
    supervisor = subprocess.Popen(
        [sys.executable, *words, "--port", str(port), "--log-level", "warning"],
        cwd=SERVICE,
        env={**os.environ, "DATABASE_URL": database_url},
        start_new_session=True,
    )
    try:
        yield supervisor, port
    finally:
        if supervisor.poll() is None:
            os.killpg(supervisor.pid, signal.SIGKILL)
            supervisor.wait()


@pytest.mark.parametrize("backend", ["sqlite", "asyncpg"])
async def test_no_acknowledged_write_is_lost(database):
    """
    Under load a worker is killed, both are reloaded, and the service is told to end. Each
    registration that was answered with 200 is there afterwards, and the database is whole.
    """
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    url = database.target_url.render_as_string(hide_password=False)
    await upgrade(database.target)

    with uvicorn_with_two_workers(url) as (supervisor, port), ThreadPoolExecutor() as threads:
        load = Load(port)
        try:
            clients = [threads.submit(load.register, number) for number in range(CLIENT_COUNT)]
            load.wait_for_progress()
            os.kill(workers_of(supervisor.pid)[0], signal.SIGKILL)
            load.wait_for_progress()
            load.workers_end.set()
            supervisor.send_signal(signal.SIGHUP)
            load.wait_for_progress()
            supervisor.terminate()
            assert supervisor.wait(30) in (0, -signal.SIGTERM)
        finally:
            load.is_over.set()
        for client in clients:
            client.result()

    assert await check_schema(database.target) == []
    if database.path is not None:
        assert database.run("PRAGMA integrity_check") == [("ok",)]
    with sync.open_catalog(database.target) as catalog:
        recorded = {model.reference for model in catalog.iter_models()}
    assert len(load.acknowledged) >= 3 * STEP
    assert set(load.acknowledged) - recorded == set()

"""The service in processes of its own, and a hub on the loopback interface."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx2
import pytest

COMMIT = "a" * 40
FILES = {"config.json": b"{}", "tiny.gguf": b"GGUF\x03\x00\x00\x00" + bytes(300_000)}
# A downloaded repository is a folder.
WORKER = f"{sys.executable} -c 'import os, sys, time; os.stat(sys.argv[1]); time.sleep(600)'"
START_TIMEOUT_S = 60

Start = Callable[[], httpx2.Client]


@pytest.fixture
def hub() -> Iterator[Any]:
    """Serve one model."""
    loopback = import_module("loopback_hub").LoopbackHub(COMMIT, FILES)
    with loopback.serve():
        yield loopback


@pytest.fixture
def start(hub: Any, tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts the service, and returns a client of it."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(serve(hub.url, tmp_path))


@contextmanager
def serve(hub_url: str, folder: Path) -> Iterator[httpx2.Client]:
    """Run the service with a free port until the block ends."""
    command = ["-m", "uvicorn", "--factory", "hive.app:create_app", "--port", "0"]
    variables = {
        "HF_ENDPOINT": hub_url,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HIVE_WORKER": WORKER,
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    with subprocess.Popen(
        [sys.executable, *command, "--timeout-graceful-shutdown", "1"],
        cwd=folder,
        env={**os.environ, **variables},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            # The line ends with the address, and what to press to quit.
            lines = iter(process.stderr.readline, "")
            line = next(line for line in lines if "running on" in line)
            url = line.partition("running on ")[2].split()[0]
            with httpx2.Client(base_url=url, timeout=START_TIMEOUT_S) as client:
                yield client
        finally:
            process.terminate()
            process.communicate()

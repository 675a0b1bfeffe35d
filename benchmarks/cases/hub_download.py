"""Download a repository of three large files, compared with huggingface_hub alone."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from benchmarks.contenders import CATALOG
from benchmarks.harness.benchmark import Benchmark, Environment
from benchmarks.harness.rounds import Result, Sample, run_rounds

LIBRARY: Final = "snapshot_download"
NORMAL: Final = 'model-catalog, durability="normal"'
MEGABYTE: Final = 1_000_000
TITLE: Final = "download of 3 files of {} MB"


async def hub_downloads(environment: Environment) -> Mapping[str, Result]:
    """
    Download from a hub on the loopback interface into an empty cache.

    huggingface_hub waits for no disk. With `durability="full"` the commit that registers the model
    waits for one that is still writing the files.

    The hub and the client are processes of their own: huggingface_hub reads the hub's address once,
    and a hub in the same process would compete for the interpreter.
    """
    if not importlib.util.find_spec("huggingface_hub"):
        return {}
    size_mb = 10 if environment.settings.quick else 100
    folder = environment.folder / "hub-download"
    folder.mkdir()
    hub = _start("hub_server", str(folder), str(size_mb * MEGABYTE))
    client = _start("hub_client", str(folder), HF_ENDPOINT=_read_line(hub), HF_HOME=str(folder))
    try:
        _read_line(client)
        contenders: dict[str, Callable[[], Sample]] = {
            name: _contender(client, name) for name in (LIBRARY, CATALOG, NORMAL)
        }
        rounds = 2 if environment.settings.quick else 25
        result = await run_rounds(contenders, rounds, warm_up=True)
    finally:
        for process in (client, hub):
            process.communicate()
    return {TITLE.format(size_mb): result}


def _start(module: str, *words: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.harness.{module}", *words],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **variables, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _contender(client: subprocess.Popen[str], name: str) -> Callable[[], Sample]:
    def measure() -> Sample:
        print(name, file=client.stdin, flush=True)
        return Sample(_read_line(client))

    return measure


def _read_line(process: subprocess.Popen[str]) -> str:
    return "" if process.stdout is None else process.stdout.readline().strip()


BENCHMARKS: Final = (Benchmark("download of 3 files", hub_downloads, has_target=True),)

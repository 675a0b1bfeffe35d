"""Benchmarks with new processes: start, peak of memory, imports, and eight concurrent writers."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Final

from benchmarks.contenders import CATALOG, ContenderSpec, Installation
from benchmarks.harness.benchmark import ALLOWED, Benchmark, Environment
from benchmarks.harness.rounds import Result, Sample, run_rounds
from benchmarks.versions.installations import child_environment

_ROOT: Final = Path(__file__).parents[2]
_TIMEOUT_S: Final = 300
_PROCESSES: Final = 8
_MODELS_PER_PROCESS: Final = 10
_COLD: Final = "open, cold process"
_MEMORY: Final = "memory peak of list 100k"
_WRITERS: Final = "register, 8 processes"
_IMPORTS: Final = "import, and --help"
_LS: Final = "model-catalog ls"
LS: Final = f"{_LS} of 1k"
LS_LARGE: Final = f"{_LS} --format quiet --limit 1 of 1 million"
OF_1K: Final = "a catalog of 1k"


async def cold_start(environment: Environment) -> Mapping[str, Result]:
    """The whole life of a process that opens a catalog, finds one model and closes."""
    durability = environment.settings.durability
    with_alembic: set[str] = set()

    def measure(spec: ContenderSpec, target: str) -> Callable[[], Awaitable[Sample]]:
        async def run_once() -> Sample:
            started = time.perf_counter()
            output = await _run(*_child(spec, "cold", target, durability), spec=spec)
            if "alembic" in output:
                with_alembic.add(spec.label)
            return Sample(time.perf_counter() - started)

        return run_once

    result = await _run_contenders(environment, _COLD, measure, rows=1000, rounds=8)
    alembic = {ALLOWED: {0: 0.0}}
    alembic |= {name: {0: float(name in with_alembic)} for name in result.medians}
    return {
        _COLD: result,
        f"{_COLD}: Alembic imported (1) or not (0)": Result(alembic, unit="times"),
    }


async def memory(environment: Environment) -> Mapping[str, Result]:
    """How many bytes a process grows at its peak (VmHWM) while it lists all models."""
    durability = environment.settings.durability

    def measure(spec: ContenderSpec, target: str) -> Callable[[], Awaitable[Sample]]:
        async def run_once() -> Sample:
            return Sample(await _run(*_child(spec, "memory", target, durability), spec=spec))

        return run_once

    result = await _run_contenders(
        environment, _MEMORY, measure, rows=100_000, rounds=3, private=False
    )
    return {_MEMORY: replace(result, unit="bytes")}


async def eight_writers(environment: Environment) -> Mapping[str, Result]:
    """
    Eight processes register models in one database, each one model at a time.

    The value is the time until the last one is done, divided by all registrations.
    """
    durability = environment.settings.durability
    firsts = count(60_000_000, 10_000)

    def measure(spec: ContenderSpec, target: str) -> Callable[[], Awaitable[Sample]]:
        async def run_once() -> Sample:
            words = _child(spec, "register", target, durability)
            children = [
                await _start(*words, str(next(firsts)), str(_MODELS_PER_PROCESS), spec=spec)
                for _ in range(_PROCESSES)
            ]
            try:
                for child in children:
                    await _wait_for_line(child)
                started = time.perf_counter()
                ended = await asyncio.gather(*(_run_to_end(child) for child in children))
            finally:
                for child in children:
                    if child.returncode is None:
                        child.kill()
            return Sample((max(ended) - started) / _PROCESSES / _MODELS_PER_PROCESS)

        return run_once

    return {_WRITERS: await _run_contenders(environment, _WRITERS, measure, rows=1000, rounds=3)}


async def imports(environment: Environment) -> Mapping[str, Result]:
    """The whole life of a process that imports a library, and of `model-catalog --help`."""
    processes = {
        "aiosqlite": ("-c", "import asyncio, aiosqlite"),
        "nothing": ("-c", ""),
        CATALOG: ("-c", "from model_catalog import open_catalog, Model"),
        "model-catalog, no name": ("-c", "import model_catalog"),
        "SQLAlchemy ORM": ("-c", "import sqlalchemy.ext.asyncio, sqlalchemy.orm"),
        "SQLAlchemy ORM and Alembic": (
            "-c",
            "import sqlalchemy.ext.asyncio, sqlalchemy.orm, alembic.command",
        ),
        "model-catalog --help": ("-m", "model_catalog", "--help"),
    }
    result = await run_rounds(
        {name: _runner(words) for name, words in processes.items()},
        4 if environment.settings.quick else 10,
        warm_up=True,
    )
    return {_IMPORTS: result}


async def command_line(environment: Environment) -> Mapping[str, Result]:
    """Whole processes of `model-catalog ls`, against the import of SQLAlchemy alone."""
    spec = environment.contenders["sqlite"][0]
    rounds = 3 if environment.settings.quick else 10
    small = await environment.databases.target(spec, 1000, private=False)
    ls = ("-m", "model_catalog", "ls", "--db")
    processes = {
        "SQLAlchemy Core": ("-c", "import sqlalchemy.ext.asyncio"),
        CATALOG: (*ls, small),
    }
    results = {
        LS: await run_rounds(
            {name: _runner(words) for name, words in processes.items()}, rounds, warm_up=True
        )
    }
    if not environment.settings.quick:
        large = await environment.databases.target(spec, 1_000_000, private=False)
        one = ("--format", "quiet", "--limit", "1")
        results[LS_LARGE] = await run_rounds(
            {OF_1K: _runner((*ls, small, *one)), CATALOG: _runner((*ls, large, *one))},
            rounds,
            warm_up=True,
        )
    return results


BENCHMARKS: Final = (
    Benchmark(_COLD, cold_start),
    Benchmark(_MEMORY, memory, has_target=True),
    Benchmark(_WRITERS, eight_writers),
)
"""Those that run contenders, and can compare two versions."""
IMPORTS: Final = Benchmark(_IMPORTS, imports, has_target=True)
COMMAND_LINE: Final = Benchmark(_LS, command_line, has_target=True)


async def _run_contenders(
    environment: Environment,
    name: str,
    measure: Callable[[ContenderSpec, str], Callable[[], Awaitable[Sample]]],
    *,
    rows: int,
    rounds: int,
    private: bool = True,
) -> Result:
    """Measure every contender on SQLite."""
    databases, settings = environment.databases, environment.settings
    specs = [spec for spec in environment.contenders["sqlite"] if spec.takes_part_in(name)]
    targets = {spec.label: await databases.target(spec, rows, private=private) for spec in specs}
    rounds = min(rounds, settings.rounds)
    result = await run_rounds(
        {spec.label: measure(spec, targets[spec.label]) for spec in specs},
        max(1, rounds // 3) if settings.quick else rounds,
    )
    if private:
        for target in targets.values():
            databases.discard(target)
    return result


def _child(spec: ContenderSpec, mode: str, target: str, durability: str) -> tuple[str, ...]:
    return ("-m", "benchmarks.harness.child", mode, spec.name, target, durability)


def _runner(words: Sequence[str]) -> Callable[[], Awaitable[str]]:
    return lambda: _run(*words)


async def _start(*words: str, spec: ContenderSpec | None = None) -> Process:
    installation: Installation | None = None if spec is None else spec.installation
    python = sys.executable if installation is None else installation.python
    return await asyncio.create_subprocess_exec(
        python,
        *words,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        cwd=_ROOT,
        env=child_environment(installation),
    )


async def _run(*words: str, spec: ContenderSpec | None = None) -> str:
    """Run a process and return its output; raises ChildProcessError if it fails."""
    child = await _start(*words, spec=spec)
    try:
        out, err = await asyncio.wait_for(child.communicate(), _TIMEOUT_S)
    except TimeoutError:
        child.kill()
        raise
    if child.returncode:
        raise ChildProcessError(_last_line(err))
    return out.decode()


async def _wait_for_line(child: Process) -> None:
    line = await asyncio.wait_for(child.stdout.readline(), _TIMEOUT_S) if child.stdout else b""
    if not line:
        raise ChildProcessError(_last_line(await child.stderr.read() if child.stderr else b""))


async def _run_to_end(child: Process) -> float:
    """Let a waiting child begin; returns the `time.perf_counter` at which its work was done."""
    if child.stdin is None:
        return math.nan
    child.stdin.write(b"go\n")
    await _wait_for_line(child)
    ended = time.perf_counter()
    await child.communicate()
    return ended


def _last_line(err: bytes) -> str:
    lines = err.decode(errors="replace").strip().splitlines()
    return (lines or ["the process failed without a message"])[-1]

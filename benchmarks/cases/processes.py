"""What takes a process of its own: the start, the peak of memory, and eight that write at once."""

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

from benchmarks.contenders import ContenderSpec
from benchmarks.harness.benchmark import ALLOWED, Benchmark, Environment
from benchmarks.harness.rounds import Result, Sample, run_rounds

_ROOT: Final = Path(__file__).parents[2]
_TIMEOUT_S: Final = 300
_PROCESSES: Final = 8
_ROWS_EACH: Final = 10
_COLD: Final = "open, cold process"
_MEMORY: Final = "memory peak of list 100k"
_WRITERS: Final = "register, 8 processes"


async def cold_start(bench: Environment) -> Mapping[str, Result]:
    """A new process that opens a catalog, finds one model and closes: as long as it all takes."""
    safety = bench.terms.durability
    needed_alembic: set[str] = set()

    def turn(each: ContenderSpec, target: str) -> Callable[[], Awaitable[Sample]]:
        async def one() -> Sample:
            began = time.perf_counter()
            said = await _run("-m", "benchmarks.harness.child", "cold", each.name, target, safety)
            if "alembic" in said:
                needed_alembic.add(each.name)
            return Sample(time.perf_counter() - began)

        return one

    result = await _run_for_each(bench, _COLD, turn, rows=1000, rounds=8)
    alembic = {ALLOWED: {0: 0.0}}
    alembic |= {name: {0: float(name in needed_alembic)} for name in result.medians}
    return {
        _COLD: result,
        f"{_COLD}: Alembic imported (1) or not (0)": Result(alembic, unit="times"),
    }


async def memory(bench: Environment) -> Mapping[str, Result]:
    """By how much a process grows at its peak (VmHWM) while it lists everything."""
    safety = bench.terms.durability

    def turn(each: ContenderSpec, target: str) -> Callable[[], Awaitable[Sample]]:
        async def one() -> Sample:
            return Sample(
                await _run("-m", "benchmarks.harness.child", "memory", each.name, target, safety)
            )

        return one

    result = await _run_for_each(bench, _MEMORY, turn, rows=100_000, rounds=3, own=False)
    return {_MEMORY: replace(result, unit="bytes")}


async def eight_writers(bench: Environment) -> Mapping[str, Result]:
    """Each registers its own models, one at a time; what a registration takes them all together."""
    firsts = count(60_000_000, 10_000)

    def turn(each: ContenderSpec, target: str) -> Callable[[], Awaitable[Sample]]:
        async def one() -> Sample:
            words = ("-m", "benchmarks.harness.child", "register", each.name, target)
            children = [
                await _start(*words, bench.terms.durability, str(next(firsts)), str(_ROWS_EACH))
                for _ in range(_PROCESSES)
            ]
            try:
                for child in children:
                    await _wait_for_line(child)
                began = time.perf_counter()
                ended = await asyncio.gather(*(_finish(child) for child in children))
            finally:
                for child in children:
                    if child.returncode is None:
                        child.kill()
            return Sample((max(ended) - began) / _PROCESSES / _ROWS_EACH)

        return one

    return {_WRITERS: await _run_for_each(bench, _WRITERS, turn, rows=1000, rounds=3)}


async def imports(bench: Environment) -> Mapping[str, Result]:
    """A process that imports a library and ends, and one that prints our help."""
    started = {
        "aiosqlite": ("-c", "import asyncio, aiosqlite"),
        "nothing": ("-c", ""),
        "ours": ("-c", "import model_catalog"),
        "SQLAlchemy ORM": ("-c", "import sqlalchemy.ext.asyncio, sqlalchemy.orm"),
        "SQLAlchemy ORM and Alembic": (
            "-c",
            "import sqlalchemy.ext.asyncio, sqlalchemy.orm, alembic.command",
        ),
        "model-catalog --help": ("-m", "model_catalog", "--help"),
    }
    result = await run_rounds(
        {name: _runner(words) for name, words in started.items()},
        4 if bench.terms.quick else 10,
        warm_up=True,
    )
    return {"import, and --help": result}


BENCHMARKS: Final = (
    Benchmark(_COLD, cold_start),
    Benchmark(_MEMORY, memory, in_table=True),
    Benchmark(_WRITERS, eight_writers),
    Benchmark("import, and --help", imports),
)


async def _run_for_each(
    bench: Environment,
    name: str,
    turn: Callable[[ContenderSpec, str], Callable[[], Awaitable[Sample]]],
    *,
    rows: int,
    rounds: int,
    own: bool = True,
) -> Result:
    """A contender for each entrant on SQLite, on a file of its own."""
    there = [each for each in bench.entrants["sqlite"] if each.takes(name)]
    targets = {each.name: await bench.stock.target(each, rows, own=own) for each in there}
    rounds = min(rounds, bench.terms.rounds)
    result = await run_rounds(
        {each.name: turn(each, targets[each.name]) for each in there},
        max(1, rounds // 3) if bench.terms.quick else rounds,
    )
    if own:
        for target in targets.values():
            bench.stock.discard(target)
    return result


def _runner(words: Sequence[str]) -> Callable[[], Awaitable[str]]:
    return lambda: _run(*words)


async def _start(*words: str) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, *words, stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd=_ROOT
    )


async def _run(*words: str) -> str:
    """What a process printed; raises what it said if it failed."""
    child = await _start(*words)
    try:
        out, err = await asyncio.wait_for(child.communicate(), _TIMEOUT_S)
    except TimeoutError:
        child.kill()
        raise
    if child.returncode:
        raise ChildProcessError(_last_line(err))
    return out.decode()


async def _wait_for_line(child: Process) -> None:
    """Wait until a child says that it is ready."""
    line = await asyncio.wait_for(child.stdout.readline(), _TIMEOUT_S) if child.stdout else b""
    if not line:
        raise ChildProcessError(_last_line(await child.stderr.read() if child.stderr else b""))


async def _finish(child: Process) -> float:
    """Let a child begin, and return when it had ended its work."""
    if child.stdin is None:
        return math.nan
    child.stdin.write(b"go\n")
    await _wait_for_line(child)
    ended = time.perf_counter()
    await child.communicate()
    return ended


def _last_line(err: bytes) -> str:
    return (err.decode(errors="replace").strip().splitlines() or ["it ended without a word"])[-1]

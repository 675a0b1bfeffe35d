"""A work, played out: its contenders opened on their databases, called in turns, and closed."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from benchmarks.contenders import Contender, ContenderSpec
from benchmarks.harness.benchmark import Benchmark, Environment, Settings
from benchmarks.harness.database_files import DatabaseFiles
from benchmarks.harness.rounds import Result, Sample, run_rounds
from benchmarks.harness.workloads import Turn, Workload

_TIMEOUT_S: Final = 120
_WARM_UP_ROWS: Final = 100_000


def call_benchmark(work: Workload) -> Benchmark:
    """A work on every database it is meant for."""

    async def play(bench: Environment) -> Mapping[str, Result]:
        results = {}
        for database in work.databases:
            invited = [
                each
                for each in bench.entrants[database]
                if each.takes(work.name) and each.can(work.verb)
            ]
            if invited:
                title = work.name if database == "sqlite" else f"PostgreSQL: {work.name}"
                results[title] = await run_workload(work, invited, bench.stock, bench.terms)
        return results

    return Benchmark(work.name, play, work.in_table, long=work.long)


async def run_workload(
    work: Workload, entrants: list[ContenderSpec], stock: DatabaseFiles, terms: Settings
) -> Result:
    """Run a work; who cannot even open is among the broken."""
    live: dict[str, Contender] = {}
    targets: dict[str, str] = {}
    broken: dict[str, str] = {}
    for each in entrants:
        targets[each.name] = await stock.target(each, work.rows, own=work.writes)
        contender = each.make()
        try:
            if not work.opens:
                await contender.open(targets[each.name], terms.durability)
        except Exception as error:  # noqa: BLE001 - a contender may fail as it likes
            broken[each.name] = _error_text("open", error)
        else:
            live[each.name] = contender
    # What lives through all rounds need not be looked through at each collection.
    gc.collect()
    gc.freeze()
    result = await run_rounds(
        {name: _turn_runner(work, live[name], targets[name], terms.durability) for name in live},
        terms.rounds,
        budget_s=terms.budget_s,
        # A list of so many is what warms up a contender within the round.
        warm_up=not (terms.quick and work.rows >= _WARM_UP_ROWS and work.verb == "list"),
    )
    gc.unfreeze()
    for name, contender in live.items():
        try:
            if not work.opens:
                await asyncio.wait_for(contender.close(), _TIMEOUT_S)
        except Exception as error:  # noqa: BLE001 - a contender may fail as it likes
            broken[name] = _error_text("close", error)
    if work.writes:
        for target in targets.values():
            stock.discard(target)
    return replace(result, broken={**broken, **result.broken})


def _turn_runner(
    work: Workload, who: Contender, target: str, durability: str
) -> Callable[[], object]:
    number = -1

    async def one() -> Sample:
        nonlocal number
        turn = Turn(who, work.rows, number, target, durability)
        number += 1
        await asyncio.wait_for(work.do(turn), _TIMEOUT_S)
        return turn.sample

    return one


def _error_text(step: str, error: Exception) -> str:
    return f"{step}: {type(error).__name__}: {error}"[:300]

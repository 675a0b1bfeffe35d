"""Benchmarks of catalog calls: open every contender, run a workload in rounds, close."""

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
from benchmarks.harness.workloads import TIMEOUT_S, Turn, Workload, run_turn
from benchmarks.versions.remote_contender import RemoteContender

_NO_WARM_UP_ROWS: Final = 100_000


def call_benchmark(workload: Workload) -> Benchmark:
    """The benchmark that runs a workload on each of its databases."""

    async def run(environment: Environment) -> Mapping[str, Result]:
        results = {}
        for database in workload.databases:
            contenders = [
                spec
                for spec in environment.contenders[database]
                if spec.takes_part_in(workload.name) and spec.has_method(workload.method)
            ]
            if contenders:
                title = workload.name if database == "sqlite" else f"PostgreSQL: {workload.name}"
                results[title] = await run_workload(
                    workload, contenders, environment.databases, environment.settings
                )
        return results

    return Benchmark(workload.name, run, workload.has_target, workload.skip_when_quick)


async def run_workload(
    workload: Workload,
    contenders: list[ContenderSpec],
    databases: DatabaseFiles,
    settings: Settings,
) -> Result:
    """
    Run a workload with all contenders.

    A contender that cannot open its database is reported as broken, and the others still run.
    """
    opened: dict[str, Contender] = {}
    targets: dict[str, str] = {}
    broken: dict[str, str] = {}
    for spec in contenders:
        targets[spec.label] = await databases.target(spec, workload.rows, private=workload.writes)
        contender = spec.make()
        try:
            if not workload.opens_contender:
                await contender.open(targets[spec.label], settings.durability)
        except Exception as error:  # noqa: BLE001 - a contender may raise anything
            broken[spec.label] = _error_text("open", error)
        else:
            opened[spec.label] = contender
    # Objects that exist in all rounds are excluded from the garbage collections between turns.
    gc.collect()
    gc.freeze()
    result = await run_rounds(
        {
            name: _turn_runner(workload, opened[name], targets[name], settings.durability)
            for name in opened
        },
        settings.rounds,
        budget_s=settings.budget_s,
        # Listing this many rows is long enough to warm up a contender within its first turn.
        warm_up=not (
            settings.quick and workload.rows >= _NO_WARM_UP_ROWS and workload.method == "list"
        ),
    )
    gc.unfreeze()
    for name, contender in opened.items():
        try:
            await _close(workload, contender)
        except Exception as error:  # noqa: BLE001 - a contender may raise anything
            broken[name] = _error_text("close", error)
    if workload.writes:
        for target in targets.values():
            databases.discard(target)
    return replace(result, broken={**broken, **result.broken})


async def _close(workload: Workload, contender: Contender) -> None:
    try:
        if not workload.opens_contender:
            await asyncio.wait_for(contender.close(), TIMEOUT_S)
    finally:
        if isinstance(contender, RemoteContender):
            await contender.stop()


def _turn_runner(
    workload: Workload, contender: Contender, target: str, durability: str
) -> Callable[[], object]:
    number = -1

    async def run_next_turn() -> Sample:
        nonlocal number
        turn = Turn(contender, workload.rows, number, target, durability)
        number += 1
        if isinstance(contender, RemoteContender):
            return await contender.run_turn(workload.name, turn)
        return await run_turn(workload, turn)

    return run_next_turn


def _error_text(step: str, error: Exception) -> str:
    return f"{step}: {type(error).__name__}: {error}"[:300]

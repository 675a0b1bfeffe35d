"""The list of all benchmarks, in the order in which they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from benchmarks.cases import (
    adoption,
    fleet,
    hive_upgrade,
    hub_download,
    leases,
    long_calls,
    model_files,
    processes,
    search,
)
from benchmarks.harness.benchmark import Benchmark
from benchmarks.harness.call_benchmarks import call_benchmark
from benchmarks.harness.workloads import WORKLOADS
from benchmarks.targets import HOST_TARGETS

CONTENDER_BENCHMARKS: Final[tuple[Benchmark, ...]] = (
    *(call_benchmark(workload) for workload in WORKLOADS),
    *processes.BENCHMARKS,
)
"""Those that run every contender. Two versions of model-catalog are compared by them."""

BENCHMARKS: Final[tuple[Benchmark, ...]] = (
    *CONTENDER_BENCHMARKS,
    processes.IMPORTS,
    processes.COMMAND_LINE,
    *hive_upgrade.BENCHMARKS,
    *adoption.BENCHMARKS,
    *hub_download.BENCHMARKS,
    *leases.BENCHMARKS,
    *long_calls.BENCHMARKS,
    *search.BENCHMARKS,
    *fleet.BENCHMARKS,
    *model_files.BENCHMARKS,
)


def select_benchmarks(
    words: Sequence[str], *, quick: bool, benchmarks: Sequence[Benchmark] = BENCHMARKS
) -> list[Benchmark]:
    """
    Benchmarks with one of the words in their names.

    `table` selects those with a target, `hosts` those with a target over a host's sessions.
    """
    over_hosts = {target.benchmark.removeprefix("PostgreSQL: ") for target in HOST_TARGETS}
    return [
        benchmark
        for benchmark in benchmarks
        if not (quick and benchmark.skip_when_quick)
        and any(
            {"table": benchmark.has_target, "hosts": benchmark.name in over_hosts}.get(
                word, word in benchmark.name
            )
            for word in words or [""]
        )
    ]

"""Everything there is to measure, in the order in which it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from benchmarks.cases import adoption, processes
from benchmarks.cases import hive_upgrade as hive
from benchmarks.cases import model_files as disk
from benchmarks.harness.benchmark import Benchmark
from benchmarks.harness.call_benchmarks import call_benchmark
from benchmarks.harness.workloads import WORKLOADS

BENCHMARKS: Final[tuple[Benchmark, ...]] = (
    *(call_benchmark(work) for work in WORKLOADS),
    *processes.BENCHMARKS,
    *hive.BENCHMARKS,
    *adoption.BENCHMARKS,
    *disk.BENCHMARKS,
)
"""Each work on every database it is meant for, and what is no call of a catalog alone."""


def select_benchmarks(words: Sequence[str], *, quick: bool) -> list[Benchmark]:
    """Those with one of the words in their names; `table` are those that a target is set for."""
    return [
        part
        for part in BENCHMARKS
        if not (quick and part.long)
        and any(part.in_table if word == "table" else word in part.name for word in words or [""])
    ]

"""Run contenders in rounds, in random order within each round, and compare their medians."""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

_MIN_ROUNDS: Final = 3
_MIN_ROUNDS_BUDGETS: Final = 6
_BASELINE_BUDGETS: Final = 20

Measured: TypeAlias = Callable[[], Awaitable[object] | object]
"""Runs a contender once. It is timed from outside, unless it returns a Sample."""


class Sample(float):
    """
    A value that a contender measured itself: seconds per call, or bytes.

    `cpu_s` is the CPU time per call of this process, in all of its threads, or None.
    """

    cpu_s: float | None = None

    @classmethod
    def of(cls, seconds: float, cpu_s: float) -> Sample:
        sample = cls(seconds)
        sample.cpu_s = cpu_s
        return sample


@dataclass(frozen=True)
class Result:
    """The values of each contender by round. The first contender is the baseline."""

    samples: Mapping[str, Mapping[int, float]]
    broken: Mapping[str, str] = field(default_factory=dict)
    """The contenders that raised an exception, and its text."""
    unit: str = "s"
    """The unit of the samples: `s` for seconds per call, `bytes`, or `times`."""

    @property
    def baseline(self) -> str:
        return next(iter(self.samples))

    @property
    def medians(self) -> dict[str, float]:
        """The median of each contender that ran."""
        return {
            name: statistics.median(values.values())
            for name, values in self.samples.items()
            if values
        }

    @property
    def ratios(self) -> dict[str, float]:
        """The median ratio of each contender to the baseline."""
        return {name: self.ratio(name, self.baseline) for name in self.medians}

    def ratio(self, name: str, to: str) -> float:
        """The median of the ratios within each round that both ran; NaN if there is none."""
        return _ratio(self.samples.get(name, {}), self.samples.get(to, {}))

    def cpu_ratio(self, name: str, to: str) -> float:
        """The same ratio of CPU time, which other processes of the machine disturb less."""
        return _ratio(
            _cpu_samples(self.samples.get(name, {})), _cpu_samples(self.samples.get(to, {}))
        )


def _ratio(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    both = one.keys() & other.keys()
    return statistics.median(_quotient(one[n], other[n]) for n in both) if both else math.nan


def _quotient(one: float, other: float) -> float:
    if other:
        return one / other
    return math.inf if one else 1.0


def _cpu_samples(samples: Mapping[int, float]) -> dict[int, float]:
    return {
        number: sample.cpu_s
        for number, sample in samples.items()
        if isinstance(sample, Sample) and sample.cpu_s is not None
    }


async def run_rounds(
    contenders: Mapping[str, Measured],
    rounds: int,
    *,
    budget_s: float = math.inf,
    warm_up: bool = False,
) -> Result:
    """
    Run all contenders `rounds` times, in a new random order in each round.

    The speed of a machine changes with time. Within a round it is the same for all contenders, so
    ratios are taken within rounds, and their median is the result. The first contender is the
    baseline.

    A contender that has used `budget_s` seconds stops after its third round, and one that has used
    six times as much stops earlier. The baseline runs as long as another contender runs, up to
    twenty budgets, and then the run ends. A contender that raises an exception is left out from
    then on. With `warm_up` one additional round runs first and is not counted.
    """
    names = list(contenders)
    samples: dict[str, dict[int, float]] = {name: {} for name in names}
    spent_s = dict.fromkeys(names, 0.0)
    broken: dict[str, str] = {}

    def is_running(name: str, number: int) -> bool:
        if name == names[0]:
            budgets = _BASELINE_BUDGETS
        else:
            budgets = _MIN_ROUNDS_BUDGETS if number < _MIN_ROUNDS else 1
        allowed_s = math.inf if number < 1 else budgets * budget_s
        return name not in broken and spent_s[name] < allowed_s

    for number in range(-1 if warm_up else 0, rounds):
        running = [name for name in names if is_running(name, number)]
        # A ratio needs the baseline and another contender.
        if number > 0 and (running == names[:1] or names[0] not in running):
            break
        for name in random.sample(running, len(running)):
            # The garbage of the previous contender must not be collected in this one's time.
            gc.collect()
            started = time.perf_counter()
            try:
                result = contenders[name]()
                if isinstance(result, Awaitable):
                    result = await result
            except Exception as error:  # noqa: BLE001 - a contender may raise anything
                broken[name] = f"{type(error).__name__}: {error}"[:300]
                continue
            seconds = time.perf_counter() - started
            spent_s[name] += seconds
            if number >= 0:
                samples[name][number] = result if isinstance(result, Sample) else seconds
            result = None
    return Result(samples, broken)

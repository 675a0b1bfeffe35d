"""Contenders in turns: each round runs all of them in another order, and medians are compared."""

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
_BASELINE_BUDGETS: Final = 20

Measured: TypeAlias = Callable[[], Awaitable[object] | object]
"""Does its part once. It is timed from outside, unless it returns what it measured: a Sample."""


class Sample(float):
    """
    What a contender has measured of itself: seconds a call, or bytes.

    `cpu_s` is what this process computed meanwhile, in all of its threads, where that was measured.
    """

    cpu_s: float | None = None

    @classmethod
    def of(cls, seconds: float, cpu_s: float) -> Sample:
        sample = cls(seconds)
        sample.cpu_s = cpu_s
        return sample


@dataclass(frozen=True)
class Result:
    """What each contender took in each round in which it ran; the first is the base."""

    samples: Mapping[str, Mapping[int, float]]
    broken: Mapping[str, str] = field(default_factory=dict)
    """What the contenders raised that did not get to the end."""
    unit: str = "s"
    """Of the samples: `s` for seconds a call, or `bytes`."""

    @property
    def base(self) -> str:
        return next(iter(self.samples))

    @property
    def medians(self) -> dict[str, float]:
        """The median of each that ran."""
        return {
            name: statistics.median(taken.values()) for name, taken in self.samples.items() if taken
        }

    @property
    def ratios(self) -> dict[str, float]:
        """The median ratio of each to the base."""
        return {name: self.ratio(name, self.base) for name in self.medians}

    def ratio(self, name: str, to: str) -> float:
        """The median of the ratios within each round that both ran; NaN where there is none."""
        return _ratio(self.samples.get(name, {}), self.samples.get(to, {}))

    def cpu_ratio(self, name: str, to: str) -> float:
        """The same of what they computed, which neighbours on the machine disturb less."""
        return _ratio(
            _cpu_samples(self.samples.get(name, {})), _cpu_samples(self.samples.get(to, {}))
        )


def _ratio(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    both = one.keys() & other.keys()
    return statistics.median(_quotient(one[n], other[n]) for n in both) if both else math.nan


def _quotient(one: float, other: float) -> float:
    if other:
        return one / other
    # Nothing at all is as much as nothing, and less than anything.
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
    Run all contenders `rounds` times, in a new order each time.

    The machine has its moods: a ratio is taken within a round, where they are the same for all, and
    the median of the ratios is what is reported. The first contender is what the others are held
    against.

    One that has used up its budget runs no more after its third round, so that a slow one has fewer
    rounds and holds up nobody; one that has used up six of them stops before that. The base runs
    for as long as anybody does, and when it has used up twenty of them that is the end. One that
    raises is left out from then on.
    With `warm_up` there is one round more, which does not count.
    """
    names = list(contenders)
    taken: dict[str, dict[int, float]] = {name: {} for name in names}
    spent = dict.fromkeys(names, 0.0)
    broken: dict[str, str] = {}

    def goes_on(name: str, number: int) -> bool:
        budgets = _BASELINE_BUDGETS if name == names[0] else 6 if number < _MIN_ROUNDS else 1
        allowed_s = math.inf if number < 1 else budgets * budget_s
        return name not in broken and spent[name] < allowed_s

    for number in range(-1 if warm_up else 0, rounds):
        running = [name for name in names if goes_on(name, number)]
        # A base that runs alone is held against nobody, and nobody against one that is not there.
        if number > 0 and (running == names[:1] or names[0] not in running):
            break
        for name in random.sample(running, len(running)):
            # What the one before has left behind is not this one's to clear away.
            gc.collect()
            began = time.perf_counter()
            try:
                result = contenders[name]()
                if isinstance(result, Awaitable):
                    result = await result
            except Exception as error:  # noqa: BLE001 - a contender may fail as it likes
                broken[name] = f"{type(error).__name__}: {error}"[:300]
                continue
            seconds = time.perf_counter() - began
            spent[name] += seconds
            if number >= 0:
                taken[name][number] = result if isinstance(result, Sample) else seconds
            result = None
    return Result(taken, broken)

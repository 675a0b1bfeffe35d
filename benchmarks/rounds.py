"""Contenders in turns: each round runs all of them in another order, and medians are compared."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

Contender: TypeAlias = Callable[[], Awaitable[object] | object]


@dataclass(frozen=True)
class Result:
    """The median of each contender in seconds, and of each round its ratio to the first one."""

    seconds: Mapping[str, float]
    ratios: Mapping[str, float]


async def in_turns(contenders: Mapping[str, Contender], rounds: int) -> Result:
    """
    Run all contenders `rounds` times, in a new order each time.

    The machine has its moods: a ratio is taken within a round, where they are the same for all, and
    the median of the ratios is what is reported. The first contender is what the others are held
    against.
    """
    names = list(contenders)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in random.sample(names, len(names)):
            # What the one before has left behind is not this one's to clear away.
            gc.collect()
            began = time.perf_counter()
            result = contenders[name]()
            if isinstance(result, Awaitable):
                await result
            taken[name].append(time.perf_counter() - began)
            result = None
    base = taken[names[0]]
    return Result(
        {name: statistics.median(times) for name, times in taken.items()},
        {
            name: statistics.median(one / other for one, other in zip(times, base, strict=True))
            for name, times in taken.items()
        },
    )

"""The cost of a call with a hundred models, a thousand, and so on up to a million."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from benchmarks.contenders import Contender, contender_spec
from benchmarks.harness.benchmark import Environment
from benchmarks.harness.rounds import Result, Sample, run_rounds
from benchmarks.harness.workloads import (
    Turn,
    WorkloadFunction,
    find,
    newest,
    page,
    register_new,
    remove,
)

MAX_RATIO: Final = 3.0
"""A cost is constant if the largest catalog costs at most this many times the smallest."""

_CALLS: Final[Mapping[str, WorkloadFunction]] = {
    "find": find,
    "register": register_new,
    "remove": remove,
    "page, the newest 50": newest,
    "page, filtered and sorted": page,
}
CONSTANT_CALLS: Final = tuple(name for name in _CALLS if name != "page, filtered and sorted")
"""The other call filters and sorts by columns without an index, and reads every row."""


@dataclass(frozen=True)
class Growth:
    """The cost of one call in seconds, by the number of models."""

    call: str
    seconds: Mapping[int, float]
    ratio: float
    """The cost in the largest catalog divided by the cost in the smallest, as in `Result.ratio`."""

    @property
    def per_tenfold(self) -> float:
        """The average factor for ten times as many models."""
        decades = math.log10(max(self.seconds) / min(self.seconds))
        return float(self.ratio ** (1 / decades)) if decades else 1.0

    @property
    def is_constant(self) -> bool | None:
        """Whether it grows no faster than the depth of an index; None if it reads every row."""
        return self.ratio <= MAX_RATIO if self.call in CONSTANT_CALLS else None


async def measure_growth(environment: Environment, name: str, largest: int) -> list[Growth]:
    """Measure each call at each size. Every round runs all sizes, as in `run_rounds`."""
    spec = contender_spec(name)
    sizes = [10**power for power in range(2, round(math.log10(largest)) + 1)]
    opened: dict[int, Contender] = {}
    targets = {rows: await environment.databases.target(spec, rows, private=True) for rows in sizes}
    for rows in sizes:
        opened[rows] = spec.make()
        await opened[rows].open(targets[rows], environment.settings.durability)
    found = []
    for call, function in _CALLS.items():
        result = await run_rounds(
            {f"{rows}": _turn_runner(function, opened[rows], rows) for rows in sizes},
            environment.settings.rounds,
            budget_s=environment.settings.budget_s,
            warm_up=True,
        )
        found.append(growth_of(call, result))
    for rows in sizes:
        await opened[rows].close()
        environment.databases.discard(targets[rows])
    return found


def growth_of(call: str, result: Result) -> Growth:
    """The growth of a call. The contenders of the result are the numbers of models."""
    seconds = {int(rows): median for rows, median in result.medians.items()}
    return Growth(call, seconds, result.ratio(f"{max(seconds)}", f"{min(seconds)}"))


def format_growth(name: str, found: list[Growth]) -> str:
    """A table for a terminal."""
    lines = [f"growth: {name}, microseconds per call"]
    for each in found:
        costs = "  ".join(f"{rows:,}: {cost * 1e6:,.0f}" for rows, cost in each.seconds.items())
        word = {True: "constant", False: "NOT CONSTANT", None: "reads every row"}[each.is_constant]
        lines.append(
            f"  {each.call:<26} {costs}\n"
            f"  {'':<26} {each.ratio:.2f}x in total, {each.per_tenfold:.2f}x per tenfold: {word}"
        )
    return "\n".join(lines)


def _turn_runner(
    function: WorkloadFunction, contender: Contender, rows: int
) -> Callable[[], Awaitable[Sample]]:
    number = -1

    async def run_next_turn() -> Sample:
        nonlocal number
        turn = Turn(contender, rows, number)
        number += 1
        await function(turn)
        return turn.sample

    return run_next_turn

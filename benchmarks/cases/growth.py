"""How the cost of a call grows with the catalog: from a hundred rows, tenfold each time."""

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
"""As many times what it costs at the fewest rows may a call cost at the most, and is flat."""

_CALLS: Final[Mapping[str, WorkloadFunction]] = {
    "find": find,
    "register": register_new,
    "remove": remove,
    "page, the newest 50": newest,
    "page, filtered and sorted": page,
}
CONSTANT_CALLS: Final = tuple(name for name in _CALLS if name != "page, filtered and sorted")
"""A page of those that pass a filter, sorted by what has no index, has to look at all of them."""


@dataclass(frozen=True)
class Growth:
    """What one call costs at each number of rows, in seconds."""

    call: str
    seconds: Mapping[int, float]
    ratio: float
    """Of the cost at the most rows to that at the fewest, the median of those within a round."""

    @property
    def per_tenfold(self) -> float:
        """By how much it grows, on average, where the rows grow tenfold."""
        decades = math.log10(max(self.seconds) / min(self.seconds))
        return float(self.ratio ** (1 / decades)) if decades else 1.0

    @property
    def flat(self) -> bool | None:
        """Whether it grows no faster than the depth of an index; None where it may."""
        return self.ratio <= MAX_RATIO if self.call in CONSTANT_CALLS else None


async def measure_growth(bench: Environment, name: str, largest: int) -> list[Growth]:
    """Each call at each size, in turns, so that the machine's moods are the same for all sizes."""
    who = contender_spec(name)
    sizes = [10**power for power in range(2, round(math.log10(largest)) + 1)]
    live: dict[int, Contender] = {}
    targets = {rows: await bench.stock.target(who, rows, own=True) for rows in sizes}
    for rows in sizes:
        live[rows] = who.make()
        await live[rows].open(targets[rows], bench.terms.durability)
    found = []
    for call, do in _CALLS.items():
        result = await run_rounds(
            {f"{rows}": _turn_runner(do, live[rows], rows) for rows in sizes},
            bench.terms.rounds,
            budget_s=bench.terms.budget_s,
            warm_up=True,
        )
        found.append(growth_of(call, result))
    for rows in sizes:
        await live[rows].close()
        bench.stock.discard(targets[rows])
    return found


def growth_of(call: str, result: Result) -> Growth:
    """What the results of the sizes, which are their contenders' names, come to."""
    seconds = {int(rows): median for rows, median in result.medians.items()}
    return Growth(call, seconds, result.ratio(f"{max(seconds)}", f"{min(seconds)}"))


def format_growth(name: str, found: list[Growth]) -> str:
    """A table of it, for a terminal."""
    lines = [f"growth: {name}, microseconds a call"]
    for each in found:
        costs = "  ".join(f"{rows:,}: {cost * 1e6:,.0f}" for rows, cost in each.seconds.items())
        word = {True: "flat", False: "NOT FLAT", None: "looks at every row"}[each.flat]
        lines.append(
            f"  {each.call:<26} {costs}\n"
            f"  {'':<26} {each.ratio:.2f}x in all, {each.per_tenfold:.2f}x a tenfold: {word}"
        )
    return "\n".join(lines)


def _turn_runner(
    do: WorkloadFunction, who: Contender, rows: int
) -> Callable[[], Awaitable[Sample]]:
    number = -1

    async def one() -> Sample:
        nonlocal number
        turn = Turn(who, rows, number)
        number += 1
        await do(turn)
        return turn.sample

    return one

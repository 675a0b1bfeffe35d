"""A work, played out: its contenders opened on their databases, called in turns, and closed."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.contenders import Contender, Entrant
from benchmarks.rounds import Result, Sample, in_turns
from benchmarks.stock import Stock
from benchmarks.works import Turn, Work

PATIENCE_S = 120


@dataclass(frozen=True)
class Terms:
    """How long, and how safely, everybody works."""

    rounds: int = 40
    budget_s: float = 2.0
    durability: str = "full"


def invited(work: Work, entrants: list[Entrant]) -> list[Entrant]:
    """Those that have the work's verb, and that the work can tell something about."""
    return [each for each in entrants if each.takes(work.name) and each.can(work.verb)]


async def play(work: Work, entrants: list[Entrant], stock: Stock, terms: Terms) -> Result:
    """Run a work; one that cannot even open is among the broken."""
    live: dict[str, Contender] = {}
    targets: dict[str, str] = {}
    broken: dict[str, str] = {}
    taking_part = invited(work, entrants)
    for each in taking_part:
        contender = each.make()
        targets[each.name] = await stock.target(each, work.rows, own=work.writes)
        try:
            if not work.opens:
                await contender.open(targets[each.name], terms.durability)
        except Exception as error:  # noqa: BLE001 - a contender may fail as it likes
            broken[each.name] = f"open: {type(error).__name__}: {error}"[:300]
            continue
        live[each.name] = contender
    # What lives through all rounds need not be looked through at each collection.
    gc.collect()
    gc.freeze()
    result = await in_turns(
        {
            name: turns(work, live[name], targets[name], terms.durability)
            for name in live
        },
        terms.rounds,
        budget_s=terms.budget_s,
        warm_up=True,
    )
    gc.unfreeze()
    for name, contender in live.items():
        if not work.opens:
            try:
                await asyncio.wait_for(contender.close(), PATIENCE_S)
            except Exception as error:  # noqa: BLE001 - a contender may fail as it likes
                broken[name] = f"close: {type(error).__name__}: {error}"[:300]
    if work.writes:
        for target in targets.values():
            stock.discard(target)
    return Result(result.samples, {**broken, **result.broken})


def turns(work: Work, who: Contender, target: str, durability: str) -> Callable[[], object]:
    number = -1

    async def one() -> Sample:
        nonlocal number
        turn = Turn(who, work.rows, number, target, durability)
        number += 1
        await asyncio.wait_for(work.do(turn), PATIENCE_S)
        return turn.sample

    return one

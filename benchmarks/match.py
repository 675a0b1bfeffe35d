"""A work, played out: its contenders opened on their databases, called in turns, and closed."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from benchmarks.contenders import Contender, Entrant
from benchmarks.parts import Bench, Part, Terms
from benchmarks.rounds import Result, Sample, in_turns
from benchmarks.stock import Stock
from benchmarks.works import Turn, Work

_PATIENCE_S: Final = 120
_MANY: Final = 100_000


def part_of(work: Work) -> Part:
    """A work on every database it is meant for."""

    async def play(bench: Bench) -> Mapping[str, Result]:
        results = {}
        for database in work.databases:
            invited = [
                each
                for each in bench.entrants[database]
                if each.takes(work.name) and each.can(work.verb)
            ]
            if invited:
                title = work.name if database == "sqlite" else f"PostgreSQL: {work.name}"
                results[title] = await played(work, invited, bench.stock, bench.terms)
        return results

    return Part(work.name, play, work.in_table, long=work.long)


async def played(work: Work, entrants: list[Entrant], stock: Stock, terms: Terms) -> Result:
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
            broken[each.name] = _words("open", error)
        else:
            live[each.name] = contender
    # What lives through all rounds need not be looked through at each collection.
    gc.collect()
    gc.freeze()
    result = await in_turns(
        {name: _turns(work, live[name], targets[name], terms.durability) for name in live},
        terms.rounds,
        budget_s=terms.budget_s,
        # A list of so many is what warms up a contender within the round.
        warm_up=not (terms.quick and work.rows >= _MANY and work.verb == "list"),
    )
    gc.unfreeze()
    for name, contender in live.items():
        try:
            if not work.opens:
                await asyncio.wait_for(contender.close(), _PATIENCE_S)
        except Exception as error:  # noqa: BLE001 - a contender may fail as it likes
            broken[name] = _words("close", error)
    if work.writes:
        for target in targets.values():
            stock.discard(target)
    return replace(result, broken={**broken, **result.broken})


def _turns(work: Work, who: Contender, target: str, durability: str) -> Callable[[], object]:
    number = -1

    async def one() -> Sample:
        nonlocal number
        turn = Turn(who, work.rows, number, target, durability)
        number += 1
        await asyncio.wait_for(work.do(turn), _PATIENCE_S)
        return turn.sample

    return one


def _words(step: str, error: Exception) -> str:
    return f"{step}: {type(error).__name__}: {error}"[:300]

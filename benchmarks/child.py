"""
What is done in a process of its own: `python -m benchmarks.child MODE CONTENDER TARGET DURABILITY`.

It prints what it has measured. Like the contenders' table it imports nothing that would be timed.
"""

from __future__ import annotations

import asyncio
import sys

from benchmarks.contenders import Contender, entrant
from benchmarks.table import entries, entry


async def cold(who: Contender) -> str:
    """Find one, and say whether Alembic was needed for that."""
    one = entry(3)
    if await who.find(one.reference, one.provider) is None:
        raise LookupError(one.reference)
    return "alembic" if "alembic" in sys.modules else "-"


async def memory(who: Contender) -> str:
    """The bytes by which the process grew, at its peak, while it listed everything."""
    one = entry(3)
    await who.find(one.reference, one.provider)
    before = peak_bytes()
    listed = await who.list()
    grown = peak_bytes() - before
    if len(listed) < 1000:
        raise LookupError(len(listed))
    return str(grown)


def peak_bytes() -> int:
    """The most that this process has had in memory so far."""
    # Linux's ru_maxrss begins with what the process had that started this one: a large parent
    # would hide all growth. VmHWM begins with the program.
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            lines = dict(line.split(":", 1) for line in status if ":" in line)
        return int(lines["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def register(who: Contender, first: int, count: int) -> str:
    """Register so many, one at a time, from the moment that a line comes in."""
    wanted = list(entries(count, first))
    print("ready", flush=True)
    sys.stdin.readline()
    for each in wanted:
        await who.register(each)
    return "done"


async def main(mode: str, name: str, target: str, durability: str, *more: str) -> None:
    who = entrant(name).make()
    await who.open(target, durability)
    if mode == "register":
        said = await register(who, *map(int, more))
    else:
        said = await (cold if mode == "cold" else memory)(who)
    await who.close()
    print(said, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

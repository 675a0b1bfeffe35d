"""
Measurements that need a process of their own.

Run it as `python -m benchmarks.harness.child MODE CONTENDER TARGET DURABILITY`. It prints the
measured value. Some modes time the process from its start, so this module imports only what every
contender needs.
"""

from __future__ import annotations

import asyncio
import sys

from benchmarks.contenders import Contender, contender_spec
from benchmarks.harness.models_table import registration, registrations


async def cold(who: Contender) -> str:
    """Find one, and say whether Alembic was needed for that."""
    one = registration(3)
    if await who.find(one.reference, one.provider) is None:
        raise LookupError(one.reference)
    return "alembic" if "alembic" in sys.modules else "-"


async def memory(who: Contender) -> str:
    """The bytes by which the process grew, at its peak, while it listed everything."""
    one = registration(3)
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
    wanted = list(registrations(count, first))
    print("ready", flush=True)
    sys.stdin.readline()
    for each in wanted:
        await who.register(each)
    return "done"


async def main(mode: str, name: str, target: str, durability: str, *more: str) -> None:
    who = contender_spec(name).make()
    await who.open(target, durability)
    if mode == "register":
        said = await register(who, *map(int, more))
    else:
        said = await (cold if mode == "cold" else memory)(who)
    await who.close()
    print(said, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

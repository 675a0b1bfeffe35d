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


async def cold(contender: Contender) -> str:
    """Find one model; returns `alembic` if Alembic was imported for that, otherwise `-`."""
    wanted = registration(3)
    if await contender.find(wanted.reference, wanted.provider) is None:
        raise LookupError(wanted.reference)
    return "alembic" if "alembic" in sys.modules else "-"


async def memory(contender: Contender) -> str:
    """How many bytes the peak memory of the process grew while it listed all models."""
    wanted = registration(3)
    await contender.find(wanted.reference, wanted.provider)
    before = peak_bytes()
    listed = await contender.list()
    growth = peak_bytes() - before
    if len(listed) < 1000:
        raise LookupError(len(listed))
    return str(growth)


def peak_bytes() -> int:
    """The peak resident memory of this process so far, in bytes."""
    # Linux's ru_maxrss starts with the parent's memory at the fork: a large parent would hide all
    # growth. VmHWM starts anew with the executed program.
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            lines = dict(line.split(":", 1) for line in status if ":" in line)
        return int(lines["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def register(contender: Contender, first: int, count: int) -> str:
    """Print `ready`, wait for a line on standard input, and register models one at a time."""
    models = list(registrations(count, first))
    print("ready", flush=True)
    sys.stdin.readline()
    for model in models:
        await contender.register(model)
    return "done"


async def main(mode: str, name: str, target: str, durability: str, *more: str) -> None:
    contender = contender_spec(name).make()
    await contender.open(target, durability)
    if mode == "register":
        output = await register(contender, *map(int, more))
    else:
        output = await (cold if mode == "cold" else memory)(contender)
    await contender.close()
    print(output, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

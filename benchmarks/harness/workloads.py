"""What is done: the calls that a program makes of a catalog, and how many at once."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from benchmarks.harness.models_table import Registration, registration, registrations
from benchmarks.harness.rounds import Sample

TASKS: Final = 64
MILLION: Final = 1_000_000
BUSY_STEP_S: Final = 100e-6
MAX_REPETITIONS: Final = 5
MIN_MEASURED_S: Final = 0.02
MAX_BUSY_S: Final = 10.0


class WrongAnswerError(Exception):
    """A contender was fast, and wrong."""


@dataclass
class Turn:
    """One contender's part in one round: whom to call, how many rows there are, which keys."""

    who: Any
    rows: int
    number: int
    target: str = ""
    durability: str = "full"
    sample: Sample = field(default=Sample(0))

    def __post_init__(self) -> None:
        # The same keys for all in a round, and others in the next.
        self.keys = random.Random(self.number)
        self._fresh = 50_000_000 + (self.number + 1) * 20_000
        self._calls = 0
        self._seconds = self._cpu_s = 0.0

    def waves(self) -> Iterator[None]:
        """
        Once; and again, up to five times, for who has not taken 20 ms yet.

        What others did before is what the processor has in its caches. Who answers in microseconds
        would be measured while it fetches its own, which a program does once.
        """
        for _ in range(MAX_REPETITIONS):
            yield
            if self._seconds > MIN_MEASURED_S:
                break

    @contextmanager
    def timed(self, calls: int) -> Iterator[None]:
        """A block that makes so many calls; of several it is the mean of all their calls."""
        began, computed = time.perf_counter(), time.process_time()
        yield
        self._seconds += time.perf_counter() - began
        self._cpu_s += time.process_time() - computed
        self._calls += calls
        self.sample = Sample.of(self._seconds / self._calls, self._cpu_s / self._calls)

    def known(self, count: int) -> list[Registration]:
        """Entries that are there."""
        keys = self.keys
        return [registration(keys.randrange(self.rows)) for _ in range(count)]

    def fresh(self, count: int) -> list[Registration]:
        """Entries that are not there, and were in no round before."""
        first = self._fresh
        self._fresh += count
        return list(registrations(count, first=first))


def require_correct(right: bool) -> None:  # noqa: FBT001
    """Break a contender that has answered wrongly; outside of what is timed."""
    if not right:
        raise WrongAnswerError


WorkloadFunction: TypeAlias = Callable[[Turn], Awaitable[None]]


@dataclass(frozen=True)
class Workload:
    """One line of the report: what is done, with how many rows there, and which verb it takes."""

    name: str
    do: WorkloadFunction
    rows: int = 1000
    verb: str = "find"
    writes: bool = False
    opens: bool = False
    """Whether it opens and closes the contender itself."""
    in_table: bool = False
    """Whether a target is set for it."""
    long: bool = False
    """Whether it is left out in a hurry."""
    databases: tuple[str, ...] = ("sqlite",)


async def find(turn: Turn) -> None:
    for _ in turn.waves():
        wanted = turn.known(20)
        with turn.timed(len(wanted)):
            for each in wanted:
                found = await turn.who.find(each.reference, each.provider)
    require_correct(found is not None)


async def find_miss(turn: Turn) -> None:
    for _ in turn.waves():
        with turn.timed(20):
            for number in range(20):
                found = await turn.who.find(f"org-001/none-{number}", "hf")
    require_correct(found is None)


async def find_concurrently(turn: Turn) -> None:
    for _ in turn.waves():
        wanted = turn.known(TASKS)
        with turn.timed(len(wanted)):
            found = await asyncio.gather(
                *(turn.who.find(each.reference, each.provider) for each in wanted)
            )
    require_correct(None not in found)


async def find_beside_busy_loop(turn: Turn) -> None:
    """
    Not how long all took together, but what the slowest tenth took at least.

    Where the other processor sleeps, Python's own lock may reach a thread only after seconds: each
    time that the loop lets go of it, it has it back before the thread has woken up. After ten
    seconds the other task rests.
    """
    over = False
    start = time.perf_counter()

    async def compute() -> None:
        while not over and time.perf_counter() - start < MAX_BUSY_S:
            until = time.perf_counter() + BUSY_STEP_S
            while time.perf_counter() < until:
                pass
            await asyncio.sleep(0)

    busy = asyncio.create_task(compute())
    await asyncio.sleep(0)
    waits = []
    try:
        for each in turn.known(20):
            began = time.perf_counter()
            await turn.who.find(each.reference, each.provider)
            waits.append(time.perf_counter() - began)
            if time.perf_counter() - start > MAX_BUSY_S:
                break
    finally:
        over = True
        await busy
    # Of what was measured: where few were answered in time, nothing is to be made up beyond it.
    slowest = statistics.quantiles(waits, n=10, method="inclusive")[-1] if waits[1:] else waits[0]
    turn.sample = Sample(slowest)


async def register_new(turn: Turn) -> None:
    for _ in turn.waves():
        added = turn.fresh(10)
        with turn.timed(len(added)):
            for each in added:
                await turn.who.register(each)


async def register_again(turn: Turn) -> None:
    for _ in turn.waves():
        again = [
            registration(number, turn.number + 2)
            for number in turn.keys.sample(range(turn.rows), 10)
        ]
        with turn.timed(len(again)):
            for each in again:
                await turn.who.register(each)


async def register_concurrently(turn: Turn) -> None:
    for _ in turn.waves():
        added = turn.fresh(TASKS)
        with turn.timed(len(added)):
            await asyncio.gather(*(turn.who.register(each) for each in added))


async def mixed(turn: Turn) -> None:
    """Seven finds to one registration."""
    for _ in turn.waves():
        wanted, added = turn.known(TASKS), turn.fresh(TASKS)
        with turn.timed(TASKS):
            await asyncio.gather(
                *(
                    turn.who.find(wanted[number].reference, wanted[number].provider)
                    if number % 8
                    else turn.who.register(added[number])
                    for number in range(TASKS)
                )
            )


async def register_many(turn: Turn) -> None:
    added = turn.fresh(10_000)
    with turn.timed(len(added)):
        await turn.who.register_many(added)


async def list_all(turn: Turn) -> None:
    with turn.timed(1):
        found = await turn.who.list()
    require_correct(len(found) >= turn.rows)


async def stream_all(turn: Turn) -> None:
    count = 0
    with turn.timed(1):
        async for _ in turn.who.stream():
            count += 1
    require_correct(count >= turn.rows)


async def page(turn: Turn) -> None:
    with turn.timed(10):
        for _ in range(10):
            found = await turn.who.page("llama", 50)
    # Of a hundred rows fewer pass.
    require_correct(0 < len(found) <= 50)


async def newest(turn: Turn) -> None:
    with turn.timed(10):
        for _ in range(10):
            found = await turn.who.newest(50)
    require_correct(len(found) == 50)


async def total(turn: Turn) -> None:
    with turn.timed(1):
        size = await turn.who.total()
    require_correct(size > 0)


async def read_stats(turn: Turn) -> None:
    with turn.timed(1):
        await turn.who.stats()


async def record_use(turn: Turn) -> None:
    for _ in turn.waves():
        used = turn.known(TASKS)
        with turn.timed(len(used)):
            await asyncio.gather(*(turn.who.use(each) for each in used))


async def remove(turn: Turn) -> None:
    for _ in turn.waves():
        there = turn.fresh(10)
        await turn.who.register_many(there)
        with turn.timed(len(there)):
            for each in there:
                gone = await turn.who.remove(each.reference, each.provider)
    require_correct(gone)


async def open_warm(turn: Turn) -> None:
    """Open, find one, close, in a process that has imported everything."""
    one = registration(3)
    with turn.timed(1):
        await turn.who.open(turn.target, turn.durability)
        found = await turn.who.find(one.reference, one.provider)
        await turn.who.close()
    require_correct(found is not None)


BOTH_DATABASES: Final = ("sqlite", "postgresql")

WORKLOADS: Final = (
    Workload("find", find, in_table=True, databases=BOTH_DATABASES),
    Workload("find, nothing there", find_miss),
    Workload("find, 64 tasks", find_concurrently, in_table=True, databases=BOTH_DATABASES),
    Workload("find beside a busy loop, p90", find_beside_busy_loop, in_table=True, long=True),
    Workload("find in 100k", find, rows=100_000),
    Workload("find in 100k, 64 tasks", find_concurrently, rows=100_000),
    Workload("find in 1M", find, rows=MILLION, long=True),
    Workload("find in 1M, nothing there", find_miss, rows=MILLION, long=True),
    Workload(
        "register",
        register_new,
        verb="register",
        writes=True,
        in_table=True,
        databases=BOTH_DATABASES,
    ),
    Workload("register again", register_again, verb="register", writes=True),
    Workload(
        "register, 64 tasks",
        register_concurrently,
        verb="register",
        writes=True,
        in_table=True,
        databases=BOTH_DATABASES,
    ),
    Workload(
        "register in 100k", register_new, rows=100_000, verb="register", writes=True, long=True
    ),
    Workload("mixed, 64 tasks", mixed, verb="register", writes=True, in_table=True),
    Workload("10k in bulk", register_many, verb="register_many", writes=True, in_table=True),
    Workload("list 1k", list_all, verb="list"),
    Workload("list 10k", list_all, rows=10_000, verb="list", in_table=True),
    Workload("list 100k", list_all, rows=100_000, verb="list", in_table=True),
    Workload("stream 1k", stream_all, verb="stream"),
    Workload("stream 10k", stream_all, rows=10_000, verb="stream"),
    Workload("stream 100k", stream_all, rows=100_000, verb="stream", long=True),
    Workload("page of 50 in 1k", page, verb="page", databases=BOTH_DATABASES),
    Workload("page of 50 in 100k", page, rows=100_000, verb="page", long=True),
    Workload("newest 50 of 100k", newest, rows=100_000, verb="newest"),
    Workload("total of 100k", total, rows=100_000, verb="total"),
    Workload("total of 1M", total, rows=MILLION, long=True, verb="total", in_table=True),
    Workload("stats of 100k", read_stats, rows=100_000, verb="stats"),
    Workload("stats of 1M", read_stats, rows=MILLION, long=True, verb="stats"),
    Workload("record_use, 64 tasks", record_use, verb="use", writes=True),
    Workload("remove", remove, verb="remove", writes=True, databases=BOTH_DATABASES),
    Workload("open, warm", open_warm, opens=True, writes=True, in_table=True),
)

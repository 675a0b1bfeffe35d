"""Workloads: which catalog calls are made, how many of them, and how many at once."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from benchmarks.harness.hub_cache import create_hub_cache
from benchmarks.harness.models_table import Registration, registration, registrations
from benchmarks.harness.rounds import Sample

TASKS: Final = 64
MANY_TASKS: Final = 200
CALLS_PER_TASK: Final = 5
MILLION: Final = 1_000_000
SCANNED_REPOSITORIES: Final = 1000
TIMEOUT_S: Final = 120
"""The limit for one turn, and for closing a contender."""
BUSY_STEP_S: Final = 100e-6
MAX_BUSY_S: Final = 10.0
MAX_REPETITIONS: Final = 5
MIN_MEASURED_S: Final = 0.02


class WrongAnswerError(Exception):
    """A contender returned a wrong result."""


@dataclass
class Turn:
    """One contender's calls in one round. The keys depend on the round's number only."""

    contender: Any
    rows: int
    """How many models the database had at the start."""
    number: int
    target: str = ""
    durability: str = "full"
    sample: Sample = field(default=Sample(0))

    def __post_init__(self) -> None:
        # All contenders get the same keys in a round, and different ones in the next round.
        self.keys = random.Random(self.number)
        self._first_new = 50_000_000 + (self.number + 1) * 20_000
        self._calls = 0
        self._seconds = self._cpu_s = 0.0

    def repetitions(self) -> Iterator[None]:
        """
        Iterate until 20 ms have been measured, at most five times.

        The processor's caches hold the data of the contender that ran before. A contender whose
        calls take microseconds would otherwise be measured while the caches are cold.
        """
        for _ in range(MAX_REPETITIONS):
            yield
            if self._seconds > MIN_MEASURED_S:
                break

    @contextmanager
    def timed(self, calls: int) -> Iterator[None]:
        """Time a block that makes this many calls. The sample is the mean over all blocks."""
        started, cpu_started = time.perf_counter(), time.process_time()
        yield
        self._seconds += time.perf_counter() - started
        self._cpu_s += time.process_time() - cpu_started
        self._calls += calls
        self.sample = Sample.of(self._seconds / self._calls, self._cpu_s / self._calls)

    def existing_models(self, count: int) -> list[Registration]:
        """Random models that were in the database at the start."""
        keys = self.keys
        return [registration(keys.randrange(self.rows)) for _ in range(count)]

    def new_models(self, count: int) -> list[Registration]:
        """Models that are not in the database and that no earlier round has used."""
        first = self._first_new
        self._first_new += count
        return list(registrations(count, first=first))


def require_correct(correct: bool) -> None:  # noqa: FBT001
    """Raise `WrongAnswerError` for a wrong result. Call it outside the timed block."""
    if not correct:
        raise WrongAnswerError


WorkloadFunction: TypeAlias = Callable[[Turn], Awaitable[None]]


@dataclass(frozen=True)
class Workload:
    """One row of the report: the calls, the number of models and the method that is needed."""

    name: str
    function: WorkloadFunction
    rows: int = 1000
    method: str = "find"
    """A contender without this method does not take part."""
    writes: bool = False
    """Whether each contender needs its own copy of the database."""
    opens_contender: bool = False
    """Whether the function opens and closes the contender itself."""
    has_target: bool = False
    """Whether a target is set for it: `--only table` selects these."""
    skip_when_quick: bool = False
    databases: tuple[str, ...] = ("sqlite",)


async def run_turn(workload: Workload, turn: Turn) -> Sample:
    """Run a workload once; raises TimeoutError after `TIMEOUT_S`."""
    await asyncio.wait_for(workload.function(turn), TIMEOUT_S)
    return turn.sample


async def find(turn: Turn) -> None:
    for _ in turn.repetitions():
        existing = turn.existing_models(20)
        with turn.timed(len(existing)):
            for each in existing:
                found = await turn.contender.find(each.reference, each.provider)
    require_correct(found is not None)


async def find_miss(turn: Turn) -> None:
    for _ in turn.repetitions():
        with turn.timed(20):
            for number in range(20):
                found = await turn.contender.find(f"org-001/none-{number}", "hf")
    require_correct(found is None)


async def find_concurrently(turn: Turn) -> None:
    for _ in turn.repetitions():
        existing = turn.existing_models(TASKS)
        with turn.timed(len(existing)):
            found = await asyncio.gather(
                *(turn.contender.find(each.reference, each.provider) for each in existing)
            )
    require_correct(None not in found)


async def find_beside_busy_loop(turn: Turn) -> None:
    """
    The 90th percentile of a find while another task of the event loop computes.

    On an idle second core, a thread may get Python's global interpreter lock only after seconds:
    the event loop takes the lock again before the thread has woken up. The computing task stops
    after ten seconds.
    """
    done = False
    start = time.perf_counter()

    async def compute() -> None:
        while not done and time.perf_counter() - start < MAX_BUSY_S:
            until = time.perf_counter() + BUSY_STEP_S
            while time.perf_counter() < until:
                pass
            await asyncio.sleep(0)

    busy = asyncio.create_task(compute())
    await asyncio.sleep(0)
    waits = []
    try:
        for each in turn.existing_models(20):
            began = time.perf_counter()
            await turn.contender.find(each.reference, each.provider)
            waits.append(time.perf_counter() - began)
            if time.perf_counter() - start > MAX_BUSY_S:
                break
    finally:
        done = True
        await busy
    # "inclusive": with few finds in time, the percentile must not exceed the slowest one.
    p90 = statistics.quantiles(waits, n=10, method="inclusive")[-1] if waits[1:] else waits[0]
    turn.sample = Sample(p90)


async def register_new(turn: Turn) -> None:
    for _ in turn.repetitions():
        added = turn.new_models(10)
        with turn.timed(len(added)):
            for each in added:
                await turn.contender.register(each)


async def register_again(turn: Turn) -> None:
    for _ in turn.repetitions():
        again = [
            registration(number, turn.number + 2)
            for number in turn.keys.sample(range(turn.rows), 10)
        ]
        with turn.timed(len(again)):
            for each in again:
                await turn.contender.register(each)


async def register_concurrently(turn: Turn) -> None:
    for _ in turn.repetitions():
        added = turn.new_models(TASKS)
        with turn.timed(len(added)):
            await asyncio.gather(*(turn.contender.register(each) for each in added))


async def mixed(turn: Turn) -> None:
    """Seven finds for each registration, all at once."""
    for _ in turn.repetitions():
        existing, added = turn.existing_models(TASKS), turn.new_models(TASKS)
        with turn.timed(TASKS):
            await asyncio.gather(
                *(
                    turn.contender.find(existing[number].reference, existing[number].provider)
                    if number % 8
                    else turn.contender.register(added[number])
                    for number in range(TASKS)
                )
            )


async def mixed_in_many_tasks(turn: Turn) -> None:
    """The 99th percentile of a call: 200 tasks make five calls each, one in ten a registration."""
    existing = iter(turn.existing_models(MANY_TASKS * CALLS_PER_TASK))
    added = iter(turn.new_models(MANY_TASKS * CALLS_PER_TASK // 10))
    waits = []

    async def make_calls(task_number: int) -> None:
        for call_number in range(CALLS_PER_TASK):
            started = time.perf_counter()
            if (task_number + call_number) % 10:
                model = next(existing)
                await turn.contender.find(model.reference, model.provider)
            else:
                await turn.contender.register(next(added))
            waits.append(time.perf_counter() - started)

    await asyncio.gather(*(make_calls(number) for number in range(MANY_TASKS)))
    turn.sample = Sample(statistics.quantiles(waits, n=100)[-1])


async def register_many(turn: Turn) -> None:
    added = turn.new_models(10_000)
    with turn.timed(len(added)):
        await turn.contender.register_many(added)


async def list_all(turn: Turn) -> None:
    with turn.timed(1):
        found = await turn.contender.list()
    require_correct(len(found) >= turn.rows)


async def stream_all(turn: Turn) -> None:
    count = 0
    with turn.timed(1):
        async for _ in turn.contender.stream():
            count += 1
    require_correct(count >= turn.rows)


async def page(turn: Turn) -> None:
    with turn.timed(10):
        for _ in range(10):
            found = await turn.contender.page("llama", 50)
    # In a database of a hundred models, fewer than 50 match.
    require_correct(0 < len(found) <= 50)


async def newest(turn: Turn) -> None:
    with turn.timed(10):
        for _ in range(10):
            found = await turn.contender.newest(50)
    require_correct(len(found) == 50)


async def total(turn: Turn) -> None:
    with turn.timed(1):
        size = await turn.contender.total()
    require_correct(size > 0)


async def count_behind(turn: Turn) -> None:
    with turn.timed(1):
        count = await turn.contender.count_behind("llama")
    require_correct(count > 0)


async def total_behind(turn: Turn) -> None:
    with turn.timed(1):
        size = await turn.contender.total_behind("llama")
    require_correct(size > 0)


async def read_stats(turn: Turn) -> None:
    with turn.timed(1):
        await turn.contender.stats()


async def record_use(turn: Turn) -> None:
    for _ in turn.repetitions():
        used = turn.existing_models(TASKS)
        with turn.timed(len(used)):
            await asyncio.gather(*(turn.contender.use(each) for each in used))


async def remove(turn: Turn) -> None:
    for _ in turn.repetitions():
        models = turn.new_models(10)
        await turn.contender.register_many(models)
        with turn.timed(len(models)):
            for each in models:
                removed = await turn.contender.remove(each.reference, each.provider)
    require_correct(removed)


async def open_warm(turn: Turn) -> None:
    """Open, find one model and close, in a process that has imported everything."""
    one = registration(3)
    with turn.timed(1):
        await turn.contender.open(turn.target, turn.durability)
        found = await turn.contender.find(one.reference, one.provider)
        await turn.contender.close()
    require_correct(found is not None)


async def scan_again(turn: Turn) -> None:
    """Scan a cache of huggingface_hub that has not changed. The first turn creates both."""
    root = f"{turn.target}.hub"
    is_new = _create_cache_once(Path(root))
    await turn.contender.open(f"{turn.target}.scanned", turn.durability)
    try:
        if is_new:
            await turn.contender.scan_hub_cache(root)
        with turn.timed(1):
            found = await turn.contender.scan_hub_cache(root)
    finally:
        await turn.contender.close()
    require_correct(found == SCANNED_REPOSITORIES)


def _create_cache_once(root: Path) -> bool:
    """Create the cache if there is none. Return whether it was created."""
    if root.exists():
        return False
    create_hub_cache(root, SCANNED_REPOSITORIES)
    return True


BOTH_DATABASES: Final = ("sqlite", "postgresql")

WORKLOADS: Final = (
    Workload("find", find, has_target=True, databases=BOTH_DATABASES),
    Workload("find, nothing there", find_miss),
    Workload("find, 64 tasks", find_concurrently, has_target=True, databases=BOTH_DATABASES),
    Workload(
        "find beside a busy loop, p90", find_beside_busy_loop, has_target=True, skip_when_quick=True
    ),
    Workload("find in 100k", find, rows=100_000),
    Workload("find in 100k, 64 tasks", find_concurrently, rows=100_000),
    Workload("find in 1M", find, rows=MILLION, skip_when_quick=True),
    Workload("find in 1M, nothing there", find_miss, rows=MILLION, skip_when_quick=True),
    Workload(
        "register",
        register_new,
        method="register",
        writes=True,
        has_target=True,
        databases=BOTH_DATABASES,
    ),
    Workload("register again", register_again, method="register", writes=True),
    Workload(
        "register, 64 tasks",
        register_concurrently,
        method="register",
        writes=True,
        has_target=True,
        databases=BOTH_DATABASES,
    ),
    Workload(
        "register in 100k",
        register_new,
        rows=100_000,
        method="register",
        writes=True,
        skip_when_quick=True,
    ),
    Workload("mixed, 64 tasks", mixed, method="register", writes=True, has_target=True),
    Workload(
        "mixed 9:1, 200 tasks, p99",
        mixed_in_many_tasks,
        method="register",
        writes=True,
        has_target=True,
    ),
    Workload("10k in bulk", register_many, method="register_many", writes=True, has_target=True),
    Workload("list 1k", list_all, method="list"),
    Workload(
        "list 10k",
        list_all,
        rows=10_000,
        method="list",
        has_target=True,
        databases=BOTH_DATABASES,
    ),
    Workload("list 100k", list_all, rows=100_000, method="list", has_target=True),
    Workload("stream 1k", stream_all, method="stream"),
    Workload("stream 10k", stream_all, rows=10_000, method="stream"),
    Workload("stream 100k", stream_all, rows=100_000, method="stream", skip_when_quick=True),
    Workload("page of 50 in 1k", page, method="page", databases=BOTH_DATABASES, has_target=True),
    Workload("page of 50 in 100k", page, rows=100_000, method="page", skip_when_quick=True),
    Workload("newest 50 of 100k", newest, rows=100_000, method="newest"),
    Workload("total of 100k", total, rows=100_000, method="total"),
    Workload(
        "total of 1M", total, rows=MILLION, skip_when_quick=True, method="total", has_target=True
    ),
    Workload(
        "count behind a filter, 1M",
        count_behind,
        rows=MILLION,
        skip_when_quick=True,
        method="count_behind",
        has_target=True,
    ),
    Workload(
        "total behind a filter, 1M",
        total_behind,
        rows=MILLION,
        skip_when_quick=True,
        method="total_behind",
        has_target=True,
    ),
    Workload("stats of 100k", read_stats, rows=100_000, method="stats"),
    Workload("stats of 1M", read_stats, rows=MILLION, skip_when_quick=True, method="stats"),
    Workload("record_use, 64 tasks", record_use, method="use", writes=True),
    Workload("remove", remove, method="remove", writes=True, databases=BOTH_DATABASES),
    Workload(
        "second scan of a 1,000-repo cache",
        scan_again,
        method="scan_hub_cache",
        writes=True,
        opens_contender=True,
        skip_when_quick=True,
    ),
    Workload("open, warm", open_warm, opens_contender=True, writes=True, has_target=True),
)

"""The faults of a soak, one at a time, at random."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

from fault_proxy import COMMIT, FaultProxy, Link

from soak.processes import WorkerProcess


def hold_write_lock(database: Path, seconds: float) -> None:
    """Hold the write lock of a SQLite file, as another program does."""
    with closing(sqlite3.connect(database, timeout=10, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
        connection.execute("ROLLBACK")


class Faults:
    """Strikes workers and databases. The first worker of each database is never killed."""

    def __init__(
        self, workers: list[WorkerProcess], sqlite: Path, proxies: list[FaultProxy]
    ) -> None:
        self._workers = workers
        self._sqlite = sqlite
        self._proxies = proxies
        self.counts: Counter[str] = Counter()

    async def strike(self) -> None:
        """Let one fault happen, and end it."""
        names = ["kill", "suspend", "lock"]
        if self._proxies:
            names += ["cut", "silence", "delay", "lose answers of COMMIT", "hold answers of COMMIT"]
        name = random.choice(names)
        self.counts[name] += 1
        if name == "kill":
            await random.choice(
                [each for each in self._workers if not each.name.endswith("0")]
            ).kill()
        elif name == "suspend":
            await random.choice(self._workers).suspend(random.uniform(0.5, 4))
        elif name == "lock":
            await asyncio.to_thread(hold_write_lock, self._sqlite, random.uniform(0.1, 4))
        else:
            await self._strike_server(name, random.choice(self._proxies))

    async def _strike_server(self, name: str, proxy: FaultProxy) -> None:
        if name == "cut":
            for link in list(proxy.links):
                link.cut()
        elif name == "silence":
            proxy.silence(new=random.random() < 0.5)
            await asyncio.sleep(random.uniform(0.2, 5))
        elif name == "delay":
            proxy.delay_s = random.uniform(0.01, 0.2)
            await asyncio.sleep(3)
            proxy.delay_s = 0.0
        else:
            is_lost = name.startswith("lose")
            proxy.strike_at(COMMIT, Link.cut_by_answer if is_lost else Link.hold_answers)
            with suppress(TimeoutError):
                await asyncio.wait_for(proxy.has_struck.wait(), 3)
            await asyncio.sleep(0 if is_lost else 3)
        proxy.resume()

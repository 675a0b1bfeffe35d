"""`python -m soak`: write from eight processes while faults strike; print what was lost."""

from __future__ import annotations

import argparse
import asyncio
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from sqlalchemy import URL

# The proxy and the server of the tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import postgres
from fault_proxy import fault_proxy

from model_catalog import upgrade
from soak.accounts import Account
from soak.faults import Faults
from soak.processes import WorkerProcess

DRIVERS = ("asyncpg", "psycopg")
MAX_OVERRUN_S = 0.5
MAX_GROWTH = {"memory_mib": 20.0, "threads": 8.0, "descriptors": 16.0}
"""A pool opens a few connections more when some of its calls wait for a fault to end."""

MAX_WAL_MIB = 64.0
"""A process that is suspended while it reads keeps SQLite from starting the log anew."""

MAX_MESSAGES = 65536
"""The bytes on standard error of all workers."""


@dataclass(frozen=True)
class Run:
    """What ran, and the size of SQLite's write-ahead log while the workers still wrote."""

    workers: list[WorkerProcess]
    faults: Faults
    seconds: float
    wal_mib: float


@contextmanager
def postgres_database() -> Iterator[URL | None]:
    """Create a database for the soak, or yield None without a server."""
    with postgres.server() as server:
        if server is None:
            yield None
        else:
            with postgres.database(server, "soak") as url:
                yield url


def read_sqlite(database: Path) -> set[str]:
    with closing(sqlite3.connect(database)) as connection:
        (found,) = connection.execute("PRAGMA integrity_check").fetchone()
        if found != "ok":
            raise RuntimeError(f"{database} is damaged: {found}")
        return {reference for (reference,) in connection.execute("SELECT reference FROM models")}


def read_postgres(url: URL) -> set[str]:
    """Read the references once the server has ended all connections of the workers."""
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    with psycopg.connect(postgres.dsn(url), autocommit=True) as connection:
        deadline_s = time.monotonic() + 30
        while connection.execute(others, [url.database]).fetchone() != (0,):
            if time.monotonic() > deadline_s:
                raise TimeoutError("the server did not end the connections of the workers in 30 s")
            time.sleep(0.1)
        return {reference for (reference,) in connection.execute("SELECT reference FROM models")}


async def sample(workers: list[WorkerProcess]) -> None:
    while True:
        await asyncio.sleep(1)
        for worker in workers:
            worker.sample()


async def run_workers(folder: Path, server: URL | None, seconds: float, pause_s: float) -> Run:
    """Run the workers and the faults for a time, then end the faults and stop the workers."""
    database = folder / "catalog.db"
    await upgrade(database)
    urls = {"sqlite": f"sqlite+aiosqlite:///{database}"}
    async with AsyncExitStack() as stack:
        proxies = []
        if server is not None:
            await upgrade(server.set(drivername="postgresql+asyncpg"))
            for driver in DRIVERS:
                proxy = await stack.enter_async_context(fault_proxy(server))
                url = proxy.url.set(drivername=f"postgresql+{driver}")
                urls[driver] = url.render_as_string(hide_password=False)
                proxies.append(proxy)
        counts = {driver: 4 if driver == "sqlite" else 2 for driver in urls}
        workers = [
            WorkerProcess(f"{driver}-{index}", url, folder, pause_s)
            for driver, url in urls.items()
            for index in range(counts[driver])
        ]
        faults = Faults(workers, database, proxies)
        for worker in workers:
            await worker.start()
        samples = asyncio.create_task(sample(workers))
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            await asyncio.sleep(random.uniform(0.2, 1.5))
            await faults.strike()
        samples.cancel()
        wal_mib = (folder / "catalog.db-wal").stat().st_size / 2**20
        await asyncio.gather(*(worker.stop() for worker in workers))
    return Run(workers, faults, seconds, wal_mib)


def report(account: Account, run: Run) -> bool:
    """Print the table; return whether every promise was kept."""
    # A worker that was killed has no samples of the whole time.
    lasting = [worker for worker in run.workers if worker.starts == 1]
    growth = {
        resource: max((worker.growth(resource) for worker in lasting), default=0.0)
        for resource in MAX_GROWTH
    }
    messages = sum(worker.messages.stat().st_size for worker in run.workers)
    unexpected = sum(len(worker.unexpected_ends) for worker in run.workers)
    outcomes = account.outcomes
    rows = {
        "seconds": f"{run.seconds:.0f}",
        "worker processes": len(run.workers),
        "faults": sum(run.faults.counts.values()),
        **{f"- {name}": count for name, count in sorted(run.faults.counts.items())},
        "acknowledged writes": outcomes["kept"],
        "lost acknowledged writes": account.lost,
        "calls told as failures": outcomes["failed"],
        "unknown outcomes, told as unknown": outcomes["unknown"],
        "unknown outcomes, told as failures": account.kept_failures,
        "cancelled calls": outcomes["cancelled"],
        "calls of killed workers": outcomes["interrupted"],
        "bulk calls kept in part": account.halves,
        "worst overrun of a deadline": f"{account.worst_overrun_s:.2f} s",
        "workers that ended unexpectedly": unexpected,
        "growth of memory": f"{growth['memory_mib']:.1f} MiB",
        "growth of threads": f"{growth['threads']:.0f}",
        "growth of descriptors": f"{growth['descriptors']:.0f}",
        "write-ahead log at the end": f"{run.wal_mib:.1f} MiB",
        "messages on stderr": f"{messages} bytes",
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value:>8}")
    return (
        not (account.lost or account.kept_failures or account.halves or unexpected)
        and account.worst_overrun_s <= MAX_OVERRUN_S
        and all(growth[resource] <= most for resource, most in MAX_GROWTH.items())
        and run.wal_mib <= MAX_WAL_MIB
        and messages <= MAX_MESSAGES
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800, help="(default: 1800)")
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between calls of a task")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, postgres_database() as server:
        folder = Path(name)
        run = asyncio.run(run_workers(folder, server, options.seconds, options.pause))
        account = Account()
        stored = read_sqlite(folder / "catalog.db") | (read_postgres(server) if server else set())
        for worker in run.workers:
            for log in folder.glob(f"{worker.name}-*.log"):
                account.add_log(log, stored, worker.suspensions)
        is_right = report(account, run)
        for worker in run.workers:
            for end in worker.unexpected_ends:
                print(end, file=sys.stderr)
            print(worker.messages.read_text()[-2000:], end="", file=sys.stderr)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())

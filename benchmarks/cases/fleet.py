"""What questions about the models of 100 hosts cost, and the heartbeats of 1,000 hosts."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Final

import psycopg
from sqlalchemy import make_url
from tests.fleet_database import host_name, insert_fleet, reference_name

from benchmarks.contenders import CATALOG
from benchmarks.harness.benchmark import ALLOWED, Benchmark, Environment
from benchmarks.harness.rounds import Measured, Result, Sample, run_rounds
from model_catalog import HostRegistry, Model, ModelCatalog, open_catalog
from model_catalog.domain.fleet import DEFAULT_INTERVAL_S
from tests import postgres

WHO_HAS: Final = "fleet: questions, who_has"
TOTALS: Final = "fleet: questions, totals_by_host"
FIND: Final = "fleet: calls of one host of 100, find_model"
REGISTER: Final = "fleet: calls of one host of 100, register_model"
ONE_HOST: Final = "a catalog of one host"
HEARTBEATS: Final = "fleet: heartbeats of 1,000 hosts, CPU of the server in a second"
_ALLOWED: Final = {WHO_HAS: 0.002, TOTALS: 0.3, HEARTBEATS: 0.01}
_HOSTS: Final = 100
_MODELS: Final = 10_000
_QUICK_MODELS: Final = 100
_CALLS: Final = 100
_BEATING_HOSTS: Final = 1000


async def questions(environment: Environment) -> Mapping[str, Result]:
    """Ask who has a model, and for the totals of all hosts, in a fleet of a million models."""
    if not environment.contenders["postgresql"]:
        return {}
    models = _QUICK_MODELS if environment.settings.quick else _MODELS
    spec = environment.contenders["postgresql"][0]
    target = await environment.databases.target(spec, 1, private=True)
    insert_fleet(postgres.dsn(make_url(target)), hosts=_HOSTS, models=models)
    references = cycle(range(0, models, max(1, models // 1000)))
    async with open_catalog(target) as catalog:
        fleet = catalog.fleet()

        async def who_has() -> Sample:
            began_at = time.perf_counter()
            for _ in range(_CALLS):
                await fleet.who_has("hf:" + reference_name(next(references)))
            return Sample((time.perf_counter() - began_at) / _CALLS)

        async def totals() -> Sample:
            began_at = time.perf_counter()
            await fleet.totals_by_host()
            return Sample(time.perf_counter() - began_at)

        results = {
            title: await _compare(title, measured)
            for title, measured in ((WHO_HAS, who_has), (TOTALS, totals))
        }
    environment.databases.discard(target)
    return results


async def calls_of_one_host(environment: Environment) -> Mapping[str, Result]:
    """Find and register models of one host in the same fleet, and in a catalog of this host."""
    if not environment.contenders["postgresql"]:
        return {}
    models = _QUICK_MODELS if environment.settings.quick else _MODELS
    spec = environment.contenders["postgresql"][0]
    targets = {
        ONE_HOST: await environment.databases.target(spec, 1, private=True),
        CATALOG: await environment.databases.target(spec, 1, private=True),
    }
    for name, target in targets.items():
        hosts = 1 if name == ONE_HOST else _HOSTS
        insert_fleet(postgres.dsn(make_url(target)), hosts=hosts, models=models)
    results = {}
    async with AsyncExitStack() as stack:
        catalogs = {
            name: await stack.enter_async_context(open_catalog(target, host=host_name(0)))
            for name, target in targets.items()
        }
        for title, call in ((FIND, _find), (REGISTER, _register)):
            contenders = {
                name: partial(_time_calls, partial(call, catalog), models)
                for name, catalog in catalogs.items()
            }
            results[title] = await run_rounds(contenders, 40, warm_up=True)
    for target in targets.values():
        environment.databases.discard(target)
    return results


async def _find(catalog: ModelCatalog, number: int) -> None:
    if await catalog.find_model(reference_name(number), "hf") is None:
        raise AssertionError(number)


async def _register(catalog: ModelCatalog, number: int) -> None:
    reference = f"new/{time.perf_counter_ns()}-{number}"
    await catalog.register_model(Model(reference=reference, provider="hf", local_path="/m"))


async def _time_calls(call: Callable[[int], Awaitable[None]], models: int) -> Sample:
    numbers = random.sample(range(models), min(_CALLS, models))
    began_at = time.perf_counter()
    for number in numbers:
        await call(number)
    return Sample((time.perf_counter() - began_at) / len(numbers))


async def heartbeats(environment: Environment) -> Mapping[str, Result]:
    """
    Send a heartbeat of each host, and count the CPU time of the server.

    Each host spends the CPU time of its own client.
    """
    if not environment.contenders["postgresql"]:
        return {}
    spec = environment.contenders["postgresql"][0]
    target = await environment.databases.target(spec, 1, private=True)
    insert_fleet(postgres.dsn(make_url(target)), hosts=_BEATING_HOSTS, models=1)
    async with open_catalog(target) as catalog:
        registry = HostRegistry(catalog)

        async def beat() -> Sample:
            before_s = _server_cpu_s(target)
            for number in range(_BEATING_HOSTS):
                await registry.heartbeat(host_name(number), free_bytes=number)
            return Sample((_server_cpu_s(target) - before_s) / DEFAULT_INTERVAL_S)

        result = await _compare(HEARTBEATS, beat, rounds=5)
    environment.databases.discard(target)
    return {HEARTBEATS: result}


def _server_cpu_s(target: str) -> float:
    """Return the CPU time of the sessions of a server on this machine; 0 of another server."""
    url = make_url(target)
    with psycopg.connect(postgres.dsn(url), autocommit=True) as raw:
        pids = raw.execute(
            "SELECT pid FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchall()
    ticks = 0
    for (pid,) in pids:
        status = Path(f"/proc/{pid}/stat")
        if status.exists():
            # The name of the program is in parentheses; the times are the fields 14 and 15.
            fields = status.read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


async def _compare(title: str, measured: Measured, rounds: int = 20) -> Result:
    contenders: dict[str, Measured] = {
        ALLOWED: lambda: Sample(_ALLOWED[title]),
        CATALOG: measured,
    }
    return await run_rounds(contenders, rounds, warm_up=True)


BENCHMARKS: Final = (
    Benchmark("fleet: questions", questions, has_target=True),
    Benchmark("fleet: calls of one host", calls_of_one_host, has_target=True),
    Benchmark("fleet: heartbeats", heartbeats, has_target=True),
)

"""Functions that tests run in processes of their own."""

import asyncio
import multiprocessing
import os
import signal
import sqlite3
import time
from collections.abc import Awaitable
from contextlib import closing
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier, Event

from sqlalchemy import Engine, event

from model_catalog import Model, downgrade, open_catalog, upgrade

# The fork server has imported everything, so a new process starts in ten milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "aiosqlite",
        "alembic.autogenerate",
        "alembic.command",
        "alembic.config",
        "asyncpg",
        "model_catalog.downloads",
        "model_catalog.opening",
        "model_catalog.schema.migrate",
        "model_catalog.upkeep",
        "psycopg",
        "pytest",
        "sqlalchemy.dialects.postgresql.asyncpg",
        "sqlalchemy.dialects.postgresql.psycopg",
        "sqlalchemy.dialects.sqlite.aiosqlite",
    ]
)

_gate: Barrier | None = None


def set_barrier(gate: Barrier) -> None:
    """Set the barrier at which this process waits for the other processes before each call."""
    global _gate  # noqa: PLW0603 - a pool's initializer can only pass values to its tasks by a global
    _gate = gate


def open_and_register(target: str, reference: str) -> int:
    """Open a catalog at the same time as other processes; return how many models it contains."""

    async def run() -> int:
        async with open_catalog(target) as catalog:
            await catalog.register_model(
                Model(reference=reference, provider="starter", local_path="/m", size_bytes=1)
            )
            return len(await catalog.list_models())

    _gate.wait()
    return asyncio.run(run())


def register_repeatedly(target: str, times: int, size_bytes: int) -> set[int]:
    """Register the same model `times` times; return the set of ids it got."""

    async def run() -> set[int]:
        async with open_catalog(target) as catalog:
            models = [
                await catalog.register_model(
                    Model(reference="m", provider="hf", local_path="/m", size_bytes=size_bytes)
                )
                for _ in range(times)
            ]
            return {model.id for model in models}

    _gate.wait()
    return asyncio.run(run())


def migrate_and_kill_self(target: str, where: int | str, revision: str | None) -> None:
    """
    Migrate, and kill this process at a statement: its number, its first words, or "COMMIT".

    With `revision` it is a downgrade to that revision; with None it is an upgrade. Returns normally
    if the statement is not reached.
    """
    count = 0

    def kill_self(*_) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def count_statement(_connection, _cursor, statement, *_) -> None:
        nonlocal count
        count += 1
        if where == count or (isinstance(where, str) and statement.lstrip().startswith(where)):
            kill_self()

    event.listen(Engine, "before_cursor_execute", count_statement)
    if where == "COMMIT":
        event.listen(Engine, "commit", kill_self)
    asyncio.run(upgrade(target) if revision is None else downgrade(target, revision))


def migration_was_killed(target: str, where: int | str, revision: str | None = None) -> bool:
    """Run `migrate_and_kill_self` in a process; return whether it was killed before the end."""
    process = PROCESSES.Process(target=migrate_and_kill_self, args=(target, where, revision))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode != 0


def kill_with_open_catalog(target: str) -> None:
    """Register a model, and kill this process while the catalog is open."""

    async def run() -> None:
        async with open_catalog(target) as catalog:
            await catalog.register_model(Model(reference="last", provider="hf", local_path="/m"))
            os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(run())


def keep_catalog_open(target: str, began: Event, stop: Event) -> None:
    """Keep a catalog open and idle until `stop` is set."""

    async def run() -> None:
        async with open_catalog(target) as catalog:
            await catalog.list_models(limit=1)
            began.set()
            await asyncio.to_thread(stop.wait)

    asyncio.run(run())


def keep_sqlite_lock(path: str, statements: list[str], began: Event, stop: Event) -> None:
    """Take a SQLite lock, as another program does, and keep it until `stop` is set."""
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        for statement in statements:
            raw.execute(statement).fetchall()
        began.set()
        stop.wait()


def write_until_stopped(target: str, began: Event, stop: Event) -> None:
    """Register pairs of models until `stop` is set, each pair in one transaction."""

    async def run() -> None:
        async with open_catalog(target) as catalog:
            number = 0
            while not stop.is_set():
                number += 1
                await catalog.register_models(
                    Model(reference=f"t{number}", provider=provider, local_path="/" + "x" * 300)
                    for provider in ("twin1", "twin2")
                )
                began.set()

    asyncio.run(run())


def write_for(target: str, number: int, seconds: float, pipe: Connection) -> None:
    """Write as fast as one caller can; send the number of calls of each kind, and their times."""

    shared = Model(reference="shared", provider="hf", local_path="/m")

    async def run() -> tuple[dict[str, int], list[float]]:
        counts = dict.fromkeys(("registered", "registered again", "used", "updated"), 0)
        durations_s: list[float] = []

        async def timed(kind: str, call: Awaitable[object]) -> None:
            start = time.monotonic()
            await call
            durations_s.append(time.monotonic() - start)
            counts[kind] += 1

        async with open_catalog(target) as catalog:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                name = f"p{number} {counts['registered']}"
                own = Model(reference=name, provider="hf", local_path="/m")
                await timed("registered", catalog.register_model(own))
                await timed("registered again", catalog.register_model(shared))
                await timed("used", catalog.record_use("shared", "hf"))
                await timed("updated", catalog.update_model(name, "hf", license=name))
        return counts, durations_s

    pipe.send(asyncio.run(run()))


def register_until_killed(target: str, number: int, pipe: Connection) -> None:
    """Send the number of models of the previous round and the page check; then write on."""

    async def run() -> None:
        async with open_catalog(target) as catalog:
            found = await catalog.list_models(provider=f"round{number - 1}")
            expected = {f"m{each}" for each in range(len(found))}
            assert {model.reference for model in found} == expected
            with closing(sqlite3.connect(target)) as raw:
                pages = raw.execute("PRAGMA quick_check").fetchall()
            pipe.send((len(found), pages))
            row = 0
            while True:
                await catalog.register_model(
                    Model(
                        reference=f"m{row}", provider=f"round{number}", local_path="/" + "x" * 2000
                    )
                )
                row += 1
                pipe.send(row)

    asyncio.run(run())

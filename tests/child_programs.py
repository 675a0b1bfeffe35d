"""What the tests have processes of their own do."""

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

# A process that is forked from a server in which all is imported begins in ten milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "aiosqlite",
        "alembic.autogenerate",
        "alembic.command",
        "alembic.config",
        "asyncpg",
        "model_catalog.opening",
        "psycopg",
        "pytest",
        "sqlalchemy.dialects.postgresql.asyncpg",
        "sqlalchemy.dialects.postgresql.psycopg",
        "sqlalchemy.dialects.sqlite.aiosqlite",
    ]
)

_gate: Barrier | None = None


def stand_at(gate: Barrier) -> None:
    """Where this process waits for the others before each thing it does."""
    global _gate  # noqa: PLW0603 - what a pool's initializer knows has no other way to its tasks
    _gate = gate


def open_and_register(target: str, reference: str) -> int:
    """Open a catalog in the same moment as everybody else; return how many models were in it."""

    async def run() -> int:
        async with open_catalog(target) as catalog:
            await catalog.register_model(
                Model(reference=reference, provider="starter", local_path="/m", size_bytes=1)
            )
            return len(await catalog.list_models())

    _gate.wait()
    return asyncio.run(run())


def register_again_and_again(target: str, times: int, size_bytes: int) -> set[int]:
    """Register one and the same model `times` times; return the ids that were given to it."""

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


def migrate_and_die(target: str, where: int | str, revision: str | None) -> None:
    """
    Migrate, and be killed on the way: at a statement's number or first words, or at "COMMIT".

    `revision` is where a downgrade goes; None is an upgrade. Ends well when the place is not met.
    """
    count = 0

    def die(*_) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def look(_connection, _cursor, statement, *_) -> None:
        nonlocal count
        count += 1
        if where == count or (isinstance(where, str) and statement.lstrip().startswith(where)):
            die()

    event.listen(Engine, "before_cursor_execute", look)
    if where == "COMMIT":
        event.listen(Engine, "commit", die)
    asyncio.run(upgrade(target) if revision is None else downgrade(target, revision))


def killed(target: str, where: int | str, revision: str | None = None) -> bool:
    """Migrate in a process that is killed at a place; False where it got to its end alive."""
    process = PROCESSES.Process(target=migrate_and_die, args=(target, where, revision))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode != 0


def leave_without_closing(target: str) -> None:
    """Register a model, and be killed with the catalog open."""

    async def run() -> None:
        async with open_catalog(target) as catalog:
            await catalog.register_model(Model(reference="last", provider="hf", local_path="/m"))
            os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(run())


def hold_open(target: str, began: Event, stop: Event) -> None:
    """Have a catalog open, idle, until told."""

    async def run() -> None:
        async with open_catalog(target) as catalog:
            await catalog.list_models(limit=1)
            began.set()
            await asyncio.to_thread(stop.wait)

    asyncio.run(run())


def hold_lock(path: str, statements: list[str], began: Event, stop: Event) -> None:
    """Take a lock of SQLite's, as another program does, and keep it until told."""
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        for statement in statements:
            raw.execute(statement).fetchall()
        began.set()
        stop.wait()


def write_until_told(target: str, began: Event, stop: Event) -> None:
    """Register pairs of models, each pair in one transaction."""

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
    """Write as fast as one caller can; send how often each way was acknowledged, and how long."""

    every = Model(reference="shared", provider="hf", local_path="/m")

    async def run() -> tuple[dict[str, int], list[float]]:
        counts = dict.fromkeys(("registered", "registered again", "used", "updated"), 0)
        took: list[float] = []

        async def timed(what: str, call: Awaitable[object]) -> None:
            start = time.monotonic()
            await call
            took.append(time.monotonic() - start)
            counts[what] += 1

        async with open_catalog(target) as catalog:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                name = f"p{number} {counts['registered']}"
                mine = Model(reference=name, provider="hf", local_path="/m")
                await timed("registered", catalog.register_model(mine))
                await timed("registered again", catalog.register_model(every))
                await timed("used", catalog.record_use("shared", "hf"))
                await timed("updated", catalog.update_model(name, "hf", license=name))
        return counts, took

    pipe.send(asyncio.run(run()))


def register_until_killed(target: str, number: int, pipe: Connection) -> None:
    """Tell how many models of the round before are there and how the pages are; then write."""

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

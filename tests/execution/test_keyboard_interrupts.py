"""Ctrl-C within a call, through `asyncio.run` and through the blocking catalog."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import postgres
import psycopg
import pytest
from fault_proxy import fault_proxy

from model_catalog import downgrade, upgrade

PROGRAM = Path(__file__).parents[1] / "interrupted_program.py"
ENDS_WITHIN_S = 3.0
LOAD = 50
CASES = [
    ("sqlite", "async", "write_many"),
    ("sqlite", "host", "write"),
    ("sqlite", "sync", "in_transaction"),
    ("sqlite", "sync", "under_load"),
    ("sqlite", "async-opening", "-"),
    ("asyncpg", "async", "write_at_once"),
    ("asyncpg", "async", "read"),
    ("asyncpg", "async", "in_transaction"),
    ("asyncpg", "host", "under_load"),
    ("asyncpg", "sync-unclosed", "write"),
    ("psycopg", "async", "write"),
    ("psycopg", "host", "in_transaction"),
    ("psycopg", "sync", "write_at_once"),
    ("psycopg", "sync-opening", "-"),
]


@contextmanager
def held(database, way: str, call: str) -> Iterator[None]:
    """Hold the lock that the call waits for, on a connection of another program."""
    if database.path is not None:
        with closing(sqlite3.connect(database.path, isolation_level=None)) as raw:
            raw.execute("BEGIN IMMEDIATE")
            yield
        return
    mode = "ACCESS EXCLUSIVE" if call == "read" else "EXCLUSIVE"
    statement = "SELECT 1 FROM models" if "opening" in way else f"LOCK TABLE models IN {mode} MODE"
    with psycopg.connect(postgres.dsn(database.url)) as raw:
        raw.execute(statement)
        yield
        raw.rollback()


def wait_until_it_waits(database, process) -> None:
    if database.path is not None:
        # SQLite does not tell who waits.
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        return
    deadline = time.monotonic() + 10
    while not database.run("SELECT 1 FROM pg_locks WHERE NOT granted"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def interrupt(process) -> tuple[str, str, float]:
    """Send Ctrl-C; return what the process printed, its messages, and the seconds it took."""
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, messages = process.communicate(timeout=10 * ENDS_WITHIN_S)
    return output, messages, time.monotonic() - start


def assert_is_one_traceback(messages: str) -> None:
    """Assert that only the traceback of KeyboardInterrupt was printed, with its context."""
    # psycopg logs a line for each query that it could not cancel in order.
    lines = [each for each in messages.splitlines() if not each.startswith("query cancellation")]
    own = [each for each in lines if each and not each.startswith(" ")]
    assert own[-1] == "KeyboardInterrupt", messages
    assert set(own[:-1]) <= {
        "Traceback (most recent call last):",
        "During handling of the above exception, another exception occurred:",
        "asyncio.exceptions.CancelledError",
    }, messages


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "way", "call"), CASES)
def test_ctrl_c_ends_a_call_and_loses_nothing(database, way, call, request):
    """
    A call waits for a lock, or many calls run. The process ends with KeyboardInterrupt and prints
    one traceback. All that was acknowledged is there, and nothing of an open transaction.
    """
    if "opening" in way:
        # Other tests share the database.
        request.addfinalizer(lambda: asyncio.run(upgrade(database.target)))
        asyncio.run(downgrade(database.target, "0018"))
    process = subprocess.Popen(
        [sys.executable, PROGRAM, database.target, way, call],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    acknowledged = list(iter(lambda: process.stdout.readline().strip(), "ready"))

    if call == "under_load":
        process.stdin.write("go\n")
        process.stdin.flush()
        acknowledged += [process.stdout.readline().strip() for _ in range(LOAD)]
        output, messages, took_s = interrupt(process)
    else:
        with held(database, way, call):
            process.stdin.write("go\n")
            process.stdin.flush()
            wait_until_it_waits(database, process)
            output, messages, took_s = interrupt(process)

    assert process.returncode == -signal.SIGINT, messages
    assert took_s < ENDS_WITHIN_S
    assert_is_one_traceback(messages)
    recorded = {name for (name,) in database.run("SELECT reference FROM models")}
    assert {*acknowledged, *output.split()} - recorded == set()
    assert "not committed" not in recorded


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncpg", "psycopg"])
async def test_ctrl_c_ends_a_call_to_a_silent_server(database):
    """A write gets a second. Then its connection is dropped without an answer of the server."""
    async with fault_proxy(database.target_url) as proxy:
        target = proxy.url.render_as_string(hide_password=False)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, PROGRAM, target, "async", "under_load"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        while (await process.stdout.readline()).strip() != b"ready":
            pass
        process.stdin.write(b"go\n")
        acknowledged = [(await process.stdout.readline()).decode().strip() for _ in range(LOAD)]
        proxy.silence()
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        output, messages = await asyncio.wait_for(process.communicate(), 10 * ENDS_WITHIN_S)
        took_s = time.monotonic() - start

    assert process.returncode == -signal.SIGINT
    assert took_s < ENDS_WITHIN_S
    assert_is_one_traceback(messages.decode())
    recorded = {name for (name,) in database.run("SELECT reference FROM models")}
    assert {*acknowledged, *output.decode().split()} - recorded == set()

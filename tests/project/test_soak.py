"""`python -m soak` finds what was lost, and the catalog loses nothing in a short run."""

import json
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from soak.accounts import Account
from soak.processes import WorkerProcess

SUSPENDED_WORKER = """
import asyncio, os, signal, sys
from pathlib import Path
from soak.processes import WorkerProcess

async def main(folder):
    worker = WorkerProcess("w", f"sqlite+aiosqlite:///{folder}/catalog.db", folder, 0.05)
    await worker.start()
    while not (folder / "w-0.log").exists():
        await asyncio.sleep(0.01)
    worker._process.send_signal(signal.SIGSTOP)
    print(worker._process.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.fixture
def account_of(tmp_path):
    """A function that compares the lines of a log with the stored references."""

    def compare(lines, stored=(), suspensions=()):
        log = tmp_path / "worker.log"
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
        account = Account()
        account.add_log(log, set(stored), suspensions)
        return account

    return compare


@pytest.mark.parametrize(
    ("kind", "references", "outcome", "stored", "found"),
    [
        pytest.param("add", ["a"], "kept", ["a"], (0, 0, 0), id="kept"),
        pytest.param("add", ["a"], "kept", [], (1, 0, 0), id="lost"),
        pytest.param("add", ["a", "b"], "kept", ["a"], (1, 0, 1), id="lost in part"),
        pytest.param("add", ["a"], "failed", [], (0, 0, 0), id="failed"),
        pytest.param("add", ["a"], "failed", ["a"], (0, 1, 0), id="kept failure"),
        pytest.param("add", ["a", "b"], "cancelled", ["a"], (0, 0, 1), id="cancelled in part"),
        pytest.param("add", ["a"], "unknown", ["a"], (0, 0, 0), id="unknown"),
        pytest.param("remove", ["a"], "kept", ["a"], (1, 0, 0), id="lost removal"),
        pytest.param("remove", ["a"], "failed", [], (0, 1, 0), id="removal that was a failure"),
    ],
)
def test_the_account_finds_calls_that_were_not_as_they_were_told(
    account_of, kind, references, outcome, stored, found
):
    """Lost acknowledged calls, failures that were kept, and bulk calls that were kept in part."""
    account = account_of([[1, "started", kind, references], [1, outcome, 0.0, 0.1]], stored)

    assert (account.lost, account.kept_failures, account.halves) == found


def test_a_removed_model_is_not_lost(account_of):
    """The removal was acknowledged, or its process was killed before its answer."""
    added = [[1, "started", "add", ["a"]], [1, "kept", 0.0, 0.1], [2, "started", "remove", ["a"]]]

    assert account_of(added).lost == 0
    assert account_of([*added, [2, "kept", 0.1, 0.2]]).lost == 0
    assert account_of([*added, [2, "failed", 0.1, 0.2]]).lost == 1


def test_the_time_of_a_suspension_is_not_an_overrun(account_of):
    """A call of 6 s in a process that was suspended for 3 s took 3 s of its 2 s."""
    lines = [[1, "started", "add", ["a"]], [1, "failed", 10.0, 16.0]]

    assert account_of(lines, suspensions=[(9.0, 13.0)]).worst_overrun_s == pytest.approx(1.0)


@pytest.mark.slow
async def test_a_worker_that_is_stopped_while_it_starts_ends_as_asked(tmp_path):
    """So a soak that ends just after a worker was started again reports no unexpected end."""
    worker = WorkerProcess("w", f"sqlite+aiosqlite:///{tmp_path}/catalog.db", tmp_path, 0.05)
    await worker.start()

    await worker.stop()

    assert worker.unexpected_ends == []


@pytest.mark.slow
async def test_a_soak_says_how_a_worker_ended(tmp_path):
    """The report names the worker and its exit status."""
    (tmp_path / "w-0.log").mkdir()
    worker = WorkerProcess("w", f"sqlite+aiosqlite:///{tmp_path}/catalog.db", tmp_path, 0.05)
    await worker.start()

    await worker.stop()

    assert len(worker.unexpected_ends) == 1
    assert worker.unexpected_ends[0].startswith("w-0: exit status 1, ")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the workers")
def test_workers_end_with_a_killed_soak(tmp_path):
    """Also a worker that is suspended, which sees no end of its input."""
    command = [sys.executable, "-c", SUSPENDED_WORKER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as soak:
        pid = int(soak.stdout.readline())
        worker = os.pidfd_open(pid)
        soak.kill()

    try:
        assert select.select([worker], [], [], 10)[0], "the worker is still there"
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(worker)


@pytest.mark.slow
def test_a_short_soak_loses_nothing():
    """Eight processes write to both databases for six seconds while faults strike."""
    command = [sys.executable, "-m", "soak", "--seconds", "6"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    rows = dict(re.findall(r"^(\S.*?) {2,}(\d+)", run.stdout, re.MULTILINE))
    assert int(rows["acknowledged writes"]) > 100, run.stderr
    assert rows["lost acknowledged writes"] == "0", run.stdout
    assert rows["unknown outcomes, told as failures"] == "0", run.stdout
    assert rows["bulk calls kept in part"] == "0", run.stdout
    assert rows["workers that ended unexpectedly"] == "0", run.stderr

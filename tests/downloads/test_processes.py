"""Downloads and uses of several processes: kills, stops, and many callers at once."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from download_helpers import NAME, Downloader, safetensors_bytes, until

from model_catalog import Model, ModelInUseError, open_catalog
from model_catalog.downloads import get_or_download, list_downloads, list_users, use_model

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("download_program.py")
LEASE_S = 1.0


class Process:
    """A download program; `close` kills it."""

    def __init__(self, database, folder, mode, *names, tasks=1, lease_s=LEASE_S):
        folder.mkdir(exist_ok=True)
        arguments = [str(database.target), str(folder), str(lease_s), str(tasks), mode, *names]
        tests = str(PROGRAM.parents[1])
        self.popen = subprocess.Popen(
            [sys.executable, str(PROGRAM), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{PROGRAM.parent}:{tests}"},
        )

    async def line(self):
        async with asyncio.timeout(60):
            return (await asyncio.to_thread(self.popen.stdout.readline)).strip()

    async def end(self):
        """Let it continue, and return the lines that it prints."""
        async with asyncio.timeout(120):
            printed, errors = await asyncio.to_thread(self.popen.communicate)
        assert self.popen.returncode == 0, errors
        return printed.split()

    def send(self, number):
        self.popen.send_signal(number)

    def close(self):
        self.popen.kill()
        self.popen.communicate()


async def test_16_tasks_in_each_of_4_processes_download_10_models_once(database, tmp_path):
    """
    640 calls get the same 10 files.
    """
    names = [f"hf:org/m{number}" for number in range(10)]
    processes = [
        Process(database, tmp_path / "m", "fast", *names, tasks=16, lease_s=30) for _ in range(4)
    ]

    paths = await asyncio.gather(*(process.end() for process in processes))

    log = (tmp_path / "m" / "log").read_text().splitlines()
    assert len(log) == 10
    assert sorted(line.split()[0] for line in log) == sorted(name[3:] for name in names)
    assert [len(each) for each in paths] == [10] * 4
    assert all(each == paths[0] for each in paths)
    assert database.run("SELECT count(*) FROM model_claims") == [(0,)]


async def test_another_caller_takes_over_from_a_killed_process(database, tmp_path):
    """
    It does so when the claim has expired. The file is whole, and the half of the other is deleted.
    """
    with closing(Process(database, tmp_path / "m", "hang", NAME)) as process:
        assert await process.line() == "started"
        (running,) = await _downloads(database)
        process.send(signal.SIGKILL)
        killed_id = process.popen.pid
        successor = Process(database, tmp_path / "m", "fast", NAME)
        (path,) = await successor.end()

    done, failed = await _downloads(database)
    assert running.process_id == killed_id
    assert (done.state, failed.state) == ("done", "failed")
    assert "was killed" in failed.error
    # Two clocks are compared here only with each other: both are the database's.
    assert (done.started_at - running.started_at).total_seconds() < LEASE_S + 15
    assert Path(path).read_bytes() == safetensors_bytes(successor.popen.pid % 256, 100_000)
    assert len(list((tmp_path / "m").rglob("*.safetensors"))) == 1


async def test_a_process_that_was_stopped_cannot_register_over_its_successor(database, tmp_path):
    """
    When it continues, it returns the model of the successor, whose file has not changed.
    """
    with closing(Process(database, tmp_path / "m", "hang", NAME)) as process:
        assert await process.line() == "started"
        process.send(signal.SIGSTOP)
        successor = Process(database, tmp_path / "m", "fast", NAME)
        (path,) = await successor.end()
        process.send(signal.SIGCONT)
        (late_path,) = await process.end()

    states = [each.state for each in await _downloads(database)]
    assert late_path == path
    assert states == ["done", "failed"]
    assert Path(path).read_bytes() == safetensors_bytes(successor.popen.pid % 256, 100_000)
    assert len(list((tmp_path / "m").rglob("*.safetensors"))) == 1
    assert database.run("SELECT count(*), count(DISTINCT id) FROM models") == [(1, 1)]


async def test_the_use_of_a_killed_process_ends_with_its_lease(database, tmp_path):
    """
    Until then the model cannot be removed, and the error names the process.
    """
    async with open_catalog(database.target) as catalog:
        await catalog.register_model(Model(reference="org/tiny", provider="hf", local_path="/m"))
        with closing(Process(database, tmp_path / "m", "use", NAME)) as process:
            assert await process.line() == "using"
            (user,) = await list_users(catalog)
            with pytest.raises(ModelInUseError) as caught:
                await catalog.remove_model(NAME)
            process.send(signal.SIGKILL)

        async def removed():
            try:
                return await catalog.remove_model(NAME)
            except ModelInUseError:
                return False

        await until(removed)

    assert caught.value.users == (f"process {user.process_id} on {user.host}",)
    assert user.process_id == process.popen.pid
    assert database.run("SELECT count(*) FROM model_uses") == [(0,)]


async def test_a_use_that_lasts_longer_than_its_lease_is_renewed(database, tmp_path):
    """
    The model stays protected for as long as the block runs.
    """
    async with open_catalog(database.target) as one, open_catalog(database.target) as other:
        await one.register_model(Model(reference="org/tiny", provider="hf", local_path="/m"))
        async with use_model(one, NAME, lease_s=LEASE_S):
            (first,) = await list_users(other)

            async def renewed():
                (user,) = await list_users(other)
                return user.renewed_at > first.expires_at

            await until(renewed)
            with pytest.raises(ModelInUseError):
                await other.remove_model(NAME)
        users = await list_users(other)
        model = await one.get_model(NAME)

    assert users == []
    assert model.use_count == 1


async def test_a_download_that_lasts_longer_than_its_lease_is_not_taken_over(database, tmp_path):
    """
    Its claim is renewed in the background.
    """
    release = asyncio.Event()
    download = Downloader(tmp_path / "m", release=release)
    async with open_catalog(database.target) as one, open_catalog(database.target) as other:
        first = asyncio.create_task(get_or_download(one, NAME, download, lease_s=LEASE_S))
        await download.started.wait()
        second = asyncio.create_task(get_or_download(other, NAME, download, lease_s=LEASE_S))
        ((expires_at_ms,),) = database.run("SELECT expires_at_ms FROM model_claims")

        def renewed():
            return database.run("SELECT renewed_at_ms FROM model_claims") > [(expires_at_ms,)]

        await until(renewed)
        release.set()
        models = await asyncio.gather(first, second)

    assert models[0].id == models[1].id
    assert download.count == 1


async def _downloads(database):
    async with open_catalog(database.target) as catalog:
        return await list_downloads(catalog)

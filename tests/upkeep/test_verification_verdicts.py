"""Models are read and compared: what is found, in what order, and within what limits."""

import asyncio
import dataclasses
import itertools
import os
import subprocess
import threading
import time
from contextlib import aclosing
from datetime import timedelta

import pytest
from conftest import a_model, moment

from model_catalog import FileState, InvalidModelError
from model_catalog.cli.commands.demo_files import make_gguf
from model_catalog.upkeep import (
    Verdict,
    accept_model,
    check_models,
    register_path,
    verify_models,
)
from model_catalog.upkeep.queries.verification_queries import save_file_digest, save_inspection
from model_catalog.upkeep.worker_threads import device_lock, device_of

NAME = ("m", "local")
MIB = 1024 * 1024


@pytest.fixture
def catalog(on_sqlite):
    """What is on the disk is the same to every database."""
    return on_sqlite


def a_file(folder, name="m.gguf", context_length=4096):
    path = folder / name
    path.write_bytes(make_gguf("llama", context_length=context_length))
    return path


def a_set(folder, count=3):
    folder.mkdir(exist_ok=True)
    return [
        a_file(folder, f"m-{n:05}-of-{count:05}.gguf", context_length=n)
        for n in range(1, count + 1)
    ]


async def recorded(catalog, path, reference="m", **options):
    return (
        await register_path(catalog, path, provider="local", reference=reference, **options)
    ).model


async def verified(catalog, *arguments, **options):
    return [each async for each in verify_models(catalog, *arguments, **options)]


async def verdicts(catalog, *arguments, **options):
    return {
        each.model.reference: each.verdict
        for each in await verified(catalog, *arguments, **options)
    }


def sha256sum(folder):
    """What the shell's own commands say of a folder."""
    done = subprocess.run(
        "find . -type f | sed s,^./,, | LC_ALL=C sort | xargs -d'\\n' sha256sum | sha256sum",
        shell=True,
        cwd=folder,
        capture_output=True,
        check=True,
    )
    return "sha256:" + done.stdout.decode().split()[0]


async def test_the_first_verification_records_the_digests(catalog, tmp_path):
    """
    Of a file, of a set and of a folder; that of several is the one that sha256sum gives.
    """
    folder = tmp_path / "set"
    a_set(folder)
    (folder / "config.json").write_text("{}")
    await recorded(catalog, folder)

    assert await verdicts(catalog) == {"m": Verdict.OK}

    model = await catalog.get_model(*NAME)
    assert model.digest == sha256sum(folder)
    assert model.verified_at is not None
    files = await catalog.list_files(*NAME)
    assert all(file.digest and file.hashed_at and not file.is_damaged for file in files)


async def test_the_bytes_can_be_read_at_once(catalog, tmp_path):
    """
    Registering with its digest is a verification, and gives what a later one gives.
    """
    folder = tmp_path / "set"
    a_set(folder)

    model = await recorded(catalog, folder, digest=True)

    assert model.digest == sha256sum(folder)
    assert model.verified_at is not None
    (done,) = await verified(catalog)
    assert (done.verdict, done.model.digest) == (Verdict.OK, model.digest)


async def test_a_model_that_was_only_registered_gets_its_files(catalog, tmp_path):
    """
    What `register_model` recorded has no list of files: the first verification makes it, and holds
    what it reads against the digest that was given.
    """
    path = a_file(tmp_path)
    await catalog.register_model(
        a_model("m", provider="local", local_path=str(path), digest="0" * 64)
    )

    (wrong,) = await verified(catalog)
    await catalog.update_model(*NAME, digest=wrong.model.found_digest)
    (right,) = await verified(catalog)

    assert wrong.verdict is Verdict.MISMATCH
    assert wrong.model.digest == "sha256:" + "0" * 64
    assert (right.verdict, right.model.found_digest) == (Verdict.OK, None)


async def test_a_folder_is_held_against_the_digest_that_was_given(catalog, tmp_path):
    """
    Of a folder of which only the digest of all of it is known, the files are those that have it.
    """
    folder = tmp_path / "set"
    paths = a_set(folder)
    right, kept = sha256sum(folder), paths[1].read_bytes()
    await catalog.register_model(
        a_model("m", provider="local", local_path=str(folder), digest=right)
    )
    paths[1].write_bytes(bytes(reversed(kept)))

    (wrong,) = await verified(catalog)
    paths[1].write_bytes(kept)
    (mended,) = await verified(catalog)

    assert (wrong.verdict, wrong.model.digest) == (Verdict.MISMATCH, right)
    assert (mended.verdict, mended.model.digest) == (Verdict.OK, right)
    assert not any(file.is_damaged for file in await catalog.list_files(*NAME))


async def test_a_folder_without_files_is_incomplete(catalog, tmp_path):
    """
    There is nothing to read in it, and that is what is said; it is not first in each pass for that.
    """
    (tmp_path / "empty").mkdir()
    await recorded(catalog, tmp_path / "empty")

    (done,) = await verified(catalog)

    assert (done.verdict, done.read_bytes) == (Verdict.INCOMPLETE, 0)
    assert done.model.verified_at is not None


def with_other_bytes(path):
    """The same size and the same time of writing; nobody can set back that of change."""
    found = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


async def test_a_mismatch_is_recorded_beside_what_is_expected(catalog, tmp_path):
    """
    The expected digest stays until the new bytes are accepted, or the right ones are back.
    """
    path = a_file(tmp_path)
    kept = path.read_bytes()
    before = await recorded(catalog, path, digest=True)

    with_other_bytes(path)
    (wrong,) = await verified(catalog)
    assert wrong.verdict is Verdict.MISMATCH
    assert "'m.gguf' does not match" in wrong.detail
    assert wrong.model.digest == before.digest
    assert wrong.model.found_digest not in (None, before.digest)
    assert await catalog.count_models(damaged=True) == 1
    (file,) = await catalog.list_files(*NAME)
    assert (file.digest, file.found_digest) == (before.digest, wrong.model.found_digest)
    checked = await check_models(catalog)
    assert [(each.state, each.is_damaged) for each in checked.findings] == [
        (FileState.CHANGED, True)
    ]

    path.write_bytes(kept)
    (right,) = await verified(catalog)
    assert (right.verdict, right.model.found_digest) == (Verdict.OK, None)
    assert (await check_models(catalog)).is_as_recorded

    with_other_bytes(path)
    accepted = (await accept_model(catalog, *NAME)).model
    assert accepted.digest == wrong.model.found_digest
    assert (accepted.state, accepted.download_count) == (FileState.PRESENT, 1)
    assert await verdicts(catalog) == {"m": Verdict.OK}


async def test_bytes_that_rot_are_found_though_the_status_is_the_same(catalog, tmp_path):
    """
    A check sees nothing, a verification does, and from then on the check tells of it.
    """
    path = a_file(tmp_path)
    await recorded(catalog, path, digest=True)
    with_other_bytes(path)
    # As if the disk had done it, which tells no clock: the new status is the recorded one.
    (file,) = await catalog.list_files(*NAME)
    found = path.stat()
    rotten = f"{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}:{found.st_ino}"
    await save_file_digest(
        catalog,
        await catalog.get_model(*NAME),
        type(file)(file.path, file.size_bytes, file.role, file.digest, None, rotten, moment(1)),
    )

    before = await check_models(catalog)
    (wrong,) = await verified(catalog)
    after = await check_models(catalog)

    assert before.is_as_recorded
    assert wrong.verdict is Verdict.MISMATCH
    assert after.findings[0].is_damaged
    assert not after.is_as_recorded


async def test_a_download_that_was_cut_off_is_found_without_hashing(catalog, tmp_path):
    """
    Its header says how long it should be.
    """
    path = a_file(tmp_path)
    os.truncate(path, path.stat().st_size - 8)
    await recorded(catalog, path)
    shards = a_set(tmp_path / "set")
    await recorded(catalog, tmp_path / "set", "set")
    shards[1].unlink()
    await recorded(catalog, tmp_path / "set", "set")

    found = {each.model.reference: each for each in await verified(catalog, "structure")}

    assert {name: each.verdict for name, each in found.items()} == {
        "m": Verdict.INCOMPLETE,
        "set": Verdict.INCOMPLETE,
    }
    assert "are needed" in found["m"].detail
    assert "m-00002-of-00003.gguf" in found["set"].detail
    assert all(each.read_bytes == 0 for each in found.values())
    assert await catalog.count_models(incomplete=True) == 2


async def test_what_is_gone_is_told_and_not_recorded(catalog, tmp_path):
    """
    That a model is missing is for a check to say, which knows of its disk.
    """
    path = a_file(tmp_path)
    await recorded(catalog, path)
    path.unlink()

    for level in ("quick", "structure", "full"):
        assert await verdicts(catalog, level) == {"m": Verdict.MISSING}

    assert (await catalog.get_model(*NAME)).state is FileState.PRESENT


async def test_quick_asks_for_the_status_alone(catalog, tmp_path):
    """
    It tells what was written to, and reads nothing.
    """
    path = a_file(tmp_path)
    await recorded(catalog, path)
    assert await verdicts(catalog, "quick") == {"m": Verdict.OK}

    path.write_bytes(b"other")

    assert await verdicts(catalog, "quick") == {"m": Verdict.CHANGED}


async def test_a_level_that_there_is_not_is_refused(catalog):
    """
    The error lists those that there are.
    """
    with pytest.raises(InvalidModelError, match="not one of quick, structure, full"):
        await verified(catalog, "deep")


async def read_in_order(catalog, **options):
    return [each.model.reference for each in await verified(catalog, **options)]


async def test_what_was_read_longest_ago_comes_first(catalog, tmp_path):
    """
    What was never read and what has changed since come before all.
    """
    for number, name in enumerate(("new", "old", "never", "changed")):
        model = await recorded(catalog, a_file(tmp_path, name), name, digest=name != "never")
        if name != "never":
            times = {"verified_at": moment({"new": 9, "old": 5, "changed": 7}[name])}
            await save_inspection(catalog, model, times)
        assert number >= 0
    with_other_bytes(tmp_path / "changed")
    await check_models(catalog)

    assert await read_in_order(catalog) == ["changed", "never", "old", "new"]


async def test_what_was_read_within_a_time_is_left_out(catalog, tmp_path):
    """
    A verification that is not yet old is not made again.
    """
    await recorded(catalog, a_file(tmp_path, "new"), "new", digest=True)
    await recorded(catalog, a_file(tmp_path, "never"), "never")

    assert await read_in_order(catalog, not_since=timedelta(days=1)) == ["never"]
    assert await read_in_order(catalog, not_since=timedelta(days=1)) == []


async def test_a_budget_ends_it_and_the_next_call_goes_on(catalog, tmp_path):
    """
    A model of several files is read over several calls; one file is read in any case.
    """
    folder = tmp_path / "set"
    paths = a_set(folder)
    await recorded(catalog, folder)
    # A file that was written in the moment it is read may be written again unseen.
    for path in paths:
        os.utime(path, (1, 1))
    size = paths[0].stat().st_size

    first = await verified(catalog, max_bytes=size)
    second = await verified(catalog, max_bytes=1)
    before = await catalog.get_model(*NAME)
    read = [file.path for file in await catalog.list_files(*NAME) if file.hashed_at]

    assert [(each.verdict, each.read_bytes) for each in first] == [(Verdict.UNFINISHED, size)]
    assert [each.verdict for each in second] == [Verdict.UNFINISHED]
    assert before.verified_at is None
    assert read == [path.name for path in paths[:2]]
    # As if they had been written long before they were read.
    for file in (await catalog.list_files(*NAME))[:2]:
        later = dataclasses.replace(file, hashed_at=file.hashed_at + timedelta(hours=1))
        await save_file_digest(catalog, before, later)
    (last,) = await verified(catalog)
    assert (last.verdict, last.read_bytes) == (Verdict.OK, size)
    assert (await catalog.get_model(*NAME)).digest == sha256sum(folder)


async def test_a_budget_ends_with_the_first_file_that_goes_beyond(catalog, tmp_path):
    """
    What comes after it has its turn when that one has had its own.
    """
    for name, size in (("a", 10), ("b", 1000), ("c", 10)):
        (tmp_path / name).write_bytes(bytes(size))
        await recorded(catalog, tmp_path / name, name)

    assert await verdicts(catalog, max_bytes=100) == {"a": Verdict.OK}
    assert await verdicts(catalog, max_bytes=1005) == {"b": Verdict.OK}


async def test_a_time_ends_it(catalog, tmp_path):
    """
    After it no further file is begun.
    """
    for name in ("a", "b", "c"):
        await recorded(catalog, a_file(tmp_path, name), name)

    assert len(await verified(catalog, max_seconds=0)) == 1
    assert len(await verified(catalog, max_seconds=60)) == 3


async def test_progress_counts_the_bytes_to_the_last(catalog, tmp_path):
    """
    It never goes back, and ends where all is read.
    """
    path = tmp_path / "m.bin"
    path.write_bytes(bytes(5 * MIB))
    await recorded(catalog, path)
    told = []

    await verified(catalog, on_progress=told.append)
    await asyncio.sleep(0)

    done = [each.done_bytes for each in told]
    assert done == sorted(done)
    assert (done[-1], told[-1].total_bytes) == (5 * MIB, 5 * MIB)


async def test_results_come_as_they_are_done(catalog, tmp_path):
    """
    The first is there before the last is begun; closing the iterator leaves no task and no reader.
    """
    for name in ("a", "b"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(64 * MIB)
        await recorded(catalog, tmp_path / name, name)
    tasks = asyncio.all_tasks()

    began = time.monotonic()
    async with aclosing(verify_models(catalog)) as results:
        first = await anext(results)
    ended = time.monotonic()

    assert first.verdict is Verdict.OK
    assert asyncio.all_tasks() == tasks
    assert (await catalog.get_model("b", "local")).verified_at is None
    # The thread is asked to stop, and stops within a MiB: another call is not held up by it.
    (tmp_path / "b").write_bytes(b"small")
    await recorded(catalog, tmp_path / "b", "b")
    assert await verdicts(catalog, reference="b") == {"b": Verdict.OK}
    assert ended - began < 30


async def test_a_file_that_is_written_to_meanwhile_is_told(catalog, tmp_path):
    """
    What was read of it is nobody's digest, and none is recorded.
    """
    path = tmp_path / "m.bin"
    with path.open("wb") as file:
        file.truncate(128 * MIB)
    await recorded(catalog, path)
    reading = threading.Event()

    def append():
        reading.wait(30)
        with path.open("ab") as file:
            file.write(b"more")

    writer = threading.Thread(target=append)
    writer.start()
    (done,) = await verified(catalog, on_progress=lambda _: reading.set())
    writer.join()

    assert done.verdict is Verdict.CHANGED
    assert (await catalog.get_model(*NAME)).digest is None


async def test_one_file_on_a_disk_is_read_at_a_time(catalog, tmp_path):
    """
    Two verifications of one disk take turns: their progress does not interleave.
    """
    for name in ("a", "b"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(24 * MIB)
        await recorded(catalog, tmp_path / name, name)
    seen = []

    async def run(name):
        await verified(catalog, reference=name, on_progress=lambda _: seen.append(name))

    await asyncio.gather(run("a"), run("b"))

    switches = sum(one != other for one, other in itertools.pairwise(seen))
    assert set(seen) == {"a", "b"}
    assert switches == 1


async def test_two_disks_are_read_at_the_same_time(catalog, tmp_path, disk):
    """
    While another reader has the turn on one disk, what lies on the other is read; the progress is
    that of both.
    """
    for folder in (tmp_path, disk):
        (folder / "m.bin").write_bytes(bytes(2 * MIB))
        await recorded(catalog, folder / "m.bin", folder.name)
    counted = []

    async with aclosing(
        verify_models(catalog, on_progress=lambda each: counted.append(each.done_bytes))
    ) as results:
        async with device_lock(device_of(str(tmp_path))), asyncio.timeout(30):
            first = await anext(results)
        second = await anext(results)

    assert (first.model.reference, second.model.reference) == (disk.name, tmp_path.name)
    assert counted == sorted(counted)
    assert counted[-1] == 4 * MIB


async def test_a_model_that_is_registered_anew_while_it_is_read_is_left_alone(catalog, tmp_path):
    """
    What was read of the old path is not recorded of the new one.
    """
    path = tmp_path / "m.bin"
    with path.open("wb") as file:
        file.truncate(128 * MIB)
    await recorded(catalog, path)
    reading = asyncio.Event()

    async def move():
        await reading.wait()
        await catalog.update_model(*NAME, local_path="/elsewhere")

    moving = asyncio.create_task(move())
    done = await verified(catalog, on_progress=lambda _: reading.set())
    await moving

    assert done == []
    model = await catalog.get_model(*NAME)
    assert (model.digest, model.verified_at, model.state) == (None, None, FileState.UNCHECKED)


async def test_two_names_of_one_file_are_read_once(catalog, tmp_path):
    """
    A hard link and a link are the same bytes.
    """
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.bin").write_bytes(bytes(MIB))
    os.link(folder / "a.bin", folder / "b.bin")
    (folder / "c.bin").symlink_to("a.bin")
    await recorded(catalog, folder)
    told = []

    (done,) = await verified(catalog, on_progress=told.append)

    assert done.verdict is Verdict.OK
    assert {each.path.rpartition("/")[2] for each in told} == {"a.bin"}
    assert len({file.digest for file in await catalog.list_files(*NAME)}) == 1


async def test_the_loop_is_free_while_much_is_hashed(catalog, tmp_path):
    """
    Hashing holds the event loop for less than 50 ms at a time.
    """
    path = tmp_path / "m.bin"
    with path.open("wb") as file:
        file.truncate(128 * MIB)
    held = []

    async def tick():
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            held.append(now - last)
            last = now

    ticking = asyncio.create_task(tick())
    # What would hold the loop before anything else is awaited is to be seen as well.
    await asyncio.sleep(0)
    await recorded(catalog, path, digest=True)
    ticking.cancel()

    assert max(held) < 0.05

"""Verify models: verdicts, order, budgets, progress and parallel reading."""

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
    """SQLite only: these tests are about files, which are the same for every database."""
    return on_sqlite


def create_file(folder, name="m.gguf", context_length=4096):
    path = folder / name
    path.write_bytes(make_gguf("llama", context_length=context_length))
    return path


def create_shards(folder, count=3):
    folder.mkdir(exist_ok=True)
    return [
        create_file(folder, f"m-{n:05}-of-{count:05}.gguf", context_length=n)
        for n in range(1, count + 1)
    ]


async def register(catalog, path, reference="m", **options):
    return (
        await register_path(catalog, path, provider="local", reference=reference, **options)
    ).model


async def verify(catalog, *arguments, **options):
    return [each async for each in verify_models(catalog, *arguments, **options)]


async def verdicts(catalog, *arguments, **options):
    return {
        each.model.reference: each.verdict for each in await verify(catalog, *arguments, **options)
    }


def sha256sum(folder):
    """Return the digest of a folder, computed by the shell's own commands."""
    process = subprocess.run(
        "find . -type f | sed s,^./,, | LC_ALL=C sort | xargs -d'\\n' sha256sum | sha256sum",
        shell=True,
        cwd=folder,
        capture_output=True,
        check=True,
    )
    return "sha256:" + process.stdout.decode().split()[0]


async def test_the_first_verification_records_the_digest_of_a_folder(catalog, tmp_path):
    """
    The digest of a folder is the one that `sha256sum` computes, and each file gets its own.
    """
    folder = tmp_path / "set"
    create_shards(folder)
    (folder / "config.json").write_text("{}")
    await register(catalog, folder)

    assert await verdicts(catalog) == {"m": Verdict.OK}

    model = await catalog.get_model(*NAME)
    assert model.digest == sha256sum(folder)
    assert model.verified_at is not None
    files = await catalog.list_files(*NAME)
    assert all(file.digest and file.hashed_at and not file.is_damaged for file in files)


async def test_registering_with_a_digest_counts_as_a_verification(catalog, tmp_path):
    """
    It records the same digest as a later verification.
    """
    folder = tmp_path / "set"
    create_shards(folder)

    model = await register(catalog, folder, digest=True)

    assert model.digest == sha256sum(folder)
    assert model.verified_at is not None
    (result,) = await verify(catalog)
    assert (result.verdict, result.model.digest) == (Verdict.OK, model.digest)


async def test_a_registered_model_is_compared_with_its_registered_digest(catalog, tmp_path):
    """
    `register_model` does not list files. The first verification lists them and compares the digest.
    """
    path = create_file(tmp_path)
    await catalog.register_model(
        a_model("m", provider="local", local_path=str(path), digest="0" * 64)
    )

    (wrong,) = await verify(catalog)
    await catalog.update_model(*NAME, digest=wrong.model.found_digest)
    (right,) = await verify(catalog)

    assert wrong.verdict is Verdict.MISMATCH
    assert wrong.model.digest == "sha256:" + "0" * 64
    assert (right.verdict, right.model.found_digest) == (Verdict.OK, None)


async def test_a_restored_folder_matches_its_registered_digest(catalog, tmp_path):
    """
    Only the digest of the whole folder was registered. A damaged file is a mismatch until it is
    restored.
    """
    folder = tmp_path / "set"
    paths = create_shards(folder)
    right, kept = sha256sum(folder), paths[1].read_bytes()
    await catalog.register_model(
        a_model("m", provider="local", local_path=str(folder), digest=right)
    )
    paths[1].write_bytes(bytes(reversed(kept)))

    (wrong,) = await verify(catalog)
    paths[1].write_bytes(kept)
    (restored,) = await verify(catalog)

    assert (wrong.verdict, wrong.model.digest) == (Verdict.MISMATCH, right)
    assert (restored.verdict, restored.model.digest) == (Verdict.OK, right)
    assert not any(file.is_damaged for file in await catalog.list_files(*NAME))


async def test_an_empty_folder_is_incomplete(catalog, tmp_path):
    """
    It counts as verified, so that it does not come first in every pass.
    """
    (tmp_path / "empty").mkdir()
    await register(catalog, tmp_path / "empty")

    (result,) = await verify(catalog)

    assert (result.verdict, result.read_bytes) == (Verdict.INCOMPLETE, 0)
    assert result.model.verified_at is not None


def flip_a_bit(path):
    """
    Change the content of a file, and keep its size and modification time. The change time cannot be
    kept.
    """
    found = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


async def test_a_mismatch_is_recorded_beside_the_expected_digest(catalog, tmp_path):
    """
    The expected digest stays until the new content is accepted, or the original content is
    restored.
    """
    path = create_file(tmp_path)
    kept = path.read_bytes()
    before = await register(catalog, path, digest=True)

    flip_a_bit(path)
    (wrong,) = await verify(catalog)
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
    (right,) = await verify(catalog)
    assert (right.verdict, right.model.found_digest) == (Verdict.OK, None)
    assert (await check_models(catalog)).is_as_recorded

    flip_a_bit(path)
    accepted = (await accept_model(catalog, *NAME)).model
    assert accepted.digest == wrong.model.found_digest
    assert (accepted.state, accepted.download_count) == (FileState.PRESENT, 1)
    assert await verdicts(catalog) == {"m": Verdict.OK}


async def test_bit_rot_is_found_although_the_status_is_the_same(catalog, tmp_path):
    """
    A check finds nothing, a verification finds it, and later checks report the damage.
    """
    path = create_file(tmp_path)
    await register(catalog, path, digest=True)
    flip_a_bit(path)
    # Bit rot changes no time. So the new status is recorded as the expected one.
    (file,) = await catalog.list_files(*NAME)
    found = path.stat()
    fingerprint = f"{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}:{found.st_ino}"
    await save_file_digest(
        catalog,
        await catalog.get_model(*NAME),
        type(file)(
            file.path, file.size_bytes, file.role, file.digest, None, fingerprint, moment(1)
        ),
    )

    before = await check_models(catalog)
    (wrong,) = await verify(catalog)
    after = await check_models(catalog)

    assert before.is_as_recorded
    assert wrong.verdict is Verdict.MISMATCH
    assert after.findings[0].is_damaged
    assert not after.is_as_recorded


async def test_truncated_and_missing_files_are_found_without_hashing(catalog, tmp_path):
    """
    The header says how long the file must be, and the names of the shards say how many there must
    be.
    """
    path = create_file(tmp_path)
    os.truncate(path, path.stat().st_size - 8)
    await register(catalog, path)
    shards = create_shards(tmp_path / "set")
    await register(catalog, tmp_path / "set", "set")
    shards[1].unlink()
    await register(catalog, tmp_path / "set", "set")

    found = {each.model.reference: each for each in await verify(catalog, "structure")}

    assert {name: each.verdict for name, each in found.items()} == {
        "m": Verdict.INCOMPLETE,
        "set": Verdict.INCOMPLETE,
    }
    assert "are needed" in found["m"].detail
    assert "m-00002-of-00003.gguf" in found["set"].detail
    assert all(each.read_bytes == 0 for each in found.values())
    assert await catalog.count_models(incomplete=True) == 2


async def test_a_missing_model_is_reported_at_every_level_and_not_recorded(catalog, tmp_path):
    """
    Only a check records that a model is missing, because it considers the disk.
    """
    path = create_file(tmp_path)
    await register(catalog, path)
    path.unlink()

    for level in ("quick", "structure", "full"):
        assert await verdicts(catalog, level) == {"m": Verdict.MISSING}

    assert (await catalog.get_model(*NAME)).state is FileState.PRESENT


async def test_the_quick_level_compares_the_status_only(catalog, tmp_path):
    """
    It finds a file that was written to, and reads nothing.
    """
    path = create_file(tmp_path)
    await register(catalog, path)
    assert await verdicts(catalog, "quick") == {"m": Verdict.OK}

    path.write_bytes(b"other")

    assert await verdicts(catalog, "quick") == {"m": Verdict.CHANGED}


async def test_an_unknown_level_is_refused(catalog):
    """
    The error lists the levels.
    """
    with pytest.raises(InvalidModelError, match="not one of quick, structure, full"):
        await verify(catalog, "deep")


async def verified_references(catalog, **options):
    return [each.model.reference for each in await verify(catalog, **options)]


async def test_the_model_verified_longest_ago_comes_first(catalog, tmp_path):
    """
    Models that were never verified, and models that have changed since, come before all others.
    """
    for name in ("new", "old", "never", "changed"):
        model = await register(catalog, create_file(tmp_path, name), name, digest=name != "never")
        if name != "never":
            times = {"verified_at": moment({"new": 9, "old": 5, "changed": 7}[name])}
            await save_inspection(catalog, model, times)
    flip_a_bit(tmp_path / "changed")
    await check_models(catalog)

    assert await verified_references(catalog) == ["changed", "never", "old", "new"]


async def test_not_since_leaves_out_recent_verifications(catalog, tmp_path):
    """
    A model verified within the given time is not verified again.
    """
    await register(catalog, create_file(tmp_path, "new"), "new", digest=True)
    await register(catalog, create_file(tmp_path, "never"), "never")

    assert await verified_references(catalog, not_since=timedelta(days=1)) == ["never"]
    assert await verified_references(catalog, not_since=timedelta(days=1)) == []


async def test_the_next_call_continues_where_a_budget_ended(catalog, tmp_path):
    """
    A model of several files is read in several calls. One file is always read.
    """
    folder = tmp_path / "set"
    paths = create_shards(folder)
    await register(catalog, folder)
    # A file read right after it was written may change again without a new time. So its
    # modification time is set to the past.
    for path in paths:
        os.utime(path, (1, 1))
    size = paths[0].stat().st_size

    first = await verify(catalog, max_bytes=size)
    second = await verify(catalog, max_bytes=1)
    before = await catalog.get_model(*NAME)
    read = [file.path for file in await catalog.list_files(*NAME) if file.hashed_at]

    assert [(each.verdict, each.read_bytes) for each in first] == [(Verdict.UNFINISHED, size)]
    assert [each.verdict for each in second] == [Verdict.UNFINISHED]
    assert before.verified_at is None
    assert read == [path.name for path in paths[:2]]
    # Moves the hash times, as if the files had been read long after they were written.
    for file in (await catalog.list_files(*NAME))[:2]:
        later = dataclasses.replace(file, hashed_at=file.hashed_at + timedelta(hours=1))
        await save_file_digest(catalog, before, later)
    (last,) = await verify(catalog)
    assert (last.verdict, last.read_bytes) == (Verdict.OK, size)
    assert (await catalog.get_model(*NAME)).digest == sha256sum(folder)


async def test_a_file_larger_than_the_budget_is_not_skipped(catalog, tmp_path):
    """
    The pass ends before that file, so that smaller files do not overtake it. The next pass starts
    with it.
    """
    for name, size in (("a", 10), ("b", 1000), ("c", 10)):
        (tmp_path / name).write_bytes(bytes(size))
        await register(catalog, tmp_path / name, name)

    assert await verdicts(catalog, max_bytes=100) == {"a": Verdict.OK}
    assert await verdicts(catalog, max_bytes=1005) == {"b": Verdict.OK}


async def test_no_file_is_started_after_the_time_limit(catalog, tmp_path):
    """
    The first file is always read.
    """
    for name in ("a", "b", "c"):
        await register(catalog, create_file(tmp_path, name), name)

    assert len(await verify(catalog, max_seconds=0)) == 1
    assert len(await verify(catalog, max_seconds=60)) == 3


async def test_progress_ends_when_all_bytes_are_read(catalog, tmp_path):
    """
    The number of bytes never falls.
    """
    path = tmp_path / "m.bin"
    path.write_bytes(bytes(5 * MIB))
    await register(catalog, path)
    reports = []

    await verify(catalog, on_progress=reports.append)
    await asyncio.sleep(0)

    done_bytes = [each.done_bytes for each in reports]
    assert done_bytes == sorted(done_bytes)
    assert (done_bytes[-1], reports[-1].total_bytes) == (5 * MIB, 5 * MIB)


async def test_closing_the_iterator_ends_the_verification(catalog, tmp_path):
    """
    The first result is yielded before the last model is read. Closing the iterator leaves no task
    and no reader.
    """
    for name in ("a", "b"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(64 * MIB)
        await register(catalog, tmp_path / name, name)
    tasks = asyncio.all_tasks()

    began = time.monotonic()
    async with aclosing(verify_models(catalog)) as results:
        first = await anext(results)
    ended = time.monotonic()

    assert first.verdict is Verdict.OK
    assert asyncio.all_tasks() == tasks
    assert (await catalog.get_model("b", "local")).verified_at is None
    # The thread stops within a MiB, so another call does not wait for it.
    (tmp_path / "b").write_bytes(b"small")
    await register(catalog, tmp_path / "b", "b")
    assert await verdicts(catalog, reference="b") == {"b": Verdict.OK}
    assert ended - began < 30


async def test_a_file_appended_to_during_the_reading_is_changed(catalog, tmp_path):
    """
    No digest is recorded for it.
    """
    path = tmp_path / "m.bin"
    with path.open("wb") as file:
        file.truncate(128 * MIB)
    await register(catalog, path)
    reading = threading.Event()

    def append():
        reading.wait(30)
        with path.open("ab") as file:
            file.write(b"more")

    writer = threading.Thread(target=append)
    writer.start()
    (result,) = await verify(catalog, on_progress=lambda _: reading.set())
    writer.join()

    assert result.verdict is Verdict.CHANGED
    assert (await catalog.get_model(*NAME)).digest is None


async def test_two_verifications_of_one_disk_take_turns(catalog, tmp_path):
    """
    Their progress reports do not interleave.
    """
    for name in ("a", "b"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(24 * MIB)
        await register(catalog, tmp_path / name, name)
    seen = []

    async def run(name):
        await verify(catalog, reference=name, on_progress=lambda _: seen.append(name))

    await asyncio.gather(run("a"), run("b"))

    switches = sum(one != other for one, other in itertools.pairwise(seen))
    assert set(seen) == {"a", "b"}
    assert switches == 1


async def test_a_locked_disk_does_not_delay_another_disk(catalog, tmp_path, disk):
    """
    While another reader holds the lock of one disk, the models of the other disk are read. The
    progress includes both disks.
    """
    for folder in (tmp_path, disk):
        (folder / "m.bin").write_bytes(bytes(2 * MIB))
        await register(catalog, folder / "m.bin", folder.name)
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


async def test_a_path_changed_during_the_reading_gets_no_digest(catalog, tmp_path):
    """
    The digest of the file at the old path is not recorded for the new path.
    """
    path = tmp_path / "m.bin"
    with path.open("wb") as file:
        file.truncate(128 * MIB)
    await register(catalog, path)
    reading = asyncio.Event()

    async def move():
        await reading.wait()
        await catalog.update_model(*NAME, local_path="/elsewhere")

    moving = asyncio.create_task(move())
    result = await verify(catalog, on_progress=lambda _: reading.set())
    await moving

    assert result == []
    model = await catalog.get_model(*NAME)
    assert (model.digest, model.verified_at, model.state) == (None, None, FileState.UNCHECKED)


async def test_hard_links_and_symbolic_links_are_read_once(catalog, tmp_path):
    """
    They lead to the same content.
    """
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.bin").write_bytes(bytes(MIB))
    os.link(folder / "a.bin", folder / "b.bin")
    (folder / "c.bin").symlink_to("a.bin")
    await register(catalog, folder)
    reports = []

    (result,) = await verify(catalog, on_progress=reports.append)

    assert result.verdict is Verdict.OK
    assert {each.path.rpartition("/")[2] for each in reports} == {"a.bin"}
    assert len({file.digest for file in await catalog.list_files(*NAME)}) == 1


async def test_hashing_does_not_block_the_event_loop(catalog, tmp_path):
    """
    Hashing blocks the event loop for less than 50 ms at a time.
    """
    path = tmp_path / "m.bin"
    with path.open("wb") as file:
        file.truncate(128 * MIB)
    blocked_s = []

    async def tick():
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            blocked_s.append(now - last)
            last = now

    ticking = asyncio.create_task(tick())
    # Lets the ticks start first, so that work before the first await is measured too.
    await asyncio.sleep(0)
    await register(catalog, path, digest=True)
    ticking.cancel()

    assert max(blocked_s) < 0.05

"""Verify models by reading real files, some of which change while they are read."""

import asyncio
import hashlib
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import aclosing, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import a_model, moment

from model_catalog import FileRecord, FileState, InvalidModelError, open_catalog
from model_catalog.cli.commands.demo_files import make_gguf
from model_catalog.upkeep import accept_model, check_models, register_path, verify_models
from model_catalog.upkeep.queries.verification_queries import save_file_digest, save_inspection

# They test files more than statements, which the slow tests run on PostgreSQL too.
pytestmark = pytest.mark.slow_with("asyncpg")

NAME = ("m", "local")
MIB = 1024 * 1024


@pytest.fixture
def store(tmp_path):
    """A folder of models."""
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


def sha256(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def create_file(folder, name="m.bin", content=b"the bytes of a model"):
    path = folder / name
    path.write_bytes(content)
    return path


async def register(catalog, path, reference="m", **options):
    return (
        await register_path(catalog, path, provider="local", reference=reference, **options)
    ).model


async def verify(catalog, level="full", **options):
    return [each async for each in verify_models(catalog, level, **options)]


async def verify_one(catalog, level="full", **options):
    (found,) = await verify(catalog, level, **options)
    return found


def overwrite(path, content):
    """Replace the content of a file, and restore its modification time. The size stays the same."""
    before = path.stat()
    assert len(content) == before.st_size
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


async def test_the_first_verification_records_the_digests(catalog, store):
    """
    A model that was registered without a digest gets the digest that was read, and so does each
    file.
    """
    path = create_file(store)
    await register(catalog, path)

    found = await verify_one(catalog)

    assert (found.verdict, found.detail) == ("ok", "the format of the weights is not known")
    assert found.read_bytes == path.stat().st_size
    model = await catalog.get_model(*NAME)
    assert model.digest == found.model.digest == sha256(path.read_bytes())
    assert (model.state, model.found_digest) == ("present", None)
    (file,) = await catalog.list_files(*NAME)
    assert (file.digest, file.hashed_at) == (model.digest, model.verified_at)
    assert datetime.now(UTC) - model.verified_at < timedelta(minutes=1)


@pytest.mark.parametrize("level", ["quick", "structure"])
async def test_levels_below_full_hash_nothing(on_sqlite, store, level):
    """
    They compare the status of the files, and `structure` reads the headers too.
    """
    path = create_file(store, "m.gguf", make_gguf("llama", 1))
    await register(on_sqlite, path)
    whole = await verify_one(on_sqlite, level)
    os.utime(path, ns=(0, 0))
    touched = await verify_one(on_sqlite, level)

    assert (whole.verdict, whole.read_bytes) == ("ok", 0)
    assert touched.verdict == "changed"
    model = await on_sqlite.get_model(*NAME)
    assert (model.digest, model.verified_at) == (None, None)


async def test_a_truncated_download_is_found_without_hashing(on_sqlite, store):
    """
    The level `structure` finds and records that a file is shorter than its header says. The level
    `quick` cannot find that.
    """
    path = create_file(store, "m.gguf", make_gguf("llama", 1)[:-8])
    await register(on_sqlite, path)

    quick = await verify_one(on_sqlite, "quick")
    structure = await verify_one(on_sqlite, "structure")
    full = await verify_one(on_sqlite)

    assert quick.verdict == "ok"
    assert (structure.verdict, structure.read_bytes) == ("incomplete", 0)
    assert "are needed" in structure.detail
    assert full.verdict == "incomplete"
    assert await on_sqlite.count_models(incomplete=True) == 1

    path.write_bytes(make_gguf("llama", 1))
    assert (await verify_one(on_sqlite, "structure")).verdict == "changed"
    assert await on_sqlite.count_models(incomplete=True) == 0


async def test_a_set_with_a_missing_shard_is_incomplete(on_sqlite, store):
    """
    The existing shard is read and recorded, and the detail names the missing one.
    """
    first = create_file(store, "m-00001-of-00002.gguf", make_gguf("llama", 1))
    await register(on_sqlite, first)

    found = await verify_one(on_sqlite)

    assert found.verdict == "incomplete"
    assert "m-00002-of-00002.gguf" in found.detail
    assert found.model.digest == sha256(first.read_bytes())


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, 5),
        lambda path: path.write_bytes(path.read_bytes() + b"more"),
        lambda path: overwrite(path, b"THE BYTES OF A MODEL"),
    ],
    ids=["truncated", "longer", "same size and time"],
)
async def test_a_mismatch_does_not_replace_the_expected_digest(catalog, store, damage):
    """
    The found digest is recorded beside it. The mismatch ends when the original content is restored,
    or when the user accepts the new content.
    """
    path = create_file(store)
    right = path.read_bytes()
    await register(catalog, path, digest=True)

    damage(path)
    first = await verify_one(catalog)
    again = await verify_one(catalog)

    assert first.verdict == again.verdict == "mismatch"
    assert "'m.bin' does not match" in first.detail
    model = await catalog.get_model(*NAME)
    assert (model.digest, model.found_digest) == (sha256(right), sha256(path.read_bytes()))
    (file,) = await catalog.list_files(*NAME)
    assert (file.digest, file.found_digest) == (model.digest, model.found_digest)
    assert [each.reference for each in await catalog.list_models(damaged=True)] == ["m"]
    # The fingerprint of the wrong content is not recorded; with it a check would find no change.
    assert [each.state for each in (await check_models(catalog)).findings] == ["changed"]

    path.write_bytes(right)
    assert (await verify_one(catalog)).verdict == "ok"
    model = await catalog.get_model(*NAME)
    assert (model.found_digest, model.state) == (None, "present")
    assert await catalog.count_models(damaged=True) == 0

    damage(path)
    await verify_one(catalog)
    accepted = await accept_model(catalog, *NAME)
    assert (accepted.model.digest, accepted.model.found_digest) == (sha256(path.read_bytes()), None)
    assert accepted.model.size_bytes == path.stat().st_size
    assert (await verify_one(catalog)).verdict == "ok"


async def test_bit_rot_is_found_by_reading(catalog, database, store):
    """
    Only a full verification finds content that changed while size, times and inode stayed the same.
    """
    path = create_file(store)
    right = path.read_bytes()
    await register(catalog, path, digest=True)
    overwrite(path, b"THE BYTES OF A MODEL")
    seen = path.stat()
    fingerprint = f"{seen.st_size}:{seen.st_mtime_ns}:{seen.st_ctime_ns}:{seen.st_ino}"
    database.run("UPDATE model_files SET fingerprint = ?", fingerprint)

    checked = await check_models(catalog)
    quick = await verify_one(catalog, "quick")
    full = await verify_one(catalog)

    assert checked.is_as_recorded
    assert quick.verdict == "ok"
    assert full.verdict == "mismatch"
    assert full.model.digest == sha256(right)
    assert not (await check_models(catalog)).is_as_recorded
    assert [each.model.reference for each in await verify(catalog, damaged=True)] == ["m"]


async def test_a_file_of_another_size_gets_no_expected_digest(catalog, store):
    """
    If no digest is known, the size must be the recorded one.
    """
    plain, listed = create_file(store, "plain"), create_file(store, "listed")
    await catalog.register_model(a_model("plain", local_path=str(plain), size_bytes=1000))
    await register(catalog, listed, "listed")
    os.truncate(listed, 5)

    found = {each.model.reference: each for each in await verify(catalog)}

    assert {each.verdict for each in found.values()} == {"changed"}
    assert "has 20 bytes, but 1000 bytes are recorded" in found["plain"].detail
    assert "has 5 bytes, but 20 bytes are recorded" in found["listed"].detail
    for model in await catalog.list_models():
        assert (model.digest, model.verified_at) == (None, None)


async def test_a_verification_records_an_unknown_size(catalog, store):
    """
    A model that was registered by its path alone gets a size, a digest and its files.
    """
    path = create_file(store)
    await catalog.register_model(a_model("m", provider="local", local_path=str(path)))

    found = await verify_one(catalog)

    assert (found.verdict, found.model.size_bytes) == ("ok", 20)
    assert [file.path for file in await catalog.list_files(*NAME)] == ["m.bin"]
    assert (await check_models(catalog)).is_as_recorded


SHA256SUM_OUTPUT = "".join(f"{sha256(name.encode())[7:]}  {name}\n" for name in ("a.bin", "b.bin"))


@pytest.mark.parametrize("is_right", [True, False], ids=["right digest", "wrong digest"])
@pytest.mark.parametrize("kind", ["file", "folder"])
async def test_a_registered_digest_is_compared_with_the_files(catalog, store, kind, is_right):
    """
    A digest that the user has set is the expected one, for a file and for a folder.
    """
    for name in ("a.bin", "b.bin"):
        create_file(store, name, name.encode())
    expected = sha256(SHA256SUM_OUTPUT.encode()) if kind == "folder" else sha256(b"a.bin")
    given = expected if is_right else sha256(b"another")
    path = store if kind == "folder" else store / "a.bin"
    model = a_model("m", provider="local", local_path=str(path), digest=given)
    await catalog.register_model(model)

    found = await verify_one(catalog)

    assert found.verdict == ("ok" if is_right else "mismatch")
    assert found.model.digest == given
    assert found.model.found_digest == (None if is_right else expected)
    if not is_right:
        assert (await accept_model(catalog, *NAME)).model.digest == expected
        assert (await verify_one(catalog)).verdict == "ok"


async def test_the_models_digest_overrides_digests_read_from_damaged_files(catalog, store):
    """
    A folder with a known digest was damaged when its files were first read. When they are restored,
    the model is `ok`, although wrong digests were recorded for the files.
    """
    create_file(store, "a.bin", b"x")
    create_file(store, "b.bin", b"b.bin")
    digest = sha256(SHA256SUM_OUTPUT.encode())
    model = a_model("m", provider="local", local_path=str(store), digest=digest)
    await catalog.register_model(model)
    damaged = await verify_one(catalog)
    create_file(store, "a.bin", b"a.bin")

    found = await verify_one(catalog)

    assert (damaged.verdict, found.verdict) == ("mismatch", "ok")
    assert [file.is_damaged for file in await catalog.list_files(*NAME)] == [False, False]
    assert (await verify_one(catalog)).verdict == "ok"


async def test_a_damaged_file_is_found_although_sha256sum_escapes_a_name(catalog, store):
    """
    Such a model has no combined digest. Each file is compared with its own digest.
    """
    create_file(store, "back\\slash.bin", b"a")
    path = create_file(store, "b", b"b")
    await register(catalog, store)
    first = await verify_one(catalog)
    path.write_bytes(b"x")
    damaged = await verify_one(catalog)

    assert (first.verdict, first.model.digest) == ("ok", None)
    assert (damaged.verdict, damaged.model.found_digest) == ("mismatch", sha256(b"x"))
    assert await catalog.count_models(damaged=True) == 1


async def test_a_digest_that_cannot_be_compared_is_reported(on_sqlite, store):
    """
    Files with such names have no combined digest, so the registered digest is neither confirmed nor
    refuted.
    """
    create_file(store, "back\\slash.bin", b"a")
    create_file(store, "b", b"b")
    model = a_model(local_path=str(store), digest=sha256(b"something"))
    await on_sqlite.register_model(model)

    found = await verify_one(on_sqlite)

    assert found.verdict == "ok"
    assert "was not compared" in found.detail


async def test_an_empty_folder_does_not_end_a_pass(catalog, store):
    """
    A model without files is incomplete, and the next model is verified.
    """
    (store / "empty").mkdir()
    await register(catalog, store / "empty", "empty")
    await register(catalog, create_file(store), "m")

    found = {each.model.reference: each.verdict for each in await verify(catalog)}

    assert found == {"empty": "incomplete", "m": "ok"}


async def test_a_file_with_several_names_is_read_once(on_sqlite, store):
    """
    Hard links and symbolic links to one inode have the same content.
    """
    path = create_file(store, "a.bin", b"x" * MIB)
    os.link(path, store / "b.bin")
    (store / "c.bin").symlink_to("a.bin")
    await register(on_sqlite, store)
    reports = []

    found = await verify_one(on_sqlite, max_bytes=MIB, on_progress=reports.append)

    assert (found.verdict, found.read_bytes) == ("ok", MIB)
    files = await on_sqlite.list_files(*NAME)
    assert {file.digest for file in files} == {sha256(b"x" * MIB)}
    await asyncio.sleep(0)
    assert (reports[-1].done_bytes, reports[-1].total_bytes) == (MIB, MIB)


async def test_a_symbolic_link_is_followed(on_sqlite, store, tmp_path):
    """
    A model that is recorded by a link is verified by the file or the folder that the link points
    to.
    """
    path = create_file(store)
    (tmp_path / "file").symlink_to(path)
    (tmp_path / "folder").symlink_to(store)
    await register(on_sqlite, tmp_path / "file", "file")
    await register(on_sqlite, tmp_path / "folder", "folder")
    first = await verify(on_sqlite)
    overwrite(path, b"THE BYTES OF A MODEL")
    second = await verify(on_sqlite)

    assert [each.verdict for each in first] == ["ok", "ok"]
    assert [each.verdict for each in second] == ["mismatch", "mismatch"]


async def test_a_relative_path_is_resolved_in_the_working_directory(on_sqlite, store, monkeypatch):
    """
    A model that was registered by a relative path is verified twice.
    """
    create_file(store)
    monkeypatch.chdir(store)
    await on_sqlite.register_model(a_model(local_path="m.bin"))

    verdicts = [(await verify_one(on_sqlite)).verdict for _ in range(2)]

    assert verdicts == ["ok", "ok"]


async def test_the_catalogs_own_database_is_skipped(on_sqlite, tmp_path):
    """
    A folder is verified without the database in it.
    """
    create_file(tmp_path)
    await register(on_sqlite, tmp_path)

    found = await verify_one(on_sqlite)

    assert found.verdict == "ok"
    assert [file.path for file in await on_sqlite.list_files(*NAME)] == ["m.bin"]


async def test_a_database_in_place_of_a_file_does_not_end_a_pass(on_sqlite, tmp_path, store):
    """
    Its model is unreadable, and the next model is verified.
    """
    for name in ("a.bin", "b.bin"):
        create_file(store, name)
    await register(on_sqlite, store, "folder", digest=True)
    await register(on_sqlite, store / "a.bin", "file")
    (store / "b.bin").unlink()
    os.link(tmp_path / "catalog.db", store / "b.bin")

    found = {each.model.reference: each for each in await verify(on_sqlite)}

    assert found["folder"].verdict == "unreadable"
    assert "'b.bin' cannot be read" in found["folder"].detail
    assert found["file"].verdict == "ok"


APPEND_FOREVER = """
import os, sys
with open(sys.argv[1], "ab", buffering=0) as file:
    file.write(b"x")
    print("writing", flush=True)
    while True:
        file.write(b"x" * 4096)
"""


async def test_a_file_written_to_during_the_reading_is_changed(on_sqlite, store):
    """
    No digest is recorded for a file that another process appends to.
    """
    path = store / "m.bin"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    model = await register(on_sqlite, path, digest=True)
    with subprocess.Popen(
        [sys.executable, "-c", APPEND_FOREVER, path], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout.readline() == "writing\n"
        try:
            found = await verify_one(on_sqlite)
        finally:
            writer.kill()

    assert found.verdict == "changed"
    assert "changed while it was read" in found.detail
    after = await on_sqlite.get_model(*NAME)
    assert (after.digest, after.found_digest, after.verified_at) == (
        model.digest,
        None,
        model.verified_at,
    )


async def test_a_missing_model_is_reported_and_not_recorded(on_sqlite, store):
    """
    Only a check records that a model is missing.
    """
    path = create_file(store)
    await register(on_sqlite, path, digest=True)
    path.unlink()

    found = await verify_one(on_sqlite)

    assert (found.verdict, found.read_bytes) == ("missing", 0)
    assert (await on_sqlite.get_model(*NAME)).state is FileState.PRESENT


async def test_models_are_verified_in_order_of_their_last_verification(catalog, store):
    """
    Models that were never verified or that have changed come first, then the one verified longest
    ago. A model known to be damaged is sorted by its time, like the others.
    """
    for name in ("old", "new", "never", "changed", "damaged"):
        await register(catalog, create_file(store, name), name)
    times = {"old": 10, "new": 20, "changed": 30, "damaged": 15}
    for name, second in times.items():
        model = await catalog.get_model(name, "local")
        await save_inspection(catalog, model, {"verified_at": moment(second)})
    changed = {"state": FileState.CHANGED}
    await save_inspection(catalog, await catalog.get_model("changed", "local"), changed)
    damaged = {**changed, "found_digest": sha256(b"x")}
    await save_inspection(catalog, await catalog.get_model("damaged", "local"), damaged)

    found = [each.model.reference for each in await verify(catalog, "quick")]

    assert found == ["changed", "never", "old", "damaged", "new"]


async def test_not_since_skips_models_verified_recently(on_sqlite, store):
    """
    Models that were read within the given time are not read again.
    """
    await register(on_sqlite, create_file(store, "read"), "read", digest=True)
    await register(on_sqlite, create_file(store, "unread"), "unread")

    found = await verify(on_sqlite, not_since=timedelta(hours=1))

    assert [each.model.reference for each in found] == ["unread"]
    assert await verify(on_sqlite, not_since=timedelta(hours=1)) == []


async def test_a_byte_budget_ends_before_the_next_file(on_sqlite, store):
    """
    The next call continues with the next model. One file is always read.
    """
    for name in "abc":
        await register(on_sqlite, create_file(store, name, name.encode() * 100), name)

    rounds = [await verify(on_sqlite, max_bytes=250, not_since=timedelta(hours=1))]
    rounds.append(await verify(on_sqlite, max_bytes=1, not_since=timedelta(hours=1)))
    rounds.append(await verify(on_sqlite, max_seconds=0))

    assert [[each.model.reference for each in found] for found in rounds] == [
        ["a", "b"],
        ["c"],
        ["a"],
    ]


async def test_a_time_budget_applies_to_every_level(on_sqlite, store):
    """
    One model is always verified.
    """
    for name in "abc":
        await register(on_sqlite, create_file(store, name), name)

    assert len(await verify(on_sqlite, "structure", max_seconds=0)) == 1
    assert len(await verify(on_sqlite, "quick", max_seconds=0)) == 1
    assert len(await verify(on_sqlite, "quick", max_bytes=0)) == 3


def move_hash_times(tmp_path):
    """Set the hash times 5 s later than the files' times, so that a later change is noticed."""
    with closing(sqlite3.connect(tmp_path / "catalog.db")) as raw, raw:
        raw.execute("UPDATE model_files SET hashed_at = hashed_at + 5 WHERE hashed_at > 0")


async def test_the_next_call_continues_within_a_model(tmp_path, store):
    """
    Several calls, in several processes, read the files of one model. A file that has not changed
    since it was read is not read again; a changed one is.
    """
    for name in "abcd":
        create_file(store, name, name.encode() * 100)
    rounds = []
    for number in range(3):
        async with open_catalog(tmp_path / "catalog.db") as catalog:
            if number == 0:
                await register(catalog, store)
            move_hash_times(tmp_path)
            if number == 2:
                create_file(store, "a", b"A" * 100)
            rounds.append(await verify_one(catalog, max_bytes=150 if number == 0 else 199))
            hashed = [f.path for f in await catalog.list_files(*NAME) if f.hashed_at]
            assert hashed == list("abcd")[: number + 1]
    move_hash_times(tmp_path)
    async with open_catalog(tmp_path / "catalog.db") as catalog:
        last = await verify_one(catalog, max_bytes=1000)

    assert [each.verdict for each in rounds] == ["unfinished"] * 3
    assert "the next file to read is 'b'" in rounds[0].detail
    assert [each.read_bytes for each in rounds] == [100, 100, 100]
    # `d` was not read yet, and `a` has changed.
    assert (last.verdict, last.read_bytes) == ("mismatch", 200)


async def test_a_model_of_damaged_files_gets_a_verdict_with_a_small_budget(
    on_sqlite, tmp_path, store
):
    """
    Each call reads another file, so the verdict is known after as many calls as there are files.
    """
    for name in "abc":
        create_file(store, name, name.encode() * 100)
    await register(on_sqlite, store, digest=True)
    for name in "abc":
        create_file(store, name, b"x" * 100)
    found = []
    for _ in range(3):
        found.append(await verify_one(on_sqlite, max_bytes=1))
        move_hash_times(tmp_path)

    assert [each.verdict for each in found] == ["unfinished", "unfinished", "mismatch"]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="/proc/self/mem does not exist")
async def test_an_unreadable_file_does_not_use_up_the_budget(on_sqlite, store):
    """
    It is reported, its bytes are not counted as read, and the next file is read.
    """
    bad = create_file(store, "bad")
    await register(on_sqlite, bad, "bad", digest=True)
    await register(on_sqlite, create_file(store, "good"), "good", digest=True)
    bad.unlink()
    # Not even root can read its first byte, because nothing is mapped at address 0.
    bad.symlink_to("/proc/self/mem")

    # The two files are on two disks, which are read in parallel. The budget is enough for both.
    found = await verify(on_sqlite, max_bytes=bad.lstat().st_size + 10**6)
    first, second = sorted(found, key=lambda each: each.model.reference)

    assert (first.verdict, first.read_bytes) == ("unreadable", 0)
    assert "'bad' cannot be read: EIO" in first.detail
    assert (second.model.reference, second.verdict) == ("good", "ok")


async def test_progress_never_falls_and_ends_at_the_total(on_sqlite, store):
    """
    At the end the bytes done equal the total, although a file was missing.
    """
    sizes = {"a": 3 * MIB, "b": 2 * MIB, "gone": MIB}
    for name, size in sizes.items():
        await register(on_sqlite, create_file(store, name, b"x" * size), name)
    (store / "gone").unlink()
    reports = []

    await verify(on_sqlite, on_progress=reports.append)
    await asyncio.sleep(0)

    done_bytes = [each.done_bytes for each in reports]
    assert done_bytes == sorted(done_bytes)
    assert (reports[-1].done_bytes, reports[-1].total_bytes) == (5 * MIB, 5 * MIB)


async def test_each_result_is_yielded_when_it_is_ready(on_sqlite, store):
    """
    The first model is yielded before the second one is read.
    """
    await register(on_sqlite, create_file(store, "a"), "a")
    with (store / "b").open("wb") as file:
        file.truncate(1024 * MIB)
    await register(on_sqlite, store / "b", "b")

    async with aclosing(verify_models(on_sqlite)) as results:
        first = await anext(results)
        second = await on_sqlite.get_model("b", "local")

    assert first.model.reference == "a"
    assert second.verified_at is None


def count_readers(path):
    """
    Count the descriptors of this process that have read more than 1 MiB of a file, which is beyond
    a header.
    """
    target = path.stat()
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found = descriptor.stat()
            position = int(Path("/proc/self/fdinfo", descriptor.name).read_text().split()[1])
        except OSError:
            continue
        is_it = (found.st_dev, found.st_ino) == (target.st_dev, target.st_ino)
        count += is_it and position >= MIB
    return count


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="/proc is not available")
async def test_closing_the_iterator_stops_the_reading(on_sqlite, store):
    """
    The hashing thread stops after the current MiB, and no task is left.
    """
    await register(on_sqlite, create_file(store, "a"), "a")
    path = store / "b"
    with path.open("wb") as file:
        file.truncate(64 * 1024 * MIB)
    await register(on_sqlite, path, "b")
    before = asyncio.all_tasks()
    began = asyncio.Event()

    results = verify_models(
        on_sqlite, on_progress=lambda progress: progress.path == str(path) and began.set()
    )
    await anext(results)
    await asyncio.wait_for(began.wait(), 10)
    assert count_readers(path) == 1
    await results.aclose()

    assert asyncio.all_tasks() == before
    deadline = time.monotonic() + 5
    while count_readers(path):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert (await on_sqlite.get_model("b", "local")).verified_at is None


@pytest.fixture
def two_disks(tmp_path):
    """Two file systems in memory."""
    disks = [tmp_path / "one", tmp_path / "two"]
    for disk in disks:
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "model-catalog-test", disk]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting is not permitted: run as root, or in `unshare -Urm`")
    yield disks
    for disk in disks:
        subprocess.run(["umount", "-l", disk], capture_output=True, check=False)


@pytest.mark.slow
async def test_disks_are_read_in_parallel_and_files_of_a_disk_one_by_one(on_sqlite, two_disks):
    """
    This also holds for two verifications at the same time.
    """
    for disk in two_disks:
        for name in "abc":
            with (disk / name).open("wb") as file:
                file.truncate(48 * MIB)
            await register(on_sqlite, disk / name, f"{disk.name}/{name}")
    max_readers = {disk.name: 0 for disk in two_disks}
    disks_in_parallel = 0
    finished = threading.Event()

    def readers():
        return {disk.name: [count_readers(disk / name) for name in "abc"] for disk in two_disks}

    def observe():
        nonlocal disks_in_parallel
        while not finished.is_set():
            # A snapshot takes a while. A file in both snapshots was being read between them.
            first, second = readers(), readers()
            open_now = {name: sum(map(min, first[name], second[name])) for name in first}
            disks_in_parallel = max(disks_in_parallel, sum(map(bool, open_now.values())))
            for name, count in open_now.items():
                max_readers[name] = max(max_readers[name], count)

    reports = []
    observer = threading.Thread(target=observe)
    observer.start()
    try:
        await verify(on_sqlite)
        in_one_pass = disks_in_parallel
        await asyncio.gather(
            verify(on_sqlite, on_progress=reports.append), verify(on_sqlite, "full")
        )
    finally:
        finished.set()
        observer.join()

    assert max_readers == {"one": 1, "two": 1}
    assert in_one_pass == 2
    done_bytes = [each.done_bytes for each in reports]
    assert done_bytes == sorted(done_bytes)
    assert reports[-1].done_bytes == reports[-1].total_bytes == 6 * 48 * MIB


async def test_an_unmounted_disk_is_reported_and_not_recorded(on_sqlite, two_disks):
    """
    Its models keep their state and their digest.
    """
    await register(on_sqlite, create_file(two_disks[0]), digest=True)
    subprocess.run(["umount", two_disks[0]], check=True)

    found = await verify_one(on_sqlite)

    assert found.verdict == "offline"
    assert (await on_sqlite.get_model(*NAME)).state is FileState.PRESENT


@pytest.mark.slow
@pytest.mark.parametrize("what", ["removed", "registered again"])
async def test_a_model_changed_in_the_catalog_while_it_is_read_is_skipped(catalog, store, what):
    """
    The digest of the old file is not recorded for the new one, and no result is yielded.
    """
    path = store / "m.bin"
    with path.open("wb") as file:
        file.truncate(128 * MIB)
    await register(catalog, path)
    began = asyncio.Event()

    verifying = asyncio.create_task(verify(catalog, on_progress=lambda _: began.set()))
    await asyncio.wait_for(began.wait(), 10)
    if what == "removed":
        await catalog.remove_model(*NAME)
    else:
        await register(catalog, create_file(store, "other"))
    found = await verifying

    assert found == []
    if what == "removed":
        assert await catalog.list_models() == []
    else:
        model = await catalog.get_model(*NAME)
        assert (model.local_path, model.digest) == (str(store / "other"), None)
        assert [file.digest for file in await catalog.list_files(*NAME)] == [None]


async def test_a_first_digest_recorded_by_another_process_stays(catalog, store):
    """
    Two processes read a file for the first time, with different content. The second digest is
    recorded as a mismatch.
    """
    path = create_file(store)
    model = await register(catalog, path)
    (file,) = await catalog.list_files(*NAME)
    first, second = (sha256(content) for content in (b"first", b"second"))
    await save_file_digest(
        catalog, model, FileRecord("m.bin", 20, digest=first, fingerprint="1:1:1:1")
    )
    await save_file_digest(
        catalog,
        model,
        FileRecord("m.bin", 20, digest=second, fingerprint="2:2:2:2", hashed_at=moment(9)),
    )

    (after,) = await catalog.list_files(*NAME)
    assert file.digest is None
    assert (after.digest, after.found_digest) == (first, second)
    assert (after.fingerprint, after.hashed_at) == ("1:1:1:1", moment(9))


@pytest.mark.slow
async def test_hashing_a_large_file_does_not_block_the_event_loop(on_sqlite, store):
    """
    Hashing 1 GiB blocks the event loop for less than 50 ms at a time. CPU time of the thread is
    measured, because other processes may use the machine.
    """
    path = store / "m.bin"
    with path.open("wb") as file:
        file.truncate(1024 * MIB)
    await register(on_sqlite, path)
    blocked_s: list[float] = []

    async def tick():
        last = time.thread_time()
        while True:
            await asyncio.sleep(0.001)
            now = time.thread_time()
            blocked_s.append(now - last)
            last = now

    ticking = asyncio.create_task(tick())
    found = await verify_one(on_sqlite, on_progress=lambda _: None)
    ticking.cancel()

    assert (found.verdict, found.read_bytes) == ("ok", 1024 * MIB)
    assert max(blocked_s) < 0.05


async def test_an_unknown_level_or_an_invalid_budget_is_refused(on_sqlite):
    """
    The error names the argument; for a level it also lists the levels.
    """
    with pytest.raises(InvalidModelError, match="'deep' is not one of quick, structure, full"):
        await verify(on_sqlite, "deep")
    with pytest.raises(InvalidModelError, match="max_bytes"):
        await verify(on_sqlite, max_bytes=-1)
    with pytest.raises(InvalidModelError, match="max_seconds"):
        await verify(on_sqlite, max_seconds=float("nan"))

"""The bytes of models against their digests: real files, written to while they are read."""

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


def a_file(folder, name="m.bin", content=b"the bytes of a model"):
    path = folder / name
    path.write_bytes(content)
    return path


async def recorded(catalog, path, reference="m", **options):
    return (
        await register_path(catalog, path, provider="local", reference=reference, **options)
    ).model


async def verified(catalog, level="full", **options):
    return [each async for each in verify_models(catalog, level, **options)]


async def the_one(catalog, level="full", **options):
    (found,) = await verified(catalog, level, **options)
    return found


def write_over(path, content):
    """Other bytes of the same size, and the time of the last writing set back."""
    before = path.stat()
    assert len(content) == before.st_size
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


async def test_the_first_verification_records_the_digests(catalog, store):
    """
    What was registered without a digest has the one that was read, and so has each of its files.
    """
    path = a_file(store)
    await recorded(catalog, path)

    found = await the_one(catalog)

    assert (found.verdict, found.detail) == ("ok", None)
    assert found.read_bytes == path.stat().st_size
    model = await catalog.get_model(*NAME)
    assert model.digest == found.model.digest == sha256(path.read_bytes())
    assert (model.state, model.found_digest) == ("present", None)
    (file,) = await catalog.list_files(*NAME)
    assert (file.digest, file.hashed_at) == (model.digest, model.verified_at)
    assert datetime.now(UTC) - model.verified_at < timedelta(minutes=1)


@pytest.mark.parametrize("level", ["quick", "structure"])
async def test_a_level_below_full_reads_no_bytes_and_records_no_digest(on_sqlite, store, level):
    """
    Whether the files are the recorded ones is told by their status, and by their headers.
    """
    path = a_file(store, "m.gguf", make_gguf("llama", 1))
    await recorded(on_sqlite, path)
    whole = await the_one(on_sqlite, level)
    os.utime(path, ns=(0, 0))
    touched = await the_one(on_sqlite, level)

    assert (whole.verdict, whole.read_bytes) == ("ok", 0)
    assert touched.verdict == "changed"
    model = await on_sqlite.get_model(*NAME)
    assert (model.digest, model.verified_at) == (None, None)


async def test_a_download_that_was_cut_short_is_found_without_hashing(on_sqlite, store):
    """
    A file that is shorter than its header says is incomplete at the level that reads headers, and
    the reason is recorded; the quick level cannot know.
    """
    path = a_file(store, "m.gguf", make_gguf("llama", 1)[:-8])
    await recorded(on_sqlite, path)

    quick = await the_one(on_sqlite, "quick")
    structure = await the_one(on_sqlite, "structure")
    full = await the_one(on_sqlite)

    assert quick.verdict == "ok"
    assert (structure.verdict, structure.read_bytes) == ("incomplete", 0)
    assert "are needed" in structure.detail
    assert full.verdict == "incomplete"
    assert await on_sqlite.count_models(incomplete=True) == 1

    path.write_bytes(make_gguf("llama", 1))
    assert (await the_one(on_sqlite, "structure")).verdict == "changed"
    assert await on_sqlite.count_models(incomplete=True) == 0


async def test_a_set_that_lacks_a_shard_is_incomplete(on_sqlite, store):
    """
    What is there is read and recorded, and the missing shard is named.
    """
    first = a_file(store, "m-00001-of-00002.gguf", make_gguf("llama", 1))
    await recorded(on_sqlite, first)

    found = await the_one(on_sqlite)

    assert found.verdict == "incomplete"
    assert "m-00002-of-00002.gguf" in found.detail
    assert found.model.digest == sha256(first.read_bytes())


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, 5),
        lambda path: path.write_bytes(path.read_bytes() + b"more"),
        lambda path: write_over(path, b"THE BYTES OF A MODEL"),
    ],
    ids=["cut off", "longer", "same size and time"],
)
async def test_other_bytes_are_recorded_beside_the_expected_ones(catalog, store, damage):
    """
    A mismatch never takes the place of the expected digest; the right bytes end it, and the user
    may take the others instead.
    """
    path = a_file(store)
    right = path.read_bytes()
    await recorded(catalog, path, digest=True)

    damage(path)
    first = await the_one(catalog)
    again = await the_one(catalog)

    assert first.verdict == again.verdict == "mismatch"
    assert "'m.bin' does not match" in first.detail
    model = await catalog.get_model(*NAME)
    assert (model.digest, model.found_digest) == (sha256(right), sha256(path.read_bytes()))
    (file,) = await catalog.list_files(*NAME)
    assert (file.digest, file.found_digest) == (model.digest, model.found_digest)
    assert [each.reference for each in await catalog.list_models(damaged=True)] == ["m"]
    # Of the wrong bytes no fingerprint is kept, by which they would pass for the right ones.
    assert [each.state for each in (await check_models(catalog)).findings] == ["changed"]

    path.write_bytes(right)
    assert (await the_one(catalog)).verdict == "ok"
    model = await catalog.get_model(*NAME)
    assert (model.found_digest, model.state) == (None, "present")
    assert await catalog.count_models(damaged=True) == 0

    damage(path)
    await the_one(catalog)
    accepted = await accept_model(catalog, *NAME)
    assert (accepted.model.digest, accepted.model.found_digest) == (sha256(path.read_bytes()), None)
    assert accepted.model.size_bytes == path.stat().st_size
    assert (await the_one(catalog)).verdict == "ok"


async def test_rot_that_no_status_tells_of_is_found(catalog, database, store):
    """
    Bytes that changed while size, times and inode did not are found by reading them alone.
    """
    path = a_file(store)
    right = path.read_bytes()
    await recorded(catalog, path, digest=True)
    write_over(path, b"THE BYTES OF A MODEL")
    seen = path.stat()
    fingerprint = f"{seen.st_size}:{seen.st_mtime_ns}:{seen.st_ctime_ns}:{seen.st_ino}"
    database.run("UPDATE model_files SET fingerprint = ?", fingerprint)

    checked = await check_models(catalog)
    quick = await the_one(catalog, "quick")
    full = await the_one(catalog)

    assert checked.is_as_recorded
    assert quick.verdict == "ok"
    assert full.verdict == "mismatch"
    assert full.model.digest == sha256(right)
    assert not (await check_models(catalog)).is_as_recorded
    assert [each.model.reference for each in await verified(catalog, damaged=True)] == ["m"]


async def test_a_file_of_another_size_is_never_taken_for_the_expected_one(catalog, store):
    """
    Where no digest is known the recorded size is what there is to hold it against.
    """
    plain, listed = a_file(store, "plain"), a_file(store, "listed")
    await catalog.register_model(a_model("plain", local_path=str(plain), size_bytes=1000))
    await recorded(catalog, listed, "listed")
    os.truncate(listed, 5)

    found = {each.model.reference: each for each in await verified(catalog)}

    assert {each.verdict for each in found.values()} == {"changed"}
    assert "has 20 bytes, but 1000 bytes are recorded" in found["plain"].detail
    assert "has 5 bytes, but 20 bytes are recorded" in found["listed"].detail
    for model in await catalog.list_models():
        assert (model.digest, model.verified_at) == (None, None)


async def test_an_unknown_size_is_known_once_the_bytes_were_read(catalog, store):
    """
    A model that was registered by its path alone has a size, a digest and its files.
    """
    path = a_file(store)
    await catalog.register_model(a_model("m", provider="local", local_path=str(path)))

    found = await the_one(catalog)

    assert (found.verdict, found.model.size_bytes) == ("ok", 20)
    assert [file.path for file in await catalog.list_files(*NAME)] == ["m.bin"]
    assert (await check_models(catalog)).is_as_recorded


PRINTED = "".join(f"{sha256(name.encode())[7:]}  {name}\n" for name in ("a.bin", "b.bin"))


@pytest.mark.parametrize("is_right", [True, False], ids=["the same", "another"])
@pytest.mark.parametrize("kind", ["file", "folder"])
async def test_a_digest_that_came_without_files_is_held_against_them(
    catalog, store, kind, is_right
):
    """
    A digest somebody gave is the expected one, of a single file as of several.
    """
    for name in ("a.bin", "b.bin"):
        a_file(store, name, name.encode())
    expected = sha256(PRINTED.encode()) if kind == "folder" else sha256(b"a.bin")
    given = expected if is_right else sha256(b"another")
    place = store if kind == "folder" else store / "a.bin"
    model = a_model("m", provider="local", local_path=str(place), digest=given)
    await catalog.register_model(model)

    found = await the_one(catalog)

    assert found.verdict == ("ok" if is_right else "mismatch")
    assert found.model.digest == given
    assert found.model.found_digest == (None if is_right else expected)
    if not is_right:
        assert (await accept_model(catalog, *NAME)).model.digest == expected
        assert (await the_one(catalog)).verdict == "ok"


async def test_a_wrong_first_reading_does_not_stand_against_the_models_digest(catalog, store):
    """
    Of a folder whose digest is known the files may be damaged when they are first read: once they
    are right the model is, whatever was recorded of each.
    """
    a_file(store, "a.bin", b"x")
    a_file(store, "b.bin", b"b.bin")
    digest = sha256(PRINTED.encode())
    model = a_model("m", provider="local", local_path=str(store), digest=digest)
    await catalog.register_model(model)
    damaged = await the_one(catalog)
    a_file(store, "a.bin", b"a.bin")

    found = await the_one(catalog)

    assert (damaged.verdict, found.verdict) == ("mismatch", "ok")
    assert [file.is_damaged for file in await catalog.list_files(*NAME)] == [False, False]
    assert (await the_one(catalog)).verdict == "ok"


async def test_a_name_that_sha256sum_escapes_is_no_way_out(catalog, store):
    """
    Of such files there is no digest together: each is held against its own, and the model is
    damaged when one of them is.
    """
    a_file(store, "back\\slash.bin", b"a")
    path = a_file(store, "b", b"b")
    await recorded(catalog, store)
    first = await the_one(catalog)
    path.write_bytes(b"x")
    damaged = await the_one(catalog)

    assert (first.verdict, first.model.digest) == ("ok", None)
    assert (damaged.verdict, damaged.model.found_digest) == ("mismatch", sha256(b"x"))
    assert await catalog.count_models(damaged=True) == 1


async def test_a_digest_that_cannot_be_compared_is_told_of(on_sqlite, store):
    """
    A digest of such files cannot have been made from them, and is not said to be theirs.
    """
    a_file(store, "back\\slash.bin", b"a")
    a_file(store, "b", b"b")
    model = a_model(local_path=str(store), digest=sha256(b"something"))
    await on_sqlite.register_model(model)

    found = await the_one(on_sqlite)

    assert found.verdict == "ok"
    assert "was not compared" in found.detail


async def test_an_empty_folder_ends_no_pass(catalog, store):
    """
    A model without a single file is incomplete, and the next one is verified all the same.
    """
    (store / "empty").mkdir()
    await recorded(catalog, store / "empty", "empty")
    await recorded(catalog, a_file(store), "m")

    found = {each.model.reference: each.verdict for each in await verified(catalog)}

    assert found == {"empty": "incomplete", "m": "ok"}


async def test_one_file_under_many_names_is_read_once(on_sqlite, store):
    """
    Hard links and links to one inode are bytes that were read already.
    """
    path = a_file(store, "a.bin", b"x" * MIB)
    os.link(path, store / "b.bin")
    (store / "c.bin").symlink_to("a.bin")
    await recorded(on_sqlite, store)
    told = []

    found = await the_one(on_sqlite, max_bytes=MIB, on_progress=told.append)

    assert (found.verdict, found.read_bytes) == ("ok", MIB)
    files = await on_sqlite.list_files(*NAME)
    assert {file.digest for file in files} == {sha256(b"x" * MIB)}
    await asyncio.sleep(0)
    assert (told[-1].done_bytes, told[-1].total_bytes) == (MIB, MIB)


async def test_a_link_is_followed_to_what_it_leads_to(on_sqlite, store, tmp_path):
    """
    A model that is recorded by a link is verified by the bytes behind it, file or folder.
    """
    path = a_file(store)
    (tmp_path / "file").symlink_to(path)
    (tmp_path / "folder").symlink_to(store)
    await recorded(on_sqlite, tmp_path / "file", "file")
    await recorded(on_sqlite, tmp_path / "folder", "folder")
    first = await verified(on_sqlite)
    write_over(path, b"THE BYTES OF A MODEL")
    second = await verified(on_sqlite)

    assert [each.verdict for each in first] == ["ok", "ok"]
    assert [each.verdict for each in second] == ["mismatch", "mismatch"]


async def test_a_relative_path_is_one(on_sqlite, store, monkeypatch):
    """
    A model that was registered by a bare name is verified where the process stands, each time.
    """
    a_file(store)
    monkeypatch.chdir(store)
    await on_sqlite.register_model(a_model(local_path="m.bin"))

    verdicts = [(await the_one(on_sqlite)).verdict for _ in range(2)]

    assert verdicts == ["ok", "ok"]


async def test_the_catalogs_own_database_is_passed_over(on_sqlite, tmp_path):
    """
    A folder is verified without the database in it.
    """
    a_file(tmp_path)
    await recorded(on_sqlite, tmp_path)

    found = await the_one(on_sqlite)

    assert found.verdict == "ok"
    assert [file.path for file in await on_sqlite.list_files(*NAME)] == ["m.bin"]


async def test_a_database_in_a_files_place_ends_no_pass(on_sqlite, tmp_path, store):
    """
    That is told of this model, and the next is verified all the same.
    """
    for name in ("a.bin", "b.bin"):
        a_file(store, name)
    await recorded(on_sqlite, store, "folder", digest=True)
    await recorded(on_sqlite, store / "a.bin", "file")
    (store / "b.bin").unlink()
    os.link(tmp_path / "catalog.db", store / "b.bin")

    found = {each.model.reference: each for each in await verified(on_sqlite)}

    assert found["folder"].verdict == "unreadable"
    assert "'b.bin' cannot be read" in found["folder"].detail
    assert found["file"].verdict == "ok"


WRITING = """
import os, sys
with open(sys.argv[1], "ab", buffering=0) as file:
    file.write(b"x")
    print("writing", flush=True)
    while True:
        file.write(b"x" * 4096)
"""


async def test_a_file_that_is_written_to_meanwhile_has_no_digest(on_sqlite, store):
    """
    What another process appends to while it is read is `changed`, and nothing is recorded of it.
    """
    path = store / "m.bin"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    model = await recorded(on_sqlite, path, digest=True)
    with subprocess.Popen(
        [sys.executable, "-c", WRITING, path], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout.readline() == "writing\n"
        try:
            found = await the_one(on_sqlite)
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


async def test_what_is_not_there_is_told_and_not_recorded(on_sqlite, store):
    """
    A file that is gone is for the check to record.
    """
    path = a_file(store)
    await recorded(on_sqlite, path, digest=True)
    path.unlink()

    found = await the_one(on_sqlite)

    assert (found.verdict, found.read_bytes) == ("missing", 0)
    assert (await on_sqlite.get_model(*NAME)).state is FileState.PRESENT


async def test_the_longest_unread_come_first(catalog, store):
    """
    What was never verified or has changed comes before all, then the oldest; what is known to be
    damaged has its turn like the others.
    """
    for name in ("old", "new", "never", "changed", "damaged"):
        await recorded(catalog, a_file(store, name), name)
    times = {"old": 10, "new": 20, "changed": 30, "damaged": 15}
    for name, second in times.items():
        model = await catalog.get_model(name, "local")
        await save_inspection(catalog, model, {"verified_at": moment(second)})
    changed = {"state": FileState.CHANGED}
    await save_inspection(catalog, await catalog.get_model("changed", "local"), changed)
    damaged = {**changed, "found_digest": sha256(b"x")}
    await save_inspection(catalog, await catalog.get_model("damaged", "local"), damaged)

    found = [each.model.reference for each in await verified(catalog, "quick")]

    assert found == ["changed", "never", "old", "damaged", "new"]


async def test_what_was_read_lately_is_left_out(on_sqlite, store):
    """
    With `not_since` the models that were read within that time are not read again.
    """
    await recorded(on_sqlite, a_file(store, "read"), "read", digest=True)
    await recorded(on_sqlite, a_file(store, "unread"), "unread")

    found = await verified(on_sqlite, not_since=timedelta(hours=1))

    assert [each.model.reference for each in found] == ["unread"]
    assert await verified(on_sqlite, not_since=timedelta(hours=1)) == []


async def test_a_budget_ends_before_the_next_file(on_sqlite, store):
    """
    So many bytes and no more are read, and the next call goes on with the next model; one file is
    read in any case.
    """
    for name in "abc":
        await recorded(on_sqlite, a_file(store, name, name.encode() * 100), name)

    rounds = [await verified(on_sqlite, max_bytes=250, not_since=timedelta(hours=1))]
    rounds.append(await verified(on_sqlite, max_bytes=1, not_since=timedelta(hours=1)))
    rounds.append(await verified(on_sqlite, max_seconds=0))

    assert [[each.model.reference for each in found] for found in rounds] == [
        ["a", "b"],
        ["c"],
        ["a"],
    ]


async def test_a_time_budget_ends_a_look_at_headers_as_well(on_sqlite, store):
    """
    One model is looked at in any case.
    """
    for name in "abc":
        await recorded(on_sqlite, a_file(store, name), name)

    assert len(await verified(on_sqlite, "structure", max_seconds=0)) == 1
    assert len(await verified(on_sqlite, "quick", max_seconds=0)) == 1
    assert len(await verified(on_sqlite, "quick", max_bytes=0)) == 3


def read_later(tmp_path):
    """Have the files been read long after they were written: what is written meanwhile is told."""
    with closing(sqlite3.connect(tmp_path / "catalog.db")) as raw, raw:
        raw.execute("UPDATE model_files SET hashed_at = hashed_at + 5 WHERE hashed_at > 0")


async def test_the_next_call_goes_on_within_a_model(tmp_path, store):
    """
    A model of several files is read by several calls, and by several processes: what was read and
    is the same still is not read again, what was written to meanwhile is.
    """
    for name in "abcd":
        a_file(store, name, name.encode() * 100)
    rounds = []
    for number in range(3):
        async with open_catalog(tmp_path / "catalog.db") as catalog:
            if number == 0:
                await recorded(catalog, store)
            read_later(tmp_path)
            if number == 2:
                a_file(store, "a", b"A" * 100)
            rounds.append(await the_one(catalog, max_bytes=150 if number == 0 else 199))
            hashed = [f.path for f in await catalog.list_files(*NAME) if f.hashed_at]
            assert hashed == list("abcd")[: number + 1]
    read_later(tmp_path)
    async with open_catalog(tmp_path / "catalog.db") as catalog:
        last = await the_one(catalog, max_bytes=1000)

    assert [each.verdict for each in rounds] == ["unfinished"] * 3
    assert "the next file to read is 'b'" in rounds[0].detail
    assert [each.read_bytes for each in rounds] == [100, 100, 100]
    # `d`, which nobody had read, and `a`, which is another.
    assert (last.verdict, last.read_bytes) == ("mismatch", 200)


async def test_a_model_of_damaged_files_comes_to_a_verdict(on_sqlite, tmp_path, store):
    """
    However small the budget and however many of the files are damaged: no file is read for ever
    while another waits.
    """
    for name in "abc":
        a_file(store, name, name.encode() * 100)
    await recorded(on_sqlite, store, digest=True)
    for name in "abc":
        a_file(store, name, b"x" * 100)
    found = []
    for _ in range(3):
        found.append(await the_one(on_sqlite, max_bytes=1))
        read_later(tmp_path)

    assert [each.verdict for each in found] == ["unfinished", "unfinished", "mismatch"]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file that refuses a read")
async def test_a_file_that_cannot_be_read_takes_nobodys_turn(on_sqlite, store):
    """
    It is told of, its bytes are not counted as read, and the next file is read all the same.
    """
    bad = a_file(store, "bad")
    await recorded(on_sqlite, bad, "bad", digest=True)
    await recorded(on_sqlite, a_file(store, "good"), "good", digest=True)
    bad.unlink()
    # The one file of which even root is refused the first byte: nothing lies at address 0.
    bad.symlink_to("/proc/self/mem")

    # They lie on two disks, which are read at the same time: there is enough for both.
    found = await verified(on_sqlite, max_bytes=bad.lstat().st_size + 10**6)
    first, second = sorted(found, key=lambda each: each.model.reference)

    assert (first.verdict, first.read_bytes) == ("unreadable", 0)
    assert "'bad' cannot be read: EIO" in first.detail
    assert (second.model.reference, second.verdict) == ("good", "ok")


async def test_progress_rises_and_ends_at_the_total(on_sqlite, store):
    """
    Bytes done and bytes to do: they never fall, and are one number at the end, whatever was not
    there or could not be read.
    """
    sizes = {"a": 3 * MIB, "b": 2 * MIB, "gone": MIB}
    for name, size in sizes.items():
        await recorded(on_sqlite, a_file(store, name, b"x" * size), name)
    (store / "gone").unlink()
    told = []

    await verified(on_sqlite, on_progress=told.append)
    await asyncio.sleep(0)

    done = [each.done_bytes for each in told]
    assert done == sorted(done)
    assert (told[-1].done_bytes, told[-1].total_bytes) == (5 * MIB, 5 * MIB)


async def test_results_come_as_they_are_done(on_sqlite, store):
    """
    The first model is told of before the second is read.
    """
    await recorded(on_sqlite, a_file(store, "a"), "a")
    with (store / "b").open("wb") as file:
        file.truncate(1024 * MIB)
    await recorded(on_sqlite, store / "b", "b")

    async with aclosing(verify_models(on_sqlite)) as results:
        first = await anext(results)
        second = await on_sqlite.get_model("b", "local")

    assert first.model.reference == "a"
    assert second.verified_at is None


def reading_threads(path):
    """How many descriptors of this process are open on a file, and are beyond a header."""
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


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc to look at")
async def test_closing_it_early_stops_the_reading(on_sqlite, store):
    """
    The thread that hashes stops at its next MiB, and no task is left behind.
    """
    await recorded(on_sqlite, a_file(store, "a"), "a")
    path = store / "b"
    with path.open("wb") as file:
        file.truncate(64 * 1024 * MIB)
    await recorded(on_sqlite, path, "b")
    before = asyncio.all_tasks()
    began = asyncio.Event()

    results = verify_models(
        on_sqlite, on_progress=lambda told: told.path == str(path) and began.set()
    )
    await anext(results)
    await asyncio.wait_for(began.wait(), 10)
    assert reading_threads(path) == 1
    await results.aclose()

    assert asyncio.all_tasks() == before
    deadline = time.monotonic() + 5
    while reading_threads(path):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert (await on_sqlite.get_model("b", "local")).verified_at is None


@pytest.fixture
def two_disks(tmp_path):
    """Two file systems in memory."""
    places = [tmp_path / "one", tmp_path / "two"]
    for place in places:
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "model-catalog-test", place]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("this process may not mount: run as root, or in `unshare -Urm`")
    yield places
    for place in places:
        subprocess.run(["umount", "-l", place], capture_output=True, check=False)


async def test_one_file_a_disk_is_read_at_a_time(on_sqlite, two_disks):
    """
    Two disks are read at once, and of one disk one file after the other, by however many passes.
    """
    for place in two_disks:
        for name in "abc":
            with (place / name).open("wb") as file:
                file.truncate(48 * MIB)
            await recorded(on_sqlite, place / name, f"{place.name}/{name}")
    most = {place.name: 0 for place in two_disks}
    together = 0
    over = threading.Event()

    def readers():
        return {
            place.name: [reading_threads(place / name) for name in "abc"] for place in two_disks
        }

    def look_on():
        nonlocal together
        while not over.is_set():
            # Looking takes a while. What is read in both looks was read between them.
            first, second = readers(), readers()
            open_now = {name: sum(map(min, first[name], second[name])) for name in first}
            together = max(together, sum(map(bool, open_now.values())))
            for name, count in open_now.items():
                most[name] = max(most[name], count)

    told = []
    onlooker = threading.Thread(target=look_on)
    onlooker.start()
    try:
        await verified(on_sqlite)
        by_one_pass = together
        await asyncio.gather(
            verified(on_sqlite, on_progress=told.append), verified(on_sqlite, "full")
        )
    finally:
        over.set()
        onlooker.join()

    assert most == {"one": 1, "two": 1}
    assert by_one_pass == 2
    done = [each.done_bytes for each in told]
    assert done == sorted(done)
    assert told[-1].done_bytes == told[-1].total_bytes == 6 * 48 * MIB


async def test_a_disk_that_is_away_is_told_and_not_recorded(on_sqlite, two_disks):
    """
    What was on it keeps its state and its digest.
    """
    await recorded(on_sqlite, a_file(two_disks[0]), digest=True)
    subprocess.run(["umount", two_disks[0]], check=True)

    found = await the_one(on_sqlite)

    assert found.verdict == "offline"
    assert (await on_sqlite.get_model(*NAME)).state is FileState.PRESENT


@pytest.mark.parametrize("what", ["removed", "recorded anew"])
async def test_a_model_that_changes_while_it_is_read_is_left_alone(catalog, store, what):
    """
    What was read is not recorded of another, and nothing is told of what is gone.
    """
    path = store / "m.bin"
    with path.open("wb") as file:
        file.truncate(128 * MIB)
    await recorded(catalog, path)
    began = asyncio.Event()

    verifying = asyncio.create_task(verified(catalog, on_progress=lambda _: began.set()))
    await asyncio.wait_for(began.wait(), 10)
    if what == "removed":
        await catalog.remove_model(*NAME)
    else:
        await recorded(catalog, a_file(store, "other"))
    found = await verifying

    assert found == []
    if what == "removed":
        assert await catalog.list_models() == []
    else:
        model = await catalog.get_model(*NAME)
        assert (model.local_path, model.digest) == (str(store / "other"), None)
        assert [file.digest for file in await catalog.list_files(*NAME)] == [None]


async def test_a_digest_that_another_recorded_meanwhile_is_not_passed_by(catalog, store):
    """
    Of two that read a file for the first time, and other bytes, the second has found a mismatch:
    its reading does not vouch for the first one's digest.
    """
    path = a_file(store)
    model = await recorded(catalog, path)
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
async def test_the_loop_is_free_while_a_large_file_is_hashed(on_sqlite, store):
    """
    Hashing 1 GiB holds the event loop for less than 50 ms at a time: counted in the time that its
    thread computes, for a machine may be busy with others.
    """
    path = store / "m.bin"
    with path.open("wb") as file:
        file.truncate(1024 * MIB)
    await recorded(on_sqlite, path)
    held: list[float] = []

    async def tick():
        last = time.thread_time()
        while True:
            await asyncio.sleep(0.001)
            now = time.thread_time()
            held.append(now - last)
            last = now

    ticking = asyncio.create_task(tick())
    found = await the_one(on_sqlite, on_progress=lambda _: None)
    ticking.cancel()

    assert (found.verdict, found.read_bytes) == ("ok", 1024 * MIB)
    assert max(held) < 0.05


async def test_a_level_that_there_is_not_is_refused(on_sqlite):
    """
    So is a budget that is none.
    """
    with pytest.raises(InvalidModelError, match="'deep' is not one of quick, structure, full"):
        await verified(on_sqlite, "deep")
    with pytest.raises(InvalidModelError, match="max_bytes"):
        await verified(on_sqlite, max_bytes=-1)
    with pytest.raises(InvalidModelError, match="max_seconds"):
        await verified(on_sqlite, max_seconds=float("nan"))

"""Check the status of files against the catalog: real files, real disks that are unmounted."""

import asyncio
import ctypes
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest
from conftest import a_model, moment

from model_catalog import (
    CatalogError,
    FileRecord,
    FileState,
    TooManyMissingError,
    open_catalog,
    upgrade,
)
from model_catalog.cli.commands.demo_files import make_gguf
from model_catalog.upkeep import check_models, register_path
from model_catalog.upkeep.checks import model_check
from model_catalog.upkeep.checks.file_status import MountCache, check_status
from model_catalog.upkeep.queries.check_queries import (
    CheckedModel,
    load_check_rows,
    save_check_results,
)
from model_catalog.upkeep.queries.verification_queries import save_inspection

# They test files more than statements, which the slow tests run on PostgreSQL too.
pytestmark = pytest.mark.slow_with("asyncpg")

NAME = ("m", "local")


async def register(catalog, path, reference="m", **options):
    return (
        await register_path(catalog, path, provider="local", reference=reference, **options)
    ).model


def create_file(folder, name="m.gguf"):
    path = folder / name
    path.write_bytes(make_gguf("llama", context_length=4096))
    return path


def create_shards(folder, count=3):
    for index in range(1, count + 1):
        create_file(folder, f"m-{index:05}-of-{count:05}.gguf")
    return folder / f"m-00001-of-{count:05}.gguf"


async def state_of(catalog, *name):
    return (await catalog.get_model(*(name or NAME))).state


async def test_unchanged_models_are_present(catalog, tmp_path):
    """
    An unchanged file, set of shards or folder is `present`, and no finding is reported.
    """
    await register(catalog, create_file(tmp_path), "file")
    (tmp_path / "shards").mkdir()
    await register(catalog, create_shards(tmp_path / "shards"), "shards")
    await register(catalog, tmp_path / "shards", "folder")
    await catalog.register_model(
        a_model("plain", local_path=str(tmp_path / "m.gguf"), size_bytes=None)
    )

    checked = await check_models(catalog)

    assert checked.counts == {FileState.PRESENT: 4}
    assert checked.findings == ()
    assert checked.is_as_recorded
    models = await catalog.list_models()
    assert {model.state for model in models} == {FileState.PRESENT}
    assert all(model.checked_at is not None for model in models)


def append(path):
    with path.open("ab") as file:
        file.write(b"more")


def replace(path):
    other = path.with_name("other")
    other.write_bytes(bytes(reversed(path.read_bytes())))
    other.replace(path)


def become_a_fifo(path):
    path.unlink()
    os.mkfifo(path)


def become_a_loop(path):
    path.unlink()
    path.symlink_to(path.name)


def become_a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("change", "state", "detail"),
    [
        (Path.unlink, "missing", "does not exist"),
        (lambda path: os.truncate(path, 10), "changed", "has 10 bytes, but"),
        (append, "changed", "bytes, but"),
        (replace, "changed", "was modified, replaced or touched"),
        (lambda path: os.utime(path, ns=(0, 0)), "changed", "modified, replaced or touched"),
        (become_a_fifo, "changed", "is a FIFO"),
        (become_a_loop, "unreadable", "ELOOP"),
        (become_a_folder, "changed", "is a directory"),
    ],
    ids=[
        "deleted",
        "truncated",
        "appended to",
        "replaced, same size",
        "touched",
        "FIFO",
        "link to itself",
        "folder",
    ],
)
@pytest.mark.parametrize("kind", ["file", "shard", "folder"])
async def test_a_changed_file_is_reported_until_it_is_restored(
    catalog, tmp_path, kind, change, state, detail
):
    """
    The status of a file shows what happened to it. Once the file is restored, the model is
    `present`.
    """
    first = create_file(tmp_path) if kind == "file" else create_shards(tmp_path)
    await register(catalog, tmp_path if kind == "folder" else first)
    path = first if kind == "file" else tmp_path / "m-00003-of-00003.gguf"
    safe = tmp_path.with_name(f"{tmp_path.name} safe")
    os.link(path, safe)
    await register(catalog, tmp_path if kind == "folder" else first)

    change(path)
    checked = await check_models(catalog)

    if kind == "file" and change is become_a_folder:
        # A folder can be a model too: then the file in it is missing.
        state, detail = "missing", "does not exist"
    (finding,) = checked.findings
    assert (finding.state, finding.before) == (state, FileState.PRESENT)
    assert detail in finding.detail
    assert not checked.is_as_recorded
    model = await catalog.get_model(*NAME)
    assert (model.state, model.state_detail) == (state, finding.detail)
    assert (model.missing_since is not None) is (state == "missing")

    if path.is_dir():
        path.rmdir()
    elif os.path.lexists(path):
        path.unlink()
    safe.rename(path)
    await register(catalog, tmp_path if kind == "folder" else first)
    assert await state_of(catalog) is FileState.PRESENT


async def test_a_model_that_exists_again_becomes_present(catalog, tmp_path):
    """
    A file that was away and returns unchanged needs no user action. Until then, `missing_since` is
    the time of the first check.
    """
    path = create_file(tmp_path)
    await catalog.register_model(
        a_model("m", provider="local", local_path=str(path), size_bytes=path.stat().st_size)
    )
    path.rename(tmp_path / "away")
    await check_models(catalog)
    first = await catalog.get_model(*NAME)
    await check_models(catalog)
    second = await catalog.get_model(*NAME)

    (tmp_path / "away").rename(path)
    checked = await check_models(catalog)

    assert first.missing_since == second.missing_since == first.checked_at
    (finding,) = checked.findings
    assert (finding.before, finding.state) == (FileState.MISSING, FileState.PRESENT)
    assert checked.is_as_recorded
    third = await catalog.get_model(*NAME)
    assert (third.state, third.state_detail, third.missing_since) == ("present", None, None)


async def test_missing_since_keeps_the_time_of_the_first_check(catalog, tmp_path):
    """
    Later checks keep the time, even if more files are missing by then.
    """
    paths = [tmp_path / f"m-{n:05}-of-00002.gguf" for n in (1, 2)]
    create_shards(tmp_path, 2)
    await register(catalog, tmp_path)
    for path in paths:
        path.unlink()
        await check_models(catalog)
        model = await catalog.get_model(*NAME)
        if path is paths[0]:
            await save_inspection(catalog, model, {"missing_since": moment(1)})

    assert "and 1 more" in model.state_detail
    assert model.missing_since == moment(1)


async def test_a_check_changes_no_digest_and_deletes_no_row(catalog, tmp_path):
    """
    The model, its files and their expected digests stay if a file was changed or deleted.
    """
    model = await register(catalog, create_file(tmp_path), digest=True)
    files = await catalog.list_files(*NAME)
    (tmp_path / "m.gguf").write_bytes(b"other")

    await check_models(catalog)
    (tmp_path / "m.gguf").unlink()
    await check_models(catalog)

    after = await catalog.get_model(*NAME)
    assert (after.digest, after.verified_at) == (model.digest, model.verified_at)
    assert await catalog.list_files(*NAME) == files


@pytest.mark.parametrize("path", ["x" * 300, "no/such/folder", "f/below a file"])
async def test_an_invalid_path_is_unreadable_and_an_absent_path_is_missing(catalog, tmp_path, path):
    """
    A name that is too long is `unreadable`. A path below something that is not a folder is
    `missing`.
    """
    (tmp_path / "f").write_bytes(b"f")
    await catalog.register_model(a_model("m", provider="local", local_path=str(tmp_path / path)))

    await check_models(catalog)

    model = await catalog.get_model(*NAME)
    expected = "unreadable" if path.startswith("x") else "missing"
    assert model.state == expected
    assert ("ENAMETOOLONG" in model.state_detail) is (expected == "unreadable")


async def test_a_check_with_filters_skips_other_models(catalog, tmp_path):
    """
    A model that does not match the filters stays `unchecked`.
    """
    await catalog.register_model(a_model("a", local_path="/nowhere/a"))
    await catalog.register_model(a_model("b", local_path="/nowhere/b"))

    checked = await check_models(catalog, reference="a")

    assert checked.model_count == 1
    assert await state_of(catalog, "b", "hf") is FileState.UNCHECKED


async def test_models_below_an_absent_or_empty_root_are_offline(catalog, tmp_path):
    """
    A root that cannot be listed, or that is empty, says nothing about the models below it.
    """
    roots = [tmp_path / name for name in ("gone", "empty", "there")]
    for root in roots:
        root.mkdir()
        await register(catalog, create_file(root), root.name)
    await check_models(catalog, roots=roots)
    shutil.rmtree(roots[0])
    for root in roots[1:]:
        (root / "m.gguf").unlink()
    (roots[2] / "another").touch()

    await check_models(catalog, roots=roots)

    states = {m.reference: m.state for m in await catalog.list_models()}
    assert states == {"gone": "offline", "empty": "offline", "there": "missing"}
    missing = await catalog.get_model("there", "local")
    assert (await catalog.get_model("gone", "local")).missing_since is None
    assert missing.missing_since is not None


def remount(folder):
    subprocess.run(["mount", "-t", "tmpfs", "model-catalog-test", folder], check=True)


async def test_models_on_an_unmounted_disk_are_offline(catalog, disk):
    """
    The same path is `missing` while its disk is mounted, and `offline` while it is not. When the
    disk and the file are back, the model is `present`.
    """
    path = create_file(disk)
    kept = path.read_bytes()
    await catalog.register_model(
        a_model("m", provider="local", local_path=str(path), size_bytes=len(kept))
    )
    await check_models(catalog)
    seen = await catalog.get_model(*NAME)

    subprocess.run(["umount", disk], check=True)
    offline = await check_models(catalog)
    away = await catalog.get_model(*NAME)
    remount(disk)
    path.write_bytes(kept)
    await check_models(catalog)
    back = await catalog.get_model(*NAME)
    path.unlink()
    await check_models(catalog)

    assert (seen.state, seen.mount_point) == ("present", str(disk))
    assert offline.counts == {FileState.OFFLINE: 1}
    assert (away.state, away.missing_since) == ("offline", None)
    assert str(disk) in away.state_detail
    assert back.state == "present"
    assert await state_of(catalog) is FileState.MISSING


@pytest.fixture
def dead_mount(tmp_path):
    """A mount whose file server is down: every access fails with ENOTCONN."""
    folder = tmp_path / "dead_mount"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        server = os.open("/dev/fuse", os.O_RDWR)
    except OSError:
        pytest.skip("FUSE is not available")
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0".encode()
    failed = libc.mount(b"model-catalog-test", os.fsencode(folder), b"fuse", 0, options)
    os.close(server)
    if failed:
        pytest.skip("mounting is not permitted: run as root, or in `unshare -Urm`")
    yield folder
    libc.umount2(os.fsencode(folder), 2)


@pytest.mark.parametrize("kind", ["file", "folder"])
async def test_models_on_a_disk_with_a_dead_server_are_offline(catalog, dead_mount, kind):
    """
    An error of a network file system says nothing about its files.
    """
    path = dead_mount / "m.gguf" if kind == "file" else dead_mount
    await catalog.register_model(
        a_model("m", provider="local", local_path=str(path)),
        files=[FileRecord("m.gguf", 1, fingerprint="1:1:1:1")],
    )

    checked = await check_models(catalog)

    assert checked.counts == {FileState.OFFLINE: 1}
    model = await catalog.get_model(*NAME)
    assert (model.state, model.missing_since) == (FileState.OFFLINE, None)
    assert "ENOTCONN" in model.state_detail


async def register_many(catalog, folder, count):
    for number in range(count):
        (folder / f"{number}").write_bytes(b"m")
    await catalog.register_models(
        a_model(f"{number}", provider="local", local_path=str(folder / f"{number}"), size_bytes=1)
        for number in range(count)
    )
    await check_models(catalog)


async def state_counts(catalog):
    return {
        state: count for state in FileState if (count := await catalog.count_models(state=state))
    }


async def test_many_models_that_go_missing_at_once_are_not_recorded(catalog, tmp_path):
    """
    If more than ten models and more than half of a root are missing, none is recorded as missing
    without `force`. Other changes are recorded.
    """
    await register_many(catalog, tmp_path, 22)
    for number in range(12):
        (tmp_path / f"{number}").unlink()
    (tmp_path / "20").write_bytes(b"longer")

    with pytest.raises(TooManyMissingError, match="12 of 22 models") as stopped:
        await check_models(catalog, roots=[tmp_path])
    before = await state_counts(catalog)
    await check_models(catalog, roots=[tmp_path], force=True)

    error = stopped.value
    assert (error.group, error.missing_count, error.model_count) == (str(tmp_path), 12, 22)
    assert before == {FileState.PRESENT: 21, FileState.CHANGED: 1}
    assert await state_counts(catalog) == {
        FileState.PRESENT: 9,
        FileState.CHANGED: 1,
        FileState.MISSING: 12,
    }


@pytest.mark.parametrize(("total", "deleted"), [(20, 10), (24, 12)], ids=["ten", "half"])
async def test_ten_models_or_half_of_a_root_may_go_missing(catalog, tmp_path, total, deleted):
    """
    Users may delete up to ten models, or up to half of a root, between two checks.
    """
    await register_many(catalog, tmp_path, total)
    for number in range(deleted):
        (tmp_path / f"{number}").unlink()

    await check_models(catalog, roots=[tmp_path])

    assert (await state_counts(catalog))[FileState.MISSING] == deleted


async def test_models_missing_before_do_not_count_as_newly_missing(catalog, tmp_path):
    """
    A user may delete ten models a day, until all are deleted.
    """
    await register_many(catalog, tmp_path, 30)
    for day in range(3):
        for number in range(10 * day, 10 * day + 10):
            (tmp_path / f"{number}").unlink()
        await check_models(catalog)

    assert await state_counts(catalog) == {FileState.MISSING: 30}


async def test_each_mount_point_is_judged_separately(catalog, tmp_path, disk):
    """
    Models missing on one mount point are recorded, even if too many are missing on another.
    """
    here = tmp_path / "here"
    here.mkdir()
    (here / "m").write_bytes(b"m")
    await catalog.register_model(a_model("here", local_path=str(here / "m"), size_bytes=1))
    await register_many(catalog, disk, 12)
    (here / "m").unlink()
    for path in disk.iterdir():
        path.unlink()

    with pytest.raises(TooManyMissingError) as stopped:
        await check_models(catalog)

    assert stopped.value.group == str(disk)
    assert await state_of(catalog, "here", "hf") is FileState.MISSING
    assert (await state_counts(catalog))[FileState.PRESENT] == 12


async def test_a_size_registered_during_a_check_is_not_overwritten(catalog, tmp_path):
    """
    The state of the old content is not recorded for a model that got another size during the check.
    """
    path = create_file(tmp_path)
    await register(catalog, path)
    path.unlink()
    found = check_status(
        CheckedModel.from_rows(await load_check_rows(catalog, None, 10)), MountCache()
    )
    await catalog.register_model(a_model("m", provider="local", local_path=str(path), size_bytes=9))

    await save_check_results(catalog, [found], moment(1))

    assert found.state is FileState.MISSING
    assert await state_of(catalog) is FileState.UNCHECKED


async def test_a_path_registered_during_a_check_is_not_overwritten(catalog, tmp_path):
    """
    The state of the old path is not recorded for a model that got another path during the check.
    """
    await catalog.register_model(a_model(local_path="/nowhere"))
    model = CheckedModel.from_rows(await load_check_rows(catalog, None, 10))
    await catalog.register_model(a_model(local_path=str(create_file(tmp_path))))

    found = check_status(model, MountCache())
    await save_check_results(catalog, [found], moment(1))
    registered = await catalog.get_model("TinyLlama-1.1B-Chat-v1.0", "hf")

    assert found.state is FileState.MISSING
    assert registered.state is FileState.UNCHECKED
    assert (await check_models(catalog)).counts == {FileState.PRESENT: 1}


CHECK_AS_NOBODY = """
import asyncio, json, os, sys
from model_catalog import open_catalog
from model_catalog.upkeep import check_models, register_path, verify_models

async def main(database, *paths):
    async with open_catalog(database) as catalog:
        for number, path in enumerate(paths):
            await register_path(catalog, path, provider="local", reference=str(number))
        for file in catalog.database_files:
            if file.exists():
                file.chmod(0o666)
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        checked = await check_models(catalog)
        found = {f.ref.reference: [f.state, f.detail] for f in checked.findings}
        async for each in verify_models(catalog):
            found[f"verified {each.model.reference}"] = [each.verdict, each.detail]
        print(json.dumps(found))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def open_folder():
    """A folder that every user may list; pytest's own folders are private."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can switch to the user nobody")
def test_a_file_without_permission_is_unreadable(open_folder):
    """
    A model in a folder without permission is `unreadable`, not `missing`. A file that may not be
    opened is still `present` for a check.
    """
    locked = open_folder / "locked"
    locked.mkdir(mode=0o700)
    create_file(locked)
    closed = create_file(open_folder, "closed.gguf")
    closed.chmod(0o600)

    process = subprocess.run(
        [
            sys.executable,
            "-c",
            CHECK_AS_NOBODY,
            open_folder / "catalog.db",
            locked / "m.gguf",
            closed,
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert sorted(found) == ["0", "verified 0", "verified 1"]
    for seen in found.values():
        assert seen[0] == "unreadable"
        assert "EACCES" in seen[1]


UPKEEP_IN_A_TRANSACTION = """
import asyncio, os, sys
from model_catalog import open_catalog
from model_catalog.mapping.tables import Model
from model_catalog.upkeep import check_models, find_moved, register_path, verify_models

async def main(path):
    folder = os.path.dirname(path)
    async with open_catalog(path) as catalog:
        await register_path(catalog, folder, provider="local", reference="all", digest=True)
        # A missing model that has the size of the database.
        await catalog.register_model(Model(
            reference="lost", provider="local", local_path=folder + "/lost/catalog.db",
            size_bytes=os.stat(path).st_size, digest="0" * 64))
        await check_models(catalog)
        async with catalog.transaction() as writing:
            await writing.record_use("all", "local")
            await asyncio.gather(scan(catalog, folder))
            print("scanned", flush=True)
            sys.stdin.readline()

async def scan(catalog, folder):
    assert await find_moved(catalog, [folder]) == []
    # In a task of its own, because its writes wait for the open transaction.
    async def verify():
        return [each async for each in verify_models(catalog)]
    verifying = asyncio.create_task(verify())
    await asyncio.wait([verifying], timeout=1)
    verifying.cancel()
    await asyncio.gather(verifying, return_exceptions=True)

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.slow
def test_upkeep_of_the_databases_folder_keeps_its_write_lock(tmp_path):
    """
    Hashing the files beside the database, and searching for a model of its size, do not open the
    database. So this process keeps SQLite's write lock.
    """
    path = tmp_path / "catalog.db"
    asyncio.run(upgrade(path))
    create_file(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", UPKEEP_IN_A_TRANSACTION, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "scanned\n"
        with (
            closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            other.execute("BEGIN IMMEDIATE")
        holder.communicate("\n")
    assert holder.returncode == 0


@pytest.mark.slow
async def test_a_check_does_not_block_the_event_loop(tmp_path):
    """
    A check of 3000 files blocks the event loop for less than 50 ms at a time. CPU time of the
    thread is measured, because other processes may use the machine.
    """
    async with open_catalog(tmp_path / "catalog.db") as catalog:
        await register_many(catalog, tmp_path, 3000)
        blocked_s: list[float] = []

        async def tick():
            last = time.thread_time()
            while True:
                await asyncio.sleep(0)
                now = time.thread_time()
                blocked_s.append(now - last)
                last = now

        ticking = asyncio.create_task(tick())
        await check_models(catalog)
        ticking.cancel()

    assert max(blocked_s) < 0.05


async def test_a_page_of_rows_contains_all_files_of_each_model(catalog):
    """
    A model is checked once, with all its files, even if it has more files than the page size.
    """
    for number, files in enumerate((0, 3, 1, 5)):
        await catalog.register_model(
            a_model(f"{number}"), files=[FileRecord(f"{n}", 1) for n in range(files)]
        )

    for limit in (1, 2, 3, 4, 9):
        seen, last = [], None
        while rows := await load_check_rows(catalog, last, limit):
            last = rows[-1][0]
            ids = [row[0] for row in rows]
            seen += [(each, ids.count(each)) for each in dict.fromkeys(ids)]
        assert [count for _, count in seen] == [1, 3, 1, 5], limit


@pytest.mark.parametrize("batch", [10, 1000], ids=["first of five batches", "only batch"])
async def test_a_failed_write_ends_the_check_and_leaves_no_task(tmp_path, monkeypatch, batch):
    """
    The error of the database is raised, whether the first write or the last one fails.
    """
    monkeypatch.setattr(model_check, "BATCH_SIZE", batch)
    async with open_catalog(tmp_path / "catalog.db") as catalog:
        await register_many(catalog, tmp_path, 45)
        with closing(sqlite3.connect(tmp_path / "catalog.db")) as raw:
            raw.execute(
                "CREATE TRIGGER refuse BEFORE UPDATE ON models"
                " BEGIN SELECT RAISE(ABORT, 'the disk is broken'); END"
            )
        tasks = asyncio.all_tasks()

        with pytest.raises(CatalogError, match="the disk is broken"):
            await check_models(catalog)

        assert asyncio.all_tasks() == tasks


async def test_every_batch_is_recorded_when_the_check_returns(tmp_path, monkeypatch):
    """
    This includes the last batch, which is written in the background.
    """
    monkeypatch.setattr(model_check, "BATCH_SIZE", 10)
    async with open_catalog(tmp_path / "catalog.db") as catalog:
        await catalog.register_models(
            a_model(f"{number}", local_path=str(tmp_path)) for number in range(35)
        )

        assert (await check_models(catalog)).counts == {FileState.PRESENT: 35}
        assert await catalog.count_models(state=FileState.PRESENT) == 35

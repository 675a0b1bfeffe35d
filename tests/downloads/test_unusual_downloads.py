"""Downloads that are cancelled at any moment, fail in unusual ways, or write to unusual folders."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
from download_helpers import NAME, Downloader, safetensors_bytes

from model_catalog import InvalidModelError, Model, TransactionError, open_catalog
from model_catalog.downloads import (
    get_or_download,
    list_downloads,
    plan_deletion,
    plan_eviction,
    wait_for_download,
)


def write_model(folder):
    path = Path(folder, "m.safetensors")
    path.write_bytes(safetensors_bytes())
    return path


def returning(value):
    async def download(_claim):
        return value

    return download


async def cancel_at_step(coroutine, first_step, step_count):
    """
    Run a coroutine in a task, and cancel it in some iterations of the event loop.

    Returns the task, and whether it had ended before all of them.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(coroutine)
    step = 0
    run_once = loop._run_once

    def run_and_cancel():
        nonlocal step
        step += 1
        if first_step <= step < first_step + step_count:
            task.cancel()
        run_once()

    loop._run_once = run_and_cancel
    try:
        await asyncio.wait([task], timeout=20)
    finally:
        del loop._run_once
    return task, step < first_step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "step_count"),
    [
        *(("sqlite", 1), ("sqlite", 8)),
        *(("asyncpg", 1), ("asyncpg", 3)),
        *(("psycopg", 1), ("psycopg", 8)),
    ],
)
async def test_a_download_may_be_cancelled_at_every_step(catalog, database, tmp_path, step_count):
    """
    No claim, running download or folder is left, and no download goes on without its caller.
    """
    root = tmp_path / "root"
    running = []

    async def download(claim):
        running.append(claim)
        try:
            folder = await claim.create_folder(root)
            await asyncio.sleep(0.002)
            return write_model(folder)
        finally:
            try:
                await asyncio.sleep(0.001)
            finally:
                running.remove(claim)

    for first_step in range(1, 1000):
        call = get_or_download(catalog, NAME, download, root=root, size_bytes=5)
        task, has_ended = await cancel_at_step(call, first_step, step_count)
        is_registered = await catalog.remove_model(NAME)

        assert task.cancelled() or task.exception() is None
        assert not running
        assert database.run("SELECT count(*) FROM model_claims") == [(0,)]
        states = "SELECT count(*) FROM model_downloads WHERE state IN ('queued', 'running')"
        assert database.run(states) == [(0,)]
        assert bool([*root.rglob("*")] if root.exists() else []) == is_registered
        for path in sorted(root.rglob("*"), reverse=True) if is_registered else ():
            path.unlink() if path.is_file() else path.rmdir()
        if has_ended:
            break
    assert has_ended


async def test_a_folder_is_not_made_after_its_download_was_cancelled(on_sqlite, tmp_path):
    """
    The thread that makes the folder cannot be cancelled, so it is waited for.
    """
    root = tmp_path / "root"
    root.mkdir()

    async def download(claim):
        task = asyncio.ensure_future(claim.create_folder(root))
        while not any(root.iterdir()):
            await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        await get_or_download(on_sqlite, NAME, download)

    assert not any(root.iterdir())


async def test_a_download_does_not_go_on_after_a_second_cancellation(on_sqlite):
    """
    anyio cancels a task in every iteration of the event loop. The download ends before its claim.
    """
    started, release = asyncio.Event(), asyncio.Event()
    has_ended = False

    async def download(_claim):
        nonlocal has_ended
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await release.wait()
            has_ended = True

    task = asyncio.create_task(get_or_download(on_sqlite, NAME, download))
    await started.wait()
    for _ in range(5):
        task.cancel()
        await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.05, release.set)
    await asyncio.wait([task])

    assert task.cancelled()
    assert has_ended
    assert (await list_downloads(on_sqlite))[0].error == "it was cancelled"


async def test_an_error_after_a_cancellation_is_not_reported_as_forgotten(on_sqlite):
    """
    The caller was cancelled, so no task is there that could take the error.
    """
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    started = asyncio.Event()

    async def download(_claim):
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("the connection is closed")

    task = asyncio.create_task(get_or_download(on_sqlite, NAME, download))
    await started.wait()
    task.cancel()
    await asyncio.wait([task])
    del download

    assert task.cancelled()
    assert reported == []


async def test_a_finished_download_waits_for_a_busy_database(sqlite_file, tmp_path):
    """
    The catalog gives up a write after 0.1 s. The download is not repeated for that.
    """
    writer = sqlite3.connect(sqlite_file, isolation_level=None)
    download = Downloader(tmp_path / "m")

    async def download_and_lock(claim):
        path = await download(claim)
        writer.execute("BEGIN IMMEDIATE")
        asyncio.get_running_loop().call_later(0.3, writer.execute, "ROLLBACK")
        return path

    async with open_catalog(sqlite_file, timeout_s=0.1) as catalog:
        model = await get_or_download(catalog, NAME, download_and_lock)
    writer.close()

    assert model.local_path == str(tmp_path / "m" / "org--tiny.safetensors")
    assert download.count == 1


class UnprintableError(Exception):
    def __str__(self):
        raise RuntimeError("no text")


ERRORS = {
    "without a text": UnprintableError(),
    "a group": ExceptionGroup("several", [ValueError("a"), OSError("b")]),
    "GeneratorExit": GeneratorExit("closed"),
    "a cancellation of its own": asyncio.CancelledError("own"),
    "a base exception": BaseException("base"),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
async def test_each_error_of_a_download_frees_the_name(on_sqlite, sqlite_file, error, tmp_path):
    """
    The error is passed on as it is, and the next caller downloads at once.
    """

    async def fail(_claim):
        raise error

    with pytest.raises(type(error)):
        await get_or_download(on_sqlite, NAME, fail)
    download = Downloader(tmp_path / "m")
    await get_or_download(on_sqlite, NAME, download)

    assert download.count == 1
    assert [each.state for each in await list_downloads(on_sqlite)] == ["done", "failed"]


@pytest.mark.parametrize(
    "reference",
    ["模型" * 60, "😀" * 90, "..", "a/../../b", " ' \"<>|?*\\ "],
    ids=["Chinese", "emoji", "dots", "the parent folder", "punctuation"],
)
async def test_each_name_of_a_model_has_a_folder(on_sqlite, tmp_path, reference):
    """
    The folder is two levels below the root, whatever the characters of the name are.
    """

    async def download(claim):
        return write_model(await claim.create_folder(tmp_path))

    ref = Model(reference=reference, provider="own", local_path="unused").ref
    model = await get_or_download(on_sqlite, ref, download, root=tmp_path)

    assert Path(model.local_path).resolve().parents[2] == tmp_path


async def test_an_attempt_may_ask_for_its_folder_twice(on_sqlite, tmp_path):
    """
    A download that tries again by itself goes on in the same folder.
    """

    async def download(claim):
        first = await claim.create_folder(tmp_path)
        assert await claim.create_folder(tmp_path) == first
        return write_model(first)

    model = await get_or_download(on_sqlite, NAME, download)

    assert Path(model.local_path).exists()


@pytest.mark.parametrize("root", ["link", "root/../root"], ids=["link", "parent folder"])
async def test_the_root_may_be_written_in_another_way_than_the_path(on_sqlite, tmp_path, root):
    """
    A resolved path is below a root that is written with a link or with `..`.
    """
    (tmp_path / "root").mkdir()
    (tmp_path / "link").symlink_to("root")

    async def download(claim):
        return write_model(await claim.create_folder(tmp_path / "root")).resolve()

    model = await get_or_download(on_sqlite, NAME, download, root=tmp_path / root)
    plan = await plan_eviction(on_sqlite, keep_days=0)
    await plan.execute(on_sqlite)

    assert not Path(model.local_path).exists()


async def test_a_path_that_leads_out_of_the_root_is_refused(on_sqlite, tmp_path):
    """
    It begins with the root, and names a file beside it.
    """
    root = tmp_path / "root"
    root.mkdir()
    write_model(tmp_path)

    with pytest.raises(InvalidModelError, match="is not below root"):
        outside = returning(f"{root}/../m.safetensors")
        await get_or_download(on_sqlite, NAME, outside, root=root)

    assert await on_sqlite.find_model(NAME) is None


BAD_DOWNLOADS = {
    "a function without async": (lambda _claim: "/m", {}, "download .* `async def`"),
    "no function": (None, {}, "download None is not a function"),
    "a path with NUL": (returning("/m\0"), {}, "NUL"),
    "an empty path": (returning(""), {}, "is empty"),
    "a model with a number as its path": (
        returning(Model(reference="org/tiny", provider="hf", local_path=5)),
        {},
        "local_path 5 is a int",
    ),
    "a root that is no path": (returning("/m"), {"root": 5}, "root 5 is a int"),
    "an empty root": (returning("/m"), {"root": ""}, "root '' is empty"),
    "slots that are a number": (returning("/m"), {"slots": 2}, "slots 2 .*Semaphore"),
}


@pytest.mark.parametrize(
    ("download", "options", "message"), BAD_DOWNLOADS.values(), ids=BAD_DOWNLOADS
)
async def test_an_argument_of_another_type_is_refused(on_sqlite, download, options, message):
    """
    The error names the argument, and says what to give.
    """
    with pytest.raises(InvalidModelError, match=message):
        await get_or_download(on_sqlite, NAME, download, **options)


BAD_LISTS = {
    "states": (list_downloads, {"states": "running"}),
    "providers": (plan_eviction, {"free_bytes": 1, "providers": "hf"}),
    "a provider that is a number": (plan_eviction, {"free_bytes": 1, "providers": [5]}),
    "the path of a disk": (plan_eviction, {"free_bytes": 1, "disk_of": 5}),
    "a path that does not exist": (plan_eviction, {"free_bytes": 1, "disk_of": "/nowhere/m"}),
    "models": (plan_deletion, {"models": "hf:org/tiny"}),
}


@pytest.mark.parametrize(("function", "options"), BAD_LISTS.values(), ids=BAD_LISTS)
async def test_a_text_is_not_taken_for_a_list(on_sqlite, function, options):
    """
    Its characters would each be a name that no model has.
    """
    *_, name = options

    with pytest.raises(InvalidModelError, match=f"^{name} "):
        await function(on_sqlite, **options)


async def test_files_are_not_deleted_in_a_transaction(catalog, tmp_path):
    """
    A rollback would keep the record of files that are gone.
    """

    async def download(claim):
        return write_model(await claim.create_folder(tmp_path))

    model = await get_or_download(catalog, NAME, download, root=tmp_path)
    plan = await plan_eviction(catalog, keep_days=0)

    async with catalog.transaction() as inner:
        with pytest.raises(TransactionError, match="execute commits"):
            await plan.execute(inner)
        with pytest.raises(TransactionError, match="wait_for_download"):
            await wait_for_download(inner, NAME)

    assert len(plan.models) == 1
    assert Path(model.local_path).exists()

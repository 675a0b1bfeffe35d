"""A model is found, or exactly one caller downloads it."""

import asyncio
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from download_helpers import NAME, Downloader, safetensors_bytes, until
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from model_catalog import (
    DownloadFailedError,
    DownloadTimeoutError,
    IncompleteDownloadError,
    InvalidModelError,
    Model,
    ModelCatalog,
    ModelRef,
    NotEnoughSpaceError,
    TransactionError,
    open_catalog,
    prepare_engine,
)
from model_catalog.downloads import (
    DownloadState,
    get_or_download,
    list_downloads,
    list_users,
    use_model,
    wait_for_download,
)


async def never(_claim):
    raise AssertionError("the model is there")


async def test_a_model_is_downloaded_registered_and_then_found(catalog, database, tmp_path):
    """
    The second call returns the recorded model, and writes nothing.
    """
    download = Downloader(tmp_path / "m")

    first = await get_or_download(catalog, NAME, download)
    second = await get_or_download(catalog, NAME, never)

    assert (first.ref, first.size_bytes, first.format) == (
        ModelRef("hf", "org/tiny", ""),
        len(safetensors_bytes()),
        "safetensors",
    )
    assert second.id == first.id
    assert download.count == 1
    assert len(await catalog.list_files(first)) == 1
    assert database.run("SELECT count(*) FROM model_claims") == [(0,)]


async def test_a_recorded_model_without_files_is_downloaded_again(catalog, tmp_path):
    """
    Its row says that it is there, and a look at the disk says that it is not.
    """
    before = await catalog.register_model(
        Model(reference="org/tiny", provider="hf", local_path="/nowhere/m")
    )
    download = Downloader(tmp_path / "m")

    model = await get_or_download(catalog, NAME, download)

    assert model.id == before.id
    assert model.local_path == str(tmp_path / "m" / "org--tiny.safetensors")
    assert download.count == 1


async def test_files_that_were_deleted_are_noticed_after_some_seconds(
    catalog, tmp_path, monkeypatch
):
    """
    A model that was just seen is not looked at again.
    """
    download = Downloader(tmp_path / "m")
    first = await get_or_download(catalog, NAME, download)
    Path(first.local_path).unlink()

    await get_or_download(catalog, NAME, never)
    monkeypatch.setattr("model_catalog.downloads.presence.MAX_AGE_S", 0.0)
    again = await get_or_download(catalog, NAME, download)

    assert download.count == 2
    assert Path(again.local_path).exists()


async def test_simultaneous_callers_download_once(database, tmp_path):
    """
    Fifty tasks on two catalogs of the same database get the same model.
    """
    download = Downloader(tmp_path / "m")
    async with open_catalog(database.target) as one, open_catalog(database.target) as other:
        models = await asyncio.gather(
            *(get_or_download(each, NAME, download) for each in [one, other] * 25)
        )

    assert {model.id for model in models} == {models[0].id}
    assert download.count == 1


async def test_over_sessions_of_a_host_a_model_is_downloaded_once(database, tmp_path):
    """
    Each caller has a catalog of its own, as in a service that makes one for each request.
    """
    download = Downloader(tmp_path / "m")
    engine = create_async_engine(database.target_url)
    if database.path is not None:
        prepare_engine(engine)
    sessions = async_sessionmaker(engine)

    models = await asyncio.gather(
        *(get_or_download(ModelCatalog(sessions), NAME, download) for _ in range(10))
    )
    await engine.dispose()

    assert {model.id for model in models} == {models[0].id}
    assert download.count == 1


async def test_a_download_returns_a_model_with_fields_of_its_own(catalog, tmp_path):
    """
    What the caller has set stays; the header says the rest.
    """
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes())

    async def download(claim):
        return Model(
            reference=claim.ref.reference,
            provider=claim.ref.provider,
            version="v7",
            local_path=str(path),
            architecture="mine",
        )

    model = await get_or_download(catalog, NAME, download)

    assert (model.version, model.architecture, model.claimed_format) == (
        "v7",
        "mine",
        "safetensors",
    )


WRONG_RESULTS = {
    "another reference": (
        lambda path: Model(reference="other", provider="hf", local_path=path),
        InvalidModelError,
    ),
    "another version": (
        lambda path: Model(reference="org/tiny", provider="hf", version="v2", local_path=path),
        InvalidModelError,
    ),
    "None": (lambda _: None, InvalidModelError),
    "a path that does not exist": (lambda path: path + ".no", FileNotFoundError),
}


@pytest.mark.parametrize(("make", "error"), WRONG_RESULTS.values(), ids=WRONG_RESULTS)
async def test_a_result_that_is_not_the_model_is_refused(catalog, tmp_path, make, error):
    """
    Nothing is registered, and the claim is free again.
    """
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes())

    async def download(_claim):
        return make(str(path))

    with pytest.raises(error):
        await get_or_download(catalog, "hf:org/tiny@v1", download)

    assert await catalog.count_models() == 0
    (failed,) = await list_downloads(catalog)
    assert failed.state is DownloadState.FAILED
    assert failed.error.startswith(error.__name__)


async def test_an_incomplete_download_is_not_registered(catalog, tmp_path):
    """
    A file that was cut off would otherwise be served to every later caller.
    """

    async def download(_claim):
        path = tmp_path / "m.safetensors"
        path.write_bytes(safetensors_bytes()[:-10])
        return path

    with pytest.raises(IncompleteDownloadError, match="are incomplete") as caught:
        await get_or_download(catalog, NAME, download)

    assert caught.value.reasons
    assert await catalog.count_models() == 0


async def test_after_a_failure_one_waiter_tries_next(database, tmp_path):
    """
    The first caller gets its own error, and the others the model of the second.
    """
    release = asyncio.Event()
    started = asyncio.Event()
    good = Downloader(tmp_path / "m")

    async def fail(_claim):
        started.set()
        await release.wait()
        raise RuntimeError("the network is down")

    async with open_catalog(database.target) as one, open_catalog(database.target) as other:
        first = asyncio.create_task(get_or_download(one, NAME, fail))
        await started.wait()
        waiters = [
            asyncio.create_task(get_or_download(each, NAME, good, retry_pause_s=0.05))
            for each in [one, other] * 3
        ]
        release.set()
        with pytest.raises(RuntimeError, match="the network is down"):
            await first
        models = await asyncio.gather(*waiters)
        downloads = await list_downloads(one)

    assert {model.id for model in models} == {models[0].id}
    assert good.count == 1
    assert [(each.state, each.error) for each in downloads] == [
        ("done", None),
        ("failed", "RuntimeError: the network is down"),
    ]


async def test_waiters_give_up_after_some_failures(database):
    """
    Three or, if one caller came late, four callers try. The others learn why these have failed.
    """
    attempts = 0
    started, release = asyncio.Event(), asyncio.Event()

    async def fail(_claim):
        nonlocal attempts
        attempts += 1
        started.set()
        await release.wait()
        raise RuntimeError("no such model")

    async with open_catalog(database.target) as one, open_catalog(database.target) as other:
        calls = [
            asyncio.create_task(get_or_download(each, NAME, fail, retry_pause_s=0.01))
            for each in [one, other] * 5
        ]
        await started.wait()
        release.set()
        results = await asyncio.gather(*calls, return_exceptions=True)

    failures = [each for each in results if isinstance(each, DownloadFailedError)]
    assert 3 <= attempts <= 4
    assert len(failures) == 10 - attempts
    assert (failures[0].model, failures[0].attempts) == (NAME, 3)
    assert "RuntimeError: no such model" in str(failures[0])


async def test_a_cancelled_download_is_recorded_and_the_next_waiter_continues(catalog, tmp_path):
    """
    A caller that was cancelled is no failure of the download.
    """
    hanging = Downloader(tmp_path / "a", release=asyncio.Event())
    good = Downloader(tmp_path / "b")
    first = asyncio.create_task(get_or_download(catalog, NAME, hanging))
    await hanging.started.wait()
    second = asyncio.create_task(get_or_download(catalog, NAME, good, max_attempts=1))
    await asyncio.sleep(0)

    first.cancel()
    model = await second

    with pytest.raises(asyncio.CancelledError):
        await first
    done, cancelled = await list_downloads(catalog)
    assert model.local_path.startswith(str(tmp_path / "b"))
    assert (done.state, cancelled.state) == ("done", "failed")
    assert cancelled.error == "it was cancelled"


@pytest.mark.slow
async def test_the_time_limit_holds_for_waiters_and_for_the_download(database, tmp_path):
    """
    Both get an error that says what they waited for. The one that downloads is cancelled.
    """
    hanging = Downloader(tmp_path / "m", release=asyncio.Event())
    async with open_catalog(database.target) as one, open_catalog(database.target) as other:
        first = asyncio.create_task(get_or_download(one, NAME, hanging))
        await hanging.started.wait()
        with pytest.raises(DownloadTimeoutError, match=f"process {os.getpid()} on ") as waited:
            await get_or_download(other, NAME, never, timeout_s=0.1)
        first.cancel()
        await asyncio.wait([first])
        with pytest.raises(DownloadTimeoutError, match="its own download"):
            await get_or_download(one, NAME, hanging, timeout_s=0.5)
        errors = [download.error for download in await list_downloads(one)]

    assert waited.value.model == NAME
    assert isinstance(waited.value, TimeoutError)
    assert errors == ["it was cancelled"] * 2


async def test_a_timeout_of_the_download_itself_is_passed_on(catalog):
    """
    It is not mistaken for the limit of the call.
    """

    async def download(_claim):
        raise TimeoutError("of the hub")

    with pytest.raises(TimeoutError, match="of the hub"):
        await get_or_download(catalog, NAME, download, timeout_s=30)


async def test_in_a_transaction_a_download_is_refused(catalog, tmp_path):
    """
    Other processes could not see its claim.
    """
    download = Downloader(tmp_path / "m")

    with pytest.raises(TransactionError, match="outside of transaction"):
        async with catalog.transaction() as inner:
            await get_or_download(inner, NAME, download)

    assert download.count == 0


@pytest.mark.slow
async def test_progress_is_visible_to_other_processes(database, tmp_path):
    """
    A thread reports bytes, and another catalog sees them while the download runs.
    """
    release = asyncio.Event()

    async def download(claim):
        await asyncio.to_thread(claim.report, 30, 100)
        await release.wait()
        path = tmp_path / "m.safetensors"
        path.write_bytes(safetensors_bytes())
        claim.report(100, 100)
        return path

    async with open_catalog(database.target) as one, open_catalog(database.target) as other:
        task = asyncio.create_task(get_or_download(one, NAME, download))

        async def seen():
            downloads = await list_downloads(other, states=["running"])
            return downloads if downloads and downloads[0].done_bytes else None

        (running,) = await until(seen)
        release.set()
        await task
        (done,) = await list_downloads(other, NAME)

    assert (running.done_bytes, running.total_bytes) == (30, 100)
    assert (running.process_id, running.finished_at) == (os.getpid(), None)
    assert (done.state, done.done_bytes, done.error) == ("done", 100, None)
    assert running.queued_at <= running.started_at <= done.finished_at


async def test_downloads_wait_for_a_slot_in_the_state_queued(catalog, tmp_path):
    """
    With one slot, one of two models is downloaded at a time.
    """
    slots = asyncio.Semaphore(1)
    release = asyncio.Event()
    download = Downloader(tmp_path / "m", release=release)
    tasks = [
        asyncio.create_task(get_or_download(catalog, f"hf:org/{name}", download, slots=slots))
        for name in "ab"
    ]

    async def both_claimed():
        states = [each.state for each in await list_downloads(catalog)]
        return sorted(states) == ["queued", "running"]

    await until(both_claimed)
    count = download.count
    release.set()
    await asyncio.gather(*tasks)

    assert count == 1
    assert [each.state for each in await list_downloads(catalog)] == ["done", "done"]


async def test_a_download_waits_for_another_process_to_end(database, tmp_path):
    """
    `wait_for_download` returns the download that has ended, and None if there was none.
    """
    release = asyncio.Event()
    download = Downloader(tmp_path / "m", release=release)
    async with open_catalog(database.target) as one, open_catalog(database.target) as other:
        nothing = await wait_for_download(other, NAME)
        task = asyncio.create_task(get_or_download(one, NAME, download))
        await download.started.wait()
        with pytest.raises(DownloadTimeoutError):
            await wait_for_download(other, NAME, timeout_s=0.05)
        waiting = asyncio.create_task(wait_for_download(other, NAME))
        release.set()
        await task
        ended = await waiting

    assert nothing is None
    assert (ended.ref, ended.state) == (ModelRef("hf", "org/tiny"), "done")


@pytest.mark.slow
async def test_the_history_keeps_a_thousand_downloads(catalog, database, tmp_path):
    """
    Older ones are deleted when a download ends. Running ones stay.
    """
    now_ms = int(time.time() * 1000)
    insert = (
        "INSERT INTO model_downloads (provider, reference, version, token, state, holder_host,"
        " holder_process_id, queued_at_ms) VALUES ('hf', 'old', '', ?, ?, 'h', 1, ?)"
    )
    database.run(insert, "running", "running", now_ms)
    for number in range(1002):
        database.run(insert, f"t{number}", "failed", now_ms)

    await get_or_download(catalog, NAME, Downloader(tmp_path / "m"))

    assert database.run("SELECT count(*) FROM model_downloads") == [(1001,)]
    assert database.run("SELECT state FROM model_downloads WHERE token = 'running'") == [
        ("running",)
    ]


async def test_too_little_space_is_told_before_the_download(catalog, tmp_path):
    """
    The error has the sizes, and nothing is downloaded.
    """
    with pytest.raises(NotEnoughSpaceError, match="bytes are missing") as caught:
        await get_or_download(catalog, NAME, never, root=tmp_path, size_bytes=2**60)

    assert caught.value.needed_bytes == 2**60
    assert 0 < caught.value.free_bytes < 2**60


async def test_a_model_below_the_root_is_managed(catalog, tmp_path):
    """
    The catalog may delete its files. A path outside the root is refused.
    """
    download = Downloader(tmp_path / "m")

    model = await get_or_download(catalog, NAME, download, root=tmp_path / "m")
    with pytest.raises(InvalidModelError, match="is not below root"):
        await get_or_download(catalog, "hf:org/b", download, root=tmp_path / "other")

    assert model.managed_root == str(tmp_path / "m")


async def test_a_folder_of_an_attempt_is_deleted_if_it_fails(catalog, tmp_path):
    """
    That of an attempt that has succeeded stays.
    """
    folders = []

    async def download(claim):
        folders.append(await claim.create_folder(tmp_path / "root"))
        path = Path(folders[-1], "m.safetensors")
        path.write_bytes(safetensors_bytes())
        if len(folders) == 1:
            raise RuntimeError("checksum")
        return path

    with pytest.raises(RuntimeError, match="checksum"):
        await get_or_download(catalog, NAME, download, root=tmp_path / "root")
    after_failure = Path(folders[0]).exists()
    model = await get_or_download(catalog, NAME, download, root=tmp_path / "root")

    assert not after_failure
    assert model.local_path.startswith(folders[1])
    assert Path(model.local_path).exists()


BAD_ARGUMENTS = {
    "lease_s": {"lease_s": 0.5},
    "an infinite lease_s": {"lease_s": float("inf")},
    "timeout_s": {"timeout_s": -1},
    "max_attempts": {"max_attempts": 0},
    "retry_pause_s": {"retry_pause_s": "1"},
    "size_bytes": {"size_bytes": -1},
}


@pytest.mark.parametrize("options", BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
async def test_an_option_that_is_out_of_range_is_refused(on_sqlite, options):
    """
    The error names the option.
    """
    (name,) = options

    with pytest.raises(InvalidModelError, match=name):
        await get_or_download(on_sqlite, NAME, never, **options)


async def test_aliases_and_versions_find_the_recorded_model(catalog, tmp_path):
    """
    A name without a version means the version downloaded last.
    """
    download = Downloader(tmp_path / "m")
    model = await get_or_download(catalog, "hf:org/tiny@v1", download)
    await catalog.set_alias(model, "stable")

    newest = await get_or_download(catalog, NAME, never)
    aliased = await get_or_download(catalog, "hf:org/tiny@stable", never)

    assert newest.id == aliased.id == model.id


async def test_in_a_session_of_a_host_with_a_schema_a_download_is_refused(database, tmp_path):
    """
    The schema does not hide that the host commits the transaction.
    """
    if database.path is not None:
        pytest.skip("SQLite has no schemas")
    engine = create_async_engine(database.target_url)
    async with AsyncSession(engine) as session:
        catalog = ModelCatalog(session, schema="public")
        with pytest.raises(TransactionError, match="outside of transaction"):
            await get_or_download(catalog, NAME, Downloader(tmp_path / "m"))
    await engine.dispose()


@pytest.mark.parametrize("shift_s", [-86_400, 86_400], ids=["a day slow", "a day fast"])
async def test_the_clock_of_another_host_does_not_matter(database, tmp_path, monkeypatch, shift_s):
    """
    A process whose clock is wrong waits for the claim of another, and counts its own use.
    """
    release = asyncio.Event()
    download = Downloader(tmp_path / "m", release=release)
    right = time.time
    async with open_catalog(database.target) as one, open_catalog(database.target) as other:
        first = asyncio.create_task(get_or_download(one, NAME, download))
        await download.started.wait()
        monkeypatch.setattr(time, "time", lambda: right() + shift_s)
        with pytest.raises(DownloadTimeoutError):
            await get_or_download(other, NAME, never, timeout_s=0.1)
        (running,) = await list_downloads(other)
        release.set()
        model = await first
        async with use_model(other, NAME):
            monkeypatch.undo()
            users = await list_users(one)

    assert running.state is DownloadState.RUNNING
    assert [user.ref for user in users] == [model.ref]


async def test_a_newer_version_that_is_recorded_meanwhile_is_no_error(catalog, tmp_path):
    """The caller gets the model that was downloaded, and the next call finds the newer one."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes())
    name = {"provider": "hf", "reference": "org/tiny", "local_path": str(path)}

    async def download(_claim):
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        await catalog.register_model(Model(**name, version="newer", downloaded_at=tomorrow))
        return Model(**name, version="v1")

    model = await get_or_download(catalog, NAME, download)
    after = await get_or_download(catalog, NAME, never)

    assert (model.version, after.version) == ("v1", "newer")
    assert [each.state for each in await list_downloads(catalog)] == [DownloadState.DONE]

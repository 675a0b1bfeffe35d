"""`scope="fleet"`: all hosts share a disk, so one host downloads, and none deletes for another."""

import asyncio
import json
import shutil
from contextlib import AsyncExitStack

import pytest
from conftest import a_model

from model_catalog import InvalidModelError, open_catalog
from model_catalog.downloads import (
    KeptReason,
    get_or_download,
    list_downloads,
    plan_deletion,
    plan_eviction,
    use_model,
    wait_for_download,
)
from model_catalog.downloads.queries.claim_queries import (
    ClaimedName,
    ClaimRequest,
    Purpose,
    take_claim,
)
from model_catalog.downloads.queries.eviction_queries import (
    BeginDeletion,
    Refusal,
    begin_deletion,
)
from model_catalog.downloads.queries.shared_disk_queries import (
    RecordQuery,
    copy_record,
    select_records,
)
from model_catalog.downloads.states import Holder
from model_catalog.errors import DeletionRefusedError
from model_catalog.execution.executor import read, write
from model_catalog.repository.model_catalog import executor_of
from model_catalog.repository.operations.lookup import LookupKey
from model_catalog.upkeep import check_models

NAME = "hf:org/tiny"
KEY = LookupKey("org/tiny", "hf", None)


def weights(name: str = "w") -> bytes:
    header = json.dumps({name: {"dtype": "U8", "shape": [4096], "data_offsets": [0, 4096]}})
    return len(header).to_bytes(8, "little") + header.encode() + bytes(4096)


class Download:
    """A download that writes one file, and counts its calls."""

    def __init__(self, folder):
        self.path = folder / "tiny.safetensors"
        self.count = 0

    async def __call__(self, claim):
        self.count += 1
        await asyncio.sleep(0)
        self.path.write_bytes(weights())
        return self.path


@pytest.fixture
def download(tmp_path) -> Download:
    folder = tmp_path / "shared"
    folder.mkdir()
    return Download(folder)


@pytest.fixture
async def hosts(database):
    """The catalogs of the hosts a, b and c, and one without a host."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(open_catalog(database.target, host=host))
            for host in ("a", "b", "c", None)
        ]


def shared(download, **options):
    return {"download": download, "root": download.path.parent, "scope": "fleet", **options}


async def test_a_host_records_what_another_has_downloaded_to_the_shared_disk(
    hosts, database, download
):
    """
    The record is copied with files, tags and aliases; uses and the pin are those of each host.
    """
    one, other, *_ = hosts
    model = await get_or_download(one, NAME, **shared(download))
    await one.tag_model(model, tags=["chat"])
    await one.set_alias(model, alias="stable")
    await one.pin_model(model)
    await one.record_use(model, count=3)
    await one.update_model(model, description="für alle")

    copied = await get_or_download(other, NAME, **shared(download))

    assert download.count == 1
    assert (copied.host, copied.local_path) == ("b", str(download.path))
    assert (copied.tags, copied.description, copied.managed_root) == (
        ("chat",),
        "für alle",
        str(download.path.parent),
    )
    assert (copied.pinned, copied.use_count, copied.download_count) == (False, 0, 1)
    assert (await other.get_model("org/tiny", "hf", "stable")).id == copied.id
    files = [await each.list_files(NAME) for each in (one, other)]
    assert [[(file.path, file.fingerprint) for file in each] for each in files] == [
        [("tiny.safetensors", files[0][0].fingerprint)]
    ] * 2
    assert (await one.get_model(NAME)).use_count == 3
    assert (await check_models(other, force=True)).findings == ()
    assert database.run("SELECT host, state FROM model_downloads") == [("*", "done")]


@pytest.mark.slow_with("asyncpg")
async def test_one_of_many_hosts_downloads(hosts, download):
    """All get a record of their own, and the download is listed on each host."""
    models = await asyncio.gather(
        *(get_or_download(each, NAME, **shared(download, timeout_s=30)) for each in hosts * 3)
    )

    assert download.count == 1
    assert [model.host for model in models] == ["a", "b", "c", ""] * 3
    for catalog in hosts:
        assert await catalog.count_models() == 1
        assert len(await list_downloads(catalog)) == 1
        assert (await wait_for_download(catalog, NAME)).state == "done"


async def test_without_the_scope_each_host_downloads(hosts, download):
    """The disks are then different ones, whatever their paths are."""
    for catalog in hosts:
        await get_or_download(catalog, NAME, download)
        assert len(await list_downloads(catalog)) == 1

    assert download.count == len(hosts)


async def test_a_record_whose_files_are_not_here_is_not_copied(hosts, download):
    """The other host has them on another disk, or they have changed."""
    one, other, *_ = hosts
    await one.register_model(a_model("org/tiny", local_path="/elsewhere/tiny.gguf"))

    model = await get_or_download(other, NAME, **shared(download))

    assert (download.count, model.local_path) == (1, str(download.path))


async def test_an_alias_and_a_version_of_another_host_are_found(hosts, download):
    """The name is read as the other host reads it."""
    one, other, *_ = hosts
    model = await get_or_download(one, NAME, **shared(download))
    await one.rename_model(model, new_version="v1")
    await one.set_alias("org/tiny", "hf", "main")

    models = [
        await get_or_download(other, f"{NAME}@{version}", **shared(download))
        for version in ("main", "v1")
    ]

    assert download.count == 1
    assert {(model.host, model.version) for model in models} == {("b", "v1")}


async def test_a_record_whose_files_are_here_is_not_replaced_by_that_of_another_host(
    hosts, download
):
    """A download from a hub looks at all versions, and one of them has a description here."""
    one, other, *_ = hosts
    model = await get_or_download(one, NAME, **shared(download))
    await one.rename_model(model, new_version="v1")
    await get_or_download(other, f"{NAME}@v1", **shared(download))
    await other.update_model(f"{NAME}@v1", description="of b")
    await other.tag_model(f"{NAME}@v1", tags=["mine"])

    def find(catalog):
        return catalog.find_model(f"{NAME}@v2")

    await get_or_download(other, f"{NAME}@v2", **shared(download, find=find))

    kept = await other.get_model(f"{NAME}@v1")
    assert (kept.description, kept.tags) == ("of b", ("mine",))


async def test_a_waiting_host_takes_over_when_the_other_fails(hosts, download):
    """The failure of one host counts as an attempt on the shared disk."""
    one, other, *_ = hosts
    began, fails = asyncio.Event(), asyncio.Event()

    async def fail(_claim):
        began.set()
        await fails.wait()
        raise OSError("the disk is full")

    first = asyncio.create_task(get_or_download(one, NAME, fail, scope="fleet"))
    await began.wait()
    second = asyncio.create_task(get_or_download(other, NAME, **shared(download, retry_pause_s=0)))
    # Time to begin a second download, which may not be begun.
    await asyncio.sleep(0.05)
    assert download.count == 0
    fails.set()
    with pytest.raises(OSError, match="full"):
        await first

    assert (await second).host == "b"
    assert download.count == 1


async def test_a_model_of_another_host_is_kept(hosts, download):
    """Its record has the same path. Without the scope, the other host does not count."""
    one, other, *_ = hosts
    for catalog in (one, other):
        await get_or_download(catalog, NAME, **shared(download))

    plan = await plan_eviction(one, free_bytes=1, scope="fleet")
    alone = await plan_eviction(one, free_bytes=1)

    assert [(each.reason, each.detail) for each in plan.kept] == [
        (KeptReason.SHARED, "hf:org/tiny@ of host b")
    ]
    assert (plan.models, plan.scope) == ((), "fleet")
    assert [each.ref.reference for each in alone.models] == ["org/tiny"]
    with pytest.raises(DeletionRefusedError, match="of host b"):
        await plan_deletion(one, [NAME], scope="fleet")

    await other.remove_model(NAME)
    plan = await plan_eviction(one, free_bytes=1, scope="fleet")
    result = await plan.execute(one)
    assert [each.ref.reference for each in result.evicted] == ["org/tiny"]
    assert not download.path.exists()


async def test_a_file_that_another_host_has_under_another_name_is_kept(hosts, download):
    """A hard link has the same fingerprint, whatever number each host gives the disk."""
    one, other, *_ = hosts
    model = await get_or_download(one, NAME, **shared(download))
    files = await one.list_files(model)
    folder = download.path.parent / "other"
    folder.mkdir()
    (folder / "tiny.safetensors").symlink_to(download.path)
    await other.register_model(
        a_model("another", local_path=str(folder / "tiny.safetensors"), size_bytes=1), files
    )

    plan = await plan_eviction(one, free_bytes=1, scope="fleet")

    assert [each.detail for each in plan.kept] == ["hf:another@ of host b"]


async def test_a_folder_with_a_file_that_another_host_has_recorded_alone_is_kept(hosts, download):
    """The other host has no list of files, so its path alone says what it needs."""
    one, other, *_ = hosts
    root = download.path.parent
    folder = root / "tiny"
    folder.mkdir()
    download.path = folder / "tiny.safetensors"

    async def download_folder(claim):
        await download(claim)
        (folder / "config.json").write_text("{}")
        return folder

    await get_or_download(one, NAME, download_folder, root=root, scope="fleet")
    await other.register_model(a_model("file", local_path=str(download.path)))

    plan = await plan_eviction(one, free_bytes=1, scope="fleet")

    assert [each.detail for each in plan.kept] == ["hf:file@ of host b"]
    assert plan.models == ()


async def test_a_copy_that_was_made_after_the_plan_keeps_its_files(hosts, download):
    """The record of the one host goes, and the files stay for the other."""
    one, other, *_ = hosts
    await get_or_download(one, NAME, **shared(download))
    plan = await plan_eviction(one, free_bytes=1, scope="fleet")
    await get_or_download(other, NAME, **shared(download))

    result = await plan.execute(one)

    assert [each.ref.reference for each in result.evicted] == ["org/tiny"]
    assert result.freed_bytes == 0
    assert (await check_models(other, force=True)).findings == ()


async def test_a_model_that_a_host_deletes_is_not_copied(hosts, database, download):
    """The deletion has a claim for all hosts, and has changed the record."""
    one, other, *_ = hosts
    await get_or_download(one, NAME, **shared(download))
    run = executor_of(other).run
    (copy,) = await run(read(select_records, RecordQuery(KEY, is_whole=False)))
    database.run(
        "INSERT INTO model_claims VALUES"
        " ('*', 'hf', 'org/tiny', '', 'evict', 't', 'box', 1, 0, 9000000000000)"
    )

    during = await run(write(copy_record, copy))
    database.run("DELETE FROM model_claims")
    database.run("UPDATE models SET state = 'missing'")
    after = await run(write(copy_record, copy))
    database.run("UPDATE models SET state = 'present'")

    assert (during, after) == (None, None)
    assert (await run(write(copy_record, copy))).host == "b"
    assert await other.count_models() == 1


async def test_no_host_deletes_what_another_has_begun_to_download(hosts, download):
    """The transactions of both overlap, the other host has no row, and the versions differ."""
    one, other, *_ = hosts
    model = await get_or_download(one, NAME, **shared(download))
    await one.rename_model(model, new_version="v1")
    (planned,) = (await plan_eviction(one, free_bytes=1, scope="fleet")).models
    claim = ClaimRequest(ClaimedName(KEY, is_shared=True), Purpose.DOWNLOAD, Holder.new(), 60_000)
    begin = BeginDeletion(
        planned.record, Holder.new(), 60_000, is_owned=planned.is_owned, is_shared=True
    )

    async with other.transaction() as inner:
        taken = await executor_of(inner).run(write(take_claim, claim))
        deletion = asyncio.create_task(executor_of(one).run(write(begin_deletion, begin)))
        await asyncio.wait([deletion], timeout=0.3)

    assert taken.is_taken
    assert isinstance(await deletion, Refusal)


async def test_a_model_that_another_host_uses_is_kept(hosts, download):
    """The use belongs to the record of the other host."""
    one, other, *_ = hosts
    for catalog in (one, other):
        await get_or_download(catalog, NAME, **shared(download))

    async with use_model(other, NAME):
        plan = await plan_eviction(one, free_bytes=1, scope="fleet")

    assert [each.reason for each in plan.kept] == [KeptReason.SHARED]


@pytest.mark.parametrize("scope", ["disk", None, 7])
async def test_another_scope_is_refused(on_sqlite, tmp_path, scope):
    """The error names the two that exist."""
    calls = (
        lambda: get_or_download(on_sqlite, NAME, Download(tmp_path), scope=scope),
        lambda: plan_eviction(on_sqlite, free_bytes=1, scope=scope),
        lambda: plan_deletion(on_sqlite, [], scope=scope),
    )
    for call in calls:
        with pytest.raises(InvalidModelError, match="'host' nor 'fleet'") as caught:
            await call()
        assert caught.value.field == "scope"
    shutil.rmtree(tmp_path)

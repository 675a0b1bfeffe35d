"""`reads=` with the URL of a replica: a catalog sees its own writes, and survives the replica."""

import asyncio
import re

import postgres
import pytest
from conftest import a_model
from fault_proxy import fault_proxy

from model_catalog import (
    CatalogReadOnlyError,
    InvalidTargetError,
    ModelNotFoundError,
    open_catalog,
    sync,
)
from model_catalog.downloads import get_or_download, list_users, plan_deletion
from model_catalog.upkeep import Verdict, accept_model, register_path, relink_model, verify_models

pytestmark = pytest.mark.slow
on_a_server = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])


@pytest.fixture(scope="module")
def servers():
    """The URLs of a primary and of its standby."""
    with (
        postgres.throwaway_cluster() as primary,
        postgres.throwaway_cluster(primary=primary) as standby,
    ):
        yield primary.url, standby.url


@pytest.fixture
async def both(servers, driver):
    """The targets of an empty catalog on both servers."""
    primary, standby = servers
    targets = [target_of(url, driver) for url in servers]
    async with open_catalog(targets[0]) as catalog:
        for model in await catalog.list_models():
            await catalog.remove_model(model)
    postgres.wait_for_replay(primary, standby)
    return targets


def target_of(url, driver):
    return url.set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)


async def register_on_both(catalog, servers):
    """Register a model, and return when the next read is one for the replica."""
    await catalog.register_model(a_model("m"))
    await catalog.find_model("m", "hf")
    postgres.wait_for_replay(*servers)
    # After a read that found it behind, the replica is not asked for 0.02 s.
    await asyncio.sleep(0.05)


@on_a_server
async def test_a_catalog_reads_its_own_writes_from_a_replica_that_lags(servers, both, driver):
    """While the replay is paused, the primary answers; afterwards the replica does."""
    primary, replica = both
    async with (
        open_catalog(primary, reads=replica) as catalog,
        open_catalog(replica, upgrade=False) as on_replica,
    ):
        for _ in range(3):
            assert await catalog.list_models() == []
        with postgres.replay_paused(servers[1]):
            for number in range(30):
                name = f"m{number}"
                await catalog.register_model(a_model(name, size_bytes=1))
                assert (await catalog.find_model(name, "hf")).reference == name
                assert len(await catalog.list_models()) == number + 1
                assert await catalog.get_total_size() == number + 1
                async with catalog.transaction() as inner:
                    await inner.tag_model(name, "hf", "chat")
                found = await asyncio.gather(*(catalog.find_model(name, "hf") for _ in range(3)))
                assert [each.tags for each in found] == [("chat",)] * 3
            assert await on_replica.list_models() == []
        postgres.wait_for_replay(*servers)
        assert len(await catalog.list_models()) == 30


@on_a_server
async def test_reads_go_to_the_replica_once_it_has_caught_up(servers, both, driver):
    """The primary's connection is silent meanwhile, and no read notices."""
    _, replica = both
    async with fault_proxy(servers[0]) as proxy:
        through_proxy = target_of(proxy.url, driver)
        async with open_catalog(through_proxy, reads=replica, timeout_s=5) as catalog:
            await register_on_both(catalog, servers)
            proxy.silence()
            async with asyncio.timeout(4):
                for _ in range(20):
                    assert (await catalog.find_model("m", "hf")).reference == "m"
                assert len(await catalog.list_models()) == 1
                assert await catalog.count_models() == 1
            proxy.resume()


@on_a_server
async def test_a_model_that_is_not_recorded_is_no_failure_of_the_replica(
    servers, both, driver, caplog
):
    """The replica answers the next read: the primary is silent, and no read notices."""
    _, replica = both
    async with fault_proxy(servers[0]) as proxy:
        through_proxy = target_of(proxy.url, driver)
        async with open_catalog(through_proxy, reads=replica, timeout_s=5) as catalog:
            await register_on_both(catalog, servers)
            with pytest.raises(ModelNotFoundError):
                await catalog.list_files("hf:nothing")
            proxy.silence()
            async with asyncio.timeout(2):
                assert (await catalog.find_model("m", "hf")).reference == "m"
            proxy.resume()
    assert not [each for each in caplog.messages if "failed" in each]


@on_a_server
async def test_a_replica_that_is_down_or_silent_costs_nothing_but_time(servers, both, driver):
    """Reads go to the primary: at once if the replica refuses, and in seconds if it is silent."""
    primary, replica = both
    nowhere = re.sub(r":\d+/", ":1/", replica)
    async with open_catalog(primary, reads=nowhere) as catalog:
        await catalog.register_model(a_model("m"))
        for _ in range(5):
            assert (await catalog.find_model("m", "hf")).reference == "m"
            assert len(await catalog.list_models()) == 1
    async with fault_proxy(servers[1]) as proxy:
        through_proxy = target_of(proxy.url, driver)
        async with open_catalog(primary, reads=through_proxy, timeout_s=10) as catalog:
            await register_on_both(catalog, servers)
            await catalog.find_model("m", "hf")
            proxy.silence()
            async with asyncio.timeout(8):
                found = await asyncio.gather(*(catalog.find_model("m", "hf") for _ in range(9)))
                assert len(await catalog.list_models()) == 1
    assert {each.reference for each in found} == {"m"}


@on_a_server
async def test_another_catalog_sees_a_write_when_the_replica_has_it(servers, both, driver):
    """What another catalog has written shows later, and a download is not started again for it."""
    primary, replica = both
    async with (
        open_catalog(primary, reads=replica) as catalog,
        open_catalog(primary) as other,
    ):
        await catalog.count_models()
        with postgres.replay_paused(servers[1]):
            await other.register_model(a_model("m", local_path="/"))
            assert await catalog.find_model("m", "hf") is None

            async def download(_claim):
                raise AssertionError("it is registered")

            found = await asyncio.wait_for(get_or_download(catalog, "hf:m", download), 10)
            assert found.reference == "m"
        postgres.wait_for_replay(*servers)
        assert (await catalog.find_model("m", "hf")).reference == "m"


@on_a_server
async def test_no_call_acts_on_a_row_that_only_the_replica_has(servers, both, driver, tmp_path):
    """Another catalog has moved an alias, registered a model, and deleted a third one."""
    primary, replica = both
    old, new, gone = (tmp_path / name for name in ("old.bin", "new.bin", "gone.bin"))
    for path in (old, new, gone):
        path.write_bytes(b"x")

    async def download(_claim):
        gone.write_bytes(b"xx")
        return gone

    async with (
        open_catalog(primary, reads=replica) as catalog,
        open_catalog(primary) as other,
    ):
        await register_path(other, old, reference="m", provider="hf", version="v1")
        await other.set_alias("hf:m@v1", alias="stable")
        await get_or_download(catalog, "hf:gone", download)
        postgres.wait_for_replay(*servers)
        await catalog.count_models()
        with postgres.replay_paused(servers[1]):
            await register_path(other, new, reference="m", provider="hf", version="v2")
            await other.set_alias("hf:m@v2", alias="stable")
            await other.remove_model("hf:gone")
            gone.unlink()
            assert (await catalog.get_model("hf:m@stable")).version == "v1"

            (planned,) = (await plan_deletion(catalog, ["hf:m@stable"])).models
            assert planned.ref.version == "v2"
            assert (await accept_model(catalog, "hf:m@v2")).model.version == "v2"
            await catalog.count_models()
            assert (await relink_model(catalog, "hf:m@stable", path=new)).model.version == "v2"
            await catalog.count_models()
            verified = {str(each.model.ref): each.verdict async for each in verify_models(catalog)}
            assert verified == {"hf:m@v1": Verdict.OK, "hf:m@v2": Verdict.OK}
            await catalog.count_models()
            assert await list_users(catalog, "hf:m@v2") == []
            assert (await get_or_download(catalog, "hf:gone", download)).size_bytes == 2
            assert gone.exists()


@on_a_server
async def test_a_catalog_reads_while_its_primary_is_a_standby(servers, both, driver):
    """During a failover the URL of the primary may lead to a server that does not write yet."""
    primary, replica = both
    async with open_catalog(primary) as catalog:
        await catalog.register_model(a_model("m"))
    postgres.wait_for_replay(*servers)

    async with open_catalog(replica, upgrade=False, reads=replica) as catalog:
        for _ in range(3):
            assert (await catalog.find_model("m", "hf")).reference == "m"
            assert await catalog.count_models() == 1
        with pytest.raises(CatalogReadOnlyError):
            await catalog.register_model(a_model("other"))
        assert await catalog.count_models() == 1


@on_a_server
async def test_a_url_that_is_not_a_replica_is_refused(servers, both, driver, pg_migrated):
    """Its positions in the log mean nothing. A file, or a mode of SQLite, is no replica either."""
    primary, _ = both
    async with open_catalog(primary, reads=target_of(pg_migrated, driver)) as catalog:
        await catalog.count_models()
        with pytest.raises(InvalidTargetError, match="not a replica of"):
            await catalog.count_models()
    with pytest.raises(InvalidTargetError, match="PostgreSQL replica"):
        async with open_catalog(primary, reads="sqlite:////tmp/c.db"):
            pass


async def test_a_file_has_no_replica(tmp_path):
    """Only a catalog that is opened by the URL of a primary has one."""
    with pytest.raises(InvalidTargetError, match="URL of a primary"):
        async with open_catalog(tmp_path / "c.db", reads="postgresql://h/d"):
            pass


@on_a_server
def test_the_catalog_without_a_loop_has_replicas_too(servers, both, driver):
    """`model_catalog.sync` passes the argument on."""
    primary, replica = both
    with sync.open_catalog(primary, reads=replica) as catalog:
        for number in range(5):
            catalog.register_model(a_model(f"m{number}"))
            assert catalog.find_model(f"m{number}", "hf").reference == f"m{number}"

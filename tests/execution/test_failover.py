"""The primary is killed, its standby is promoted, and the same catalog goes on."""

import asyncio
import signal

import postgres
import pytest
from conftest import a_model

from model_catalog import CatalogBusyError, CatalogUnavailableError, open_catalog

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("driver", ["asyncpg", "psycopg"]),
]


@pytest.fixture
def servers():
    """A primary that commits only what its standby has applied, and that standby."""
    with (
        postgres.throwaway_cluster() as primary,
        postgres.throwaway_cluster(primary=primary) as standby,
    ):
        with postgres.connection(primary.url) as admin:
            admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
            admin.execute("ALTER SYSTEM SET synchronous_commit = 'remote_apply'")
            admin.execute("SELECT pg_reload_conf()")
        yield primary, standby


def target_of(driver, *clusters):
    hosts = ",".join(f"127.0.0.1:{cluster.url.port}" for cluster in clusters)
    return (
        f"postgresql+{driver}://postgres@{hosts}/postgres"
        "?target_session_attrs=read-write&connect_timeout=2"
    )


class Writer:
    """Registers models one after the other, and remembers how each call ended."""

    def __init__(self, catalog, name):
        self._catalog = catalog
        self._name = name
        self.acknowledged = []
        self.refused = []

    async def run(self, until):
        number = 0
        while not until.is_set():
            reference = f"{self._name}-{number}"
            number += 1
            is_registered = False
            try:
                await self._catalog.register_model(a_model(reference))
                is_registered = True
                if number % 3 == 0:
                    async with self._catalog.transaction() as inner:
                        await inner.tag_model(reference, "hf", "kept")
                found = await self._catalog.find_model(reference, "hf")
                assert found.tags == (("kept",) if number % 3 == 0 else ())
            except CatalogUnavailableError as error:
                if not (error.outcome_unknown or is_registered):
                    self.refused.append(reference)
                await asyncio.sleep(0.01)
            except CatalogBusyError:
                await asyncio.sleep(0.01)
            else:
                self.acknowledged.append(reference)


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_the_catalog_goes_on_with_the_promoted_standby(servers, driver):
    """Eight tasks write all the time. Nothing that was acknowledged is lost."""
    primary, standby = servers
    async with open_catalog(target_of(driver, primary, standby), timeout_s=5) as catalog:
        writers = [Writer(catalog, f"w{number}") for number in range(8)]
        end = asyncio.Event()

        def count():
            return sum(len(writer.acknowledged) for writer in writers)

        async with asyncio.TaskGroup() as tasks:
            for writer in writers:
                tasks.create_task(writer.run(end))
            await until(lambda: count() >= 100)
            primary.stop(signal.SIGKILL)
            await until(lambda: any(writer.refused for writer in writers))
            with postgres.connection(standby.url) as admin:
                admin.execute("SELECT pg_promote()")
            before = count()
            await until(lambda: count() >= before + 100)
            end.set()
        found = {model.reference async for model in catalog.iter_models()}

    acknowledged = {each for writer in writers for each in writer.acknowledged}
    assert len(acknowledged) >= 200
    assert acknowledged <= found
    assert not found & {each for writer in writers for each in writer.refused}


async def write_alone(catalog):
    await catalog.register_model(a_model("m"))


async def write_in_transaction(catalog):
    async with catalog.transaction() as inner:
        await inner.register_model(a_model("m"))


CANCEL = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


async def test_a_commit_that_no_standby_has_is_not_acknowledged(servers, driver):
    """The wait for the standby ends at the timeout of the call, or an administrator ends it."""
    primary, standby = servers
    async with (
        open_catalog(target_of(driver, primary), timeout_s=20) as patient,
        open_catalog(target_of(driver, primary), timeout_s=0.5) as hasty,
    ):
        await patient.register_model(a_model("before"))
        with postgres.replay_paused(standby.url), postgres.connection(primary.url) as admin:
            for write in (write_alone, write_in_transaction):
                with pytest.raises(CatalogUnavailableError) as late:
                    await write(hasty)
                assert late.value.outcome_unknown

                call = asyncio.create_task(write(patient))
                await until(lambda: admin.execute(CANCEL).fetchall())
                with pytest.raises(CatalogUnavailableError, match="standby") as cancelled:
                    await call
                assert cancelled.value.outcome_unknown
        await write_alone(patient)

"""A catalog on a streaming standby: reads go on, and writes say what the server is."""

import postgres
import pytest
from conftest import a_model

from model_catalog import CatalogReadOnlyError, open_catalog, upgrade
from model_catalog.downloads import use_model

on_a_server = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
OLD_REVISION = "model_catalog_0019"


@pytest.fixture(scope="module")
def servers():
    with (
        postgres.throwaway_cluster() as primary,
        postgres.throwaway_cluster(primary=primary) as standby,
    ):
        yield primary.url, standby.url


def target_of(url, driver):
    return url.set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)


@pytest.mark.slow
@on_a_server
async def test_a_standby_is_read_and_says_that_it_is_one(servers, driver):
    """The error of a write speaks neither of files nor of privileges."""
    primary, standby = servers
    async with open_catalog(target_of(primary, driver)) as catalog:
        await catalog.register_model(a_model("m"))
    postgres.wait_for_replay(primary, standby)

    async with open_catalog(target_of(standby, driver)) as catalog:
        assert (await catalog.find_model("m", "hf")).reference == "m"
        for write in (
            lambda: catalog.register_model(a_model("n")),
            lambda: catalog.tag_model("m", "hf", "chat"),
            lambda: catalog.record_use("m", "hf"),
            lambda: use_model(catalog, "hf:m").__aenter__(),
        ):
            with pytest.raises(CatalogReadOnlyError, match="the server is a standby") as caught:
                await write()
            assert "read-write" in str(caught.value)
            assert "file" not in str(caught.value)


@pytest.mark.slow
@on_a_server
async def test_an_older_schema_on_a_standby_is_not_migrated(servers, driver):
    """Opening says that the server cannot write, and nothing of files."""
    primary, standby = servers
    with postgres.database(primary, "old") as url:
        await upgrade(target_of(url, driver), OLD_REVISION)
        postgres.wait_for_replay(primary, standby)
        old = standby.set(database=url.database)

        with pytest.raises(CatalogReadOnlyError, match="standby") as caught:
            async with open_catalog(target_of(old, driver)):
                pass

    assert "file" not in str(caught.value)

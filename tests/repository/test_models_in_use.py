"""A model that a row of the host's own table refers to is not removed, and the error says where."""

import pytest
from conftest import a_model
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import ModelCatalog, ModelInUseError, TransactionError, open_catalog

RULES = ["", "ON DELETE RESTRICT", "DEFERRABLE INITIALLY DEFERRED"]


@pytest.fixture(params=RULES, ids=["default", "restrict", "deferred"])
def placements(database, request):
    """A host's table with a foreign key to the models."""
    database.run(
        "CREATE TABLE placements (host text NOT NULL,"
        f" model_id bigint NOT NULL REFERENCES models (id) {request.param})"
    )
    yield "placements"
    database.run("DROP TABLE placements")


def place(database):
    database.run("INSERT INTO placements SELECT 'gpu1', id FROM models WHERE reference = 'm'")


async def test_a_model_in_use_is_not_removed(database, placements):
    """
    The error names the table, and the model where the database checks at once. Afterwards other
    calls work, and the model can be removed once the row is gone.
    """
    async with open_catalog(database.target) as catalog:
        await catalog.register_models([a_model("m", version="v1"), a_model("n")])
        place(database)

        with pytest.raises(ModelInUseError) as caught:
            await catalog.remove_model("m", "hf")
        assert caught.value.model in ("hf:m", None)
        is_late = caught.value.model is None
        assert caught.value.table == (
            None if is_late and database.path is not None else "placements"
        )
        assert await catalog.remove_model("n", "hf")
        assert (await catalog.get_model("m", "hf")).version == "v1"
        database.run("DELETE FROM placements")
        assert await catalog.remove_model("m", "hf", "v1")


async def test_a_model_in_use_ends_a_transaction_but_not_a_savepoint(database, placements, request):
    """
    As for every refused statement: without a savepoint the whole transaction is rolled back.
    """
    if "deferred" in request.node.name:
        pytest.skip("a deferred constraint is checked by COMMIT")
    async with open_catalog(database.target) as catalog:
        await catalog.register_model(a_model("m"))
        place(database)
        async with catalog.transaction() as outer:
            await outer.register_model(a_model("kept"))
            with pytest.raises(ModelInUseError):
                async with outer.transaction() as inner:
                    await inner.remove_model("m", "hf")
        with pytest.raises(TransactionError):
            async with catalog.transaction() as outer:
                await outer.register_model(a_model("lost"))
                with pytest.raises(ModelInUseError):
                    await outer.remove_model("m", "hf")

        assert {model.reference for model in await catalog.list_models()} == {"m", "kept"}


async def test_a_model_in_use_is_not_removed_over_a_host_session(database, placements, request):
    """
    The same over a host's own sessions, where the host's SQLite connections enforce foreign keys.
    """
    if database.path is not None:
        pytest.skip("SQLite enforces foreign keys only on connections that ask for it")
    engine = create_async_engine(database.target_url)
    catalog = ModelCatalog(async_sessionmaker(engine))
    await catalog.register_model(a_model("m"))
    place(database)
    with pytest.raises(ModelInUseError, match="placements"):
        await catalog.remove_model("m", "hf")
    await engine.dispose()

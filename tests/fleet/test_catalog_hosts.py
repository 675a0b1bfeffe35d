"""The host of a catalog: how it is given, which names are valid, and where it is shown."""

import pytest
from conftest import a_model
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from model_catalog import InvalidModelError, Model, ModelCatalog, open_catalog, sync

BAD_NAMES = {
    "blank": " ",
    "a space": "gpu 07",
    "a line break": "gpu-07\n",
    "a slash": "rack/gpu-07",
    "an at sign": "me@gpu-07",
    "all hosts": "*",
    "too long": "x" * 97,
    "not a text": 7,
}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
async def test_an_invalid_name_of_a_host_is_refused(sqlite_file, name):
    """The error names the field, and no file is created."""
    new = sqlite_file.with_name("new.db")

    with pytest.raises(InvalidModelError) as caught:
        async with open_catalog(new, host=name):
            pass

    assert caught.value.field == "host"
    assert not new.exists()


async def test_the_longest_name_and_other_alphabets_are_valid(sqlite_file):
    """96 bytes of any alphabet are a name, and models are found under it."""
    for name in ("x" * 96, "機-07.lab"):
        async with open_catalog(sqlite_file, host=name) as catalog:
            await catalog.register_model(a_model("m"))

            assert catalog.host == (await catalog.get_model("m", "hf")).host == name


async def test_the_variable_gives_the_host_of_the_default_target(database, monkeypatch):
    """
    `MODEL_CATALOG_HOST` belongs to `MODEL_CATALOG_URL`. An empty variable is no host, and `host=`
    has priority.
    """
    monkeypatch.setenv("MODEL_CATALOG_URL", str(database.target))
    found = []
    for variable, options in (("gpu-07", {}), ("", {}), ("gpu-07", {"host": "gpu-08"})):
        monkeypatch.setenv("MODEL_CATALOG_HOST", variable)
        async with open_catalog(**options) as catalog:
            found.append(catalog.host)
    async with open_catalog(database.target) as catalog:
        found.append(catalog.host)

    assert found == ["gpu-07", "", "gpu-08", ""]


async def test_the_error_of_an_invalid_variable_names_the_variable(monkeypatch):
    """The caller has not passed a host, and would not find it in the program."""
    monkeypatch.setenv("MODEL_CATALOG_HOST", "gpu 07")
    with pytest.raises(InvalidModelError, match="MODEL_CATALOG_HOST 'gpu 07'"):
        async with open_catalog():
            pass


async def test_a_model_says_its_host_in_every_form(database):
    """The constructor does not take it: the catalog that records a model sets it."""
    async with open_catalog(database.target, host="gpu-07") as catalog:
        model = await catalog.register_model(a_model("m"))
        again = await catalog.register_model(a_model("m"))
        await catalog.register_models([a_model("n")])
        rows = await catalog.list_rows()

    assert model.host == again.host == model.to_dict()["host"] == "gpu-07"
    assert {row.host for row in rows} == {"gpu-07"}
    with pytest.raises(TypeError, match="host"):
        Model(reference="m", provider="hf", local_path="/m", host="gpu-08")


async def test_a_model_of_another_host_is_recorded_for_the_own_host(database):
    """What is registered always gets the catalog's host, also a model that was read elsewhere."""
    async with (
        open_catalog(database.target, host="a") as one,
        open_catalog(database.target, host="b") as other,
    ):
        model = await one.register_model(a_model("m", license="mit"))

        copied = await other.register_model(model)

        assert (copied.host, copied.id != model.id) == ("b", True)
        assert await other.find_model_by_id(model.id) is None
        assert (await one.get_model("m", "hf")).host == "a"


async def test_a_catalog_over_one_session_works_on_its_host(database):
    """Its calls are part of the session's transaction, and the session's own statements see all."""
    engine = create_async_engine(database.target_url)
    async with AsyncSession(engine) as session, session.begin():
        for host in (None, "a", "b"):
            catalog = ModelCatalog(session, host=host)
            await catalog.register_model(a_model("m"))
            async with catalog.transaction() as inner:
                await inner.register_model(a_model("n"))
                assert inner.host == (host or "")
            assert await catalog.count_models() == 2
    await engine.dispose()

    assert database.run("SELECT host, count(*) FROM models GROUP BY host ORDER BY host") == [
        ("", 2),
        ("a", 2),
        ("b", 2),
    ]


async def test_a_session_can_give_a_model_to_another_host(database):
    """Its aliases go with it. A flush validates the name of the host."""
    async with open_catalog(database.target) as catalog:
        await catalog.register_model(a_model("m"))
        await catalog.set_alias("m", "hf", "stable")
    engine = create_async_engine(database.target_url)
    async with AsyncSession(engine) as session:
        model = (await session.scalars(select(Model))).one()
        model.host = "gpu-07"
        await session.commit()
        model = (await session.scalars(select(Model))).one()
        model.host = "a b"
        with pytest.raises(InvalidModelError, match="a b"):
            await session.flush()
    await engine.dispose()

    async with open_catalog(database.target, host="gpu-07") as catalog:
        assert (await catalog.get_model("m", "hf", "stable")).host == "gpu-07"


async def test_a_host_and_a_schema_work_together(empty):
    """The one executor sets both for each call."""
    if empty.path is not None:
        pytest.skip("SQLite has no schemas")
    async with open_catalog(empty.target, schema="models", host="a") as catalog:
        await catalog.register_model(a_model("m"))
    engine = create_async_engine(empty.target_url)
    sessions = async_sessionmaker(engine)
    catalog = ModelCatalog(sessions, schema="models", host="b")

    await catalog.register_model(a_model("m"))
    counts = [
        await ModelCatalog(sessions, schema="models", **options).count_models()
        for options in ({"host": "b"}, {"host": "a"}, {})
    ]
    await engine.dispose()

    assert counts == [1, 1, 0]
    assert empty.run("SELECT host FROM models.models ORDER BY host") == [("a",), ("b",)]


def test_a_catalog_without_an_event_loop_has_a_host(sqlite_file):
    """`sync.open_catalog` passes the option on, and has the property."""
    with sync.open_catalog(sqlite_file, host="gpu-07") as catalog:
        catalog.register_model(a_model("m"))

        assert (catalog.host, catalog.get_model("m", "hf").host) == ("gpu-07", "gpu-07")

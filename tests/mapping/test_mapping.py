"""The mapping as a plain object: what it takes, and what SQLAlchemy makes of it."""

import copy
import dataclasses
import pickle

import pytest
from conftest import a_model
from sqlalchemy import inspect
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import Model, ModelCatalog
from model_catalog.domain.fields import INPUT_FIELDS, REQUIRED_FIELDS


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "local_path, provider, reference"),
        ({"reference": "m", "provider": "hf"}, "local_path"),
        ({"reference": "m", "provider": "hf", "local_path": "/m", "refrence": "m"}, "refrence"),
        ({"reference": "m", "provider": "hf", "local_path": "/m", "id": 1}, "id"),
        ({"reference": "m", "provider": "hf", "local_path": "/m", "use_count": 1}, "use_count"),
    ],
)
def test_what_a_model_does_not_take_is_named(given, named):
    """
    A field that is missing, that there is not, or that only the catalog sets, as Python says it.
    """
    with pytest.raises(TypeError, match=rf"keyword argument: {named}$"):
        Model(**given)


def test_type_checkers_and_the_catalog_know_the_same_fields():
    """
    What they see is a dataclass, and what it takes are its fields that have init.
    """
    taken = {field.name for field in dataclasses.fields(Model) if field.init}
    needed = {
        field.name
        for field in dataclasses.fields(Model)
        if field.init and field.default is dataclasses.MISSING
    }

    assert (taken, needed) == (set(INPUT_FIELDS), set(REQUIRED_FIELDS))


def test_nothing_is_taken_by_position():
    """
    A reference and a provider look too much alike.
    """
    with pytest.raises(TypeError, match="positional"):
        Model("m", "hf", "/m")


def test_a_field_that_was_given_is_one_that_was_set():
    """
    To SQLAlchemy it makes no difference whether a field came with the constructor or afterwards.
    """
    given = a_model(size_bytes=7, license=None)
    set_later = a_model()
    set_later.size_bytes = 7
    set_later.license = None

    assert histories(given) == histories(set_later)
    assert vars(given).keys() == vars(set_later).keys()
    assert inspect(given).modified == inspect(set_later).modified
    assert inspect(given).attrs.size_bytes.history.added == [7]
    assert not inspect(given).attrs.format.history.has_changes()


def histories(model):
    return {attribute.key: attribute.history for attribute in inspect(model).attrs}


@pytest.mark.parametrize("copied", [copy.copy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_what_the_model_has(copied):
    """
    Also of one that no catalog has seen.
    """
    model = a_model(size_bytes=7)

    assert copied(model).size_bytes == 7
    assert dataclasses.replace(model, size_bytes=8).size_bytes == 8


async def test_a_host_may_add_one_to_its_session(database):
    """
    A model is an ordinary object of the ORM: added, flushed, changed, and found by the catalog.
    """
    engine = create_async_engine(database.target_url)
    sessions = async_sessionmaker(engine)
    async with sessions() as session, session.begin():
        model = a_model("m", size_bytes=7)
        session.add(model)
        await session.flush()
        model.size_bytes = 8

    found = await ModelCatalog(sessions).find_model("m", "hf")
    await engine.dispose()

    assert found is not None
    assert found.size_bytes == 8


async def test_a_copy_of_what_was_read_has_its_tags(catalog):
    """
    What is no column goes along; and from another process it can be registered again.
    """
    await catalog.register_model(a_model("m", claimed_license="mit"))
    await catalog.tag_model("m", "hf", "Chat", "b")
    original = await catalog.get_model("m", "hf")
    model = pickle.loads(pickle.dumps(original))

    assert copy.copy(original).tags == model.tags == ("b", "Chat")
    assert inspect(model).detached

    model.size_bytes = 7
    again = await catalog.register_model(model)

    assert (again.id, again.size_bytes, again.tags) == (model.id, 7, ("b", "Chat"))


async def test_a_host_may_merge_what_was_read_into_its_session(catalog, database):
    """
    It is written as the row that it is, and what the session gives back is expired like any other.
    """
    await catalog.register_model(a_model("m", size_bytes=7))
    model = await catalog.get_model("m", "hf")
    model.size_bytes = 8
    engine = create_async_engine(database.target_url)
    async with async_sessionmaker(engine)() as session, session.begin():
        merged = await session.merge(model)
        assert merged is not model
        assert merged.id == model.id
    await engine.dispose()

    assert (await catalog.get_model("m", "hf")).size_bytes == 8

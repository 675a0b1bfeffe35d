"""`Model` as a plain object: its constructor, its copies, and its use in a host's session."""

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
    ("keywords", "named"),
    [
        ({}, "local_path, provider, reference"),
        ({"reference": "m", "provider": "hf"}, "local_path"),
        ({"reference": "m", "provider": "hf", "local_path": "/m", "refrence": "m"}, "refrence"),
        ({"reference": "m", "provider": "hf", "local_path": "/m", "id": 1}, "id"),
        ({"reference": "m", "provider": "hf", "local_path": "/m", "use_count": 1}, "use_count"),
    ],
    ids=["no fields", "no path", "misspelled", "row id", "counter"],
)
def test_constructor_names_missing_and_unknown_keywords(keywords, named):
    """
    The TypeError names a missing field, an unknown field, or a field that only the catalog sets.
    """
    with pytest.raises(TypeError, match=rf"keyword argument: {named}$"):
        Model(**keywords)


def test_type_checkers_see_the_fields_of_the_constructor():
    """
    Type checkers see a dataclass; its `init` fields are the keywords of the constructor.
    """
    accepted = {field.name for field in dataclasses.fields(Model) if field.init}
    required = {
        field.name
        for field in dataclasses.fields(Model)
        if field.init and field.default is dataclasses.MISSING
    }

    assert (accepted, required) == (set(INPUT_FIELDS), set(REQUIRED_FIELDS))


def test_constructor_accepts_no_positional_arguments():
    """
    A reference and a provider could be swapped by mistake.
    """
    with pytest.raises(TypeError, match="positional"):
        Model("m", "hf", "/m")


def test_keyword_has_the_same_state_as_a_later_assignment():
    """
    SQLAlchemy's attribute histories do not depend on whether a field was set in the constructor.
    """
    given = a_model(size_bytes=7, license=None)
    set_later = a_model()
    set_later.size_bytes = 7
    set_later.license = None

    assert histories(given) == histories(set_later)
    assert vars(given).keys() == vars(set_later).keys()
    assert inspect(given).modified == inspect(set_later).modified
    assert inspect(given).attrs.size_bytes.history.added == [7]
    assert not inspect(given).attrs.user_format.history.has_changes()


def histories(model):
    return {attribute.key: attribute.history for attribute in inspect(model).attrs}


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["copy", "pickle"],
)
def test_copy_of_a_new_model_has_its_fields(duplicate):
    """
    A model that was never registered can be copied, pickled and replaced.
    """
    model = a_model(size_bytes=7)

    assert duplicate(model).size_bytes == 7
    assert dataclasses.replace(model, size_bytes=8).size_bytes == 8


async def test_host_can_add_a_model_to_its_session(database):
    """
    A model works as an ORM object: it is added, flushed and changed, and the catalog finds it.
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


async def test_copy_of_a_read_model_has_its_tags(catalog):
    """
    Copies and pickles keep the tags, and an unpickled model can be registered again.
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


async def test_host_can_merge_a_read_model_into_its_session(catalog, database):
    """
    The merge updates the model's own row and returns another object of the session.
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

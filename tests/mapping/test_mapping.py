"""`Model` as a plain object: its constructor, its copies, and its use in a host's session."""

import asyncio
import copy
import dataclasses
import json
import pickle

import pytest
from conftest import a_model, moment
from sqlalchemy import inspect
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm.exc import DetachedInstanceError

from model_catalog import Model, ModelCatalog, ModelRow
from model_catalog.cli import main
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


PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
DUPLICATES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {protocol}": lambda model, protocol=protocol: pickle.loads(
            pickle.dumps(model, protocol)
        )
        for protocol in PROTOCOLS
    },
}


@pytest.mark.parametrize("duplicate", DUPLICATES.values(), ids=DUPLICATES)
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


@pytest.fixture
async def tagged(catalog):
    """A model that was read, with tags and a license that only its file states."""
    await catalog.register_model(a_model("m", claimed_license="mit"))
    await catalog.tag_model("m", "hf", "Chat", "b")
    return await catalog.get_model("m", "hf")


async def test_copy_of_a_read_model_has_its_tags(catalog, tagged):
    """
    Copies and pickles keep the tags, and each can be changed and registered again.
    """
    for size, duplicate in enumerate(DUPLICATES.values()):
        model = duplicate(await catalog.get_model("m", "hf"))

        assert (model.tags, model.license) == (("b", "Chat"), "mit")
        assert inspect(model).detached

        model.size_bytes = size
        again = await catalog.register_model(model)

        assert (again.id, again.size_bytes, again.tags) == (model.id, size, ("b", "Chat"))
        assert again.user_license is None


async def test_a_copy_has_a_state_of_its_own(tagged):
    """
    A change of the copy is no change of the original, and none of the copy's other fields.
    """
    model = copy.copy(tagged)
    model.size_bytes = 7

    assert inspect(model).attrs.size_bytes.history.has_changes()
    assert not inspect(tagged).modified
    assert tagged.size_bytes is None


async def test_a_model_of_a_session_can_be_copied(database, tagged):
    """
    The copy of a loaded model is detached. The copy of an expired one is as unreadable as a
    detached model of SQLAlchemy.
    """
    engine = create_async_engine(database.target_url)
    async with async_sessionmaker(engine)() as session:
        model = await session.get(Model, tagged.id)
        copies = [duplicate(model) for duplicate in DUPLICATES.values()]
        session.expire(model)
        unloaded = [duplicate(model) for duplicate in DUPLICATES.values()]
        assert "reference" not in repr(model)
    await engine.dispose()

    for duplicate in copies:
        assert inspect(duplicate).detached
        assert dataclasses.asdict(duplicate) == dataclasses.asdict(tagged)
    for duplicate in unloaded:
        with pytest.raises(DetachedInstanceError):
            _ = duplicate.tags


async def test_the_functions_of_dataclasses_take_a_read_model(tagged):
    """
    `asdict`, `astuple` and `fields` have every field of ModelRow, and the effective values.
    """
    values = dataclasses.asdict(tagged)

    assert tuple(values) == ModelRow._fields
    assert tuple(field.name for field in dataclasses.fields(Model)) == ModelRow._fields
    assert dataclasses.astuple(tagged) == tuple(values.values())
    assert (values["license"], values["tags"]) == ("mit", ("b", "Chat"))
    assert dataclasses.asdict(a_model())["tags"] == ()


async def test_replace_leaves_claims_as_they_are(catalog, tagged):
    """
    A replaced field is set; a value that only the file states does not become the user's own.
    """
    again = await catalog.register_model(dataclasses.replace(tagged, size_bytes=7))
    other = await catalog.register_model(dataclasses.replace(tagged, reference="n", format="gguf"))
    own = await catalog.register_model(dataclasses.replace(tagged, license="apache-2.0"))
    cleared = await catalog.register_model(dataclasses.replace(own, license=None))

    assert (again.size_bytes, again.user_license, again.license) == (7, None, "mit")
    assert (other.user_format, other.user_license, other.license) == ("gguf", None, "mit")
    assert (own.user_license, own.license) == ("apache-2.0", "apache-2.0")
    assert (cleared.user_license, cleared.license) == (None, "mit")


async def test_a_value_of_the_constructor_is_the_users_own(catalog):
    """
    Also if it equals the claim that is given with it.
    """
    given = a_model("m", license="mit", claimed_license="mit")

    assert (await catalog.register_model(given)).user_license == "mit"


async def test_a_dict_of_a_model_is_what_the_command_line_prints(on_sqlite, capsys):
    """
    `to_dict` has the same fields, in the same order and form.
    """
    await on_sqlite.register_model(a_model("m", downloaded_at=moment(1)))
    model = await on_sqlite.tag_model("m", "hf", "Chat", "b")
    show = ["show", "hf:m", "--json", "--db", str(on_sqlite.database_files[0])]
    assert await asyncio.to_thread(main, show) == 0

    printed = json.loads(capsys.readouterr().out)

    assert model.to_dict() == printed
    assert list(model.to_dict()) == list(printed)
    assert printed["tags"] == ["b", "Chat"]


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

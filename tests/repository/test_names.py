"""The ways to name a model in a call: one argument, or reference, provider and version."""

import pytest
from conftest import a_model
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import InvalidModelError, Model, ModelCatalog, ModelNotFoundError, ModelRef
from model_catalog.upkeep import accept_model, register_path, relink_model, verify_signature

ONE_ARGUMENT = {
    "text": "hf:org/name@v1",
    "ref": ModelRef("hf", "org/name", "v1"),
    "model": a_model("org/name", version="v1"),
}

CALLS = {
    "find_model": lambda catalog, *name: catalog.find_model(*name),
    "get_model": lambda catalog, *name: catalog.get_model(*name),
    "update_model": lambda catalog, *name: catalog.update_model(*name, license="mit"),
    "pin_model": lambda catalog, *name: catalog.pin_model(*name, reason="kept"),
    "unpin_model": lambda catalog, *name: catalog.unpin_model(*name),
    "rename_model": lambda catalog, *name: catalog.rename_model(*name, new_version="v1"),
    "tag_model": lambda catalog, *name: catalog.tag_model(*name, tags=["chat"]),
    "untag_model": lambda catalog, *name: catalog.untag_model(*name, tags=["chat"]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_one_argument_means_the_same_as_three(on_sqlite, call):
    """
    A text, a ModelRef and a Model name the model that reference, provider and version name.
    """
    await on_sqlite.register_model(a_model("org/name", version="v2"))
    registered = await on_sqlite.register_model(a_model("org/name", version="v1"))

    found = [(await call(on_sqlite, name)).id for name in ONE_ARGUMENT.values()]

    assert {*found, (await call(on_sqlite, "org/name", "hf", "v1")).id} == {registered.id}


async def test_calls_that_return_no_model_take_one_argument(catalog):
    """
    Files, uses, aliases and removals name their model in the same ways.
    """
    for version in ("v1", "v2"):
        await catalog.register_model(a_model("m", version=version))
    (row,) = await catalog.list_rows(version="v1")

    assert await catalog.list_files("hf:m@v1") == []
    await catalog.record_use(row, count=2)
    assert (await catalog.set_alias("hf:m@v1", alias="stable")).version == "v1"
    assert (await catalog.set_alias(row, "main")).version == "v1"
    assert [alias.alias for alias in await catalog.list_aliases(row)] == ["main", "stable"]
    assert await catalog.list_aliases(ModelRef("hf", "m", "v2")) == []
    assert await catalog.remove_alias("hf:m", alias="stable")
    assert await catalog.remove_alias(row, "main")
    assert (await catalog.get_model("hf:m@v1")).use_count == 2
    assert await catalog.remove_model(row)
    assert [model.version for model in await catalog.list_models()] == ["v2"]


async def test_an_alias_and_a_finding_name_their_model(on_sqlite):
    """
    Every object with a `ref` names the model of this ref.
    """
    model = await on_sqlite.register_model(a_model("m", version="v1"))
    alias = await on_sqlite.set_alias(model, "stable")

    assert (await on_sqlite.get_model(alias)).version == "v1"


async def test_tags_may_follow_an_object(on_sqlite):
    """
    After a ModelRef or a Model all texts are tags; after a text they are its provider and tags.
    """
    model = await on_sqlite.register_model(a_model("llama3:8b", provider="ollama"))

    tagged = await on_sqlite.tag_model(model, "chat", "small", tags=["old"])
    untagged = await on_sqlite.untag_model(model.ref, "old")
    positional = await on_sqlite.tag_model("llama3:8b", "ollama", "de")

    assert tagged.tags == ("chat", "old", "small")
    assert untagged.tags == ("chat", "small")
    assert positional.tags == ("chat", "de", "small")


async def test_a_new_model_without_a_version_names_no_other_version(catalog):
    """
    Removing by a Model that was never read removes only the model without a version.
    """
    new = a_model("m")
    await catalog.register_models([new, a_model("m", version="v1")])

    assert await catalog.remove_model(new)

    assert [model.version for model in await catalog.list_models()] == ["v1"]


WRONG_NAMES = {
    "swapped with a slash": (("hf", "org/name"), {}, "provider", "org/name"),
    "swapped with a colon": (("ollama", "llama3:8b"), {}, "provider", "llama3:8b"),
    "reference alone": (("org/name",), {}, "provider", None),
    "reference and version": (("org/name",), {"version": "v1"}, "provider", None),
    "nothing": ((None,), {}, "reference", None),
    "number": ((3,), {}, "reference", 3),
    "text and version": (("hf:m",), {"version": "v1"}, "version", "v1"),
    "ref and provider": ((ModelRef("hf", "m"), "hf"), {}, "provider", "hf"),
    "ref and version": ((ModelRef("hf", "m"),), {"version": "v1"}, "version", "v1"),
    "blank provider": ((":m",), {}, "provider", ""),
}


@pytest.mark.parametrize(
    ("arguments", "keywords", "field", "value"), WRONG_NAMES.values(), ids=WRONG_NAMES
)
async def test_a_wrong_name_is_refused_in_words(on_sqlite, arguments, keywords, field, value):
    """
    The error has the field and the value, and says how to name a model.
    """
    with pytest.raises(InvalidModelError, match=r"give|write") as caught:
        await on_sqlite.find_model(*arguments, **keywords)

    assert (caught.value.field, caught.value.value) == (field, value)


async def test_a_provider_with_a_slash_can_be_named(catalog):
    """
    The provider of a ModelRef is not taken for a reference, and neither is one of two slashes.
    """
    await catalog.register_model(a_model("m", provider="hub/mirror"))
    await catalog.register_model(a_model("org/name", provider="hub/mirror"))

    assert await catalog.find_model(ModelRef("hub/mirror", "m")) is not None
    assert await catalog.find_model("hub/mirror:m") is not None
    assert await catalog.find_model("org/name", "hub/mirror") is not None


MISSING = {
    "tags as a text": lambda catalog: catalog.tag_model("hf:m", tags="chat"),
    "alias": lambda catalog: catalog.set_alias("hf:m", "stable"),
    "alias twice": lambda catalog: catalog.set_alias(ModelRef("hf", "m"), "a", "b"),
    "alias to remove": lambda catalog: catalog.remove_alias("hf:m"),
}


@pytest.mark.parametrize("call", MISSING.values(), ids=MISSING)
async def test_other_arguments_are_refused_in_words(on_sqlite, call):
    """
    A text is followed by keywords, and an alias is always given.
    """
    with pytest.raises(InvalidModelError, match="give"):
        await call(on_sqlite)


async def test_upkeep_functions_take_one_argument(on_sqlite, tmp_path):
    """
    Registration, acceptance and relinking name a model as the methods of the catalog do.
    """
    path, moved = tmp_path / "m.bin", tmp_path / "moved.bin"
    path.write_bytes(b"weights")

    registered = (await register_path(on_sqlite, path, "local:m@v1", digest=True)).model
    assert registered.ref == ModelRef("local", "m", "v1")
    assert (await accept_model(on_sqlite, "local:m")).model.id == registered.id
    path.rename(moved)
    assert (await relink_model(on_sqlite, registered, path=moved)).model.local_path == str(moved)
    with pytest.raises(ModelNotFoundError):
        await verify_signature(on_sqlite, ModelRef("local", "gone"), key=b"")


async def test_an_expired_model_of_a_session_is_refused(sqlite_file):
    """
    Reading its name would need a database access, and no error of SQLAlchemy leaves the call.
    """
    engine = create_async_engine(f"sqlite+aiosqlite:///{sqlite_file}")
    sessions = async_sessionmaker(engine)
    async with sessions() as session:
        model = Model(reference="m", provider="hf", local_path="/m")
        session.add(model)
        await session.commit()

    with pytest.raises(InvalidModelError, match="refresh"):
        await ModelCatalog(sessions).find_model(model)

    await engine.dispose()


async def test_a_version_can_be_a_long_path_with_an_at(catalog, database):
    """
    It has at most 512 characters, and the key at most 2,560 bytes, which every index holds.
    """
    version = f"{'a' * 40}/{'v@1%40/' * 67}.gguf"[:512]
    await catalog.register_model(a_model("m", version=version))
    await catalog.register_models([a_model("n", version=version)])

    ref = str(ModelRef("hf", "m", version))
    assert (await catalog.get_model(ref)).version == version
    assert await catalog.count_models(version=version) == 2
    assert (await catalog.tag_model(ref, tags=["x"])).tags == ("x",)

    # No compression makes it shorter.
    texts = "".join(chr(0x20000 + number * 7919 % 40000) for number in range(1200))
    longest = a_model(texts[:512], provider=texts[512:576], version=texts[576:640])
    await catalog.register_model(longest)
    too_long = a_model(texts[:512], provider=texts[512:576], version=texts[576:641])
    for register in (
        catalog.register_model(too_long),
        catalog.register_models([too_long]),
        catalog.rename_model(longest, new_version=texts[576:641]),
    ):
        with pytest.raises(InvalidModelError, match="2564 bytes") as caught:
            await register
        assert caught.value.field == "version"
    with pytest.raises(InvalidModelError, match="513 characters"):
        await catalog.register_model(a_model("m", version="v" * 513))

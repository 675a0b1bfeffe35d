"""Renaming a model keeps everything but its name."""

import asyncio

import pytest
from conftest import a_model

from model_catalog import FileRecord, InvalidModelError, ModelNotFoundError, ModelRef

FILE = FileRecord("m.gguf", 1, digest="sha256:" + 64 * "0")


async def test_a_renamed_model_keeps_all_but_its_name(catalog):
    """
    The id, tags, aliases, pin, files and uses stay, and search finds the new reference.
    """
    before = await catalog.register_model(a_model("old/Name", version="v1"), [FILE])
    await catalog.tag_model(before, "chat")
    await catalog.pin_model(before, reason="kept")
    await catalog.set_alias(before, "stable")
    await catalog.record_use(before, count=3)
    before = await catalog.get_model(before)

    renamed = await catalog.rename_model(before, new_reference="new/Näme", new_version="v2")

    names = {"reference", "version"}
    kept = {name for name in vars(before) if not name.startswith("_")} - names
    assert {name: getattr(renamed, name) for name in kept} == {
        name: getattr(before, name) for name in kept
    }
    assert (renamed.ref, renamed.tags) == (ModelRef("hf", "new/Näme", "v2"), ("chat",))
    assert await catalog.find_model(before) is None
    assert await catalog.list_files(renamed) == [FILE]
    assert (await catalog.get_model("new/Näme", "hf", "stable")).id == before.id
    assert await catalog.list_aliases("old/Name") == []
    assert [model.id for model in await catalog.list_models(search="NÄME")] == [before.id]


async def test_only_the_named_version_is_renamed(catalog):
    """
    Other versions of the reference keep it. The version None is the one downloaded last.
    """
    await catalog.register_model(a_model("m", version="v1"))
    newest = await catalog.register_model(a_model("m", version="v2"))

    renamed = await catalog.rename_model("m", "hf", new_reference="n")

    assert (renamed.id, renamed.ref) == (newest.id, ModelRef("hf", "n", "v2"))
    assert {model.ref for model in await catalog.list_models()} == {
        ModelRef("hf", "m", "v1"),
        ModelRef("hf", "n", "v2"),
    }


async def test_a_taken_name_is_refused(catalog):
    """
    The name of another model and half of a change change nothing; the model's own name is free.
    """
    model = await catalog.register_model(a_model("m", version="v1"))
    await catalog.register_model(a_model("n", version="v1"))

    with pytest.raises(InvalidModelError, match="'hf:n@v1' is taken"):
        await catalog.rename_model(model, new_reference="n")

    assert await catalog.rename_model(model, new_version="v1") is not None
    assert (await catalog.get_model(model)).id == model.id


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({}, "new_reference"),
        ({"new_reference": " "}, "new_reference"),
        ({"new_version": "a" * 513}, "new_version"),
        ({"new_reference": 3}, "new_reference"),
    ],
    ids=["nothing", "blank", "long", "number"],
)
async def test_an_invalid_new_name_is_refused(on_sqlite, changes, field):
    """
    A new name follows the rules of registration.
    """
    await on_sqlite.register_model(a_model("m"))

    with pytest.raises(InvalidModelError) as caught:
        await on_sqlite.rename_model("m", "hf", **changes)

    assert caught.value.field == field


async def test_renaming_an_unknown_model_raises_model_not_found(on_sqlite):
    """
    As with every method that changes a model.
    """
    with pytest.raises(ModelNotFoundError):
        await on_sqlite.rename_model("m", "hf", new_version="v2")


async def test_no_alias_gets_another_meaning(catalog):
    """
    A rename is refused if an alias would be hidden by a version or name two models.
    """
    own = await catalog.register_model(a_model("m", version="v1"))
    other = await catalog.register_model(a_model("m", version="other"))
    elsewhere = await catalog.register_model(a_model("n", version="main"))

    await catalog.set_alias(other, "v2")
    with pytest.raises(InvalidModelError, match="alias 'v2' would mean another"):
        await catalog.rename_model(own, new_version="v2")
    await catalog.set_alias(elsewhere, "stable")
    await catalog.set_alias(own, "stable")
    with pytest.raises(InvalidModelError, match="alias 'stable' would mean another"):
        await catalog.rename_model(own, new_reference="n")
    await catalog.remove_alias(own, "stable")
    await catalog.set_alias(own, "main")
    with pytest.raises(InvalidModelError, match="alias 'main' would mean another"):
        await catalog.rename_model(own, new_reference="n")

    assert (await catalog.get_model(own)).id == own.id
    assert (await catalog.get_model("hf:m@main")).id == own.id


async def test_the_alias_of_the_model_itself_may_equal_its_new_version(catalog):
    """
    Both mean the same model before and after, and the alias stays.
    """
    model = await catalog.register_model(a_model("m", version="v1"))
    await catalog.set_alias(model, "v2")

    renamed = await catalog.rename_model(model, new_version="v2")
    again = await catalog.rename_model(renamed, new_version="v3")

    assert (await catalog.get_model("hf:m@v2")).id == again.id


async def test_of_two_models_renamed_at_once_one_gets_the_name(catalog):
    """
    The other one gets the error of a taken name, in a batch as well as alone.
    """
    models = [await catalog.register_model(a_model(f"m{number}")) for number in range(5)]

    results = await asyncio.gather(
        *(catalog.rename_model(model, new_reference="taken") for model in models),
        return_exceptions=True,
    )

    errors = [result for result in results if isinstance(result, Exception)]
    assert len(errors) == 4
    assert {type(error) for error in errors} == {InvalidModelError}
    assert len(await catalog.list_models(reference="taken")) == 1


async def test_a_model_of_a_store_keeps_its_name(catalog, database):
    """
    The next scan would record the model under its old name again.
    """
    model = await catalog.register_model(a_model("m"))
    database.run("UPDATE models SET store = 'ollama', store_root = '/models'")

    with pytest.raises(InvalidModelError, match="alias") as caught:
        await catalog.rename_model(model, new_version="v2")

    assert caught.value.field == "store"

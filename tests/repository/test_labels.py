"""Tags, pins and aliases of models."""

import asyncio

import pytest
from conftest import a_model, moment
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import (
    Alias,
    InvalidModelError,
    ModelCatalog,
    ModelNotFoundError,
    Sort,
    TagCount,
    prepare_engine,
)
from model_catalog.repository.statements.row_conversion import as_text, select_rows


async def test_tags_keep_their_spelling(catalog):
    """
    Case and script are preserved, and a tag that differs only in case is the same tag.
    """
    await catalog.register_model(a_model("m"))

    await catalog.tag_model("m", "hf", "Chat", "für Ärzte", "模型")
    model = await catalog.tag_model("m", "hf", "CHAT", "FÜR ÄRZTE", "small")

    assert model.tags == ("Chat", "für Ärzte", "small", "模型")
    assert (await catalog.get_model("m", "hf")).tags == model.tags
    assert (await catalog.list_models())[0].tags == model.tags


@pytest.mark.parametrize("backend", ["asyncpg"])
@pytest.mark.parametrize("tags", [["Chat"], []], ids=["some tags", "no tags"])
async def test_a_server_without_tags_does_not_look_for_those_of_each_model(catalog, database, tags):
    """
    A list looks once whether any model has tags.
    """
    await catalog.register_models([a_model("a"), a_model("b")])
    await catalog.tag_model("b", "hf", *tags)

    listed = await catalog.list_rows(sort=Sort.REFERENCE)
    plan = database.run(f"EXPLAIN ANALYZE {as_text(select_rows, 'postgresql', None)}")

    assert [row.tags for row in listed] == [(), tuple(tags)]
    assert ("never executed" in f"{plan}") is (not tags), plan


async def test_of_two_spellings_in_one_call_the_first_is_kept(catalog):
    """
    One call has the effect of a call for each tag in order.
    """
    await catalog.register_model(a_model("m"))

    assert (await catalog.tag_model("m", "hf", "Chat", "chat")).tags == ("Chat",)


async def test_untag_model_ignores_case(catalog):
    """
    untag_model removes the tags that the model has and ignores others.
    """
    await catalog.register_model(a_model("m"))
    await catalog.tag_model("m", "hf", "Chat", "Straße", "keep")

    model = await catalog.untag_model("m", "hf", "cHAT", "STRASSE", "never there")

    assert model.tags == ("keep",)
    assert (await catalog.untag_model("m", "hf")).tags == ("keep",)


async def test_tags_belong_to_one_version(catalog):
    """
    A tag is added to the version that is given by name or by alias, or to the newest.
    """
    for number, version in enumerate(("v1", "v2")):
        await catalog.register_model(a_model("m", version=version, downloaded_at=moment(number)))
    await catalog.set_alias("m", "hf", "stable", "v1")

    await catalog.tag_model("m", "hf", "old", version="stable")
    await catalog.tag_model("m", "hf", "new")

    assert {model.version: model.tags for model in await catalog.list_models()} == {
        "v1": ("old",),
        "v2": ("new",),
    }


async def test_list_tags_counts_the_models_of_each_tag(catalog):
    """
    The count is over all spellings, under the most frequent one, sorted by name.
    """
    await catalog.register_models(a_model(f"m{n}", provider=p) for n, p in enumerate("aab"))
    await catalog.tag_model("m0", "a", "chat", "zeta")
    await catalog.tag_model("m1", "a", "Chat")
    await catalog.tag_model("m2", "b", "Chat", "Äpfel")

    assert await catalog.list_tags() == [
        TagCount("Chat", 3),
        TagCount("zeta", 1),
        TagCount("Äpfel", 1),
    ]
    assert await catalog.list_tags(provider="b") == [TagCount("Chat", 1), TagCount("Äpfel", 1)]


@pytest.mark.parametrize("tag", ["", "  ", "a\nb", "a" * 129, "\ud800", 3, None], ids=repr)
@pytest.mark.slow_with("asyncpg")
async def test_an_invalid_tag_is_refused(catalog, tag):
    """
    The error names the invalid tag, and the valid tags of the call are not added.
    """
    await catalog.register_model(a_model("m"))

    with pytest.raises(InvalidModelError) as caught:
        await catalog.tag_model("m", "hf", "good", tag)

    assert (caught.value.field, caught.value.value) == ("tag", tag)
    assert (await catalog.get_model("m", "hf")).tags == ()


async def test_a_tag_of_any_script_may_have_128_characters(catalog):
    """
    Characters are counted, not bytes.
    """
    await catalog.register_model(a_model("m"))

    assert (await catalog.tag_model("m", "hf", "あ" * 128)).tags == ("あ" * 128,)


async def test_pinning_again_keeps_the_first_time(catalog, database):
    """
    The time of the pin does not change when the model is pinned again.
    """
    await catalog.register_model(a_model("m"))
    await catalog.pin_model("m", "hf")
    database.run("UPDATE models SET pinned_at = 1767225601")

    assert (await catalog.pin_model("m", "hf", reason="still")).pinned_at == moment(1)


@pytest.mark.parametrize(
    ("field", "register"),
    [
        ("provider", lambda catalog: catalog.register_model(a_model("m", provider="a:b"))),
        ("alias", lambda catalog: catalog.set_alias("m", "hf", "a@b")),
    ],
    ids=["provider", "alias"],
)
async def test_a_name_with_a_separator_of_refs_is_refused(catalog, field, register):
    """
    A REF with such a name would be parsed as another model's.
    """
    await catalog.register_model(a_model("m"))

    with pytest.raises(
        InvalidModelError, match=r"must not contain '[:@]', which separates"
    ) as caught:
        await register(catalog)

    assert caught.value.field == field


async def test_a_pin_has_a_time_and_an_optional_reason(catalog):
    """
    Pinning again keeps the time, and a new reason replaces the old one.
    """
    await catalog.register_model(a_model("m"))

    first = await catalog.pin_model("m", "hf")
    second = await catalog.pin_model("m", "hf", reason="in production")
    third = await catalog.pin_model("m", "hf")

    assert first.pinned
    assert first.pin_reason is None
    assert second.pinned_at == first.pinned_at
    assert third.pin_reason == "in production"
    unpinned = await catalog.unpin_model("m", "hf")
    assert (unpinned.pinned, unpinned.pinned_at, unpinned.pin_reason) == (False, None, None)
    with pytest.raises(InvalidModelError, match="reason"):
        await catalog.pin_model("m", "hf", reason="x" * 1025)


async def test_an_alias_points_at_a_version_and_can_be_moved(catalog):
    """
    set_alias points an alias at a version; calling it again moves the alias.
    """
    for number, version in enumerate(("v1", "v2")):
        await catalog.register_model(a_model("m", version=version, downloaded_at=moment(number)))

    assert await catalog.set_alias("m", "hf", "stable", "v1") == Alias("hf", "m", "stable", "v1")
    assert (await catalog.get_model("m", "hf", "stable")).version == "v1"

    await catalog.set_alias("m", "hf", "stable", "v2")
    assert (await catalog.get_model("m", "hf", "stable")).version == "v2"
    assert await catalog.set_alias("m", "hf", "newest") == Alias("hf", "m", "newest", "v2")
    assert (await catalog.set_alias("m", "hf", "also", "stable")).version == "v2"


async def test_an_exact_version_has_priority_over_an_alias(catalog):
    """
    If a version has the name of an alias, the version is meant.
    """
    for version in ("main", "v1"):
        await catalog.register_model(a_model("m", version=version))
    await catalog.set_alias("m", "hf", "main", "v1")

    assert (await catalog.get_model("m", "hf", "main")).version == "main"
    await catalog.remove_model("m", "hf", "main")
    assert (await catalog.get_model("m", "hf", "main")).version == "v1"


async def test_an_alias_belongs_to_one_reference(catalog):
    """
    The same alias of another reference or provider is another alias.
    """
    await catalog.register_models(
        [a_model("m", version="v1"), a_model("n", version="v1"), a_model("m", provider="p")]
    )

    await catalog.set_alias("m", "hf", "main", "v1")

    assert await catalog.find_model("n", "hf", "main") is None
    assert await catalog.find_model("m", "p", "main") is None


async def test_aliases_are_listed_and_removed(catalog):
    """
    They are sorted by provider, reference and alias; removing one keeps its model.
    """
    await catalog.register_models(a_model(r, version="v1") for r in ("m", "n"))
    for reference, alias in (("n", "a"), ("m", "b"), ("m", "B")):
        await catalog.set_alias(reference, "hf", alias, "v1")

    listed = [(each.reference, each.alias) for each in await catalog.list_aliases()]
    assert listed == [("m", "B"), ("m", "b"), ("n", "a")]
    assert len(await catalog.list_aliases(reference="m")) == 2
    assert await catalog.list_aliases(provider="other") == []

    assert await catalog.remove_alias("m", "hf", "b") is True
    assert await catalog.remove_alias("m", "hf", "b") is False
    assert await catalog.find_model("m", "hf", "v1") is not None


async def test_an_alias_is_moved_atomically(catalog):
    """
    A reader finds one of the two models while the alias is moved, never none.
    """
    for version in ("v1", "v2"):
        await catalog.register_model(a_model("m", version=version))
    await catalog.set_alias("m", "hf", "stable", "v1")

    async def move():
        for number in range(20):
            await catalog.set_alias("m", "hf", "stable", f"v{1 + number % 2}")

    async def look():
        return [await catalog.find_model("m", "hf", "stable") for _ in range(40)]

    _, found = await asyncio.gather(move(), look())
    assert {model and model.version for model in found} <= {"v1", "v2"}


@pytest.mark.parametrize("name", ["", " ", "a\tb", "a" * 129, None])
@pytest.mark.slow_with("asyncpg")
async def test_an_invalid_alias_is_refused(catalog, name):
    """
    The error names the alias.
    """
    await catalog.register_model(a_model("m"))

    with pytest.raises(InvalidModelError, match="alias"):
        await catalog.set_alias("m", "hf", name)


async def test_registering_again_keeps_labels_and_uses(catalog):
    """
    Tags, description, pin, aliases and uses stay when the model is downloaded again, and the
    download is counted.
    """
    first = await catalog.register_model(a_model("m", description="mine", license="mit"))
    await catalog.tag_model("m", "hf", "chat")
    await catalog.pin_model("m", "hf", reason="why not")
    await catalog.set_alias("m", "hf", "main")
    await catalog.record_use("m", "hf", count=3)

    again = await catalog.register_model(a_model("m", local_path="/new", size_bytes=9))
    await catalog.register_models([a_model("m", size_bytes=10)])

    assert (again.id, again.tags, again.description) == (first.id, ("chat",), "mine")
    assert (again.pin_reason, again.use_count, again.license) == ("why not", 3, "mit")
    final = await catalog.get_model("m", "hf", "main")
    assert (final.id, final.download_count) == (first.id, 3)


@pytest.mark.parametrize("is_prepared", [True, False], ids=["prepared engine", "plain engine"])
async def test_tags_and_aliases_are_removed_with_their_model(database, is_prepared):
    """
    This also holds if a host's connections do not enforce foreign keys. A later model with the
    same id does not inherit them.
    """
    engine = create_async_engine(database.target_url)
    if is_prepared:
        prepare_engine(engine)
    catalog = ModelCatalog(async_sessionmaker(engine))
    await catalog.register_models(a_model("m", version=version) for version in ("v1", "v2"))
    for version in ("v1", "v2"):
        await catalog.tag_model("m", "hf", "chat", version=version)
        await catalog.set_alias("m", "hf", f"alias of {version}", version)

    await catalog.remove_model("m", "hf", "alias of v2")
    assert [each.alias for each in await catalog.list_aliases()] == ["alias of v1"]
    await catalog.remove_model("m", "hf")
    new = await catalog.register_model(a_model("new"))
    await engine.dispose()

    assert new.tags == ()
    assert database.run("SELECT count(*) FROM model_tags") == [(0,)]
    assert database.run("SELECT count(*) FROM model_aliases") == [(0,)]


@pytest.mark.parametrize(
    "act",
    [
        lambda catalog: catalog.tag_model("m", "hf", "chat"),
        lambda catalog: catalog.untag_model("m", "hf", "chat"),
        lambda catalog: catalog.pin_model("m", "hf"),
        lambda catalog: catalog.unpin_model("m", "hf"),
        lambda catalog: catalog.set_alias("m", "hf", "main"),
        lambda catalog: catalog.record_use("m", "hf"),
        lambda catalog: catalog.update_model("m", "hf", size_bytes=1),
    ],
    ids=["tag", "untag", "pin", "unpin", "alias", "use", "update"],
)
async def test_operations_on_an_unknown_model_raise_model_not_found(catalog, act):
    """
    They write nothing.
    """
    with pytest.raises(ModelNotFoundError):
        await act(catalog)

    assert await catalog.list_models() == []
    assert await catalog.list_tags() == []


async def test_labels_are_rolled_back_with_their_transaction(catalog):
    """
    Tags, pins and aliases of a block that raised are gone.
    """
    await catalog.register_model(a_model("m"))

    with pytest.raises(ZeroDivisionError):
        async with catalog.transaction() as inner:
            await inner.tag_model("m", "hf", "chat")
            await inner.pin_model("m", "hf")
            await inner.set_alias("m", "hf", "main")
            await inner.record_use("m", "hf")
            raise ZeroDivisionError

    model = await catalog.get_model("m", "hf")
    assert (model.tags, model.pinned, model.use_count) == ((), False, 0)
    assert await catalog.list_aliases() == []


async def test_a_model_that_is_registered_again_has_only_its_own_tags(catalog):
    """
    It does not have the tags of another model or of another version.
    """
    for version in ("v1", "v2"):
        await catalog.register_model(a_model("m", version=version))
        await catalog.tag_model("m", "hf", version, "both", version=version)

    again = await catalog.register_model(a_model("m", version="v1"))
    other = await catalog.register_model(a_model("other"))

    assert again.tags == ("both", "v1")
    assert other.tags == ()

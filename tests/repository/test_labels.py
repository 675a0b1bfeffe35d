"""What a user attaches to a model, and what it survives."""

import asyncio

import pytest
from conftest import a_model, moment
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import (
    Alias,
    InvalidModelError,
    ModelCatalog,
    ModelNotFoundError,
    TagCount,
    prepare_engine,
)


async def test_tags_are_kept_as_they_are_written(catalog):
    """
    Case and script are preserved, and a tag that differs in case alone is the same tag.
    """
    await catalog.register_model(a_model("m"))

    await catalog.tag_model("m", "hf", "Chat", "für Ärzte", "模型")
    model = await catalog.tag_model("m", "hf", "CHAT", "FÜR ÄRZTE", "small")

    assert model.tags == ("Chat", "für Ärzte", "small", "模型")
    assert (await catalog.get_model("m", "hf")).tags == model.tags
    assert (await catalog.list_models())[0].tags == model.tags


async def test_of_two_spellings_in_one_call_the_first_is_kept(catalog):
    """
    A call is as good as its arguments one after the other.
    """
    await catalog.register_model(a_model("m"))

    assert (await catalog.tag_model("m", "hf", "Chat", "chat")).tags == ("Chat",)


async def test_tags_are_taken_off_in_any_case(catalog):
    """
    untag_model removes what is there and passes over what is not.
    """
    await catalog.register_model(a_model("m"))
    await catalog.tag_model("m", "hf", "Chat", "Straße", "keep")

    model = await catalog.untag_model("m", "hf", "cHAT", "STRASSE", "never there")

    assert model.tags == ("keep",)
    assert (await catalog.untag_model("m", "hf")).tags == ("keep",)


async def test_tags_belong_to_one_version(catalog):
    """
    A tag is given to the version that is named, by its name or an alias, or to the newest.
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


async def test_tags_are_listed_with_counts(catalog):
    """
    Over all spellings, under the most usual one, in the order of their names.
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
async def test_a_tag_that_may_not_be_stored_is_refused(catalog, tag):
    """
    A bad tag is named, and the good ones beside it are not given.
    """
    await catalog.register_model(a_model("m"))

    with pytest.raises(InvalidModelError) as caught:
        await catalog.tag_model("m", "hf", "good", tag)

    assert (caught.value.field, caught.value.value) == ("tag", tag)
    assert (await catalog.get_model("m", "hf")).tags == ()


async def test_a_tag_of_any_script_has_128_characters(catalog):
    """
    They are counted as characters, however many bytes they take.
    """
    await catalog.register_model(a_model("m"))

    assert (await catalog.tag_model("m", "hf", "あ" * 128)).tags == ("あ" * 128,)


async def test_a_later_pin_keeps_the_first_ones_date(catalog, database):
    """
    Since when a model is pinned does not change when it is pinned again.
    """
    await catalog.register_model(a_model("m"))
    await catalog.pin_model("m", "hf")
    database.run("UPDATE models SET pinned_at = 1767225601")

    assert (await catalog.pin_model("m", "hf", reason="still")).pinned_at == moment(1)


@pytest.mark.parametrize(
    ("field", "register"),
    [
        ("provider", lambda catalog: catalog.register_model(a_model("m", provider="a:b"))),
        ("version", lambda catalog: catalog.register_model(a_model("m", version="a@b"))),
        ("alias", lambda catalog: catalog.set_alias("m", "hf", "a@b")),
    ],
    ids=["provider", "version", "alias"],
)
async def test_what_no_ref_could_name_is_refused(catalog, field, register):
    """
    A name that a REF would read as another model's is not given in the first place.
    """
    await catalog.register_model(a_model("m"))

    with pytest.raises(
        InvalidModelError, match=r"must not contain '[:@]', which separates"
    ) as caught:
        await register(catalog)

    assert caught.value.field == field


async def test_a_pin_has_a_date_and_perhaps_a_reason(catalog):
    """
    A pinned model says since when; pinning again keeps the date, and a new reason replaces the old.
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


async def test_an_alias_names_a_version_and_can_be_moved(catalog):
    """
    set_alias points a name at a version; setting it again moves it.
    """
    for number, version in enumerate(("v1", "v2")):
        await catalog.register_model(a_model("m", version=version, downloaded_at=moment(number)))

    assert await catalog.set_alias("m", "hf", "stable", "v1") == Alias("hf", "m", "stable", "v1")
    assert (await catalog.get_model("m", "hf", "stable")).version == "v1"

    await catalog.set_alias("m", "hf", "stable", "v2")
    assert (await catalog.get_model("m", "hf", "stable")).version == "v2"
    assert await catalog.set_alias("m", "hf", "newest") == Alias("hf", "m", "newest", "v2")
    assert (await catalog.set_alias("m", "hf", "also", "stable")).version == "v2"


async def test_an_exact_version_comes_before_an_alias(catalog):
    """
    Where a version has the name of an alias, the version is meant.
    """
    for version in ("main", "v1"):
        await catalog.register_model(a_model("m", version=version))
    await catalog.set_alias("m", "hf", "main", "v1")

    assert (await catalog.get_model("m", "hf", "main")).version == "main"
    await catalog.remove_model("m", "hf", "main")
    assert (await catalog.get_model("m", "hf", "main")).version == "v1"


async def test_an_alias_is_of_one_reference(catalog):
    """
    The same name of another reference, or another provider, is another alias.
    """
    await catalog.register_models(
        [a_model("m", version="v1"), a_model("n", version="v1"), a_model("m", provider="p")]
    )

    await catalog.set_alias("m", "hf", "main", "v1")

    assert await catalog.find_model("n", "hf", "main") is None
    assert await catalog.find_model("m", "p", "main") is None


async def test_aliases_are_listed_and_forgotten(catalog):
    """
    By provider, reference and alias; forgetting one leaves its model.
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


async def test_an_alias_moves_at_once(catalog):
    """
    Whoever looks while it is moved to and fro finds one of the two, never nothing.
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
async def test_an_alias_that_may_not_be_stored_is_refused(catalog, name):
    """
    A bad name is named.
    """
    await catalog.register_model(a_model("m"))

    with pytest.raises(InvalidModelError, match="alias"):
        await catalog.set_alias("m", "hf", name)


async def test_registering_again_keeps_what_was_attached(catalog):
    """
    Tags, description, pin, aliases and uses outlive a new download, which is counted.
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


@pytest.mark.parametrize("habits", [True, False], ids=["with habits", "without"])
async def test_what_hangs_on_a_model_goes_with_it(database, habits):
    """
    Tags and aliases are removed with their model, also where a host's connections keep no foreign
    keys, and a model that gets its number later does not inherit them.
    """
    engine = create_async_engine(database.target_url)
    if habits:
        prepare_engine(engine)
    catalog = ModelCatalog(async_sessionmaker(engine))
    await catalog.register_models(a_model("m", version=version) for version in ("v1", "v2"))
    for version in ("v1", "v2"):
        await catalog.tag_model("m", "hf", "chat", version=version)
        await catalog.set_alias("m", "hf", f"alias of {version}", version)

    await catalog.remove_model("m", "hf", "alias of v2")
    assert [each.alias for each in await catalog.list_aliases()] == ["alias of v1"]
    await catalog.remove_model("m", "hf")
    heir = await catalog.register_model(a_model("heir"))
    await engine.dispose()

    assert heir.tags == ()
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
async def test_what_is_not_recorded_has_nothing_attached(catalog, act):
    """
    Every operation on a model that is not there raises, and leaves no trace.
    """
    with pytest.raises(ModelNotFoundError):
        await act(catalog)

    assert await catalog.list_models() == []
    assert await catalog.list_tags() == []


async def test_labels_take_part_in_a_transaction(catalog):
    """
    What a block attached is gone with it.
    """
    await catalog.register_model(a_model("m"))

    with pytest.raises(ZeroDivisionError):
        async with catalog.transaction() as together:
            await together.tag_model("m", "hf", "chat")
            await together.pin_model("m", "hf")
            await together.set_alias("m", "hf", "main")
            await together.record_use("m", "hf")
            raise ZeroDivisionError

    model = await catalog.get_model("m", "hf")
    assert (model.tags, model.pinned, model.use_count) == ((), False, 0)
    assert await catalog.list_aliases() == []


async def test_a_model_that_is_registered_again_shows_its_own_tags(catalog):
    """
    And not those of another, nor of another version of it.
    """
    for version in ("v1", "v2"):
        await catalog.register_model(a_model("m", version=version))
        await catalog.tag_model("m", "hf", version, "both", version=version)

    again = await catalog.register_model(a_model("m", version="v1"))
    other = await catalog.register_model(a_model("other"))

    assert again.tags == ("both", "v1")
    assert other.tags == ()

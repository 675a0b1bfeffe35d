"""The recorded files of a model and its digest, and when results of verification are reset."""

import pytest
from conftest import a_model, moment

from model_catalog import (
    FileRecord,
    FileState,
    InvalidModelError,
    ModelNotFoundError,
    Sort,
)
from model_catalog.upkeep.queries.verification_queries import save_inspection

ONE = f"sha256:{1:064x}"
TWO = f"sha256:{2:064x}"
NAME = ("TinyLlama-1.1B-Chat-v1.0", "hf")
SHARDS = [
    FileRecord("m-00002-of-00002.gguf", 7, digest=TWO, fingerprint="7:2:2:2", hashed_at=moment(1)),
    FileRecord("m-00001-of-00002.gguf", 5, digest=ONE, fingerprint="5:1:1:1", hashed_at=moment(1)),
]


async def test_register_model_records_files(catalog):
    """
    The files are returned unchanged, sorted by the bytes of their paths. Their digest becomes the
    model's.
    """
    model = await catalog.register_model(a_model(size_bytes=12), files=SHARDS)

    assert await catalog.list_files(*NAME) == SHARDS[::-1]
    # printf '%064x  m-00001-of-00002.gguf\n%064x  m-00002-of-00002.gguf\n' 1 2 | sha256sum
    assert model.digest == (
        "sha256:ca990c8a5d01904415c87df1b6614ad1bf210af9effd4f92eea2db87ed01ec99"
    )
    assert model.inventoried_at is not None
    assert model.state is FileState.UNCHECKED


async def test_a_file_name_may_have_any_bytes(catalog):
    """
    A path inside a model that is not valid text is recorded unchanged on every database.
    """
    names = ["\udcff.gguf", "a b\n'\"\\.txt", "bytes:%41", "é/模型.gguf"]
    files = [FileRecord(name, 1, "other") for name in names]

    await catalog.register_model(a_model(), files=files)

    assert [file.path for file in await catalog.list_files(*NAME)] == sorted(
        names, key=lambda name: name.encode("utf-8", "surrogateescape")
    )


async def test_a_model_whose_files_are_not_known_has_no_files(catalog):
    """
    An unknown model raises ModelNotFoundError instead.
    """
    await catalog.register_model(a_model())

    assert await catalog.list_files(*NAME) == []
    with pytest.raises(ModelNotFoundError):
        await catalog.list_files("other", "hf")


@pytest.mark.parametrize(
    ("again", "digest"),
    [
        ({"size_bytes": 13}, None),
        ({"size_bytes": 12, "local_path": "/elsewhere"}, "kept"),
        ({"size_bytes": 12, "digest": TWO}, TWO),
    ],
    ids=["other size", "other path", "other digest"],
)
@pytest.mark.parametrize("how", ["registered", "registered with others", "updated"])
async def test_a_new_path_size_or_digest_resets_verification(catalog, again, digest, how):
    """
    Only a new size clears the digest too.
    """
    first = await catalog.register_model(a_model(size_bytes=12), files=SHARDS)
    await save_inspection(
        catalog,
        first,
        {
            "state": FileState.PRESENT,
            "verified_at": moment(5),
            "found_digest": ONE,
            "signature_verdict": "valid",
            "missing_since": moment(2),
            "checked_at": moment(3),
        },
    )

    if how == "registered":
        await catalog.register_model(a_model(**again))
    elif how == "registered with others":
        await catalog.register_models([a_model(**again), a_model("other")])
    else:
        await catalog.update_model(*NAME, **again)

    model = await catalog.get_model(*NAME)
    assert (model.state, model.verified_at, model.found_digest) == (FileState.UNCHECKED, None, None)
    assert (model.missing_since, model.checked_at, model.inventoried_at) == (None, None, None)
    assert model.signature_verdict is None
    assert model.digest == (first.digest if digest == "kept" else digest)
    assert await catalog.list_files(*NAME) == []


@pytest.mark.parametrize(
    "again",
    [{}, {"size_bytes": 12}, {"size_bytes": None}, {"description": "mine", "digest": None}],
    ids=["no field", "same size", "unknown size", "no digest"],
)
async def test_registering_the_same_files_keeps_verification(catalog, again):
    """
    Registering a model again without a new path, size or digest keeps its results.
    """
    first = await catalog.register_model(a_model(size_bytes=12), files=SHARDS)
    found = {"state": FileState.PRESENT, "verified_at": moment(5), "checked_at": moment(6)}
    await save_inspection(catalog, first, found)
    again = {**again} if "digest" not in again else {"description": "mine"}

    await catalog.register_model(a_model(**again))

    model = await catalog.get_model(*NAME)
    assert {name: getattr(model, name) for name in found} == found
    assert model.digest == first.digest
    assert await catalog.list_files(*NAME) == SHARDS[::-1]


async def test_a_new_list_of_files_keeps_digests_of_unchanged_files(catalog):
    """
    A file of the same size keeps its expected digest, a file of another size does not. The found
    digest of a touched file is cleared.
    """
    await catalog.register_model(a_model(size_bytes=13), files=SHARDS)
    listed = [
        FileRecord("m-00001-of-00002.gguf", 5, fingerprint="5:1:1:1"),
        FileRecord("m-00002-of-00002.gguf", 8, fingerprint="8:2:2:2"),
    ]

    await catalog.register_model(a_model(size_bytes=13), files=listed)
    first, second = await catalog.list_files(*NAME)
    await catalog.register_model(
        a_model(size_bytes=13),
        files=[FileRecord("m-00001-of-00002.gguf", 5, fingerprint="5:3:3:3")],
    )
    (touched,) = await catalog.list_files(*NAME)

    assert (first.digest, first.hashed_at) == (ONE, moment(1))
    assert (second.digest, second.hashed_at) == (None, None)
    assert (touched.digest, touched.hashed_at) == (ONE, None)


async def test_files_are_removed_with_their_model(catalog, database):
    """
    A removed model leaves no rows in the table of files.
    """
    await catalog.register_model(a_model(), files=SHARDS)

    await catalog.remove_model(*NAME)

    assert database.run("SELECT count(*) FROM model_files") == [(0,)]


@pytest.mark.parametrize(
    ("file", "field"),
    [
        (FileRecord("/etc/passwd", 1), "files.path"),
        (FileRecord("../up", 1), "files.path"),
        (FileRecord("a//b", 1), "files.path"),
        (FileRecord("a\0b", 1), "files.path"),
        (FileRecord("x" * 5000, 1), "files.path"),
        (FileRecord("m", -1), "files.size_bytes"),
        (FileRecord("m", None), "files.size_bytes"),
        (FileRecord("m", 1, role="virus"), "files.role"),
        (FileRecord("m", 1, digest="md5:1"), "files.digest"),
        (FileRecord("m", 1, found_digest="1"), "files.found_digest"),
        (FileRecord("m", 1, fingerprint="1:2"), "files.fingerprint"),
        (FileRecord("m", 1, hashed_at="now"), "files.hashed_at"),
        ("m.gguf", "files"),
    ],
    ids=[
        "absolute path",
        "path to the parent",
        "empty path part",
        "NUL",
        "long path",
        "negative size",
        "no size",
        "unknown role",
        "unknown digest",
        "invalid found digest",
        "invalid fingerprint",
        "time a text",
        "a text",
    ],
)
@pytest.mark.slow_with("asyncpg")
async def test_an_invalid_file_is_refused_and_its_field_named(catalog, file, field):
    """
    A path that leads out of the model, or a value that no database can store, is not recorded.
    """
    with pytest.raises(InvalidModelError) as refused:
        await catalog.register_model(a_model(), files=[file])

    assert refused.value.field == field
    assert await catalog.find_model(*NAME) is None


@pytest.mark.parametrize(
    "given", [ONE, ONE[7:], ONE[7:].upper()], ids=["with prefix", "hex", "capitals"]
)
async def test_a_digest_is_stored_in_one_form(catalog, given):
    """
    In whichever form a digest is set, it is found by each form.
    """
    await catalog.register_model(a_model(digest=given))

    assert (await catalog.get_model(*NAME)).digest == ONE
    assert await catalog.count_models(digest=given) == 1
    assert await catalog.count_models(digest=TWO) == 0


async def test_models_are_filtered_by_the_results_of_checks(catalog):
    """
    By state, by the digest of the model or of a file, as damaged, as incomplete.
    """
    shards = await catalog.register_model(a_model("shards", size_bytes=12), files=SHARDS)
    await catalog.register_model(a_model("other"))
    await save_inspection(
        catalog,
        shards,
        {"state": FileState.MISSING, "found_digest": ONE, "incomplete_reason": "missing: n"},
    )

    async def found(**filters):
        return [m.reference for m in await catalog.list_models(sort=Sort.REFERENCE, **filters)]

    assert await found(state=FileState.MISSING) == await found(state="missing") == ["shards"]
    assert await found(digest=TWO) == await found(digest=shards.digest) == ["shards"]
    assert await found(damaged=True) == await found(incomplete=True) == ["shards"]
    assert await found(damaged=False) == await found(incomplete=False) == ["other"]
    with pytest.raises(InvalidModelError, match="is not a FileState"):
        await found(state="gone")


async def test_an_inspection_of_a_former_path_is_not_saved(catalog):
    """
    A model that was given another path since it was read is not changed.
    """
    old = await catalog.register_model(a_model())
    await catalog.update_model(*NAME, local_path="/elsewhere")

    stored = await save_inspection(catalog, old, {"state": FileState.MISSING})

    assert stored is None
    assert (await catalog.get_model(*NAME)).state is FileState.UNCHECKED


OLD, NEW = "/old/models", "/new/place"
PATHS = {
    "below": (f"{OLD}/a/m.gguf", f"{NEW}/a/m.gguf"),
    "itself": (OLD, NEW),
    "not UTF-8": (f"{OLD}/caf\udce9.gguf", f"{NEW}/caf\udce9.gguf"),
    "percent": (f"{OLD}/100%41_x.gguf", f"{NEW}/100%41_x.gguf"),
    "sibling": ("/old/models2/m.gguf", "/old/models2/m.gguf"),
    "other case": ("/OLD/models/m.gguf", "/OLD/models/m.gguf"),
    "inside": ("/x/old/models/m.gguf", "/x/old/models/m.gguf"),
}


@pytest.mark.parametrize("ending", ["", "/"], ids=["without a slash", "with a slash"])
async def test_relocate_changes_the_paths_below_a_folder(catalog, ending):
    """
    Every path below the folder changes, whatever its bytes, and no other path does. A dry run
    lists the same models.
    """
    await catalog.register_models(
        a_model(name, local_path=old, digest=ONE) for name, (old, _) in PATHS.items()
    )

    told = await catalog.relocate(OLD + ending, NEW + ending, dry_run=True)
    before = {m.reference: m.local_path for m in await catalog.list_models()}
    done = await catalog.relocate(OLD + ending, NEW + ending)
    after = {m.reference: m.local_path for m in await catalog.list_models()}

    assert before == {name: old for name, (old, _) in PATHS.items()}
    assert after == {name: new for name, (_, new) in PATHS.items()}
    assert told == done
    assert [(each.ref.reference, each.old_path, each.new_path) for each in told] == sorted(
        (name, old, new) for name, (old, new) in PATHS.items() if old != new
    )
    assert {m.digest for m in await catalog.list_models()} == {ONE}


async def test_relocate_from_a_folder_with_invalid_utf8(catalog):
    """
    The paths below such a folder are moved below the new one.
    """
    await catalog.register_model(a_model(local_path="/caf\udce9/m.gguf"))

    await catalog.relocate("/caf\udce9", "/café")

    assert (await catalog.get_model(*NAME)).local_path == "/café/m.gguf"


@pytest.mark.parametrize(
    ("old", "new"),
    [("models", "/new"), ("/old", "new"), ("/old", "/caf\udce9"), ("/old", "/n\0"), (1, "/new")],
    ids=["relative", "relative new", "new not UTF-8", "NUL", "not a text"],
)
@pytest.mark.slow_with("asyncpg")
async def test_relocate_refuses_an_invalid_folder(catalog, old, new):
    """
    Nothing is written, and the error names the argument.
    """
    await catalog.register_model(a_model(local_path="/old/m.gguf"))

    with pytest.raises(InvalidModelError, match="_prefix"):
        await catalog.relocate(old, new)

    assert (await catalog.get_model(*NAME)).local_path == "/old/m.gguf"


DIGEST, OTHER_DIGEST = "sha256:" + 64 * "a", "sha256:" + 64 * "b"


@pytest.mark.parametrize(
    ("before", "changes", "is_reset", "digest"),
    [
        ({"size_bytes": 1}, {"size_bytes": 2}, True, None),
        ({"size_bytes": 1, "digest": DIGEST}, {"size_bytes": 2}, True, None),
        ({"size_bytes": 1, "digest": DIGEST}, {"size_bytes": None}, False, DIGEST),
        ({"digest": DIGEST}, {"size_bytes": 2}, False, DIGEST),
        ({"digest": DIGEST}, {"digest": OTHER_DIGEST}, True, OTHER_DIGEST),
        ({"digest": DIGEST}, {"digest": None}, True, None),
        ({}, {"digest": DIGEST}, False, DIGEST),
        ({"digest": DIGEST}, {"local_path": "/elsewhere"}, True, DIGEST),
        ({"digest": DIGEST}, {"digest": DIGEST, "license": "mit"}, False, DIGEST),
    ],
    ids=[
        "size changed",
        "size changed with a digest",
        "size cleared",
        "size set for the first time",
        "digest changed",
        "digest cleared",
        "digest set for the first time",
        "path changed",
        "nothing changed",
    ],
)
async def test_a_change_of_path_size_or_digest_resets_results(
    catalog, before, changes, is_reset, digest
):
    """
    A size that becomes or was NULL does not reset results; clearing a known digest does.
    """
    model = await catalog.register_model(a_model("m", **before))
    await save_inspection(catalog, model, {"verified_at": moment(1), "state": FileState.PRESENT})

    updated = await catalog.update_model("m", "hf", **changes)

    expected = (None, FileState.UNCHECKED) if is_reset else (moment(1), FileState.PRESENT)
    assert (updated.verified_at, updated.state) == expected
    assert updated.digest == digest

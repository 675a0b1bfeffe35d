"""What may be stored: the same on every database, and given back as it was given."""

import enum
import os
import random
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from pathlib import Path, PurePosixPath

import pytest
from conftest import a_model, moment
from hypothesis import given
from hypothesis import strategies as st
from lookalikes import FsPathObject, IndexObject
from sqlalchemy.dialects import sqlite

from model_catalog import InvalidModelError, Model
from model_catalog.mapping.column_types import PathText

DIALECT = sqlite.dialect()


class Provider(enum.StrEnum):
    HF = "hf"


class Text(str):
    """A text of somebody else's, which says something else of itself."""

    __slots__ = ()

    def __str__(self):
        return "another"

    def encode(self, *_):
        return b"another"


class Nowhere(tzinfo):
    """A time zone that does not know its offset."""

    def utcoffset(self, when):
        return None


def deep(number: int) -> list:
    inner = []
    for _ in range(number):
        inner = [inner]
    return inner


def zone(hours: int) -> timezone:
    return timezone(timedelta(hours=hours))


BAD = {
    "empty reference": ("reference", ""),
    "blank reference": ("reference", " \u3000"),
    "no reference": ("reference", None),
    "bytes for a reference": ("reference", b"m"),
    "NUL in the reference": ("reference", "a\0b"),
    "lone surrogate in the reference": ("reference", "a\udcff"),
    "lone surrogate in a text that denies it": ("reference", Text("a\udcff")),
    "line break in the reference": ("reference", "a\nb"),
    "escape in the reference": ("reference", "\x1b[31mred"),
    "C1 control in the reference": ("reference", "a\x9b"),
    "delete in the reference": ("reference", "a\x7f"),
    "long reference": ("reference", "x" * 513),
    "empty provider": ("provider", ""),
    "blank provider": ("provider", "\u00a0 "),
    "number for a provider": ("provider", 7),
    "NUL in the provider": ("provider", "\0"),
    "lone surrogate in the provider": ("provider", "\ud800"),
    "tab in the provider": ("provider", "h\tf"),
    "colon in the provider": ("provider", "h:f"),
    "long provider": ("provider", "x" * 129),
    "many bytes of a provider": ("provider", "\u20ac" * 86),
    "no version": ("version", None),
    "NUL in the version": ("version", "v\0"),
    "lone surrogate in the version": ("version", "\udfff"),
    "line break in the version": ("version", "v1\r\n"),
    "long version": ("version", "v" * 129),
    "many bytes of a version": ("version", "\U0001f999" * 65),
    "empty path": ("local_path", ""),
    "empty bytes for a path": ("local_path", b""),
    "no path": ("local_path", None),
    "number for a path": ("local_path", 3),
    "number for the path of an object": ("local_path", FsPathObject(3)),
    "NUL in the path": ("local_path", "/a\0b"),
    "NUL in the bytes of a path": ("local_path", b"/a\0b"),
    "surrogate of no byte in the path": ("local_path", "/\ud800"),
    "long path": ("local_path", "/" + "x" * 4096),
    "long path of two-byte characters": ("local_path", "\u00e9" * 2049),
    "long path of no text": ("local_path", b"\xff" * 4097),
    "negative size": ("size_bytes", -1),
    "size of 2**63": ("size_bytes", 2**63),
    "size of 10**30": ("size_bytes", 10**30),
    "size of more digits than Python writes": ("size_bytes", 10**5000),
    "lists that lie too deep": ("size_bytes", deep(100_000)),
    "digits for the number of an object": ("size_bytes", IndexObject("5")),
    "negative whole number of another type": ("size_bytes", IndexObject(-1)),
    "float": ("size_bytes", 1.0),
    "infinity": ("size_bytes", float("inf")),
    "not a number": ("size_bytes", float("nan")),
    "bool": ("size_bytes", True),
    "digits": ("size_bytes", "12"),
    "naive datetime": ("downloaded_at", datetime(2026, 1, 1)),  # noqa: DTZ001 - is what is refused
    "datetime of no offset": ("downloaded_at", datetime(2026, 1, 1, tzinfo=Nowhere())),
    "date": ("downloaded_at", date(2026, 1, 1)),
    "seconds": ("downloaded_at", 1767225600),
    "text for a time": ("downloaded_at", "2026-01-01T00:00:00Z"),
    "year 0 in UTC": ("downloaded_at", datetime(1, 1, 1, tzinfo=zone(1))),
    "year 10000 in UTC": ("downloaded_at", datetime(9999, 12, 31, 23, tzinfo=zone(-1))),
}


@pytest.mark.parametrize("field", sorted({field for field, _ in BAD.values()}))
async def test_a_bad_value_is_refused_by_name(catalog, field):
    """
    A value that one of the databases would not keep is refused on all of them, before any sees it;
    the error says which field and which value.
    """
    for name, (_, value) in ((name, bad) for name, bad in BAD.items() if bad[0] == field):
        bad = a_model(**{field: value})

        with pytest.raises(InvalidModelError) as one:
            await catalog.register_model(bad)
        with pytest.raises(InvalidModelError) as many:
            await catalog.register_models([a_model("good"), bad])
        with pytest.raises(InvalidModelError) as as_dicts:
            await catalog.register_models(map(given_of, [a_model("good"), bad]))

        for caught in (one.value, many.value, as_dicts.value):
            assert caught.field == field, name
            assert caught.value is value, name
            assert str(caught).startswith(f"{field} "), name
            assert str(caught).isprintable(), name
    assert await catalog.list_models() == []


def given_of(model):
    """What a model was given, as a dict."""
    return {name: value for name, value in vars(model).items() if not name.startswith("_sa_")}


@pytest.mark.parametrize("field", ["reference", "provider", "local_path"])
async def test_what_is_missing_is_named(catalog, field):
    """
    A model from which a required field was deleted is refused; nothing is guessed.
    """
    model = a_model("m")
    delattr(model, field)

    with pytest.raises(InvalidModelError, match=f"{field} None is missing"):
        await catalog.register_model(model)
    with pytest.raises(InvalidModelError, match=f"{field} None is missing"):
        await catalog.register_models([model])

    assert await catalog.list_models() == []


@pytest.mark.parametrize("model", [None, ["reference", "m"], Model], ids=["None", "list", "class"])
async def test_only_a_model_is_registered(catalog, model):
    """
    Something else is refused as what it is.
    """
    with pytest.raises(InvalidModelError, match="pass a Model"):
        await catalog.register_model(model)
    with pytest.raises(InvalidModelError, match="pass a Model"):
        await catalog.register_models([model])


async def test_a_long_value_is_not_repeated_in_the_message(catalog):
    """
    The message stays readable however large the value was.
    """
    with pytest.raises(
        InvalidModelError, match=r"\(1000000 long\) is 1000000 characters"
    ) as caught:
        await catalog.register_model(a_model("x" * 1_000_000))

    assert len(str(caught.value)) < 300


def rare(count: int, seed: int) -> str:
    """Characters of four bytes in UTF-8, in an order that does not compress."""
    source = random.Random(seed)
    return "".join(chr(source.randrange(0x20000, 0x2A000)) for _ in range(count))


LIMITS = {
    "longest reference": ("reference", "x" * 512),
    "longest provider": ("provider", "x" * 128),
    "longest version": ("version", "x" * 128),
    "empty version": ("version", ""),
    "longest path": ("local_path", "/" + "x" * 4095),
    "longest path of two-byte characters": ("local_path", "\u00e9" * 2048),
    "longest path of no text": ("local_path", os.fsdecode(b"\xff" * 4096)),
    "no bytes": ("size_bytes", 0),
    "most bytes": ("size_bytes", 2**63 - 1),
    "unknown size": ("size_bytes", None),
    "year 1": ("downloaded_at", datetime(1, 1, 1, tzinfo=UTC)),
    "before 1970": ("downloaded_at", datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)),
    "year 9999": ("downloaded_at", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    "blanks around": ("reference", " m "),
    "letters of two normal forms": ("reference", "\u00e9e\u0301"),
    "no break, no width": ("reference", "a\u00a0b\u200bc\u202e"),
    "last character": ("reference", "\U0010ffff\ufffe"),
    "quotes and wildcards": ("reference", "'\"\\%_;--$1:x?"),
}


@pytest.mark.parametrize(("field", "value"), LIMITS.values(), ids=LIMITS)
async def test_what_is_allowed_comes_back_as_it_was(catalog, field, value):
    """
    Every limit is a value that is stored, and read as it was written.
    """
    given = a_model(**{field: value})

    returned = await catalog.register_model(given)
    found = await catalog.get_model(given.reference, given.provider, given.version)

    assert getattr(returned, field) == value
    assert getattr(found, field) == value


async def test_the_longest_key_fits_every_index(catalog):
    """
    All three parts of a key may be as long as they can be at once.
    """
    given = a_model(rare(512, 1), provider=rare(64, 2), version=rare(64, 3))

    await catalog.register_models([given])

    assert (await catalog.get_model(given.reference, given.provider, given.version)).id == 1


@pytest.mark.parametrize(
    ("offset", "expected"),
    [(zone(2), 5), (zone(-11), 5), (UTC, 5)],
    ids=["east", "west", "UTC"],
)
async def test_times_are_kept_in_utc_to_the_second(catalog, offset, expected):
    """
    A time of any zone is the same moment in UTC; parts of a second are cut off.
    """
    given = (moment(expected) + timedelta(microseconds=999_999)).astimezone(offset)

    model = await catalog.register_model(a_model(downloaded_at=given))

    assert model.downloaded_at == moment(expected)
    assert model.downloaded_at.utcoffset() == timedelta(0)


async def test_whole_numbers_of_another_type_are_whole_numbers(catalog, database):
    """
    What has `__index__`, as numpy's integers have, is a size.
    """
    model = await catalog.register_model(a_model(size_bytes=IndexObject(2**40)))

    assert type(model.size_bytes) is int
    assert database.run("SELECT size_bytes FROM models") == [(2**40,)]


async def test_names_may_be_members_of_an_enum(catalog, database):
    """
    A StrEnum is the text that it is.
    """
    await catalog.register_model(a_model("m", provider=Provider.HF))

    assert database.run("SELECT provider FROM models") == [("hf",)]
    assert await catalog.find_model("m", Provider.HF) is not None
    assert len(await catalog.list_models(provider=Provider.HF)) == 1
    assert await catalog.remove_model("m", Provider.HF) is True


PATHS = {
    "spaces": "/models/my model .gguf ",
    "question mark": "/m?mode=memory",
    "hash": "/m#1",
    "percent": "/m%20a%",
    "quotes": '/it\'s "m"',
    "not ASCII": "/modèles/模型/🦙",
    "two normal forms": "/\u00e9/e\u0301",
    "line break": "/a\nb\r\x1b[31m",
    "begins with bytes:": "bytes:%FF",
    "bytes: alone": "bytes:",
    "no UTF-8": os.fsdecode(b"/\xff\xfe\xe9.gguf"),
    "no UTF-8 after bytes:": os.fsdecode(b"bytes:\xff%FF"),
    "no UTF-8 and percent": os.fsdecode(b"/%20\x80%"),
    "not normalised": "a//b/../c/./",
    "backslash": "C:\\models\\m",
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
async def test_a_path_comes_back_byte_for_byte(catalog, path):
    """
    Whatever a file may be called is what the catalog says it is called.
    """
    returned = await catalog.register_model(a_model("m", local_path=path))
    found = await catalog.get_model("m", "hf")

    assert os.fsencode(returned.local_path) == os.fsencode(path)
    assert os.fsencode(found.local_path) == os.fsencode(path)


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (Path("/models/m.gguf"), "/models/m.gguf"),
        (PurePosixPath("/models/m.gguf"), "/models/m.gguf"),
        (b"/models/\xc3\xa9", "/models/é"),
        (b"/models/\xff", "bytes:/models/%FF"),
        ("bytes:x", "bytes:bytes%3Ax"),
        ("/models/%FF", "/models/%FF"),
    ],
    ids=["Path", "PurePath", "bytes", "bytes that are no text", "our mark", "percent"],
)
async def test_a_path_is_stored_as_text(catalog, database, given, stored):
    """
    Other programs read the path as it is; only one that is no UTF-8 is written as `bytes:` and its
    percent-encoded bytes.
    """
    model = await catalog.register_model(a_model("m", local_path=given))

    assert type(model.local_path) is str
    assert os.fsencode(model.local_path) == os.fsencode(given)
    assert database.run("SELECT local_path FROM models") == [(stored,)]


bytes_of_a_path = st.one_of(
    st.binary(min_size=1, max_size=200),
    st.binary(max_size=100).map(b"bytes:".__add__),
    st.text(min_size=1, max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(st.sampled_from([b"%", b"FF", b"bytes:", b"\xff", b"\xc3\xa9", b"a"]), min_size=1).map(
        b"".join
    ),
).filter(lambda raw: b"\0" not in raw)


@given(raw=bytes_of_a_path)
def test_any_path_survives_its_column(raw):
    """
    What is bound is text that every database takes, and what is read is what was bound.
    """
    path = os.fsdecode(raw)

    stored = PathText().process_bind_param(path, DIALECT)

    assert stored.encode()
    assert os.fsencode(PathText().process_result_value(stored, DIALECT)) == raw


@given(one=bytes_of_a_path, other=bytes_of_a_path)
def test_different_paths_are_stored_differently(one, other):
    """
    No two paths become one.
    """
    stored = [PathText().process_bind_param(os.fsdecode(raw), DIALECT) for raw in (one, other)]

    assert (stored[0] == stored[1]) is (one == other)


BAD_KEYS = {
    "None": None,
    "NUL": "m\0",
    "lone surrogate": "\udcff",
    "number": 1,
    "bytes": b"m",
}


@pytest.mark.parametrize("bad", BAD_KEYS.values(), ids=BAD_KEYS)
@pytest.mark.parametrize("field", ["reference", "provider", "version"])
async def test_nothing_is_found_or_removed_by_a_bad_key(catalog, field, bad):
    """
    A key that is no text is an error, and never matches everything; only for the version None has a
    meaning.
    """
    await catalog.register_model(a_model("m"))
    key = {"reference": "m", "provider": "hf", "version": "", field: bad}

    for call in (catalog.find_model, catalog.get_model, catalog.remove_model):
        if field == "version" and bad is None:
            continue
        with pytest.raises(InvalidModelError) as caught:
            await call(**key)
        assert (caught.value.field, caught.value.value) == (field, bad)

    assert len(await catalog.list_models()) == 1


@pytest.mark.parametrize("bad", ["m\0", "\udcff", 1, b"m"], ids=list(BAD_KEYS)[1:])
@pytest.mark.parametrize("field", ["reference", "provider"])
async def test_a_bad_filter_is_refused(catalog, field, bad):
    """
    Lists, iterations and totals are of a text or of everything, and of nothing else.
    """
    for call in (catalog.list_models, catalog.get_total_size):
        with pytest.raises(InvalidModelError, match=field):
            await call(**{field: bad})
    with pytest.raises(InvalidModelError, match=field):
        async for _ in catalog.iter_models(**{field: bad}):
            pass


@pytest.mark.parametrize(
    "key", ["", " ", "a\nb", "x" * 600], ids=["empty", "blank", "control", "long"]
)
async def test_what_would_not_be_stored_may_be_looked_for(catalog, database, key):
    """
    A name that this package refuses may be in an older catalog: it is found there, and removed.
    """
    database.run("INSERT INTO models (provider, reference, local_path) VALUES ('hf', ?, '/m')", key)

    assert (await catalog.get_model(key, "hf")).reference == key
    assert await catalog.remove_model(key, "hf") is True
    assert await catalog.list_models() == []

"""Validation: the same values are rejected or stored on every database, and read back unchanged."""

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
from model_catalog.domain import key_validation
from model_catalog.domain.key_validation import MAX_HOST_BYTES
from model_catalog.mapping.column_types import PathText

DIALECT = sqlite.dialect()


class Provider(enum.StrEnum):
    HF = "hf"


class Text(str):
    """A str subclass whose methods return another text."""

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


INVALID_VALUES = {
    "empty reference": ("reference", ""),
    "blank reference": ("reference", " \u3000"),
    "no reference": ("reference", None),
    "bytes for a reference": ("reference", b"m"),
    "NUL in the reference": ("reference", "a\0b"),
    "lone surrogate in the reference": ("reference", "a\udcff"),
    "lone surrogate in a str subclass": ("reference", Text("a\udcff")),
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
    "provider of too many bytes": ("provider", "\u20ac" * 86),
    "no version": ("version", None),
    "NUL in the version": ("version", "v\0"),
    "lone surrogate in the version": ("version", "\udfff"),
    "line break in the version": ("version", "v1\r\n"),
    "long version": ("version", "v" * 513),
    "empty path": ("local_path", ""),
    "empty bytes for a path": ("local_path", b""),
    "no path": ("local_path", None),
    "number for a path": ("local_path", 3),
    "number from __fspath__": ("local_path", FsPathObject(3)),
    "NUL in the path": ("local_path", "/a\0b"),
    "NUL in the bytes of a path": ("local_path", b"/a\0b"),
    "invalid surrogate in the path": ("local_path", "/\ud800"),
    "long path": ("local_path", "/" + "x" * 4096),
    "long path of two-byte characters": ("local_path", "\u00e9" * 2049),
    "long path that is not UTF-8": ("local_path", b"\xff" * 4097),
    "negative size": ("size_bytes", -1),
    "size of 2**63": ("size_bytes", 2**63),
    "size of 10**30": ("size_bytes", 10**30),
    "size of more digits than Python prints": ("size_bytes", 10**5000),
    "deeply nested lists": ("size_bytes", deep(100_000)),
    "text from __index__": ("size_bytes", IndexObject("5")),
    "negative number from __index__": ("size_bytes", IndexObject(-1)),
    "float": ("size_bytes", 1.0),
    "infinity": ("size_bytes", float("inf")),
    "not a number": ("size_bytes", float("nan")),
    "bool": ("size_bytes", True),
    "digits": ("size_bytes", "12"),
    "naive datetime": ("downloaded_at", datetime(2026, 1, 1)),  # noqa: DTZ001 - it must be rejected
    "datetime without offset": ("downloaded_at", datetime(2026, 1, 1, tzinfo=Nowhere())),
    "date": ("downloaded_at", date(2026, 1, 1)),
    "seconds": ("downloaded_at", 1767225600),
    "text for a time": ("downloaded_at", "2026-01-01T00:00:00Z"),
    "year 0 in UTC": ("downloaded_at", datetime(1, 1, 1, tzinfo=zone(1))),
    "year 10000 in UTC": ("downloaded_at", datetime(9999, 12, 31, 23, tzinfo=zone(-1))),
}


@pytest.mark.parametrize("field", sorted({field for field, _ in INVALID_VALUES.values()}))
@pytest.mark.slow_with("asyncpg")
async def test_invalid_value_is_rejected_with_field_and_value(catalog, field):
    """
    A value that one database would not store is rejected for all databases, before a statement is
    executed. The error has the field and the value.
    """
    cases = {name: case[1] for name, case in INVALID_VALUES.items() if case[0] == field}
    for name, value in cases.items():
        model = a_model(**{field: value})

        with pytest.raises(InvalidModelError) as one:
            await catalog.register_model(model)
        with pytest.raises(InvalidModelError) as many:
            await catalog.register_models([a_model("good"), model])
        with pytest.raises(InvalidModelError) as as_dicts:
            await catalog.register_models(map(keywords_of, [a_model("good"), model]))

        for caught in (one.value, many.value, as_dicts.value):
            assert caught.field == field, name
            assert caught.value is value, name
            assert str(caught).startswith(f"{field} "), name
            assert str(caught).isprintable(), name
    assert await catalog.list_models() == []


def keywords_of(model):
    """Return the fields that were set on a model as a dict."""
    return {name: value for name, value in vars(model).items() if not name.startswith("_sa_")}


@pytest.mark.parametrize("field", ["reference", "provider", "local_path"])
async def test_missing_field_is_named(catalog, field):
    """
    A model without a required field is rejected, and nothing is stored.
    """
    model = a_model("m")
    delattr(model, field)

    with pytest.raises(InvalidModelError, match=f"{field} None is missing"):
        await catalog.register_model(model)
    with pytest.raises(InvalidModelError, match=f"{field} None is missing"):
        await catalog.register_models([model])

    assert await catalog.list_models() == []


@pytest.mark.parametrize("model", [None, ["reference", "m"], Model], ids=["None", "list", "class"])
async def test_other_objects_cannot_be_registered(catalog, model):
    """
    The error says that a Model is expected.
    """
    with pytest.raises(InvalidModelError, match="pass a Model"):
        await catalog.register_model(model)
    with pytest.raises(InvalidModelError, match="pass a Model"):
        await catalog.register_models([model])


async def test_message_does_not_repeat_a_long_value(catalog):
    """
    The message is short however long the value is.
    """
    with pytest.raises(
        InvalidModelError, match=r"\(1000000 long\) is 1000000 characters"
    ) as caught:
        await catalog.register_model(a_model("x" * 1_000_000))

    assert len(str(caught.value)) < 300


def incompressible_text(count: int, seed: int) -> str:
    """Return characters of four UTF-8 bytes in a random order, which cannot be compressed."""
    source = random.Random(seed)
    return "".join(chr(source.randrange(0x20000, 0x2A000)) for _ in range(count))


LIMITS = {
    "longest reference": ("reference", "x" * 512),
    "longest provider": ("provider", "x" * 128),
    "longest version": ("version", "x" * 128),
    "empty version": ("version", ""),
    "longest path": ("local_path", "/" + "x" * 4095),
    "longest path of two-byte characters": ("local_path", "\u00e9" * 2048),
    "longest path that is not UTF-8": ("local_path", os.fsdecode(b"\xff" * 4096)),
    "no bytes": ("size_bytes", 0),
    "most bytes": ("size_bytes", 2**63 - 1),
    "unknown size": ("size_bytes", None),
    "year 1": ("downloaded_at", datetime(1, 1, 1, tzinfo=UTC)),
    "before 1970": ("downloaded_at", datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)),
    "year 9999": ("downloaded_at", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    "leading and trailing spaces": ("reference", " m "),
    "two Unicode normal forms": ("reference", "\u00e9e\u0301"),
    "invisible characters": ("reference", "a\u00a0b\u200bc\u202e"),
    "last code points": ("reference", "\U0010ffff\ufffe"),
    "quotes and wildcards": ("reference", "'\"\\%_;--$1:x?"),
}


@pytest.mark.parametrize(("field", "value"), LIMITS.values(), ids=LIMITS)
async def test_valid_value_is_read_back_unchanged(catalog, field, value):
    """
    Every limit itself is valid: it is stored and read back unchanged.
    """
    given = a_model(**{field: value})

    returned = await catalog.register_model(given)
    found = await catalog.get_model(given.reference, given.provider, given.version)

    assert getattr(returned, field) == value
    assert getattr(found, field) == value


async def test_longest_key_fits_every_index(catalog, database):
    """
    All parts of a key may have their maximum length at the same time, with the longest host.
    """
    given = a_model(
        incompressible_text(512, 1),
        provider=incompressible_text(64, 2),
        version=incompressible_text(64, 3),
    )

    await catalog.register_models([given])
    found = await catalog.get_model(given.reference, given.provider, given.version)
    database.run("UPDATE models SET host = ?", incompressible_text(MAX_HOST_BYTES // 4, 4))

    assert found.id == 1


@pytest.mark.parametrize(
    "host", ["x" * MAX_HOST_BYTES, incompressible_text(MAX_HOST_BYTES // 4, 1)]
)
def test_a_host_may_have_96_bytes(host):
    """
    One byte more is an error.
    """
    assert key_validation.host("host", host) == host
    with pytest.raises(InvalidModelError, match="96"):
        key_validation.host("host", f"{host}x")


@pytest.mark.parametrize(
    ("offset", "expected"),
    [(zone(2), 5), (zone(-11), 5), (UTC, 5)],
    ids=["east", "west", "UTC"],
)
async def test_times_are_stored_in_utc_in_whole_seconds(catalog, offset, expected):
    """
    A time in another zone is converted to UTC, and fractions of a second are cut off.
    """
    given = (moment(expected) + timedelta(microseconds=999_999)).astimezone(offset)

    model = await catalog.register_model(a_model(downloaded_at=given))

    assert model.downloaded_at == moment(expected)
    assert model.downloaded_at.utcoffset() == timedelta(0)


async def test_objects_with_index_are_stored_as_integers(catalog, database):
    """
    An object with `__index__`, such as a numpy integer, is accepted as a size.
    """
    model = await catalog.register_model(a_model(size_bytes=IndexObject(2**40)))

    assert type(model.size_bytes) is int
    assert database.run("SELECT size_bytes FROM models") == [(2**40,)]


async def test_members_of_a_str_enum_are_accepted_as_text(catalog, database):
    """
    A StrEnum member is stored and looked up as its text.
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
    "only bytes:": "bytes:",
    "not UTF-8": os.fsdecode(b"/\xff\xfe\xe9.gguf"),
    "not UTF-8 after bytes:": os.fsdecode(b"bytes:\xff%FF"),
    "not UTF-8, with percent": os.fsdecode(b"/%20\x80%"),
    "not normalised": "a//b/../c/./",
    "backslash": "C:\\models\\m",
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
async def test_path_is_read_back_byte_for_byte(catalog, path):
    """
    Any file name is returned with exactly the same bytes.
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
    ids=["Path", "PurePath", "bytes", "bytes that are not UTF-8", "prefix bytes:", "percent"],
)
async def test_path_is_stored_as_readable_text(catalog, database, given, stored):
    """
    Other programs can read the stored path. A path that is not UTF-8 is stored as `bytes:` and the
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


@pytest.mark.slow
@given(raw=bytes_of_a_path)
def test_any_path_is_converted_and_back(raw):
    """
    The stored value is valid UTF-8 text, and converts back to the same bytes.
    """
    path = os.fsdecode(raw)

    stored = PathText().process_bind_param(path, DIALECT)

    assert stored.encode()
    assert os.fsencode(PathText().process_result_value(stored, DIALECT)) == raw


@given(one=bytes_of_a_path, other=bytes_of_a_path)
def test_different_paths_have_different_stored_values(one, other):
    """
    The stored values of two paths are equal only if the paths are.
    """
    stored = [PathText().process_bind_param(os.fsdecode(raw), DIALECT) for raw in (one, other)]

    assert (stored[0] == stored[1]) is (one == other)


INVALID_KEYS = {
    "None": None,
    "NUL": "m\0",
    "lone surrogate": "\udcff",
    "number": 1,
    "bytes": b"m",
}


@pytest.mark.parametrize("bad", INVALID_KEYS.values(), ids=INVALID_KEYS)
@pytest.mark.parametrize("field", ["reference", "provider", "version"])
@pytest.mark.slow_with("asyncpg")
async def test_invalid_key_finds_and_removes_nothing(catalog, field, bad):
    """
    A key part that is not text raises an error and never matches all models. Only the version may
    be None.
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


@pytest.mark.parametrize("bad", ["m\0", "\udcff", 1, b"m"], ids=list(INVALID_KEYS)[1:])
@pytest.mark.parametrize("field", ["reference", "provider"])
@pytest.mark.slow_with("asyncpg")
async def test_invalid_filter_is_rejected(catalog, field, bad):
    """
    Listings and totals reject a filter value that is not text.
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
async def test_lookup_accepts_names_that_cannot_be_stored(catalog, database, key):
    """
    An older catalog may contain a name that is now rejected: it can be found and removed.
    """
    database.run("INSERT INTO models (provider, reference, local_path) VALUES ('hf', ?, '/m')", key)

    assert (await catalog.get_model(key, "hf")).reference == key
    assert await catalog.remove_model(key, "hf") is True
    assert await catalog.list_models() == []

"""Any value for any argument has the same result on every database and driver."""

import enum
import io
import json
import operator
import os
import shutil
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from uuid import UUID

import pytest
from conftest import BACKENDS, Database, moment, postgresql_database
from lookalikes import FsPathObject, IndexObject

from model_catalog import (
    FileRecord,
    FileState,
    InvalidModelError,
    Model,
    ModelNotFoundError,
    Sort,
    open_catalog,
)
from model_catalog.domain.fields import IMPORT_FIELDS, UPDATABLE_FIELDS
from model_catalog.domain.ndjson import HEADER
from model_catalog.repository.statements.filters import _CONDITIONS


class Text(str):
    """A subclass of str that returns another text for str() and encode()."""

    __slots__ = ()

    def __str__(self):
        return "another"

    def encode(self, *_):
        return b"another"


class Plain(enum.StrEnum):
    HF = "hf"


class Mixed(str, enum.Enum):  # noqa: UP042 - its str() is its name
    HF = "hf"


class Level(enum.IntEnum):
    ONE = 1


class Nowhere(tzinfo):
    """A time zone without an offset."""

    def utcoffset(self, when):
        return None


class Later(datetime):
    """A subclass of datetime."""


def zone(hours: float, seconds: int = 0) -> timezone:
    return timezone(timedelta(hours=hours, seconds=seconds))


def deep(number: int) -> list:
    inner = []
    for _ in range(number):
        inner = [inner]
    return inner


HEX = "0aF9" * 16
TEXTS = [
    *("", " ", "\u3000", "\u00a0 ", "m", "hf", "M", " m ", "1", "-1", "1.0", "nan", "None", "NULL"),
    *("a\0b", "\0", "\ud800", "a\udcff", "\udfff", "\U0001f999", "\U0010ffff", "\ufffe", "\ufeffm"),
    *("a\u202eb", "\u2066", "\u200b", "\u200d", "e\u0301", "\u00e9", "a" + "\u0301" * 60, "ß", "İ"),
    *("\n", "a\tb", "\x1b[31m", "a\x7f", "\x85", "\x9b", "\x1f", "\u2028", "a\r\n"),
    *("'", '"', "%", "_", "\\", "$1", ":x", "?", "--", "a:b", "a@b", "{}", "E'\\x41'"),
    *("x" * 128, "x" * 129, "€" * 85, "€" * 86, "\U0001f999" * 64, "\U0001f999" * 65),
    *("\ufb03" * 128, "\u0390" * 85, "x" * 512, "x" * 513, "x" * 1000, "x" * 1001),
    *("x" * 1024, "x" * 1025, "x" * 2048, "x" * 2049, "x" * 4096, "x" * 4097, "é" * 2049),
    *("x" * 65_536, "x" * 65_537, "9" * 5000),
    *(HEX, "sha256:" + HEX, "SHA256:" + HEX.upper(), "sha512:" + HEX, HEX[1:]),
    *("unchecked", "missing", "MISSING", "valid", "weights", "1:2:3:4", "a/b", "../a", "/", "/a//"),
    *("bytes:%FF", "bytes:", "/%20\udc80%", "2026-01-01T00:00:00Z", "0001-01-01", "2026-W01-1"),
    *(Text("m"), Plain.HF, Mixed.HF, FileState.MISSING, Sort.FORMAT),
]
NUMBERS = [
    *(0, 1, -1, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**400),
    *(10**5000, True, False, 1.0, 0.5, -0.0, 1e308, float("nan"), float("inf"), 1j),
    *(
        Decimal(1),
        Decimal("NaN"),
        Fraction(1),
        Level.ONE,
        IndexObject(5),
        IndexObject(-1),
        IndexObject(2**63),
    ),
    *(IndexObject("5"), IndexObject(None)),
]
TIMES = [
    *(moment(0), moment(1).replace(microsecond=999_999), moment(0).astimezone(zone(-11))),
    *(datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
    *(datetime(1, 1, 1, tzinfo=zone(1)), datetime(9999, 12, 31, 23, tzinfo=zone(-1))),
    *(datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=UTC), moment(7).astimezone(zone(5.5, 15))),
    *(datetime(2026, 1, 1), datetime.min, datetime.max, date(2026, 1, 1), date.max),  # noqa: DTZ001, DTZ901
    *(time(1), timedelta(1), datetime(2026, 1, 1, tzinfo=Nowhere()), Later(2026, 1, 1, tzinfo=UTC)),
]
PATHS = [
    *(Path("/m"), PurePosixPath("a/b"), PureWindowsPath("C:\\m"), Path(os.fsdecode(b"/\xff"))),
    *(FsPathObject("/m"), FsPathObject(b"/\xff"), FsPathObject(1), FsPathObject(Text("/m"))),
    *(b"", b"m", b"/\xff", b"\0", bytearray(b"m"), memoryview(b"m")),
]
OTHERS = [
    *(None, object(), int, Model, UUID(int=1), FileRecord("a", 1)),
    *([], ["a"], ["A", "a"], ["a\0"], [1], [None], ["x" * 129], ["\ufb03" * 128], ("a",), {"a"}),
    *({"a": 1}, [FileRecord("a", 1)], [{"path": "a", "size_bytes": 1}], [{"path": "a"}], [{}]),
    *([{1: 2}], [deep(3)], deep(100_000), [str(number) for number in range(1001)]),
]
VALUES = [*TEXTS, *NUMBERS, *TIMES, *PATHS, *OTHERS]

# A claim may be what the field may be that it is of.
UNCLAIMED = [field for field in UPDATABLE_FIELDS if not field.startswith("claimed_")]
BASE = {"reference": "m", "provider": "hf", "local_path": "/m", "downloaded_at": moment(0)}
KEY = {"reference": "m", "provider": "hf", "version": ""}
LISTED = {"path": "a", "size_bytes": 1}


def values_of(model):
    """Return all values of a model that do not depend on the time of writing."""
    names = (*IMPORT_FIELDS, "tags")
    return {n: getattr(model, n) for n in names if n not in ("last_used_at", "pinned_at")}


def registering(field):
    async def call(catalog, value):
        returned = await catalog.register_model(Model(**{**BASE, field: value}))
        if (field, value) == ("downloaded_at", None):
            # None is replaced by the current time.
            return None
        assert getattr(returned, field) == as_stored(field, value)
        return values_of(returned)

    return call


def updating(field):
    async def call(catalog, value):
        returned = await catalog.update_model("m", "hf", **{field: value})
        assert getattr(returned, field) == as_stored(field, value)
        return values_of(returned)

    return call


def listing(name):
    async def call(catalog, value):
        found = await catalog.list_models(**{name: value})
        return [model.ref for model in found]

    return call


def of_a_key(method, name):
    async def call(catalog, value):
        result = await getattr(catalog, method)(**{**KEY, name: value})
        return values_of(result) if isinstance(result, Model) else result

    return call


def naming(name):
    async def call(catalog, value):
        return await catalog.list_aliases(**{name: value})

    return call


def with_files(field):
    async def call(catalog, value):
        files = [FileRecord(**{**LISTED, field: value})] if field else value
        await catalog.register_model(Model(**BASE), files)
        return await catalog.list_files("m", "hf")

    return call


async def tagging(catalog, value):
    tagged = await catalog.tag_model("m", "hf", value)
    untagged = await catalog.untag_model("m", "hf", value)
    return tagged.tags, untagged.tags


async def aliasing(catalog, value):
    alias = await catalog.set_alias("m", "hf", value)
    found = await catalog.get_model("m", "hf", value)
    return (
        alias,
        await catalog.list_aliases("m"),
        found.ref,
        await catalog.remove_alias("m", "hf", value),
    )


async def pinning(catalog, value):
    return values_of(await catalog.pin_model("m", "hf", reason=value))


async def using(catalog, value):
    await catalog.record_use("m", "hf", count=value)
    return (await catalog.get_model("m", "hf")).use_count


async def importing(catalog, value):
    return await catalog.import_catalog(io.StringIO(HEADER), value)


def relocating(name):
    async def call(catalog, value):
        folders = {"old_prefix": "/m", "new_prefix": "/n", name: value}
        return await catalog.relocate(**folders, dry_run=True)

    return call


PLACES = {
    "register": {field: registering(field) for field in (*KEY, *UNCLAIMED)},
    "update": {field: updating(field) for field in UNCLAIMED},
    "filter": {
        # The ids of the databases differ.
        **{name: listing(name) for name in _CONDITIONS if name != "ids"},
        **{name: listing(name) for name in ("sort", "descending", "limit", "after")},
    },
    "key": {
        **{
            f"{method} {name}": of_a_key(method, name)
            for method in ("find_model", "remove_model", "record_use")
            for name in KEY
        },
        **{f"list_aliases {name}": naming(name) for name in ("reference", "provider")},
    },
    "other": {
        "tag": tagging,
        "alias": aliasing,
        "reason": pinning,
        "count": using,
        "on_conflict": importing,
        **{name: relocating(name) for name in ("old_prefix", "new_prefix")},
        "files": with_files(None),
        **{f"files.{field}": with_files(field) for field in FileRecord.__slots__},
    },
}


def as_stored(field, value):
    """Return the value to expect when a value that was not refused is read again."""
    if field.endswith("digest"):
        return value and "sha256:" + value.lower().removeprefix("sha256:")
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(microsecond=0)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes | os.PathLike):
        return str.__str__(os.fsdecode(value))
    return None if value is None else operator.index(value)


async def answers(target, calls):
    """Return the result of each call with each value; each call is rolled back."""
    found = {}
    async with open_catalog(target) as catalog:
        await catalog.register_model(Model(**BASE, architecture="llama", description="ß"))
        await catalog.tag_model("m", "hf", "A", "\u00e9")
        for place, call in calls.items():
            with suppress(UndoError):
                async with catalog.transaction() as inner:
                    for number, value in enumerate(VALUES):
                        try:
                            found[place, number] = await call(inner, value)
                        except (InvalidModelError, ModelNotFoundError) as error:
                            found[place, number] = type(error), str(error)
                    raise UndoError
    return found


def is_refusal(result):
    return isinstance(result, tuple) and result[:1] == (InvalidModelError,)


class UndoError(Exception):
    """Rolls a transaction back."""


@pytest.fixture
def emptied(sqlite_migrated, pg_migrated, tmp_path):
    """Yield the databases of all drivers one after the other, each without rows."""

    def databases():
        path = tmp_path / "catalog.db"
        shutil.copy(sqlite_migrated, path)
        yield Database("sqlite", str(path), path=path)
        for backend in BACKENDS[1:]:
            database = postgresql_database(backend, pg_migrated)
            database.run("DELETE FROM models")
            yield database

    return databases


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLACES)
async def test_a_value_has_the_same_result_on_every_database(emptied, kind):
    """
    Any value for any argument is refused with the same message on every database, or is stored and
    read back unchanged. No exception but those of the catalog is raised.
    """
    expected = None
    for database in emptied():
        found = await answers(database.target, PLACES[kind])

        for (place, number), said in found.items():
            if expected is not None:
                assert said == expected[place, number], (database.backend, place, VALUES[number])
        expected = expected or found

    refused = sum(is_refusal(result) for result in expected.values())
    # Some values must be refused and some must not, or the values test too little.
    assert len(expected) / 5 < refused < len(expected)


def is_json(value):
    try:
        json.dumps(value)
    except (RecursionError, TypeError, ValueError):
        return False
    return True


def lines():
    """Yield import lines: every kind of JSON value in every field of a model and of a file."""
    for field in (
        *IMPORT_FIELDS,
        "tags",
        "aliases",
        "files",
        *(f"files.{f}" for f in FileRecord.__slots__),
    ):
        # The maximum length of an imported key depends on the database.
        for number, value in enumerate(filter(is_json, VALUES)):
            if field in KEY and len(json.dumps(value)) > 2100:
                continue
            model = {"provider": "hf", "reference": f"{field} {number}", "local_path": "/m"}
            of, _, name = field.partition(".")
            model[of] = [{**LISTED, name: value}] if name else value
            if of == "files":
                model["inventoried_at"] = "2026-01-01T00:00:00Z"
            yield json.dumps(model) + "\n"


@pytest.mark.slow
async def test_an_import_line_has_the_same_result_on_every_database(emptied):
    """
    A value in an import is refused with the same message on every database, or exported unchanged.
    """
    text = HEADER + "".join(lines())
    expected = None
    for database in emptied():
        async with open_catalog(database.target) as catalog:
            done = await catalog.import_catalog(io.StringIO(text), skip_broken=True)
            stream = io.StringIO()
            await catalog.export_catalog(stream)

        assert len(done.problems) > done.written > 0
        expected = expected or (done, stream.getvalue())
        assert (done, stream.getvalue()) == expected, database.backend

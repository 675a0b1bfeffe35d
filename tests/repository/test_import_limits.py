"""What can be stored can be exported and imported; imports of any length; refused lines."""

import io
import json
import random
import tracemalloc
from dataclasses import replace

import pytest
from conftest import a_model, moment

from model_catalog import (
    CatalogBusyError,
    FileRecord,
    InvalidImportError,
    InvalidModelError,
    open_catalog,
)
from model_catalog.domain.file_validation import MAX_FILE_PATH_BYTES
from model_catalog.domain.ndjson import HEADER

DIGEST = "sha256:" + "a" * 64


def line(reference="m", **fields) -> str:
    values = {"provider": "hf", "reference": reference, "local_path": "/m", **fields}
    return json.dumps(values) + "\n"


def incompressible(size_bytes: int) -> str:
    """Return text that PostgreSQL cannot make shorter in an index."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
    return "".join(random.Random(1).choices(letters, k=size_bytes))


async def exported(catalog) -> str:
    stream = io.StringIO()
    await catalog.export_catalog(stream)
    return stream.getvalue()


async def test_the_longest_path_inside_a_model_is_stored_on_every_database(catalog):
    """One byte more is refused, also if only one of the databases could store it."""
    longest = incompressible(MAX_FILE_PATH_BYTES)
    await catalog.register_model(a_model("m"), files=[FileRecord(longest, 1)])

    for path in (longest + "x", "\udcff" * (MAX_FILE_PATH_BYTES // 3 + 1)):
        with pytest.raises(InvalidModelError, match=r"files\.path .* at most 2600 are allowed"):
            await catalog.register_model(a_model("n"), files=[FileRecord(path, 1)])

    (file,) = await catalog.list_files("m", "hf")
    assert file.path == longest
    text = await exported(catalog)
    await catalog.remove_model("m", "hf")
    assert (await catalog.import_catalog(io.StringIO(text))).written == 1


async def test_the_paths_of_a_model_fit_into_a_line_of_an_export(on_sqlite):
    """The length of all paths together is limited, because an export lists them in one line."""
    files = [FileRecord(f"{number:04}" + "x" * 2500, 1) for number in range(1700)]

    with pytest.raises(InvalidModelError, match=r"too many bytes in the paths"):
        await on_sqlite.register_model(a_model("m"), files=files)

    await on_sqlite.register_model(a_model("m"), files=files[:1600])


@pytest.mark.slow
async def test_a_model_has_at_most_ten_thousand_tags(catalog):
    """More tags are refused, in one call and in several. A tag that it has counts once."""
    await catalog.register_model(a_model("m"))
    tags = [f"t{number}" for number in range(10_001)]

    with pytest.raises(InvalidModelError, match=r"tags 10001 are too many"):
        await catalog.tag_model("m", "hf", *tags)
    await catalog.tag_model("m", "hf", *tags[:-1])
    await catalog.tag_model("m", "hf", "T0", "T1")
    with pytest.raises(InvalidModelError, match=r"tags 10001 are too many"):
        await catalog.tag_model("m", "hf", "one more")

    assert len((await catalog.get_model("m", "hf")).tags) == 10_000


@pytest.mark.slow
async def test_a_line_of_an_older_release_may_be_long(on_sqlite):
    """140,000 tags of 128 characters could be stored before the number was limited."""
    tags = [f"{number:06}".ljust(128, "x") for number in range(140_000)]

    done = await on_sqlite.import_catalog(io.StringIO(HEADER + line(tags=tags)))

    assert done.written == 1
    assert len((await on_sqlite.get_model("m", "hf")).tags) == 140_000
    assert len(await exported(on_sqlite)) > 16 * 2**20


VERIFIED = {
    "found_digest": DIGEST,
    "verified_at": "2026-01-01T00:00:00Z",
    "signed_by": DIGEST,
    "signature_verdict": "valid",
    "signature_detail": "by us",
    "signature_checked_at": "2026-01-01T00:00:00Z",
}


async def test_a_managed_folder_is_imported_only_from_a_trusted_source(catalog):
    """A stream must not state in which folder the catalog may delete files."""
    text = HEADER + line("m", managed_root="/home")

    await catalog.import_catalog(io.StringIO(text))
    untrusted = (await catalog.get_model("m", "hf")).managed_root
    await catalog.import_catalog(io.StringIO(text), "replace", trust_source=True)
    trusted = (await catalog.get_model("m", "hf")).managed_root

    assert (untrusted, trusted) == (None, "/home")


async def test_verdicts_are_imported_only_from_a_trusted_source(catalog):
    """The digests are imported in any case. The results of checking them are not."""
    file = {"path": "a", "size_bytes": 1, "role": "weights", "digest": DIGEST}
    checked = {**file, "found_digest": DIGEST, "hashed_at": "2026-01-01T00:00:00Z"}
    text = HEADER + line(
        digest=DIGEST, files=[checked], inventoried_at="2026-01-01T00:00:00Z", **VERIFIED
    )

    await catalog.import_catalog(io.StringIO(text))

    model = await catalog.get_model("m", "hf")
    assert model.digest == DIGEST
    assert [getattr(model, name) for name in VERIFIED] == [None] * len(VERIFIED)
    (found,) = await catalog.list_files("m", "hf")
    assert found == FileRecord(**file)

    await catalog.import_catalog(io.StringIO(text), "replace", trust_source=True)

    model = await catalog.get_model("m", "hf")
    assert (model.verified_at, model.signature_verdict) == (moment(0), "valid")
    (found,) = await catalog.list_files("m", "hf")
    assert found == replace(FileRecord(**file), found_digest=DIGEST, hashed_at=moment(0))


@pytest.fixture
def refused_line(database):
    """A valid line that the database refuses."""
    if database.path is not None:
        database.run(
            "CREATE TRIGGER no_bad BEFORE INSERT ON models WHEN new.reference = 'bad'"
            " BEGIN SELECT RAISE(ABORT, 'not here'); END"
        )
        return line("bad")
    # An older release could record such a path on SQLite.
    path = {"path": incompressible(4000), "size_bytes": 1, "role": "weights"}
    return line("bad", files=[path], inventoried_at="2026-01-01T00:00:00Z")


async def test_a_line_that_the_database_refuses_is_named_or_skipped(catalog, refused_line):
    """Without `skip_broken` nothing is imported. With it all other lines are."""
    others = [line(f"{number}") for number in range(40)]
    text = HEADER + "".join(others[:30]) + refused_line + "".join(others[30:])

    with pytest.raises(InvalidImportError, match=r"line 32 .*the database refuses it") as caught:
        await catalog.import_catalog(io.StringIO(text))
    assert caught.value.line == 32
    assert await catalog.count_models() == 0

    done = await catalog.import_catalog(io.StringIO(text), skip_broken=True)

    assert (done.written, done.kept) == (40, 0)
    assert [problem.line for problem in done.problems] == [32]
    assert await catalog.count_models() == 40


@pytest.mark.slow
async def test_an_import_needs_little_memory(on_sqlite, tmp_path):
    """The memory does not grow with the number of lines. Problems are sorted by line."""
    path = tmp_path / "export"
    with path.open("w") as stream:
        stream.write(HEADER)
        for number in range(3000):
            stream.write(line(f"{number * 7919 % 3001:04}", description="x" * 4000))
    tracemalloc.start()

    with path.open("rb") as stream:
        done = await on_sqlite.import_catalog(stream, timeout_s=120)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert done.written == 3000
    assert peak < 12_000_000, peak


@pytest.mark.slow
async def test_an_import_may_take_longer_than_other_calls(sqlite_file):
    """`timeout_s` of the call replaces that of the catalog."""
    text = HEADER + "".join(line(f"{number}") for number in range(8000))
    async with open_catalog(sqlite_file, timeout_s=0.3) as catalog:
        with pytest.raises(CatalogBusyError):
            await catalog.import_catalog(io.StringIO(text))

        done = await catalog.import_catalog(io.StringIO(text), timeout_s=60)

    assert done.written == 8000

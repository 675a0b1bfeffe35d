"""Export and import of the whole catalog, from either database to either."""

import asyncio
import io
import json
import re

import hive_files
import postgres
import psycopg
import pytest
from conftest import a_model, moment, postgresql_database

from model_catalog import InvalidImportError, InvalidModelError, open_catalog
from model_catalog.domain.ndjson import HEADER, MAX_LINE

TEXTS = ["plain", "ü ß 模型 🦙", "tab\tline\nquote\"'\\%_", "\u202e\u200b", "x" * 1000]


async def fill(catalog):
    """Record models with a value in every field, and unusual text where any text is allowed."""
    for number, text in enumerate(TEXTS):
        await catalog.register_model(
            a_model(
                f"m{number}",
                version="" if number == 0 else f"v{number}",
                local_path=f"/models/{text}/\udcff.gguf",
                size_bytes=None if number == 1 else 2**63 - 1 - number,
                downloaded_at=moment(number),
                description=text,
                architecture=None if number == 2 else "llama",
                claimed_architecture="qwen2",
                claimed_context_length=number,
                license="mit",
                source_url="https://example.org/?q=1",
            )
        )
        await catalog.record_use(f"m{number}", "hf", count=number + 1)
        await catalog.tag_model(f"m{number}", "hf", "Chat", "große Modelle", f"t{number}")
    await catalog.pin_model("m1", "hf", reason="why\nnot")
    await catalog.register_model(a_model("m1", version="v0", downloaded_at=moment(0)))
    await catalog.set_alias("m1", "hf", "main", "v1")
    await catalog.set_alias("m1", "hf", "old", "v0")


async def exported(catalog):
    stream = io.StringIO()
    await catalog.export_catalog(stream)
    return stream.getvalue()


async def imported(catalog, text, *arguments, **options):
    return await catalog.import_catalog(io.StringIO(text), *arguments, **options)


def line(**fields):
    return json.dumps({"provider": "hf", "reference": "m", "local_path": "/m", **fields}) + "\n"


@pytest.fixture
def other(request, tmp_path, backend):
    """A second, empty catalog: on PostgreSQL if the first is on SQLite, and the reverse."""
    if backend == "sqlite":
        database = postgresql_database("asyncpg", request.getfixturevalue("pg_migrated"))
        database.run("DELETE FROM models")
        return database.target
    return str(tmp_path / "other.db")


async def test_an_export_that_is_imported_gives_the_same_export(catalog, other):
    """
    Export, import into an empty catalog on the other database, export again: the bytes are equal.
    """
    await fill(catalog)
    text = await exported(catalog)

    async with open_catalog(other) as second:
        done = await imported(second, text)
        again = await exported(second)
        assert (await second.get_model("m1", "hf", "main")).version == "v1"
        assert await second.count_models(search="GROSSE MODELLE") == len(TEXTS)

    assert (done.written, done.kept, done.problems) == (6, 0, ())
    assert again == text


async def test_an_export_is_lines_of_ascii_json_after_a_header(catalog):
    """
    Any program can read it, and it has no control characters for a terminal.
    """
    await fill(catalog)

    text = await exported(catalog)

    head, *lines = text.splitlines()
    assert json.loads(head) == {"format": "model-catalog", "version": 1}
    assert text.isascii()
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)
    models = [json.loads(each) for each in lines]
    assert [(each["reference"], each["version"]) for each in models] == [
        ("m0", ""),
        ("m1", "v0"),
        ("m1", "v1"),
        *[(f"m{number}", f"v{number}") for number in (2, 3, 4)],
    ]
    assert models[2] == {
        "aliases": ["main"],
        "architecture": "llama",
        "claimed_architecture": "qwen2",
        "claimed_context_length": 1,
        "description": TEXTS[1],
        "download_count": 1,
        "downloaded_at": "2026-01-01T00:00:01Z",
        "last_used_at": models[2]["last_used_at"],
        "license": "mit",
        "local_path": f"/models/{TEXTS[1]}/\udcff.gguf",
        "pin_reason": "why\nnot",
        "pinned_at": models[2]["pinned_at"],
        "provider": "hf",
        "reference": "m1",
        "source_url": "https://example.org/?q=1",
        "state": "unchecked",
        "tags": ["Chat", "große Modelle", "t1"],
        "use_count": 2,
        "version": "v1",
    }


async def test_streams_can_be_binary(catalog, tmp_path):
    """
    A file may be opened in text mode or in binary mode.
    """
    await fill(catalog)
    with (tmp_path / "out").open("wb") as stream:
        assert await catalog.export_catalog(stream) == 6

    with (tmp_path / "out").open("rb") as stream:
        done = await catalog.import_catalog(stream)

    assert (done.written, done.kept) == (0, 6)
    assert (tmp_path / "out").read_text() == await exported(catalog)


async def test_the_export_of_an_empty_catalog_is_its_header(catalog):
    """
    The header line alone can be imported.
    """
    assert await exported(catalog) == HEADER
    assert (await imported(catalog, HEADER)).written == 0


@pytest.mark.parametrize(
    ("on_conflict", "second", "path"),
    [("keep", 9, "/old"), ("replace", 1, "/new"), ("newer", 9, "/new"), ("newer", 5, "/old")],
    ids=["keep", "replace", "newer is newer", "newer is as old"],
)
async def test_on_conflict_decides_about_a_model_that_exists(catalog, on_conflict, second, path):
    """
    The existing model is kept, replaced with its tags, aliases and files, or replaced by a newer
    one.
    """
    await catalog.register_model(
        a_model("m", local_path="/old", size_bytes=1, downloaded_at=moment(5), description="old")
    )
    await catalog.tag_model("m", "hf", "old")
    await catalog.pin_model("m", "hf")
    when = moment(second).isoformat()

    done = await imported(
        catalog,
        HEADER + line(local_path="/new", downloaded_at=when, tags=["new"], use_count=3),
        on_conflict,
    )

    model = await catalog.get_model("m", "hf")
    assert model.local_path == path
    if path == "/new":
        assert (done.written, done.kept) == (1, 0)
        assert (model.tags, model.pinned, model.use_count) == (("new",), False, 3)
        assert (model.size_bytes, model.description) == (None, None)
    else:
        assert (done.written, done.kept) == (0, 1)
        assert (model.tags, model.pinned, model.description) == (("old",), True, "old")


async def test_a_model_without_a_date_is_older_than_every_other(catalog, database):
    """
    `newer` replaces a model without a date, but not by a line without a date.
    """
    await catalog.register_model(a_model("m", local_path="/old"))
    database.run("UPDATE models SET downloaded_at = NULL")

    assert (await imported(catalog, HEADER + line(), "newer")).kept == 1
    dated = line(local_path="/new", downloaded_at="1971-01-01T00:00:00Z")
    assert (await imported(catalog, HEADER + dated, "newer")).written == 1


@pytest.mark.parametrize(("on_conflict", "version"), [("keep", "v1"), ("replace", "v2")])
async def test_an_alias_that_points_at_another_model_is_kept_or_moved(
    catalog, on_conflict, version
):
    """
    With `keep` the alias of a new model does not take an alias from an existing model.
    """
    await catalog.register_model(a_model("m", version="v1"))
    await catalog.set_alias("m", "hf", "main", "v1")

    await imported(catalog, HEADER + line(version="v2", aliases=["main"]), on_conflict)

    assert (await catalog.get_model("m", "hf", "main")).version == version


INVALID_LINES = {
    "not JSON": "{",
    "not an object": "[]\n",
    "missing path": '{"provider": "hf", "reference": "m"}\n',
    "null path": line(local_path=None),
    "unknown field": line(colour="red"),
    "field with control characters": line(**{"\x1b[31m\u202e": 1}),
    "long field name": line(**{"x" * 5000: 1}),
    "long time": line(downloaded_at="x" * 5000),
    "folded text": line(reference_folded="m"),
    "id": line(id=1),
    "negative size": line(size_bytes=-1),
    "size a text": line(size_bytes="1"),
    "huge number": line(size_bytes=0).replace(": 0", ": " + "9" * 5000),
    "NaN": line(size_bytes=float("nan")),
    "time not ISO 8601": line(downloaded_at="yesterday"),
    "time a number": line(downloaded_at=5),
    "tag with a control character": line(tags=["a\x1bb"]),
    "lone surrogate": line(description="\ud800"),
    "tags a text": line(tags="abc"),
    "tag a number": line(tags=[1]),
    "blank alias": line(aliases=[" "]),
    "null use count": line(use_count=None),
    "long description": line(description="x" * 65537),
    "long line": line(description="x" * 3_000_000),
    "deeply nested line": "[" * 100_000 + "\n",
    "repeated key": '{"provider": "hf", "provider": "hf", "reference": "m", "local_path": "/m"}\n',
    "repeated model": line(reference="good"),
}


@pytest.mark.parametrize("invalid", INVALID_LINES.values(), ids=INVALID_LINES)
@pytest.mark.slow_with("asyncpg")
async def test_an_invalid_line_is_reported_with_its_number(catalog, invalid):
    """
    Nothing is imported, or with skip_broken all other lines are.
    """
    text = HEADER + line(reference="good") + "\n" + invalid + line(reference="better")

    if invalid != "{":
        with pytest.raises(InvalidImportError, match="line 4 cannot be imported") as caught:
            await imported(catalog, text)
        assert caught.value.line == 4
        assert len(str(caught.value)) < 1000
        assert str(caught.value).isprintable()
        assert await catalog.list_models() == []

    done = await imported(catalog, text.replace("{{", "{\n{"), skip_broken=True)
    assert [problem.line for problem in done.problems] == [4]
    assert done.written == 2


@pytest.mark.parametrize(
    "head",
    [
        "",
        "\n",
        line(),
        '{"format": "model-catalog", "version": 2}\n',
        "\x89PNG\n",
        "[]\n",
        "null\n",
    ],
    ids=["empty stream", "empty line", "a model", "later version", "a picture", "a list", "null"],
)
@pytest.mark.parametrize("skip_broken", [True, False], ids=["skipping", "not skipping"])
@pytest.mark.slow_with("asyncpg")
async def test_a_stream_without_the_header_is_refused(catalog, head, skip_broken):
    """
    Another file, or an export of a later version, is not imported.
    """
    with pytest.raises(InvalidImportError, match="line 1"):
        await imported(catalog, head + line() if head else "", skip_broken=skip_broken)

    assert await catalog.list_models() == []


async def test_a_line_that_is_not_utf8_is_invalid(catalog):
    """
    It is reported like any other invalid line.
    """
    stream = io.BytesIO(HEADER.encode() + b'{"provider": "\xff"}\n' + line().encode())

    done = await catalog.import_catalog(stream, skip_broken=True)

    assert [problem.line for problem in done.problems] == [2]
    assert done.written == 1


async def test_an_unknown_on_conflict_is_refused(catalog):
    """
    There are three values of on_conflict.
    """
    with pytest.raises(InvalidModelError, match="on_conflict 'overwrite'"):
        await imported(catalog, HEADER, "overwrite")


async def test_an_import_in_a_transaction_is_rolled_back_with_it(catalog):
    """
    An import within transaction() is part of the transaction.
    """
    with pytest.raises(ZeroDivisionError):
        async with catalog.transaction() as inner:
            await imported(inner, HEADER + line(tags=["a"]))
            raise ZeroDivisionError

    assert await catalog.list_models() == []
    assert await catalog.list_tags() == []


@pytest.mark.slow
@pytest.mark.slow_with("asyncpg")
async def test_thousands_of_models_are_exported_and_imported(catalog):
    """
    Many pages of the stream and many batches of statements are complete.
    """
    text = HEADER + "".join(
        line(reference=f"m{n:05}", tags=[f"t{n % 7}"], downloaded_at=moment(n).isoformat())
        for n in range(3000)
    )

    assert (await imported(catalog, text)).written == 3000

    assert await catalog.count_models(tags=["t3"]) == 429
    assert len((await exported(catalog)).splitlines()) == 3001


@pytest.mark.parametrize("backend", ["asyncpg", "psycopg"])
@pytest.mark.parametrize(("on_conflict", "path"), [("keep", "/theirs"), ("newer", "/theirs")])
async def test_a_model_that_another_writer_adds_meanwhile_counts_as_existing(
    database, on_conflict, path
):
    """
    The upsert decides whether a model exists, not a SELECT before it.
    """
    with psycopg.connect(postgres.dsn(database.url)) as other:
        other.execute(
            "INSERT INTO models (provider, reference, local_path, downloaded_at, use_count)"
            " VALUES ('hf', 'm', '/theirs', 4102444800, 42)"
        )
        async with open_catalog(database.target) as catalog:
            text = HEADER + line(local_path="/ours", downloaded_at="2026-01-01T00:00:00Z")
            importing = asyncio.create_task(imported(catalog, text, on_conflict))
            while not database.run(
                "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                " AND datname = current_database()"
            ):
                await asyncio.sleep(0)
            other.commit()
            done = await importing
            model = await catalog.get_model("m", "hf")

    assert (done.written, done.kept) == (0, 1)
    assert (model.local_path, model.use_count) == (path, 42)


async def test_rows_of_the_hive_can_be_exported_and_imported(tmp_path):
    """
    A long reference, a reference with a tab, an empty path: values that can no longer be
    registered can be imported.
    """
    rows = [
        ("long/" + "x" * 600, "hf", "/a", 1, 1),
        ("tab\tbed", "a:b", "", 2, -62135596800),
        (" ", "hf", "/c", 3, -30578688000),
    ]
    hive_files.write_hive_file(tmp_path / "hive.db", rows)
    async with open_catalog(tmp_path / "hive.db") as catalog:
        text = await exported(catalog)

    async with open_catalog(tmp_path / "new.db") as catalog:
        assert (await imported(catalog, text)).written == 3
        assert await exported(catalog) == text


@pytest.mark.parametrize("backend", ["asyncpg", "psycopg"])
@pytest.mark.parametrize(
    "long",
    [
        {"reference": "x" * 3000},
        {
            "reference": "".join(map(chr, range(0x20000, 0x20000 + 640))),
            "aliases": ["\u4e00" * 128],
        },
    ],
    ids=["with its version", "with an alias"],
)
async def test_a_key_that_postgresql_cannot_index_is_an_invalid_line(catalog, long):
    """
    The line is reported, and the rest is imported if skip_broken is set.
    """
    text = HEADER + line(**long) + line()

    with pytest.raises(InvalidImportError, match=r"line 2 .* but PostgreSQL can store 2660"):
        await imported(catalog, text)
    done = await imported(catalog, text, skip_broken=True)

    assert (done.written, [problem.line for problem in done.problems]) == (1, [2])


async def test_download_count_stops_before_it_overflows(catalog):
    """
    2**63 - 1 is the greatest count on both databases.
    """
    await imported(catalog, HEADER + line(download_count=2**63 - 1))

    model = await catalog.register_model(a_model("m"))

    assert (model.download_count, type(model.download_count)) == (2**63 - 1, int)


async def test_a_text_stream_with_invalid_bytes_is_refused(catalog, tmp_path):
    """
    A text stream cannot be read beyond invalid bytes; a binary stream can.
    """
    path = tmp_path / "broken.ndjson"
    path.write_bytes(HEADER.encode() + line().encode() + b"\xff\n")

    with (
        path.open(encoding="utf-8") as stream,
        pytest.raises(InvalidImportError, match="open it in binary mode"),
    ):
        await catalog.import_catalog(stream, skip_broken=True)

    assert await catalog.list_models() == []


@pytest.mark.slow
async def test_a_line_with_more_blanks_than_a_line_may_be_long_is_refused(catalog):
    """
    The end of such a line is not read, so that the blanks must not hide what follows them.
    """
    too_long = line().strip() + " " * (2 * MAX_LINE) + "}"

    with pytest.raises(InvalidImportError, match="longer than") as caught:
        await catalog.import_catalog(io.StringIO(HEADER + too_long + "\n"))

    assert caught.value.line == 2
    assert await catalog.count_models() == 0


async def test_an_export_and_an_import_report_their_progress(catalog, other):
    """
    The functions are called in the event loop with the models that were written, and their total.
    """
    await fill(catalog)
    written, read = [], []
    loop = asyncio.get_running_loop()

    def reporter(counts):
        return lambda *count: counts.append((*count, asyncio.get_running_loop() is loop))

    stream = io.StringIO()
    await catalog.export_catalog(stream, on_progress=reporter(written))
    async with open_catalog(other) as second:
        await imported(second, stream.getvalue(), on_progress=reporter(read))
    await asyncio.sleep(0)

    assert written == [(6, 6, True)]
    assert read == [(6, 6, True)]

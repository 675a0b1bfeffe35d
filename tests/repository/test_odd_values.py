"""Values that another program wrote and no model has: they stop nothing, and can be mended."""

import asyncio
import io

import pytest
from conftest import a_model
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import ModelCatalog, Sort, check_schema, open_catalog, repair
from model_catalog.domain.ndjson import HEADER
from model_catalog.upkeep import check_models, watch

MILLISECONDS = 1_764_300_000_000_000

ODD = {
    "time out of range": ("last_used_at", MILLISECONDS, None, "not a time"),
    "time a text": ("last_used_at", "yesterday", None, "not integer"),
    "count a text": ("use_count", "many", 0, "not integer"),
    "text not UTF-8": ("description", "CAST(x'ff41' AS TEXT)", None, "not valid UTF-8"),
    "text a blob": ("description", "x'ff41'", None, "not text"),
}


async def use(catalog) -> dict[str, object]:
    """Make every kind of call, and return what the field of the odd row reads as."""
    listed = {model.reference: model for model in await catalog.list_models()}
    rows = {row.reference: row for row in await catalog.list_rows(sort=Sort.SIZE_BYTES)}
    stream = io.StringIO()
    await catalog.export_catalog(stream)
    assert sorted(listed) == sorted(rows) == ["a", "b"]
    assert len(stream.getvalue().splitlines()) == 3
    found = await catalog.get_model("a", "hf")
    pinned = await catalog.pin_model("a", "hf", reason="why")
    await check_models(catalog)
    await catalog.stats()
    return {"models": [listed["a"], rows["a"], found, pinned], "export": stream.getvalue()}


@pytest.fixture
async def two_models(database):
    async with open_catalog(database.target) as catalog:
        for name in ("a", "b"):
            await catalog.register_model(a_model(name, size_bytes=10))
    return database


def write_odd_value(database, column: str, value: object) -> None:
    is_sql = isinstance(value, str) and "x'" in value
    sql = f"UPDATE models SET {column} = {value if is_sql else '?'} WHERE reference = 'a'"
    database.run(sql, *(() if is_sql else (value,)))


@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize("reads", ["threads", "inline"])
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.slow
async def test_an_odd_value_stops_no_call_and_reads_as_unknown(two_models, odd, reads):
    """Listing, finding, pinning, exporting and checking go on, and the export can be imported."""
    column, value, expected, _ = odd
    write_odd_value(two_models, column, value)

    async with open_catalog(two_models.target, reads=reads) as catalog:
        used = await use(catalog)

    assert [getattr(model, column) for model in used["models"]] == [expected] * 4
    async with open_catalog(two_models.path.with_name("other.db")) as other:
        done = await other.import_catalog(io.StringIO(used["export"]))
    assert (done.written, done.problems) == (2, ())


@pytest.mark.slow
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("backend", ["sqlite"])
async def test_an_odd_value_is_named_and_mended(two_models, odd):
    """`check_schema` names its column and its row. `repair` replaces it and reports it."""
    column, value, expected, problem = odd
    write_odd_value(two_models, column, value)

    problems = await check_schema(two_models.target)
    report = await repair(two_models.target)

    assert problems == [f"values: 1 in models.{column} are {problem}: rows 1"]
    models = next(table for table in report.tables if table.table == "models")
    assert (models.kept, models.lost, models.refused) == (2, (), 0)
    assert models.mended == ((1, column),)
    assert await check_schema(report.path) == []
    async with open_catalog(report.path) as catalog:
        assert getattr(await catalog.get_model("a", "hf"), column) == expected


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite"])
async def test_a_text_with_a_nul_is_mended(two_models):
    """SQLite's functions ignore everything after a NUL. A name gets a replacement character."""
    write_odd_value(two_models, "reference", "CAST(x'610062' AS TEXT)")
    two_models.run("UPDATE models SET license = 'mit' || char(0) WHERE id = 1")

    report = await repair(two_models.target)

    assert await check_schema(report.path) == []
    async with open_catalog(report.path) as catalog:
        found = await catalog.get_model("a\ufffdb", "hf")
    assert found.license is None


async def test_a_number_that_is_not_a_time_is_named_on_every_database(two_models):
    """A number out of range reads as unknown on PostgreSQL too."""
    two_models.run(f"UPDATE models SET verified_at = {MILLISECONDS} WHERE reference = 'a'")

    async with open_catalog(two_models.target) as catalog:
        used = await use(catalog)

    assert [model.verified_at for model in used["models"]] == [None] * 4
    ((row,),) = two_models.run("SELECT id FROM models WHERE reference = 'a'")
    problem = f"values: 1 in models.verified_at are not a time: rows {row}"
    assert await check_schema(two_models.target) == [problem]


@pytest.mark.parametrize("backend", ["sqlite"])
async def test_a_name_that_is_not_utf8_is_listed(two_models):
    """Names and tags are read with replacement characters, and other models as they are."""
    sql = "CAST(x'ff41' AS TEXT)"
    two_models.run(f"UPDATE models SET reference = {sql} WHERE reference = 'a'")
    two_models.run(f"INSERT INTO model_tags VALUES (2, {sql}, {sql})")

    async with open_catalog(two_models.target) as catalog:
        listed = await catalog.list_models(sort=Sort.REFERENCE)
        stream = io.StringIO()
        await catalog.export_catalog(stream)

    assert [model.reference for model in listed] == ["b", "\ufffdA"]
    assert listed[0].tags == ("\ufffdA",)
    assert "\\ufffdA" in stream.getvalue()
    assert stream.getvalue().startswith(HEADER)


@pytest.mark.parametrize("backend", ["sqlite"])
async def test_tasks_that_find_at_once_read_a_text_that_is_not_utf8(two_models):
    """A shared statement that meets it fails, and each lookup runs on its own."""
    two_models.run("UPDATE models SET description = CAST(x'ff41' AS TEXT) WHERE reference = 'a'")

    async with open_catalog(two_models.target) as catalog:
        found = await asyncio.gather(*(catalog.find_model(name, "hf") for name in ("a", "b", "a")))

    assert [model.reference for model in found] == ["a", "b", "a"]
    assert [model.description for model in found] == [None, None, None]


ODD_PLACES = {
    "time out of range": (Sort.LAST_USED_AT, f"last_used_at = {MILLISECONDS}"),
    "count below zero": (Sort.USE_COUNT, "use_count = -1"),
    "count a text": (Sort.USE_COUNT, "use_count = 'many'"),
    "name a blob": (Sort.REFERENCE, "reference = CAST(reference AS BLOB)"),
    "name not UTF-8": (Sort.PROVIDER, "provider = CAST(x'ff41' AS TEXT)"),
}


@pytest.mark.parametrize("more", ["id > 0", "id % 3 = 0"], ids=["all", "some"])
@pytest.mark.parametrize("odd", ODD_PLACES)
async def test_an_iteration_goes_on_after_an_odd_value(catalog, database, odd, more):
    """The next page cannot start after a value that is read as another one."""
    if database.path is None and odd not in ("time out of range", "count below zero"):
        pytest.skip("a server has the types of its columns")
    await catalog.register_models(a_model(f"m{number:04}") for number in range(1_200))
    sort, values = ODD_PLACES[odd]
    database.run(f"UPDATE models SET {values} WHERE {more}")

    for descending in (True, False):
        ids = [row.id async for row in catalog.iter_rows(sort=sort, descending=descending)]

        listed = await catalog.list_rows(sort=sort, descending=descending)
        assert ids == [row.id for row in listed]


@pytest.mark.parametrize("backend", ["sqlite"])
async def test_an_odd_text_is_read_over_a_hosts_sessions(two_models):
    """The connection of the host decodes texts as before, once the call has ended."""
    write_odd_value(two_models, "description", "CAST(x'ff41' AS TEXT)")
    engine = create_async_engine(two_models.target_url)
    catalog = ModelCatalog(async_sessionmaker(engine))

    assert [model.description for model in await catalog.list_models()] == [None, None]
    assert (await catalog.pin_model("a", "hf")).description is None

    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver.text_factory is str
    await engine.dispose()


async def test_a_watch_survives_any_error_of_a_pass(on_sqlite, tmp_path, caplog):
    """An error is logged once and told at each pass. The watch goes on at its interval."""
    await on_sqlite.register_model(a_model("a"))
    again = asyncio.Event()

    class Broken:
        """A path whose text cannot be made, as a defect would show."""

        count = 0

        def __fspath__(self) -> str:
            Broken.count += 1
            if Broken.count == 3:
                again.set()
            raise ZeroDivisionError("a defect")

    async with asyncio.timeout(20), watch(on_sqlite, interval_s=0.01, roots=[Broken()]) as report:
        await again.wait()

    assert report.failure_count >= 2
    lines = [each for each in caplog.messages if "a step of the watch failed" in each]
    assert lines == [
        "a step of the watch failed; the watch continues: ZeroDivisionError('a defect')"
    ]

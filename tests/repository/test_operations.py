"""Operations run on a plain SQLAlchemy connection, and give the same results on every driver."""

import asyncio
from contextlib import closing
from dataclasses import asdict

import pytest
from conftest import a_model, moment
from sqlalchemy import Connection, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from model_catalog import FileRecord, FileState, Model, ModelRow, open_catalog
from model_catalog.connection.engines import database_info
from model_catalog.domain.fields import Sort
from model_catalog.errors import ModelNotFoundError
from model_catalog.execution.prepared_statement import sqlite_driver
from model_catalog.repository.export_writer import ExportSpool, _export_line
from model_catalog.repository.operations import (
    bulk_registration,
    export_import,
    labels,
    listing,
    lookup,
    model_files,
    registration,
    relocation,
    statistics,
    usage,
)
from model_catalog.repository.operations.lookup import LookupKey
from model_catalog.repository.operations.usage import UseCounts
from model_catalog.repository.statements.row_conversion import to_models, to_rows


@pytest.fixture
def connection(sqlite_file):
    """A connection of SQLAlchemy to a migrated SQLite file; the driver is `sqlite3`."""
    engine = create_engine(f"sqlite:///{sqlite_file}")
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def run(connection: Connection, operation):
    """Run an operation without an executor."""
    return operation.run_one(connection, operation.value)


def fields_of(model):
    return {name: getattr(model, name) for name in ModelRow._fields}


async def on_async_driver(database, function):
    """Call a function with a connection on which SQLAlchemy executes prepared statements."""
    engine = create_async_engine(database.target_url)
    async with engine.begin() as connection:
        result = await connection.run_sync(function)
    await engine.dispose()
    return result


def test_register_one_inserts_and_then_updates(connection):
    """
    The first registration of a key inserts a row, the second updates it.
    """
    first = run(connection, registration.register(a_model("m", size_bytes=1, license="mit")))
    second = run(connection, registration.register(a_model("m", size_bytes=2)))

    assert (first.download_count, second.download_count) == (1, 2)
    assert (first.size_bytes, second.size_bytes) == (1, 2)
    assert second.license == "mit"
    assert second.id == first.id


def test_find_one_returns_what_register_one_returned(connection):
    """
    A registered model is found by its key, and another key finds nothing.
    """
    model = run(connection, registration.register(a_model("m", version="v1")))

    found = lookup.find_one(connection, LookupKey("m", "hf", "v1"))

    assert fields_of(found) == fields_of(model)
    assert lookup.find_one(connection, LookupKey("m", "hf", "v2")) is None


def test_an_operation_on_an_unknown_model_raises_model_not_found(connection):
    """
    Updates, tags and pins need a model.
    """
    key = LookupKey("m", "hf", None)

    for operation in (
        lookup.update(LookupKey("m", "hf", None), {"license": "mit"}),
        lookup.update(LookupKey("m", "hf", None), {}),
        labels.tag(key, ["chat"]),
        labels.pin(key, None),
        labels.set_alias(key, "latest"),
        model_files.list_files(key),
    ):
        with pytest.raises(ModelNotFoundError):
            run(connection, operation)


@pytest.mark.parametrize("cascades", [True, False], ids=["with cascades", "without cascades"])
def test_remove_deletes_child_rows_where_the_database_does_not(connection, cascades):
    """
    Without foreign key cascades the operation deletes tags, aliases and files itself.
    """
    if cascades:
        connection.connection.driver_connection.execute("PRAGMA foreign_keys = ON")
    key = LookupKey("m", "hf", None)
    run(connection, model_files.register_with_files(a_model("m"), [FileRecord("m.gguf", 1)]))
    run(connection, labels.tag(key, ["chat"]))
    run(connection, labels.set_alias(key, "latest"))

    assert run(connection, lookup.remove(LookupKey("m", "hf", None), cascades=cascades))

    for table in ("models", "model_tags", "model_files", "model_aliases"):
        count = connection.exec_driver_sql(f"SELECT count(*) FROM {table}")
        assert count.scalar_one() == 0, table


def test_a_sum_of_sizes_beyond_64_bits_is_exact(connection):
    """
    SQLite cannot add these sizes in one sum.
    """
    for name in ("a", "b", "c"):
        run(connection, registration.register(a_model(name, size_bytes=2**63 - 1)))

    assert run(connection, statistics.total_size({}, "sqlite")) == 3 * (2**63 - 1)
    assert run(connection, statistics.stats({}, "sqlite")).total.size_bytes == 3 * (2**63 - 1)


def all_results(connection: Connection):
    """Run one operation of each kind, and return all results as plain values."""
    dialect = connection.dialect.name
    key = LookupKey("m", "hf", None)
    file = FileRecord("m.gguf", 1, digest="sha256:" + 64 * "0")
    page = {"sort": Sort.SIZE_BYTES, "descending": None, "after": None}
    rows = [
        bulk_registration._to_tuple(registration.UpsertRow.from_model(model))
        for model in (
            a_model("bulk", downloaded_at=moment(1), local_path="/m/\udcff"),
            a_model("bulk", version="v2", downloaded_at=moment(2), size_bytes=5),
            a_model("m", downloaded_at=moment(3)),
        )
    ]
    model = a_model("m", downloaded_at=moment(0), local_path="/old/m.gguf")
    uses = UseCounts({key: 3, LookupKey("gone", "hf", None): 1}, moment(4))
    results = [
        run(connection, registration.register(model)),
        run(connection, registration.register(model)),
        run(connection, model_files.register_with_files(model, [file], {"checked_at": moment(9)})),
        run(connection, bulk_registration.register_rows(rows)),
        run(connection, lookup.find(LookupKey("m", "hf", None))),
        run(connection, lookup.find(LookupKey("bulk", "hf", None))),
        run(connection, lookup.find(LookupKey("gone", "hf", "v1"))),
        run(
            connection,
            lookup.update(LookupKey("m", "hf", None), {"size_bytes": 7, "license": "mit"}),
        ),
        run(connection, labels.tag(key, ["Chat", "code"])),
        run(connection, labels.untag(key, ["CODE"])),
        run(connection, labels.set_alias(LookupKey("bulk", "hf", None), "latest")),
        run(connection, lookup.find(LookupKey("bulk", "hf", "latest"))),
        run(connection, labels.list_aliases(None, None)),
        run(connection, labels.list_tags({}, dialect)),
        run(connection, usage.add_uses(uses, 1.0)),
        run(connection, relocation.relocate("/models", "/new", dry_run=True)),
        run(connection, relocation.relocate("/models", "/new", dry_run=False)),
        run(connection, listing.list_page(to_models, dialect, {}, limit=2, **page)),
        run(connection, listing.list_page(to_rows, dialect, {}, limit=None, **page)),
        run(connection, listing.list_page(to_rows, dialect, {"tags": ["chat"]}, limit=1, **page)),
        run(connection, model_files.list_files(key)),
        run(connection, statistics.count({"search": "BULK"}, dialect)),
        run(connection, statistics.total_size({}, dialect)),
        run(connection, statistics.stats({}, dialect)),
        exported_lines(connection),
        run(connection, labels.remove_alias(LookupKey("bulk", "hf", None), "latest")),
        run(connection, lookup.remove(LookupKey("bulk", "hf", None), cascades=False)),
    ]
    return [plain(result) for result in results]


def exported_lines(connection) -> list[str]:
    """Export the catalog over a connection."""
    names = export_import.export_names()
    with closing(ExportSpool(database_info(connection.engine))) as spool:
        run(connection, export_import.export_rows(spool))
        return [
            _export_line(dict(zip(names, row, strict=True)))
            for page in spool.pages()
            for row in page
        ]


def plain(result):
    """Convert models to dicts without their ids, which PostgreSQL gives out with gaps."""
    if isinstance(result, list):
        return [plain(each) for each in result]
    if isinstance(result, Model | ModelRow):
        return {name: value for name, value in fields_of(result).items() if name != "id"}
    return result


async def test_results_do_not_depend_on_who_executes_prepared_statements(database, sqlite_file):
    """
    On `sqlite3` the driver executes prepared statements, on other drivers SQLAlchemy does.
    """
    engine = create_engine(f"sqlite:///{sqlite_file}")
    with engine.connect() as connection:
        assert sqlite_driver(connection) is not None
        expected = all_results(connection)
        connection.rollback()
    engine.dispose()

    def uses_sqlalchemy(connection):
        return sqlite_driver(connection) is None

    assert await on_async_driver(database, uses_sqlalchemy)
    results = await on_async_driver(database, all_results)

    for result, wanted in zip(results, expected, strict=True):
        assert result == wanted
    assert expected[0]["state"] is FileState.UNCHECKED
    assert asdict(expected[23])["total"] == {"model_count": 3, "size_bytes": 12, "disk_bytes": 7}


# The key of each lookup, and the version of the model that it means.
KEYS = {
    ("m", None): "newest",
    ("m", "v1"): "v1",
    ("m", "latest"): "v1",
    ("m", "v2"): "v2",
    ("m", "nothing"): None,
    ("only", None): "",
    ("only", ""): "",
    ("only", "alias"): "",
    ("undated", None): "second",
    ("gone", None): None,
}


def prepare_keys(database):
    """Record models with equal, missing and different times, and aliases."""
    rows = [
        ("m", "no time", None),
        ("m", "v1", 1),
        ("m", "v2", 9),
        ("m", "newest", 9),
        ("only", "", None),
        ("undated", "first", None),
        ("undated", "second", None),
    ]
    for row in rows:
        database.run(
            "INSERT INTO models (provider, reference, version, downloaded_at, local_path)"
            " VALUES ('hf', ?, ?, ?, '/m')",
            *row,
        )
    # The alias v2 has the name of a version.
    for alias, reference, version in (
        ("latest", "m", "v1"),
        ("v2", "m", "v1"),
        ("alias", "only", ""),
    ):
        database.run(
            "INSERT INTO model_aliases (provider, reference, alias, model_id)"
            " SELECT 'hf', ?, ?, id FROM models WHERE reference = ? AND version = ?",
            *(reference, alias, reference, version),
        )


async def test_every_form_of_a_lookup_follows_the_same_rule(database):
    """
    One key, many keys in arrays, and the fast paths of SQLite mean the same model.

    An exact version has priority over an alias. Without a version the newest model is meant, then
    the one with the greatest id.
    """
    prepare_keys(database)
    keys = [LookupKey(reference, "hf", version) for reference, version in KEYS]

    def one_by_one(connection):
        return [lookup.find_one(connection, key) for key in keys]

    def at_once(connection):
        return lookup.find_many(connection, keys)

    forms = {
        "one key": await on_async_driver(database, one_by_one),
        "many keys": await on_async_driver(database, at_once),
    }
    if database.path is not None:
        engine = create_engine(f"sqlite:///{database.path}")
        with engine.connect() as connection:
            forms["fast path"] = one_by_one(connection)
            forms["fast path of many"] = at_once(connection)
        engine.dispose()

    for form, models in forms.items():
        versions = [model and model.version for model in models]
        assert versions == list(KEYS.values()), form


async def test_tasks_that_find_at_once_get_what_each_would_get_alone(database):
    """
    Their lookups are one statement, and each task gets a model of its own, with its tags.
    """
    prepare_keys(database)
    database.run(
        "INSERT INTO model_tags (model_id, tag, folded)"
        " SELECT id, 'Chat', 'chat' FROM models WHERE version = 'v1'"
    )
    async with open_catalog(database.target) as catalog:
        calls = [(reference, version) for reference, version in KEYS for _ in range(3)]
        alone = [await catalog.find_model(reference, "hf", version) for reference, version in calls]
        found = await asyncio.gather(
            *(catalog.find_model(reference, "hf", version) for reference, version in calls)
        )

    assert [model and fields_of(model) for model in found] == [
        model and fields_of(model) for model in alone
    ]
    assert [model.tags for model in found if model and model.version == "v1"] == [("Chat",)] * 6
    models = [model for model in found if model]
    assert len({id(model) for model in models}) == len(models)


async def test_many_registrations_have_the_effect_of_one_after_the_other(database):
    """
    `register_many` of PostgreSQL returns what `register_one` returns, also for equal keys.
    """
    if database.path is not None:
        pytest.skip("only PostgreSQL registers many rows with arrays")
    rows = [
        registration.UpsertRow.from_model(model)
        for model in (
            a_model("a", downloaded_at=moment(1), license="mit"),
            a_model("b", downloaded_at=moment(1)),
            a_model("a", downloaded_at=moment(2), size_bytes=5),
        )
    ]

    def one_by_one(connection):
        return [fields_of(registration.register_one(connection, row)) for row in rows]

    def at_once(connection):
        return [fields_of(model) for model in registration.register_many(connection, rows)]

    expected = await on_async_driver(database, one_by_one)
    database.delete_rows()

    assert await on_async_driver(database, at_once) == expected

"""Rows have the same values through SQLAlchemy, prepared statements, models and plain rows."""

import asyncio
import gc
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from copy import copy
from dataclasses import fields
from datetime import UTC, datetime

import pytest
from sqlalchemy import BigInteger, bindparam, create_engine, insert, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from model_catalog import FileState, Model, ModelCatalog, ModelRow, Sort, open_catalog
from model_catalog.concurrency.gc_pauses import gc_paused
from model_catalog.execution.prepared_statement import PreparedStatement, raw_column
from model_catalog.mapping.column_types import PathText, UnixTimestamp
from model_catalog.repository.statements.filters import MODELS

FOLDED = ("reference_folded", "description_folded")
ODD = {
    "id": 7,
    "provider": "hf",
    "reference": "org/odd",
    "local_path": "bytes:/m/%FF",
    "size_bytes": 2**63 - 1,
    "downloaded_at": -62135596800,
    "last_used_at": 253402300799,
    "pinned_at": 0,
    "checked_at": 1,
    "missing_since": 2,
    "verified_at": 3,
    "inventoried_at": 4,
    "signature_checked_at": 5,
    "mount_point": "/mnt",
    "store_root": b"/stores/\xff",
    "state": "of a newer release",
    "claimed_format": "gguf",
    "claimed_context_length": 4096,
}


@pytest.fixture
def sync_engine():
    """A function that makes engines on SQLite files; they are disposed of after the test."""
    engines = []

    def make(path):
        engines.append(create_engine(f"sqlite:///{path}"))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()


@pytest.fixture
def odd_file(sqlite_file):
    """A catalog file with one model that has unusual values in every column."""
    with closing(sqlite3.connect(sqlite_file)) as raw, raw:
        names = ", ".join(ODD)
        marks = ", ".join(f":{name}" for name in ODD)
        raw.execute(f"INSERT INTO models ({names}) VALUES ({marks})", ODD)
        raw.execute("INSERT INTO model_tags VALUES (7, 'b', 'B'), (7, 'a', 'a')")
    return sqlite_file


async def test_find_model_returns_the_values_that_the_mapping_loads(odd_file, sync_engine):
    """
    A session of SQLAlchemy loads the same values, also the claims of a header and the tags.
    """
    with Session(sync_engine(odd_file)) as session:
        mapped = session.get(Model, 7)

        async with open_catalog(odd_file) as catalog:
            model = await catalog.find_model("org/odd", "hf")

        for name in ModelRow._fields:
            assert getattr(model, name) == getattr(mapped, name), name
    assert model.local_path == "/m/\udcff"
    assert model.state is FileState.UNCHECKED
    assert model.format == "gguf"
    assert model.tags == ("a", "B")


def test_a_plain_row_has_the_fields_of_a_model_and_its_tags():
    """
    Every field of Model is a field of ModelRow.
    """
    assert list(ModelRow._fields) == [field.name for field in fields(Model)]


async def test_plain_rows_have_the_values_of_models(odd_file):
    """
    `list_rows` and `iter_rows` return the values of `list_models`, in the same order.
    """
    async with open_catalog(odd_file) as catalog:
        await catalog.register_model(Model(provider="a", reference="b", local_path="/c"))
        models = await catalog.list_models(sort=Sort.SIZE_BYTES)
        rows = await catalog.list_rows(sort=Sort.SIZE_BYTES)
        streamed = [row async for row in catalog.iter_rows(sort=Sort.SIZE_BYTES)]

    assert [row._asdict() for row in rows] == [
        {name: getattr(model, name) for name in ModelRow._fields} for model in models
    ]
    assert streamed == rows


def rows_of_all_kinds() -> dict[str, dict]:
    """Rows by reference: every field set, only the needed ones, and each of the others alone."""
    needed = ("id", "provider", "reference", "local_path", "version", "host")
    values = {}
    for number, column in enumerate(MODELS.columns, start=1):
        if column.name in (*needed, *FOLDED):
            continue
        if isinstance(column.type, UnixTimestamp):
            values[column.name] = 1_700_000_000 + number
        elif isinstance(column.type, BigInteger):
            values[column.name] = 1000 + number
        elif isinstance(column.type, PathText):
            values[column.name] = f"bytes:/{column.name}/%FF"
        else:
            values[column.name] = f"the {column.name}"
    sets = {"all": values | {"state": "present"}, "needed": {}}
    sets |= {name: {name: value} for name, value in values.items()}
    return sets


async def find_all(catalog: ModelCatalog, references: Iterable[str]) -> list[Model]:
    """Find models by reference, one after the other."""
    return [await catalog.get_model(reference, "hf") for reference in references]


async def test_models_are_equal_in_whatever_way_they_are_read(database):
    """
    A model has the values that a session of SQLAlchemy loads, whichever fields are NULL.
    """
    for reference, values in rows_of_all_kinds().items():
        row = {"provider": "hf", "reference": reference, "local_path": "/m", **values}
        row |= {"version": "v1", "reference_folded": reference}
        marks = ", ".join("?" * len(row))
        database.run(f"INSERT INTO models ({', '.join(row)}) VALUES ({marks})", *row.values())
    for reference in ("all", "digest"):
        ((model_id,),) = database.run("SELECT id FROM models WHERE reference = ?", reference)
        for tag in ("b", "A"):
            database.run("INSERT INTO model_tags VALUES (?, ?, ?)", model_id, tag.lower(), tag)
    engine = create_async_engine(database.target_url)

    async with AsyncSession(engine) as session:
        mapped = {each.reference: each for each in await session.scalars(select(Model))}
        expected = {name: dict(vars(each)) for name, each in mapped.items()}
    host = ModelCatalog(async_sessionmaker(engine))
    async with open_catalog(database.target) as catalog:
        found = {
            "list": await catalog.list_models(),
            "page": (await catalog.list_page(limit=200)).models,
            "host": await host.list_models(),
            "lone finds": await find_all(catalog, expected),
            "finds": await asyncio.gather(*(catalog.find_model(name, "hf") for name in expected)),
            "by id": [await catalog.get_model_by_id(each["id"]) for each in expected.values()],
        }
        rows = await catalog.list_rows()
        key = {"provider": "hf", "version": "v1", "local_path": "/m"}
        again = [Model(reference=name, **key) for name in expected]
        registered = [await catalog.register_model(copy(model)) for model in again]
        assert list(map(vars, registered)) == list(map(vars, await find_all(catalog, expected)))
        registered = await asyncio.gather(*map(catalog.register_model, again))
        assert list(map(vars, registered)) == list(map(vars, await find_all(catalog, expected)))
    await engine.dispose()

    assert len(expected) == len(rows_of_all_kinds())
    for way, models in found.items():
        assert {model.reference: vars(model) for model in models} == expected, way
    assert {row.reference: row for row in rows} == {
        model.reference: ModelRow(*(getattr(model, name) for name in ModelRow._fields))
        for model in found["list"]
    }


async def test_a_page_may_start_after_a_plain_row(odd_file):
    """
    `after` takes the last item of the page before, a model or a row.
    """
    async with open_catalog(odd_file) as catalog:
        await catalog.register_model(Model(provider="a", reference="b", local_path="/c"))
        (first,) = await catalog.list_rows(limit=1)
        (model,) = await catalog.list_models(after=first)
        (row,) = await catalog.list_rows(after=await catalog.get_model("b", "a"))

    assert first.reference == "b"
    assert model.reference == row.reference == "org/odd"


def test_a_prepared_statement_passes_the_parameters_that_sqlalchemy_passes(odd_file, sync_engine):
    """
    A prepared statement with parameters and a constant returns the row that SQLAlchemy returns.
    """
    statement = select(raw_column(MODELS.c.id), raw_column(MODELS.c.local_path)).where(
        MODELS.c.local_path == bindparam("path", type_=MODELS.c.local_path.type),
        MODELS.c.size_bytes == 2**63 - 1,
    )
    values = {"path": "/m/\udcff", "unused": 1}

    with sync_engine(odd_file).connect() as connection:
        rows = PreparedStatement(statement).fetch_all(connection, values)

        assert [tuple(row) for row in connection.execute(statement, values)] == rows
    assert rows == [(7, "bytes:/m/%FF")]


def test_execute_many_writes_the_rows_that_sqlalchemy_writes(sqlite_file, sync_engine):
    """
    A prepared INSERT stores paths and times as the mapping does.
    """
    row = dict.fromkeys(("provider", "reference", "version", *FOLDED), "x")
    row |= {"local_path": "/m/\udcff", "downloaded_at": datetime(2026, 1, 1, tzinfo=UTC)}

    with sync_engine(sqlite_file).begin() as connection:
        connection.execute(insert(MODELS), row | {"reference": "mapped"})
        columns = {name: [value] * 4 for name, value in row.items()} | {"provider": [*"xyzz"]}
        columns["version"] = [*"xxxy"]
        columns["local_path"] = ["/m/\udcff", "/n", "/o", "/m/\udcff"]
        PreparedStatement(insert(MODELS), row).execute_many(connection, columns)

    with closing(sqlite3.connect(sqlite_file)) as raw:
        found = raw.execute(
            "SELECT provider, local_path, description_folded FROM models ORDER BY id"
        )
        assert found.fetchall() == [
            ("x", "bytes:/m/%FF", "x"),
            ("x", "bytes:/m/%FF", "x"),
            ("y", "/n", "x"),
            ("z", "/o", "x"),
            ("z", "bytes:/m/%FF", "x"),
        ]
        (moments,) = zip(*raw.execute("SELECT DISTINCT downloaded_at FROM models"), strict=True)
        assert moments == (1767225600,)


def test_gc_is_enabled_again_after_the_last_pause():
    """
    The end of the inner of two pauses changes nothing, the end of the outer one does.
    """
    with gc_paused():
        with gc_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()

    assert gc.isenabled()


def test_a_pause_does_not_enable_a_disabled_gc():
    """
    If the program has disabled the collector, it stays disabled.
    """
    gc.disable()
    try:
        with gc_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()

"""What is read is the same, whichever way it comes: as SQLAlchemy has it, directly, or plain."""

import gc
import sqlite3
from contextlib import closing
from dataclasses import fields
from datetime import UTC, datetime

import pytest
from sqlalchemy import bindparam, create_engine, insert, select
from sqlalchemy.orm import Session

from model_catalog import FileState, Model, ModelRow, Sort, open_catalog
from model_catalog.execution.prepared_statement import PreparedStatement, raw_column
from model_catalog.repository.operations.listing import gc_paused
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
def odd_file(sqlite_file):
    """A catalog with one model, of which every kind of value is at its limit."""
    with closing(sqlite3.connect(sqlite_file)) as raw, raw:
        names = ", ".join(ODD)
        marks = ", ".join(f":{name}" for name in ODD)
        raw.execute(f"INSERT INTO models ({names}) VALUES ({marks})", ODD)
        raw.execute("INSERT INTO model_tags VALUES (7, 'b', 'B'), (7, 'a', 'a')")
    return sqlite_file


async def test_a_model_that_is_found_is_what_the_mapping_reads(odd_file):
    """
    Of a row with every kind of value `find_model` tells what a session of SQLAlchemy's tells,
    but for a state that nobody knows, what a header claims, and the tags, which it has in addition.
    """
    with Session(create_engine(f"sqlite:///{odd_file}")) as session:
        mapped = session.get(Model, 7)

        async with open_catalog(odd_file) as catalog:
            model = await catalog.find_model("org/odd", "hf")

        for name in ModelRow._fields[:-1]:
            value = getattr(mapped, name)
            claimed = getattr(mapped, f"claimed_{name}", None)
            assert getattr(model, name) == (claimed if value is None else value)
    assert model.local_path == "/m/\udcff"
    assert model.state is FileState.UNCHECKED
    assert model.format == "gguf"
    assert model.tags == ("a", "B")


def test_a_plain_row_has_the_fields_of_a_model_and_its_tags():
    """
    Whatever is added to Model is in ModelRow as well.
    """
    known = [field.name for field in fields(Model) if not field.name.endswith("_folded")]

    assert list(ModelRow._fields) == [*known, "tags"]


async def test_plain_rows_say_what_models_say(odd_file):
    """
    `list_rows` and `iter_rows` give the values of `list_models`, in the same order.
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


async def test_a_page_may_begin_after_a_plain_row(odd_file):
    """
    `after` takes the last of the page before, whether that was of models or of rows.
    """
    async with open_catalog(odd_file) as catalog:
        await catalog.register_model(Model(provider="a", reference="b", local_path="/c"))
        (first,) = await catalog.list_rows(limit=1)
        (model,) = await catalog.list_models(after=first)
        (row,) = await catalog.list_rows(after=await catalog.get_model("b", "a"))

    assert first.reference == "b"
    assert model.reference == row.reference == "org/odd"


def test_what_the_driver_is_given_is_what_sqlalchemy_would_give_it(odd_file):
    """
    A prepared statement with the values of a caller and one of its own finds the same row twice.
    """
    statement = select(raw_column(MODELS.c.id), raw_column(MODELS.c.local_path)).where(
        MODELS.c.local_path == bindparam("path", type_=MODELS.c.local_path.type),
        MODELS.c.size_bytes == 2**63 - 1,
    )
    values = {"path": "/m/\udcff", "of no use": 1}

    with create_engine(f"sqlite:///{odd_file}").connect() as connection:
        direct = PreparedStatement(statement).fetch_all(connection, values)

        assert [tuple(row) for row in connection.execute(statement, values)] == direct
    assert direct == [(7, "bytes:/m/%FF")]


def test_many_rows_are_written_as_sqlalchemy_would_write_them(sqlite_file):
    """
    A prepared INSERT stores a path and a moment in the form that the mapping stores them in.
    """
    row = dict.fromkeys(("provider", "reference", "version", *FOLDED), "x")
    row |= {"local_path": "/m/\udcff", "downloaded_at": datetime(2026, 1, 1, tzinfo=UTC)}

    with create_engine(f"sqlite:///{sqlite_file}").begin() as connection:
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


def test_garbage_is_looked_for_again_after_the_last_list():
    """
    While two lists are built, the end of the first changes nothing; the end of the second does.
    """
    with gc_paused():
        with gc_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()

    assert gc.isenabled()


def test_a_program_without_garbage_collection_stays_without():
    """
    Where a program has turned it off, no list turns it on.
    """
    gc.disable()
    try:
        with gc_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()

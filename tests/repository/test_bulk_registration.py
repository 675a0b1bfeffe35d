"""Bulk registration has the effect of registering each model alone."""

import asyncio
import random
import re
import sqlite3
from datetime import UTC, datetime
from types import MappingProxyType

import pytest
from conftest import a_model, moment
from sqlalchemy import create_engine, inspect
from sqlalchemy.pool import StaticPool

from model_catalog import InvalidModelError, Model
from model_catalog.mapping.base import Base
from model_catalog.repository.operations.bulk_registration import (
    BulkRows,
    build_batches,
    collect_rows,
    write_batches,
)

VALUES = {"reference": "m", "provider": "hf", "local_path": "/m"}


def model_of(values):
    return Model(**values)


def values_of(model):
    """Return all values of a model, but not its id and its time of registration."""
    names = {column.key for column in inspect(Model).columns} - {"id"}
    return {name: getattr(model, name) for name in names if not name.endswith("_folded")}


FIELDS = {
    "description": [None, "", "Grüße", "zwei\nZeilen", "KLEIN"],
    "size_bytes": [None, 0, 7, 2**63 - 1],
    "license": [None, "mit", "Apache-2.0"],
    "context_length": [None, 4096],
    "claimed_format": [None, "gguf"],
    "local_path": ["/m", "/ü", "/\udcff", "bytes:/m"],
    "downloaded_at": [moment(1), moment(2)],
    "digest": [None, "sha256:" + "ab" * 32],
}


def some_values(source, count):
    """Return keywords of models that set different fields; values are repeated, some keys too."""
    for _ in range(count):
        names = source.sample(sorted(FIELDS), source.choice([0, 3, 3, 8]))
        yield {
            "reference": f"M{source.randrange(2 * count)}",
            "provider": source.choice(["hf", "ollama"]),
            **({"version": source.choice(["", "v1"])} if source.random() < 0.5 else {}),
            "local_path": "/m",
            "downloaded_at": moment(3),
            **{name: source.choice(FIELDS[name]) for name in names},
        }


@pytest.mark.slow_with("asyncpg")
@pytest.mark.parametrize("seed", range(3))
async def test_register_models_has_the_effect_of_register_model_for_each(catalog, database, seed):
    """
    As models, as dicts, as models that were read, or mixed, and registered twice: every field is
    what registering one model after the other makes of it.
    """
    source = random.Random(seed)
    first, second = list(some_values(source, 60)), list(some_values(source, 60))
    for values in first + second:
        await catalog.register_model(Model(**values))
    one_by_one = {model.ref: values_of(model) for model in await catalog.list_models()}
    texts = "SELECT reference_folded, description_folded FROM models ORDER BY 1, 2"
    searched = database.run(texts)
    for makes in ([model_of], [dict], [model_of, dict, MappingProxyType]):
        database.delete_rows()
        await catalog.register_models(source.choice(makes)(values) for values in first)
        await catalog.register_models(source.choice(makes)(values) for values in second)

        bulk = {model.ref: values_of(model) for model in await catalog.list_models()}
        assert bulk.keys() == one_by_one.keys()
        for ref, model in bulk.items():
            counts = "download_count"
            assert {**model, counts: 0} == {**one_by_one[ref], counts: 0}, ref
        assert sorted(database.run(texts), key=str) == sorted(searched, key=str)


async def test_a_dict_sets_only_its_own_keys(catalog):
    """
    A field that is not in the dict keeps its value; a field with None is cleared, as with a Model.
    """
    await catalog.register_model(a_model("m", size_bytes=7, license="mit", description="Old"))

    await catalog.register_models([{**VALUES, "license": None}])

    model = await catalog.get_model("m", "hf")
    assert (model.size_bytes, model.license, model.description) == (7, None, "Old")
    assert [found.id for found in await catalog.list_models(search="OLD")] == [model.id]


async def test_a_model_without_a_date_gets_the_current_second(catalog):
    """
    downloaded_at may be missing or None.
    """
    before = datetime.now(UTC).replace(microsecond=0)

    await catalog.register_models([{**VALUES, "downloaded_at": None}, {**VALUES, "reference": "n"}])

    for model in await catalog.list_models():
        assert before <= model.downloaded_at <= datetime.now(UTC)


async def test_a_model_that_was_read_sets_only_what_was_changed_since(catalog, database):
    """
    Also among other models: the value that its header states does not become the user's value.
    """
    await catalog.register_model(a_model("m", claimed_license="mit", size_bytes=7))
    model = await catalog.get_model("m", "hf")
    model.size_bytes = 8

    await catalog.register_models([model, {**VALUES, "reference": "n"}])

    assert database.run("SELECT license, size_bytes FROM models ORDER BY reference") == [
        (None, 8),
        (None, None),
    ]


async def test_more_models_than_a_chunk_are_merged_by_key(catalog):
    """
    A key that occurs again in a later chunk is merged with the earlier row, and no model is lost.
    """
    values = [{**VALUES, "reference": f"m{number % 2100:04}"} for number in range(2500)]
    values[0] |= {"size_bytes": 5}
    values[2499] |= {"size_bytes": 9}
    values[2100] |= {"license": "mit"}

    assert await catalog.register_models(values) == 2100

    first, last = await catalog.get_model("m0000", "hf"), await catalog.get_model("m0399", "hf")
    assert (first.size_bytes, first.license, last.size_bytes) == (5, "mit", 9)
    assert await catalog.count_models() == 2100


async def test_other_tasks_run_while_models_are_collected(on_sqlite):
    """
    A long iterable of models does not block the event loop.
    """
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def models():
        for number in range(4000):
            seen.append(turns)
            yield {**VALUES, "reference": f"m{number}"}

    seen: list[int] = []
    counting = asyncio.create_task(count())

    await on_sqlite.register_models(models())

    counting.cancel()
    assert seen[0] < seen[1000] < seen[2000] < seen[3000]


async def test_batches_are_sorted_by_key_whatever_fields_are_set():
    """
    Two processes that lock rows in the same order cannot deadlock.
    """
    values = [{**VALUES, "reference": f"m{number}", "license": None} for number in (5, 3, 1, 4)]
    values[1] = {**VALUES, "reference": "m3"}
    models = [dict(each) for each in values]

    batches = build_batches(await collect_rows(models))

    assert [batch.columns["reference"] for batch in batches] == [("m1",), ("m3",), ("m4", "m5")]
    assert [batch.row_count for batch in batches] == [1, 1, 2]
    assert models == values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**VALUES, "refrence": "m"}, "refrence 'm' is not a field of Model"),
        ({**VALUES, "id": 1}, "id 1 is not a field"),
        ({**VALUES, "_sa_instance_state": 1}, "_sa_instance_state 1 is not a field"),
        ({**VALUES, 7: 1}, "7 1 is not a field"),
        ({"reference": "m", "provider": "hf"}, "local_path None is missing"),
        ({**VALUES, "reference": None}, "reference None is a NoneType"),
        ({**VALUES, "size_bytes": True}, "size_bytes True"),
        ({**VALUES, "size_bytes": 1.0}, r"size_bytes 1\.0"),
        ({**VALUES, "license": ["mit"]}, r"license \['mit'\] is a list"),
    ],
)
@pytest.mark.slow_with("asyncpg")
async def test_the_error_names_the_first_invalid_model(catalog, values, message):
    """
    Later invalid models do not matter, True does not count as 1, and nothing is written.
    """
    good = [{**VALUES, "reference": f"m{number}", "size_bytes": 1} for number in range(3)]
    worse = {"reference": "", "provider": "", "local_path": "", "size_bytes": -1}

    for others in ([], [worse]):
        with pytest.raises(InvalidModelError, match=message):
            await catalog.register_models([*good, values, *others])
    with pytest.raises(InvalidModelError, match="reference '' must not be blank"):
        await catalog.register_models([*good, worse, values])

    assert await catalog.count_models() == 0


async def test_a_description_that_only_the_first_of_two_equal_keys_sets_is_searchable(catalog):
    """
    The second model of the key does not set a description, so the first description stays.
    """
    await catalog.register_models([{**VALUES, "description": "Grüße"}, VALUES])

    assert [model.description for model in await catalog.list_models(search="grÜsse")] == ["Grüße"]


async def test_sqlite_gets_one_parameter_for_each_column_of_a_row():
    """The constants of the upsert are part of its text: each parameter costs time in each row."""
    statements = []

    class Driver(sqlite3.Connection):
        def executemany(self, sql, rows, /):
            statements.append((sql, list(rows)))
            return self.cursor()

    engine = create_engine("sqlite://", connect_args={"factory": Driver}, poolclass=StaticPool)
    rows = await collect_rows([{**VALUES, "size_bytes": 7, "digest": "sha256:" + "ab" * 32}])
    with engine.begin() as connection:
        Base.metadata.create_all(connection)
        connection.exec_driver_sql(
            "INSERT INTO models (provider, reference, local_path) VALUES ('hf', 'known', '/')"
        )
        write_batches(connection, BulkRows(rows))
    engine.dispose()

    (insert, (inserted,)), (upsert, (upserted,)) = statements
    columns = re.match(r"INSERT OR FAIL INTO models \(([^)]*)\)", insert)[1].split(", ")
    assert len(inserted) == insert.count("?") == len(columns)
    # And the largest id that a known row can have.
    assert len(upserted) == upsert.count("?") == len(columns) + 1

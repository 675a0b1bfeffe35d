"""Counts, totals and statistics are the sums of the rows, whoever has written them."""

import io
import random
import sqlite3
from collections import defaultdict
from contextlib import closing

import pytest
from conftest import a_model
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from model_catalog import Model, ModelTotals, check_schema, downgrade, open_catalog, upgrade
from model_catalog.repository.operations import registration
from model_catalog.repository.statements.totals import model_totals

FILTERS = ("provider", "format", "architecture", "quantization", "store")
GROUPS = FILTERS[:4]
VALUES = {
    "provider": ("hf", "local"),
    "format": ("gguf", "safetensors", None),
    "claimed_format": ("gguf", None, None),
    "architecture": ("llama", "qwen2", None),
    "claimed_architecture": ("llama", None, None),
    "quantization": ("Q4_K_M", None),
    "claimed_quantization": ("Q8_0", None, None),
    "size_bytes": (None, 0, 7, 2**32, 2**62 + 5, 2**63 - 1),
    "local_path": ("/models/a", "/models/b", "/models/c", "/models/d"),
}
RAW_VALUES = VALUES | {
    "format": ("gguf", "", None),
    "store": ("ollama", "", None),
    "host": ("", "", "gpu-07"),
    "inventoried_at": (None, None, 1_700_000_000),
}
FIX = "DELETE FROM model_totals_progress"


@pytest.fixture
def counted_at_once(monkeypatch):
    """Each registration counts the models, and not one of 1,024."""
    monkeypatch.setattr(model_totals, "COUNT_EVERY", 1)
    monkeypatch.setattr(registration, "_STEP", 1)


def sums_of(database):
    """Return the expected numbers: by filter and value, by group and value, and of all."""
    columns = ", ".join(
        f"coalesce({name}, claimed_{name})" if name in GROUPS[1:] else name for name in FILTERS
    )
    rows = database.run(
        f"SELECT id, {columns}, size_bytes, local_path, inventoried_at FROM models WHERE host = ''"
    )
    files = defaultdict(list)
    for model_id, path, file_id, fingerprint, size in database.run(
        "SELECT model_id, path, file_id, fingerprint, coalesce(disk_bytes, size_bytes)"
        " FROM model_files"
    ):
        files[model_id].append((file_id or fingerprint or f"/{model_id}/{path}", size))
    counts, sizes, disk = defaultdict(int), defaultdict(int), defaultdict(dict)
    for model_id, *values, size, path, inventoried_at in rows:
        own = files[model_id] if inventoried_at is not None else [(path, size or 0)]
        for key in (None, *zip(FILTERS, values, strict=True)):
            counts[key] += 1
            sizes[key] += size or 0
            for file_id, file_size in own:
                disk[key][file_id] = max(disk[key].get(file_id, 0), file_size)
    counts.setdefault(None, 0)
    return {key: ModelTotals(counts[key], sizes[key], sum(disk[key].values())) for key in counts}


async def assert_sums(catalog, database):
    expected = sums_of(database)
    found = await catalog.stats()
    groups = zip(
        GROUPS,
        (found.by_provider, found.by_format, found.by_architecture, found.by_quantization),
        strict=True,
    )
    by_key = {None: found.total} | {
        (name, value): totals for name, by_value in groups for value, totals in by_value.items()
    }
    assert by_key == {key: each for key, each in expected.items() if not key or key[0] != "store"}
    for name in FILTERS:
        for value in {value for values in RAW_VALUES.get(name, ()) for value in [values] if value}:
            totals = expected.get((name, value), ModelTotals(0, 0))
            assert await catalog.count_models(**{name: value}) == totals.model_count
            assert await catalog.get_total_size(**{name: value}) == totals.size_bytes
    assert await catalog.count_models() == expected[None].model_count
    assert await catalog.get_total_size() == expected[None].size_bytes
    assert await catalog.get_disk_usage() == expected[None].disk_bytes


class Writer:
    """Writes random models, through the catalog and with other programs."""

    def __init__(self, catalog, database, seed):
        self.catalog, self.database, self.random = catalog, database, random.Random(seed)

    def fields(self):
        chosen = {name: self.random.choice(values) for name, values in VALUES.items()}
        return chosen | {"reference": f"m{self.random.randrange(25)}"}

    def key(self):
        return self.random.choice(VALUES["provider"]), f"m{self.random.randrange(25)}"

    async def register(self):
        await self.catalog.register_model(Model(**self.fields()))

    async def register_many(self):
        models = [self.fields() for _ in range(self.random.randrange(1, 12))]
        await self.catalog.register_models(models)

    async def remove(self):
        provider, reference = self.key()
        await self.catalog.remove_model(reference, provider)

    async def import_again(self):
        lines = io.BytesIO()
        await self.catalog.export_catalog(lines)
        for _ in range(8):
            await self.remove()
        await self.register()
        lines.seek(0)
        conflict = self.random.choice(("keep", "replace", "newer"))
        await self.catalog.import_catalog(lines, conflict, skip_broken=True)

    async def flush(self):
        url = self.database.target_url
        driver = "sqlite" if url.get_backend_name() == "sqlite" else "postgresql+psycopg"
        engine = create_engine(url.set(drivername=driver))
        with Session(engine) as session, session.begin():
            for model in session.query(Model).order_by(Model.id).limit(3):
                model.size_bytes = self.random.choice(VALUES["size_bytes"])
                model.user_format = self.random.choice(VALUES["format"])
            fields = self.fields() | {"reference": f"orm{self.random.randrange(10**9)}"}
            session.add(Model(**fields))
        engine.dispose()

    async def execute_update(self):
        name = self.random.choice(sorted(set(RAW_VALUES) - {"provider", "host"}))
        value = self.random.choice(RAW_VALUES[name])
        self.database.run(
            f"UPDATE models SET {name} = ? WHERE id - id / 5 * 5 = ?",
            value,
            self.random.randrange(5),
        )

    async def change_host(self):
        # Not into a key that the other host has.
        host = self.random.choice(("", "gpu-07"))
        self.database.run(
            "UPDATE models SET host = ? WHERE id - id / 4 * 4 = ?"
            " AND NOT EXISTS (SELECT 1 FROM models AS o WHERE o.host = ?"
            " AND o.provider = models.provider AND o.reference = models.reference"
            " AND o.version = models.version)",
            *(host, self.random.randrange(4), host),
        )

    async def execute_insert(self):
        self.database.run(
            "INSERT INTO models (provider, reference, local_path, size_bytes, format, store)"
            " VALUES ('hf', ?, '/models/a', 2147483648, ?, ?)",
            f"sql{self.random.randrange(10**9)}",
            self.random.choice(RAW_VALUES["format"]),
            self.random.choice(RAW_VALUES["store"]),
        )

    async def execute_delete(self):
        self.database.run("DELETE FROM models WHERE id - id / 7 * 7 = ?", self.random.randrange(7))

    async def delete_last(self):
        self.database.run("DELETE FROM models WHERE id >= (SELECT max(id) - 2 FROM models)")

    async def add_files(self):
        for file_id in ("1:2", None):
            self.database.run(
                "INSERT INTO model_files (model_id, path, role, size_bytes, file_id, fingerprint)"
                " SELECT id, CAST(? AS TEXT), 'weights', 11 + id, CAST(? AS TEXT), CAST(? AS TEXT)"
                " FROM models WHERE id - id / 3 * 3 = ?",
                *(f"f{self.random.randrange(10**9)}", file_id),
                *(self.random.choice(("print", None)), self.random.randrange(3)),
            )


class SQLiteWriter(Writer):
    """Also executes the statements that only SQLite has."""

    async def replace(self):
        provider, reference = self.key()
        self.database.run(
            "REPLACE INTO models (provider, reference, local_path, size_bytes, architecture)"
            " VALUES (?, ?, '/models/d', 99, 'llama')",
            *(provider, reference),
        )

    async def replace_by_id(self):
        self.database.run(
            "REPLACE INTO models (id, provider, reference, local_path, size_bytes, architecture)"
            " VALUES (?, 'hf', ?, '/models/d', 99, 'qwen2')",
            *(self.random.randrange(1, 40), f"sql{self.random.randrange(10**9)}"),
        )

    async def update_or_replace(self):
        self.database.run(
            "UPDATE OR REPLACE models SET reference = ? WHERE id - id / 9 * 9 = ?",
            *(f"m{self.random.randrange(25)}", self.random.randrange(9)),
        )

    async def change_ids(self):
        self.database.run(
            "UPDATE OR IGNORE models SET id = id + 3 WHERE id - id / 6 * 6 = ?",
            self.random.randrange(6),
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "seed"), [*(("sqlite", seed) for seed in range(3)), ("asyncpg", 0), ("psycopg", 1)]
)
async def test_totals_are_the_sums_of_the_rows_after_any_write(
    catalog, database, counted_at_once, seed
):
    """Every count, total and statistic equals plain sums after writes of all kinds."""
    writer = (SQLiteWriter if database.path else Writer)(catalog, database, seed)
    writes = [name for name in dir(writer) if not name.startswith("_")]
    writes = sorted(set(writes) - {"catalog", "database", "random", "fields", "key"})
    await writer.register_many()

    for _ in range(60):
        await getattr(writer, writer.random.choice(writes))()

        await assert_sums(catalog, database)


@pytest.fixture
async def counted(on_sqlite, sqlite_file, counted_at_once):
    """A catalog with ten models that are counted, and its file."""
    await on_sqlite.register_models(
        [a_model(f"m{n}", size_bytes=n, format="gguf", architecture="llama") for n in range(10)]
    )
    return on_sqlite, sqlite_file


def execute(path, *statements):
    with closing(sqlite3.connect(path)) as raw, raw:
        return [raw.execute(statement).fetchall() for statement in statements][-1]


FILTERED = {name: {name: "x"} for name in FILTERS} | {
    "none": {},
    "two": dict.fromkeys(FILTERS[:2], "x"),
}


@pytest.mark.parametrize("filters", FILTERED.values(), ids=FILTERED)
@pytest.mark.parametrize("analyzed", [False, True], ids=["", "after ANALYZE"])
async def test_a_count_reads_the_counters_and_no_row(counted, filters, analyzed):
    """It searches the counters and the ids above those counted, and counts all by an index."""
    _, path = counted
    values = ", ".join(f"('hf', 's{n}', '/x', 'gguf')" for n in range(300))
    insert = f"INSERT INTO models (provider, reference, local_path, format) VALUES {values}"
    execute(path, insert, *(["ANALYZE"] if analyzed else []))
    engine = create_engine(f"sqlite:///{path}")

    with engine.connect() as connection:
        statements = []
        raw = connection.connection.driver_connection
        raw.set_trace_callback(statements.append)
        found = model_totals.read_counters(connection, filters)
        raw.set_trace_callback(None)
        (statement,) = (each for each in statements if "model_totals" in each)
        plan = [row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {statement}")]
    engine.dispose()

    assert found is not None
    searches = [each for each in plan if "models" in each]
    scans = [each for each in searches if each.startswith("SCAN")]
    assert any(each.startswith("SEARCH model_totals USING PRIMARY KEY (host=?") for each in plan)
    assert scans
    assert all("USING COVERING INDEX" in each for each in scans)
    assert searches.count("SEARCH models USING INTEGER PRIMARY KEY (rowid>?)") == 2


async def test_counts_are_right_while_models_are_not_counted(on_sqlite, sqlite_file):
    """Models above the counted ones are read, and a later registration counts them."""
    await on_sqlite.register_models([a_model(f"m{n}", format="gguf") for n in range(10)])
    values = ", ".join(f"('hf', 's{n}', '/', 'gguf')" for n in range(2037))
    insert = f"INSERT INTO models (provider, reference, local_path, format) VALUES {values}"
    execute(sqlite_file, insert)

    read = await on_sqlite.count_models(format="gguf")
    unchanged = execute(sqlite_file, "SELECT sum(models) FROM model_totals")
    await on_sqlite.register_model(a_model("new"))
    after = execute(sqlite_file, "SELECT sum(models) FROM model_totals")

    assert read == 2047
    assert (unchanged, after) == ([(10,)], [(2048,)])


async def test_a_total_of_counters_is_exact_beyond_2_63(counted):
    """The sums of the upper and the lower 32 bits do not overflow."""
    catalog, path = counted
    execute(path, f"UPDATE models SET size_bytes = {2**63 - 1}")

    total = await catalog.get_total_size(format="gguf")
    found = await catalog.stats()

    assert total == found.total.size_bytes == 10 * (2**63 - 1)


@pytest.mark.slow
async def test_a_replaced_row_makes_reads_use_the_table(counted):
    """REPLACE deletes a row without a trigger; counts stay right, and a write counts anew."""
    catalog, path = counted
    execute(
        path,
        "REPLACE INTO models (provider, reference, local_path, format)"
        " VALUES ('hf', 'm3', '/', 'onnx')",
    )

    counts = await catalog.count_models(format="gguf"), await catalog.count_models(format="onnx")
    total, of_groups = await catalog.get_total_size(), await catalog.stats()
    problems = await check_schema(path)
    await catalog.register_model(a_model("new"))

    assert counts == (9, 1)
    assert total == of_groups.total.size_bytes == sum(range(10)) - 3
    assert len(problems) == 1
    assert problems[0].startswith("model_totals: the counters are not those of the models")
    assert await check_schema(path) == []


@pytest.mark.slow
async def test_the_named_statement_repairs_the_counters(counted):
    """Changes without triggers are found by `db check`, which names the statement that helps."""
    catalog, path = counted
    ((trigger,),) = execute(
        path, "SELECT sql FROM sqlite_master WHERE name = 'model_totals_update'"
    )
    execute(path, "DROP TRIGGER model_totals_update", "UPDATE models SET format = 'onnx'", trigger)

    (problem,) = await check_schema(path)
    execute(path, FIX)
    counts = await catalog.count_models(format="onnx"), await catalog.count_models(format="gguf")
    await catalog.register_model(a_model("new"))

    assert FIX in problem
    assert counts == (10, 0)
    assert await check_schema(path) == []
    assert execute(path, "SELECT sum(models) FROM model_totals") == [(11,)]


@pytest.mark.slow
async def test_a_missing_trigger_is_a_problem(counted):
    """`db check` names it, and the statement that creates it."""
    _, path = counted
    execute(path, "DROP TRIGGER model_totals_delete")

    (problem,) = await check_schema(path)

    assert problem.startswith("schema: model_totals_delete is missing or was changed")
    assert "CREATE TRIGGER model_totals_delete AFTER DELETE ON models" in problem


@pytest.mark.slow
async def test_a_migration_counts_the_rows(sqlite_file):
    """An upgrade of a file with rows counts them, and the counters go and come with revisions."""
    async with open_catalog(sqlite_file) as catalog:
        models = [a_model(f"m{n}", size_bytes=2**62, format="gguf") for n in range(5)]
        await catalog.register_models(models)

    await downgrade(sqlite_file, "0026")
    tables = execute(sqlite_file, "SELECT name FROM sqlite_master WHERE name LIKE 'model_totals%'")
    await upgrade(sqlite_file)

    assert tables == []
    assert execute(sqlite_file, "SELECT * FROM model_totals") == [
        ("", "hf", "gguf", 0, 0, 0, 5, 5 * 2**30, 0)
    ]
    assert execute(sqlite_file, "SELECT counted_to FROM model_totals_progress") == [(5,)]
    assert await check_schema(sqlite_file) == []


async def test_removing_the_last_model_lets_its_id_be_counted_again(counted):
    """SQLite gives the largest id again; the model that gets it is counted."""
    catalog, path = counted
    await catalog.remove_model("m9", "hf")
    await catalog.register_model(a_model("again", format="gguf"))

    assert await catalog.count_models(format="gguf") == 10
    assert await check_schema(path) == []


@pytest.mark.parametrize("conflict", ["", "OR ABORT", "OR FAIL", "OR IGNORE", "OR REPLACE"])
async def test_an_insert_below_the_counted_ids_is_counted(counted, conflict):
    """The trigger adds it, under each conflict clause that the INSERT can have."""
    catalog, path = counted
    execute(path, "DELETE FROM models WHERE id = 4")

    execute(
        path,
        f"INSERT {conflict} INTO models (id, provider, reference, local_path, format)"
        " VALUES (4, 'hf', 'four', '/', 'gguf')",
    )

    assert await catalog.count_models(format="gguf") == 10
    assert execute(path, "SELECT sum(models) FROM model_totals") == [(10,)]
    assert await check_schema(path) == []

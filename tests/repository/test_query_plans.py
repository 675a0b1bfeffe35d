"""How both databases read the pages of listings: from indexes, also with skewed statistics."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Database, a_model, moment, postgresql_database
from sqlalchemy import Connection, Engine, create_engine, event

from model_catalog import ModelRow, Sort
from model_catalog.execution.executor import Operation
from model_catalog.repository.operations import lookup
from model_catalog.repository.operations.listing import list_page
from model_catalog.repository.statements.row_conversion import to_rows
from model_catalog.repository.statements.totals.model_totals import count_new_models

MODELS = 30_000
KEY_INDEX = {
    "sqlite": "sqlite_autoindex_models_1",
    "postgresql": "uq_models_host_provider_reference_version",
}
NEWEST = "ix_models_newest_first"
USED = "ix_models_last_used"
COUNTED = "ix_models_most_used"
SIZES = "ix_models_host_sizes"
NAMES = {"sqlite": KEY_INDEX["sqlite"], "postgresql": "ix_models_name"}


def fill(database: Database) -> None:
    """Add models, of which 99 % have one provider, one format and no use."""
    numbers = (
        "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers"
        f" LIMIT {MODELS})"
        if database.path is not None
        else f"WITH numbers AS (SELECT generate_series(1, {MODELS}) AS n)"
    )
    database.run(
        "INSERT INTO models (provider, reference, version, local_path, downloaded_at, size_bytes,"
        " use_count, last_used_at, format, claimed_architecture, store)"
        f" {numbers} SELECT CASE WHEN n % 100 > 0 THEN 'hf' ELSE 'local' END, 'm' || n, '', '/m',"
        " CASE WHEN n % 50 > 0 THEN n END, CASE WHEN n % 50 > 0 THEN n * 7 END,"
        " CASE WHEN n % 100 = 7 THEN n % 5 + 1 ELSE 0 END, CASE WHEN n % 100 = 7 THEN n END,"
        " CASE WHEN n % 100 > 0 THEN 'gguf' END,"
        " CASE WHEN n % 200 = 9 THEN 'rwkv' WHEN n % 3 > 0 THEN 'llama' ELSE 'qwen2' END,"
        " CASE WHEN n % 1000 = 0 THEN 'ollama' END FROM numbers"
    )


def count_all(database: Database) -> None:
    """Count the models, as a write of the catalog does."""
    counting = create_engine(database.target_url.set(drivername="sqlite"))
    with counting.begin() as connection:
        count_new_models(connection, at_most=MODELS)
    counting.dispose()


# A server collects statistics by itself, within a minute. SQLite has none without ANALYZE.
@pytest.fixture(
    scope="module",
    params=["sqlite", "sqlite with statistics", "postgresql"],
)
def engine(request, tmp_path_factory) -> Iterator[Engine]:
    """An engine of a database with 30,000 models."""
    if request.param == "postgresql":
        url = request.getfixturevalue("pg_migrated")
        database = postgresql_database("asyncpg", url)
        database.delete_rows()
        driver = "postgresql+psycopg"
    else:
        template = request.getfixturevalue("sqlite_migrated")
        path = Path(shutil.copy(template, tmp_path_factory.mktemp("plans") / "catalog.db"))
        database = Database("sqlite", str(path), path=path)
        driver = "sqlite"
    fill(database)
    if database.path is not None:
        count_all(database)
    if request.param != "sqlite":
        database.run("ANALYZE")
    engine = create_engine(database.target_url.set(drivername=driver))
    yield engine
    engine.dispose()
    if request.param == "postgresql":
        database.delete_rows()
        database.run("ANALYZE models")


def plan_of(engine: Engine, **options: Any) -> str:
    """Read a page of 50, and return the plans of its statements."""
    dialect = engine.dialect.name
    page = {"sort": Sort.DOWNLOADED_AT, "descending": None, "limit": 50, "after": None}
    filters = {name: options.pop(name) for name in list(options) if name not in page}
    return plan_of_operation(engine, list_page(to_rows, dialect, filters, **{**page, **options}))


def plan_of_operation(engine: Engine, operation: Operation[Any, Any]) -> str:
    """Run an operation, and return the plans of its statements."""
    dialect = engine.dialect.name
    plans: list[str] = []
    with engine.connect() as connection:
        explain = listener_that_explains(connection, plans)
        event.listen(connection, "before_cursor_execute", explain)
        if dialect == "sqlite":
            # A prepared statement is executed on the driver, past the listeners.
            driver = connection.connection.driver_connection
            statements: list[str] = []
            driver.set_trace_callback(statements.append)
            operation.run_one(connection, operation.value)
            driver.set_trace_callback(None)
            for sql in statements:
                if sql.lstrip().startswith(("SELECT", "WITH")):
                    steps = driver.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall()
                    plans += [step[3] for step in steps]
        else:
            operation.run_one(connection, operation.value)
    return "\n".join(plans)


def listener_that_explains(connection: Connection, plans: list[str]) -> Callable[..., None]:
    def explain(_connection, _cursor, text, parameters, _context, _many) -> None:
        if connection.dialect.name == "postgresql" and not text.startswith("EXPLAIN"):
            rows = connection.exec_driver_sql(f"EXPLAIN {text}", parameters)
            plans.extend(row[0] for row in rows)

    return explain


def reads_all_models(plan: str) -> bool:
    return any(
        step.startswith("SCAN models") or "Seq Scan on models" in step for step in plan.splitlines()
    )


def place(sort: Sort, where: str) -> ModelRow | Any:
    """A model after which a page starts: one with a value, or one without."""
    fields = {"downloaded_at": moment(9_000), "size_bytes": 63_000}
    model = a_model("m9007", provider="hf", version="", **fields)
    model.use_count = 3
    model.last_used_at = moment(9_007)
    if where == "without a value":
        model.downloaded_at = model.size_bytes = model.last_used_at = None
        model.use_count = 0
    return model


ORDERS = {
    "newest": (Sort.DOWNLOADED_AT, True, NEWEST),
    "oldest": (Sort.DOWNLOADED_AT, False, NEWEST),
    "largest": (Sort.SIZE_BYTES, True, SIZES),
    "smallest": (Sort.SIZE_BYTES, False, SIZES),
    "last used": (Sort.LAST_USED_AT, True, USED),
    "first used": (Sort.LAST_USED_AT, False, USED),
    "most used": (Sort.USE_COUNT, True, COUNTED),
    "by name": (Sort.REFERENCE, False, NAMES),
    "by name, backwards": (Sort.REFERENCE, True, NAMES),
    "by provider": (Sort.PROVIDER, False, KEY_INDEX),
    "by provider, backwards": (Sort.PROVIDER, True, KEY_INDEX),
}
FILTERS = {
    "alone": {},
    "provider": {"provider": "hf"},
    "architecture": {"architecture": "llama"},
    "format": {"format": "gguf"},
}


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_the_first_page_of_an_order_is_read_from_its_index(engine, order, filters):
    """Neither alone nor behind a filter that many models pass are all models read."""
    sort, descending, index = order
    index = index if isinstance(index, str) else index[engine.dialect.name]
    if engine.dialect.name == "postgresql" and "provider" in filters:
        # Its planner may take the key, which is as good for the models of one provider.
        index = "Index"

    plan = plan_of(engine, sort=sort, descending=descending, **filters)

    assert index in plan, plan
    assert not reads_all_models(plan), plan


@pytest.mark.parametrize("where", ["with a value", "without a value"])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_a_later_page_of_an_order_starts_in_its_index(engine, order, where):
    """The page begins at its place, after a model with a value or without one."""
    sort, descending, index = order

    plan = plan_of(engine, sort=sort, descending=descending, after=place(sort, where))

    assert not reads_all_models(plan), plan
    if engine.dialect.name == "sqlite" and index not in (NAMES, KEY_INDEX):
        # The key is only for the models without a value.
        assert plan.count(KEY_INDEX["sqlite"]) <= 1, plan
    assert (
        "USE TEMP B-TREE FOR ORDER BY" not in plan.split("LIST SUBQUERY")[-1].split("USE TEMP")[0]
    )


@pytest.mark.parametrize("sort", [Sort.SIZE_BYTES, Sort.DOWNLOADED_AT, Sort.LAST_USED_AT])
@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({"store": "ollama"}, {"sqlite": "ix_models_store", "postgresql": "ix_models_store"}),
        ({"provider": "local"}, KEY_INDEX),
    ],
    ids=["store", "provider"],
)
def test_a_rare_store_or_provider_is_found_by_its_own_index(engine, sort, filters, index):
    """Its models are sorted, in whatever order they are listed."""
    plan = plan_of(engine, sort=sort, **filters)

    assert not reads_all_models(plan), plan
    if engine.dialect.name == "sqlite":
        assert f"USING INDEX {index['sqlite']}" in plan, plan


@pytest.mark.parametrize("where", ["with a value", "without a value"])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_a_later_page_behind_a_provider_does_not_sort_all_its_models(engine, order, where):
    """The page begins at its place among the models of the provider."""
    sort, descending, _ = order
    after = place(sort, where)

    plan = plan_of(engine, sort=sort, descending=descending, after=after, provider="hf")

    assert not reads_all_models(plan), plan
    # SQLite would begin after the key, but would take its models to be in no order.
    assert "(provider,reference,version)>" not in plan, plan


def test_a_provider_of_most_models_is_read_row_by_row_if_no_index_has_the_order(engine):
    """To read each row by way of an index took ten times as long on SQLite."""
    plan = plan_of(engine, sort=Sort.PARAMETER_COUNT, provider="hf")

    if engine.dialect.name == "sqlite":
        assert "SCAN models\n" in plan, plan
    else:
        assert "Seq Scan on models" in plan, plan


@pytest.mark.parametrize("version", [None, ""], ids=["any version", "exact version"])
def test_the_models_of_many_keys_are_found_by_the_index_of_the_key(engine, version):
    """The keys are read one after the other, and each is looked up."""
    keys = [lookup.LookupKey(f"m{number}", "hf", version) for number in (7, 8, 9)]

    plan = plan_of_operation(engine, Operation(lookup.find_many, keys))

    assert not reads_all_models(plan), plan
    if engine.dialect.name == "postgresql":
        assert KEY_INDEX["postgresql"] in plan or NAMES["postgresql"] in plan, plan
    else:
        assert KEY_INDEX["sqlite"] in plan, plan
        steps = plan.splitlines()
        assert steps[0].startswith("SCAN given"), plan
        assert steps[1] == "SEARCH models USING INTEGER PRIMARY KEY (rowid=?)", plan


@pytest.mark.parametrize("sort", [Sort.SIZE_BYTES, Sort.DOWNLOADED_AT, Sort.REFERENCE])
def test_a_page_of_a_rare_value_is_searched_among_more_models(engine, sort):
    """One model in 200 has it, and the counters tell how many have to be searched on SQLite."""
    plan = plan_of(engine, sort=sort, architecture="rwkv", limit=2)

    assert not reads_all_models(plan), plan

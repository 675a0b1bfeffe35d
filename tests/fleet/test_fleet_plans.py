"""How PostgreSQL executes the questions about all hosts: by the indexes that are for them."""

from collections.abc import Iterator

import postgres
import pytest
from fleet_database import host_name, insert_fleet, reference_name
from sqlalchemy import Engine, create_engine, event

from model_catalog.repository.operations.fleet.copies import CopyQuery, select_copies
from model_catalog.repository.operations.fleet.hosts import Heartbeat, record_heartbeats
from model_catalog.repository.operations.fleet.models import list_page
from model_catalog.repository.operations.fleet.totals import select_totals
from model_catalog.repository.operations.lookup import LookupKey

pytestmark = pytest.mark.slow

HOSTS, MODELS = 100, 500


@pytest.fixture(scope="module")
def engine(pg_migrated) -> Iterator[Engine]:
    """An engine of a database with 50,000 models on 100 hosts."""
    url = pg_migrated.set(drivername="postgresql+psycopg")
    engine = create_engine(url)
    insert_fleet(postgres.dsn(pg_migrated), hosts=HOSTS, models=MODELS)
    yield engine
    with engine.begin() as connection:
        connection.exec_driver_sql("TRUNCATE models, model_hosts CASCADE")
    engine.dispose()


def plans_of(engine: Engine, function, value) -> str:
    """Run an operation, and return the plans of its statements."""
    statements = []
    with engine.begin() as connection:
        event.listen(
            connection,
            "before_cursor_execute",
            lambda _c, _cursor, text, parameters, _context, _many: statements.append(
                (text, parameters)
            ),
        )
        function(connection, value)
        plans = [
            row[0]
            for text, parameters in list(statements)
            for row in connection.exec_driver_sql(f"EXPLAIN {text}", parameters)
        ]
        connection.rollback()
    return "\n".join(plans)


def fetch_first_page(connection, limit):
    operation = list_page("postgresql", {}, hosts=None, limit=limit, after=None)
    return operation.run_one(connection, operation.value)


@pytest.mark.parametrize("version", [None, "main"], ids=["every version", "one version"])
def test_the_copies_of_a_model_are_found_by_its_name(engine, version):
    """No part of the statement reads the models of a whole host."""
    key = LookupKey(reference_name(7), "hf", version)

    plan = plans_of(engine, select_copies, CopyQuery(key, 60.0))

    assert "ix_models_copies" in plan
    assert "Seq Scan on models" not in plan


def test_the_totals_are_read_from_an_index_alone(engine):
    """The rows of the models are not read."""
    plan = plans_of(engine, select_totals, 60.0)

    assert "Index Only Scan using ix_models_host_sizes" in plan
    assert "Seq Scan on models" not in plan


def test_a_page_of_all_hosts_is_read_in_the_order_of_the_key(engine):
    """No page sorts the rows of all hosts."""
    plan = plans_of(engine, fetch_first_page, 50)

    assert "uq_models_host_provider_reference_version" in plan
    assert "Sort" not in plan


def test_a_heartbeat_finds_its_host_by_the_key(engine):
    """It is one UPDATE of one row."""
    plan = plans_of(engine, record_heartbeats, Heartbeat(host_name(7), 5))

    assert plan.count("Update on model_hosts") == 1
    assert len([line for line in plan.splitlines() if "Update on" in line]) == 1

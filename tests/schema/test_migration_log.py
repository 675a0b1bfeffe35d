"""What opening and upgrading a catalog logs."""

import logging
import subprocess
import sys

import pytest
from sqlalchemy import create_engine

from model_catalog import downgrade, open_catalog, upgrade, upgrade_connection
from model_catalog.mapping.revisions import head_revision

HEAD = head_revision()


@pytest.fixture(autouse=True)
def at_info(caplog):
    caplog.set_level(logging.INFO)


async def test_creating_a_catalog_logs_one_line(empty, caplog):
    """
    It names the database without its password, and the revision. Opening it again logs nothing.
    """
    for _ in range(2):
        async with open_catalog(empty.target):
            pass

    (record,) = caplog.records
    message = record.getMessage()
    name = str(empty.path) if empty.path else empty.url.database
    assert (record.levelname, record.name.partition(".")[0]) == ("INFO", "model_catalog")
    assert message.startswith("created the catalog at ")
    assert message.endswith(f" at revision {HEAD}")
    assert name in message


async def test_a_migration_logs_its_two_revisions(tmp_path, caplog):
    """
    One line, with no word of Alembic about the steps.
    """
    path = tmp_path / "catalog.db"
    await upgrade(path)
    await downgrade(path, "0010")
    caplog.clear()

    await upgrade(path)

    (message,) = caplog.messages
    assert message.endswith(f"from revision model_catalog_0010 to {HEAD}")


def test_the_migration_of_a_hosts_connection_logs_one_line(tmp_path, caplog):
    """
    Alembic logs what a host does with it, before and afterwards.
    """
    from alembic.migration import MigrationContext

    engine = create_engine(f"sqlite:///{tmp_path / 'host.db'}")
    with engine.connect() as connection:
        upgrade_connection(connection)
        messages = list(caplog.messages)
        MigrationContext.configure(connection)
    engine.dispose()

    assert len(messages) == 1
    assert "Context impl SQLiteImpl." in caplog.messages


async def test_a_password_is_not_logged(empty, caplog):
    """
    The line has the name that error messages have too.
    """
    if empty.url is None:
        pytest.skip("a path has no password")

    target = empty.url.set(drivername=f"postgresql+{empty.backend}", password="secret-of-the-test")
    await upgrade(target)

    assert caplog.messages
    assert "secret-of-the-test" not in caplog.text


@pytest.mark.slow
def test_a_new_process_logs_one_line(tmp_path):
    """
    Importing Alembic for the first time logs nothing either.
    """
    program = (
        "import asyncio, logging, sys, model_catalog\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "asyncio.run(model_catalog.upgrade(sys.argv[1]))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "catalog.db"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert len(done.stderr.splitlines()) == 1

"""Each test runs on SQLite, and on the server of TEST_POSTGRESQL_URL if it is set."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from fastapi.testclient import TestClient
from sqlalchemy import URL

from placements.app import create_app

pytest_plugins = ["model_catalog.testing"]


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def model_catalog_server(request: pytest.FixtureRequest) -> str | None:
    """Name the server on which `model_catalog_url` makes its databases."""
    if request.param == "sqlite":
        return None
    if "TEST_POSTGRESQL_URL" not in os.environ:
        pytest.skip("TEST_POSTGRESQL_URL is not set")
    return os.environ["TEST_POSTGRESQL_URL"]


@pytest.fixture
def alembic_config(model_catalog_url: URL) -> Config:
    """Return the Alembic configuration of the service for a temporary database."""
    config = Config(Path(__file__).parents[1] / "alembic.ini")
    config.attributes["url"] = model_catalog_url.render_as_string(hide_password=False)
    return config


@pytest.fixture
def client(alembic_config: Config) -> Iterator[TestClient]:
    """Return a client of the service, which runs on a migrated database."""
    command.upgrade(alembic_config, "head")
    with TestClient(create_app(alembic_config.attributes["url"])) as client:
        yield client

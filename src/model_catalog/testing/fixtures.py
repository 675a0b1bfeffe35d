"""The pytest fixtures. They are synchronous, so they need no plugin for asynchronous tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import URL, NullPool
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog.connection.engines import prepare_engine
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.testing.databases import temporary_database


@pytest.fixture(scope="session")
def model_catalog_server() -> str | None:
    """Return the `server` of temporary_database: None is SQLite. Override it in a conftest.py."""
    return None


@pytest.fixture
def model_catalog_url(model_catalog_server: str | URL | None) -> Iterator[URL]:
    """Return the URL of a database with an empty catalog, which is removed after the test."""
    with temporary_database(model_catalog_server) as url:
        yield url


@pytest.fixture
def model_catalog(model_catalog_url: URL) -> ModelCatalog:
    """
    Return an empty catalog, which can be used in any event loop.

    Each call opens a connection of its own, and closes it.
    """
    # A connection in a pool would belong to the loop that opened it.
    engine = create_async_engine(model_catalog_url, poolclass=NullPool)
    prepare_engine(engine)
    return ModelCatalog(async_sessionmaker(engine))

"""
Empty catalogs for the tests of a service.

    async with temporary_catalog() as catalog:
        await catalog.register_model(Model(reference="m", provider="hf", local_path="/m"))

For the fixtures, write `pytest_plugins = ["model_catalog.testing"]` in the top-level conftest.py.
Without that line this package does not import pytest.
"""

from model_catalog.testing.databases import temporary_catalog, temporary_database

__all__ = ["temporary_catalog", "temporary_database"]

# Pytest loads the modules that a plugin names here.
pytest_plugins = ["model_catalog.testing.fixtures"]

"""PostgreSQL databases that are not in UTF-8: initdb makes SQL_ASCII where no locale is set."""

import asyncio
import os

import postgres
import psycopg
import pytest
from conftest import a_model, postgresql_database
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import CatalogError, InvalidTargetError, ModelCatalog, check_schema, open_catalog

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("backend", ["asyncpg", "psycopg"])]

NAMES = ["a", "b", "日本", "c"]


@pytest.fixture(params=["SQL_ASCII", "LATIN1"])
def encoding(request):
    return request.param


@pytest.fixture
def encoded(pg_server, backend, encoding):
    """An empty database in an encoding."""
    name = f"model_catalog_encoding_{os.getpid()}"
    with psycopg.connect(postgres.dsn(pg_server), autocommit=True) as admin:
        admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        admin.execute(
            f"CREATE DATABASE \"{name}\" ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
            " TEMPLATE template0"
        )
        yield postgresql_database(backend, pg_server.set(database=name))
        admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


async def test_only_a_character_that_the_encoding_lacks_is_refused(encoded, encoding):
    """
    SQL_ASCII stores every text. In LATIN1 one name of four cannot be stored or looked up, and the
    calls that share its batch succeed.
    """
    async with open_catalog(encoded.target) as catalog:
        for call in (
            lambda name: catalog.register_model(a_model(name)),
            lambda name: catalog.find_model(name, "hf"),
            lambda name: catalog.tag_model("a", "hf", name),
        ):
            found = await asyncio.gather(*map(call, NAMES), return_exceptions=True)
            refused = [error for error in found if isinstance(error, BaseException)]

            assert len(refused) == (encoding == "LATIN1")
            assert all(type(error) is CatalogError for error in refused)
            assert all("ENCODING 'UTF8'" in str(error) for error in refused)
        names = {model.reference for model in await catalog.list_models()}
        assert names == set(NAMES) - ({"日本"} if encoding == "LATIN1" else set())
    assert await check_schema(encoded.target) == []


async def test_a_host_engine_works_or_is_refused_in_words(encoded, encoding, backend):
    """
    A host's psycopg follows the encoding of the database, and cannot read SQL_ASCII as text.
    """
    async with open_catalog(encoded.target):
        pass
    engine = create_async_engine(encoded.target)
    catalog = ModelCatalog(async_sessionmaker(engine))
    if (backend, encoding) == ("psycopg", "SQL_ASCII"):
        with pytest.raises(InvalidTargetError, match="client_encoding"):
            await catalog.register_model(a_model("a"))
        with pytest.raises(InvalidTargetError, match="client_encoding"):
            async with open_catalog(engine):
                pass
    else:
        await catalog.register_model(a_model("a"))
        for call in (
            lambda: catalog.register_model(a_model("日本")),
            lambda: catalog.find_model("日本", "hf"),
            lambda: catalog.register_models([a_model("b"), a_model("日本")]),
        ):
            if encoding == "LATIN1":
                with pytest.raises(CatalogError, match="ENCODING 'UTF8'"):
                    await call()
            else:
                await call()
    await engine.dispose()

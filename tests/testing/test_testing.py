"""`model_catalog.testing` gives a service's tests empty catalogs, and removes them."""

import os
import subprocess
import sys
from pathlib import Path

import postgres
import psycopg
import pytest
from conftest import a_model
from sqlalchemy import make_url

from model_catalog import (
    CatalogUnavailableError,
    InvalidTargetError,
    check_schema,
    open_catalog,
)
from model_catalog.testing import temporary_catalog, temporary_database

CONFTEST = """
import os
import pytest

pytest_plugins = ["model_catalog.testing"]

@pytest.fixture(scope="session")
def model_catalog_server():
    return os.environ.get("SERVER")
"""
TESTS = """
import asyncio
import os
import unittest
import pytest
from model_catalog import Model, check_schema
from model_catalog.testing import temporary_catalog

MODEL = Model(reference="m", provider="hf", local_path="/m")

async def use(catalog):
    assert await catalog.list_models() == []
    await catalog.register_model(MODEL)
    async with catalog.transaction() as inner:
        await inner.tag_model("m", "hf", "chat")
    assert await catalog.count_models(tags=["chat"]) == 1

@pytest.mark.asyncio
async def test_pytest_asyncio(model_catalog):
    await use(model_catalog)

@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_anyio(model_catalog, anyio_backend):
    await use(model_catalog)

def test_several_loops(model_catalog):
    asyncio.run(use(model_catalog))
    assert asyncio.run(model_catalog.count_models()) == 1

def test_current(model_catalog_url):
    assert asyncio.run(check_schema(model_catalog_url)) == []

class TestUnittest(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.catalog = await self.enterAsyncContext(temporary_catalog(os.environ.get("SERVER")))

    async def test_unittest(self):
        await use(self.catalog)

    async def test_again(self):
        await use(self.catalog)
"""


@pytest.fixture(params=[None, "asyncpg", "psycopg"], ids=["sqlite", "asyncpg", "psycopg"])
def server(request) -> str | None:
    if request.param is None:
        return None
    url = request.getfixturevalue("pg_server").set(drivername=f"postgresql+{request.param}")
    return url.render_as_string(hide_password=False)


@pytest.fixture
def own_role(pg_server):
    """A role that may create databases. It can only be dropped if it has left none."""
    name = f"model_catalog_tester_{os.getpid()}"
    with psycopg.connect(postgres.dsn(pg_server), autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN CREATEDB PASSWORD 'secret'")
        yield pg_server.set(username=name, password="secret")
        admin.execute(f"DROP ROLE {name}")


async def test_a_temporary_file_is_removed():
    """It has a catalog at the newest revision, and exists in the block only."""
    with temporary_database() as url:
        path = Path(url.database)
        async with open_catalog(url, upgrade=False) as catalog:
            await catalog.register_model(a_model("m"))
        assert await check_schema(url) == []
        assert path.stat().st_mode & 0o777 == 0o600

    assert not path.parent.exists()


@pytest.mark.slow_with("asyncpg", "psycopg")
async def test_temporary_catalogs_are_independent(server):
    """Each is empty at first. An error in the block leaves it unchanged."""
    async with temporary_catalog(server) as first:
        await first.register_model(a_model("m"))
        with pytest.raises(ZeroDivisionError):
            async with temporary_catalog(server) as second:
                assert await second.count_models() == 0
                raise ZeroDivisionError

        assert await first.count_models() == 1


@pytest.mark.slow
def test_open_connections_do_not_keep_a_database(pg_server):
    """The server closes them when the database is dropped."""
    with temporary_database(pg_server) as url:
        left_open = psycopg.connect(postgres.dsn(url))

    with pytest.raises(psycopg.OperationalError):
        left_open.execute("SELECT 1")
    left_open.close()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(postgres.dsn(url))


@pytest.mark.parametrize("server", ["catalog.db", "sqlite:////tmp/catalog.db", ""])
def test_only_a_server_can_be_named(server):
    """A file is made by the function itself."""
    with pytest.raises(InvalidTargetError), temporary_database(server):
        pass


def test_a_server_that_does_not_answer_is_unavailable():
    """No error of a driver is raised."""
    url = make_url("postgresql+asyncpg://nobody:secret@127.0.0.1:1/none")

    with pytest.raises(CatalogUnavailableError) as caught, temporary_database(url):
        pass

    assert "secret" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("on", "mode"),
    [("sqlite", "auto"), ("sqlite", "strict"), ("postgresql", "strict")],
    ids=lambda value: value,
)
def test_the_fixtures_work_with_every_runner(on, mode, tmp_path, request):
    """In two worker processes; afterwards no database is left on the server."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_service.py").write_text(TESTS)
    settings = f"asyncio_mode = {mode}\nasyncio_default_fixture_loop_scope = function\n"
    (tmp_path / "pytest.ini").write_text(f"[pytest]\n{settings}filterwarnings = error\n")
    environment = dict(os.environ)
    if on == "postgresql":
        url = request.getfixturevalue("own_role").set(drivername="postgresql+asyncpg")
        environment["SERVER"] = url.render_as_string(hide_password=False)
    words = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider"]

    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout


@pytest.mark.slow
def test_pytest_is_not_imported():
    """A service may use the functions with another test runner."""
    program = "import sys, model_catalog.testing; sys.exit('pytest' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

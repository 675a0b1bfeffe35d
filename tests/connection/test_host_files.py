"""The file of a host's engine whose URL does not name it plainly."""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import aiosqlite
import pytest
from conftest import a_model
from sqlalchemy import URL, AsyncAdaptedQueuePool, StaticPool
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import ModelCatalog, backup, open_catalog, upgrade
from model_catalog.errors import ProtectedFileError
from model_catalog.upkeep import register_path


def uri_url(uri: str, **parameters: str) -> URL:
    return URL.create("sqlite+aiosqlite", database=uri, query={"uri": "true", **parameters})


def with_uri(path: Path):
    return create_async_engine(uri_url(f"file:{quote(str(path))}"))


def with_uri_of_authority(path: Path):
    return create_async_engine(uri_url(f"file://localhost{quote(str(path))}", mode="rwc"))


def with_creator(path: Path):
    return create_async_engine(
        "sqlite+aiosqlite://",
        async_creator=lambda: aiosqlite.connect(path),
        poolclass=AsyncAdaptedQueuePool,
    )


def with_creator_of_another_file(path: Path):
    return create_async_engine(
        f"sqlite+aiosqlite:///{path.parent}/not-this.db",
        async_creator=lambda: aiosqlite.connect(path),
    )


ENGINES = {
    "URI": with_uri,
    "URI with an authority": with_uri_of_authority,
    "creator": with_creator,
    "creator beside a URL": with_creator_of_another_file,
}


@pytest.fixture
def path(sqlite_file, tmp_path) -> Path:
    """The host's file, whose name a URI must encode."""
    return sqlite_file.rename(tmp_path / "the host's model #1%.gguf")


@pytest.fixture(params=ENGINES.values(), ids=ENGINES)
async def engine(request, path):
    engine = request.param(path)
    yield engine
    await engine.dispose()


async def test_file_of_the_engine_is_protected(engine, path):
    """
    A scan or an inspection does not open the file, because closing it would drop SQLite's locks.
    """
    catalog = ModelCatalog(async_sessionmaker(engine))

    with pytest.raises(ProtectedFileError):
        await register_path(catalog, path, "m", "hf")

    assert catalog.database_files[0] == path


async def test_files_are_known_after_the_catalog_was_opened(engine, path):
    """
    `database_files` names the file, and messages name it as well.
    """
    async with open_catalog(engine) as catalog:
        assert catalog.database_files[0] == path
        assert repr(str(path)) == catalog._executor.database.name


async def test_backup_of_the_engine_is_a_copy_of_its_file(engine, path, tmp_path):
    """
    `backup` copies the file, of an engine or of a catalog over it.
    """
    catalog = ModelCatalog(async_sessionmaker(engine))
    await catalog.register_model(a_model("m"))

    copies = [
        await backup(engine, tmp_path / "one.db"),
        await backup(ModelCatalog(async_sessionmaker(engine)), tmp_path / "two.db"),
    ]

    for copy in copies:
        with closing(sqlite3.connect(copy)) as raw:
            assert raw.execute("SELECT reference FROM models").fetchall() == [("m",)]


@pytest.mark.parametrize("make", [with_uri, with_creator], ids=["URI", "creator"])
async def test_file_of_the_engine_is_backed_up_before_a_migration(make, tmp_path):
    """
    The copy has the rows and the revision from before the migration.
    """
    path = tmp_path / "host.db"
    engine = make(path)
    await upgrade(engine, "model_catalog_0014")
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("INSERT INTO models (provider, reference, local_path) VALUES ('hf', 'm', '/m')")

    await upgrade(engine)
    await engine.dispose()

    (copy,) = tmp_path.glob("host.db.backup-*")
    with closing(sqlite3.connect(copy)) as raw:
        assert raw.execute("SELECT reference FROM models").fetchall() == [("m",)]
        assert raw.execute("SELECT * FROM model_catalog_version").fetchall() == [
            ("model_catalog_0014",)
        ]


@pytest.mark.parametrize(
    "url",
    [
        "sqlite+aiosqlite://",
        "sqlite+aiosqlite:///file::memory:?cache=shared&uri=true",
        uri_url("file:of-a-host", mode="memory", cache="shared"),
    ],
    ids=["plain", "URI", "URI with a mode"],
)
async def test_database_in_memory_has_no_files(url):
    """
    Neither the URL nor the database names a file.
    """
    engine = create_async_engine(url, poolclass=StaticPool)
    async with open_catalog(engine) as catalog:
        await catalog.register_model(a_model("m"))
        assert catalog.database_files == ()
        assert await catalog.count_models() == 1
    await engine.dispose()

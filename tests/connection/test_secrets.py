"""A secret in a URL is in nothing that is printed, logged, raised or shown of an object."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from bad_files import error_text
from conftest import a_model
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import (
    CatalogError,
    ModelCatalog,
    backup,
    check_schema,
    downgrade,
    open_catalog,
    prepare_engine,
    repair,
    restore,
    schema_state,
    upgrade,
)
from model_catalog.cli import main
from model_catalog.connection.open_database import open_database
from model_catalog.connection.target import resolve_target

SECRET = "hunter2"
KEYS = ("password", "sslpassword", "passfile", "sslkey", "auth", "pwd", "credential", "x")
URLS = {
    "before the host": f"postgresql+{{driver}}://u:{SECRET}@127.0.0.1:1/db",
    **{f"as {key}": f"postgresql+{{driver}}://u@127.0.0.1:1/db?{key}={SECRET}" for key in KEYS},
    "twice": f"postgresql+{{driver}}://u@127.0.0.1:1/db?token={SECRET}&token={SECRET}",
    "in a wrong driver": f"mysql://u:{SECRET}@127.0.0.1:1/db?key={SECRET}",
    "in a file's URL": f"sqlite:///x.db?key={SECRET}",
}


async def opening(url):
    async with open_catalog(url):
        pass


async def a_hosts(url):
    engine = create_async_engine(url)
    try:
        prepare_engine(engine)
        catalog = ModelCatalog(async_sessionmaker(engine))
        assert SECRET not in repr(catalog)
        await catalog.list_models()
    finally:
        await engine.dispose()


async def a_hosts_copy(url):
    engine = create_async_engine(url)
    try:
        await backup(engine, "copy")
    finally:
        await engine.dispose()


async def a_hosts_restoration(url):
    engine = create_async_engine(url)
    try:
        await restore("copy", engine)
    finally:
        await engine.dispose()


ENTRANCES = {
    "open_catalog": opening,
    "upgrade": upgrade,
    "downgrade": lambda url: downgrade(url, "0001"),
    "schema_state": schema_state,
    "check_schema": check_schema,
    "backup": lambda url: backup(url, "copy"),
    "restore": lambda url: restore("copy", url),
    "repair": repair,
    "a host's engine": a_hosts,
    "a copy of a host's": a_hosts_copy,
    "a restoration of a host's": a_hosts_restoration,
}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """An empty folder, to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("url", URLS.values(), ids=URLS)
async def test_no_entrance_tells_a_secret(elsewhere, caplog, capfd, url, driver):
    """
    Whatever is called with a URL, and however it fails: not in a message, a cause, an argument, an
    attribute, a log record, nor on the terminal.
    """
    caplog.set_level(logging.DEBUG)
    target = url.format(driver=driver)
    of_a_host = "postgresql" in target

    for name, enter in ENTRANCES.items():
        if "host" in name and not of_a_host:
            continue
        # A host's own driver says to its host what it likes of a parameter that it does not know.
        expected = (CatalogError, TypeError) if "host" in name else CatalogError
        with pytest.raises(expected) as caught:
            await enter(target)
        assert SECRET not in error_text(caught.value), name

    said = capfd.readouterr()
    assert SECRET not in said.out + said.err
    assert SECRET not in caplog.text
    assert SECRET not in "".join(f"{vars(record)}" for record in caplog.records)
    assert list(elsewhere.iterdir()) == []


COMMANDS = [
    ["ls"],
    ["show", "hf:m"],
    ["rm", "hf:m", "--yes"],
    ["du"],
    ["stats"],
    ["tag", "hf:m", "t"],
    ["export"],
    ["db", "upgrade"],
    ["db", "current"],
    ["db", "check"],
    ["db", "backup", "copy"],
    ["db", "restore", "copy"],
    ["db", "repair"],
]


@pytest.mark.parametrize("way", ["--db", "environment"])
def test_no_command_tells_a_secret(tmp_path, monkeypatch, caplog, capfd, way):
    """
    Neither with the target on its command line nor with it in the environment.
    """
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG)

    for form in URLS.values():
        target = form.format(driver="psycopg")
        for command in COMMANDS if form == URLS["before the host"] else COMMANDS[:1]:
            if way == "environment":
                monkeypatch.setenv("MODEL_CATALOG_URL", target)
            code = main([*command, *(["--db", target] if way == "--db" else [])])
            assert code in (1, 2), command

    said = capfd.readouterr()
    assert said.err.count("error: ") == len(COMMANDS) + len(URLS) - 1
    assert SECRET not in said.out + said.err + caplog.text


def test_the_shells_alembic_tells_none(tmp_path):
    """
    `alembic -x url=...` prints a traceback, in which a URL would be found by any log collector.
    """
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "alembic",
            "-x",
            f"url=postgresql+psycopg://u:{SECRET}@127.0.0.1:1/db?sslpassword={SECRET}",
            "upgrade",
            "head",
        ],
        cwd=Path(__file__).parents[2],
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.returncode != 0
    assert "127.0.0.1" in done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr


async def test_no_object_shows_a_secret():
    """
    What a debugger or a careless log line prints of the package's own objects.
    """
    for form in list(URLS.values())[:10]:
        target = form.format(driver="psycopg")
        place = resolve_target(target)
        assert SECRET not in f"{place} {place!r} {place.name}"
        async with open_database(target, create=False) as database:
            assert SECRET not in f"{database} {database!r}"


def test_what_is_harmless_is_shown():
    """
    Of a server that cannot be reached one wants to know which it is, and how it was asked.
    """
    place = resolve_target(
        "postgresql+psycopg://u:p@h:5433/db?sslmode=require&connect_timeout=3&x=1"
    )

    assert place.name == (
        "postgresql+psycopg://u:***@h:5433/db?connect_timeout=3&sslmode=require&x=***"
    )


async def test_a_value_is_in_no_error_of_a_statement(catalog, database):
    """
    A statement that is refused is told with its parameters hidden: a description may be private.
    """
    await catalog.register_model(a_model("m"))
    database.run("ALTER TABLE models RENAME COLUMN description TO elsewhere")
    try:
        with pytest.raises(CatalogError) as caught:
            await catalog.update_model("m", "hf", description=SECRET)
    finally:
        database.run("ALTER TABLE models RENAME COLUMN elsewhere TO description")

    assert SECRET not in error_text(caught.value)

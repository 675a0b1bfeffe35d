"""A secret in a URL is never printed, logged, raised or shown in a repr."""

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


async def open_and_close(url):
    async with open_catalog(url):
        pass


async def use_host_engine(url):
    engine = create_async_engine(url)
    try:
        prepare_engine(engine)
        catalog = ModelCatalog(async_sessionmaker(engine))
        assert SECRET not in repr(catalog)
        await catalog.list_models()
    finally:
        await engine.dispose()


async def back_up_host_engine(url):
    engine = create_async_engine(url)
    try:
        await backup(engine, "copy")
    finally:
        await engine.dispose()


async def restore_into_host_engine(url):
    engine = create_async_engine(url)
    try:
        await restore("copy", engine)
    finally:
        await engine.dispose()


FUNCTIONS = {
    "open_catalog": open_and_close,
    "upgrade": upgrade,
    "downgrade": lambda url: downgrade(url, "0001"),
    "schema_state": schema_state,
    "check_schema": check_schema,
    "backup": lambda url: backup(url, "copy"),
    "restore": lambda url: restore("copy", url),
    "repair": repair,
    "host engine": use_host_engine,
    "backup of a host engine": back_up_host_engine,
    "restore into a host engine": restore_into_host_engine,
}


@pytest.fixture
def empty_folder(tmp_path, monkeypatch) -> Path:
    """An empty folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("url", URLS.values(), ids=URLS)
async def test_no_function_shows_a_secret(empty_folder, caplog, capfd, url, driver):
    """
    A failing call shows it in no message, cause, argument, attribute or log record, and not on the
    terminal.
    """
    caplog.set_level(logging.DEBUG)
    target = url.format(driver=driver)
    is_postgresql = "postgresql" in target

    for name, function in FUNCTIONS.items():
        if "host" in name and not is_postgresql:
            continue
        # A host's driver may raise a TypeError for an unknown parameter.
        expected = (CatalogError, TypeError) if "host" in name else CatalogError
        with pytest.raises(expected) as caught:
            await function(target)
        assert SECRET not in error_text(caught.value), name

    output = capfd.readouterr()
    assert SECRET not in output.out + output.err
    assert SECRET not in caplog.text
    assert SECRET not in "".join(f"{vars(record)}" for record in caplog.records)
    assert list(empty_folder.iterdir()) == []


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


@pytest.mark.parametrize("source", ["--db", "environment"])
def test_no_command_shows_a_secret(tmp_path, monkeypatch, caplog, capfd, source):
    """The target is given on the command line or in the environment."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG)

    for form in URLS.values():
        target = form.format(driver="psycopg")
        for command in COMMANDS if form == URLS["before the host"] else COMMANDS[:1]:
            if source == "environment":
                monkeypatch.setenv("MODEL_CATALOG_URL", target)
            code = main([*command, *(["--db", target] if source == "--db" else [])])
            assert code in (1, 2), command

    output = capfd.readouterr()
    assert output.err.count("error: ") == len(COMMANDS) + len(URLS) - 1
    assert SECRET not in output.out + output.err + caplog.text


@pytest.mark.slow
def test_the_alembic_command_shows_no_secret(tmp_path):
    """`alembic -x url=...` prints a traceback, which log collectors store."""
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


async def test_no_repr_shows_a_secret():
    """It tests the package's own objects, as a debugger or a log line prints them."""
    for form in list(URLS.values())[:10]:
        target = form.format(driver="psycopg")
        location = resolve_target(target)
        assert SECRET not in f"{location} {location!r} {location.name}"
        async with open_database(target, create=False) as database:
            assert SECRET not in f"{database} {database!r}"


def test_harmless_parameters_are_shown():
    """The name of a server contains the host, the port and the harmless parameters."""
    location = resolve_target(
        "postgresql+psycopg://u:p@h:5433/db?sslmode=require&connect_timeout=3&x=1"
    )

    assert location.name == (
        "postgresql+psycopg://u:***@h:5433/db?connect_timeout=3&sslmode=require&x=***"
    )


async def test_an_error_of_a_statement_shows_no_values(catalog, database):
    """The parameters of a refused statement are hidden: a description may be private."""
    await catalog.register_model(a_model("m"))
    database.run("ALTER TABLE models RENAME COLUMN description TO elsewhere")
    try:
        with pytest.raises(CatalogError) as caught:
            await catalog.update_model("m", "hf", description=SECRET)
    finally:
        database.run("ALTER TABLE models RENAME COLUMN elsewhere TO description")

    assert SECRET not in error_text(caught.value)

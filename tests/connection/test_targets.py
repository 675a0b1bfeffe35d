"""Targets: what can be opened, what is refused, and that a refused target is not changed."""

import asyncio
import json
import logging
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path

import postgres
import pytest
from bad_files import BAD_FILES, error_text, listing
from conftest import a_model, postgresql_database
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import create_async_engine

from model_catalog import (
    CatalogCorruptError,
    CatalogError,
    CatalogReadOnlyError,
    CatalogUnavailableError,
    ForeignDatabaseError,
    InvalidTargetError,
    ModelCatalog,
    open_catalog,
    schema_state,
    upgrade,
)
from model_catalog.mapping.revisions import head_revision

HEAD = head_revision()

SECRET = "hunter2"


async def open_and_close(target):
    async with open_catalog(target):
        pass


async def open_without_upgrade(target):
    async with open_catalog(target, upgrade=False):
        pass


ENTRY_POINTS = {
    "open": open_and_close,
    "open without upgrade": open_without_upgrade,
    "upgrade": upgrade,
    "state": schema_state,
}


@pytest.fixture(params=ENTRY_POINTS.values(), ids=ENTRY_POINTS)
def entry_point(request):
    return request.param


NAMES = {
    "spaces": b" my catalog .db ",
    "question mark": b"catalog?mode=memory",
    "hash": b"catalog#1.db",
    "percent-encoded": b"catalog%20one.db",
    "percent": b"100%",
    "quotes": b'it\'s "mine".db',
    "semicolon": b"a;b.db",
    "not ASCII": "modèle-模型-🦙.db".encode(),
    "invalid UTF-8": b"catalog\xff\xfe.db",
    "line break": b"a\nb.db",
    "backslash": b"a\\b.db",
    "file:": b"file:x.db?cache=shared",
    "tilde": b"~catalog.db",
    ":memory:": b":memory:",
    "at and colon": b"u:p@h.db",
}


@pytest.mark.parametrize("name", [os.fsdecode(name) for name in NAMES.values()], ids=NAMES)
async def test_a_catalog_can_have_any_file_name(tmp_path, name):
    """Exactly the named file in the named folder is opened, and no other file is created."""
    folder = tmp_path / name
    folder.mkdir()
    path = folder / name

    async with open_catalog(path) as catalog:
        await catalog.register_model(a_model("m"))
        assert {each.name for each in folder.iterdir()} == {name, f"{name}-wal", f"{name}-shm"}
    async with open_catalog(str(path), create=False) as catalog:
        assert len(await catalog.list_models()) == 1

    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert [each.name for each in folder.iterdir()] == [name]
    assert await schema_state(path) == (HEAD, HEAD)


async def test_a_long_path_is_shown_completely(tmp_path):
    """An error message never shortens the path of the file."""
    deep = tmp_path.joinpath(*["a-rather-long-folder-name"] * 10)
    deep.mkdir(parents=True)

    with pytest.raises(InvalidTargetError) as caught:
        await upgrade(deep)

    assert str(deep) in str(caught.value)


@pytest.mark.parametrize("scheme", ["sqlite", "sqlite+aiosqlite"])
async def test_a_url_and_a_path_name_the_same_file(tmp_path, scheme):
    """A path as text or bytes, a URL as text and a URL object are equivalent."""
    path = tmp_path / "my catalog.db"
    async with open_catalog(path) as catalog:
        await catalog.register_model(a_model("m"))

    url = URL.create(scheme, database=str(path))
    for target in (os.fsencode(path), f"{scheme}:///{path}", url):
        async with open_catalog(target, create=False) as catalog:
            assert len(await catalog.list_models()) == 1


async def test_a_relative_path_is_resolved_when_it_is_opened(tmp_path, monkeypatch):
    """A process that changes its working directory continues to use the same file."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    async with open_catalog("catalog.db") as catalog:
        monkeypatch.chdir(tmp_path / "elsewhere")
        await asyncio.gather(*(catalog.register_model(a_model(f"m{n}")) for n in range(9)))
        await asyncio.gather(*(catalog.list_models() for n in range(9)))

    assert [each.name for each in (tmp_path / "elsewhere").iterdir()] == []
    assert (tmp_path / "catalog.db").stat().st_size > 0


async def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    """`~` is expanded as in a shell."""
    monkeypatch.setenv("HOME", str(tmp_path))

    await upgrade("~/catalog.db")

    assert (tmp_path / "catalog.db").is_file()


async def test_the_default_target_is_in_the_working_directory(tmp_path, monkeypatch):
    """
    The default is `.rbee/models/catalog.db`. Its folder is created, accessible only by its owner.
    """
    monkeypatch.chdir(tmp_path)

    async with open_catalog() as catalog:
        await catalog.register_model(a_model("m"))

    assert await schema_state() == (HEAD, HEAD)
    assert (tmp_path / ".rbee/models/catalog.db").is_file()
    assert stat.S_IMODE((tmp_path / ".rbee/models").stat().st_mode) == 0o700


async def test_reading_the_default_target_creates_nothing(tmp_path, monkeypatch):
    """Only a call that may create a catalog creates the default folder."""
    monkeypatch.chdir(tmp_path)

    with pytest.raises(CatalogUnavailableError, match=r"the folder .* does not exist"):
        await schema_state()
    with pytest.raises(CatalogUnavailableError, match=r"the folder .* does not exist"):
        async with open_catalog(create=False):
            pass

    assert listing(tmp_path) == {}


@pytest.mark.parametrize("form", ["{}", "sqlite:///{}"], ids=["path", "URL"])
async def test_an_environment_variable_names_the_default_target(tmp_path, monkeypatch, form):
    """MODEL_CATALOG_URL is used if no target is given; it may be a path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_CATALOG_URL", form.format(tmp_path / "named.db"))

    await upgrade()

    assert [each.name for each in tmp_path.iterdir()] == ["named.db"]


async def test_an_empty_environment_variable_is_ignored(tmp_path, monkeypatch):
    """`MODEL_CATALOG_URL=` has the same effect as an unset variable."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_CATALOG_URL", "")

    await upgrade()

    assert (tmp_path / ".rbee/models/catalog.db").is_file()


@pytest.fixture
def default_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize("link", [False, True], ids=["file", "dangling link"])
async def test_a_new_catalog_is_accessible_only_by_its_owner(tmp_path, default_umask, link):
    """This includes the -wal and -shm files of SQLite."""
    (tmp_path / "real").mkdir()
    path = tmp_path / "real" / "catalog.db"
    if link:
        (tmp_path / "link.db").symlink_to(path)

    async with open_catalog(tmp_path / "link.db" if link else path) as catalog:
        await catalog.register_model(a_model("m"))
        modes = {
            each.name: stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "real").iterdir()
        }

    assert modes == dict.fromkeys(["catalog.db", "catalog.db-wal", "catalog.db-shm"], 0o600)


async def test_the_mode_of_an_existing_catalog_is_kept(filled, default_umask):
    """A catalog that is shared with a group remains shared."""
    filled.chmod(0o664)

    async with open_catalog(filled) as catalog:
        await catalog.register_model(a_model("m"))
        modes = {stat.S_IMODE(each.stat().st_mode) for each in filled.parent.iterdir()}

    assert modes == {0o664}


async def test_create_false_creates_no_file(tmp_path):
    """With create=False a wrong path is an error."""
    with pytest.raises(CatalogUnavailableError, match="the file does not exist") as caught:
        async with open_catalog(tmp_path / "typo.db", create=False):
            pass

    assert caught.value.target == repr(str(tmp_path / "typo.db"))
    assert listing(tmp_path) == {}


async def test_an_empty_file_becomes_a_catalog_only_by_an_upgrade(tmp_path):
    """schema_state accepts an empty file and does not write to it."""
    path = tmp_path / "catalog.db"
    path.touch()

    assert await schema_state(path) == (None, HEAD)
    assert path.stat().st_size == 0
    await upgrade(path)
    assert await schema_state(path) == (HEAD, HEAD)


def missing_folder(path):
    pass


def file_instead_of_folder(path):
    path.parent.write_text("x")


@pytest.mark.parametrize("bad", BAD_FILES.values(), ids=BAD_FILES)
async def test_a_file_that_is_not_a_catalog_is_refused_and_not_changed(
    tmp_path, monkeypatch, entry_point, bad
):
    """The error describes the file. The file and its folder do not change."""
    make, kind, message = bad
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "catalog.db"
    make(path)
    before = listing(tmp_path)

    with pytest.raises(kind, match=message) as caught:
        await entry_point(path)

    assert caught.value.target == repr(str(path))
    assert repr(str(path)) in str(caught.value)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("make", [missing_folder, file_instead_of_folder], ids=["missing", "file"])
async def test_a_missing_folder_is_not_created(tmp_path, entry_point, make):
    """The path may be on a disk that is not mounted."""
    path = tmp_path / "disk" / "catalog.db"
    make(path)
    before = listing(tmp_path)

    with pytest.raises(CatalogUnavailableError) as caught:
        await entry_point(path)

    assert repr(str(path)) in str(caught.value)
    assert listing(tmp_path) == before


def cut_short(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def lost_first_page(path):
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xa5" * 3996)


@pytest.mark.parametrize("damage", [cut_short, lost_first_page], ids=["cut short", "first page"])
async def test_a_corrupt_catalog_is_refused_and_not_changed(filled, entry_point, damage):
    """A catalog with missing or overwritten pages raises CatalogCorruptError."""
    damage(filled)
    before = filled.read_bytes()

    with pytest.raises(CatalogCorruptError, match="Restore a backup") as caught:
        await entry_point(filled)

    assert caught.value.target == repr(str(filled))
    assert filled.read_bytes() == before


async def test_corruption_found_by_a_later_call_raises_the_same_error(filled):
    """A call that reads a corrupt page raises CatalogCorruptError."""
    with filled.open("r+b") as file:
        # After the pages of the schema, which are read when the file is opened.
        file.seek(filled.stat().st_size // 2 // 4096 * 4096)
        file.write(b"\xa5" * 4096 * 10)

    async with open_catalog(filled) as catalog:
        with pytest.raises(CatalogCorruptError):
            await catalog.list_models()


INVALID_TARGETS = {
    "empty": ("", "the path is empty"),
    ":memory:": (":memory:", "its own empty database"),
    "NUL": ("a\0b.db", "NUL"),
    "surrogate without a byte": ("a\ud800.db", "surrogate"),
    "number": (3, "give a path"),
    "list": (["catalog.db"], "give a path"),
    "SQLite URL without a file": ("sqlite://", "the path is empty"),
    "SQLite URL of memory": ("sqlite:///:memory:", "its own empty database"),
    "SQLite URL with a parameter": ("sqlite:///x.db?mode=memory", "give only a file"),
    "SQLite URL with a host": ("sqlite://x.db", "give only a file"),
    "SQLite URL with a user": ("sqlite://u@/x.db", "give only a file"),
    "SQLite URL with a NUL": ("sqlite:///x\0.db", "NUL"),
    "one slash": ("postgresql:/h/db", "not a URL of the form"),
    "no slash": ("sqlite:x.db", "not a URL of the form"),
    "no driver": ("://h/db", "not a URL of the form"),
    "invalid port": ("postgresql://h:port/db", "not a URL of the form"),
    "NUL in a URL": ("postgresql://h/d\0b", "not a URL of the form"),
    "lone surrogate in a URL": ("postgresql://h/\udcff", "not a URL of the form"),
    "unknown scheme": ("http://h/db", "its driver is not one of"),
    "unknown database": ("mysql://h/db", "its driver is not one of"),
    "blocking driver": ("postgresql+psycopg2://h/db", "its driver is not one of"),
    "blocking SQLite": ("sqlite+pysqlite:///x.db", "its driver is not one of"),
}


@pytest.mark.parametrize(("target", "message"), INVALID_TARGETS.values(), ids=INVALID_TARGETS)
async def test_an_invalid_target_is_refused(tmp_path, monkeypatch, entry_point, target, message):
    """
    A target that names no database, or a temporary one, raises InvalidTargetError and creates
    nothing.
    """
    monkeypatch.chdir(tmp_path)

    with pytest.raises(InvalidTargetError, match=message) as caught:
        await entry_point(target)

    assert caught.value.target in str(caught.value)
    assert str(caught.value).isprintable()
    assert listing(tmp_path) == {}


@contextmanager
def closed_port():
    """A port that refuses connections, and that stays reserved meanwhile."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@contextmanager
def silent_port():
    """A port that accepts connections and never answers."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


DRIVERS = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])


@DRIVERS
async def test_an_unreachable_server_is_unavailable(entry_point, driver):
    """The error names the server without its password."""
    with closed_port() as port:
        with pytest.raises(CatalogUnavailableError) as caught:
            await entry_point(f"postgresql+{driver}://u:{SECRET}@127.0.0.1:{port}/db")

        expected = f"postgresql+{driver}://u:***@127.0.0.1:{port}/db"
    assert caught.value.target == expected
    assert expected in str(caught.value)


@DRIVERS
@pytest.mark.parametrize(
    "wrong", [{"database": "no such"}, {"username": "nobody_at_all"}], ids=["database", "role"]
)
async def test_an_unknown_database_or_role_is_unavailable(pg_server, entry_point, driver, wrong):
    """The error names the database or the role that the server does not know."""
    url = pg_server.set(drivername=f"postgresql+{driver}", **wrong)

    with pytest.raises(CatalogUnavailableError, match=next(iter(wrong.values()))):
        await entry_point(url)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("driver", "timeout"),
    [("asyncpg", "timeout=0.2"), ("psycopg", "connect_timeout=2")],
    ids=["asyncpg", "psycopg"],
)
async def test_a_server_that_does_not_answer_is_unavailable(driver, timeout):
    """Connecting ends after ten seconds, or after the timeout in the URL."""
    with (
        silent_port() as port,
        pytest.raises(CatalogUnavailableError, match=r"opened: .*\w") as caught,
    ):
        await open_and_close(f"postgresql+{driver}://u:{SECRET}@127.0.0.1:{port}/db?{timeout}")

    assert SECRET not in str(caught.value)


BAD_PARAMETERS = {
    "unknown, asyncpg": ("asyncpg", "foo=bar", InvalidTargetError, "foo"),
    "parameter of libpq, asyncpg": ("asyncpg", "gssencmode=disable", InvalidTargetError, "gssenc"),
    "not a number, asyncpg": ("asyncpg", "timeout=soon", InvalidTargetError, "soon"),
    "not a number, SQLAlchemy": (
        "asyncpg",
        "prepared_statement_cache_size=all",
        InvalidTargetError,
        "a whole number",
    ),
    "two forms of hosts": (
        "asyncpg",
        "host=a&host=b&port=1",
        InvalidTargetError,
        "multihost",
    ),
    "unknown, psycopg": ("psycopg", "foo=bar", CatalogUnavailableError, "foo"),
    "parameter of asyncpg, psycopg": (
        "psycopg",
        "command_timeout=1",
        CatalogUnavailableError,
        "command",
    ),
    "not a number, psycopg": ("psycopg", "connect_timeout=soon", CatalogUnavailableError, "soon"),
}


@pytest.mark.parametrize(
    ("driver", "query", "kind", "message"), BAD_PARAMETERS.values(), ids=BAD_PARAMETERS
)
async def test_a_parameter_that_the_driver_rejects_is_named(
    entry_point, driver, query, kind, message
):
    """The driver's own exceptions become errors of the catalog."""
    target = f"postgresql+{driver}://u:{SECRET}@127.0.0.1:1/db?{query}"

    with pytest.raises(kind, match=message) as caught:
        await entry_point(target)

    assert SECRET not in str(caught.value)


async def test_an_invalid_port_raises_invalid_target_error(entry_point):
    """asyncpg passes the port to the socket, which raises an OverflowError."""
    with pytest.raises(InvalidTargetError, match="port"):
        await entry_point("postgresql+asyncpg://127.0.0.1:70000/db")


LEAKS = {
    "invalid port": "postgresql://u:hunter2@h:port/db",
    "no host": "postgresql://u:hunter2",
    "no host but a database": "postgresql://u:hunter2/db",
    "at in the password": "postgresql://u:a@hunter2@127.0.0.1:1/db",
    "slash in the password": "postgresql://u:a/hunter2@127.0.0.1:1/db",
    "question mark in the password": "postgresql://u:a?hunter2@127.0.0.1:1/db",
    "bracket": "postgresql://u:hunter2@[::1/db",
    "one slash": "postgresql:/u:hunter2@h/db",
    "no slash": "postgresql+asyncpg:u:hunter2@h/db",
    "before the driver": "u:hunter2@h://db",
    "before the driver, alone": "hunter2@h://db",
    "alone": "://hunter2",
    "NUL": "postgresql://u:hunter2\0@h/db",
    "lone surrogate in the password": "postgresql://u:hunter2\udcff@h/db",
    "lone surrogate in the database": "postgresql+asyncpg://u:hunter2@h/\udcff",
    "unknown driver": "mysql://u:hunter2@h/db?passwd=hunter2",
    "blocking driver": "postgresql+psycopg2://u:hunter2@h/db",
    "SQLite with a host": "sqlite://u:hunter2@h/x.db",
    "closed port, asyncpg": "postgresql+asyncpg://u:hunter2@127.0.0.1:1/db",
    "closed port, psycopg": "postgresql+psycopg://u:hunter2@127.0.0.1:1/db",
    "parameter, asyncpg": "postgresql+asyncpg://u@127.0.0.1:1/db?password=hunter2",
    "parameter, psycopg": "postgresql://u@127.0.0.1:1/db?password=hunter2&sslpassword=hunter2",
    "unknown parameter, asyncpg": "postgresql+asyncpg://u:hunter2@127.0.0.1:1/db?foo=bar",
    "unknown parameter, psycopg": "postgresql+psycopg://u:hunter2@127.0.0.1:1/db?foo=bar",
    "secret parameter, asyncpg": "postgresql+asyncpg://127.0.0.1:1/db?sslpassword=hunter2",
    "bad number": "postgresql+asyncpg://u:hunter2@127.0.0.1:1/db?timeout=soon",
    "multiple hosts": "postgresql://u:hunter2@/db?host=127.0.0.1:1&host=127.0.0.1:2",
}


@pytest.mark.parametrize("target", LEAKS.values(), ids=LEAKS)
async def test_no_password_is_ever_shown(tmp_path, monkeypatch, caplog, entry_point, target):
    """It is in no message, cause, attribute or log record, however malformed the URL is."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG)

    with pytest.raises(CatalogError) as caught:
        await entry_point(target)

    assert SECRET not in error_text(caught.value)
    assert SECRET not in caplog.text
    assert listing(tmp_path) == {}


async def test_a_refused_password_is_not_shown(pg_server, caplog):
    """A server that rejects the login has received the password, but the log has not."""
    caplog.set_level(logging.DEBUG)
    for name in ("asyncpg", "psycopg"):
        url = pg_server.set(
            drivername=f"postgresql+{name}", username="nobody_at_all", password=SECRET
        )

        with pytest.raises(CatalogUnavailableError) as caught:
            await open_and_close(url)

        assert SECRET not in error_text(caught.value)
    assert SECRET not in caplog.text


async def test_the_url_of_a_host_engine_is_shown_without_its_password():
    """The name of an engine's database is masked like that of a URL."""
    engine = create_async_engine(
        f"postgresql+psycopg://u:{SECRET}@127.0.0.1:1/db?password={SECRET}"
    )

    with pytest.raises(CatalogUnavailableError, match=r"u:\*\*\*@127.0.0.1:1/db") as caught:
        await open_and_close(engine)
    await engine.dispose()

    assert SECRET not in str(caught.value)


async def test_a_host_engine_is_used_and_not_disposed(empty):
    """An AsyncEngine is a valid target. Its pool keeps its connections afterwards."""
    engine = create_async_engine(empty.target_url)

    async with open_catalog(engine) as catalog:
        await catalog.register_model(a_model("m"))
    pooled = engine.pool.checkedin()
    async with engine.connect() as connection:
        count = await connection.scalar(text("SELECT count(*) FROM models"))
    state = await schema_state(engine)
    await engine.dispose()

    assert pooled > 0
    assert count == 1
    assert state == (HEAD, HEAD)


async def test_a_table_of_another_program_is_refused(empty):
    """A database with a foreign table `models` is not a catalog, even if it is shared."""
    empty.run("CREATE TABLE models (id INTEGER PRIMARY KEY, name TEXT)")

    for entry_point in ENTRY_POINTS.values():
        with pytest.raises(ForeignDatabaseError, match="columns id, name"):
            await entry_point(empty.target)

    assert empty.tables == {"models"}


async def test_a_url_without_a_driver_uses_psycopg(pg_migrated):
    """Servers' own tools write `postgresql://` and `postgres://`."""
    database = postgresql_database("psycopg", pg_migrated)
    plain = postgres.dsn(pg_migrated)

    for target in (plain, plain.replace("postgresql://", "postgres://")):
        assert await schema_state(target) == (HEAD, HEAD)
    database.assert_nothing_left()


MODES = {
    "file, read": (0o444, 0o777, "read", ["m"]),
    "file, state": (0o444, 0o777, "state", [HEAD, HEAD]),
    "file, upgrade": (0o444, 0o777, "upgrade", None),
    "file, write": (0o444, 0o777, "write", "CatalogReadOnlyError"),
    "folder, read": (0o666, 0o555, "read", "CatalogReadOnlyError"),
    "folder, write": (0o666, 0o555, "write", "CatalogReadOnlyError"),
    "both, read": (0o444, 0o555, "read", "CatalogReadOnlyError"),
    "both, write": (0o444, 0o555, "write", "CatalogReadOnlyError"),
    "unreadable file": (0o000, 0o777, "read", "CatalogUnavailableError"),
    "unreadable folder": (0o666, 0o000, "read", "CatalogUnavailableError"),
    "no file": (None, 0o555, "read", "CatalogReadOnlyError"),
    "old file, state": ("0001", 0o777, "state", ["model_catalog_0001", HEAD]),
    "old file, read": ("0001", 0o777, "read", "CatalogReadOnlyError"),
    "old file, upgrade": ("0001", 0o777, "upgrade", "CatalogReadOnlyError"),
}


@pytest.fixture(scope="module")
def unprivileged_outcomes(sqlite_migrated):
    """
    The outcome of every call of MODES in an unprivileged process, and the file before and after.
    """
    # Accessible by every user, unlike pytest's own temporary folder.
    top = Path(tempfile.mkdtemp(prefix="model-catalog-"))
    top.chmod(0o755)
    paths = [top / str(number) / "catalog.db" for number in range(len(MODES))]
    before = []
    for path, (file, folder, *_) in zip(paths, MODES.values(), strict=True):
        path.parent.mkdir()
        if file == "0001":
            asyncio.run(upgrade(path, "0001"))
            path.chmod(0o444)
        elif file is not None:
            shutil.copy(sqlite_migrated, path)
            with closing(sqlite3.connect(path)) as raw, raw:
                raw.execute(
                    "INSERT INTO models (provider, reference, local_path) VALUES ('hf', 'm', '/')"
                )
            path.chmod(file)
        before.append(path.read_bytes() if file is not None else None)
        path.parent.chmod(folder)
    calls = [(call, str(path)) for path, (_, _, call, _) in zip(paths, MODES.values(), strict=True)]
    child = subprocess.run(
        [sys.executable, Path(__file__).parents[1] / "unprivileged.py", json.dumps(calls)],
        stdout=subprocess.PIPE,
        check=True,
    )
    for path in paths:
        path.parent.chmod(0o755)
    after = [path.read_bytes() if path.exists() else None for path in paths]
    yield dict(
        zip(MODES, zip(json.loads(child.stdout), paths, before, after, strict=True), strict=True)
    )
    shutil.rmtree(top)


@pytest.mark.slow
@pytest.mark.slow_with("file, read")
@pytest.mark.parametrize("name", MODES)
def test_a_read_only_catalog_can_be_read_if_sqlite_can(unprivileged_outcomes, name):
    """
    At the newest revision a read-only file can be read. A write or an upgrade raises
    CatalogReadOnlyError. SQLite needs a writable folder to read a write-ahead log.
    """
    outcome, path, before, after = unprivileged_outcomes[name]
    expected = MODES[name][-1]

    if isinstance(expected, str):
        assert outcome["error"] == expected
        assert repr(str(path)) in outcome["message"]
    else:
        assert outcome == {"result": expected}
    assert after == before


async def test_a_read_only_server_can_be_read(pg_migrated):
    """A standby or read-only database is read normally, and writes raise CatalogReadOnlyError."""
    database = postgresql_database("psycopg", pg_migrated)
    database.run("DELETE FROM models")
    target = f"{database.target}?options=-c%20default_transaction_read_only%3Don"

    async with open_catalog(target) as catalog:
        assert await catalog.list_models() == []
        with pytest.raises(CatalogReadOnlyError):
            await catalog.register_model(a_model("m"))

    assert database.run("SELECT count(*) FROM models") == [(0,)]


PROGRAM = """
import asyncio, sys
from model_catalog import Model, open_catalog

async def main():
    # In development mode asyncio warns about slow callbacks.
    asyncio.get_running_loop().slow_callback_duration = 60
    async with open_catalog(sys.argv[1]) as catalog:
        model = Model(reference="m", provider="hf", local_path="/m")
        await asyncio.gather(*(catalog.register_model(model) for _ in range(9)))
        await catalog.register_models([model])
        assert len(await catalog.list_models()) == 1
        async with catalog.transaction() as both:
            await both.remove_model("m", "hf")

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.slow_with("asyncpg")
async def test_a_program_that_uses_a_catalog_leaks_nothing(empty):
    """In Python's development mode, with warnings as errors, the program prints nothing."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "dev", "-W", "error", "-c", PROGRAM, empty.target),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await child.communicate()

    assert output == b""
    assert child.returncode == 0


async def test_a_closed_catalog_has_no_open_file_descriptor(tmp_path):
    """This is so even if the block raised."""
    path = tmp_path / "catalog.db"

    with pytest.raises(ZeroDivisionError):
        async with open_catalog(path) as catalog:
            await asyncio.gather(*(catalog.list_models() for _ in range(9)))
            raise ZeroDivisionError

    opened = [os.path.realpath(descriptor) for descriptor in Path("/proc/self/fd").iterdir()]
    assert [name for name in opened if name.startswith(str(tmp_path))] == []
    assert isinstance(catalog, ModelCatalog)

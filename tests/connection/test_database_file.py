"""How a SQLite file is opened: durability, journal mode, unclean shutdown, replaced files."""

import asyncio
import logging
import shutil
import sqlite3
from contextlib import closing

import pytest
from child_programs import PROCESSES, kill_with_open_catalog
from conftest import a_model
from sqlalchemy.ext.asyncio import create_async_engine

from model_catalog import (
    CatalogCorruptError,
    CatalogReplacedError,
    InvalidModelError,
    ModelCatalog,
    open_catalog,
    prepare_engine,
    schema_state,
    upgrade,
)
from model_catalog.connection import database_file, sqlite_pragmas
from model_catalog.execution.executor import write


async def pragma_value(catalog: ModelCatalog, pragma: str) -> list[object]:
    """Return the value of a PRAGMA on the connection that writes, inside a transaction."""
    from sqlalchemy import text

    def query_pragma(connection, _value):
        return connection.scalar(text(f"PRAGMA {pragma}"))

    return await catalog._executor.run(write(query_pragma, None))


@pytest.mark.parametrize(("durability", "level"), [("full", 2), ("normal", 1)])
async def test_durability_sets_synchronous(tmp_path, durability, level):
    """Every commit waits for the disk, unless `durability="normal"` is given."""
    async with open_catalog(tmp_path / "c.db", durability=durability) as catalog:
        assert await pragma_value(catalog, "synchronous") == level
        assert await pragma_value(catalog, "journal_mode") == "wal"
        assert await pragma_value(catalog, "foreign_keys") == 1
    async with open_catalog(tmp_path / "c.db") as catalog:
        assert await pragma_value(catalog, "synchronous") == 2


async def test_an_unknown_durability_is_refused(tmp_path):
    """Only full and normal are accepted, and no file is created for another value."""
    with pytest.raises(InvalidModelError, match="full, normal"):
        async with open_catalog(tmp_path / "c.db", durability="off"):
            pass
    assert list(tmp_path.iterdir()) == []


MOUNT_TABLE = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:5 / {tmp}/local rw - tmpfs tmpfs rw
24 22 0:50 / {tmp}/far\\040away rw,relatime shared:7 master:1 - {kind} server:/x rw
25 24 8:1 / {tmp}/far\\040away/stick rw - vfat /dev/sda1 rw
26 22 0:51 / {tmp}/local/twice rw - ext4 /dev/vdb rw
27 22 0:52 / {tmp}/local/twice rw - {kind} server:/y rw
"""


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "vboxsf"])
def test_a_network_file_system_is_found_by_its_mount(tmp_path, monkeypatch, kind):
    """
    The innermost mount decides, and the last one if a mount point is listed twice. Its name may
    contain spaces.
    """
    table = tmp_path / "mountinfo"
    table.write_text(MOUNT_TABLE.format(tmp=tmp_path, kind=kind))
    monkeypatch.setattr(database_file, "MOUNT_TABLE", table)
    (tmp_path / "link.db").symlink_to(tmp_path / "far away" / "c.db")

    found = {
        name: database_file.network_file_system(tmp_path / name)
        for name in (
            "c.db",
            "local/c.db",
            "far away/c.db",
            "far away/deep/c.db",
            "far awayer/c.db",
            "far away/stick/c.db",
            "local/twice/c.db",
            "link.db",
        )
    }

    network = {name for name, found_kind in found.items() if found_kind == kind}
    assert network == {"far away/c.db", "far away/deep/c.db", "local/twice/c.db", "link.db"}
    assert {found[name] for name in found.keys() - network} == {None}


def pretend_network_file_system(tmp_path, monkeypatch) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(f"1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / {tmp_path} rw - nfs4 server:/ rw\n")
    monkeypatch.setattr(database_file, "MOUNT_TABLE", table)
    sqlite_pragmas._warn.cache_clear()


async def test_on_a_network_file_system_commit_waits_for_readers(filled, tmp_path, monkeypatch):
    """
    A transaction cannot be retried from its start, so COMMIT waits as long as the call may take.
    """
    pretend_network_file_system(tmp_path, monkeypatch)
    async with open_catalog(filled) as catalog:
        await catalog.register_model(a_model("first"))
        with closing(sqlite3.connect(filled, isolation_level=None, check_same_thread=False)) as raw:
            raw.execute("BEGIN")
            raw.execute("SELECT * FROM models").fetchall()
            # Longer than the usual busy_timeout.
            asyncio.get_running_loop().call_later(0.4, raw.execute, "ROLLBACK")

            async with catalog.transaction() as inner:
                await inner.register_model(a_model("second"))

        assert await catalog.find_model("second", "hf") is not None


@pytest.mark.parametrize("durability", ["full", "normal"])
async def test_on_a_network_file_system_there_is_no_write_ahead_log(
    filled, tmp_path, monkeypatch, caplog, durability
):
    """The catalog uses a rollback journal, and a warning is logged once."""
    async with open_catalog(filled) as catalog:
        await catalog.register_model(a_model("local"))
        assert await pragma_value(catalog, "journal_mode") == "wal"
    pretend_network_file_system(tmp_path, monkeypatch)
    caplog.set_level(logging.WARNING)

    for reference in ("first", "second"):
        async with open_catalog(filled, durability=durability) as catalog:
            await catalog.register_model(a_model(reference))
            assert await pragma_value(catalog, "journal_mode") == "delete"
            assert (
                await pragma_value(catalog, "synchronous") == {"full": 3, "normal": 2}[durability]
            )
            assert not (tmp_path / "catalog.db-wal").exists()

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "network file system (nfs4)" in caplog.text


async def test_a_host_file_on_a_network_file_system_has_no_write_ahead_log(
    tmp_path, monkeypatch, caplog
):
    """`prepare_engine` looks at the file system of the host's file."""
    pretend_network_file_system(tmp_path, monkeypatch)
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/host.db")
    prepare_engine(engine)

    await upgrade(engine)
    async with open_catalog(engine) as catalog:
        assert await pragma_value(catalog, "journal_mode") == "delete"
        assert await pragma_value(catalog, "synchronous") == 3
    await engine.dispose()

    assert "network file system (nfs4)" in caplog.text


@pytest.mark.parametrize(
    ("version", "has_bug"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 52, 0), False),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_versions_with_the_wal_reset_bug_are_known(version, has_bug):
    """The bug exists from 3.7.0 to 3.51.2, except in the fixed releases of two older branches."""
    assert sqlite_pragmas.has_wal_reset_bug(version) is has_bug


async def test_the_sqlite_version_is_logged_once(tmp_path, caplog):
    """It is logged once per process, and not at INFO, where a new catalog is one line."""
    sqlite_pragmas.log_sqlite_version.cache_clear()
    caplog.set_level(logging.DEBUG, "model_catalog")

    for name in ("a.db", "b.db"):
        await upgrade(tmp_path / name)

    messages = [
        record for record in caplog.records if sqlite3.sqlite_version in record.getMessage()
    ]
    assert [record.levelname for record in messages] == ["DEBUG"]


def removed(path):
    path.unlink()


def moved(path):
    path.rename(path.with_name("elsewhere.db"))


def replaced(path):
    # The copy was made before the catalog opened: closing the file here would drop SQLite's locks.
    copy = path.with_name("copy.db")
    copy.replace(path)


def folder_moved(path):
    path.parent.rename(path.parent.with_name("moved"))


@pytest.mark.parametrize(
    "act", [removed, moved, replaced, folder_moved], ids=lambda act: act.__name__
)
@pytest.mark.parametrize("when", ["before the call", "in a transaction"])
async def test_a_replaced_file_is_not_written(sqlite_migrated, tmp_path, act, when):
    """If the file was removed, moved or replaced, calls raise CatalogReplacedError."""
    (tmp_path / "here").mkdir()
    path = tmp_path / "here" / "catalog.db"
    for name in ("catalog.db", "copy.db"):
        shutil.copy(sqlite_migrated, path.with_name(name))

    async with open_catalog(path) as catalog:
        await catalog.register_model(a_model("before"))
        with pytest.raises(CatalogReplacedError, match=r"open it again|removed") as caught:
            if when == "before the call":
                act(path)
                await catalog.register_model(a_model("after"))
            else:
                async with catalog.transaction() as inner:
                    await inner.register_model(a_model("after"))
                    act(path)
        with pytest.raises(CatalogReplacedError):
            await catalog.list_models()
    assert repr(str(path)) in str(caught.value)

    if act is replaced:
        async with open_catalog(path) as catalog:
            assert await catalog.find_model("after", "hf") is None


async def test_a_file_that_returns_to_its_path_is_used_again(sqlite_migrated, tmp_path):
    """A file that was moved away and back has the same identity."""
    path = tmp_path / "catalog.db"
    shutil.copy(sqlite_migrated, path)

    async with open_catalog(path) as catalog:
        path.rename(tmp_path / "away.db")
        with pytest.raises(CatalogReplacedError):
            await catalog.register_model(a_model("lost"))
        (tmp_path / "away.db").rename(path)
        await catalog.register_model(a_model("kept"))
        assert [model.reference for model in await catalog.list_models()] == ["kept"]


def pages_were_checked(caplog) -> bool:
    return "was not closed cleanly" in caplog.text


def kill_a_writer(path) -> None:
    """Let a process that writes to a catalog exit without closing it."""
    process = PROCESSES.Process(target=kill_with_open_catalog, args=(str(path),))
    process.start()
    process.join()
    assert path.with_name("catalog.db-wal").stat().st_size > 0


async def test_pages_are_checked_once_after_an_unclean_shutdown(filled, caplog):
    """Only the first opening after it checks all pages."""
    kill_a_writer(filled)
    caplog.set_level(logging.INFO, "model_catalog")

    async with open_catalog(filled) as catalog:
        assert await catalog.count_models() == 501
    assert pages_were_checked(caplog)
    caplog.clear()
    async with open_catalog(filled):
        pass

    assert not pages_were_checked(caplog)


async def test_corruption_is_found_after_an_unclean_shutdown(filled):
    """A corrupt page that opening would not read is found by the check of all pages."""
    kill_a_writer(filled)
    page = filled.stat().st_size // 4096 // 2
    with filled.open("r+b") as file:
        file.seek(page * 4096)
        file.write(b"\xff" * 4096)

    with pytest.raises(CatalogCorruptError, match=r"page|malformed"):
        async with open_catalog(filled, create=False):
            pass


async def test_pages_of_a_catalog_in_use_are_not_checked(filled, caplog):
    """A log that is not empty is normal while another catalog has the file open."""
    caplog.set_level(logging.INFO, "model_catalog")

    async with open_catalog(filled) as first:
        await first.register_model(a_model("one"))
        assert filled.with_name("catalog.db-wal").stat().st_size > 0
        async with open_catalog(filled) as second:
            assert await second.count_models() == 501

    assert not pages_were_checked(caplog)


@pytest.mark.slow
async def test_the_application_id_of_a_host_file_is_kept(tmp_path):
    """`upgrade` of a host's file by path neither replaces an application id nor adds one."""
    table = "CREATE TABLE urls (url TEXT)"
    for number, (application_id, sql) in enumerate([(77, table), (0, table), (77, "")]):
        path = tmp_path / f"host{number}.db"
        with closing(sqlite3.connect(path)) as raw:
            raw.executescript(f"PRAGMA application_id = {application_id}; {sql}")
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
        await upgrade(engine, "0002")
        await engine.dispose()

        await upgrade(path)

        with closing(sqlite3.connect(path)) as raw:
            assert raw.execute("PRAGMA application_id").fetchone() == (application_id,)
        assert (await schema_state(path))[0] == (await schema_state(path))[1]

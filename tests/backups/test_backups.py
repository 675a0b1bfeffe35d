"""Backups: made while the catalog is in use, restored, and made before a migration."""

import asyncio
import os
import shlex
import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import hive_files
import pytest
from bad_files import BAD_FILES, damage, listing, make_socket
from child_programs import PROCESSES, keep_catalog_open, migration_was_killed, write_until_stopped
from conftest import a_model
from sqlalchemy.ext.asyncio import create_async_engine

from model_catalog import (
    CatalogCorruptError,
    CatalogError,
    CatalogInUseError,
    InvalidTargetError,
    SchemaTooNewError,
    backup,
    check_schema,
    open_catalog,
    repair,
    restore,
    upgrade,
)
from model_catalog.cli import main
from model_catalog.connection import backup_files
from model_catalog.mapping.revisions import head_revision

HEAD = head_revision()


async def references(target) -> list[str]:
    async with open_catalog(target, create=False) as catalog:
        return sorted([model.reference for model in await catalog.list_models()])


@pytest.mark.parametrize("source_kind", ["an open catalog", "a target", "a host's engine"])
async def test_a_backup_is_a_complete_catalog(filled, tmp_path, source_kind):
    """
    A backup is one file with all rows, readable only by its owner, and nothing else is left behind.
    """
    copy = tmp_path / "backups" / "c.db"
    copy.parent.mkdir()

    async with open_catalog(filled) as catalog:
        await catalog.tag_model("m1", "hf", "chat")
        engine = create_async_engine(f"sqlite+aiosqlite:///{filled}")
        source = {"an open catalog": catalog, "a target": filled, "a host's engine": engine}[
            source_kind
        ]
        assert await backup(source, copy) == copy
        await engine.dispose()

    assert [each.name for each in copy.parent.iterdir()] == ["c.db"]
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert await check_schema(copy) == []
    async with open_catalog(copy, create=False) as catalog:
        assert await catalog.count_models() == 500
        assert await catalog.count_models(tags=["chat"]) == 1


async def test_a_backup_without_a_path_is_created_beside_its_catalog(filled):
    """Two backups of the same second get different names, and both are valid."""
    backups = [await backup(filled) for _ in range(2)]

    assert len(set(backups)) == 2
    assert all(copy.parent == filled.parent for copy in backups)
    assert all(copy.name.startswith("catalog.db.backup-20") for copy in backups)
    assert backup_files.newest_valid_backup(filled) == backups[-1]


async def test_backups_at_the_same_time_get_different_names(filled):
    """Each chooses its name when its copy is complete, and chooses again if it was taken."""
    backups = await asyncio.gather(*(backup(filled) for _ in range(4)))

    assert len(set(backups)) == 4
    assert [backup_files.integrity_error(copy) for copy in backups] == [None] * 4
    assert {each for each in filled.parent.iterdir() if "backup" in each.name} == set(backups)


async def test_a_backup_of_postgresql_is_an_export(catalog, database, tmp_path):
    """Its content is that of export_catalog, and only its owner can read it."""
    if database.path is not None:
        pytest.skip("the backup of a SQLite file is a database")
    await catalog.register_models([a_model("a"), a_model("b")])
    with (tmp_path / "export").open("wb") as stream:
        await catalog.export_catalog(stream)

    copy = await backup(database.target, tmp_path / "copy")
    with pytest.raises(InvalidTargetError, match="the path is empty"):
        await backup(catalog)

    assert copy.read_bytes() == (tmp_path / "export").read_bytes()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    with pytest.raises(InvalidTargetError, match="model-catalog import"):
        await restore(copy, database.target)


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
async def test_a_backup_never_replaces_a_file(filled, tmp_path, kind):
    """An existing file, link or folder stays, and no partial file remains beside it."""
    folder = tmp_path / "backups"
    folder.mkdir()
    existing = folder / "c.db"
    if kind == "file":
        existing.write_text("precious")
    elif kind == "link":
        existing.symlink_to("nowhere")
    else:
        existing.mkdir()
    before = listing(folder)

    with pytest.raises(InvalidTargetError, match=r"already exists|is a directory"):
        await backup(filled, existing)

    assert listing(folder) == before


@pytest.mark.slow
async def test_backups_are_consistent_while_another_process_writes(filled, tmp_path):
    """Two rows that are written in one transaction are both in a backup or both missing."""
    stop = PROCESSES.Event()
    began = PROCESSES.Event()
    writer = PROCESSES.Process(target=write_until_stopped, args=(str(filled), began, stop))
    writer.start()
    began.wait()
    counts = []
    for number in range(10):
        copy = await backup(filled, tmp_path / f"copy{number}.db")
        with closing(sqlite3.connect(copy)) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            rows = raw.execute(
                "SELECT provider, count(*) FROM models WHERE provider LIKE 'twin%' GROUP BY 1"
            ).fetchall()
        counts.append(dict(rows))
    stop.set()
    writer.join()

    assert writer.exitcode == 0
    assert all(count.get("twin1") == count.get("twin2") for count in counts)
    assert counts[-1]["twin1"] > counts[0].get("twin1", 0)


async def test_a_corrupt_catalog_is_not_backed_up(filled, tmp_path):
    """The call raises CatalogCorruptError and leaves no file."""
    damage(filled)

    with pytest.raises(CatalogCorruptError):
        await backup(filled, tmp_path / "copy.db")

    assert not (tmp_path / "copy.db").exists()
    assert not list(tmp_path.glob(".*"))


async def test_restore_replaces_the_catalog_and_keeps_the_old_one(filled, tmp_path):
    """The catalog has the rows of the backup, and the old database has another name."""
    copy = await backup(filled, tmp_path / "copy.db")
    async with open_catalog(filled) as catalog:
        await catalog.register_model(a_model("later"))
    filled.chmod(0o640)

    done = await restore(copy, filled)

    assert done.model_count == 500
    assert "later" not in await references(filled)
    assert "later" in await references(done.replaced)
    assert done.replaced.name.startswith("catalog.db.replaced-20")
    assert stat.S_IMODE(filled.stat().st_mode) == 0o640
    assert {each.name for each in tmp_path.iterdir()} == {
        "catalog.db",
        "copy.db",
        done.replaced.name,
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
async def test_restore_keeps_the_owner_and_the_group(filled, tmp_path):
    """The service that owns the file can still write to it after root has restored it."""
    copy = await backup(filled, tmp_path / "copy.db")
    os.chown(filled, 1001, 1002)
    filled.chmod(0o640)

    await restore(copy, filled)

    status = filled.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1001, 1002, 0o640)


@pytest.mark.parametrize("kind", ["FIFO", "directory", "socket"])
@pytest.mark.parametrize("call", [restore, repair], ids=["restore", "repair"])
async def test_only_a_regular_file_is_replaced_or_repaired(filled, tmp_path, call, kind):
    """Anything else is refused at once. Opening a FIFO would wait for its writer."""
    path = tmp_path / "other"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        make_socket(path)
    before = listing(tmp_path)

    with pytest.raises(InvalidTargetError, match=r"regular file|directory"):
        async with asyncio.timeout(5):
            await (restore(filled, path) if call is restore else repair(path, tmp_path / "new"))

    assert listing(tmp_path) == before


async def test_a_restore_that_fails_at_the_end_leaves_one_name(filled, tmp_path):
    """The log cannot be removed, because it is a folder. The database has no second name."""
    copy = await backup(filled, tmp_path / "copy.db")
    Path(f"{filled}-journal").mkdir()
    before = listing(tmp_path)

    with pytest.raises(CatalogError):
        await restore(copy, filled)

    assert listing(tmp_path) == before
    assert filled.stat().st_nlink == 1


async def test_restore_creates_a_missing_catalog(filled, tmp_path):
    """A deleted catalog is restored from its backup, readable only by its owner."""
    copy = await backup(filled, tmp_path / "copy.db")
    filled.unlink()

    done = await restore(copy, filled)

    assert (done.model_count, done.replaced) == (500, None)
    assert stat.S_IMODE(filled.stat().st_mode) == 0o600
    assert len(await references(filled)) == 500


def add_stale_log(path: Path) -> None:
    """Put the write-ahead log of a killed process beside a database."""
    shutil.copy(path, path.with_name("log.db"))
    raw = sqlite3.connect(path.with_name("log.db"))
    raw.execute("PRAGMA journal_mode = WAL")
    raw.execute("INSERT INTO models (provider, reference, local_path) VALUES ('log', 'log', '/')")
    raw.commit()
    shutil.copy(path.with_name("log.db-wal"), path.with_name("catalog.db-wal"))
    raw.close()
    path.with_name("log.db").unlink()


@pytest.mark.parametrize("state", ["valid", "corrupt", "not a database"])
async def test_a_stale_log_is_not_applied_to_the_restored_file(filled, tmp_path, state):
    """The log is kept with the replaced database, also if that is corrupt."""
    copy = await backup(filled, tmp_path / "copy.db")
    add_stale_log(filled)
    if state == "corrupt":
        damage(filled)
    if state == "not a database":
        filled.write_bytes(b"not a database\n" * 1000)

    done = await restore(copy, filled)

    assert "log" not in await references(filled)
    assert await check_schema(filled) == []
    if state == "valid":
        assert "log" in await references(done.replaced)
    else:
        assert done.replaced.with_name(f"{done.replaced.name}-wal").stat().st_size > 0


def files(folder: Path) -> dict[str, object]:
    return {name: entry for name, entry in listing(folder).items() if entry[2] is not None}


@pytest.mark.parametrize("bad", BAD_FILES.values(), ids=BAD_FILES)
async def test_restore_refuses_a_file_that_is_not_a_catalog(
    filled,
    tmp_path,
    monkeypatch,
    bad,
):
    """The backup is checked before any file is replaced."""
    folder = tmp_path / "bad"
    folder.mkdir()
    monkeypatch.chdir(folder)
    make = bad[0]
    path = folder / "catalog.db"
    make(path)
    before = files(filled.parent)

    with pytest.raises(CatalogError):
        await restore(path, filled)

    assert files(filled.parent) == before


async def test_restore_refuses_a_corrupt_backup_and_a_newer_one(filled, tmp_path):
    """A backup with a corrupt page or an unknown revision replaces nothing."""
    for name in ("broken.db", "newer.db", "empty.db"):
        if name == "empty.db":
            (tmp_path / name).touch()
        else:
            shutil.copy(filled, tmp_path / name)
    damage(tmp_path / "broken.db")
    with closing(sqlite3.connect(tmp_path / "newer.db")) as raw, raw:
        raw.execute("UPDATE model_catalog_version SET version_num = '9999'")
    before = filled.read_bytes()

    with pytest.raises(CatalogCorruptError, match=r"broken\.db"):
        await restore(tmp_path / "broken.db", filled)
    with pytest.raises(SchemaTooNewError, match="9999"):
        await restore(tmp_path / "newer.db", filled)
    with pytest.raises(CatalogError, match="no table 'models'"):
        await restore(tmp_path / "empty.db", filled)
    with pytest.raises(InvalidTargetError, match="are the same file"):
        await restore(filled, filled)

    assert filled.read_bytes() == before


@pytest.mark.parametrize("user", ["this process", "another process", "a lock"])
async def test_restore_refuses_a_catalog_that_is_in_use(filled, tmp_path, user):
    """The error names the process that has the file open."""
    copy = await backup(filled, tmp_path / "copy.db")
    before = filled.stat().st_ino
    if user == "this process":
        async with open_catalog(filled) as catalog:
            with pytest.raises(CatalogInUseError, match="this process has it open"):
                await restore(copy, filled)
            await catalog.register_model(a_model("after"))
    else:
        began, stop = PROCESSES.Event(), PROCESSES.Event()
        process = PROCESSES.Process(target=keep_catalog_open, args=(str(filled), began, stop))
        process.start()
        began.wait()
        with pytest.raises(CatalogInUseError, match=f"process {process.pid} has it open|a lock"):
            if user == "a lock":
                from model_catalog.connection import database_file

                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(database_file, "PROC", tmp_path)
                    await restore(copy, filled)
            else:
                await restore(copy, filled)
        stop.set()
        process.join()
        assert process.exitcode == 0

    assert filled.stat().st_ino == before
    assert not list(tmp_path.glob("*replaced*"))


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
async def test_backup_and_restore_work_without_hard_links(
    filled,
    tmp_path,
    monkeypatch,
    links,
):
    """On a file system without hard links, a backup still never replaces a file."""

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    add_stale_log(filled)
    damage(filled)
    kept = filled.read_bytes(), filled.with_name("catalog.db-wal").read_bytes()
    shutil.copy(filled, tmp_path / "untouched.db")
    source = tmp_path / "source.db"
    await upgrade(source)
    async with open_catalog(source) as catalog:
        await catalog.register_model(a_model("copied"))

    copy = await backup(source, tmp_path / "copy.db")
    with pytest.raises(InvalidTargetError):
        await backup(source, copy)
    done = await restore(copy, filled)

    assert await references(filled) == ["copied"]
    log = done.replaced.with_name(f"{done.replaced.name}-wal")
    assert (done.replaced.read_bytes(), log.read_bytes()) == kept


@pytest.mark.slow
async def test_a_corruption_error_names_the_newest_valid_backup(filled, tmp_path, capsys):
    """The error contains the command that restores it, and skips corrupt backups."""
    backups = [await backup(filled) for _ in range(3)]
    damage(backups[-1])
    backups[0].write_text("")
    damage(filled)

    with pytest.raises(CatalogCorruptError) as caught:
        await references(filled)

    good = str(backups[1])
    command = shlex.join(["model-catalog", "db", "restore", good, "--db", str(filled)])
    assert caught.value.copy == good
    assert command in str(caught.value)
    done = await asyncio.to_thread(
        subprocess.run,
        f"{sys.executable} -m {command.replace('model-catalog', 'model_catalog', 1)}",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "restored 500 models" in done.stderr
    assert len(await references(filled)) == 500


def other_files(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir() if each.name != path.name)


async def test_a_file_with_models_is_backed_up_before_a_migration(tmp_path):
    """
    The backup has the old rows, only its owner can read it, and its name has the time and the goal.
    """
    path = tmp_path / "catalog.db"
    hive_files.write_hive_file(path, hive_files.VALID_ROWS)
    with closing(sqlite3.connect(path)) as raw:
        rows = raw.execute("SELECT * FROM models ORDER BY 1, 2").fetchall()

    await upgrade(path)

    (copy,) = other_files(path)
    assert copy.startswith("catalog.db.backup-20")
    assert copy.endswith(f"Z-before-{HEAD.removeprefix('model_catalog_')}")
    assert stat.S_IMODE((tmp_path / copy).stat().st_mode) == 0o600
    with closing(sqlite3.connect(tmp_path / copy)) as raw:
        assert raw.execute("SELECT * FROM models ORDER BY 1, 2").fetchall() == rows


async def test_a_database_without_models_is_not_backed_up(tmp_path):
    """A new catalog and an empty one get no backup."""
    path = tmp_path / "catalog.db"
    await upgrade(path, "0002")
    await upgrade(path)

    assert other_files(path) == []


async def test_the_last_three_automatic_backups_are_kept(tmp_path):
    """Older automatic backups are deleted. Backups that a user made, and other files, are kept."""
    path = tmp_path / "catalog.db"
    hive_files.write_hive_file(path, hive_files.VALID_ROWS)
    by_user = await backup(path)
    other = tmp_path / "catalog.db.backup-other"
    other.touch()
    partial = tmp_path / ".catalog.db.backup-20200101T000000Z-before-0009.abc.part"
    partial.touch()

    made = []
    for revision in ("0001", "0002", "0003", "0004", "0005"):
        await upgrade(path, revision)
        made += [name for name in other_files(path) if f"before-{revision}" in name]

    assert len(made) == 5
    assert set(other_files(path)) == {by_user.name, other.name, *made[-3:]}


async def test_the_newest_automatic_backup_is_kept_if_the_clock_was_set_back(tmp_path):
    """Three backups have names from the future. The oldest of them is deleted."""
    path = tmp_path / "catalog.db"
    hive_files.write_hive_file(path, hive_files.VALID_ROWS)
    future = [f"catalog.db.backup-2099010{day}T000000Z-before-0001" for day in (1, 2, 3)]
    for name in future:
        (tmp_path / name).touch()

    await upgrade(path, "0002")
    await upgrade(path, "0003")

    names = [f"{future[2]}", f"{future[2][:-4]}0002-2", f"{future[2][:-4]}0003-3"]
    assert [each.name for each in backup_files.automatic_backups(path)] == names
    assert backup_files.newest_valid_backup(path).name == names[-1]


async def test_backups_of_one_second_are_in_the_order_of_their_numbers(filled):
    """The tenth backup of a second is newer than the second one."""
    second, tenth = (
        filled.with_name(f"{filled.name}.backup-{name}")
        for name in (
            "20990101T000000Z-2",
            "20990101T000000Z-before-0010-10",
        )
    )
    shutil.copy(filled, second)
    shutil.copy(filled, tenth)
    assert backup_files.newest_valid_backup(filled) == tenth

    newest = await backup(filled)

    assert newest.name.endswith("20990101T000000Z-11")
    assert backup_files.newest_valid_backup(filled) == newest


def test_a_killed_migration_leaves_a_valid_backup(tmp_path):
    """The backup is complete before the first statement of the migration."""
    path = tmp_path / "catalog.db"
    hive_files.write_hive_file(path, hive_files.VALID_ROWS)

    assert migration_was_killed(str(path), "UPDATE models SET size_bytes")

    (copy,) = [name for name in other_files(path) if "backup" in name]
    assert backup_files.integrity_error(tmp_path / copy) is None
    with closing(sqlite3.connect(tmp_path / copy)) as raw:
        assert raw.execute("SELECT count(*) FROM models").fetchone() == (
            len(hive_files.VALID_ROWS),
        )


@pytest.mark.slow
def test_the_alembic_command_makes_a_backup(tmp_path):
    """`alembic upgrade head` in a checkout backs up the file like `upgrade()`."""
    path = tmp_path / "catalog.db"
    hive_files.write_hive_file(path, hive_files.VALID_ROWS)

    subprocess.run(
        [sys.executable, "-m", "alembic", "-x", f"url={path}", "upgrade", "head"],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
    )

    (copy,) = other_files(path)
    assert copy.endswith("Z-before-head")


async def test_a_cancelled_backup_leaves_no_file(filled, tmp_path):
    """The cancellation is delivered after the partial file was deleted."""
    with closing(sqlite3.connect(filled)) as raw, raw:
        raw.executemany(
            "INSERT INTO models (provider, reference, local_path) VALUES ('big', ?, ?)",
            ((f"b{number}", "x" * 4000) for number in range(8000)),
        )
    task = asyncio.create_task(backup(filled, tmp_path / "copy.db"))
    while not list(tmp_path.glob(".copy.db.*.part")):
        await asyncio.sleep(0)
        assert not task.done()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert not list(tmp_path.glob("*copy*"))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_the_command_line_backs_up_checks_and_restores(filled, tmp_path, capsys):
    """`db backup` prints the path of the backup, and `db restore` restores it."""
    assert main(["db", "backup", "--db", str(filled)]) == 0
    copy = capsys.readouterr().out.strip()
    assert main(["rm", "hf:m1", "--yes", "--db", str(filled)]) == 0
    capsys.readouterr()

    assert main(["db", "restore", copy, "--db", str(filled)]) == 0

    output = capsys.readouterr().err
    assert "restored 500 models" in output
    assert f"{filled}.replaced-" in output
    assert main(["db", "check", "--db", str(filled)]) == 0
    assert main(["show", "hf:m1", "--db", str(filled)]) == 0

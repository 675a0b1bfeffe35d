"""Copies of a catalog: made while it is used, put back, and made before a migration."""

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import hive_files
import pytest
from bad_files import BAD_FILES, damage, listing
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


@pytest.mark.parametrize("of", ["an open catalog", "a target", "a host's engine"])
async def test_a_copy_is_a_catalog_of_its_own(filled, tmp_path, of):
    """
    Everything is in it, it is sound, one file, its owner's alone; nothing else is left behind.
    """
    copy = tmp_path / "copies" / "c.db"
    copy.parent.mkdir()

    async with open_catalog(filled) as catalog:
        await catalog.tag_model("m1", "hf", "chat")
        engine = create_async_engine(f"sqlite+aiosqlite:///{filled}")
        source = {"an open catalog": catalog, "a target": filled, "a host's engine": engine}[of]
        assert await backup(source, copy) == copy
        await engine.dispose()

    assert [each.name for each in copy.parent.iterdir()] == ["c.db"]
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert await check_schema(copy) == []
    async with open_catalog(copy, create=False) as catalog:
        assert await catalog.count_models() == 500
        assert await catalog.count_models(tags=["chat"]) == 1


async def test_a_copy_lies_beside_its_catalog_where_no_place_is_named(filled):
    """
    Two of one second have two names, and both are good.
    """
    made = [await backup(filled) for _ in range(2)]

    assert len(set(made)) == 2
    assert all(copy.parent == filled.parent for copy in made)
    assert all(copy.name.startswith("catalog.db.backup-20") for copy in made)
    assert backup_files.newest_valid_backup(filled) == made[-1]


async def test_a_copy_on_postgresql_is_an_export(catalog, database, tmp_path):
    """
    It is what export_catalog writes, its owner's alone; SQLite has a better one.
    """
    if database.path is not None:
        pytest.skip("of a file the copy is a database")
    await catalog.register_models([a_model("a"), a_model("b")])
    with (tmp_path / "export").open("wb") as stream:
        await catalog.export_catalog(stream)

    copy = await backup(database.target, tmp_path / "copy")
    with pytest.raises(InvalidTargetError, match="names no file"):
        await backup(catalog)

    assert copy.read_bytes() == (tmp_path / "export").read_bytes()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    with pytest.raises(InvalidTargetError, match="model-catalog import"):
        await restore(copy, database.target)


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
async def test_a_copy_replaces_nothing(filled, tmp_path, kind):
    """
    What has the name already stays, and nothing half made lies beside it.
    """
    folder = tmp_path / "copies"
    folder.mkdir()
    taken = folder / "c.db"
    if kind == "file":
        taken.write_text("precious")
    elif kind == "link":
        taken.symlink_to("nowhere")
    else:
        taken.mkdir()
    before = listing(folder)

    with pytest.raises(InvalidTargetError, match=r"already exists|is a directory"):
        await backup(filled, taken)

    assert listing(folder) == before


async def test_copies_are_consistent_while_others_write(filled, tmp_path):
    """
    Two rows that are always written together are in every copy both or neither.
    """
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


async def test_a_copy_of_a_damaged_catalog_is_refused(filled, tmp_path):
    """
    A copy that would not be whole is not made.
    """
    damage(filled)

    with pytest.raises(CatalogCorruptError):
        await backup(filled, tmp_path / "copy.db")

    assert not (tmp_path / "copy.db").exists()
    assert not list(tmp_path.glob(".*"))


async def test_a_copy_is_put_back_and_what_it_replaced_is_kept(filled, tmp_path):
    """
    After a restoration there is what was in the copy; what was there before has another name.
    """
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


async def test_a_copy_is_put_where_there_is_nothing(filled, tmp_path):
    """
    A catalog that was lost altogether is made again from its copy, for its owner alone.
    """
    copy = await backup(filled, tmp_path / "copy.db")
    filled.unlink()

    done = await restore(copy, filled)

    assert (done.model_count, done.replaced) == (500, None)
    assert stat.S_IMODE(filled.stat().st_mode) == 0o600
    assert len(await references(filled)) == 500


def without_its_log(path: Path) -> None:
    """A killed writer's log beside the file."""
    shutil.copy(path, path.with_name("log.db"))
    raw = sqlite3.connect(path.with_name("log.db"))
    raw.execute("PRAGMA journal_mode = WAL")
    raw.execute("INSERT INTO models (provider, reference, local_path) VALUES ('log', 'log', '/')")
    raw.commit()
    shutil.copy(path.with_name("log.db-wal"), path.with_name("catalog.db-wal"))
    raw.close()
    path.with_name("log.db").unlink()


@pytest.mark.parametrize("state", ["sound", "damaged", "no database"])
async def test_a_stale_log_is_not_taken_for_the_copys(filled, tmp_path, state):
    """
    The log of what is replaced goes with it, whatever state it is in.
    """
    copy = await backup(filled, tmp_path / "copy.db")
    without_its_log(filled)
    if state == "damaged":
        damage(filled)
    if state == "no database":
        filled.write_bytes(b"no database at all\n" * 1000)

    done = await restore(copy, filled)

    assert "log" not in await references(filled)
    assert await check_schema(filled) == []
    if state == "sound":
        assert "log" in await references(done.replaced)
    else:
        assert done.replaced.with_name(f"{done.replaced.name}-wal").stat().st_size > 0


def files(folder: Path) -> dict[str, object]:
    return {name: found for name, found in listing(folder).items() if found[2] is not None}


@pytest.mark.parametrize("bad", BAD_FILES.values(), ids=BAD_FILES)
async def test_what_is_no_catalog_is_not_put_in_the_place_of_one(
    filled,
    tmp_path,
    monkeypatch,
    bad,
):
    """
    The copy is looked at before anything is replaced.
    """
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


async def test_a_damaged_copy_and_a_newer_one_are_not_put_back(filled, tmp_path):
    """
    Neither a copy with a broken page nor one that this package does not know replaces anything.
    """
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
    with pytest.raises(InvalidTargetError, match="the copy itself"):
        await restore(filled, filled)

    assert filled.read_bytes() == before


@pytest.mark.parametrize("who", ["this process", "another process", "a lock"])
async def test_a_catalog_in_use_is_not_replaced(filled, tmp_path, who):
    """
    Nobody's file is taken from under him, and the user is named.
    """
    copy = await backup(filled, tmp_path / "copy.db")
    before = filled.stat().st_ino
    if who == "this process":
        async with open_catalog(filled) as catalog:
            with pytest.raises(CatalogInUseError, match="this process has it open"):
                await restore(copy, filled)
            await catalog.register_model(a_model("after"))
    else:
        began, stop = PROCESSES.Event(), PROCESSES.Event()
        user = PROCESSES.Process(target=keep_catalog_open, args=(str(filled), began, stop))
        user.start()
        began.wait()
        with pytest.raises(CatalogInUseError, match=f"process {user.pid} has it open|a lock"):
            if who == "a lock":
                from model_catalog.connection import database_file

                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(database_file, "PROC", tmp_path)
                    await restore(copy, filled)
            else:
                await restore(copy, filled)
        stop.set()
        user.join()
        assert user.exitcode == 0

    assert filled.stat().st_ino == before
    assert not list(tmp_path.glob("*replaced*"))


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
async def test_it_works_on_a_file_system_without_second_names(
    filled,
    tmp_path,
    monkeypatch,
    links,
):
    """
    A stick's file system knows one name a file: a copy is made there, and nothing is replaced.
    """

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    without_its_log(filled)
    damage(filled)
    kept = filled.read_bytes(), filled.with_name("catalog.db-wal").read_bytes()
    shutil.copy(filled, tmp_path / "sound.db")
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


async def test_the_newest_good_copy_is_named_with_the_damage(filled, tmp_path, capsys):
    """
    Whoever meets damage is told which copy is whole and what to type; a damaged copy is passed by.
    """
    copies_made = [await backup(filled) for _ in range(3)]
    damage(copies_made[-1])
    copies_made[0].write_text("")
    damage(filled)

    with pytest.raises(CatalogCorruptError) as caught:
        await references(filled)

    good = str(copies_made[1])
    command = f"model-catalog db restore {good!r} --db {str(filled)!r}"
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


def beside(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir() if each.name != path.name)


async def test_a_migration_copies_a_file_with_models_first(tmp_path):
    """
    The copy is the file as it was, its owner's alone, and is named after the time and the goal.
    """
    path = tmp_path / "catalog.db"
    hive_files.write_hive_file(path, hive_files.VALID_ROWS)
    with closing(sqlite3.connect(path)) as raw:
        rows = raw.execute("SELECT * FROM models ORDER BY 1, 2").fetchall()

    await upgrade(path)

    (copy,) = beside(path)
    assert copy.startswith("catalog.db.backup-20")
    assert copy.endswith(f"Z-before-{HEAD}")
    assert stat.S_IMODE((tmp_path / copy).stat().st_mode) == 0o600
    with closing(sqlite3.connect(tmp_path / copy)) as raw:
        assert raw.execute("SELECT * FROM models ORDER BY 1, 2").fetchall() == rows


async def test_without_models_nothing_is_copied(tmp_path):
    """
    A new catalog, an empty one, and one that a host shares leave no copies about.
    """
    path = tmp_path / "catalog.db"
    await upgrade(path, "0002")
    await upgrade(path)
    host = tmp_path / "host.db"
    hive_files.write_hive_file(host, hive_files.VALID_ROWS)
    engine = create_async_engine(f"sqlite+aiosqlite:///{host}")
    await upgrade(engine)
    await engine.dispose()

    assert beside(path) == ["host.db"]


async def test_the_last_three_copies_stay(tmp_path):
    """
    The oldest of those that were made by themselves goes; what a user made or put there stays.
    """
    path = tmp_path / "catalog.db"
    hive_files.write_hive_file(path, hive_files.VALID_ROWS)
    mine = await backup(path)
    other = tmp_path / "catalog.db.backup-mine"
    other.touch()
    part = tmp_path / ".catalog.db.backup-20200101T000000Z-before-0009.abc.part"
    part.touch()

    made = []
    for revision in ("0001", "0002", "0003", "0004", "0005"):
        await upgrade(path, revision)
        made += [name for name in beside(path) if name.endswith(revision)]

    assert len(made) == 5
    assert set(beside(path)) == {mine.name, other.name, *made[-3:]}


def test_a_killed_migration_leaves_a_copy_to_go_back_to(tmp_path):
    """
    The copy is whole before the first statement of the migration.
    """
    path = tmp_path / "catalog.db"
    hive_files.write_hive_file(path, hive_files.VALID_ROWS)

    assert migration_was_killed(str(path), "UPDATE models SET size_bytes")

    (copy,) = [name for name in beside(path) if "backup" in name]
    assert backup_files.integrity_error(tmp_path / copy) is None
    with closing(sqlite3.connect(tmp_path / copy)) as raw:
        assert raw.execute("SELECT count(*) FROM models").fetchone() == (
            len(hive_files.VALID_ROWS),
        )


def test_the_shell_keeps_a_copy_too(tmp_path):
    """
    `alembic upgrade head` in a checkout is a migration like any other.
    """
    path = tmp_path / "catalog.db"
    hive_files.write_hive_file(path, hive_files.VALID_ROWS)

    subprocess.run(
        [sys.executable, "-m", "alembic", "-x", f"url={path}", "upgrade", "head"],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
    )

    (copy,) = beside(path)
    assert copy.endswith("Z-before-head")


async def test_a_cancelled_copy_leaves_nothing(filled, tmp_path):
    """
    Who is cancelled while he copies is told so when the half copy is gone.
    """
    with closing(sqlite3.connect(filled)) as raw, raw:
        raw.executemany(
            "INSERT INTO models (provider, reference, local_path) VALUES ('big', ?, ?)",
            ((f"b{number}", "x" * 4000) for number in range(8000)),
        )
    copying = asyncio.create_task(backup(filled, tmp_path / "copy.db"))
    while not list(tmp_path.glob(".copy.db.*.part")):
        await asyncio.sleep(0)
        assert not copying.done()

    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying

    assert not list(tmp_path.glob("*copy*"))
    assert not list(tmp_path.glob(".*"))


def test_the_command_line_copies_checks_and_restores(filled, tmp_path, capsys):
    """
    `db backup` prints where the copy is, and `db restore` takes it back.
    """
    assert main(["db", "backup", "--db", str(filled)]) == 0
    copy = capsys.readouterr().out.strip()
    assert main(["rm", "hf:m1", "--yes", "--db", str(filled)]) == 0
    capsys.readouterr()

    assert main(["db", "restore", copy, "--db", str(filled)]) == 0

    said = capsys.readouterr().err
    assert "restored 500 models" in said
    assert f"{filled}.replaced-" in said
    assert main(["db", "check", "--db", str(filled)]) == 0
    assert main(["show", "hf:m1", "--db", str(filled)]) == 0

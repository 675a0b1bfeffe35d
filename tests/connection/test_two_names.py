"""One SQLite file with two names: hard links, bind mounts of the file, and other spellings."""

import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from child_programs import PROCESSES, write_until_stopped
from conftest import a_model
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import (
    CatalogInUseError,
    InvalidTargetError,
    ModelCatalog,
    backup,
    check_schema,
    open_catalog,
    prepare_engine,
    restore,
    schema_state,
    upgrade,
)


async def open_and_count(target) -> int:
    async with open_catalog(target) as catalog:
        return await catalog.count_models()


def entries(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


@pytest.mark.parametrize(
    "call",
    [open_and_count, upgrade, schema_state, check_schema, backup],
    ids=lambda call: call.__name__,
)
async def test_a_file_with_two_hard_links_is_refused(filled, call):
    """The error names the other link, and no log is created beside either name."""
    other = filled.with_name("other.db")
    other.hardlink_to(filled)
    content = filled.read_bytes()

    for path in (filled, other):
        with pytest.raises(InvalidTargetError, match=r"has 2 names .*remove the other") as caught:
            await call(path)
        assert ({"catalog.db", "other.db"} - {path.name}).pop() in str(caught.value)

    assert entries(filled.parent) == ["catalog.db", "other.db"]
    assert filled.read_bytes() == content


async def test_a_second_name_of_an_open_file_is_refused(sqlite_file):
    """A link to a file that another process has open is refused. The first user continues."""
    other = sqlite_file.with_name("other.db")
    async with open_catalog(sqlite_file) as catalog:
        await catalog.register_model(a_model("before"))
        other.hardlink_to(sqlite_file)

        with pytest.raises(InvalidTargetError, match=r"2 names"):
            await open_and_count(other)
        await catalog.register_model(a_model("after"))

    other.unlink()
    assert await open_and_count(sqlite_file) == 2
    assert entries(sqlite_file.parent) == ["catalog.db"]


async def test_a_hosts_engine_for_a_file_with_two_names_is_refused(sqlite_file):
    """A host's engine is not connected."""
    sqlite_file.with_name("other.db").hardlink_to(sqlite_file)
    engine = create_async_engine(f"sqlite+aiosqlite:///{sqlite_file}")

    for call in (open_and_count, upgrade):
        with pytest.raises(InvalidTargetError, match=r"2 names"):
            await call(engine)

    assert engine.pool.checkedin() == 0
    await engine.dispose()


async def test_sessions_for_a_file_with_two_names_are_refused(sqlite_file):
    """Nothing is opened or created. Without the second name the same engine can be used."""
    other = sqlite_file.with_name("other.db")
    other.hardlink_to(sqlite_file)
    engine = create_async_engine(f"sqlite+aiosqlite:///{other}")
    prepare_engine(engine)

    for _ in range(2):
        with pytest.raises(InvalidTargetError, match=r"2 names"):
            ModelCatalog(async_sessionmaker(engine))
    found = entries(sqlite_file.parent)
    sqlite_file.unlink()
    await ModelCatalog(async_sessionmaker(engine)).register_model(a_model("m"))
    await engine.dispose()

    assert found == ["catalog.db", "other.db"]
    assert await open_and_count(other) == 1


async def test_symbolic_links_and_other_spellings_are_one_name(filled):
    """A link, a linked folder and a path with `..` open the same file with the same log."""
    link = filled.with_name("link.db")
    link.symlink_to("catalog.db")
    folder = filled.with_name("folder")
    folder.symlink_to(".", target_is_directory=True)
    spellings = [link, folder / "catalog.db", f"{filled.parent}/folder/.././{filled.name}"]

    async with open_catalog(filled) as catalog:
        for number, spelling in enumerate(spellings):
            async with open_catalog(spelling) as other:
                await other.register_model(a_model(f"by spelling {number}"))
        assert await catalog.count_models() == 503

    assert entries(filled.parent) == ["catalog.db", "folder", "link.db"]


async def test_a_temporary_name_of_a_finished_copy_is_not_a_second_name(filled):
    """A process that is killed while it publishes a copy leaves a link that nobody opens."""
    os.link(filled, filled.with_name(".catalog.db.ab12_cd3.part"))

    assert await open_and_count(filled) == 500

    filled.with_name("other.db").hardlink_to(filled)
    with pytest.raises(InvalidTargetError, match=r"2 names .*'other\.db'"):
        await open_and_count(filled)


async def test_a_restore_that_was_interrupted_can_be_run_again(filled, tmp_path):
    """After a kill the old file has two names. The error says so, and `restore` replaces it."""
    copy = await backup(filled, tmp_path / "copy.db")
    os.link(filled, filled.with_name("catalog.db.replaced-20261123T140509Z"))

    with pytest.raises(InvalidTargetError, match=r"run the interrupted restore again"):
        await open_and_count(filled)
    await restore(copy, filled)

    assert await open_and_count(filled) == 500


async def test_a_backup_may_have_hard_links(filled, tmp_path):
    """Programs for snapshots link equal files. Such a backup can be restored if it is not open."""
    copy = await backup(filled, tmp_path / "copy.db")
    linked = tmp_path / "linked.db"
    linked.hardlink_to(copy)

    assert (await restore(copy, filled)).model_count == 500

    linked.unlink()
    linked.hardlink_to(filled)
    with closing(sqlite3.connect(filled)) as raw:
        raw.execute("SELECT count(*) FROM models").fetchone()
        with pytest.raises(CatalogInUseError, match=r"this process has it open"):
            await restore(linked, tmp_path / "new.db")


@pytest.fixture
def mounted(filled, tmp_path):
    """A bind mount of a catalog file alone, as a container has it."""
    point = tmp_path / "container" / "catalog.db"
    point.parent.mkdir()
    point.touch()
    mount = ["mount", "--bind", filled, point]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this process may not mount: run as root, or in `unshare -Urm`")
    yield point
    subprocess.run(["umount", point], capture_output=True, check=False)


async def test_a_bind_mount_of_the_file_is_refused(filled, mounted):
    """The mount point is refused, and the file can be used under its own name."""
    with pytest.raises(InvalidTargetError, match=r"mount the folder that contains the file"):
        await open_and_count(mounted)

    assert entries(mounted.parent) == ["catalog.db"]
    assert await open_and_count(filled) == 500


@pytest.mark.slow
async def test_two_processes_cannot_use_two_names_of_a_file(sqlite_file):
    """While another process writes to a file, this process cannot open a link to it."""
    began, stop = PROCESSES.Event(), PROCESSES.Event()
    writer = PROCESSES.Process(target=write_until_stopped, args=(str(sqlite_file), began, stop))
    writer.start()
    assert began.wait(20)
    other = sqlite_file.with_name("other.db")
    other.hardlink_to(sqlite_file)

    with pytest.raises(InvalidTargetError, match=r"2 names"):
        await open_and_count(other)
    stop.set()
    writer.join(20)

    assert writer.exitcode == 0
    other.unlink()
    assert await check_schema(sqlite_file) == []
    assert await open_and_count(sqlite_file) > 0

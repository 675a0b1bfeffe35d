"""Corrupt SQLite files: detection on opening and reading, check_schema, and repair."""

import asyncio
import random
import shlex
import shutil
import sqlite3
import sys
import threading
from contextlib import closing
from functools import cache
from pathlib import Path

import pytest
from bad_files import damage
from conftest import moment
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import (
    CatalogCorruptError,
    CatalogError,
    CatalogInUseError,
    InvalidTargetError,
    Model,
    ModelCatalog,
    backup,
    check_schema,
    open_catalog,
    repair,
    restore,
)
from model_catalog.cli import main

PAGE_BYTES = 4096
VALUES = [column.name for column in Model.__table__.columns if not column.name.endswith("_folded")]


@pytest.fixture(scope="module")
def small_catalog(tmp_path_factory) -> Path:
    """A catalog with every kind of page: deep tables and indexes, long texts, free pages."""
    path = tmp_path_factory.mktemp("small") / "catalog.db"

    async def fill() -> None:
        async with open_catalog(path) as catalog:
            await catalog.register_models(
                Model(
                    reference=f"org/m{number:02}",
                    provider="hf",
                    version=f"v{number % 3}",
                    local_path=f"/models/m{number}",
                    size_bytes=10**9 + number,
                    downloaded_at=moment(number),
                    description="word " * (1700 if number % 20 == 0 else 20),
                )
                for number in range(60)
            )
            for number in range(0, 60, 3):
                await catalog.tag_model(f"org/m{number:02}", "hf", "chat", f"t{number}")
                await catalog.set_alias(f"org/m{number:02}", "hf", "stable", f"v{number % 3}")
            for number in range(50, 60):
                await catalog.remove_model(f"org/m{number:02}", "hf")

    asyncio.run(fill())
    return path


async def read_everything(path: Path) -> dict[str, object]:
    """Read the catalog by every method that can return its rows."""
    async with open_catalog(path, create=False) as catalog:
        models = await catalog.list_models()
        return {
            "models": {
                (model.provider, model.reference, model.version): tuple(
                    getattr(model, name) for name in VALUES
                )
                for model in models
            },
            "labels": {model.reference: (model.tags,) for model in models},
            "tagged": [model.reference for model in await catalog.list_models(tags=["chat"])],
            "found": [
                await catalog.find_model(f"org/m{number:02}", "hf") is not None
                for number in range(0, 60, 7)
            ],
            "aliases": [repr(alias) for alias in await catalog.list_aliases()],
            "count": await catalog.count_models(),
        }


async def classify(path: Path, original: dict[str, object]) -> str:
    """Say whether damage is detected, harmless, or changes values without an error."""
    try:
        found = await read_everything(path)
        problems = await check_schema(path)
    except CatalogError as error:
        # A corrupt file must not raise any other exception.
        return "detected" if str(path) in str(error) else f"WRONG: {error}"
    if problems:
        return "detected"
    if found == original:
        return "harmless"
    others = {name for name in original if found[name] != original[name]} - {"models"}
    old, new = original["models"], found["models"]
    if others or old.keys() != new.keys():
        return f"WRONG {others}"
    changed = [
        name
        for key in old
        for name, before, after in zip(VALUES, old[key], new[key], strict=True)
        if before != after
    ]
    return f"{len(changed)} of {sorted(set(changed))}"


def inverted(page: bytearray, _rng) -> None:
    page[:] = bytes(byte ^ 255 for byte in page)


def one_byte(page: bytearray, rng: random.Random) -> None:
    page[rng.randrange(len(page))] ^= rng.randrange(1, 256)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flip",
    [pytest.param(inverted, id="inverted page"), pytest.param(one_byte, id="one byte")],
)
async def test_damage_of_any_page_is_detected_or_harmless(small_catalog, tmp_path, flip):
    """
    An inverted page is detected or changes nothing. A changed byte, in every second page, may go
    unnoticed only in one value of one model, because values have no checksum.
    """
    original = await read_everything(small_catalog)
    whole = small_catalog.read_bytes()
    pages = len(whole) // PAGE_BYTES
    assert pages > 20
    rng = random.Random(11)
    verdicts = []
    for number in range(0, pages, 1 if flip is inverted else 2):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        found = bytearray(whole)
        at = number * PAGE_BYTES
        page = found[at : at + PAGE_BYTES]
        flip(page, rng)
        found[at : at + PAGE_BYTES] = page
        (folder / "catalog.db").write_bytes(found)
        verdicts.append(await classify(folder / "catalog.db", original))
        shutil.rmtree(folder)

    others = [found for found in verdicts if found not in ("detected", "harmless")]
    assert "detected" in verdicts
    if flip is inverted:
        assert others == []
    assert [found for found in others if not found.startswith("1 of ")] == []


def test_check_schema_reports_values_of_a_wrong_type(small_catalog, tmp_path):
    """It finds a text that became a BLOB, a text with a NUL, and a number that became a text."""
    path = tmp_path / "catalog.db"
    shutil.copy(small_catalog, path)
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE models SET description = CAST('x' AS BLOB) WHERE id = 1")
        raw.execute("UPDATE models SET license = 'a' || char(0) || 'b' WHERE id = 2")
        raw.execute("UPDATE models SET use_count = 'many' WHERE id IN (3, 4)")

    assert sorted(asyncio.run(check_schema(path))) == [
        "values: 1 in models.description are not text: rows 1",
        "values: 1 in models.license are not text: rows 2",
        "values: 2 in models.use_count are not integer: rows 3, 4",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("spacing", [1, 10**9], ids=["consecutive ids", "distant ids"])
async def test_repair_copies_readable_rows_and_lists_lost_ids(filled, spacing):
    """
    Rows before and after a corrupt page are copied. An index still lists the ids of the lost rows.
    The corrupt file does not change.
    """
    async with open_catalog(filled) as catalog:
        for number in range(0, 500, 50):
            await catalog.tag_model(f"m{number}", "hf", "chat")
    with closing(sqlite3.connect(filled)) as raw, raw:
        for table, column in (("models", "id"), ("model_tags", "model_id")):
            raw.execute(f"UPDATE {table} SET {column} = {column} * {spacing}")
        ids = {row[0] for row in raw.execute("SELECT id FROM models")}
    damage(filled)
    before = filled.read_bytes()

    done = await repair(filled)

    models, tags = (
        next(s for s in done.tables if s.table == name) for name in ("models", "model_tags")
    )
    assert 450 < models.kept < 500
    assert models.kept + len(models.lost) == 500
    assert tags.kept + tags.refused == 10
    assert not done.is_whole
    assert await check_schema(done.path) == []
    async with open_catalog(done.path, create=False) as catalog:
        saved = {model.id for model in await catalog.list_models()}
    assert saved == ids - set(models.lost)
    assert filled.read_bytes() == before
    assert done.path.name.startswith("catalog.db.repaired-20")
    assert done.path.stat().st_mode & 0o777 == 0o600
    assert (await restore(done.path, filled)).model_count == models.kept


@pytest.mark.slow
async def test_repair_copies_the_rows_of_intact_pages(small_catalog, tmp_path):
    """Whichever page is inverted, repair ends with a valid catalog of original rows."""
    whole = small_catalog.read_bytes()
    with closing(sqlite3.connect(small_catalog)) as raw:
        rows = dict(raw.execute("SELECT id, local_path FROM models"))
    kept = []
    for page in range(1, len(whole) // PAGE_BYTES):
        path = tmp_path / f"{page}.db"
        found = bytearray(whole)
        at = page * PAGE_BYTES
        found[at : at + PAGE_BYTES] = bytes(byte ^ 255 for byte in found[at : at + PAGE_BYTES])
        path.write_bytes(found)
        try:
            done = await repair(path)
        except CatalogCorruptError:
            # The page belongs to sqlite_master.
            kept.append(0)
            continue
        # It takes longer than the repair, so not after each.
        if page % 4 == 0:
            assert await check_schema(done.path) == []
        with closing(sqlite3.connect(done.path)) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
            saved = dict(raw.execute("SELECT id, local_path FROM models"))
        assert saved.items() <= rows.items()
        kept.append(len(saved))

    # Only the rows of the page are lost, or all rows if the page is the table's root.
    assert sorted(kept)[len(kept) // 3] >= 30
    assert sorted(kept)[len(kept) // 2] >= len(rows) - 1


async def test_repair_of_an_intact_catalog_loses_nothing(small_catalog, tmp_path):
    """Rows, tags and aliases are all copied, including those in the write-ahead log."""
    path = tmp_path / "catalog.db"
    shutil.copy(small_catalog, path)
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA journal_mode = WAL")
    raw.execute("INSERT INTO models (provider, reference, local_path) VALUES ('log', 'log', '/')")
    raw.commit()
    shutil.copytree(tmp_path, tmp_path / "killed")
    raw.close()

    done = await repair(tmp_path / "killed" / "catalog.db", tmp_path / "new.db")

    assert done.is_whole
    assert (tmp_path / "killed" / "catalog.db-wal").stat().st_size > 0
    found, old = await read_everything(done.path), await read_everything(small_catalog)
    assert found["models"].keys() - old["models"].keys() == {("log", "log", "")}
    assert found["aliases"] == old["aliases"]
    assert found["tagged"] == old["tagged"]


async def test_repair_keeps_the_revision_of_an_older_catalog(tmp_path):
    """Repair does not migrate: the new file opens like the old one."""
    import hive_files

    path = tmp_path / "catalog.db"
    hive_files.write_hive_file(path, hive_files.VALID_ROWS)

    done = await repair(path)

    assert done.is_whole
    async with open_catalog(done.path) as catalog:
        assert await catalog.count_models() == len(hive_files.VALID_ROWS)


async def test_repair_refuses_what_it_cannot_repair(filled, tmp_path):
    """It refuses a file that is not a database, a server, a missing file and a catalog in use."""
    (tmp_path / "text.db").write_text("not a database\n" * 1000)

    with pytest.raises(CatalogCorruptError, match="nothing in it can be read"):
        await repair(tmp_path / "text.db")
    with pytest.raises(CatalogError, match="the file does not exist"):
        await repair(tmp_path / "none.db")
    with pytest.raises(InvalidTargetError, match="on a server"):
        await repair("postgresql+psycopg://u@127.0.0.1:1/db")
    async with open_catalog(filled):
        with pytest.raises(CatalogInUseError):
            await repair(filled)
    assert not list(tmp_path.glob("*repaired*"))
    assert not list(tmp_path.glob(".*"))


def test_the_command_line_reports_lost_rows(filled, capsys):
    """`db repair` prints the path of the new file, the number of copied rows and the lost ids."""
    damage(filled)

    assert main(["db", "repair", "--db", str(filled)]) == 1

    output = capsys.readouterr()
    assert output.out.strip().startswith(f"{filled}.repaired-")
    assert "models: 4" in output.err
    assert "lost: ids " in output.err
    assert main(["db", "check", "--db", output.out.strip()]) == 0


async def test_invalid_utf_8_in_the_schema_is_corruption(filled):
    """sqlite3 has no error code for it. CatalogCorruptError is raised all the same."""
    schema = filled.read_bytes()
    assert b"CREATE TABLE model_tags" in schema
    filled.write_bytes(schema.replace(b"CREATE TABLE model_tags", b"CREATE T\xe5BLE model_tags"))

    with pytest.raises(CatalogCorruptError, match="not valid UTF-8"):
        async with open_catalog(filled) as catalog:
            await catalog.list_models()


async def test_check_schema_finds_a_row_that_an_index_lacks(filled):
    """All pages may be intact while an index does not match its table."""
    with closing(sqlite3.connect(filled)) as raw:
        (row,) = raw.execute("SELECT * FROM sqlite_master WHERE name = 'ix_model_tags_folded'")
        raw.execute("PRAGMA writable_schema = ON")
        raw.execute("DELETE FROM sqlite_master WHERE name = 'ix_model_tags_folded'")
        raw.commit()
    with closing(sqlite3.connect(filled)) as raw:
        raw.execute("INSERT INTO model_tags VALUES (1, 'chat', 'chat')")
        raw.execute("PRAGMA writable_schema = ON")
        raw.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", row)
        raw.commit()

    assert "missing from index ix_model_tags_folded" in " ".join(await check_schema(filled))


OPENED_FILES: list[tuple[str, int]] = []


@cache
def install_audit_hook() -> None:
    """Record every file that this process opens. Python cannot remove an audit hook."""

    def record(event: str, arguments: tuple) -> None:
        if event in ("open", "sqlite3.connect"):
            OPENED_FILES.append((str(arguments[0]), threading.get_ident()))

    sys.addaudithook(record)


def threads_that_opened(path: Path) -> set[int]:
    """Return the threads that have opened a file since `OPENED_FILES` was cleared."""
    return {thread for name, thread in OPENED_FILES if path.name in name}


@pytest.fixture
def audited() -> None:
    install_audit_hook()
    OPENED_FILES.clear()


async def test_a_corrupt_host_database_does_not_block_the_event_loop(filled, audited):
    """No backup is opened in the event loop's thread, neither by the call nor by str(error)."""
    good = await backup(filled)
    damage(filled)
    engine = create_async_engine(f"sqlite+aiosqlite:///{filled}")
    catalog = ModelCatalog(async_sessionmaker(engine))
    OPENED_FILES.clear()

    with pytest.raises(CatalogCorruptError, match="damaged") as caught:
        await catalog.list_models()
    readers_before = threads_that_opened(good)
    named = await asyncio.to_thread(lambda: caught.value.copy)
    await engine.dispose()

    assert readers_before == set()
    assert named == str(good)
    assert str(good) in str(caught.value)
    assert threading.get_ident() not in threads_that_opened(good)


async def test_an_error_of_an_open_catalog_names_the_newest_valid_backup(filled, audited):
    """The worker thread that meets the damage looks for the backup, and not the event loop."""
    good = await backup(filled)

    async with open_catalog(filled) as catalog:
        damage(filled)
        OPENED_FILES.clear()
        with pytest.raises(CatalogCorruptError) as caught:
            await catalog.list_models()
        message = str(caught.value)

    assert f"db restore {shlex.quote(str(good))}" in message
    assert threads_that_opened(good)
    assert threading.get_ident() not in threads_that_opened(good)


async def test_an_error_while_opening_names_the_newest_valid_backup(filled, audited):
    """A host's engine meets the damage in the event loop, and the backup is read in a thread."""
    good = await backup(filled)
    damage(filled)
    engine = create_async_engine(f"sqlite+aiosqlite:///{filled}")
    OPENED_FILES.clear()

    with pytest.raises(CatalogCorruptError) as caught:
        async with open_catalog(engine) as catalog:
            await catalog.list_models()
    await engine.dispose()

    assert f"db restore {shlex.quote(str(good))}" in str(caught.value)
    assert threading.get_ident() not in threads_that_opened(good)

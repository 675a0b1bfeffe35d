"""What other programs have created in a SQLite file neither stops the catalog nor gets lost."""

import logging
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from conftest import a_model
from hive_files import create_hive_table
from schema_shape import dump
from sqlalchemy import create_engine, event
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from model_catalog import (
    CatalogCorruptError,
    CatalogError,
    ForeignDatabaseError,
    InvalidTargetError,
    ModelCatalog,
    UpgradeFailedError,
    backup,
    check_schema,
    downgrade,
    open_catalog,
    restore,
    schema_state,
    upgrade,
    upgrade_connection,
)
from model_catalog.mapping.revisions import head_revision

HEAD = head_revision()
HIVE = """
CREATE TABLE models (
    reference TEXT NOT NULL, provider TEXT NOT NULL, local_path TEXT NOT NULL,
    size_bytes INTEGER NOT NULL, downloaded_at INTEGER NOT NULL,
    PRIMARY KEY (reference, provider));
INSERT INTO models VALUES ('m', 'hf', '/m', 1, 1);
CREATE TABLE notes (text TEXT);
INSERT INTO notes VALUES ('b'), ('a');
"""

AUDIT = "CREATE TRIGGER audit AFTER UPDATE ON models BEGIN INSERT INTO notes VALUES ('u'); END;"
INDEX = 'CREATE INDEX "by size" ON models (size_bytes);'
# What stops none of our statements.
HARMLESS = {
    "views and triggers": """
        CREATE VIEW without_table AS SELECT * FROM gone;
        CREATE VIEW without_column AS SELECT gone FROM models;
        CREATE VIEW paths AS SELECT local_path FROM models;
        CREATE TRIGGER stale AFTER INSERT ON notes BEGIN INSERT INTO gone VALUES (1); END;
        CREATE TRIGGER counting AFTER DELETE ON notes BEGIN
            UPDATE notes SET text = (SELECT count(*) FROM models);
        END""",
    "foreign keys": """
        CREATE TABLE parents (a, b PRIMARY KEY);
        CREATE TABLE without_key (a REFERENCES parents (a));
        CREATE TABLE without_row (b REFERENCES parents (b));
        INSERT INTO without_key VALUES (1);
        INSERT INTO without_row VALUES (1)""",
    "an index with a collation": "CREATE INDEX sorted ON notes (text COLLATE host_order)",
    "other collations and functions": """
        CREATE TABLE words (word TEXT COLLATE host_order PRIMARY KEY);
        CREATE TABLE uses (word TEXT REFERENCES words (word));
        INSERT INTO words VALUES ('x');
        INSERT INTO uses VALUES ('x');
        CREATE INDEX folded ON notes (host_fold(text));
        CREATE TABLE checked (a CHECK (host_fold(a) <> ''));
        INSERT INTO checked VALUES ('x');
        CREATE TABLE made (a, b GENERATED ALWAYS AS (host_fold(a)) STORED);
        INSERT INTO made (a) VALUES ('X')""",
    "on the table of the hive": AUDIT + INDEX,
}
# What stops our statements on a connection of our own, and the name that a message has to say.
IN_THE_WAY = {
    "collation": ("CREATE INDEX own ON models (local_path COLLATE host_order)", "'own'"),
    "function": ("CREATE INDEX own ON models (host_fold(local_path))", "'own'"),
    "foreign key": (
        "CREATE TABLE jobs (r, p, FOREIGN KEY (r, p) REFERENCES models (reference, provider))",
        "'jobs'",
    ),
}


def register_functions(raw) -> None:
    raw.create_collation("host_order", lambda left, right: (left < right) - (left > right))
    raw.create_function("host_fold", 1, str.lower, deterministic=True)


def host_connection(path: Path) -> sqlite3.Connection:
    raw = sqlite3.connect(path)
    register_functions(raw)
    return raw


@pytest.fixture
def hive(tmp_path) -> Path:
    """A file of the Rust daemon with one model, and a table of another program."""
    path = tmp_path / "catalog.db"
    with closing(host_connection(path)) as raw:
        raw.executescript(HIVE)
    return path


def add(path: Path, script: str) -> None:
    with closing(host_connection(path)) as raw:
        raw.executescript(script)


def objects(path: Path) -> list[tuple]:
    """Return what other programs have created: no table of ours, and no index of one."""
    with closing(host_connection(path)) as raw:
        return raw.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_master"
            " WHERE name NOT LIKE 'model%' AND name NOT LIKE 'ix_model%' AND sql IS NOT NULL"
            " ORDER BY name"
        ).fetchall()


def sound(path: Path) -> bool:
    with closing(host_connection(path)) as raw:
        return raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.slow
@pytest.mark.parametrize("script", HARMLESS.values(), ids=HARMLESS)
async def test_the_file_of_another_program_is_upgraded_checked_and_copied(hive, tmp_path, script):
    """Our connections register none of its functions, and its objects stay as they are."""
    add(hive, script)
    before = objects(hive)

    await upgrade(hive, shared=True)
    problems = await check_schema(hive)
    copy = await backup(hive, tmp_path / "copy.db")
    async with open_catalog(hive) as catalog:
        await catalog.register_model(a_model("n"))
        count = await catalog.count_models()
    await restore(copy, tmp_path / "restored.db")
    await downgrade(hive, "0001")

    assert problems == []
    assert count == 2
    assert objects(hive) == objects(copy) == objects(tmp_path / "restored.db") == before
    assert sound(hive)
    assert sound(copy)
    with closing(host_connection(copy)) as raw:
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert raw.execute("SELECT reference FROM models").fetchall() == [("m",)]
    assert list(tmp_path.glob("copy.db-*")) == []


@pytest.mark.slow
@pytest.mark.parametrize("script", HARMLESS.values(), ids=HARMLESS)
async def test_a_file_is_opened_after_its_process_was_killed(hive, tmp_path, script):
    """All pages are read then, although SQLite cannot evaluate a constraint of a host's table."""
    add(hive, script)
    await upgrade(hive, shared=True)
    with closing(host_connection(hive)) as raw:
        raw.execute("PRAGMA wal_autocheckpoint = 0")
        raw.execute("UPDATE models SET pin_reason = 'x'")
        raw.commit()
        # What a killed process leaves: its log.
        killed = tmp_path / "killed"
        killed.mkdir()
        for name in ("catalog.db", "catalog.db-wal"):
            shutil.copy(tmp_path / name, killed / name)

    async with open_catalog(killed / "catalog.db") as catalog:
        assert (await catalog.get_model("m", "hf")).pin_reason == "x"


@pytest.mark.slow
@pytest.mark.parametrize(("script", "name"), IN_THE_WAY.values(), ids=IN_THE_WAY)
async def test_an_object_in_the_way_of_an_upgrade_is_named(hive, script, name):
    """The file is unchanged, and the message says which object it is."""
    add(hive, script)
    before = objects(hive)

    with pytest.raises(UpgradeFailedError, match=name):
        await upgrade(hive, shared=True)

    assert objects(hive) == before
    assert await schema_state(hive) == (None, HEAD)
    assert list(hive.parent.glob("*.part")) == []


def test_an_index_that_only_the_host_can_evaluate_survives_an_upgrade_by_its_engine(hive):
    """The way out of the message: the host's own connections register the collation."""
    add(hive, IN_THE_WAY["collation"][0])
    before = objects(hive)
    engine = create_engine(f"sqlite:///{hive}")

    @event.listens_for(engine, "connect")
    def register(connection, _record):
        register_functions(connection)

    with engine.connect() as connection:
        upgrade_connection(connection)
    engine.dispose()

    assert objects(hive) == before
    assert sound(hive)


async def test_kept_objects_are_logged(hive, caplog):
    """One line names the triggers and indexes that were created again."""
    caplog.set_level(logging.INFO, "model_catalog")
    add(hive, AUDIT)
    add(hive, INDEX)

    await upgrade(hive, shared=True)

    kept = [text for text in caplog.messages if text.startswith("kept in the catalog")]
    assert len(kept) == 1
    assert "the trigger 'audit' on models, the index 'by size' on models" in kept[0]


async def test_a_trigger_does_not_run_for_the_changes_of_a_migration(hive):
    """The trigger of a host is for the changes of programs, and it may be stale."""
    await upgrade(hive, "0008", shared=True)
    add(hive, AUDIT)

    await upgrade(hive)

    with closing(host_connection(hive)) as raw:
        assert raw.execute("SELECT text FROM notes").fetchall() == [("b",), ("a",)]


@pytest.mark.parametrize("backend", ["asyncpg", "psycopg"], indirect=True)
async def test_a_trigger_of_postgresql_that_refuses_a_migration_is_named(empty):
    """The message has the trigger's function and the table that is missing."""
    await create_hive_table(empty)
    empty.run("INSERT INTO models VALUES ('m', 'hf', '/m', -1, 1)")
    empty.run(
        "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO gone VALUES (1); RETURN NEW; END $$"
    )
    empty.run("CREATE TRIGGER audit BEFORE UPDATE ON models FOR EACH ROW EXECUTE FUNCTION audit()")
    before = dump(empty)

    with pytest.raises(UpgradeFailedError, match=r'"gone" does not exist[^$]*function audit\(\)'):
        await upgrade(empty.target)

    assert dump(empty) == before


async def test_a_sqlite_file_has_no_schemas(hive, tmp_path):
    """A schema is refused wherever it is given, also as an option of a host's engine."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{hive}")
    moved = engine.execution_options(schema_translate_map={None: "attached"})

    with pytest.raises(InvalidTargetError, match="SQLite has no schema 'catalog'"):
        await upgrade(hive, schema="catalog")
    with pytest.raises(InvalidTargetError, match="a file of its own"):
        async with open_catalog(engine, schema="catalog"):
            pass
    with pytest.raises(InvalidTargetError, match="'attached'"):
        await upgrade(moved)
    with pytest.raises(InvalidTargetError, match="'attached'"):
        ModelCatalog(async_sessionmaker(moved))
    with pytest.raises(InvalidTargetError, match="'catalog'"):
        ModelCatalog(async_sessionmaker(engine), schema="catalog")
    await engine.dispose()


async def test_a_host_with_a_table_models_is_told_which_file_to_use(tmp_path):
    """The message names a file beside the host's own."""
    path = tmp_path / "host.db"
    add(path, "CREATE TABLE models (id INTEGER PRIMARY KEY, name TEXT)")
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")

    with pytest.raises(ForeignDatabaseError) as caught:
        await upgrade(engine)
    await engine.dispose()

    assert f"open_catalog({str(tmp_path / 'model_catalog.db')!r})" in str(caught.value)


@pytest.mark.slow
async def test_dropped_objects_are_logged(hive, caplog):
    """Without the tables of the catalog, their triggers and indexes cannot be kept."""
    add(hive, INDEX)
    await upgrade(hive, shared=True)

    await downgrade(hive, "base")

    assert "the index 'by size' on models was dropped with its table" in caplog.text


@pytest.mark.slow
async def test_a_trigger_that_stops_our_writes_is_a_problem(sqlite_file):
    """The check names it, and the error of a call does not advise to upgrade."""
    add(
        sqlite_file,
        "CREATE TRIGGER stale AFTER INSERT ON models BEGIN INSERT INTO gone VALUES (1); END",
    )

    (problem,) = await check_schema(sqlite_file)
    async with open_catalog(sqlite_file) as catalog:
        with pytest.raises(CatalogError, match=r"no such table: main\.gone") as caught:
            await catalog.register_model(a_model("m"))

    assert "the trigger 'stale' on models" in problem
    assert "INSERT in models: no such table: main.gone" in problem
    assert "upgrade" not in str(caught.value)


async def test_damage_is_found_beside_a_table_that_cannot_be_checked(filled):
    """Each of the other tables is checked alone."""
    add(filled, "CREATE TABLE checked (a CHECK (host_fold(a))); INSERT INTO checked VALUES ('1')")
    with closing(sqlite3.connect(filled)) as raw:
        (page,) = raw.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'ix_models_digest'"
        ).fetchone()
        (size,) = raw.execute("PRAGMA page_size").fetchone()
    with filled.open("r+b") as file:
        file.seek((page - 1) * size + 3)
        file.write(b"\xff\xff")

    with pytest.raises(CatalogCorruptError):
        await check_schema(filled)

"""The revisions: they migrate files of the Rust hive, and every path ends in the same schema."""

import ast
import asyncio
import logging
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import datetime
from pathlib import Path

import hive_files
import postgres
import psycopg
import pytest
from conftest import Database, a_model, moment
from schema_shape import digest, dump, shape
from sqlalchemy.ext.asyncio import create_async_engine

from model_catalog import (
    FileRecord,
    Model,
    UpgradeFailedError,
    check_schema,
    downgrade,
    open_catalog,
    schema_state,
    upgrade,
)
from model_catalog.mapping import added_objects
from model_catalog.mapping.added_objects import ADDED_OBJECTS, AddedObject
from model_catalog.mapping.base import Base
from model_catalog.mapping.revisions import head_revision, known_revisions
from model_catalog.schema.revision import APPLICATION_ID, VERSION_TABLE
from model_catalog.schema.revision_runner import script_directory

HEAD = head_revision()
NUMBERS = [revision.removeprefix("model_catalog_") for revision in known_revisions()]

ROOT = Path(__file__).parents[2]
REVISIONS = sorted((ROOT / "migrations" / "versions").glob("[0-9]*.py"))
SELECT_HIVE_COLUMNS = (
    "SELECT reference, provider, local_path, size_bytes, downloaded_at FROM models"
)


def delete_everything(database: Database) -> None:
    if database.path is None:
        database.run("DROP SCHEMA public CASCADE")
        database.run("CREATE SCHEMA public")
        return
    for path in database.path.parent.glob(database.path.name + "*"):
        path.unlink()


@pytest.fixture
def file(tmp_path) -> Database:
    """The path of a SQLite file that does not exist yet, as the Rust hive would name it."""
    path = tmp_path / "catalog.db"
    return Database("sqlite", str(path), path=path)


def unix_seconds(when: datetime | None) -> int | None:
    return None if when is None else int(when.timestamp() // 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", hive_files.SHAPES)
async def test_a_hive_file_is_migrated_with_all_rows(file, kind):
    """Every version of the hive's table is migrated when it is opened, and all rows are listed."""
    rows = hive_files.valid_rows(kind)
    hive_files.write_hive_file(file.path, rows, hive_files.SHAPES[kind])

    async with open_catalog(file.path) as catalog:
        models = await catalog.list_models()
        total = await catalog.get_total_size()

    assert sorted(map(repr, rows)) == sorted(
        repr((m.reference, m.provider, m.local_path, m.size_bytes, unix_seconds(m.downloaded_at)))
        for m in models
    )
    assert {m.version for m in models} == {""}
    assert total == sum(row[3] or 0 for row in rows) > 2**64 - 1
    assert await check_schema(file.path) == []


@pytest.mark.parametrize("kind", hive_files.SHAPES)
async def test_an_invalid_value_becomes_null_and_is_counted(file, kind, caplog):
    """An invalid size or time becomes NULL, its row is kept, and the log has the number of rows."""
    hive_files.write_hive_file(
        file.path, hive_files.valid_rows(kind) + hive_files.INVALID_ROWS, hive_files.SHAPES[kind]
    )

    async with open_catalog(file.path) as catalog:
        models = await catalog.list_models()
        total = await catalog.get_total_size()

    assert len(models) == len(hive_files.valid_rows(kind) + hive_files.INVALID_ROWS)
    assert sorted(map(repr, file.run(SELECT_HIVE_COLUMNS))) == sorted(
        repr(hive_files.upgraded_row(row))
        for row in hive_files.valid_rows(kind) + hive_files.INVALID_ROWS
    )
    assert total == sum(
        hive_files.upgraded_row(row)[3] or 0
        for row in hive_files.valid_rows(kind) + hive_files.INVALID_ROWS
    )
    warnings = [record for record in caplog.records if record.name == "model_catalog.migrations"]
    assert [(record.levelno, record.args) for record in warnings] == [
        (logging.WARNING, (len(hive_files.INVALID_SIZES), "size_bytes")),
        (logging.WARNING, (len(hive_files.INVALID_TIMES), "downloaded_at")),
    ]


async def test_blobs_in_text_columns_are_converted(file):
    """SQLite allows BLOBs in text columns. Such rows are listed and found like others."""
    hive_files.write_hive_file(
        file.path, [(b"m", b"hf", b"/models/\xff.gguf", 5, 5), ("n", "hf", b"/n", 1, 1)]
    )

    async with open_catalog(file.path) as catalog:
        model = await catalog.find_model("m", "hf")
        assert [m.reference for m in await catalog.list_models()] == ["m", "n"]

    assert (model.reference, model.provider) == ("m", "hf")
    assert model.local_path == "/models/\udcff.gguf"


async def test_valid_values_log_no_warning(file, caplog):
    """An upgrade that changes no value logs no warning."""
    hive_files.write_hive_file(file.path, hive_files.valid_rows("nullable"))

    with caplog.at_level(logging.WARNING):
        await upgrade(file.path)

    assert caplog.records == []


async def test_invalid_values_become_null_on_every_database(empty, caplog):
    """In a column that stores only integers, an invalid value is negative or in milliseconds."""
    await upgrade(empty.target, "0001")
    for row in [("m", -1, 5), ("n", 2**63 - 1, 10**12), ("o", None, -(2**63)), ("p", 0, None)]:
        empty.run("INSERT INTO models VALUES (?, 'hf', '/m', ?, ?)", *row)

    await upgrade(empty.target)

    assert empty.run("SELECT reference, size_bytes, downloaded_at FROM models ORDER BY 1") == [
        ("m", None, 5),
        ("n", 2**63 - 1, None),
        ("o", None, None),
        ("p", 0, None),
    ]
    assert [record.args for record in caplog.records] == [(1, "size_bytes"), (2, "downloaded_at")]


@pytest.mark.parametrize("kind", hive_files.SHAPES)
async def test_a_second_upgrade_changes_no_byte(file, kind):
    """A file at the newest revision is opened and upgraded without a write."""
    hive_files.write_hive_file(
        file.path, hive_files.valid_rows(kind) + hive_files.INVALID_ROWS, hive_files.SHAPES[kind]
    )
    await upgrade(file.path)
    before = digest(file)

    await upgrade(file.path)
    async with open_catalog(file.path) as catalog:
        await catalog.list_models()

    assert digest(file) == before
    assert [name.partition(".backup-")[0] for name in sorted(before)] == ["catalog.db"] * 2


async def test_a_downgrade_restores_the_table_of_the_hive(empty):
    """At 0001 the schema is that of the hive, with the newest version of each model."""
    async with open_catalog(empty.target) as catalog:
        for version, second in [("v1", 5), ("v3", 9), ("v2", 7)]:
            await catalog.register_model(
                a_model(
                    "m", version=version, local_path=f"/{version}", downloaded_at=moment(second)
                )
            )
        await catalog.register_model(a_model("m", provider="ollama", size_bytes=4))
        await catalog.register_model(a_model("tie", version="b", local_path="/first"))
        await catalog.register_model(a_model("tie", version="a", local_path="/second"))
        await catalog.register_model(a_model("old", version="known", local_path="/known"))
        await catalog.register_model(a_model("old", version="unknown", local_path="/unknown"))
    empty.run("UPDATE models SET downloaded_at = 5 WHERE reference = 'tie'")
    empty.run("UPDATE models SET downloaded_at = -62135596800 WHERE version = 'known'")
    empty.run("UPDATE models SET downloaded_at = NULL WHERE version = 'unknown'")

    await downgrade(empty.target, "0001")
    rows = empty.run("SELECT reference, provider, local_path FROM models ORDER BY 1, 2")
    table = shape(empty)
    empty.run("DROP TABLE models")
    empty.run(f"DROP TABLE {VERSION_TABLE}")
    await upgrade(empty.target, "0001")

    assert rows == [
        ("m", "hf", "/v3"),
        ("m", "ollama", "/models/tinyllama.gguf"),
        ("old", "hf", "/known"),
        ("tie", "hf", "/second"),
    ]
    assert table == shape(empty)


@pytest.mark.slow
async def test_up_down_and_up_again_keeps_the_rows(empty):
    """If each model has one version, a downgrade to 0001 and an upgrade lose no row."""
    await hive_files.create_hive_table(empty)
    before = sorted(map(repr, empty.run(SELECT_HIVE_COLUMNS)))

    await upgrade(empty.target)
    upgraded = dump(empty)
    await downgrade(empty.target, "0001")
    downgraded = sorted(map(repr, empty.run(SELECT_HIVE_COLUMNS)))
    await upgrade(empty.target)

    assert downgraded == before == sorted(map(repr, empty.run(SELECT_HIVE_COLUMNS)))
    assert shape(empty) == {key: upgraded[key] for key in shape(empty)}
    assert await check_schema(empty.target) == []


async def test_a_downgrade_to_base_drops_all_tables(empty):
    """After `base` no table of models is left, and the next upgrade starts from scratch."""
    await hive_files.create_hive_table(empty)
    await upgrade(empty.target)

    await downgrade(empty.target, "base")
    tables = empty.tables
    await upgrade(empty.target)

    assert tables == {VERSION_TABLE}
    assert empty.run("SELECT count(*) FROM models") == [(0,)]


async def test_the_hive_can_use_a_downgraded_file(file):
    """The hive's own statements register, replace, list and delete rows."""
    hive_files.write_hive_file(file.path, hive_files.VALID_ROWS)
    await upgrade(file.path)
    await downgrade(file.path, "0001")

    hive_files.write_hive_file(
        file.path, [("TinyLlama-1.1B", "hf", "/moved", 1, 2), ("new", "hf", "/new", 3, 4)]
    )
    file.run("DELETE FROM models WHERE reference = ? AND provider = ?", "largest", "hf")
    rows = file.run(hive_files.LIST + " ORDER BY downloaded_at DESC")

    assert len(rows) == len(hive_files.VALID_ROWS)
    assert ("TinyLlama-1.1B", "hf", "/moved", 1, 2) in rows
    await upgrade(file.path)
    async with open_catalog(file.path) as catalog:
        assert (await catalog.find_model("new", "hf")).size_bytes == 3


@pytest.mark.parametrize("kind", hive_files.SHAPES)
async def test_a_new_file_equals_a_migrated_hive_file(file, tmp_path, kind):
    """Their schemas are equal in every column, constraint and index."""
    fresh = Database("sqlite", "", path=tmp_path / "fresh.db")
    hive_files.write_hive_file(file.path, hive_files.valid_rows(kind), hive_files.SHAPES[kind])

    await upgrade(file.path)
    await upgrade(fresh.path)

    assert shape(file) == shape(fresh)


@pytest.mark.slow
@pytest.mark.slow_with("asyncpg")
async def test_a_new_database_equals_one_upgraded_step_by_step(empty):
    """An upgrade that stops at each revision, with rows, ends in the same schema."""
    await upgrade(empty.target)
    at_once = shape(empty)
    await downgrade(empty.target, "base")
    empty.run(f"DROP TABLE {VERSION_TABLE}")

    await hive_files.create_hive_table(empty)
    for revision in known_revisions():
        await upgrade(empty.target, revision)

    assert shape(empty) == at_once


@pytest.mark.slow
async def test_migrations_and_create_all_make_the_same_schema(empty):
    """The migrations make the tables of the mapping, with equal names, defaults and order."""
    await upgrade(empty.target, "0001")
    await upgrade(empty.target)
    migrated = shape(empty, leave_out=VERSION_TABLE)
    problems = await check_schema(empty.target)
    delete_everything(empty)

    engine = create_async_engine(empty.target_url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()

    assert problems == []
    assert migrated == shape(empty, leave_out=VERSION_TABLE)
    assert await check_schema(empty.target) == []


COUNTED: tuple[AddedObject, ...] = (
    AddedObject(
        name="counted",
        table="models",
        dialect="sqlite",
        sql="CREATE TABLE counted (number INTEGER)",
        tables=frozenset({"counted"}),
    ),
    AddedObject(
        name="count_models",
        table="models",
        dialect="sqlite",
        sql="CREATE TRIGGER count_models AFTER INSERT ON models"
        " BEGIN INSERT INTO counted VALUES (7 % 4); END",
    ),
    AddedObject(
        name="counted",
        table="models",
        dialect="postgresql",
        sql="CREATE TABLE counted (number INTEGER)",
        tables=frozenset({"counted"}),
    ),
    AddedObject(
        name="count_models()",
        table="models",
        dialect="postgresql",
        sql="CREATE FUNCTION count_models() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO counted VALUES (7 % 4); RETURN NULL; END $$",
    ),
    AddedObject(
        name="count_models",
        table="models",
        dialect="postgresql",
        sql="CREATE TRIGGER count_models AFTER INSERT ON models"
        " FOR EACH ROW EXECUTE FUNCTION count_models()",
    ),
)


@pytest.mark.parametrize("is_possible", [None, lambda _: False], ids=["possible", "not possible"])
async def test_a_new_database_has_the_objects_beyond_the_mapping(empty, monkeypatch, is_possible):
    """A trigger and its table are created where they can be, and are not another program's."""
    listed = tuple(each._replace(is_possible=is_possible) for each in COUNTED)
    listed += added_objects.ADDED_OBJECTS
    monkeypatch.setattr(added_objects, "ADDED_OBJECTS", listed)

    async with open_catalog(empty.target) as catalog:
        await catalog.register_model(a_model())
    found = "counted" in empty.tables

    assert found is (is_possible is None)
    assert not found or empty.run("SELECT number FROM counted") == [(3,)]
    assert await check_schema(empty.target) == []
    assert empty.path is None or empty.run("PRAGMA application_id") == [(APPLICATION_ID,)]


def test_known_revisions_equals_the_chain_of_alembic():
    """The revisions read from the file names are those that Alembic finds in the files."""
    scripts = script_directory()

    chain = [script.revision for script in scripts.walk_revisions()]

    assert known_revisions() == chain[::-1]
    assert scripts.get_heads() == [HEAD] == known_revisions()[-1:]


@pytest.mark.parametrize("path", REVISIONS, ids=lambda path: path.stem)
def test_a_revision_follows_the_rules_of_the_template(path):
    """
    Its file is named NNNN_verb_object, it follows the previous revision, has a docstring, and
    imports nothing of the package.
    """
    tree = ast.parse(path.read_text())
    names = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id.endswith(("revision", "_labels"))
    }
    imported = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None), *(alias.name for alias in node.names)]
        if name
    }
    number = REVISIONS.index(path)

    assert re.fullmatch(r"\d{4}(_[a-z0-9]+){2,}\.py", path.name)
    assert path.name[:4] == f"{number + 1:04}"
    assert names["revision"] == f"model_catalog_{number + 1:04}"
    assert names["down_revision"] == (f"model_catalog_{number:04}" if number else None)
    assert names["branch_labels"] == (None if number else ("model_catalog",))
    assert f"Revision ID: {names['revision']}\n" in f"{ast.get_docstring(tree)}\n"
    assert not {name for name in imported if name.startswith("model_catalog")}
    assert {"upgrade", "downgrade"} <= {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}


def run_alembic(*arguments: str, url: str | None = None, fails: bool = False) -> str:
    """Run the `alembic` command in the checkout, and return its output."""
    done = subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=ROOT,
        env={**os.environ, **({"MODEL_CATALOG_URL": url} if url else {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode != 0) is fails, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
async def test_the_alembic_command_equals_the_functions(empty):
    """
    `alembic upgrade`, `current`, `check` and `downgrade` use the database of `-x url=` or
    MODEL_CATALOG_URL.
    """
    await hive_files.create_hive_table(empty)
    rows = sorted(map(repr, empty.run(SELECT_HIVE_COLUMNS)))

    run_alembic("-x", f"url={empty.target}", "upgrade", "head", url="/nowhere/at/all.db")
    by_alembic = dump(empty)
    current = run_alembic("current", url=empty.target)
    check = run_alembic("check", url=empty.target)
    run_alembic("downgrade", "model_catalog_0001", url=empty.target)
    state = await schema_state(empty.target)
    await upgrade(empty.target)

    assert f"{HEAD} (head)" in current
    assert "No new upgrade operations detected" in check
    assert state == ("model_catalog_0001", HEAD)
    assert sorted(map(repr, empty.run(SELECT_HIVE_COLUMNS))) == rows
    assert dump(empty) == by_alembic


@pytest.mark.slow
async def test_the_alembic_command_creates_a_catalog(file):
    """`alembic upgrade head` creates the file and sets its application id."""
    output = run_alembic("upgrade", "head", url=file.target)

    assert "Running upgrade model_catalog_0001 -> model_catalog_0002" in output
    assert file.path.read_bytes()[68:72] == b"MCat"
    assert await check_schema(file.target) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [("current",), ("check",), ("downgrade", "base")],
    ids=["current", "check", "downgrade"],
)
def test_the_alembic_command_creates_no_file_to_read_it(file, command):
    """For a missing file, `alembic` prints one line and creates nothing."""
    output = run_alembic(*command, url=str(file.path), fails=True)

    assert "the file does not exist" in output
    assert len(output.strip().splitlines()) <= 2
    assert list(file.path.parent.iterdir()) == []


@pytest.mark.slow
async def test_the_alembic_command_refuses_a_foreign_table(file):
    """A foreign table `models` is refused in one line and is not changed."""
    file.run("CREATE TABLE models (id INTEGER)")
    before = digest(file)

    output = run_alembic("upgrade", "head", url=file.target, fails=True)

    assert "a table 'models' with the columns id" in output
    assert digest(file) == before


def execute_script(database: Database, sql: str) -> None:
    if database.path is not None:
        with closing(sqlite3.connect(database.path)) as raw:
            raw.executescript(sql)
        return
    with psycopg.connect(postgres.dsn(database.url), autocommit=True) as raw:
        raw.execute(sql)


@pytest.mark.slow
@pytest.mark.slow_with("asyncpg")
async def test_printed_sql_has_the_effect_of_an_upgrade(empty):
    """An administrator can run the output of `alembic upgrade head --sql` by hand."""
    await upgrade(empty.target)
    online = shape(empty)
    mapped = (table.name for table in reversed(Base.metadata.sorted_tables))
    added = (each.name for each in ADDED_OBJECTS if each.name in each.tables & empty.tables)
    for table in (*mapped, *added, VERSION_TABLE):
        empty.run(f"DROP TABLE {table}")

    sql = await asyncio.to_thread(alembic_sql, empty.target)
    execute_script(empty, sql)

    assert shape(empty) == online
    assert await schema_state(empty.target) == (HEAD, HEAD)
    assert await check_schema(empty.target) == []


@pytest.fixture(scope="module")
def sqlite_sql() -> str:
    return alembic_sql("sqlite:////nowhere/catalog.db")


@pytest.mark.slow
@pytest.mark.parametrize("kind", hive_files.SHAPES)
async def test_printed_sql_migrates_a_hive_file(file, tmp_path, sqlite_sql, kind):
    """A file with invalid values becomes what an upgrade makes of it."""
    other = Database("sqlite", "", path=tmp_path / "online.db")
    for database in (file, other):
        hive_files.write_hive_file(
            database.path,
            hive_files.valid_rows(kind) + hive_files.INVALID_ROWS,
            hive_files.SHAPES[kind],
        )
    await upgrade(other.path)

    execute_script(file, sqlite_sql)

    assert shape(file) == shape(other)
    # SQLite's lower() folds only ASCII, so the search columns differ.
    names = [column.name for column in Model.__table__.columns]
    columns = ", ".join(name for name in names if not name.endswith("_folded"))
    assert sorted(map(repr, file.run(f"SELECT {columns} FROM models"))) == sorted(
        map(repr, other.run(f"SELECT {columns} FROM models"))
    )
    assert await check_schema(file.path) == []
    async with open_catalog(file.path) as catalog:
        assert await catalog.count_models(search="tinyLLAMA") == len(
            [row for row in hive_files.valid_rows(kind) if row[0].startswith("TinyLlama")]
        )


@pytest.mark.slow
async def test_a_registration_corrects_the_search_text_of_printed_sql(file, sqlite_sql):
    """After it, a search for letters beyond ASCII finds the model."""
    hive_files.write_hive_file(file.path, [("ÄPFEL", "hf", "/m", 1, 1)])
    execute_script(file, sqlite_sql)

    async with open_catalog(file.path) as catalog:
        before = await catalog.count_models(search="äpfel")
        await catalog.register_model(a_model("ÄPFEL"))
        after = await catalog.count_models(search="äpfel")

    assert (before, after) == (0, 1)


@pytest.mark.slow
@pytest.mark.slow_with("asyncpg")
async def test_an_upgrade_from_any_revision_keeps_all_values(empty):
    """
    At each revision a row is added with a value in every column, and all values arrive at head.
    """
    values = {
        "0003": {"architecture": "llama", "claimed_architecture": "qwen2", "context_length": 4096},
        "0004": {"description": "Für dich"},
        "0006": {"download_count": 3, "use_count": 7, "last_used_at": 1_729_000_009},
        "0007": {"pinned_at": 1_729_000_010, "pin_reason": "mine"},
        "0010": {
            "state": "missing",
            "state_detail": "'m' is missing",
            "checked_at": 1_729_000_011,
            "missing_since": 1_729_000_012,
            "mount_point": "/",
        },
        "0011": {
            "digest": f"sha256:{1:064x}",
            "found_digest": f"sha256:{2:064x}",
            "verified_at": 1_729_000_013,
        },
        "0012": {"inventoried_at": 1_729_000_014, "incomplete_reason": "missing: n"},
        "0013": {"signed_by": f"sha256:{3:064x}", "signature_verdict": "valid"},
        "0014": {"store": "ollama", "store_root": "/usr/share/ollama/.ollama/models"},
        "0017": {"headers_read_at": 1_729_000_015},
        "0018": {"kind": "adapter", "claimed_kind": "model"},
        "0019": {"listing_reason": "missing: n", "unknown_reason": "weights are not read"},
        "0023": {"managed_root": "/models"},
    }
    children = {
        "0005": "INSERT INTO model_tags (model_id, folded, tag)"
        " SELECT id, 'chat', 'Chat' FROM models",
        "0008": "INSERT INTO model_aliases (provider, reference, alias, model_id)"
        " SELECT provider, reference, 'main', id FROM models",
        "0012": "INSERT INTO model_files (model_id, path, role, size_bytes, digest)"
        f" SELECT id, 'm.gguf', 'weights', 7, 'sha256:{4:064x}' FROM models",
        "0017": "UPDATE model_files SET file_id = '2049:7', disk_bytes = 4096",
        "0020": "INSERT INTO model_claims"
        " VALUES ('gpu-07', 'hf', 'm', '', 'download', 't', 'h', 1, 2, 3)",
        "0021": "INSERT INTO model_downloads"
        " (provider, reference, version, token, state, holder_host, holder_process_id,"
        " queued_at_ms)"
        " VALUES ('hf', 'm', '', 't', 'running', 'h', 1, 2)",
        "0022": "INSERT INTO model_uses"
        " SELECT 't', id, 'h', 1, 2, 3, 4 FROM models WHERE reference = 'At 0022'",
        "0024": "INSERT INTO model_hosts VALUES"
        " ('gpu-07', 'gpu-07.lan', '{}', 'me', 'gpu-07', 22, '/key', 9, 5, 1, 2)",
    }
    for stop in NUMBERS[1:]:
        await upgrade(empty.target, stop)
        row = {"provider": "hf", "reference": f"At {stop}", "version": "v1", "local_path": "/m"}
        for revision, more in values.items():
            row |= more if revision <= stop else {}
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        empty.run(f"INSERT INTO models ({names}) VALUES ({marks})", *row.values())
        if stop in children:
            empty.run(children[stop])

    async with open_catalog(empty.target) as catalog:
        found = {model.reference: model for model in await catalog.list_models()}
        searched = await catalog.list_models(search="AT 00")
        files = await catalog.list_files("At 0012", "hf")
        aliased = await catalog.get_model("At 0008", "hf", "main")

    assert sorted(found) == [f"At {stop}" for stop in NUMBERS[1:]]
    # Rows that a plain driver wrote after 0009 have no search text.
    assert len(searched) == len([stop for stop in NUMBERS[1:] if stop < "0009"])
    assert aliased.pin_reason == "mine"
    assert files == [FileRecord("m.gguf", 7, digest=f"sha256:{4:064x}")]
    assert [(file.file_id, file.disk_bytes) for file in files] == [("2049:7", 4096)]
    for reference, model in found.items():
        for revision, more in values.items():
            for name, value in more.items():
                got = getattr(model, name)
                got = unix_seconds(got) if isinstance(got, datetime) else got
                absent = {"download_count": 1, "use_count": 0, "state": "unchecked"}.get(name)
                assert got == (value if revision <= reference[3:] else absent), (reference, name)
        assert model.tags == (("Chat",) if reference <= "At 0005" else ())


async def test_the_revision_of_hosts_keeps_all_models(empty):
    """Up, down and up again: the models stay, and the hosts have to be registered again."""
    await upgrade(empty.target, "0023")
    empty.run("INSERT INTO models (provider, reference, local_path) VALUES ('hf', 'm', '/m')")
    before = empty.run("SELECT * FROM models")

    await upgrade(empty.target, "0024")
    empty.run("INSERT INTO model_hosts (name, registered_at_ms) VALUES ('gpu-07', 1)")
    hosts = empty.run("SELECT name, labels, ssh_port, heartbeat_at_ms FROM model_hosts")
    await downgrade(empty.target, "0023")
    tables = empty.tables
    await upgrade(empty.target, "0024")

    assert hosts == [("gpu-07", None, None, None)]
    assert "model_hosts" not in tables
    assert empty.run("SELECT count(*) FROM model_hosts") == [(0,)]
    assert empty.run("SELECT * FROM models") == before


@pytest.mark.slow
async def test_each_revision_after_that_of_keys_keeps_the_models_of_several_hosts(empty):
    """
    Up, down and up again: every row of every host and its children. Before it, one host only.
    """
    await upgrade(empty.target, "0025")
    for host in ("", "gpu-01", "gpu-02"):
        empty.run(
            "INSERT INTO models (host, provider, reference, version, local_path, size_bytes)"
            " VALUES (?, 'hf', 'm', 'v1', '/m', 7)",
            host,
        )
    empty.run("INSERT INTO model_tags SELECT id, 'chat', 'Chat' FROM models")
    empty.run(
        "INSERT INTO model_aliases (host, provider, reference, alias, model_id)"
        " SELECT host, provider, reference, 'main', id FROM models"
    )
    before = rows_of_hosts(empty)

    for stop in (each for each in NUMBERS if each > "0025"):
        await upgrade(empty.target, stop)
        upgraded = rows_of_hosts(empty)
        await downgrade(empty.target, f"{int(stop) - 1:04}")
        downgraded = rows_of_hosts(empty)
        await upgrade(empty.target, stop)

        assert upgraded == downgraded == rows_of_hosts(empty) == before
        assert len(upgraded[0]) == 3

    with pytest.raises(UpgradeFailedError, match=r"'' \(1\), 'gpu-01' \(1\), 'gpu-02' \(1\)"):
        await downgrade(empty.target, "0001")
    assert rows_of_hosts(empty) == before


def rows_of_hosts(database) -> list[list[tuple]]:
    """Return models, tags and aliases."""
    return [
        database.run(f"SELECT {columns} ORDER BY 1, 2")
        for columns in (
            "host, id, provider, reference, version, local_path, size_bytes FROM models",
            "* FROM model_tags",
            "host, alias, model_id, provider, reference FROM model_aliases",
        )
    ]


def alembic_sql(url: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "-x", f"url={url}", "upgrade", "head", "--sql"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_program_that_imports_only_upgrade_creates_all_tables(tmp_path):
    """
    The classes of the tables are imported on first use, and a new database needs all of them.
    """
    path = tmp_path / "catalog.db"
    program = (
        "import asyncio, sys; from model_catalog import upgrade; asyncio.run(upgrade(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)

    with closing(sqlite3.connect(path)) as raw:
        (count,) = raw.execute("SELECT count(*) FROM models").fetchone()
    assert count == 0

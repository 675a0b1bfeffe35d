"""The revisions: what they make of the hive's files, and that every road leads to one schema."""

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
from alembic.script import ScriptDirectory
from conftest import Database, a_model, moment
from schema_shape import digest, dump, shape
from sqlalchemy.ext.asyncio import create_async_engine

from model_catalog import (
    FileRecord,
    Model,
    check_schema,
    downgrade,
    open_catalog,
    schema_state,
    upgrade,
)
from model_catalog.mapping.revisions import head_revision, known_revisions
from model_catalog.mapping.tables import Base
from model_catalog.schema.migrate import alembic_config
from model_catalog.schema.revision import VERSION_TABLE

HEAD = head_revision()

ROOT = Path(__file__).parents[2]
REVISIONS = sorted((ROOT / "migrations" / "versions").glob("[0-9]*.py"))
FIVE = "SELECT reference, provider, local_path, size_bytes, downloaded_at FROM models"


@pytest.fixture
def file(tmp_path) -> Database:
    """A SQLite file that is not there yet, where the hive would have written it."""
    path = tmp_path / "catalog.db"
    return Database("sqlite", str(path), path=path)


def seconds(when: datetime | None) -> int | None:
    return None if when is None else int(when.timestamp() // 1)


@pytest.mark.parametrize("kind", hive_files.SHAPES)
async def test_a_file_of_the_hive_opens_and_keeps_every_row(file, kind):
    """
    Whichever hive wrote it, a file opens, is brought up to date, and lists every row it held.
    """
    rows = hive_files.valid_rows(kind)
    hive_files.write_hive_file(file.path, rows, hive_files.SHAPES[kind])

    async with open_catalog(file.path) as catalog:
        models = await catalog.list_models()
        total = await catalog.get_total_size()

    assert sorted(map(repr, rows)) == sorted(
        repr((m.reference, m.provider, m.local_path, m.size_bytes, seconds(m.downloaded_at)))
        for m in models
    )
    assert {m.version for m in models} == {""}
    assert total == sum(row[3] or 0 for row in rows) > 2**64 - 1
    assert await check_schema(file.path) == []


@pytest.mark.parametrize("kind", hive_files.SHAPES)
async def test_an_odd_value_becomes_null_and_is_counted(file, kind, caplog):
    """
    A value that is no size or no time is forgotten, its row is not, and the log says how many.
    """
    hive_files.write_hive_file(
        file.path, hive_files.valid_rows(kind) + hive_files.INVALID_ROWS, hive_files.SHAPES[kind]
    )

    async with open_catalog(file.path) as catalog:
        models = await catalog.list_models()
        total = await catalog.get_total_size()

    assert len(models) == len(hive_files.valid_rows(kind) + hive_files.INVALID_ROWS)
    assert sorted(map(repr, file.run(FIVE))) == sorted(
        repr(hive_files.upgraded_row(row))
        for row in hive_files.valid_rows(kind) + hive_files.INVALID_ROWS
    )
    assert total == sum(
        hive_files.upgraded_row(row)[3] or 0
        for row in hive_files.valid_rows(kind) + hive_files.INVALID_ROWS
    )
    said = [record for record in caplog.records if record.name == "model_catalog.migrations"]
    assert [(record.levelno, record.args) for record in said] == [
        (logging.WARNING, (len(hive_files.INVALID_SIZES), "size_bytes")),
        (logging.WARNING, (len(hive_files.INVALID_TIMES), "downloaded_at")),
    ]


async def test_texts_that_were_written_as_blobs_are_read(file):
    """
    SQLite keeps a blob in a column of text; such a row lists, is found and is named like any other.
    """
    hive_files.write_hive_file(
        file.path, [(b"m", b"hf", b"/models/\xff.gguf", 5, 5), ("n", "hf", b"/n", 1, 1)]
    )

    async with open_catalog(file.path) as catalog:
        model = await catalog.find_model("m", "hf")
        assert [m.reference for m in await catalog.list_models()] == ["m", "n"]

    assert (model.reference, model.provider) == ("m", "hf")
    assert model.local_path == "/models/\udcff.gguf"


async def test_sound_values_are_nothing_to_speak_of(file, caplog):
    """
    An upgrade that forgot nothing warns of nothing.
    """
    hive_files.write_hive_file(file.path, hive_files.valid_rows("nullable"))

    with caplog.at_level(logging.WARNING):
        await upgrade(file.path)

    assert caplog.records == []


async def test_odd_values_are_forgotten_on_every_database(empty, caplog):
    """
    Where a column holds only integers, an odd one is negative or counts milliseconds.
    """
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
    """
    A file that is up to date is opened and upgraded again without a byte being written.
    """
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


async def test_going_back_gives_the_hive_its_table(empty):
    """
    Downgraded to 0001 it is the table that the hive had, and of several versions the newest stays.
    """
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


async def test_up_down_and_up_again_keeps_the_rows(empty):
    """
    A catalog with one version of each model loses nothing on the way back to the hive and forth.
    """
    await hive_files.create_hive_table(empty)
    before = sorted(map(repr, empty.run(FIVE)))

    await upgrade(empty.target)
    up = dump(empty)
    await downgrade(empty.target, "0001")
    down = sorted(map(repr, empty.run(FIVE)))
    await upgrade(empty.target)

    assert down == before == sorted(map(repr, empty.run(FIVE)))
    assert shape(empty) == {key: up[key] for key in shape(empty)}
    assert await check_schema(empty.target) == []


async def test_back_to_the_base_there_is_nothing(empty):
    """
    Downgraded to `base` no table of models is left, and the next upgrade begins anew.
    """
    await hive_files.create_hive_table(empty)
    await upgrade(empty.target)

    await downgrade(empty.target, "base")
    tables = empty.tables
    await upgrade(empty.target)

    assert tables == {VERSION_TABLE}
    assert empty.run("SELECT count(*) FROM models") == [(0,)]


async def test_the_hive_works_on_a_file_that_went_back(file):
    """
    On a downgraded file the hive registers, replaces, lists and removes as it always did.
    """
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
async def test_a_fresh_file_equals_one_carried_from_the_hive(file, tmp_path, kind):
    """
    Nothing in the schema tells where a database came from, to the last constraint.
    """
    fresh = Database("sqlite", "", path=tmp_path / "fresh.db")
    hive_files.write_hive_file(file.path, hive_files.valid_rows(kind), hive_files.SHAPES[kind])

    await upgrade(file.path)
    await upgrade(fresh.path)

    assert shape(file) == shape(fresh)


async def test_a_fresh_database_equals_one_carried_through_every_revision(empty):
    """
    Stopping at each revision, with rows, ends in the same schema as going there at once.
    """
    await upgrade(empty.target)
    at_once = shape(empty)
    await downgrade(empty.target, "base")
    empty.run(f"DROP TABLE {VERSION_TABLE}")

    await hive_files.create_hive_table(empty)
    for revision in known_revisions():
        await upgrade(empty.target, revision)

    assert shape(empty) == at_once


async def test_two_roads_lead_to_one_schema(empty):
    """
    The migrations make the tables that the mapping describes, names, defaults and order included.
    """
    await upgrade(empty.target)
    migrated = shape(empty, leave_out=VERSION_TABLE)
    problems = await check_schema(empty.target)
    for table in reversed(Base.metadata.sorted_tables):
        empty.run(f"DROP TABLE {table.name}")

    engine = create_async_engine(empty.target_url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()

    assert problems == []
    assert migrated == shape(empty, leave_out=VERSION_TABLE)
    assert await check_schema(empty.target) == []


def test_the_revisions_are_alembics_own():
    """
    What the package reads off the names of the files is what Alembic finds in them.
    """
    scripts = ScriptDirectory.from_config(alembic_config())

    chain = [script.revision for script in scripts.walk_revisions()]

    assert known_revisions() == chain[::-1]
    assert scripts.get_heads() == [HEAD] == known_revisions()[-1:]


@pytest.mark.parametrize("path", REVISIONS, ids=lambda path: path.stem)
def test_a_revision_is_one_more_step_that_knows_no_mapping(path):
    """
    A revision is called NNNN_verb_object, follows the one before it, says what it does, and imports
    nothing of the package: it describes the past, and the mapping moves.
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
    assert names["revision"] == path.name[:4] == f"{number + 1:04}"
    assert names["down_revision"] == (REVISIONS[number - 1].name[:4] if number else None)
    assert f"Revision ID: {path.name[:4]}" in ast.get_docstring(tree)
    assert not {name for name in imported if name.startswith("model_catalog")}
    assert {"upgrade", "downgrade"} <= {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}


def alembic(*arguments: str, url: str | None = None, fails: bool = False) -> str:
    """Run `alembic` as somebody in a checkout does, and return what it printed."""
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
async def test_the_shell_does_what_the_package_does(empty):
    """
    In a checkout `alembic upgrade`, `current`, `check` and `downgrade` work on the database that
    `-x url=` or MODEL_CATALOG_URL names.
    """
    await hive_files.create_hive_table(empty)
    rows = sorted(map(repr, empty.run(FIVE)))

    alembic("-x", f"url={empty.target}", "upgrade", "head", url="/nowhere/at/all.db")
    by_the_shell = dump(empty)
    current = alembic("current", url=empty.target)
    check = alembic("check", url=empty.target)
    alembic("downgrade", "0001", url=empty.target)
    state = await schema_state(empty.target)
    await upgrade(empty.target)

    assert f"{HEAD} (head)" in current
    assert "No new upgrade operations detected" in check
    assert state == ("0001", HEAD)
    assert sorted(map(repr, empty.run(FIVE))) == rows
    assert dump(empty) == by_the_shell


async def test_the_shell_makes_a_new_catalog(file):
    """
    `alembic upgrade head` with MODEL_CATALOG_URL makes what is not there, and marks it as ours.
    """
    said = alembic("upgrade", "head", url=file.target)

    assert "Running upgrade 0001 -> 0002" in said
    assert file.path.read_bytes()[68:72] == b"MCat"
    assert await check_schema(file.target) == []


@pytest.mark.parametrize(
    "command",
    [("current",), ("check",), ("downgrade", "base")],
    ids=["current", "check", "downgrade"],
)
def test_looking_from_the_shell_makes_no_file(file, command):
    """
    Asked about a file that is not there, `alembic` says so in one line and makes none.
    """
    said = alembic(*command, url=str(file.path), fails=True)

    assert "the file does not exist" in said
    assert len(said.strip().splitlines()) <= 2
    assert list(file.path.parent.iterdir()) == []


async def test_the_shell_refuses_what_the_package_refuses(file):
    """
    A foreign table `models` is refused in one line by `alembic` too, and is left as it was.
    """
    file.run("CREATE TABLE models (id INTEGER)")
    before = digest(file)

    said = alembic("upgrade", "head", url=file.target, fails=True)

    assert "a table 'models' with the columns id" in said
    assert digest(file) == before


def execute_script(database: Database, sql: str) -> None:
    if database.path is not None:
        with closing(sqlite3.connect(database.path)) as raw:
            raw.executescript(sql)
        return
    with psycopg.connect(postgres.dsn(database.url), autocommit=True) as raw:
        raw.execute(sql)


async def test_the_printed_sql_does_what_the_upgrade_does(empty):
    """
    `alembic upgrade head --sql` prints what an administrator can run by hand, to the same effect.
    """
    await upgrade(empty.target)
    online = shape(empty)
    for table in (*(table.name for table in reversed(Base.metadata.sorted_tables)), VERSION_TABLE):
        empty.run(f"DROP TABLE {table}")

    sql = await asyncio.to_thread(alembic_sql, empty.target)
    execute_script(empty, sql)

    assert shape(empty) == online
    assert await schema_state(empty.target) == (HEAD, HEAD)
    assert await check_schema(empty.target) == []


@pytest.fixture(scope="module")
def sqlite_sql() -> str:
    return alembic_sql("sqlite:////nowhere/catalog.db")


@pytest.mark.parametrize("kind", hive_files.SHAPES)
async def test_the_printed_sql_adopts_a_file_of_the_hive(file, tmp_path, sqlite_sql, kind):
    """
    The printed SQL makes of a file with odd rows what the upgrade makes of it.
    """
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
    # Only Python folds case in every script; the text to search in is as good as SQLite's lower().
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


async def test_what_printed_sql_could_not_fold_is_folded_at_the_next_registration(file, sqlite_sql):
    """
    A search for letters beyond ASCII finds a model again once it is registered again.
    """
    hive_files.write_hive_file(file.path, [("ÄPFEL", "hf", "/m", 1, 1)])
    execute_script(file, sqlite_sql)

    async with open_catalog(file.path) as catalog:
        before = await catalog.count_models(search="äpfel")
        await catalog.register_model(a_model("ÄPFEL"))
        after = await catalog.count_models(search="äpfel")

    assert (before, after) == (0, 1)


async def test_a_catalog_of_every_revision_comes_to_head_with_nothing_lost(empty):
    """
    Filled as far as its columns go at each revision, a database arrives with every value it had.
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
    }
    children = {
        "0005": "INSERT INTO model_tags (model_id, folded, tag)"
        " SELECT id, 'chat', 'Chat' FROM models",
        "0008": "INSERT INTO model_aliases (provider, reference, alias, model_id)"
        " SELECT provider, reference, 'main', id FROM models",
        "0012": "INSERT INTO model_files (model_id, path, role, size_bytes, digest)"
        f" SELECT id, 'm.gguf', 'weights', 7, 'sha256:{4:064x}' FROM models",
    }
    for stop in known_revisions()[1:]:
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

    assert sorted(found) == [f"At {stop}" for stop in known_revisions()[1:]]
    # What a plain driver writes at a later revision has no text to search in.
    assert len(searched) == len([stop for stop in known_revisions()[1:] if stop < "0009"])
    assert aliased.pin_reason == "mine"
    assert files == [FileRecord("m.gguf", 7, digest=f"sha256:{4:064x}")]
    for reference, model in found.items():
        for revision, more in values.items():
            for name, value in more.items():
                got = getattr(model, name)
                got = seconds(got) if isinstance(got, datetime) else got
                absent = {"download_count": 1, "use_count": 0, "state": "unchecked"}.get(name)
                assert got == (value if revision <= reference[3:] else absent), (reference, name)
        assert model.tags == (("Chat",) if reference <= "At 0005" else ())


def alembic_sql(url: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "-x", f"url={url}", "upgrade", "head", "--sql"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout

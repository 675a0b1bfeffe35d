"""The revision that adds the host to the keys: it keeps every row, id and child."""

import subprocess
import sys
from pathlib import Path

import pytest
from schema_shape import dump, shape

from model_catalog import UpgradeFailedError, check_schema, downgrade, upgrade
from model_catalog.mapping.revisions import known_revisions

ROOT = Path(__file__).parents[2]
(REVISION_FILE,) = (ROOT / "migrations" / "versions").glob("*_add_host_to_keys.py")
NUMBER = REVISION_FILE.name[:4]
BEFORE = f"{int(NUMBER) - 1:04}"
KEY = ("provider", "reference", "version")

MODEL_COLUMNS = (
    "id, reference, provider, local_path, size_bytes, downloaded_at, version, format,"
    " claimed_license, use_count, download_count, last_used_at, pinned_at, pin_reason, state,"
    " digest, verified_at, inventoried_at, store, managed_root"
)


def insert_rows(database, *, first_id: int = 7) -> None:
    """Insert two models, with gaps between their ids, and a row in every child table."""
    names, marks = MODEL_COLUMNS, ", ".join("?" * 20)
    digest = f"sha256:{1:064x}"
    for number, reference in ((first_id, "org/m"), (first_id + 90, "org/n")):
        values = (
            *(number, reference, "hf", f"/m/{number}", number, 1_729_000_000, "v1", "gguf", "mit"),
            *(5, 3, 1_729_000_001, 1_729_000_002, "mine", "present", digest, 1_729_000_003),
            *(1_729_000_004, "ollama", "/m"),
        )
        database.run(f"INSERT INTO models ({names}) VALUES ({marks})", *values)
        database.run("INSERT INTO model_tags VALUES (?, 'chat', 'Chat')", number)
        database.run(
            "INSERT INTO model_files (model_id, path, role, size_bytes)"
            " VALUES (?, 'f', 'weights', 1)",
            number,
        )
        database.run(
            "INSERT INTO model_aliases (provider, reference, alias, model_id)"
            " VALUES ('hf', ?, ?, ?)",
            *(reference, f"stable-{number}", number),
        )
        database.run(
            "INSERT INTO model_uses VALUES (?, ?, 'box', 1, 2, 3, 4)", f"use {number}", number
        )


def rows_of(database) -> dict[str, list[str]]:
    """Return the rows of models and of their children, without the column `host`."""
    children = {
        "model_tags": "model_id, folded, tag",
        "model_files": "model_id, path, role, size_bytes",
        "model_aliases": "provider, reference, alias, model_id, store",
        "model_uses": "token, model_id, holder_host, expires_at_ms",
    }
    return {
        table: sorted(map(repr, database.run(f"SELECT {columns} FROM {table}")))
        for table, columns in {"models": MODEL_COLUMNS, **children}.items()
    }


@pytest.mark.slow
async def test_the_revision_keeps_every_row_id_and_child(empty):
    """
    Up, down and up again: rows and schema are equal each time. Existing rows get the host `""`.
    """
    await upgrade(empty.target, BEFORE)
    insert_rows(empty)
    empty.run("INSERT INTO model_catalog_leases VALUES ('watch', 'me', 1, 2)")
    before, shape_before = rows_of(empty), shape(empty)

    await upgrade(empty.target, NUMBER)
    upgraded, shape_after = rows_of(empty), shape(empty)
    hosts = empty.run(
        "SELECT host FROM models UNION SELECT host FROM model_aliases"
        " UNION SELECT host FROM model_catalog_leases"
    )
    await downgrade(empty.target, BEFORE)
    downgraded, shape_downgraded = rows_of(empty), shape(empty)
    await upgrade(empty.target, NUMBER)

    assert before == upgraded == downgraded == rows_of(empty)
    assert hosts == [("",)]
    assert shape_downgraded == shape_before
    assert shape(empty) == shape_after
    await upgrade(empty.target)
    assert await check_schema(empty.target) == []


async def test_two_hosts_can_have_a_model_and_an_alias_of_one_name(empty):
    """The key has the host first; within a host it is as unique as before."""
    await upgrade(empty.target)
    insert_rows(empty)
    empty.run("UPDATE models SET host = 'gpu-07'")
    empty.run("UPDATE model_aliases SET host = 'gpu-07'")

    insert_rows(empty, first_id=1007)
    empty.run(
        "UPDATE model_aliases SET alias = 'stable-7', model_id = 1007 WHERE host = ''"
        " AND reference = 'org/m'"
    )

    assert empty.run("SELECT count(*) FROM models WHERE reference = 'org/m'") == [(2,)]
    assert empty.run("SELECT count(*) FROM model_aliases WHERE alias = 'stable-7'") == [(2,)]
    with pytest.raises(Exception, match=r"(?i)unique"):
        insert_rows(empty, first_id=5007)


async def test_a_downgrade_with_rows_of_one_host_keeps_them(empty):
    """The host `gpu-07` is forgotten, and its models, ids and children stay."""
    await upgrade(empty.target)
    insert_rows(empty)
    empty.run("UPDATE models SET host = 'gpu-07'")
    empty.run("UPDATE model_aliases SET host = 'gpu-07'")
    before = rows_of(empty)

    await downgrade(empty.target, BEFORE)

    assert rows_of(empty) == before


async def test_a_downgrade_with_rows_of_several_hosts_is_refused(empty):
    """The error names the hosts with their numbers of models, and nothing is changed."""
    await upgrade(empty.target)
    insert_rows(empty, first_id=7)
    for host, first_id in (("gpu-07", 1007), ("gpu-08", 2007)):
        empty.run("UPDATE models SET host = ? WHERE host = ''", host)
        empty.run("UPDATE model_aliases SET host = ? WHERE host = ''", host)
        insert_rows(empty, first_id=first_id)
    before = dump(empty)

    with pytest.raises(UpgradeFailedError) as caught:
        await downgrade(empty.target, BEFORE)

    message = str(caught.value)
    assert "'' (2), 'gpu-07' (2), 'gpu-08' (2)" in message
    assert "model-catalog export --host NAME" in message
    assert dump(empty) == before


@pytest.mark.slow
async def test_the_alembic_command_refuses_such_a_downgrade_in_one_line(empty):
    """`alembic downgrade` says the same, and shows no traceback."""
    await upgrade(empty.target)
    insert_rows(empty)
    empty.run("UPDATE models SET host = 'gpu-07' WHERE reference = 'org/m'")
    command = [sys.executable, "-m", "alembic", "-x", f"url={empty.target_url}"]

    done = subprocess.run(
        [*command, "downgrade", f"model_catalog_{BEFORE}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode != 0
    assert "'' (1), 'gpu-07' (1)" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_revision_is_known():
    """Its number is that of its file."""
    assert f"model_catalog_{NUMBER}" in known_revisions()

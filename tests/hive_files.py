"""Database files in the format of the Rust hive, written with sqlite3 alone."""

import sqlite3
from contextlib import closing
from pathlib import Path

from conftest import Database

from model_catalog import upgrade

# The table in the hive's documentation, in its code, and with the key of its first release.
NULLABLE = """CREATE TABLE IF NOT EXISTS models (
    reference TEXT NOT NULL,
    provider TEXT NOT NULL,
    local_path TEXT NOT NULL,
    size_bytes INTEGER,
    downloaded_at INTEGER,
    PRIMARY KEY (reference, provider)
)"""
NOT_NULL = """CREATE TABLE IF NOT EXISTS models (
    reference TEXT NOT NULL,
    provider TEXT NOT NULL,
    local_path TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    downloaded_at INTEGER NOT NULL,
    PRIMARY KEY (reference, provider)
)"""
REFERENCE_ALONE = """CREATE TABLE IF NOT EXISTS models (
    reference TEXT NOT NULL PRIMARY KEY,
    provider TEXT NOT NULL,
    local_path TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    downloaded_at INTEGER NOT NULL
)"""
SHAPES = {"nullable": NULLABLE, "not null": NOT_NULL, "reference alone": REFERENCE_ALONE}

REGISTER = (
    "INSERT OR REPLACE INTO models (reference, provider, local_path, size_bytes, downloaded_at)"
    " VALUES (?, ?, ?, ?, ?)"
)
LIST = "SELECT reference, provider, local_path, size_bytes, downloaded_at FROM models"

VALID_ROWS = [
    ("TinyLlama-1.1B", "hf", "/models/tiny.gguf", 669_000_000, 1_729_000_000),
    ("模型/\U0001f999 e\u0301", "hf", "/模型/\U0001f999.gguf", 0, 0),
    ("long/" + "x\u00e9" * 4997 + "y", "hf", "/long", 1, 253402300799),
    ("largest", "hf", "/largest", 2**63 - 1, -62135596800),
    ("as large", "ollama", "/as-large", 2**63 - 1, 1_729_000_000),
]
ROWS_WITH_NULLS = [
    ("no size", "hf", "/a", None, 1_729_000_000),
    ("no time", "hf", "/b", 5, None),
    ("neither", "hf", "/c", None, None),
]
ROWS_WITH_SAME_REFERENCE = [("TinyLlama-1.1B", "ollama", "/models/other.gguf", 7, 1_729_000_001)]

INVALID_SIZES = {
    "negative": -1,
    "most negative": -(2**63),
    "text": "about 4 GB",
    "real": 1.5,
    "blob": b"\x00\x01",
}
INVALID_TIMES = {"milliseconds": 1_729_000_000_000, "text": "yesterday", "real": 1.5, "blob": b"5"}
INVALID_ROWS = [
    *((f"size: {name}", "hf", "/odd", value, 5) for name, value in INVALID_SIZES.items()),
    *((f"time: {name}", "hf", "/odd", 5, value) for name, value in INVALID_TIMES.items()),
]


def valid_rows(shape: str) -> list[tuple]:
    """Return all valid rows that a table of this shape can hold."""
    return (
        VALID_ROWS
        + (ROWS_WITH_NULLS if shape == "nullable" else [])
        + (ROWS_WITH_SAME_REFERENCE if shape != "reference alone" else [])
    )


def upgraded_row(row: tuple) -> tuple:
    """Return a row as the upgrade must leave it: with NULL for an invalid value."""
    reference, provider, local_path, size_bytes, downloaded_at = row
    return (
        reference,
        provider,
        local_path,
        None if reference.startswith("size: ") else size_bytes,
        None if reference.startswith("time: ") else downloaded_at,
    )


def write_hive_file(path: Path, rows: list[tuple], ddl: str = NULLABLE) -> None:
    """Create a file, or add rows to an existing one."""
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute(ddl)
        raw.executemany(REGISTER, rows)


# PostgreSQL's index cannot hold the longest reference.
PORTABLE_ROWS = [
    row for row in (*VALID_ROWS, *ROWS_WITH_NULLS, *ROWS_WITH_SAME_REFERENCE) if len(row[0]) < 1000
]


async def create_hive_table(database: Database) -> None:
    """Create the hive's table with rows: a hive file on SQLite, revision 0001 on PostgreSQL."""
    if database.path is not None:
        write_hive_file(database.path, PORTABLE_ROWS)
        return
    await upgrade(database.target, "0001")
    for row in PORTABLE_ROWS:
        database.run(
            "INSERT INTO models (reference, provider, local_path, size_bytes, downloaded_at)"
            " VALUES (?, ?, ?, ?, ?)",
            *row,
        )


async def prepare_database(database: Database, where: str) -> None:
    """Prepare a database to upgrade: empty, or with the hive's table."""
    if where == "the hive's table":
        await create_hive_table(database)


INITIAL_STATES = ("nothing", "the hive's table")

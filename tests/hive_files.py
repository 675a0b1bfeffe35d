"""Catalogs as the Rust hive wrote them: made with nothing but sqlite3."""

import sqlite3
from contextlib import closing
from pathlib import Path

from conftest import Database

from model_catalog import upgrade

# What its document says, what its code said, and what its first release had for a key.
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

SOUND = [
    ("TinyLlama-1.1B", "hf", "/models/tiny.gguf", 669_000_000, 1_729_000_000),
    ("模型/\U0001f999 e\u0301", "hf", "/模型/\U0001f999.gguf", 0, 0),
    ("long/" + "x\u00e9" * 4997 + "y", "hf", "/long", 1, 253402300799),
    ("largest", "hf", "/largest", 2**63 - 1, -62135596800),
    ("as large", "ollama", "/as-large", 2**63 - 1, 1_729_000_000),
]
UNKNOWN = [
    ("no size", "hf", "/a", None, 1_729_000_000),
    ("no time", "hf", "/b", 5, None),
    ("neither", "hf", "/c", None, None),
]
TWICE = [("TinyLlama-1.1B", "ollama", "/models/other.gguf", 7, 1_729_000_001)]

NO_SIZES = {
    "negative": -1,
    "most negative": -(2**63),
    "text": "about 4 GB",
    "real": 1.5,
    "blob": b"\x00\x01",
}
NO_TIMES = {"milliseconds": 1_729_000_000_000, "text": "yesterday", "real": 1.5, "blob": b"5"}
ODD = [
    *((f"size: {name}", "hf", "/odd", value, 5) for name, value in NO_SIZES.items()),
    *((f"time: {name}", "hf", "/odd", 5, value) for name, value in NO_TIMES.items()),
]


def rows_of(shape: str) -> list[tuple]:
    """As many different rows as a shape holds, the odd ones left out."""
    return (
        SOUND
        + (UNKNOWN if shape == "nullable" else [])
        + (TWICE if shape != "reference alone" else [])
    )


def read(row: tuple) -> tuple:
    """A row as it is to be after the upgrade: with NULL for what was odd."""
    reference, provider, local_path, size_bytes, downloaded_at = row
    return (
        reference,
        provider,
        local_path,
        None if reference.startswith("size: ") else size_bytes,
        None if reference.startswith("time: ") else downloaded_at,
    )


def write(path: Path, rows: list[tuple], ddl: str = NULLABLE) -> None:
    """A catalog file, or more rows in one that is there."""
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute(ddl)
        raw.executemany(REGISTER, rows)


# PostgreSQL's index takes no reference as long as the longest.
SOME = [row for row in (*SOUND, *UNKNOWN, *TWICE) if len(row[0]) < 1000]


async def fill(database: Database) -> None:
    """The hive's table, with rows: its own file, and where it never was, revision 0001."""
    if database.path is not None:
        write(database.path, SOME)
        return
    await upgrade(database.target, "0001")
    for row in SOME:
        database.run(
            "INSERT INTO models (reference, provider, local_path, size_bytes, downloaded_at)"
            " VALUES (?, ?, ?, ?, ?)",
            *row,
        )


async def start(database: Database, where: str) -> None:
    """A database to upgrade: with nothing in it, or with the hive's table."""
    if where == "the hive's table":
        await fill(database)


STARTS = ("nothing", "the hive's table")

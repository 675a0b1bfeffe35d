"""Files that are not a catalog, damaged files, and what a folder and an error contain."""

import os
import socket
import sqlite3
import stat
import traceback
from contextlib import closing
from pathlib import Path

from model_catalog import (
    CatalogCorruptError,
    CatalogUnavailableError,
    ForeignDatabaseError,
    InvalidTargetError,
)


def listing(folder: Path) -> dict[str, object]:
    """Everything in a folder: its kind and mode, when it was written, and its bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        regular = stat.S_ISREG(status.st_mode)
        found[str(path.relative_to(folder))] = (
            status.st_mode,
            status.st_mtime_ns,
            path.read_bytes() if regular else None,
        )
    return found


def another_programs(path: Path, sql: str = "CREATE TABLE bookmarks (url TEXT)") -> None:
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript(f"{sql}; INSERT INTO bookmarks VALUES ('x')" if "book" in sql else sql)


def a_directory(path):
    path.mkdir()


def a_fifo(path):
    os.mkfifo(path)


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def a_short_text(path):
    path.write_text("hello")


def one_byte(path):
    path.write_bytes(b"\0")


def a_long_text(path):
    path.write_text("hello world\n" * 1000)


def noise(path):
    path.write_bytes(bytes(range(256)) * 64)


def a_link_to_itself(path):
    path.symlink_to(path)


def other_tables(path):
    another_programs(path)


def other_tables_in_a_log(path):
    another_programs(path, "PRAGMA journal_mode = WAL; CREATE TABLE bookmarks (url TEXT)")


def other_models(path):
    another_programs(path, "CREATE TABLE models (id INTEGER PRIMARY KEY, name TEXT)")


def another_application(path):
    another_programs(path, "PRAGMA application_id = 77; VACUUM")


BAD_FILES = {
    "directory": (a_directory, InvalidTargetError, "it is a directory"),
    "FIFO": (a_fifo, InvalidTargetError, "not a regular file"),
    "socket": (a_socket, InvalidTargetError, "not a regular file"),
    "short text": (a_short_text, CatalogCorruptError, "5 bytes long"),
    "one byte": (one_byte, CatalogCorruptError, "1 bytes long"),
    "long text": (a_long_text, CatalogCorruptError, "not a database"),
    "noise": (noise, CatalogCorruptError, "not a database"),
    "link to itself": (a_link_to_itself, CatalogUnavailableError, "symbolic links"),
    "another program's tables": (other_tables, ForeignDatabaseError, "'bookmarks'"),
    "another program's log": (other_tables_in_a_log, ForeignDatabaseError, "'bookmarks'"),
    "another program's models": (other_models, ForeignDatabaseError, "columns id, name"),
    "another program's mark": (another_application, ForeignDatabaseError, "id 77"),
}


def everything_said(error: BaseException) -> str:
    """An error, what it was made from, and what caused it, in every form that may be printed."""
    said = "".join(traceback.format_exception(error)) + f"{vars(error)}"
    while error is not None:
        said += f"{error} {error!r} {error.args}"
        error = error.__cause__ or error.__context__
    return said


def damage(path: Path) -> None:
    """Write over the middle of a database that nobody has open."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(b"\xff" * 8192)

"""Files that are not a catalog, and helpers to damage a file and to list folders and errors."""

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
    """List all entries below a folder by relative path: mode, mtime, and bytes of a file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        is_file = stat.S_ISREG(status.st_mode)
        found[str(path.relative_to(folder))] = (
            status.st_mode,
            status.st_mtime_ns,
            path.read_bytes() if is_file else None,
        )
    return found


def create_foreign_database(path: Path, sql: str = "CREATE TABLE bookmarks (url TEXT)") -> None:
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript(f"{sql}; INSERT INTO bookmarks VALUES ('x')" if "book" in sql else sql)


def make_directory(path):
    path.mkdir()


def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path))


def write_short_text(path):
    path.write_text("hello")


def write_one_byte(path):
    path.write_bytes(b"\0")


def write_long_text(path):
    path.write_text("hello world\n" * 1000)


def write_noise(path):
    path.write_bytes(bytes(range(256)) * 64)


def link_to_itself(path):
    path.symlink_to(path)


def create_other_tables(path):
    create_foreign_database(path)


def create_other_tables_in_wal(path):
    create_foreign_database(path, "PRAGMA journal_mode = WAL; CREATE TABLE bookmarks (url TEXT)")


def create_other_models_table(path):
    create_foreign_database(path, "CREATE TABLE models (id INTEGER PRIMARY KEY, name TEXT)")


def set_other_application_id(path):
    create_foreign_database(path, "PRAGMA application_id = 77; VACUUM")


BAD_FILES = {
    "directory": (make_directory, InvalidTargetError, "it is a directory"),
    "FIFO": (make_fifo, InvalidTargetError, "not a regular file"),
    "socket": (make_socket, InvalidTargetError, "not a regular file"),
    "short text": (write_short_text, CatalogCorruptError, "5 bytes long"),
    "one byte": (write_one_byte, CatalogCorruptError, "1 bytes long"),
    "long text": (write_long_text, CatalogCorruptError, "not a database"),
    "noise": (write_noise, CatalogCorruptError, "not a database"),
    "link to itself": (link_to_itself, CatalogUnavailableError, "symbolic links"),
    "tables of another program": (create_other_tables, ForeignDatabaseError, "'bookmarks'"),
    "WAL of another program": (create_other_tables_in_wal, ForeignDatabaseError, "'bookmarks'"),
    "models table of another program": (
        create_other_models_table,
        ForeignDatabaseError,
        "columns id, name",
    ),
    "application id of another program": (set_other_application_id, ForeignDatabaseError, "id 77"),
}


def error_text(error: BaseException) -> str:
    """Return everything that may be printed of an error: traceback, attributes, causes."""
    text = "".join(traceback.format_exception(error)) + f"{vars(error)}"
    while error is not None:
        text += f"{error} {error!r} {error.args}"
        error = error.__cause__ or error.__context__
    return text


def damage(path: Path) -> None:
    """Overwrite two pages in the middle of a database that no process has open."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(b"\xff" * 8192)

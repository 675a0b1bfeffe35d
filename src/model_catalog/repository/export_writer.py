"""Writes the lines of an export, and keeps its rows in a temporary file until then."""

from __future__ import annotations

import json
import pickle
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock
from typing import IO, Any, Final, TypeAlias, get_args

from model_catalog.concurrency.threads import to_thread
from model_catalog.connection.database_info import DatabaseInfo
from model_catalog.connection.sqlite_pragmas import temporary_folder
from model_catalog.domain.fields import COLUMN_DEFAULTS, FIELD_TYPES, is_nullable
from model_catalog.domain.file_record import FileRecord, sorted_by_path
from model_catalog.domain.ndjson import HEADER, to_line
from model_catalog.errors import StorageFullError
from model_catalog.mapping.column_types import decode_path, decode_timestamp
from model_catalog.repository.operations.export_import import export_names
from model_catalog.repository.statements.row_conversion import split_aggregate

_VALUE_TYPES: Final = {name: get_args(kind) or (kind,) for name, kind in FIELD_TYPES.items()}

RowPage: TypeAlias = list[tuple[Any, ...]]


class ExportSpool:
    """
    Pages of rows, in a temporary SQLite database.

    A slow stream must not keep a snapshot open, and an operation may be run again from the start.
    SQLite keeps the temporary database in memory up to some megabytes, and then in a file that is
    deleted when it is closed. Close the spool at the end.
    """

    def __init__(self, database: DatabaseInfo) -> None:
        self._name: Final = database.name
        # One thread uses it after the other. After a cancellation a thread may still wait for the
        # stream, while the spool is closed.
        self._lock = Lock()
        self._spooled = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._spooled.execute("PRAGMA synchronous = OFF")
        self._spooled.execute("PRAGMA journal_mode = OFF")
        self._spooled.execute("CREATE TABLE pages (content BLOB)")

    def clear(self) -> None:
        """Delete all pages."""
        with self._lock:
            self._spooled.execute("DELETE FROM pages")

    def add(self, page: Sequence[tuple[Any, ...]]) -> None:
        """Add a page. Raises StorageFullError if the temporary file has no room."""
        content = pickle.dumps(list(page), pickle.HIGHEST_PROTOCOL)
        try:
            with self._lock:
                self._spooled.execute("INSERT INTO pages VALUES (?)", (content,))
        except sqlite3.Error as error:
            raise StorageFullError(self._name, f"{error}", temporary_folder() or "") from error

    def pages(self) -> Iterator[RowPage]:
        """Yield the pages in the order in which they were added."""
        number = 0
        while True:
            number += 1
            with self._lock:
                row = self._spooled.execute(
                    "SELECT content FROM pages WHERE rowid = ?", (number,)
                ).fetchone()
            if row is None:
                return
            # Written by this process, to a file that no other process can open.
            yield pickle.loads(row[0])  # noqa: S301

    def close(self) -> None:
        """Delete the temporary file."""
        with self._lock:
            self._spooled.close()


async def write_export(
    spool: ExportSpool, stream: IO[Any], progress: Callable[[int], object] | None = None
) -> None:
    """
    Write the header and one line for each row, a page at a time, in a thread.

    Calls `progress` with the number of rows that were written so far.
    """
    await to_thread(_write_lines, stream, [HEADER])
    pages = spool.pages()
    count = 0
    while more := await to_thread(_write_rows, stream, pages):
        count += more
        if progress is not None:
            progress(count)


def _write_rows(stream: IO[Any], pages: Iterator[Sequence[tuple[Any, ...]]]) -> int:
    """Write the lines of the next page, and return their number; 0 if there is none."""
    page = next(pages, None)
    if page is None:
        return 0
    names = export_names()
    _write_lines(stream, [_export_line(dict(zip(names, row, strict=True))) for row in page])
    return len(page)


def _export_line(row: Mapping[str, Any]) -> str:
    listed = row["files"] or "[]"
    if isinstance(listed, bytes):
        listed = listed.decode("utf-8", "replace")
    files = tuple(sorted_by_path(map(_to_file_record, json.loads(listed))))
    row = {name: _readable(name, value) for name, value in row.items()}
    texts = {name: split_aggregate(row[name]) for name in ("tags", "aliases", "store_aliases")}
    return to_line({**row, **texts, "files": files})


def _readable(name: str, value: object) -> object:
    """Return a value of a row, or the default in place of a value of a wrong type."""
    if isinstance(value, _VALUE_TYPES.get(name, object)):
        return value
    # A text that is not UTF-8 is read as bytes. A name must be exported all the same.
    return value if isinstance(value, bytes) and not is_nullable(name) else COLUMN_DEFAULTS[name]


def _to_file_record(values: Mapping[str, Any]) -> FileRecord:
    """Return a file from the raw column values that the database wrote as JSON."""
    hashed_at = values["hashed_at"]
    decoded = {
        "path": decode_path(values["path"]),
        "hashed_at": None if hashed_at is None else decode_timestamp(hashed_at),
    }
    return FileRecord(**{**values, **decoded})


def _write_lines(stream: IO[Any], lines: Sequence[str]) -> None:
    text = "".join(lines)
    # Only a text stream has an encoding.
    stream.write(text if hasattr(stream, "encoding") else text.encode("ascii"))

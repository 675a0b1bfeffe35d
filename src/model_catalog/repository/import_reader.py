"""Reads the lines of an import into a temporary file, sorted by key, with little memory."""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Callable, Iterator
from threading import Lock
from typing import IO, Final

from model_catalog.concurrency.threads import to_thread
from model_catalog.connection.database_info import DatabaseInfo
from model_catalog.connection.sqlite_pragmas import temporary_folder
from model_catalog.domain.ndjson import MAX_LINE, ImportLine, LineError, parse
from model_catalog.errors import InvalidImportError, StorageFullError

_LINES_PER_PAGE: Final = 1000
_LINES_PER_SERVER_PAGE: Final = 100
# With four times as many an import is 7 % faster, and takes nearly twice the memory.
_CHARACTERS_PER_PAGE: Final = 2**18
# An index entry of PostgreSQL has at most 2704 bytes, some of which are overhead.
_MAX_POSTGRES_KEY_BYTES: Final = 2660


class ImportReader:
    """
    The valid lines of an export, in a temporary SQLite database, and the invalid ones.

    SQLite keeps the temporary database in memory up to some megabytes, and then in a file that is
    deleted when it is closed. So an import of any length needs the memory of its longest line.
    Close the reader at the end.
    """

    def __init__(
        self,
        stream: IO[str] | IO[bytes],
        database: DatabaseInfo,
        *,
        skip_broken: bool,
        trust_source: bool,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        self._stream = stream
        self._database = database
        self._skip_broken = skip_broken
        self._trust_source = trust_source
        self._progress = progress
        self._line_count = 0
        self.valid_count = 0
        self.problems: list[LineError] = []
        # The reading thread and the thread of the database use it one after the other. After a
        # cancellation a thread may still wait for the stream, while the reader is closed.
        self._lock = Lock()
        self._sorted = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._sorted.execute("PRAGMA synchronous = OFF")
        self._sorted.execute(
            "CREATE TABLE lines (provider TEXT, reference TEXT, version TEXT, line INTEGER,"
            " content BLOB, UNIQUE (provider, reference, version))"
        )
        self._sorted.execute("BEGIN")

    async def read(self) -> None:
        """
        Read and validate all lines, in a thread.

        Without `skip_broken` the first invalid line raises InvalidImportError; an invalid header
        always does. Raises StorageFullError if the temporary file has no room.
        """
        while await to_thread(self._read_page):
            pass
        if not self._line_count:
            raise InvalidImportError(1, "the stream is empty")

    def pages(self) -> Iterator[list[ImportLine]]:
        """
        Yield the valid lines, some at a time, sorted by provider, reference and version.

        Calls `progress` with the number of lines that the caller has processed, and their total.
        """
        done = 0
        try:
            rows = self._sorted.execute(
                "SELECT content FROM lines ORDER BY provider, reference, version"
            )
            # On PostgreSQL a page is written by the thread of the event loop, which goes on between
            # two statements.
            is_sqlite = self._database.dialect == "sqlite"
            page_lines = _LINES_PER_PAGE if is_sqlite else _LINES_PER_SERVER_PAGE
            while True:
                page: list[ImportLine] = []
                length = 0
                while (
                    len(page) < page_lines
                    and length < _CHARACTERS_PER_PAGE
                    and (row := rows.fetchone())
                ):
                    # Written by this process, to a file that no other process can open.
                    page.append(pickle.loads(row[0]))  # noqa: S301
                    length += len(row[0])
                if not page:
                    return
                yield page
                done += len(page)
                if self._progress is not None:
                    self._progress(done, self.valid_count)
        except sqlite3.Error as error:
            raise self._no_room(error) from error

    def close(self) -> None:
        """Delete the temporary file."""
        with self._lock:
            self._sorted.close()

    def _read_page(self) -> bool:
        """Read, parse and store some lines; return whether there may be more."""
        length = 0
        for _ in range(_LINES_PER_PAGE):
            line = self._read_line()
            if not line:
                return False
            self._line_count += 1
            with self._lock:
                self._take(line, self._line_count)
            length += len(line)
            if length >= _CHARACTERS_PER_PAGE:
                break
        return True

    def _read_line(self) -> str | bytes:
        """Return the next line. A line that is too long is cut to a length that is refused."""
        try:
            line = self._stream.readline(2 * MAX_LINE)
            rest = line
            while len(rest) == 2 * MAX_LINE and rest[-1:] not in ("\n", b"\n"):
                rest = self._stream.readline(2 * MAX_LINE)
        except UnicodeDecodeError as error:
            # A text stream cannot be read beyond the invalid bytes; a binary stream can.
            raise InvalidImportError(
                self._line_count + 1,
                f"the stream is not valid {error.encoding} from this line on: open it in binary "
                "mode",
            ) from error
        return line

    def _take(self, text: str | bytes, number: int) -> None:
        parsed = parse(text, number, trust_source=self._trust_source)
        if isinstance(parsed, ImportLine):
            reason = self._key_too_long(parsed) or self._store(parsed)
            parsed = LineError(number, reason) if reason else None
        if isinstance(parsed, LineError):
            if number == 1 or not self._skip_broken:
                raise InvalidImportError(parsed.line, parsed.reason)
            self.problems.append(parsed)

    def _store(self, line: ImportLine) -> str | None:
        """Store a line; return the reason if an earlier line has the same model."""
        try:
            stored = self._sorted.execute(
                "INSERT INTO lines VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (*line.key, line.line, pickle.dumps(line, pickle.HIGHEST_PROTOCOL)),
            )
            if stored.rowcount:
                self.valid_count += 1
                return None
            ((first,),) = self._sorted.execute(
                "SELECT line FROM lines WHERE (provider, reference, version) = (?, ?, ?)", line.key
            )
        except sqlite3.Error as error:
            raise self._no_room(error) from error
        return f"it repeats the model of line {first}"

    def _key_too_long(self, line: ImportLine) -> str | None:
        if self._database.dialect != "postgresql":
            return None
        provider, reference, version = (len(part.encode()) for part in line.key)
        longest = max(version, *(len(alias.encode()) for alias in line.aliases), 0)
        size_bytes = provider + reference + longest
        if size_bytes <= _MAX_POSTGRES_KEY_BYTES:
            return None
        return (
            f"its provider and reference with its version or an alias are {size_bytes} bytes, but "
            f"PostgreSQL can store {_MAX_POSTGRES_KEY_BYTES}"
        )

    def _no_room(self, error: sqlite3.Error) -> StorageFullError:
        return StorageFullError(self._database.name, f"{error}", temporary_folder() or "")

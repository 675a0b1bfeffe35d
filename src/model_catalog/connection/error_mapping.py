"""What an error of a driver means to a caller of the catalog."""

from __future__ import annotations

import errno
import os
import sqlite3
from types import TracebackType
from typing import Final

from sqlalchemy import exc

from model_catalog.connection.backup_files import newest_valid_backup
from model_catalog.connection.target import database_file_of
from model_catalog.errors import (
    CatalogBusyError,
    CatalogCorruptError,
    CatalogError,
    CatalogReadOnlyError,
    CatalogUnavailableError,
    SchemaOutOfDateError,
    StorageFullError,
)
from model_catalog.mapping.tables import REVISION

# SQLite's extended result codes begin with the primary one: https://www.sqlite.org/rescode.html
_SQLITE: Final = {
    "SQLITE_BUSY": CatalogBusyError,
    "SQLITE_LOCKED": CatalogBusyError,
    "SQLITE_INTERRUPT": CatalogBusyError,
    "SQLITE_READONLY": CatalogReadOnlyError,
    "SQLITE_FULL": StorageFullError,
    # A quota and a file size limit are met in the middle of a write, not asked for before it.
    "SQLITE_IOERR_WRITE": StorageFullError,
    "SQLITE_IOERR_SHMSIZE": StorageFullError,
    "SQLITE_IOERR": CatalogUnavailableError,
    "SQLITE_CANTOPEN": CatalogUnavailableError,
    "SQLITE_PERM": CatalogUnavailableError,
    "SQLITE_AUTH": CatalogUnavailableError,
    "SQLITE_PROTOCOL": CatalogBusyError,
    "SQLITE_CORRUPT": CatalogCorruptError,
    "SQLITE_NOTADB": CatalogCorruptError,
}

# https://www.postgresql.org/docs/current/errcodes-appendix.html: five characters, the first two
# of which are the class.
_POSTGRESQL: Final = {
    "08": CatalogUnavailableError,
    "25006": CatalogReadOnlyError,
    "28": CatalogUnavailableError,
    "3D000": CatalogUnavailableError,
    "40001": CatalogBusyError,
    "40P01": CatalogBusyError,
    "42501": CatalogUnavailableError,
    "53100": StorageFullError,
    "53300": CatalogBusyError,
    "55P03": CatalogBusyError,
    "57": CatalogUnavailableError,
    "57014": CatalogBusyError,
    "XX001": CatalogCorruptError,
    "XX002": CatalogCorruptError,
}

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# sqlite3's own words where bytes of a text column are none: it gives them no code.
_NO_UTF_8: Final = "a text in it is no UTF-8"
_NO_TEXT: Final = "Could not decode to UTF-8"

# A table or a column is not there. SQLite has no code of its own for that, only words.
_NO_SUCH_TABLE: Final = {"42P01", "42703", "3F000"}


def _match_code(codes: dict[str, type[CatalogError]], code: str) -> type[CatalogError] | None:
    known = max((key for key in codes if code.startswith(key)), key=len, default=None)
    return None if known is None else codes[known]


def to_catalog_error(error: Exception, target: str) -> CatalogError:
    """The catalog's own error for one of SQLAlchemy's, a driver's or the operating system's."""
    if isinstance(error, exc.TimeoutError):
        return CatalogBusyError(target, "every connection of the pool is in use")
    if isinstance(error, OSError):
        # asyncpg hands on what the socket said, as it is.
        kind = StorageFullError if error.errno in _NO_ROOM else CatalogUnavailableError
        return kind(target, error.strerror or str(error) or "no answer in time")
    if isinstance(error, exc.DBAPIError):
        return _of_a_driver(error.driver_exception, target, is_lost=error.connection_invalidated)
    if isinstance(error, sqlite3.Error):
        return _of_a_driver(error, target, is_lost=False)
    return CatalogError(f"the catalog at {target} failed: {error}")


def _of_a_driver(driver: BaseException, target: str, *, is_lost: bool) -> CatalogError:
    code = getattr(driver, "sqlite_errorname", None) or getattr(driver, "sqlstate", None) or ""
    reason = f"{driver}".strip() or type(driver).__name__
    if code in _NO_SUCH_TABLE or (code == "SQLITE_ERROR" and reason.startswith("no such ")):
        return SchemaOutOfDateError(target, None, REVISION)
    kind = _match_code(_SQLITE if code.startswith("SQLITE") else _POSTGRESQL, code)
    if not code and reason.startswith(_NO_TEXT):
        # The rest of what sqlite3 says is what stands in the row.
        kind, reason = CatalogCorruptError, _NO_UTF_8
    if kind is None and (is_lost or not code):
        # No code at all is a connection that was never made, or is gone.
        kind = CatalogUnavailableError
    if kind is None:
        return CatalogError(f"the catalog at {target} refused the statement: {reason} ({code})")
    return corrupt_error(target, reason) if kind is CatalogCorruptError else kind(target, reason)


def corrupt_error(target: str, reason: str) -> CatalogCorruptError:
    """That a database is damaged, and which copy of it is not; looks at those beside it."""
    path = database_file_of(target)
    copy = None if path is None else newest_valid_backup(path)
    return CatalogCorruptError(target, reason, None if copy is None else os.fspath(copy))


class map_errors:  # noqa: N801 - as contextlib's are
    """
    A block that lets no exception of SQLAlchemy, a driver or a socket out: only the catalog's own.

    No generator, which would take as long as SQLite takes to find a row.
    """

    __slots__ = ("_target",)

    def __init__(self, target: str) -> None:
        self._target = target

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _kind: object, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if error is None:
            return
        if isinstance(error, exc.SQLAlchemyError | sqlite3.Error | OSError):
            raise to_catalog_error(error, self._target) from error
        if isinstance(error, UnicodeDecodeError):
            # sqlite3 cannot even read SQLite's own words about a damaged schema: they quote it.
            raise corrupt_error(self._target, _NO_UTF_8) from error

"""What an error of a driver means to a caller of the catalog."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import exc

from model_catalog.errors import (
    CatalogBusyError,
    CatalogCorruptError,
    CatalogError,
    CatalogReadOnlyError,
    CatalogUnavailableError,
    SchemaOutOfDateError,
    StorageFullError,
)
from model_catalog.model import REVISION

# SQLite's extended result codes begin with the primary one: https://www.sqlite.org/rescode.html
_SQLITE: Final = {
    "SQLITE_BUSY": CatalogBusyError,
    "SQLITE_LOCKED": CatalogBusyError,
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

# A table or a column is not there. SQLite has no code of its own for that, only words.
_NO_SUCH_TABLE: Final = {"42P01", "42703", "3F000"}


def _longest(codes: dict[str, type[CatalogError]], code: str) -> type[CatalogError] | None:
    known = max((key for key in codes if code.startswith(key)), key=len, default=None)
    return None if known is None else codes[known]


def meaning(error: Exception, target: str) -> CatalogError:
    """The catalog's own error for one of SQLAlchemy's, a driver's or the operating system's."""
    if isinstance(error, exc.TimeoutError):
        return CatalogBusyError(target, "every connection of the pool is in use")
    if isinstance(error, OSError):
        # asyncpg hands on what the socket said, as it is.
        return CatalogUnavailableError(target, error.strerror or str(error) or "no answer in time")
    if not isinstance(error, exc.DBAPIError):
        return CatalogError(f"the catalog at {target} failed: {error}")
    driver = error.driver_exception
    code = getattr(driver, "sqlite_errorname", None) or getattr(driver, "sqlstate", None) or ""
    reason = f"{driver}".strip() or type(driver).__name__
    if code in _NO_SUCH_TABLE or (code == "SQLITE_ERROR" and reason.startswith("no such ")):
        return SchemaOutOfDateError(target, None, REVISION)
    kind = _longest(_SQLITE if code.startswith("SQLITE") else _POSTGRESQL, code)
    if kind is None and (error.connection_invalidated or not code):
        # No code at all is a connection that was never made, or is gone.
        kind = CatalogUnavailableError
    if kind is None:
        return CatalogError(f"the catalog at {target} refused the statement: {reason} ({code})")
    return kind(target, reason)


@contextmanager
def translated(target: str) -> Iterator[None]:
    """Let no exception of SQLAlchemy, a driver or a socket out: only the catalog's own."""
    try:
        yield
    except (exc.SQLAlchemyError, OSError) as error:
        raise meaning(error, target) from error

"""Maps SQLAlchemy, driver and operating system errors to CatalogError, by error code."""

from __future__ import annotations

import errno
import sqlite3
from types import TracebackType
from typing import Final

from sqlalchemy import exc

from model_catalog.connection.database_file import corrupt_error, unwritable_sidecar
from model_catalog.connection.sqlite_pragmas import has_room, temporary_folder
from model_catalog.connection.target import database_file_of
from model_catalog.errors import (
    CatalogBusyError,
    CatalogCorruptError,
    CatalogError,
    CatalogReadOnlyError,
    CatalogUnavailableError,
    MissingPrivilegeError,
    ModelInUseError,
    SchemaOutOfDateError,
    StorageFullError,
    TransactionError,
)
from model_catalog.mapping.added_objects import added_tables
from model_catalog.mapping.base import Base
from model_catalog.mapping.revisions import VERSION_TABLE, head_revision

NEEDS_ROLLBACK: Final = (
    "the transaction of the host's session or connection has ended with an error: roll it back "
    "before other calls"
)

# An extended result code begins with its primary code: https://www.sqlite.org/rescode.html
_SQLITE_ERRORS: Final = {
    "SQLITE_BUSY": CatalogBusyError,
    "SQLITE_LOCKED": CatalogBusyError,
    "SQLITE_READONLY": CatalogReadOnlyError,
    "SQLITE_FULL": StorageFullError,
    # SQLite reports an exceeded quota or file size limit as a failed write.
    "SQLITE_IOERR_WRITE": StorageFullError,
    "SQLITE_IOERR_SHMSIZE": StorageFullError,
    "SQLITE_IOERR_GETTEMPPATH": StorageFullError,
    "SQLITE_IOERR": CatalogUnavailableError,
    "SQLITE_CANTOPEN": CatalogUnavailableError,
    "SQLITE_PERM": CatalogUnavailableError,
    "SQLITE_AUTH": CatalogUnavailableError,
    "SQLITE_PROTOCOL": CatalogBusyError,
    "SQLITE_CORRUPT": CatalogCorruptError,
    "SQLITE_NOTADB": CatalogCorruptError,
}

_LACKS_PRIVILEGE: Final = "42501"

# Five characters; the first two are the class:
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_POSTGRESQL_ERRORS: Final = {
    "08": CatalogUnavailableError,
    "25006": CatalogReadOnlyError,
    "28": CatalogUnavailableError,
    "3D000": CatalogUnavailableError,
    "40001": CatalogBusyError,
    "40P01": CatalogBusyError,
    _LACKS_PRIVILEGE: MissingPrivilegeError,
    "53100": StorageFullError,
    "53300": CatalogBusyError,
    "55P03": CatalogBusyError,
    "25P03": CatalogUnavailableError,
    "25P04": CatalogUnavailableError,
    "57": CatalogUnavailableError,
    "XX001": CatalogCorruptError,
    "XX002": CatalogCorruptError,
}

# The server ended a session, by a setting of its own. It then had not begun to commit.
_SERVER_LIMITS: Final = {
    "25P03": "idle_in_transaction_session_timeout",
    "25P04": "transaction_timeout",
    "57P05": "idle_session_timeout",
}

# A running statement was stopped: by sqlite3_interrupt(), a cancellation or statement_timeout.
_INTERRUPTED: Final = frozenset(("SQLITE_INTERRUPT", "57014"))

# SQLite has one code for the database file and for a temporary file.
_NO_ROOM: Final = frozenset(
    ("SQLITE_FULL", "SQLITE_CANTOPEN", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_GETTEMPPATH")
)

# SQLite cannot write its log, or cannot open it.
_CANNOT_WRITE: Final = ("SQLITE_READONLY", "SQLITE_CANTOPEN")

# Undefined table, column and schema. SQLite has no code of its own for them, only a message.
_NO_SUCH_TABLE: Final = frozenset(("42P01", "42703", "3F000"))

# A unique constraint or a primary key was violated.
_DUPLICATE: Final = frozenset(("SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY", "23505"))

# `lock_timeout` has passed, or a deadlock was found.
_LOCK_REFUSED: Final = frozenset(("55P03", "40P01"))

# The name of a prepared statement is taken, is unknown, or belongs to another client's statement.
_LOST_STATEMENT: Final = frozenset(("42P05", "26000", "08P01"))
_POOLER_ADVICE: Final = (
    ". If a pooler such as PgBouncer is in between, add ?pooler=transaction to the URL, or "
    "statement_cache_size=0 (asyncpg) or prepare_threshold=None (psycopg) to the connect_args of "
    "an engine of your own; and set no parameter that the pooler refuses"
)

# A foreign key was violated. The last code is that of RESTRICT since PostgreSQL 18. RESTRICT of
# SQLite has the code of a trigger.
_FOREIGN_KEY: Final = frozenset(("SQLITE_CONSTRAINT_FOREIGNKEY", "23503", "23001"))

# A character that the encoding of the database does not have.
_NOT_STORABLE: Final = frozenset(("22P05", "22021"))

# Connection exceptions, shutdowns, and an outcome that a pooler does not know.
_ANSWER_LOST: Final = ("08", "57P", "40003")

_DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# The beginning of sqlite3's message for invalid UTF-8 in a text column. It has no error code.
_SQLITE3_INVALID_UTF_8: Final = "Could not decode to UTF-8"
_INVALID_UTF_8: Final = "a text in it is not valid UTF-8"


def to_catalog_error(error: Exception, target: str) -> CatalogError:
    """Return the CatalogError for an error of SQLAlchemy, a driver or the operating system."""
    if isinstance(error, exc.TimeoutError):
        return CatalogBusyError(target, "every connection of the pool is in use")
    if isinstance(error, exc.PendingRollbackError):
        return TransactionError(NEEDS_ROLLBACK)
    if isinstance(error, OSError):
        # asyncpg passes on the errors of its socket.
        kind = StorageFullError if error.errno in _DISK_FULL else CatalogUnavailableError
        return kind(target, error.strerror or str(error) or "no answer in time")
    if isinstance(error, exc.DBAPIError):
        return _from_driver_error(
            error.driver_exception, target, connection_lost=error.connection_invalidated
        )
    if isinstance(error, sqlite3.Error):
        return _from_driver_error(error, target, connection_lost=False)
    return CatalogError(f"the catalog at {target} failed: {error}")


def is_duplicate(error: exc.IntegrityError) -> bool:
    """Return whether a statement was refused because a unique value exists already."""
    return _code_of(error.driver_exception) in _DUPLICATE


def is_lock_refused(error: exc.DBAPIError) -> bool:
    """Return whether PostgreSQL gave no lock: its time was up, or two transactions deadlocked."""
    return _code_of(error.driver_exception) in _LOCK_REFUSED


def is_foreign_key_violation(error: exc.IntegrityError) -> bool:
    """Return whether a statement was refused because rows refer to a row."""
    return _code_of(error.driver_exception) in _FOREIGN_KEY


def referring_table(error: exc.IntegrityError) -> str | None:
    """Return the table whose foreign key was violated, if the driver names it."""
    return _table_of(error.driver_exception)


def _table_of(error: BaseException) -> str | None:
    # asyncpg has an attribute for each field of the server's error, psycopg a `diag`.
    name: str | None = getattr(getattr(error, "diag", error), "table_name", None)
    return name


def _code_of(error: BaseException) -> str:
    return getattr(error, "sqlite_errorname", None) or getattr(error, "sqlstate", None) or ""


def _from_driver_error(error: BaseException, target: str, *, connection_lost: bool) -> CatalogError:
    code = _code_of(error)
    reason = f"{error}".strip() or type(error).__name__
    if code in _NO_SUCH_TABLE or (code == "SQLITE_ERROR" and _lacks_own_table(reason)):
        return SchemaOutOfDateError(target, None, head_revision())
    if code in _INTERRUPTED:
        return CatalogBusyError(target, reason, is_interrupted=True)
    kind = _match_code(_SQLITE_ERRORS if code.startswith("SQLITE") else _POSTGRESQL_ERRORS, code)
    if not code and reason.startswith(_SQLITE3_INVALID_UTF_8):
        # The full message contains the value, which may be private.
        kind, reason = CatalogCorruptError, _INVALID_UTF_8
    if kind is None and (connection_lost or not code):
        # An error without a code means that the connection failed or was lost.
        kind = CatalogUnavailableError
    if code in _LOST_STATEMENT:
        reason += _POOLER_ADVICE
    if kind is None:
        return _refusal(error, target, reason, code)
    if kind is CatalogCorruptError:
        return corrupt_error(target, reason)
    if (setting := _SERVER_LIMITS.get(code)) is not None:
        reason += f". The server or the role sets {setting}, which is shorter than this call took"
    path = database_file_of(target)
    if code.startswith(_CANNOT_WRITE) and path is not None and (found := unwritable_sidecar(path)):
        return CatalogReadOnlyError(
            target,
            f"{reason}: this process may not write {found}. When no process uses the catalog, let "
            "that user or root open and close it. Or remove the -wal and -shm files if both are "
            "left and the -wal file is empty",
        )
    return _no_room_error(target, reason, code) if code in _NO_ROOM else kind(target, reason)


def _refusal(error: BaseException, target: str, reason: str, code: str) -> CatalogError:
    """Return the error for a statement that was refused because of its values."""
    if code in _NOT_STORABLE:
        return _not_storable(target, reason)
    if code in _FOREIGN_KEY and (table := _table_of(error)) not in Base.metadata.tables:
        # A constraint that the host has deferred is checked by COMMIT.
        return ModelInUseError(table)
    return CatalogError(f"the catalog at {target} refused the statement: {reason} ({code})")


def _no_room_error(target: str, reason: str, code: str) -> CatalogError:
    """Return the error for a file that SQLite could not create or extend, also a temporary one."""
    kind = CatalogUnavailableError if code == "SQLITE_CANTOPEN" else StorageFullError
    path = database_file_of(target)
    if path is None or not path.exists() or not has_room(path.parent):
        return kind(target, reason)
    folder = temporary_folder() or ""
    if not has_room(folder):
        return StorageFullError(target, reason, folder)
    if kind is StorageFullError:
        # A temporary file is removed before the error is raised, so its disk has room again.
        reason = f"{reason} (its disk, a quota, or the disk of temporary files in {folder!r})"
    return kind(target, reason)


def _lacks_own_table(message: str) -> bool:
    """Return whether SQLite misses a column, or a table of the catalog; not one of a host."""
    what, _, name = message.removeprefix("no such ").partition(": ")
    # With the database's name if a trigger or a view names the table.
    ours = added_tables().union(Base.metadata.tables, (VERSION_TABLE,))
    return what == "column" or (what == "table" and name.removeprefix("main.") in ours)


def _match_code(codes: dict[str, type[CatalogError]], code: str) -> type[CatalogError] | None:
    known = max((key for key in codes if code.startswith(key)), key=len, default=None)
    return None if known is None else codes[known]


def catalog_error_of(error: BaseException, target: str) -> CatalogError | None:
    """
    Return the CatalogError to raise for an error; None if it is not an error of the database.

    A CatalogError is returned as it is.
    """
    if isinstance(error, CatalogError):
        return error
    if isinstance(error, exc.SQLAlchemyError | sqlite3.Error | OSError):
        return to_catalog_error(error, target)
    if isinstance(error, UnicodeDecodeError):
        # SQLite's own message quotes a damaged schema, and sqlite3 cannot decode it.
        return corrupt_error(target, _INVALID_UTF_8)
    if isinstance(error, UnicodeEncodeError):
        # A host's psycopg encodes for the encoding of the database.
        return _not_storable(target, f"{error}")
    return None


def _not_storable(target: str, reason: str) -> CatalogError:
    return CatalogError(
        f"the encoding of the catalog at {target} has no such character: {reason}. Use a database "
        f"with ENCODING 'UTF8'"
    )


def is_invalid_text(error: BaseException) -> bool:
    """Return whether an error says that a text in a SQLite file is not valid UTF-8."""
    return isinstance(error, CatalogCorruptError) and error.reason == _INVALID_UTF_8


def text_or_bytes(value: bytes) -> str | bytes:
    """Decode a text of SQLite; return its bytes if it is not UTF-8. A `text_factory` of sqlite3."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def is_connection_lost(error: BaseException) -> bool:
    """Return whether an error, or its cause, says that the connection to the server was lost."""
    error = _original(error)
    if isinstance(error, exc.DBAPIError):
        return error.connection_invalidated
    # asyncpg passes on the errors of its socket.
    return isinstance(error, OSError)


def _original(error: BaseException) -> BaseException:
    """Return the error of the database that a CatalogError was raised from."""
    is_mapped = isinstance(error, CatalogError) and error.__cause__ is not None
    return error.__cause__ if is_mapped else error  # type: ignore[return-value]


def is_answer_lost(error: BaseException) -> bool:
    """
    Return whether the server may have executed a statement although it failed with this error.

    That is so if the connection was lost, or if the server was shut down: it then ends its sessions
    between the execution and the answer as well.
    """
    error = _original(error)
    if not isinstance(error, exc.DBAPIError):
        return is_connection_lost(error)
    driver_error = error.driver_exception
    code = getattr(driver_error, "sqlstate", None) or ""
    if isinstance(driver_error, sqlite3.Error):
        return False
    if code in _SERVER_LIMITS:
        return False
    return error.connection_invalidated or not code or code.startswith(_ANSWER_LOST)


class map_errors:  # noqa: N801 - lower case like the context managers of contextlib
    """
    Context manager that raises the matching CatalogError for SQLAlchemy, driver and OS errors.

    `target` is the database's name in the messages.
    """

    # A class, because a generator's overhead is as long as a SELECT by key.
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
        mapped = catalog_error_of(error, self._target)
        if mapped is not None and mapped is not error:
            raise mapped from error

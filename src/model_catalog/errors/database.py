"""Exceptions about the database: its target, its state, its schema and its transactions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_catalog.errors.base import CatalogError, command, shown

if TYPE_CHECKING:
    from collections.abc import Callable


class InvalidTargetError(CatalogError, ValueError):
    """A path, URL or engine that cannot be used as a catalog database: `target` and `reason`."""

    def __init__(self, target: str, reason: str) -> None:
        super().__init__(f"{target} cannot be used as a catalog database: {reason}")
        self.target = target
        self.reason = reason


class CatalogUnavailableError(CatalogError):
    """
    The database cannot be opened or reached: `target` and `reason`.

    If `outcome_unknown` is true, the server did not confirm a COMMIT, or the only statement of a
    write: the changes of the call may have been kept. If it is false, nothing of it was kept.
    """

    def __init__(self, target: str, reason: str, *, outcome_unknown: bool = False) -> None:
        if outcome_unknown:
            message = (
                f"the catalog at {target} did not confirm a write: {reason}. It is not known "
                f"whether the changes of this call were kept: read them before you repeat it"
            )
        else:
            message = f"the catalog at {target} cannot be reached or opened: {reason}"
        super().__init__(message)
        self.target = target
        self.reason = reason
        self.outcome_unknown = outcome_unknown


class MissingPrivilegeError(CatalogUnavailableError):
    """The role of the connection lacks a privilege on the server. Nothing of the call was kept."""

    def __init__(self, target: str, reason: str) -> None:
        CatalogError.__init__(
            self,
            f"the role lacks a privilege on the catalog at {target}: {reason}. Let the owner GRANT "
            "it: USAGE on the schema, SELECT on its tables; to write, INSERT, UPDATE and DELETE "
            "too, and USAGE on its sequences. Its owner can migrate it: "
            f"{command('db', 'upgrade')}",
        )
        self.target = target
        self.reason = reason
        self.outcome_unknown = False


class CatalogReplacedError(CatalogUnavailableError):
    """The database file was removed or replaced while it was open. The call wrote nothing."""

    def __init__(self, target: str, reason: str) -> None:
        CatalogError.__init__(
            self,
            f"the catalog at {target} lost its file while it was open: {reason}. This "
            f"call wrote nothing. Restore the file, or close the catalog and open it again",
        )
        self.target = target
        self.reason = reason
        self.outcome_unknown = False


class CatalogBusyError(CatalogError):
    """
    The call waited for a lock or a statement for longer than its timeout, and changed nothing.

    `reason` says what it waited for, and `waited_s` how long. Try again later.
    """

    def __init__(
        self, target: str, reason: str, waited_s: float = 0.0, *, is_interrupted: bool = False
    ) -> None:
        super().__init__(
            f"the catalog at {target} is busy: {reason} (waited {waited_s:.1f} s). Try again, or "
            f"increase timeout_s"
        )
        self.target = target
        self.reason = reason
        self.waited_s = waited_s
        self.is_interrupted = is_interrupted
        """Whether a running statement was interrupted; otherwise a lock was not available."""


class CatalogInUseError(CatalogBusyError):
    """Another program has the database open, but the call needs it for itself."""

    def __init__(self, target: str, reason: str) -> None:
        CatalogError.__init__(
            self, f"the catalog at {target} is in use: {reason}. Close it there and try again"
        )
        self.target = target
        self.reason = reason
        self.waited_s = 0.0
        self.is_interrupted = False


class CatalogClosedError(CatalogError, RuntimeError):
    """A catalog was used after the end of its `open_catalog` block: `target`."""

    def __init__(self, target: str) -> None:
        super().__init__(
            f"the catalog at {target} is closed: use it inside the block of open_catalog(), or "
            f"open it again"
        )
        self.target = target


class WrongLoopError(CatalogError, RuntimeError):
    """A catalog was used in another event loop than it was opened in, after a fork or in trio."""

    def __init__(self, target: str, opened_in: str, here: str) -> None:
        super().__init__(
            f"the catalog at {target} was opened in {opened_in}: open it again in this {here}"
        )
        self.target = target
        self.opened_in = opened_in

    @classmethod
    def without_asyncio(cls) -> WrongLoopError:
        """Return the error for a call while no event loop of asyncio is running."""
        error = cls("", "", "")
        message = (
            "no event loop of asyncio is running, and trio is not supported: call it in "
            "asyncio.run(...), or use model_catalog.sync, which needs no event loop"
        )
        error.args = (message,)
        return error

    @classmethod
    def in_pickle(cls, target: str) -> WrongLoopError:
        """Return the error for a catalog that is copied, or pickled for another process."""
        error = cls(target, "", "")
        message = (
            f"the catalog at {target} cannot be copied, or pickled for another process: pass its "
            "target, and open it there"
        )
        error.args = (message,)
        return error


class CatalogCorruptError(CatalogError):
    """
    The file is not a database, or it is damaged. It was left unchanged.

    The message names the newest valid backup only if that has been looked up: `open_catalog` and
    the command line look it up in a thread. Over a host's sessions, `copy` looks it up when it is
    first read. In an event loop, read it in a thread. `is_readable` is false if a repair has found
    nothing to save.
    """

    def __init__(
        self,
        target: str,
        reason: str,
        copy: str | Callable[[], str | None] | None = None,
        *,
        is_readable: bool = True,
    ) -> None:
        super().__init__(f"the catalog at {target} is damaged or not a database: {reason}")
        self.target = target
        self.reason = reason
        self._copy = copy
        self._is_readable = is_readable

    @property
    def copy(self) -> str | None:
        """The path of the newest valid backup, or None. The first access may read every backup."""
        if callable(self._copy):
            self._copy = self._copy()
        return self._copy

    def __str__(self) -> str:
        if isinstance(self._copy, str):
            way_out = (
                f"The newest valid backup is {self._copy!r}: "
                f"run {command('db', 'restore', self._copy, target=self.target)}"
            )
        elif not self._is_readable:
            way_out = "Restore a backup, or name another file"
        else:
            way_out = (
                "Restore a backup, name another file, or save what can be read with "
                f"{command('db', 'repair', target=self.target)}"
            )
        return f"{self.args[0]}. It was left unchanged. {way_out}"


class CatalogReadOnlyError(CatalogError):
    """The database can be read but not written: `target` and `reason`."""

    def __init__(self, target: str, reason: str, way_out: str | None = None) -> None:
        # The name of a file is quoted.
        way_out = way_out or (
            "give this process write permission for the file and for its folder"
            if target[:1] in ("'", '"')
            else "connect to a server that is not a standby, as a role that may write"
        )
        super().__init__(f"the catalog at {target} is read-only: {reason}. To write, {way_out}")
        self.target = target
        self.reason = reason


class StorageFullError(CatalogError):
    """
    The disk or a quota is full. Earlier changes are kept: `target` and `reason`.

    `temporary_folder` is the folder of SQLite's temporary files if they are what has no room, and
    "" if no folder is writable. Otherwise it is None, and the database itself has no room.
    """

    def __init__(self, target: str, reason: str, temporary_folder: str | None = None) -> None:
        if temporary_folder is None:
            message = (
                f"the catalog at {target} could not be written: {reason}. Free disk space or raise "
                f"the quota, and try again. Reads still work"
            )
        else:
            found = (
                f"SQLite's temporary files have no room in {temporary_folder!r}"
                if temporary_folder
                else "SQLite found no writable folder for its temporary files"
            )
            message = (
                f"{found}, and the call on the catalog at {target} needs them: {reason}. Free disk "
                f"space there, or set SQLITE_TMPDIR to a folder with space before the process "
                f"starts. Reads by name still work"
            )
        super().__init__(message)
        self.target = target
        self.reason = reason
        self.temporary_folder = temporary_folder


class ForeignDatabaseError(CatalogError):
    """The database belongs to another program and was left unchanged: `target` and `found`."""

    def __init__(self, target: str, found: str, advice: str = "Name another database") -> None:
        super().__init__(
            f"{target} belongs to another program: it contains {found}. It was left unchanged. "
            f"{advice}"
        )
        self.target = target
        self.found = found


class SchemaOutOfDateError(CatalogError):
    """The tables are missing, or older than this package: `target`, `current` and `head`."""

    def __init__(self, target: str, current: str | None, head: str) -> None:
        revision = "an older revision or none" if current is None else f"revision {current}"
        super().__init__(
            f"the catalog at {target} is at {revision}, but this package needs revision {head}: "
            f"await model_catalog.upgrade(target), or run "
            f"{command('db', 'upgrade', target=target)}"
        )
        self.target = target
        self.current = current
        self.head = head


class SchemaTooNewError(CatalogError):
    """A newer package wrote the catalog, which was left unchanged: `target`, `current`, `head`."""

    def __init__(self, target: str, current: str, head: str) -> None:
        super().__init__(
            f"the catalog at {target} is at revision {shown(current)}, but this package knows only "
            f"revisions up to {head}: install a newer version of model-catalog"
        )
        self.target = target
        self.current = current
        self.head = head


class UpgradeFailedError(CatalogError):
    """The database rejected a migration and was left unchanged: `target`, `revision`, `reason`."""

    def __init__(self, target: str, revision: str, reason: str) -> None:
        super().__init__(
            f"the catalog at {target} could not be migrated to revision {revision} and was left "
            f"unchanged: {reason}"
        )
        self.target = target
        self.revision = revision
        self.reason = reason


class TransactionError(CatalogError, RuntimeError):
    """A call that would wait for its own transaction, or one in a transaction that has ended."""

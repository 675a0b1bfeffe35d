"""Every error the catalog raises on purpose, under one base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_SHOWN = 80


def shown(value: object) -> str:
    """A value as an error message may show it: escaped, and cut when it is long."""
    if isinstance(value, str | bytes) and len(value) > _SHOWN:
        return f"{value[:_SHOWN]!r}... ({len(value)} long)"
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        # Of a number of very many digits, or of lists that lie too deep, Python writes none.
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 2 * _SHOWN else f"{text[: 2 * _SHOWN]}..."


def _revive(kind: type[CatalogError], args: tuple[Any, ...], facts: dict[str, Any]) -> CatalogError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(facts)
    return error


class CatalogError(Exception):
    """Something the catalog was asked for and could not do."""

    # An exception is pickled as its class and its message, which is not what
    # these classes are made from: a worker process would die handing one back.
    def __reduce__(self) -> tuple[Any, ...]:
        return _revive, (type(self), self.args, dict(self.__dict__))


class InvalidModelError(CatalogError, ValueError):
    """A value no database may be given: which field, which value, what is allowed."""

    def __init__(self, field: str, value: object, reason: str) -> None:
        # In an import it may be a stranger's word, which is not to steer a terminal.
        name = field if field.isprintable() and len(field) <= _SHOWN else shown(field)
        super().__init__(f"{name} {shown(value)} {reason}")
        self.field = field
        self.value = value
        self.reason = reason


class ModelNotFoundError(CatalogError, LookupError):
    """No such model is recorded."""

    def __init__(self, reference: str, provider: str, version: str | None) -> None:
        which = "" if version is None else f", version {shown(version)}"
        super().__init__(
            f"no model {shown(reference)} of provider {shown(provider)}{which} is recorded: "
            f"list_models() shows what is"
        )
        self.reference = reference
        self.provider = provider
        self.version = version


class InvalidImportError(CatalogError, ValueError):
    """A line of an import cannot be read; nothing of it was imported."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(
            f"line {line} cannot be imported, and so nothing was: {reason}. "
            f"Mend it, or have broken lines skipped"
        )
        self.line = line
        self.reason = reason


class InvalidTargetError(CatalogError, ValueError):
    """What was given cannot name a catalog database."""

    def __init__(self, target: str, reason: str) -> None:
        super().__init__(f"{target} cannot hold a catalog: {reason}")
        self.target = target
        self.reason = reason


class CatalogUnavailableError(CatalogError):
    """The database cannot be reached or opened."""

    def __init__(self, target: str, reason: str) -> None:
        super().__init__(f"the catalog at {target} cannot be opened: {reason}")
        self.target = target
        self.reason = reason


class CatalogReplacedError(CatalogUnavailableError):
    """The database's file was removed or replaced while it was open; the call wrote nothing."""

    def __init__(self, target: str, reason: str) -> None:
        CatalogError.__init__(
            self,
            f"the catalog at {target} is no longer there as it was opened: {reason}. "
            f"Nothing was written by this call: put the file back, or close the catalog and open "
            f"it again",
        )
        self.target = target
        self.reason = reason


class CatalogBusyError(CatalogError):
    """Somebody else held the database for longer than the call would wait; try again."""

    def __init__(
        self, target: str, reason: str, waited_s: float = 0.0, *, is_interrupted: bool = False
    ) -> None:
        super().__init__(
            f"the catalog at {target} is busy: {reason} (waited {waited_s:.1f} s): try again, "
            f"or allow more with timeout_s"
        )
        self.target = target
        self.reason = reason
        self.waited_s = waited_s
        self.is_interrupted = is_interrupted
        """Whether a running statement was stopped, rather than a lock not obtained."""


class CatalogInUseError(CatalogBusyError):
    """Somebody has the database open, and what was asked for wants it for itself."""

    def __init__(self, target: str, reason: str) -> None:
        CatalogError.__init__(
            self, f"the catalog at {target} is in use: {reason}. Close it there, and call again"
        )
        self.target = target
        self.reason = reason
        self.waited_s = 0.0
        self.is_interrupted = False


class CatalogClosedError(CatalogError, RuntimeError):
    """The block of `open_catalog` that this catalog came from has ended."""

    def __init__(self, target: str) -> None:
        super().__init__(
            f"the catalog at {target} is closed: call it inside the block of open_catalog(), "
            f"or open it again"
        )
        self.target = target


class WrongLoopError(CatalogError, RuntimeError):
    """A catalog was called where it was not opened: in another event loop, or after a fork."""

    def __init__(self, target: str, opened_in: str, here: str) -> None:
        super().__init__(
            f"the catalog at {target} was opened in {opened_in}: open it again in this {here}"
        )
        self.target = target
        self.opened_in = opened_in


class CatalogCorruptError(CatalogError):
    """
    The file is not a database, or it is damaged. It was left unchanged.

    The message names the newest valid backup only if that has been looked up: `open_catalog` and
    the command line look it up in a thread. Over a host's sessions, `copy` looks it up.
    """

    def __init__(
        self, target: str, reason: str, copy: str | Callable[[], str | None] | None = None
    ) -> None:
        super().__init__(f"the catalog at {target} is damaged or not a database: {reason}")
        self.target = target
        self.reason = reason
        self._copy = copy

    @property
    def copy(self) -> str | None:
        """
        The path of the newest valid backup beside the file, or None if there is no valid backup.

        The first access may read every backup from the disk. In an event loop, read it in a thread.
        """
        if callable(self._copy):
            self._copy = self._copy()
        return self._copy

    def __str__(self) -> str:
        if isinstance(self._copy, str):
            way_out = (
                f"The newest valid backup is {self._copy!r}: "
                f"run `model-catalog db restore {self._copy!r} --db {self.target}`"
            )
        else:
            way_out = (
                "Restore a backup, name another file, or save what can be read with "
                f"`model-catalog db repair --db {self.target}`"
            )
        return f"{self.args[0]}. It was left unchanged. {way_out}"


class CatalogReadOnlyError(CatalogError):
    """The database may be read and not written."""

    def __init__(self, target: str, reason: str) -> None:
        super().__init__(
            f"the catalog at {target} is read-only: {reason}. To write, give this process "
            f"write permission on the file and on the directory it lies in"
        )
        self.target = target
        self.reason = reason


class StorageFullError(CatalogError):
    """There is no room for the write. What was acknowledged before is kept."""

    def __init__(self, target: str, reason: str) -> None:
        super().__init__(
            f"the catalog at {target} could not be written: {reason}. "
            f"Free space (or raise the quota) and call again; reads go on meanwhile"
        )
        self.target = target
        self.reason = reason


class ForeignDatabaseError(CatalogError):
    """The database belongs to another program. It is left as it is."""

    def __init__(self, target: str, found: str) -> None:
        super().__init__(
            f"{target} belongs to another program: it holds {found}. It was left as it is: "
            f"name another database, or pass your own AsyncEngine to share it on purpose"
        )
        self.target = target
        self.found = found


class SchemaOutOfDateError(CatalogError):
    """The catalog's tables are older than this package, or are not there yet."""

    def __init__(self, target: str, current: str | None, head: str) -> None:
        super().__init__(
            f"the catalog at {target} is at {current or 'an older revision or none'} and this "
            f"package needs {head}: await model_catalog.upgrade(target), or run "
            f"`model-catalog db upgrade`"
        )
        self.target = target
        self.current = current
        self.head = head


class SchemaTooNewError(CatalogError):
    """The catalog was written by a newer package. It is left as it is."""

    def __init__(self, target: str, current: str, head: str) -> None:
        super().__init__(
            f"the catalog at {target} is at revision {shown(current)}, which this package does "
            f"not know (it knows up to {head}): install a newer model-catalog"
        )
        self.target = target
        self.current = current
        self.head = head


class UpgradeFailedError(CatalogError):
    """A migration was refused by the database, which is as it was before."""

    def __init__(self, target: str, revision: str, reason: str) -> None:
        super().__init__(
            f"the catalog at {target} could not be brought to {revision} and is as it was: {reason}"
        )
        self.target = target
        self.revision = revision
        self.reason = reason


class TransactionError(CatalogError, RuntimeError):
    """A call that its own open transaction would wait for, or one whose transaction is over."""


class NotAFileError(CatalogError):
    """A directory, a FIFO or a device lies where a file is wanted. It was not read."""

    def __init__(self, path: str, found: str) -> None:
        super().__init__(f"{path!r} is {found}: name a regular file")
        self.path = path
        self.found = found


class ProtectedFileError(CatalogError):
    """The file is one of the catalog's own, which nobody else in its process may open."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path!r} is the catalog's own database and was not opened: to close it again would "
            f"drop the locks that SQLite has on it. Leave it out"
        )
        self.path = path


class FileChangedError(CatalogError):
    """The file was not one and the same for as long as it was read; try again."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"{path!r} changed while it was read: {reason}. Try again when nobody writes to it"
        )
        self.path = path
        self.reason = reason


class TooManyMissingError(CatalogError):
    """So much would go missing at once that the disk is suspected; none of it was recorded."""

    def __init__(self, group: str, missing_count: int, held_count: int) -> None:
        super().__init__(
            f"{missing_count} of the {held_count} models on {group!r} are not there, and were not "
            f"recorded as missing: see whether its disk is mounted. If they are gone, check "
            f"with force"
        )
        self.group = group
        self.missing_count = missing_count
        self.held_count = held_count


class DigestMismatchError(CatalogError):
    """What lies at a path has other bytes than the model that is to lie there. Nothing changed."""

    def __init__(self, path: str, expected: str, found: str) -> None:
        super().__init__(
            f"{path!r} is another model: {found} was found and {expected} is recorded. Register it "
            f"under a name of its own, or accept it as the new bytes of this one"
        )
        self.path = path
        self.expected = expected
        self.found = found


class StoppedError(CatalogError):
    """What was being done was stopped, as the caller asked; nothing came of it."""


class BadHeaderError(CatalogError, ValueError):
    """The file's header cannot be read: it is damaged, cut off, or made to do harm."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"the header of {path!r} cannot be read: {reason}")
        self.path = path
        self.reason = reason


class UnknownFormatError(BadHeaderError):
    """The file begins like none of the formats that are known, and so may be anything."""


class BadLayoutError(CatalogError, ValueError):
    """What lies at a path is too much to be the files of one model."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path!r} cannot be one model: {reason}. Name a folder further down")
        self.path = path
        self.reason = reason


class NotInstalledError(CatalogError):
    """What was asked for needs a package that this one does without."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'model-catalog[{extra}]'")
        self.package = package
        self.extra = extra


class InvalidKeyError(CatalogError, ValueError):
    """What was given is no public key that a model may be signed with."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(
            f"{source} is not a key to verify with: {reason}. Give the signer's public key as "
            f"PEM, on P-256, P-384 or P-521"
        )
        self.source = source
        self.reason = reason


class BadSignatureError(CatalogError, ValueError):
    """A signature that proves nothing of the model: altered, another key's, or over other files."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"the signature {path!r} does not hold: {reason}")
        self.path = path
        self.reason = reason

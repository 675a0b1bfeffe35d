"""All exceptions of the package. Their base class is CatalogError."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_SHOWN = 80


def shown(value: object) -> str:
    """Return the `repr` of a value for an error message, cut if it is long."""
    if isinstance(value, str | bytes) and len(value) > _MAX_SHOWN:
        return f"{value[:_MAX_SHOWN]!r}... ({len(value)} long)"
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        # Python refuses to print an int of more than 4300 digits, and deeply nested lists.
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 2 * _MAX_SHOWN else f"{text[: 2 * _MAX_SHOWN]}..."


def _build(kind: type[CatalogError], args: tuple[Any, ...], facts: dict[str, Any]) -> CatalogError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(facts)
    return error


class CatalogError(Exception):
    """Base class of all exceptions of this package. Catch it to catch them all."""

    # By default an exception is unpickled by calling its class with its message. These classes
    # take other arguments, so a worker process would fail to return one.
    def __reduce__(self) -> tuple[Any, ...]:
        return _build, (type(self), self.args, dict(self.__dict__))


class InvalidModelError(CatalogError, ValueError):
    """A value that the catalog does not store: `field`, `value` and `reason`."""

    def __init__(self, field: str, value: object, reason: str) -> None:
        # The name of a field in an import is untrusted, and may contain terminal control codes.
        name = field if field.isprintable() and len(field) <= _MAX_SHOWN else shown(field)
        super().__init__(f"{name} {shown(value)} {reason}")
        self.field = field
        self.value = value
        self.reason = reason


class ModelNotFoundError(CatalogError, LookupError):
    """The catalog has no such model: `reference`, `provider` and `version`."""

    def __init__(self, reference: str, provider: str, version: str | None) -> None:
        which = "" if version is None else f" with version {shown(version)}"
        super().__init__(
            f"no model {shown(reference)} of provider {shown(provider)}{which} is recorded: use "
            f"list_models() to see the recorded models"
        )
        self.reference = reference
        self.provider = provider
        self.version = version


class InvalidImportError(CatalogError, ValueError):
    """A line of an import is invalid, and nothing was imported: `line` and `reason`."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(
            f"line {line} cannot be imported: {reason}. Nothing was imported. Correct the line, or "
            f"skip invalid lines with `skip_broken=True` (`--skip-broken`)"
        )
        self.line = line
        self.reason = reason


class InvalidTargetError(CatalogError, ValueError):
    """A path, URL or engine that cannot be used as a catalog database: `target` and `reason`."""

    def __init__(self, target: str, reason: str) -> None:
        super().__init__(f"{target} cannot be used as a catalog database: {reason}")
        self.target = target
        self.reason = reason


class CatalogUnavailableError(CatalogError):
    """The database cannot be opened or reached: `target` and `reason`."""

    def __init__(self, target: str, reason: str) -> None:
        super().__init__(f"the catalog at {target} cannot be opened: {reason}")
        self.target = target
        self.reason = reason


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
    """A catalog was used in another event loop than it was opened in, or after a fork."""

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
    the command line look it up in a thread. Over a host's sessions, `copy` looks it up when it is
    first read. In an event loop, read it in a thread.
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
        """The path of the newest valid backup, or None. The first access may read every backup."""
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
    """The database can be read but not written: `target` and `reason`."""

    def __init__(self, target: str, reason: str) -> None:
        super().__init__(
            f"the catalog at {target} is read-only: {reason}. To write, give this process write "
            f"permission for the file and for its folder"
        )
        self.target = target
        self.reason = reason


class StorageFullError(CatalogError):
    """The disk or a quota is full. Earlier changes are kept: `target` and `reason`."""

    def __init__(self, target: str, reason: str) -> None:
        super().__init__(
            f"the catalog at {target} could not be written: {reason}. Free disk space or raise the "
            f"quota, and try again. Reads still work"
        )
        self.target = target
        self.reason = reason


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
            f"await model_catalog.upgrade(target), or run `model-catalog db upgrade`"
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


class NotAFileError(CatalogError):
    """A path names a directory, a FIFO or a device, which was not read: `path` and `found`."""

    def __init__(self, path: str, found: str) -> None:
        super().__init__(f"{path!r} is {found}: name a regular file")
        self.path = path
        self.found = found


class ProtectedFileError(CatalogError):
    """A path names the catalog's own database, which was not opened: `path`."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path!r} is the catalog's own database and was not opened, because closing it would "
            f"release SQLite's locks on it: leave it out"
        )
        self.path = path


class FileChangedError(CatalogError):
    """The file changed while it was being read: `path` and `reason`. Try again."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"{path!r} changed while it was read: {reason}. Try again when no program writes to it"
        )
        self.path = path
        self.reason = reason


class TooManyMissingError(CatalogError):
    """Most models under the path `group` were not found. None of them was recorded as missing."""

    def __init__(self, group: str, missing_count: int, model_count: int) -> None:
        super().__init__(
            f"{missing_count} of {model_count} models under {group!r} were not found. None of them "
            f"was recorded as missing, because the disk may not be mounted. If the files are gone, "
            f"run the check again with `force=True` (`--force`)"
        )
        self.group = group
        self.missing_count = missing_count
        self.model_count = model_count

    @property
    def held_count(self) -> int:
        """The name of `model_count` in release 0.1.0."""
        return self.model_count


class DigestMismatchError(CatalogError):
    """A path contains other bytes than `expected`, and nothing changed: `path` and `found`."""

    def __init__(self, path: str, expected: str, found: str) -> None:
        super().__init__(
            f"{path!r} is another model: its digest is {found}, and {expected} is recorded. "
            f"Register it under its own name, or accept its bytes as the new ones of this model"
        )
        self.path = path
        self.expected = expected
        self.found = found


class StoppedError(CatalogError):
    """The operation was stopped at the caller's request and had no effect."""


class BadHeaderError(CatalogError, ValueError):
    """The header of a file is damaged, truncated or malicious: `path` and `reason`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"the header of {path!r} cannot be read: {reason}")
        self.path = path
        self.reason = reason


class UnknownFormatError(BadHeaderError):
    """The file does not begin like any known format."""


class BadLayoutError(CatalogError, ValueError):
    """A folder has too many files to be one model: `path` and `reason`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path!r} is not a single model: {reason}. Name one of its subfolders")
        self.path = path
        self.reason = reason


class NotInstalledError(CatalogError):
    """The call needs a package that is not installed: `package` and its `extra`."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'model-catalog[{extra}]'")
        self.package = package
        self.extra = extra


class InvalidKeyError(CatalogError, ValueError):
    """A value is not a public key that can verify a signature: `source` and `reason`."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(
            f"{source} cannot be used as a public key: {reason}. Give the signer's public key in "
            f"PEM format, on the curve P-256, P-384 or P-521"
        )
        self.source = source
        self.reason = reason


class BadSignatureError(CatalogError, ValueError):
    """A signature is altered, of another key, or over other files: `path` and `reason`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"the signature {path!r} is not valid: {reason}")
        self.path = path
        self.reason = reason

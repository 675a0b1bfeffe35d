"""Walk a store safely during a scan: only links that `LinkResolver` allows leave its root."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Final, NamedTuple

from model_catalog.domain import fields, validation
from model_catalog.errors import (
    BadHeaderError,
    CatalogError,
    InvalidModelError,
    NotAFileError,
    ProtectedFileError,
    StoppedError,
)
from model_catalog.files.file_names import is_system_file
from model_catalog.files.fingerprint import Fingerprint
from model_catalog.files.model_kind import Role
from model_catalog.files.safe_open import (
    OpenFile,
    ProtectedFiles,
    StrPath,
    disk_bytes,
    errno_name,
    file_identity,
    non_regular_kind,
    open_regular_file,
)
from model_catalog.stores.link_resolution import LinkResolver, SkippedError
from model_catalog.stores.plain_folders.passed_over import PassedOverCounter
from model_catalog.stores.scan_result import (
    FoundModel,
    LeftoverFile,
    LeftoverKind,
    OtherKind,
    OtherRepositories,
    Scan,
    ScanProblem,
    StoreFile,
    StoreName,
)

MAX_FILES: Final = 10_000
"""The most files in a model, and the most refs or downloads in a repository."""
UNPRINTABLE_NAME: Final = "its name is not printable text"


class LinkTarget(NamedTuple):
    """A regular file by its real path, which may be outside of the store."""

    path: str
    status: os.stat_result

    def to_store_file(self, path: str, role: Role, digest: str | None) -> StoreFile:
        """Return this file as a file of a model, with its path inside that model."""
        return StoreFile(
            path,
            self.status.st_size,
            role,
            digest,
            Fingerprint.from_stat(self.status),
            file_identity(self.status),
            disk_bytes(self.status),
        )


@dataclass(slots=True)
class StoreWalk:
    """
    The state of one scan of a store, which collects the models and the problems.

    `root` is the real path of the store, and `links` resolves the links in it.

    A folder outside, to which `resolve_folder` has followed a link, is listed by its real path. The
    models, problems and leftovers get the path of the link instead.
    """

    store: StoreName
    root: str
    protected: ProtectedFiles
    stop: Callable[[], bool] | None
    progress: Callable[[int], None] | None
    links: LinkResolver
    _found: dict[tuple[str, str, str], FoundModel] = field(default_factory=dict)
    _problems: list[ScanProblem] = field(default_factory=list)
    _leftovers: dict[str, LeftoverFile] = field(default_factory=dict)
    passed_over: PassedOverCounter = field(default_factory=PassedOverCounter)
    _reported_count: int = 0
    _others: dict[OtherKind, OtherRepositories] = field(default_factory=dict)
    _scope: str | None = None

    @classmethod
    def start(
        cls,
        store: StoreName,
        root: StrPath,
        protected: ProtectedFiles,
        stop: Callable[[], bool] | None,
        progress: Callable[[int], None] | None,
        *,
        follow_links: bool = True,
    ) -> StoreWalk:
        """
        Start a scan. Links in the path of the root are followed, because the caller named it.

        Without `follow_links`, links to folders and links out of the store are refused.
        """
        given_root = os.path.abspath(root)
        try:
            real = os.path.realpath(given_root)
        except ValueError:
            # The path contains a NUL character. The first list_entries() reports it as a problem.
            real = given_root
        links = LinkResolver(real, given_root, follow_links)
        return cls(store, real, protected, stop, progress, links)

    def result(self) -> Scan:
        """Return the sorted models and problems."""
        return Scan(
            self.store,
            self.root,
            tuple(self._found[key] for key in sorted(self._found)),
            tuple(sorted(self._problems, key=lambda problem: (problem.path, problem.reason))),
            self._unused_leftovers(),
            self.passed_over.total,
            other_repositories=tuple(self._others[kind] for kind in sorted(self._others)),
            scope=self._scope,
        )

    def _unused_leftovers(self) -> tuple[LeftoverFile, ...]:
        """Return the leftovers whose bytes belong to no model by another name, sorted by path."""
        if not self._leftovers:
            return ()
        used = {file.identity for model in self._found.values() for file in model.files}
        return tuple(
            self._leftovers[path]
            for path in sorted(self._leftovers)
            if self._leftovers[path].identity not in used
        )

    @property
    def problem_count(self) -> int:
        """The number of problems so far."""
        return len(self._problems)

    @property
    def model_count(self) -> int:
        """The number of models so far."""
        return len(self._found)

    def add_problem(
        self, path: str, reason: str, reference: str | None = None, version: str | None = None
    ) -> None:
        """Record that an entry could not be read. `ScanProblem` explains the arguments."""
        self._problems.append(ScanProblem(self.links.shown_path(path), reason, reference, version))

    def add_leftover(self, entry: os.DirEntry[str], kind: LeftoverKind) -> None:
        """
        Count a file of the store that may belong to no model. Links and other kinds are ignored.

        The result leaves it out if a model has the same file by this name or another one. A file
        that no longer exists, or whose status cannot be read, is ignored.
        """
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:
            return
        if non_regular_kind(status) is None:
            path = self.links.shown_path(entry.path)
            self._leftovers[path] = LeftoverFile(
                path, kind, status.st_size, disk_bytes(status), file_identity(status)
            )

    def add_model(self, model: FoundModel, entry: str) -> None:
        """
        Record a model, or a problem if a catalog would refuse it or its name is taken.

        `entry` is the path from which the model was read.
        """
        key = (model.provider, model.reference, model.version)
        if (path := self.links.shown_path(model.local_path)) != model.local_path:
            model = replace(model, local_path=path, folder=self.links.shown_path(model.folder))
        try:
            fields.validate_model(
                {
                    "provider": model.provider,
                    "reference": model.reference,
                    "version": model.version,
                    "local_path": model.local_path,
                }
            )
        except InvalidModelError as error:
            self.add_problem(entry, f"{error.field} {error.reason}")
            return
        if key in self._found:
            other = self._found[key].local_path
            self.add_problem(entry, f"it has the same name as the model at {other!r}")
            return
        self._found[key] = model
        self.report_progress(len(self._found))

    def report_progress(self, count: int) -> None:
        """Report the number of models so far. It never falls."""
        self._reported_count = max(count, self._reported_count)
        if self.progress is not None:
            self.progress(self._reported_count)

    def restrict_to(self, name: str | None) -> None:
        """Scan only one folder in the root. None removes the restriction."""
        self._scope = None if name is None else os.path.join(self.root, name)

    def list_root(self) -> list[os.DirEntry[str]]:
        """Return the entries of the root to scan, as `list_entries`."""
        entries = self.list_entries(self.root)
        return [entry for entry in entries if self._scope in {None, entry.path}]

    def add_other_repository(self, other: OtherRepositories) -> None:
        """Count a repository that has no models."""
        self._others[other.kind] = (
            self._others.get(other.kind, OtherRepositories(other.kind)) + other
        )

    def list_entries(
        self, folder: str, reference: str | None = None, *, report: bool = True
    ) -> list[os.DirEntry[str]]:
        """
        Return the entries of a folder, sorted by name.

        If the folder cannot be read, a problem is recorded and the result is empty. Without
        `report` no problem is recorded. Raises StoppedError if `stop` returns True.
        """
        if self.stop is not None and self.stop():
            raise StoppedError(f"the scan of {self.root!r} was stopped at the caller's request")
        try:
            with os.scandir(folder) as listing:
                entries = [entry for entry in listing if not is_system_file(entry.name)]
        except (OSError, ValueError) as error:
            if report:
                self.add_problem(folder, error_reason(error), reference)
            return []
        entries.sort(key=attrgetter("name"))
        return entries

    def list_folders(self, folder: str, reference: str | None = None) -> list[os.DirEntry[str]]:
        """
        Return the folders in a folder. Any other entry that is not hidden is a problem.

        A link may lead to models that were found before, so its problem names the reference.
        """
        folders = []
        for entry in self.list_entries(folder, reference):
            if entry.name.startswith("."):
                continue
            if (reason := non_folder_reason(entry)) is None:
                folders.append(entry)
            else:
                self.add_problem(entry.path, reason, reference if is_link(entry) else None)
        return folders

    def resolve_folder(self, entry: os.DirEntry[str], *, is_part: bool = False) -> str:
        """
        Return the path by which to list a folder, or the folder outside that a link leads to.

        Only call it for an entry whose place says that it belongs to the store. `is_part` says that
        its name does too, so that a link to another folder of the store may be followed.

        Raises SkippedError with the reason, and OSError as the system reports it.
        """
        reason = non_folder_reason(entry)
        if reason is None:
            return entry.path
        if not (is_link(entry) and self.links.follow_outside):
            raise SkippedError(reason)
        path, status = self.links.resolve(entry.path)
        if not stat.S_ISDIR(status.st_mode):
            kind = non_regular_kind(status) or "a file"
            raise SkippedError(f"it is a link to {kind} and not to a folder")
        if not self.links.is_outside(path):
            if is_part:
                return path
            raise SkippedError("it is a link to another folder of the store")
        self.links.require_trusted(path, status, "a folder")
        self.links.add_linked_folder(path, entry.path)
        return path

    def resolve_entry(self, entry: os.DirEntry[str]) -> LinkTarget:
        """
        Return the regular file that an entry is, or that its link leads to.

        Raises SkippedError with the reason, and OSError as the system reports it.
        """
        if is_link(entry):
            return self.follow_links(entry.path)
        return self.require_regular_file(entry.path, entry.stat(follow_symlinks=False))

    def require_regular_file(self, path: str, status: os.stat_result) -> LinkTarget:
        """Return a file that may be opened. Raises SkippedError for anything else."""
        if (kind := non_regular_kind(status)) is not None:
            raise SkippedError(f"it is {kind}")
        if self.protected and file_identity(status) in self.protected:
            raise SkippedError("it is the catalog's own database")
        self.links.require_trusted(path, status, "a file")
        return LinkTarget(path, status)

    def follow_links(self, path: str) -> LinkTarget:
        """
        Return the regular file that a path of the store leads to.

        Links out of the store are followed as `LinkResolver` allows. Raises the errors of
        `resolve_entry`.
        """
        return self.require_regular_file(*self.links.resolve_file(path))

    @contextmanager
    def open_file(self, target: LinkTarget, limit_bytes: int) -> Iterator[OpenFile]:
        """
        Open a metadata file of the store for reading.

        Raises SkippedError if the file is larger than `limit_bytes` or was replaced. Raises
        NotAFileError, ProtectedFileError, and OSError as the system reports it.
        """
        if target.status.st_size > limit_bytes:
            raise SkippedError(f"it is larger than {limit_bytes:,} bytes")
        with open_regular_file(target.path, self.protected, follow_links=False) as file:
            if file_identity(file.status) != file_identity(target.status):
                raise SkippedError("it was replaced during the scan")
            yield file


READ_ERRORS: Final = (SkippedError, CatalogError, OSError, ValueError)
"""The errors that reading an entry can raise. ValueError: the path contains a NUL character."""


def error_reason(error: Exception) -> str:
    """Return why an entry could not be read, without its path."""
    if isinstance(error, OSError):
        return f"it cannot be read: {errno_name(error)}"
    if isinstance(error, BadHeaderError):
        return error.reason
    if isinstance(error, NotAFileError):
        return f"it is {error.found}"
    if isinstance(error, ProtectedFileError):
        return "it is the catalog's own database"
    return str(error)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder and not a link. False if the system reports an error."""
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def is_folder_path(path: str) -> bool:
    """Return whether a path is a folder and not a link. False if the system reports an error."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def is_link(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a symbolic link. False if the system reports an error."""
    try:
        return entry.is_symlink()
    except OSError:
        return False


def non_folder_reason(entry: os.DirEntry[str]) -> str | None:
    """Describe an entry that is not a folder. None for a folder. Links are not followed."""
    if is_folder(entry):
        return None
    if is_link(entry):
        return "it is a link, and links to folders are not followed"
    try:
        kind = non_regular_kind(entry.stat(follow_symlinks=False))
    except OSError as error:
        return error_reason(error)
    return f"it is {kind or 'a file'} and not a folder"


def is_valid_name(name: str) -> bool:
    """Return whether a name is text that a catalog accepts and a terminal can show safely."""
    # Nearly every name is printable, which is fast to check. Any other name is validated
    # character by character.
    if name.isprintable():
        return True
    try:
        validation.key_text("path", name, len(name))
    except InvalidModelError:
        return False
    return True

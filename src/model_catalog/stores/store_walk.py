"""A store while it is looked through: nothing outside of its root is listed or opened."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from model_catalog.domain import fields, validation
from model_catalog.errors import (
    BadHeaderError,
    CatalogError,
    InvalidModelError,
    NotAFileError,
    ProtectedFileError,
    StoppedError,
)
from model_catalog.files.file_names import Role
from model_catalog.files.fingerprint import Fingerprint
from model_catalog.files.safe_open import (
    OpenFile,
    ProtectedFiles,
    StrPath,
    errno_name,
    file_identity,
    non_regular_kind,
    open_regular_file,
)
from model_catalog.stores.scan_result import FoundModel, Scan, ScanProblem, StoreFile, StoreName

MAX_FILES: Final = 10_000
"""Files in a model, and refs or downloads in a repository."""
MAX_LINKS: Final = 40
"""Links on the way to a file: as many as Linux follows."""

IGNORED_NAMES: Final = (".DS_Store", "Thumbs.db", "desktop.ini")
"""What the browsers of files leave behind wherever they look."""


UNPRINTABLE_NAME: Final = "its name is no text that can be shown"


class SkippedError(Exception):
    """Why an entry is left out; it never leaves these rooms."""


@dataclass(frozen=True, slots=True)
class LinkTarget:
    """A regular file in the store, by the path that no link is left in."""

    path: str
    status: os.stat_result

    def to_store_file(self, path: str, role: Role, digest: str | None) -> StoreFile:
        """The file as one of a model's, where it has another path."""
        return StoreFile(
            path,
            self.status.st_size,
            role,
            digest,
            Fingerprint.from_stat(self.status),
            file_identity(self.status),
        )


@dataclass(slots=True)
class StoreWalk:
    """One look through a store; what is found and what is wrong is gathered here."""

    store: StoreName
    root: str
    protected: ProtectedFiles
    stop: Callable[[], bool] | None
    progress: Callable[[int], None] | None
    given_root: str
    _found: dict[tuple[str, str, str], FoundModel] = field(default_factory=dict)
    _problems: list[ScanProblem] = field(default_factory=list)

    @classmethod
    def start(
        cls,
        store: StoreName,
        root: StrPath,
        protected: ProtectedFiles,
        stop: Callable[[], bool] | None,
        progress: Callable[[int], None] | None,
    ) -> StoreWalk:
        """A walk to a root, which may itself be reached by links: the caller has named it."""
        given_root = os.path.abspath(root)
        try:
            real = os.path.realpath(given_root)
        except ValueError:
            # A NUL in it: the system is never asked, and the listing below says so.
            real = given_root
        return cls(store, real, protected, stop, progress, given_root)

    def result(self) -> Scan:
        return Scan(
            self.store,
            self.root,
            tuple(self._found[key] for key in sorted(self._found)),
            tuple(sorted(self._problems, key=lambda problem: (problem.path, problem.reason))),
        )

    @property
    def problem_count(self) -> int:
        return len(self._problems)

    def add_problem(
        self, path: str, reason: str, reference: str | None = None, version: str | None = None
    ) -> None:
        """Note what is wrong with an entry."""
        self._problems.append(ScanProblem(path, reason, reference, version))

    def add_model(self, model: FoundModel, entry: str) -> None:
        """Note a model, or what keeps a catalog from taking it; `entry` is where it was read."""
        key = (model.provider, model.reference, model.version)
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
            self.add_problem(entry, f"it has the name of what lies at {other!r}")
            return
        self._found[key] = model
        if self.progress is not None:
            self.progress(len(self._found))

    def list_entries(self, folder: str, reference: str | None = None) -> list[os.DirEntry[str]]:
        """What lies in a folder, by name; nothing, and a problem, where it cannot be read."""
        if self.stop is not None and self.stop():
            raise StoppedError(f"the scan of {self.root!r} was stopped")
        try:
            with os.scandir(folder) as listing:
                found = [entry for entry in listing if entry.name not in IGNORED_NAMES]
        except (OSError, ValueError) as error:
            self.add_problem(folder, error_reason(error), reference)
            return []
        found.sort(key=lambda entry: entry.name)
        return found

    def list_folders(self, folder: str, reference: str | None = None) -> list[os.DirEntry[str]]:
        """The folders in a folder; all else in it is a problem, but for what is hidden."""
        found = []
        for entry in self.list_entries(folder, reference):
            if entry.name.startswith("."):
                continue
            if (what := non_folder_reason(entry)) is None:
                found.append(entry)
            else:
                self.add_problem(entry.path, what)
        return found

    def resolve_entry(self, entry: os.DirEntry[str]) -> LinkTarget:
        """
        The regular file that an entry is, or that it leads to inside of the store.

        Raises LeftOutError with the reason, and OSError as the system gave it.
        """
        if is_link(entry):
            return self.follow_links(entry.path)
        return self.require_regular_file(entry.path, entry.stat(follow_symlinks=False))

    def require_regular_file(self, path: str, found: os.stat_result) -> LinkTarget:
        """What was looked at, if it is a file that may be opened; LeftOutError if not."""
        if (what := non_regular_kind(found)) is not None:
            raise SkippedError(f"it is {what}")
        if self.protected and file_identity(found) in self.protected:
            raise SkippedError("it is the catalog's own database")
        return LinkTarget(path, found)

    def follow_links(self, path: str) -> LinkTarget:
        """
        The regular file that a path in the store leads to, by links that never leave it.

        Each step is taken by itself: to ask the system for the whole way would be to ask for what
        lies outside, which may be a disk that does not answer. The errors are those of `target`.
        """
        parts = path[len(self.root) :].split("/")[::-1]
        here, links = self.root, 0
        found = None
        while parts:
            part = parts.pop()
            if part in {"", "."}:
                continue
            if part == "..":
                if here == self.root:
                    raise SkippedError("it leads out of the store")
                here = os.path.dirname(here)
                continue
            step = os.path.join(here, part)
            found = os.lstat(step)
            if not stat.S_ISLNK(found.st_mode):
                here = step
                continue
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            to = os.readlink(step)
            if to.startswith("/"):
                to, here = self._path_below_root(to), self.root
            parts += to.split("/")[::-1]
        if found is None:
            raise SkippedError("it leads to the store itself")
        # The last step may have been one up, to a folder that was looked at before.
        return self.require_regular_file(here, os.lstat(here))

    def _path_below_root(self, path: str) -> str:
        for root in (self.root, self.given_root):
            if path.startswith(root.rstrip("/") + "/"):
                return path[len(root) :]
        raise SkippedError("it leads out of the store")

    @contextmanager
    def open_file(self, target: LinkTarget, limit_bytes: int) -> Iterator[OpenFile]:
        """
        A file of the store that is not a model's, open for reading.

        Raises LeftOutError where it is longer, or another than was looked at; NotAFileError and
        ProtectedFileError, and OSError as the system gave it.
        """
        if target.status.st_size > limit_bytes:
            raise SkippedError(f"it is longer than {limit_bytes:,} bytes")
        with open_regular_file(target.path, self.protected) as file:
            if file_identity(file.status) != file_identity(target.status):
                raise SkippedError("it was replaced while it was read")
            yield file


READ_ERRORS: Final = (SkippedError, CatalogError, OSError, ValueError)
"""What a look at an entry may raise; a path that the system cannot be given is a ValueError."""


def error_reason(error: Exception) -> str:
    """Why an entry could not be read, without its path."""
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
    """Whether an entry is a folder itself; False also where the system does not tell."""
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def is_link(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a link; False also where the system does not tell."""
    try:
        return entry.is_symlink()
    except OSError:
        return False


def non_folder_reason(entry: os.DirEntry[str]) -> str | None:
    """In words what an entry is, where it is no folder; links are not followed."""
    if is_folder(entry):
        return None
    if is_link(entry):
        return "it is a link, which is not followed to a folder"
    try:
        kind = non_regular_kind(entry.stat(follow_symlinks=False))
    except OSError as error:
        return error_reason(error)
    return f"it is {kind or 'a file'} and not a folder"


def is_valid_name(name: str) -> bool:
    """Whether a name is text that a catalog may hold, and steers no terminal."""
    # Nearly every name is printable as it is; the rest is looked at letter by letter.
    if name.isprintable():
        return True
    try:
        validation.key_text("path", name, len(name))
    except InvalidModelError:
        return False
    return True


def shorten_list(names: Sequence[str], count: int | None = None) -> str:
    """The first three of some names, escaped, and how many there are beside them."""
    first = ", ".join(repr(name) for name in names[:3])
    more = (len(names) if count is None else count) - min(len(names), 3)
    return f"{first} and {more:,} more" if more else first

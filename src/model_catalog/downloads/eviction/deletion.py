"""Delete the files of one model. This module knows no database."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from model_catalog.downloads.eviction.found_files import (
    FoundFiles,
    Name,
    RefusedError,
    same_content,
    unreadable,
)
from model_catalog.downloads.eviction.hub_cache import (
    PARTS,
    links_to_shared_blob,
    lock_of,
    split_snapshot_path,
)
from model_catalog.downloads.eviction.plan import KeptReason
from model_catalog.downloads.eviction.removals import Removal
from model_catalog.downloads.hub.snapshot_mark import names_in, write_mark
from model_catalog.files.fingerprint import Fingerprint
from model_catalog.files.safe_open import disk_bytes, file_identity

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Deletion:
    """
    The deletion of the files of one model, which can be run in parts.

    Each name is deleted in a folder that was opened without following links, and only if it is
    still the file or link that was checked.
    """

    def __init__(self, found: FoundFiles, removals: Sequence[Removal]) -> None:
        self._found = found
        self._removals = list(removals)
        self._root_id = file_identity(os.stat(found.root))
        self._next = 0
        self._shrunk: set[tuple[int, int]] = set()
        """Files that have lost a name, which has changed their ctime."""
        self.freed_bytes = 0
        """The bytes on the disk of the files whose last name was deleted."""
        self.deleted_count = 0

    @property
    def is_done(self) -> bool:
        """Whether all names were deleted."""
        return self._next > len(self._removals)

    def run(self, should_stop: Callable[[], bool], seconds: float) -> None:
        """
        Delete names until all are deleted, `should_stop()` returns True, or some time has passed.

        The empty folders that the model leaves are deleted at the end. Raises RefusedError if a
        file or a link was replaced since the check, or cannot be deleted.
        """
        end = time.monotonic() + seconds
        try:
            while self._next < len(self._removals):
                if should_stop():
                    return
                self._remove(self._removals[self._next])
                self._next += 1
                if time.monotonic() >= end:
                    return
            self._remove_folders()
        except OSError as error:
            raise unreadable(error) from error
        self._next += 1

    def _remove(self, removal: Removal) -> None:
        if removal.described is not None and os.path.lexists(removal.described):
            return
        if not removal.is_shared_blob:
            self._unlink(removal.name)
            return
        with _locked(lock_of(removal.name.path)):
            # Another program may have linked to the blob since it was checked.
            blobs = {each.name.path for each in self._removals}
            links = links_to_shared_blob(removal.name.path)
            if links is not None and links <= blobs:
                self._unlink(removal.name)

    def _unlink(self, name: Name) -> None:
        folder, base = os.path.split(name.path)
        try:
            with self._open_folder(folder) as descriptor:
                status = os.stat(base, dir_fd=descriptor, follow_symlinks=False)
                if not self._is_same(name.status, status):
                    detail = f"{name.path!r} was replaced while the model was being deleted"
                    raise RefusedError(KeptReason.NOT_AS_RECORDED, detail)
                os.unlink(base, dir_fd=descriptor)
        except FileNotFoundError:
            return
        self.deleted_count += 1
        if status.st_nlink == 1:
            self.freed_bytes += disk_bytes(status)
        else:
            self._shrunk.add(file_identity(status))

    def _is_same(self, checked: os.stat_result, found: os.stat_result) -> bool:
        if (file_identity(checked), stat.S_IFMT(checked.st_mode)) != (
            file_identity(found),
            stat.S_IFMT(found.st_mode),
        ):
            return False
        one, other = Fingerprint.from_stat(checked), Fingerprint.from_stat(found)
        return one == other or (file_identity(found) in self._shrunk and same_content(one, other))

    @contextmanager
    def _open_folder(self, path: str) -> Iterator[int]:
        """
        Open a folder below the root part by part, without following a link.

        Raises FileNotFoundError if it does not exist, and RefusedError if a part of it is a link.
        """
        descriptor = os.open(self._found.root, _OPEN_FOLDER)
        try:
            if file_identity(os.fstat(descriptor)) != self._root_id:
                raise RefusedError(KeptReason.OUTSIDE_ROOT, f"{self._found.root!r} was replaced")
            for part in os.path.relpath(path, self._found.root).split("/"):
                if part == ".":
                    continue
                try:
                    inner = os.open(part, _OPEN_FOLDER, dir_fd=descriptor)
                except NotADirectoryError as error:
                    detail = f"{path!r} leads through a link or a file"
                    raise RefusedError(KeptReason.OUTSIDE_ROOT, detail) from error
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    def _remove_folders(self) -> None:
        """Delete the folders that are empty now, from the innermost one to the root, without it."""
        folders = {os.path.dirname(removal.name.path) for removal in self._removals}
        snapshots = self._found.snapshots
        repositories = {each.repository for each in snapshots}
        for folder in sorted(folders | self._found.folders, key=len, reverse=True):
            limit = self._found.root
            if (snapshot := split_snapshot_path(f"{folder}/")) is not None:
                limit = f"{snapshot.repository}/snapshots"
            elif any(folder.startswith(f"{each}/") for each in repositories):
                continue
            self._remove_empty(folder, limit)
        for snapshot in snapshots:
            self._remove_tree(f"{snapshot.repository}/.no_exist/{snapshot.commit}")
            if self._found.model.is_owned and (names := names_in(snapshot.folder)):
                write_mark(snapshot.repository, snapshot.commit, names)
        for repository in repositories:
            self._remove_repository(repository)

    def _remove_repository(self, repository: str) -> None:
        """
        Delete a repository of a Hugging Face cache that has no snapshot and no file.

        Without `snapshots` huggingface_hub reports a damaged cache, so this folder is deleted last.
        """
        if not self._found.contains(repository) or repository == self._found.root:
            return
        self._remove_tree(f"{repository}/refs")
        if _has_entries(f"{repository}/snapshots"):
            return
        for part in PARTS:
            self._remove_tree(f"{repository}/{part}")
        if not _has_entries(repository, "snapshots"):
            self._remove_empty(f"{repository}/snapshots", os.path.dirname(repository))

    def _remove_tree(self, path: str) -> None:
        """Delete the empty folders in a folder, and itself if it is empty then."""
        if os.path.isdir(path) and not os.path.islink(path):
            for folder, _, _ in os.walk(path, topdown=False):
                self._remove_empty(folder, os.path.dirname(path))

    def _remove_empty(self, folder: str, limit: str) -> None:
        """Delete a folder and those above it while they are empty, below a limit."""
        while folder != limit and self._found.contains(folder) and folder != self._found.root:
            parent, base = os.path.split(folder)
            # Not empty, or deleted already.
            try:
                with self._open_folder(parent) as descriptor:
                    os.rmdir(base, dir_fd=descriptor)
            except FileNotFoundError:
                pass
            except OSError:
                return
            folder = parent


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Lock a file of huggingface_hub as it does itself."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _has_entries(path: str, *ignored: str) -> bool:
    with suppress(FileNotFoundError), os.scandir(path) as entries:
        return any(entry.name not in ignored for entry in entries)
    return False

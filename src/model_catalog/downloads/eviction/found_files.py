"""Find the recorded files of a model on the disk, and check that they are the recorded ones."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from model_catalog.domain.file_record import FileRecord
from model_catalog.downloads.eviction.hub_cache import (
    SnapshotPath,
    is_blob_of,
    is_repository_folder,
    is_shared_blob_of,
    link_target,
    split_snapshot_path,
)
from model_catalog.downloads.eviction.plan import KeptReason
from model_catalog.files.fingerprint import Fingerprint, fingerprint_text
from model_catalog.files.mounts import is_mount_point
from model_catalog.files.safe_open import errno_name, file_identity, non_regular_kind


class RefusedError(Exception):
    """A model is kept: `reason` and `detail`. It does not leave this package."""

    def __init__(self, reason: KeptReason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class DeletableModel:
    """The recorded facts of a model that its deletion needs. `root` is the folder to stay in."""

    id: int
    local_path: str
    root: str
    files: Sequence[FileRecord]
    mount_point: str | None = None
    is_unfinished: bool = False
    """Whether some of its files may be deleted already."""
    is_owned: bool = True
    """If False, the links of the model are not deleted either."""
    compares_sizes: bool = False
    """Whether a file without a fingerprint is the recorded one if it has the recorded size."""


class Name(NamedTuple):
    """A name in a folder: its path, in which no part before the last is a link, and its status."""

    path: str
    status: os.stat_result

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.status.st_mode)


@dataclass(slots=True)
class FoundFiles:
    """The files of a model on the disk."""

    model: DeletableModel
    root: str
    """The real path of the root, or of the cache if the root is a repository of one."""
    chains: list[list[Name]] = field(default_factory=list)
    """For each file its name, followed by the blobs that it leads to."""
    folders: set[str] = field(default_factory=set)
    """The folders of all recorded files, also of those that do not exist."""

    @property
    def snapshots(self) -> set[SnapshotPath]:
        """The snapshots of a Hugging Face cache in which files are recorded."""
        found = {split_snapshot_path(f"{folder}/") for folder in self.folders}
        return {each for each in found if each is not None and self.contains(each.repository)}

    def contains(self, path: str) -> bool:
        """Return whether a path is the root or below it."""
        return is_below(path, self.root)


def is_below(path: str, folder: str) -> bool:
    """Return whether a path is a folder, or is below it by its text."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def base_folder(local_path: str, names: Iterable[str]) -> str:
    """Return the folder to which the paths of a model's files are relative."""
    if os.path.isdir(local_path):
        return local_path
    folder, name = os.path.split(local_path)
    return folder if name in names else local_path


def find_files(model: DeletableModel, protected: Collection[tuple[int, int]] = ()) -> FoundFiles:
    """
    Return the recorded files of a model that exist, after checking that they are the recorded ones.

    Nothing is opened. `protected` are the files of the catalog's own database. Raises RefusedError
    if one of the files may not be deleted.
    """
    try:
        return _FileSearch(model, protected).run()
    except OSError as error:
        raise unreadable(error) from error


def unreadable(error: OSError) -> RefusedError:
    """Return the error for a path that the system does not let this process read or delete."""
    return RefusedError(KeptReason.UNREADABLE, f"{error.filename!r}: {errno_name(error)}")


class _FileSearch:
    def __init__(self, model: DeletableModel, protected: Collection[tuple[int, int]]) -> None:
        self._model = model
        self._protected = protected
        self._limit = os.path.realpath(model.root)
        # The blobs that all repositories of a cache share are beside the repository.
        is_repository = is_repository_folder(self._limit)
        root = os.path.dirname(self._limit) if is_repository else self._limit
        if not os.path.isdir(root):
            reason = KeptReason.UNREADABLE if model.is_unfinished else KeptReason.NOT_AS_RECORDED
            raise RefusedError(reason, f"the folder {model.root!r} does not exist")
        if model.mount_point is not None and not is_mount_point(model.mount_point):
            # Files of a disk that is not mounted are not deleted.
            raise RefusedError(
                KeptReason.UNREADABLE, f"nothing is mounted at {model.mount_point!r}"
            )
        self._found = FoundFiles(model, root)
        self._gone: set[str] = set()
        """The fingerprints of files that do not exist."""

    def run(self) -> FoundFiles:
        """Find all files. Raises RefusedError, and OSError as the system reports it."""
        base = base_folder(self._model.local_path, [file.path for file in self._model.files])
        statuses: list[tuple[FileRecord, os.stat_result]] = []
        for file in self._model.files:
            chain = self._find_chain(self._real_path(f"{base}/{file.path}"))
            if chain:
                self._found.chains.append(chain)
            status = self._status_of(chain)
            if status is None:
                self._report_absence(file)
            else:
                statuses.append((file, status))
        for file, status in statuses:
            self._require_recorded(file, status)
        return self._found

    def _real_path(self, path: str) -> str:
        folder, name = os.path.split(path)
        real = os.path.realpath(folder)
        if not is_below(real, self._limit) or name in ("", ".", ".."):
            raise RefusedError(
                KeptReason.OUTSIDE_ROOT, f"{path!r} is not below {self._model.root!r}"
            )
        self._found.folders.add(real)
        return os.path.join(real, name)

    def _find_chain(self, path: str) -> list[Name]:
        """Return a name, and the blobs of a Hugging Face cache that it leads to."""
        chain: list[Name] = []
        while True:
            try:
                name = Name(path, os.lstat(path))
            except (FileNotFoundError, NotADirectoryError):
                return chain
            chain.append(name)
            if not name.is_link:
                return chain
            target = link_target(path)
            is_blob = (
                is_blob_of(path, target) if len(chain) == 1 else is_shared_blob_of(path, target)
            )
            # The parts of the target are the names themselves only if none of them is a link.
            if not is_blob or os.path.realpath(os.path.dirname(target)) != os.path.dirname(target):
                self._require_foreign(path)
                return chain
            if not self._found.contains(target):
                return chain
            path = target

    def _require_foreign(self, path: str) -> None:
        """Refuse a link to a file that the deletion of the link would leave without a record."""
        if not self._model.is_owned:
            detail = f"{path!r} is a link: give the file itself"
            raise RefusedError(KeptReason.OUTSIDE_ROOT, detail)
        target = os.path.realpath(path)
        if self._found.contains(target) and os.path.lexists(target):
            detail = f"{path!r} is a link to {target!r}, to which other links may lead"
            raise RefusedError(KeptReason.SHARED, detail)

    def _status_of(self, chain: Sequence[Name]) -> os.stat_result | None:
        """Return the status of the bytes of a file; None if they do not exist."""
        if not chain:
            return None
        try:
            return os.stat(chain[0].path)
        except (FileNotFoundError, NotADirectoryError):
            # A link whose blob was deleted before it.
            return None

    def _report_absence(self, file: FileRecord) -> None:
        if not self._model.is_unfinished:
            raise RefusedError(KeptReason.NOT_AS_RECORDED, f"{file.path!r} does not exist")
        if file.fingerprint is not None:
            self._gone.add(file.fingerprint)

    def _require_recorded(self, file: FileRecord, status: os.stat_result) -> None:
        if file_identity(status) in self._protected:
            raise RefusedError(KeptReason.UNREADABLE, f"{file.path!r} is the catalog's database")
        if (kind := non_regular_kind(status)) is not None:
            raise RefusedError(KeptReason.NOT_AS_RECORDED, f"{file.path!r} is {kind}")
        if file.fingerprint is None:
            if not self._model.compares_sizes:
                detail = f"{file.path!r} has no fingerprint: verify the model"
                raise RefusedError(KeptReason.NO_FILE_LIST, detail)
            if status.st_size == file.size_bytes:
                return
        elif fingerprint_text(status) == file.fingerprint or self._lost_a_name(file, status):
            return
        detail = f"{file.path!r} was modified, replaced or touched"
        raise RefusedError(KeptReason.NOT_AS_RECORDED, detail)

    def _lost_a_name(self, file: FileRecord, status: os.stat_result) -> bool:
        """
        Return whether only the ctime differs, and another name of the file was deleted.

        Deleting a hard link changes the ctime of the file.
        """
        if file.fingerprint is None or file.fingerprint not in self._gone:
            return False
        return same_content(Fingerprint.parse(file.fingerprint), Fingerprint.from_stat(status))


def same_content(one: Fingerprint, other: Fingerprint) -> bool:
    """Return whether two fingerprints are equal without their ctime."""
    return one._replace(ctime_ns=0) == other._replace(ctime_ns=0)

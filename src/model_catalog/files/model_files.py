"""Find the files of one model on disk: a single file, a shard set, or everything in a folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from model_catalog.errors import BadHeaderError, BadLayoutError, NotAFileError
from model_catalog.files.completeness.evidence import ReadFailure, StoreEvidence
from model_catalog.files.completeness.judge import index_problems, indexed_paths, shard_numbers
from model_catalog.files.file_names import (
    ShardSet,
    file_role,
    is_index,
    is_partial_download,
    is_system_file,
    parse_shard_name,
)
from model_catalog.files.fingerprint import Fingerprint
from model_catalog.files.local_downloads import DOWNLOADS, list_downloads, unfinished_downloads
from model_catalog.files.model_config import WeightIndex, read_index, read_onnx_index
from model_catalog.files.model_kind import Role
from model_catalog.files.safe_open import (
    ProtectedFiles,
    StrPath,
    disk_bytes,
    errno_name,
    file_identity,
    non_regular_kind,
    require_regular_file,
    stat_path,
)

_ONNX: Final = ".onnx"
MAX_ENTRIES: Final = 10_000
"""The most files and folders in a model, and the most files that exist or are missing."""


@dataclass(frozen=True)
class ModelFile:
    """
    A file of a model: its path inside the model, with `/`, and its size. Links are followed.

    `identity` is the (st_dev, st_ino) of its bytes: it is equal for two names of one file.
    `disk_bytes` are the bytes that it takes on the disk.
    """

    path: str
    size_bytes: int
    role: Role
    identity: tuple[int, int] | None = field(default=None, compare=False, repr=False)
    fingerprint: Fingerprint | None = field(default=None, compare=False, repr=False)
    disk_bytes: int | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class SkippedFile:
    """A file in a model's folder that was left out, and the reason."""

    path: str
    reason: str


@dataclass(frozen=True)
class ModelFiles:
    """
    The files of one model below `root`. Each list is sorted by the bytes of the paths.

    `missing` are files that do not exist although other files of the model name them. `problems`
    are the other reasons why the model is incomplete. `indexed` are the weights that an index
    lists. `evidence` and `indexes` are what the judge of completeness gets of them; if `indexes` is
    None, no index was read.
    """

    root: str
    files: tuple[ModelFile, ...]
    missing: tuple[str, ...] = ()
    skipped: tuple[SkippedFile, ...] = ()
    problems: tuple[str, ...] = ()
    indexed: tuple[str, ...] = ()
    evidence: StoreEvidence = field(default_factory=StoreEvidence, compare=False, repr=False)
    indexes: Mapping[str, WeightIndex | ReadFailure] | None = field(
        default=None, compare=False, repr=False
    )

    @property
    def size_bytes(self) -> int:
        """The size of all files. A file with several names is counted once."""
        size_by_file = {file.identity or file.path: file.size_bytes for file in self.files}
        return sum(size_by_file.values())

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing by the file names and the indexes. Headers are not read."""
        return not self.missing and not self.problems


def find_model_files(path: StrPath, *, protected: ProtectedFiles = ()) -> ModelFiles:
    """
    Return the files of the model at a path.

    For a file, that is the file itself, its whole set if it is a shard, and the external data that
    it names if it is an ONNX model. For a folder, it is
    every file in it and below it, except hidden files and unfinished downloads. Links to folders
    are not followed. Anything that is not a regular file is skipped, with the reason. Raises
    BadLayoutError if more than MAX_ENTRIES files exist or are missing. Raises NotAFileError for a
    FIFO or a device, ProtectedFileError, and OSError as the system reports it.
    """
    text = os.fspath(path)
    if non_regular_kind(stat_path(path)) == "a directory":
        return _find_in_folder(text, protected)
    status = require_regular_file(path, protected)
    root, name = os.path.split(text)
    shard = parse_shard_name(name)
    if shard is not None:
        walk = _FolderWalk(root or ".", protected)
        walk.add_shard_set(shard[1])
        return walk.result()
    # The name of a cache blob does not tell its role. The caller asked for this file, so it is
    # the weights.
    role = file_role(name) if file_role(name) != "other" else "weights"
    unfinished = [each for each in (name, f"{name}.aria2") if _is_partial(root, each)]
    if name.lower().endswith(_ONNX):
        walk = _FolderWalk(root or ".", protected)
        walk.add_graph(name, unfinished)
        return walk.result()
    return ModelFiles(
        root or ".",
        (_model_file(name, status, role),),
        evidence=StoreEvidence(unfinished=unfinished),
        indexes={},
    )


def list_model_files(
    path: str, roles: Iterable[tuple[str, Role]], *, protected: ProtectedFiles = ()
) -> ModelFiles:
    """
    Return given files of the model at a path: their paths below its folder, and their roles.

    A file whose status cannot be read is left out. A link that leads to no file is in the evidence.
    """
    root = path if os.path.isdir(path) else os.path.dirname(path)
    files = []
    for name, role in roles:
        try:
            status = stat_path(_join_path(root, name))
        except OSError:
            continue
        if non_regular_kind(status) is None and file_identity(status) not in protected:
            files.append(_model_file(name, status, role))
    indexes = read_indexes(root, [file.path for file in files], protected)
    existing = {file.path for file in files}
    gone = {
        each
        for paths in indexed_paths(existing, indexes).values()
        for each in paths
        if each not in existing and os.path.islink(_join_path(root, each))
    }
    return ModelFiles(
        root, tuple(files), evidence=StoreEvidence(gone=frozenset(gone)), indexes=indexes
    )


def _is_partial(root: str, name: str) -> bool:
    return is_partial_download(name) and os.path.lexists(_join_path(root, name))


def _find_in_folder(root: str, protected: ProtectedFiles) -> ModelFiles:
    walk = _FolderWalk(root, protected)
    walk.add_folder()
    walk.add_local_downloads()
    walk.add_missing_shards()
    walk.add_indexes()
    return walk.result()


def read_indexes(
    root: str, paths: Iterable[str], protected: ProtectedFiles
) -> dict[str, WeightIndex | ReadFailure]:
    """Read those of the files below `root` that list files of weights, by path."""
    indexes: dict[str, WeightIndex | ReadFailure] = {}
    for path in paths:
        is_onnx = path.lower().endswith(_ONNX)
        if not is_onnx and not is_index(path.rpartition("/")[2]):
            continue
        read = read_onnx_index if is_onnx else read_index
        try:
            indexes[path] = read(_join_path(root, path), protected=protected)
        except (BadHeaderError, NotAFileError, OSError) as error:
            indexes[path] = ReadFailure.from_error(error)
    return indexes


class _FolderWalk:
    """Collects the files of a model while a folder is read."""

    def __init__(self, root: str, protected: ProtectedFiles) -> None:
        self._root = root
        self._protected = protected
        self.files: list[ModelFile] = []
        self.missing: set[str] = set()
        self.problems: set[str] = set()
        self._skipped: list[SkippedFile] = []
        self._indexed: set[str] = set()
        self._gone: set[str] = set()
        self._unfinished: list[str] = []
        self._indexes: dict[str, WeightIndex | ReadFailure] = {}

    def result(self) -> ModelFiles:
        folder_problems = tuple(sorted(self.problems))
        index_texts = [
            text for path, index in self._indexes.items() for text in index_problems(path, index)
        ]
        return ModelFiles(
            self._root,
            tuple(sorted(self.files, key=lambda file: _path_bytes(file.path))),
            tuple(sorted(self.missing, key=_path_bytes)),
            tuple(sorted(self._skipped, key=lambda skipped: _path_bytes(skipped.path))),
            (*folder_problems, *index_texts),
            tuple(sorted(self._indexed, key=_path_bytes)),
            StoreEvidence(
                gone=frozenset(self._gone),
                unfinished=tuple(self._unfinished),
                reasons=folder_problems,
            ),
            self._indexes,
        )

    def add_shard_set(self, shards: ShardSet) -> None:
        """Add the files of a shard set in the root, and record those that are missing."""
        if shards.count > MAX_ENTRIES:
            raise self._too_many_files()
        # The count begins at 0 or at 1.
        for number in range(shards.count + 1):
            self._add_file(shards.file_name(number))
        self._gone.clear()
        self.missing.clear()
        self.add_missing_shards()

    def add_graph(self, name: str, unfinished: Sequence[str]) -> None:
        """Add an ONNX model in the root with the files of its external data."""
        self._unfinished += unfinished
        self._add_file(name)
        self.add_indexes()
        external, self.missing = self.missing, set()
        for each in external:
            self._add_file(each)
        self._gone.clear()

    def add_folder(self) -> None:
        """Add every file in the root and below it."""
        folders = [""]
        entries = 0
        while folders:
            folder = folders.pop()
            for entry in self._list_entries(folder):
                entries += 1
                if entries > MAX_ENTRIES:
                    raise BadLayoutError(
                        self._root, f"it contains more than {MAX_ENTRIES:,} files and folders"
                    )
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name.startswith(".") or is_system_file(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(name)
                elif is_partial_download(entry.name):
                    self._skip(name, "an unfinished download")
                    self._unfinished.append(name)
                else:
                    self._add_file(name)

    def add_local_downloads(self) -> None:
        """Add the unfinished downloads of huggingface_hub to the root."""
        start = len(self._root) + len(DOWNLOADS) + 2
        paths = [entry.path[start:] for entry in list_downloads(self._root)]
        self._unfinished += unfinished_downloads(paths)

    def add_missing_shards(self) -> None:
        """Record the shards that do not exist although others of their sets do."""
        existing = {file.path for file in self.files}
        for (folder, shards), numbers in shard_numbers(existing | self._gone).items():
            if len(self.files) + len(shards.numbers(numbers)) - len(numbers) > MAX_ENTRIES:
                raise self._too_many_files()
            for name in shards.file_names(numbers):
                if folder + name not in existing:
                    self.missing.add(folder + name)
                    self._check_limit()

    def add_indexes(self) -> None:
        """Record the files that indexes list, and those that are missing."""
        existing = {file.path for file in self.files}
        self._indexes = read_indexes(self._root, sorted(existing), self._protected)
        for paths in indexed_paths(existing, self._indexes).values():
            self._indexed.update(paths)
            self.missing.update(path for path in paths if path not in existing)
            self._check_limit()

    def _check_limit(self) -> None:
        if len(self.files) + len(self.missing) > MAX_ENTRIES:
            raise self._too_many_files()

    def _too_many_files(self) -> BadLayoutError:
        return BadLayoutError(
            self._root, f"more than {MAX_ENTRIES:,} files of the model exist or are missing"
        )

    def _list_entries(self, folder: str) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(_join_path(self._root, folder)) as entries:
                yield from entries
        except OSError as error:
            if not folder:
                raise
            self._skip(folder, errno_name(error))
            self.problems.add(f"the folder {folder!r} cannot be read: {errno_name(error)}")

    def _add_file(self, name: str) -> None:
        try:
            status = stat_path(_join_path(self._root, name))
        except OSError as error:
            # The entry may be a link into a cache whose file another program has deleted.
            if error.errno == errno.ENOENT:
                self._gone.add(name)
                self.missing.add(name)
            else:
                self._skip(name, errno_name(error))
                self.problems.add(f"{name!r} cannot be accessed: {errno_name(error)}")
            return
        if file_identity(status) in self._protected:
            self._skip(name, "the catalog's own database")
        elif (kind := non_regular_kind(status)) is not None:
            self._skip(name, kind if kind != "a directory" else "a link to a directory")
        else:
            self.files.append(_model_file(name, status, file_role(name)))

    def _skip(self, name: str, reason: str) -> None:
        self._skipped.append(SkippedFile(name, reason))


def _model_file(name: str, status: os.stat_result, role: Role) -> ModelFile:
    return ModelFile(
        name,
        status.st_size,
        role,
        file_identity(status),
        Fingerprint.from_stat(status),
        disk_bytes(status),
    )


def _join_path(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def _path_bytes(path: str) -> bytes:
    """Return the bytes of a path on disk, which define the sort order."""
    return path.encode("utf-8", "surrogateescape")

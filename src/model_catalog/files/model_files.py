"""Which files are one model, wherever they lie and whoever put them there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from model_catalog.errors import BadLayoutError, CatalogError, shown
from model_catalog.files.file_names import (
    Role,
    ShardSet,
    file_role,
    is_partial_download,
    parse_shard_name,
)
from model_catalog.files.fingerprint import Fingerprint
from model_catalog.files.model_config import read_index
from model_catalog.files.safe_open import (
    ProtectedFiles,
    StrPath,
    errno_name,
    file_identity,
    non_regular_kind,
    require_regular_file,
    stat_path,
)

MAX_ENTRIES: Final = 10_000
"""Files and folders in a model, or of its files the missing ones and the others."""
_INDEX: Final = ".safetensors.index.json"


@dataclass(frozen=True)
class ModelFile:
    """A file of a model: its path inside the model, with `/`, and its size, links followed."""

    path: str
    size_bytes: int
    role: Role
    identity: tuple[int, int] | None = field(default=None, compare=False, repr=False)
    """The (st_dev, st_ino) of its bytes: two names of one file are of one."""
    fingerprint: Fingerprint | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class SkippedFile:
    """What lies in a model's folder and was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class ModelFiles:
    """
    The files of one model, below `root`; each list in the order of its paths' bytes.

    `missing` are those that others of the model name and that are not there; `problems` say what
    else keeps it from being whole. `indexed` are the weights that an index names.
    """

    root: str
    files: tuple[ModelFile, ...]
    missing: tuple[str, ...] = ()
    skipped: tuple[SkippedFile, ...] = ()
    problems: tuple[str, ...] = ()
    indexed: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Of all files, each once, by however many names it is there."""
        bytes_of = {file.identity or file.path: file.size_bytes for file in self.files}
        return sum(bytes_of.values())

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing, as far as names tell; the headers are not read."""
        return not self.missing and not self.problems


def find_model_files(path: StrPath, *, protected: ProtectedFiles = ()) -> ModelFiles:
    """
    The files of a model: the one that is named, its whole set if it is a shard, or a folder's.

    Of a folder hidden files and unfinished downloads are left out, links to folders are not
    followed, and what is no regular file is skipped with the reason. Raises BadLayoutError where
    more than MAX_ENTRIES files are there or missing, NotAFileError for a FIFO or a device,
    ProtectedFileError, and OSError as the system gave it.
    """
    text = os.fspath(path)
    if non_regular_kind(stat_path(path)) == "a directory":
        return _find_in_folder(text, protected)
    found = require_regular_file(path, protected)
    root, name = os.path.split(text)
    shard = parse_shard_name(name)
    if shard is not None:
        walk = _FolderWalk(root or ".", protected)
        walk.take_set(shard[1])
        return walk.result()
    # A blob of a cache has no name that tells, and is what was asked for.
    role = file_role(name) if file_role(name) != "other" else "weights"
    return ModelFiles(root or ".", (_model_file(name, found, role),))


def _find_in_folder(root: str, protected: ProtectedFiles) -> ModelFiles:
    walk = _FolderWalk(root, protected)
    walk.look_through()
    there = {file.path for file in walk.files}
    for folder, shards in {
        (folder, shard[1])
        for folder, _, name in (path.rpartition("/") for path in there | walk.missing)
        if (shard := parse_shard_name(name)) is not None
    }:
        walk.expect(folder, shards.file_names(), there)
    for path in there:
        if path.endswith(_INDEX):
            walk.follow_index(path, there)
    return walk.result()


class _FolderWalk:
    """What is found below a folder, as it is found."""

    def __init__(self, root: str, protected: ProtectedFiles) -> None:
        self._root = root
        self._protected = protected
        self.files: list[ModelFile] = []
        self.missing: set[str] = set()
        self.problems: set[str] = set()
        self._skipped: list[SkippedFile] = []
        self._indexed: set[str] = set()

    def result(self) -> ModelFiles:
        return ModelFiles(
            self._root,
            tuple(sorted(self.files, key=lambda file: _path_bytes(file.path))),
            tuple(sorted(self.missing, key=_path_bytes)),
            tuple(sorted(self._skipped, key=lambda skipped: _path_bytes(skipped.path))),
            tuple(sorted(self.problems)),
            tuple(sorted(self._indexed, key=_path_bytes)),
        )

    def take_set(self, shards: ShardSet) -> None:
        """Look at each of a set's files beside one another in the root."""
        for name in shards.file_names():
            self._take(name)
            self._require_few()
        self.expect("", shards.file_names(), {file.path for file in self.files})

    def look_through(self) -> None:
        """Look at each file in the root and below it."""
        folders = [""]
        entries = 0
        while folders:
            folder = folders.pop()
            for entry in self._entries(folder):
                entries += 1
                if entries > MAX_ENTRIES:
                    raise BadLayoutError(self._root, f"it holds more than {MAX_ENTRIES:,} files")
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(name)
                elif is_partial_download(entry.name):
                    self._skip(name, "a download that has not ended")
                else:
                    self._take(name)

    def expect(self, folder: str, names: Iterable[str], there: set[str]) -> None:
        """Note those of a folder's files that are not there."""
        for name in names:
            if (path := _join_path(folder, name)) not in there:
                self.missing.add(path)
                self._require_few()

    def follow_index(self, path: str, there: set[str]) -> None:
        """Note what an index says of the files beside it."""
        folder = path.rpartition("/")[0]
        try:
            index = read_index(_join_path(self._root, path), protected=self._protected)
        except (CatalogError, OSError) as error:
            self.problems.add(f"the index {path!r} cannot be read: {error}")
            return
        for refused in index.refused:
            self.problems.add(f"the index {path!r} names {shown(refused)}, which is no file's name")
        self._indexed |= {_join_path(folder, plain) for plain in index.names}
        self.expect(folder, index.names, there)

    def _require_few(self) -> None:
        if len(self.files) + len(self.missing) > MAX_ENTRIES:
            raise BadLayoutError(
                self._root, f"more than {MAX_ENTRIES:,} files are there, or are named and missing"
            )

    def _entries(self, folder: str) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(_join_path(self._root, folder)) as entries:
                yield from entries
        except OSError as error:
            if not folder:
                raise
            self._skip(folder, errno_name(error))
            self.problems.add(f"the folder {folder!r} cannot be read: {errno_name(error)}")

    def _take(self, name: str) -> None:
        try:
            found = stat_path(_join_path(self._root, name))
        except OSError as error:
            # A link into a cache that somebody has tidied up leads nowhere.
            if error.errno == errno.ENOENT:
                self.missing.add(name)
            else:
                self._skip(name, errno_name(error))
                self.problems.add(f"{name!r} cannot be looked at: {errno_name(error)}")
            return
        if file_identity(found) in self._protected:
            self._skip(name, "the catalog's own database")
        elif (what := non_regular_kind(found)) is not None:
            self._skip(name, what if what != "a directory" else "a link to a directory")
        else:
            self.files.append(_model_file(name, found, file_role(name)))

    def _skip(self, name: str, reason: str) -> None:
        self._skipped.append(SkippedFile(name, reason))


def _model_file(name: str, found: os.stat_result, role: Role) -> ModelFile:
    return ModelFile(name, found.st_size, role, file_identity(found), Fingerprint.from_stat(found))


def _join_path(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def _path_bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")

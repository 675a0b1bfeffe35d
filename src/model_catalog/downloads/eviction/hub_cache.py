"""
The repositories of a Hugging Face cache: which files belong to a revision, and to no other.

The layout is that of huggingface_hub 2.4. A snapshot has a link to a blob for each file. A blob is
a file, or a link to the blobs that all repositories of a cache share.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

_REPOSITORY: Final = re.compile(r"(?:models|datasets|spaces|kernels)--[^/]+")
_SNAPSHOT_FILE: Final = re.compile(
    rf"(?P<repository>.*/{_REPOSITORY.pattern})/snapshots/(?P<commit>[^/]+)(?:/.*)?", re.DOTALL
)
_SHARED_BLOB: Final = re.compile(r"([0-9a-f]{2})/(\1[0-9a-f]{62})")
_MARKER: Final = ".huggingface-shared-blobs"
_MAX_REF_BYTES: Final = 512
_MAX_MANIFEST_BYTES: Final = 16 * 1024 * 1024
PARTS: Final = ("refs", "trees", ".no_exist", "blobs")
"""The folders of a repository beside `snapshots`."""


class SnapshotPath(NamedTuple):
    """The repository and the commit of a path in a snapshot."""

    repository: str
    commit: str

    @property
    def folder(self) -> str:
        """The path of the snapshot."""
        return f"{self.repository}/snapshots/{self.commit}"


def split_snapshot_path(path: str) -> SnapshotPath | None:
    """Return the repository and the commit of a path in a snapshot; None for another path."""
    match = _SNAPSHOT_FILE.fullmatch(path)
    return None if match is None else SnapshotPath(match["repository"], match["commit"])


def is_repository_folder(path: str) -> bool:
    """Return whether a path is that of a repository, by its name."""
    return _REPOSITORY.fullmatch(os.path.basename(path)) is not None


def link_target(path: str) -> str:
    """Return the path that a link names. Links above it are not resolved. Raises OSError."""
    return os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))


def is_blob_of(path: str, target: str) -> bool:
    """Return whether a target is the path of a blob of the repository that a path is in."""
    found = split_snapshot_path(path)
    return found is not None and os.path.dirname(target) == f"{found.repository}/blobs"


def is_shared_blob_of(blob: str, target: str) -> bool:
    """Return whether a target is one of the blobs that all repositories of a cache share."""
    store = f"{os.path.dirname(os.path.dirname(os.path.dirname(blob)))}/blobs"
    if not target.startswith(f"{store}/") or not os.path.lexists(f"{store}/{_MARKER}"):
        return False
    return _SHARED_BLOB.fullmatch(target[len(store) + 1 :]) is not None


def manifest_of(shared_blob: str) -> str:
    """Return the path of the list of the blobs that are links to a shared blob."""
    return f"{shared_blob}.refs"


def lock_of(shared_blob: str) -> str:
    """Return the path of the file that huggingface_hub locks when it links to a shared blob."""
    return f"{shared_blob}.lock"


def links_to_shared_blob(shared_blob: str) -> set[str] | None:
    """Return the blobs that are links to a shared blob; None if they are not known."""
    cache = os.path.dirname(os.path.dirname(os.path.dirname(shared_blob)))
    try:
        text = read_small_file(manifest_of(shared_blob), _MAX_MANIFEST_BYTES)
    except OSError:
        return None
    links = set()
    for line in text.splitlines():
        path = os.path.normpath(os.path.join(cache, line))
        with suppress(OSError):
            if link_target(path) == shared_blob:
                links.add(path)
    return links


@dataclass(slots=True)
class RepositoryListing:
    """The files of a repository, as they are on the disk. Raises OSError if it cannot be listed."""

    path: str
    entries: dict[str, set[str]] = field(default_factory=dict)
    """The paths of the files and links of each snapshot, by the path of the snapshot."""
    links_to: dict[str, set[str]] = field(default_factory=dict)
    """The links in snapshots to each blob."""
    refs: dict[str, set[str]] = field(default_factory=dict)
    """The paths of the refs of each commit."""

    @classmethod
    def read(cls, path: str) -> RepositoryListing:
        """List a repository."""
        found = cls(path)
        for snapshot in _list_folders(f"{path}/snapshots"):
            entries = found.entries[snapshot] = set(_list_files(snapshot))
            for entry in entries:
                if os.path.islink(entry):
                    found.links_to.setdefault(link_target(entry), set()).add(entry)
        if os.path.isdir(f"{path}/refs"):
            for ref in _list_files(f"{path}/refs"):
                with suppress(OSError):
                    commit = read_small_file(ref, _MAX_REF_BYTES).strip()
                    found.refs.setdefault(commit, set()).add(ref)
        return found

    def files_about(self, commit: str) -> list[str]:
        """Return the files that only describe a commit: refs, its tree, and its absent files."""
        absent = f"{self.path}/.no_exist/{commit}"
        paths = [*self.refs.get(commit, ()), f"{self.path}/trees/{commit}.json"]
        if os.path.isdir(absent) and not os.path.islink(absent):
            paths += _list_files(absent)
        return sorted(path for path in paths if _is_regular(path))


def read_small_file(path: str, limit: int) -> str:
    """Return the text of a regular file that is not a link. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        return os.read(descriptor, limit).decode("utf-8", "surrogateescape")
    finally:
        os.close(descriptor)


def _is_regular(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _list_folders(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def _list_files(path: str) -> Iterator[str]:
    """Yield the paths of all files and links in a folder and below it. Raises OSError."""
    folders = [path]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    yield entry.path

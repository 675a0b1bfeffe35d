"""
The repositories of a Hugging Face cache: models, which are scanned, and others, which are counted.

The layout is that of huggingface_hub 2.4. `REPO_TYPES_MAPPING` in its module `constants` has the
prefixes of the folders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Final

from model_catalog.files.safe_open import StrPath, disk_bytes, file_identity, non_regular_kind
from model_catalog.stores.link_resolution import SkippedError
from model_catalog.stores.scan_result import OtherKind, OtherRepositories
from model_catalog.stores.store_walk import (
    READ_ERRORS,
    StoreWalk,
    is_folder,
    is_link,
)

PREFIX: Final = "models--"
OTHER_PREFIXES: Final[Mapping[str, OtherKind]] = {
    "datasets--": "dataset",
    "spaces--": "space",
    "kernels--": "kernel",
}
PARTS: Final = ("blobs", "refs", "snapshots", "trees")
"""The folders of a repository that the catalog reads."""

BLOB: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
"""The name of a blob: a Git blob id or a SHA-256."""


def is_repository_name(name: str) -> bool:
    """Return whether a folder name is that of a repository of any kind."""
    return name.startswith((PREFIX, *OTHER_PREFIXES))


def split_repository(path: StrPath) -> tuple[str, str | None]:
    """
    Return the path of the cache, and the name of a repository in it if the path is that of one.

    Nothing is listed. A link is not resolved: its repository belongs to the cache with the link.
    """
    folder, name = os.path.split(os.path.abspath(path))
    if is_repository_name(name) and any(os.path.lexists(os.path.join(path, x)) for x in PARTS):
        return folder, name
    return os.fspath(path), None


def count_repository(walk: StoreWalk, entry: os.DirEntry[str]) -> None:
    """
    Add a dataset, a space or a kernel to the counts of the walk. Anything else is ignored.

    Folders that cannot be read, and links that lead out of the repository, are not counted.
    """
    kind = next(
        (kind for start, kind in OTHER_PREFIXES.items() if entry.name.startswith(start)), None
    )
    if kind is None:
        return
    size_bytes = disk_size_bytes = 0
    seen: set[tuple[int, int]] = set()
    for status in _statuses_below(walk, entry):
        # Only a file with several names can be met twice.
        if status.st_nlink > 1:
            if file_identity(status) in seen:
                continue
            seen.add(file_identity(status))
        size_bytes += status.st_size
        disk_size_bytes += disk_bytes(status)
    walk.add_other_repository(OtherRepositories(kind, 1, size_bytes, disk_size_bytes))


def resolve_repository(walk: StoreWalk, entry: os.DirEntry[str]) -> str:
    """
    Return the path by which to list a repository, which may be a link out of the store.

    Raises SkippedError with the reason, and OSError as the system reports it.
    """
    path = walk.resolve_folder(entry)
    if path != entry.path and not any(os.path.lexists(f"{path}/{name}") for name in PARTS):
        raise SkippedError("it is a link to a folder that is not a repository")
    return path


def _statuses_below(walk: StoreWalk, repository: os.DirEntry[str]) -> Iterator[os.stat_result]:
    """Yield the status of each regular file below a repository, also of blobs on another disk."""
    try:
        top = resolve_repository(walk, repository)
    except READ_ERRORS:
        return
    folders = [top]
    while folders:
        folder = folders.pop()
        for entry in walk.list_entries(folder, report=False):
            if is_folder(entry):
                folders.append(entry.path)
            elif not is_link(entry):
                yield from _status_of_file(entry)
            elif folder == top and entry.name == "blobs":
                yield from _statuses_of_linked_blobs(walk, entry)


def _statuses_of_linked_blobs(walk: StoreWalk, blobs: os.DirEntry[str]) -> Iterator[os.stat_result]:
    with suppress(*READ_ERRORS):
        path = walk.resolve_folder(blobs, is_part=True)
        for entry in walk.list_entries(path, report=False) if walk.links.is_outside(path) else ():
            if BLOB.fullmatch(entry.name):
                yield from _status_of_file(entry)


def _status_of_file(entry: os.DirEntry[str]) -> Iterator[os.stat_result]:
    with suppress(OSError):
        status = entry.stat(follow_symlinks=False)
        if non_regular_kind(status) is None:
            yield status

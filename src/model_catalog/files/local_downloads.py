"""
Find the unfinished downloads of huggingface_hub in a folder that was given to it as `local_dir`.

The layout is that of huggingface_hub 2.4.0 (`_local_folder.py`). The folder
`.cache/huggingface/download` has the folders of the repository, and for each file NAME a
`NAME.lock`, at the end a `NAME.metadata`, and during the download a partial file: the short hash of
`NAME.metadata`, the ETag, the id of the try, and `.incomplete`. Releases of 2024 wrote
`NAME.ETAG.incomplete`.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterable
from typing import Final

DOWNLOADS: Final = ".cache/huggingface/download"
MAX_ENTRIES: Final = 100_000
"""The most files and folders that are listed below `DOWNLOADS`. More are ignored."""

_INCOMPLETE: Final = re.compile(r"(?P<name>.+?)\.[^./]+(\.[0-9a-f]{8})?\.incomplete", re.DOTALL)
_METADATA: Final = ".metadata"
_LOCK: Final = ".lock"


def list_downloads(root: str) -> list[os.DirEntry[str]]:
    """
    Return the files below `DOWNLOADS` of a folder. Links are not followed.

    Empty if there are none, or if the folder cannot be read: they only add to what is known.
    """
    folder = root
    for name in DOWNLOADS.split("/"):
        folder = f"{folder}/{name}"
        if os.path.islink(folder):
            return []
    files: list[os.DirEntry[str]] = []
    folders = [folder]
    count = 0
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    count += 1
                    if count > MAX_ENTRIES:
                        return files
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        files.append(entry)
        except OSError:
            continue
    return files


def unfinished_downloads(paths: Iterable[str]) -> list[str]:
    """
    Return the paths in the repository of the files whose download was begun, sorted.

    `paths` are those of all files below `DOWNLOADS`. A file whose partial file was left by an older
    try may exist by now.
    """
    names: dict[tuple[str, str], str] = {}
    partials = []
    for path in paths:
        folder, slash, name = path.rpartition("/")
        folder += slash
        if name.endswith((_METADATA, _LOCK)):
            final = name.rpartition(".")[0]
            names[folder, _short_hash(final + _METADATA)] = final
        elif (match := _INCOMPLETE.fullmatch(name)) is not None:
            partials.append((folder, match["name"]))
    # Older releases wrote the name itself.
    found = {folder + names.get((folder, key), key) for folder, key in partials}
    return sorted(path for path in found if not _is_hash(path.rpartition("/")[2]))


def _short_hash(name: str) -> str:
    digest = hashlib.sha1(name.encode("utf-8", "surrogateescape"), usedforsecurity=False).digest()
    return base64.urlsafe_b64encode(digest).decode()


def _is_hash(name: str) -> bool:
    """Return whether a name is a short hash, of a file whose lock was removed."""
    return len(name) == len(_short_hash("")) and name.endswith("=")

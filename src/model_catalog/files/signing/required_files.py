"""List the files that a signature must cover, so that no file of the model is unsigned."""

from __future__ import annotations

import os
import stat
from typing import Final

from model_catalog.errors import BadLayoutError, BadSignatureError, NotAFileError, shown
from model_catalog.files.model_files import MAX_ENTRIES
from model_catalog.files.safe_open import (
    ProtectedFiles,
    StrPath,
    file_identity,
    non_regular_kind,
    require_regular_file,
    stat_path,
)
from model_catalog.files.signing.signature import SignedManifest

_LINK_REASON: Final = (
    "a link, which can be changed to lead to another file: allow links with follow_links"
)
_FOLDER_LINK_REASON: Final = "a link to a folder, which a signature does not cover"


def required_file_paths(
    path: StrPath,
    signed: SignedManifest,
    *,
    follow_links: bool = False,
    protected: ProtectedFiles = (),
) -> tuple[str, ...]:
    """
    Return the paths inside the model whose digests `require_matching_files` needs.

    For a folder, that is every file in it, also hidden and unfinished ones, as model-signing lists
    them. The bundle itself and the paths that the signer ignored are left out. For a single file,
    it is the name of the file. The paths are sorted by their bytes. Links are refused, as in
    model-signing. With `follow_links`, links to files are followed, for caches that store blobs.
    Raises BadSignatureError with the name of a file that a signature cannot cover, and
    BadLayoutError for more than MAX_ENTRIES files and folders. Raises ProtectedFileError, and
    OSError as the system reports it.
    """
    root = os.fspath(path)
    if not follow_links and stat.S_ISLNK(os.lstat(root).st_mode):
        raise BadSignatureError(signed.path, f"{shown(root)} is {_LINK_REASON}")
    if non_regular_kind(stat_path(root)) != "a directory":
        _require_file(root, root, signed, protected)
        return (os.path.basename(root),)
    names = []
    folders = [""]
    entry_count = 0
    while folders:
        folder = folders.pop()
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                entry_count += 1
                if entry_count > MAX_ENTRIES:
                    raise BadLayoutError(
                        root, f"it contains more than {MAX_ENTRIES:,} files and folders"
                    )
                name = f"{folder}/{entry.name}" if folder else entry.name
                if signed.is_ignored(name):
                    continue
                if entry.is_symlink():
                    _require_link_to_file(entry, name, signed, follow_links=follow_links)
                if entry.is_dir():
                    folders.append(name)
                elif name in signed.digests or file_identity(entry.stat()) != signed.identity:
                    _require_file(entry.path, name, signed, protected)
                    names.append(name)
    return tuple(sorted(names, key=os.fsencode))


def _require_link_to_file(
    entry: os.DirEntry[str], name: str, signed: SignedManifest, *, follow_links: bool
) -> None:
    if not follow_links:
        raise BadSignatureError(signed.path, f"{shown(name)} is {_LINK_REASON}")
    if entry.is_dir():
        raise BadSignatureError(signed.path, f"{shown(name)} is {_FOLDER_LINK_REASON}")


def _require_file(path: str, name: str, signed: SignedManifest, protected: ProtectedFiles) -> None:
    try:
        require_regular_file(path, protected)
    except NotAFileError as error:
        raise BadSignatureError(signed.path, f"{shown(name)} is {error.found}") from None

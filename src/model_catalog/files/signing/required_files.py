"""Which of the files at a path a signature has to be over, for nothing there to be unsigned."""

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

_LINK_REASON: Final = "a link, which can be turned to another file: have links followed on purpose"
_FOLDER_LINK_REASON: Final = "a link to a folder, over which there is no signature"


def required_file_paths(
    path: StrPath,
    signed: SignedManifest,
    *,
    follow_links: bool = False,
    protected: ProtectedFiles = (),
) -> tuple[str, ...]:
    """
    The paths inside a model whose digests `require_same` is to be given, in their bytes' order.

    That is every file of a folder, hidden and unfinished ones too, as model-signing walks it:
    without the bundle itself and what its signer left out. A path that is a file is its name.
    Links are refused, as model-signing does; with `follow_links` those to files are taken, as a
    cache of blobs has them. Raises BadSignatureError with the name of what no signature can be
    over, BadLayoutError for more than MAX_ENTRIES files and folders, ProtectedFileError, and
    OSError as the system gave it.
    """
    root = os.fspath(path)
    if not follow_links and stat.S_ISLNK(os.lstat(root).st_mode):
        raise BadSignatureError(signed.path, f"{shown(root)} is {_LINK_REASON}")
    if non_regular_kind(stat_path(root)) != "a directory":
        _require_file(root, root, signed, protected)
        return (os.path.basename(root),)
    names = []
    folders = [""]
    entries = 0
    while folders:
        folder = folders.pop()
        with os.scandir(os.path.join(root, folder)) as found:
            for entry in found:
                entries += 1
                if entries > MAX_ENTRIES:
                    raise BadLayoutError(root, f"it holds more than {MAX_ENTRIES:,} files")
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

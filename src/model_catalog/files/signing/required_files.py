"""List the files that a signature must cover, so that no file of the model is unsigned."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Final

from model_catalog.errors import BadLayoutError, BadSignatureError, NotAFileError, shown
from model_catalog.files.model_files import MAX_ENTRIES
from model_catalog.files.safe_open import (
    ProtectedFiles,
    StrPath,
    errno_name,
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
    ignored_paths: Collection[str] = (),
    protected: ProtectedFiles = (),
) -> tuple[str, ...]:
    """
    Return the paths inside the model whose digests `require_matching_files` needs.

    For a folder, that is every file in it, also hidden and unfinished ones, as model-signing lists
    them. The bundle itself and the paths that the signer ignored are left out, and so are
    `ignored_paths`: files and folders inside the model. A signed file at one of these then counts
    as missing, as in model-signing. For a single file, the result is the name of the file. The
    paths are sorted by their bytes. Links are refused, as in model-signing. With `follow_links`,
    links to files are followed, for caches that store blobs.
    Raises BadSignatureError with the name of a file that a signature cannot cover, that cannot be
    read, or whose link leads to no file. Raises BadLayoutError for more than MAX_ENTRIES files and
    folders, ProtectedFileError, and FileNotFoundError if nothing exists at the path itself.
    """
    root = os.fspath(path)
    if not follow_links and stat.S_ISLNK(os.lstat(root).st_mode):
        raise BadSignatureError(signed.path, f"{shown(root)} is {_LINK_REASON}")
    # A message cuts a long path, and with it the name.
    own_name = os.path.basename(root) or root
    with refuse_unreadable(own_name, signed):
        is_folder = non_regular_kind(stat_path(root)) == "a directory"
    if not is_folder:
        _require_file(root, own_name, signed, protected)
        return (own_name,)
    ignored = frozenset(ignored_paths)
    names = []
    folders = [""]
    entry_count = 0
    while folders:
        folder = folders.pop()
        for entry in _list_entries(root, folder, signed):
            entry_count += 1
            if entry_count > MAX_ENTRIES:
                raise BadLayoutError(
                    root, f"it contains more than {MAX_ENTRIES:,} files and folders"
                )
            name = f"{folder}/{entry.name}" if folder else entry.name
            # A folder that is ignored is not listed.
            if signed.is_ignored(name) or name in ignored:
                continue
            if entry.is_symlink():
                _require_link_to_file(entry, name, signed, follow_links=follow_links)
            with refuse_unreadable(name, signed):
                is_folder = entry.is_dir()
                is_bundle = not is_folder and file_identity(entry.stat()) == signed.identity
            if is_folder:
                folders.append(name)
            elif name in signed.digests or not is_bundle:
                _require_file(entry.path, name, signed, protected)
                names.append(name)
    return tuple(sorted(names, key=os.fsencode))


def _list_entries(root: str, folder: str, signed: SignedManifest) -> list[os.DirEntry[str]]:
    with (
        refuse_unreadable(folder or root, signed),
        os.scandir(os.path.join(root, folder)) as entries,
    ):
        # One more than allowed is enough to refuse the model.
        return list(islice(entries, MAX_ENTRIES + 1))


@contextmanager
def refuse_unreadable(name: str, signed: SignedManifest) -> Iterator[None]:
    """Raise BadSignatureError with the name of a file for an OSError in the block."""
    try:
        yield
    except FileNotFoundError as error:
        reason = f"{shown(name)} does not exist, or its link leads to no file"
        raise BadSignatureError(signed.path, reason) from error
    except OSError as error:
        reason = f"{shown(name)} cannot be read: {errno_name(error)}"
        raise BadSignatureError(signed.path, reason) from error


def _require_link_to_file(
    entry: os.DirEntry[str], name: str, signed: SignedManifest, *, follow_links: bool
) -> None:
    if not follow_links:
        raise BadSignatureError(signed.path, f"{shown(name)} is {_LINK_REASON}")
    with refuse_unreadable(name, signed):
        leads_to_folder = entry.is_dir()
    if leads_to_folder:
        raise BadSignatureError(signed.path, f"{shown(name)} is {_FOLDER_LINK_REASON}")


def _require_file(path: str, name: str, signed: SignedManifest, protected: ProtectedFiles) -> None:
    try:
        with refuse_unreadable(name, signed):
            require_regular_file(path, protected)
    except NotAFileError as error:
        raise BadSignatureError(signed.path, f"{shown(name)} is {error.found}") from None

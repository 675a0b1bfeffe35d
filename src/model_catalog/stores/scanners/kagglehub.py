"""
Scan the models in the cache of kagglehub, which marks what it has downloaded completely.

`models/OWNER/MODEL/FRAMEWORK/VARIATION/VERSION` has the files of a version, and `VERSION.complete`
beside it is an empty file that says that the whole version is there. For a file that was asked for
alone, the mark is `.complete/VERSION/PATH.complete`. A download has the final name of its file, and
`VERSION.archive` is the archive of a version with many files. Datasets, notebooks and competitions
are left out.

The layout is that of kagglehub 1.0.3: `src/kagglehub/cache.py`, `http_resolver.py` and
`clients.py`. The cache states no digest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from model_catalog.files.completeness.judge import shorten_list
from model_catalog.files.completeness.needed_files import is_needed
from model_catalog.files.safe_open import ProtectedFiles, StrPath
from model_catalog.stores.file_grouping import add_groups, group_folder
from model_catalog.stores.plain_folders.companions import FileGroup
from model_catalog.stores.scan_result import Scan
from model_catalog.stores.store_walk import (
    MAX_FILES,
    READ_ERRORS,
    StoreWalk,
    error_reason,
    is_folder,
    is_folder_path,
    non_folder_reason,
)

PROVIDER: Final = "kaggle"

_MODELS: Final = "models"
_COMPLETE: Final = ".complete"
_ARCHIVE: Final = ".archive"
_VERSION: Final = re.compile(r"[0-9]{1,20}")
_MARK: Final = re.compile(r"[0-9]{1,20}\.complete")
_DEPTH: Final = 4
"""The folders of a version are below OWNER, MODEL, FRAMEWORK and VARIATION."""


def scan(
    root: StrPath,
    *,
    protected: ProtectedFiles = (),
    stop: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
    follow_links: bool = True,
) -> Scan:
    """
    Scan a cache, as `Scanner` describes. `root` has the folder `models`.

    Reference and version are those of the handle `OWNER/MODEL/FRAMEWORK/VARIATION/VERSION`. If a
    version has several GGUF quantizations, each is a model with the version `VERSION/FILE`.
    """
    walk = StoreWalk.start("kagglehub", root, protected, stop, progress, follow_links=follow_links)
    for entry in walk.list_entries(walk.root):
        if entry.name == _MODELS:
            try:
                models = walk.resolve_folder(entry, is_part=True)
            except READ_ERRORS as error:
                walk.add_problem(entry.path, error_reason(error))
            else:
                _scan_folders(walk, models, ())
    return walk.result()


def is_variation_folder(parts: Sequence[str], names: Collection[str]) -> bool:
    """Return whether a folder is that of a variation, by its path in a cache and its names."""
    is_variation = len(parts) == _DEPTH + 1 and parts[0] == _MODELS
    return is_variation and any(map(_MARK.fullmatch, names))


def _scan_folders(walk: StoreWalk, folder: str, parts: tuple[str, ...]) -> None:
    """Add the models below a folder, whose path in the cache is `parts`."""
    if len(parts) == _DEPTH:
        _scan_variation(walk, folder, "/".join(parts))
        return
    for entry in walk.list_folders(folder):
        _scan_folders(walk, entry.path, (*parts, entry.name))


def _scan_variation(walk: StoreWalk, folder: str, reference: str) -> None:
    entries = walk.list_entries(folder)
    names = {entry.name for entry in entries}
    for entry in entries:
        if entry.name.endswith(_ARCHIVE):
            walk.add_leftover(entry, "partial")
        if not _VERSION.fullmatch(entry.name):
            continue
        if (reason := non_folder_reason(entry)) is not None:
            walk.add_problem(entry.path, reason)
            continue
        groups = group_folder(walk, entry.path)
        if f"{entry.name}{_COMPLETE}" not in names:
            marks = (
                _list_marks(walk, f"{folder}/{_COMPLETE}/{entry.name}")
                if _COMPLETE in names
                else ()
            )
            groups = _with_marks(entry.path, groups, frozenset(marks))
        add_groups(walk, (PROVIDER, reference, entry.name), entry.path, groups)


def _list_marks(walk: StoreWalk, root: str) -> Iterator[str]:
    """Yield the paths of the files that were asked for alone and are complete."""
    is_there = is_folder_path(os.path.dirname(root)) and is_folder_path(root)
    folders = [root] if is_there else []
    count = 0
    while folders:
        for entry in walk.list_entries(folders.pop()):
            count += 1
            if count > MAX_FILES:
                walk.add_problem(root, f"it contains more than {MAX_FILES:,} files")
                return
            if is_folder(entry):
                folders.append(entry.path)
            elif entry.name.endswith(_COMPLETE):
                yield entry.path[len(root) + 1 :].removesuffix(_COMPLETE)


def _with_marks(
    root: str, groups: Iterable[FileGroup], marks: Collection[str]
) -> Iterator[FileGroup]:
    """Add what the marks tell of a version that is not marked as a whole."""
    for group in groups:
        prefix = f"{group.folder}/"[len(root) + 1 :]
        paths = [prefix + file.path for file in group.files]
        unmarked = sorted(path for path in paths if path not in marks and is_needed(path))
        if not any(path in marks for path in paths):
            reasons = ["the download of this version is not marked as complete"]
        elif unmarked:
            reasons = [f"not marked as complete: {shorten_list(unmarked)}"]
        else:
            reasons = []
        yield replace(group, evidence=replace(group.evidence, reasons=reasons))

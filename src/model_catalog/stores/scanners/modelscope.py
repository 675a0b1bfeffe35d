"""
Scan the cache of ModelScope, in each of its layouts.

Releases since 1.38 keep a revision in `models/OWNER--NAME/snapshots/REVISION`, and an unfinished
download is `FILE.incomplete`. Older releases keep one revision of a model, in `models/OWNER/NAME`
or, before that, in `OWNER/NAME`. There a dot in the name is `___`, a link has the name with dots,
and `.mv` names the revision. An unfinished download has its final name in `._____temp/OWNER/NAME`.
Without MODELSCOPE_CACHE, the older layouts are in the subfolder `hub` of the cache.

The layouts are those of modelscope_hub 0.5.1 (`_download.py`, `_cache_manager.py`), and of
modelscope 1.9 to 1.37 (`modelscope/hub/snapshot_download.py`, `file_download.py` and
`utils/caching.py`). The files `.msc` and `.mdl` are pickles and are not read. No file of the cache
states a digest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Final

from model_catalog.files.file_names import finished_name
from model_catalog.files.safe_open import ProtectedFiles, StrPath
from model_catalog.stores.file_grouping import add_groups, group_folder
from model_catalog.stores.link_resolution import SkippedError
from model_catalog.stores.scan_result import Scan
from model_catalog.stores.store_walk import (
    MAX_FILES,
    READ_ERRORS,
    StoreWalk,
    error_reason,
    is_folder,
    is_folder_path,
    is_link,
    is_valid_name,
)

PROVIDER: Final = "modelscope"
MAX_VERSION_BYTES: Final = 4096

_MODELS: Final = "models"
_HUB: Final = "hub"
_TEMPORARY: Final = "._____temp"
_MARKS: Final = (".mdl", ".msc")
_VERSION_FILE: Final = ".mv"
_DEFAULT_REVISION: Final = "master"
_VERSION_TEXT: Final = re.compile(
    r"Revision:([^,\s]{1,200})(,CreatedAt:.*)?|([^,:\s]{1,200})", re.DOTALL
)
_OTHER_FOLDERS: Final = (_HUB, _MODELS, "datasets", "mcps", "skills", "studios")
_SEPARATOR: Final = "--"
_DOT: Final = "___"
_DEPTH: Final = 2
"""In the old layout a model is OWNER/NAME."""


def scan(
    root: StrPath,
    *,
    protected: ProtectedFiles = (),
    stop: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
    follow_links: bool = True,
) -> Scan:
    """
    Scan a cache, as `Scanner` describes.

    The reference is `OWNER/NAME`, and the version the revision. If a revision has several GGUF
    quantizations, each is a model with the version `REVISION/FILE`.
    """
    walk = StoreWalk.start("modelscope", root, protected, stop, progress, follow_links=follow_links)
    entries = walk.list_entries(walk.root)
    _scan_base(walk, walk.root, entries)
    for entry in entries:
        if entry.name == _HUB:
            try:
                hub = walk.resolve_folder(entry, is_part=True)
                _scan_base(walk, hub, walk.list_entries(hub))
            except READ_ERRORS as error:
                walk.add_problem(entry.path, error_reason(error))
    return walk.result()


def is_cache_folder(parts: Sequence[str], names: Collection[str]) -> bool:
    """
    Return whether a folder is that of a model, by its path in a cache and the names in it.

    OWNER/NAME at the top is not enough: a download with `cache_dir` can be in any folder.
    """
    below = tuple(parts[1:] if parts[:1] == (_HUB,) else parts)
    is_below_hub = below != tuple(parts)
    if below[:1] == (_MODELS,):
        below = below[1:]
        is_new = len(below) == 1 and _SEPARATOR in below[0] and "snapshots" in names
        return is_new or _is_old_model(below, names)
    return is_below_hub and _is_old_model(below, names)


def _is_old_model(parts: Sequence[str], names: Collection[str]) -> bool:
    return len(parts) == _DEPTH and any(mark in names for mark in _MARKS)


def _scan_base(walk: StoreWalk, base: str, entries: Sequence[os.DirEntry[str]]) -> None:
    """Add the models of a cache, or of its subfolder for older releases."""
    temporary = _list_temporary(walk, base)
    for entry in entries:
        if entry.name == _MODELS:
            try:
                models = walk.resolve_folder(entry, is_part=True)
            except READ_ERRORS as error:
                walk.add_problem(entry.path, error_reason(error))
                continue
            _scan_models(walk, models)
        elif (
            entry.name not in _OTHER_FOLDERS and not entry.name.startswith(".") and is_folder(entry)
        ):
            repositories = walk.list_entries(entry.path)
            for each in repositories:
                if is_folder(each) and any(
                    os.path.lexists(f"{each.path}/{mark}") for mark in _MARKS
                ):
                    _scan_old(walk, entry.name, each, temporary)


def _scan_models(walk: StoreWalk, models: str) -> None:
    """Add the models in the folder `models`, which both layouts use."""
    temporary = _list_temporary(walk, models)
    for entry in walk.list_folders(models):
        repositories = walk.list_entries(entry.path)
        if _SEPARATOR in entry.name and any(each.name == "snapshots" for each in repositories):
            _scan_new(walk, entry.name, repositories)
            continue
        names = {each.name for each in repositories}
        for each in repositories:
            if is_folder(each):
                _scan_old(walk, entry.name, each, temporary)
            elif is_link(each) and each.name.replace(".", _DOT) not in names:
                walk.add_problem(each.path, "it is a link, and links to folders are not followed")


def _scan_new(walk: StoreWalk, name: str, entries: Sequence[os.DirEntry[str]]) -> None:
    owner, _, repository = name.partition(_SEPARATOR)
    for entry in entries:
        if entry.name != "snapshots":
            continue
        try:
            snapshots = walk.resolve_folder(entry, is_part=True)
        except READ_ERRORS as error:
            walk.add_problem(entry.path, error_reason(error))
            continue
        for revision in walk.list_folders(snapshots):
            key = (PROVIDER, f"{owner}/{repository}", revision.name)
            add_groups(walk, key, revision.path, group_folder(walk, revision.path))


def _scan_old(
    walk: StoreWalk,
    owner: str,
    entry: os.DirEntry[str],
    temporary: dict[str, set[str]],
) -> None:
    reference = f"{owner}/{entry.name.replace(_DOT, '.')}"
    try:
        revision = _read_revision(walk, f"{entry.path}/{_VERSION_FILE}")
    except READ_ERRORS as error:
        walk.add_problem(entry.path, error_reason(error))
        return
    groups = (
        replace(group, evidence=replace(group.evidence, unfinished=unfinished))
        for group in group_folder(walk, entry.path)
        for unfinished in [[*group.evidence.unfinished, *temporary.get(reference, ())]]
    )
    add_groups(walk, (PROVIDER, reference, revision), entry.path, groups)


def _read_revision(walk: StoreWalk, path: str) -> str:
    """Return the revision of a model in an older layout. Raises READ_ERRORS."""
    try:
        target = walk.follow_links(path)
    except FileNotFoundError:
        return _DEFAULT_REVISION
    with walk.open_file(target, MAX_VERSION_BYTES) as file:
        text = file.read_at(0, MAX_VERSION_BYTES).decode().strip()
    match = _VERSION_TEXT.fullmatch(text)
    if match is None or not is_valid_name(match[1] or match[3]):
        raise SkippedError(f"its file {_VERSION_FILE!r} does not name a revision")
    return match[1] or match[3]


def _list_temporary(walk: StoreWalk, folder: str) -> dict[str, set[str]]:
    """Return the unfinished downloads in a folder of older releases, by model, with final names."""
    root = f"{folder}/{_TEMPORARY}"
    downloads: dict[str, set[str]] = {}
    folders = [root] if is_folder_path(root) else []
    count = 0
    while folders:
        for entry in walk.list_entries(folders.pop()):
            count += 1
            if count > MAX_FILES:
                walk.add_problem(root, f"it contains more than {MAX_FILES:,} files")
                return downloads
            if is_folder(entry):
                folders.append(entry.path)
                continue
            walk.add_leftover(entry, "partial")
            owner, _, rest = entry.path[len(root) + 1 :].partition("/")
            name, _, path = rest.partition("/")
            if path and is_valid_name(path):
                head, slash, file_name = path.rpartition("/")
                final = head + slash + (finished_name(file_name) or file_name)
                downloads.setdefault(f"{owner}/{name}", set()).add(final)
    return downloads

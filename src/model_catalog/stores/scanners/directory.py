"""Scan a plain folder of model files, or the folder of a program that keeps only files there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from model_catalog.files.completeness.judge import format_of_files
from model_catalog.files.safe_open import ProtectedFiles, StrPath
from model_catalog.stores.file_grouping import GroupingRules, group_files
from model_catalog.stores.plain_folders.companions import FileGroup
from model_catalog.stores.plain_folders.program_folders import program_reference, program_role
from model_catalog.stores.scan_result import Claims, FoundModel, Scan, newest_mtime
from model_catalog.stores.store_walk import StoreWalk

PROVIDER: Final = "local"

_RULES: Final = GroupingRules(any_format=True, share_projectors=False)


def scan(
    root: StrPath,
    *,
    protected: ProtectedFiles = (),
    stop: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
    follow_links: bool = True,
) -> Scan:
    """
    Scan a folder and everything below it, as `Scanner` describes and `group_files` divides it.

    The reference of a model is its path below the root. If the root itself is the model, the
    reference is the name of the root. In the folders of programs that `program_reference` knows, it
    is the name that the program has for the model, unless two models have the same. The version is
    empty.
    """
    walk = StoreWalk.start("directory", root, protected, stop, progress, follow_links=follow_links)
    named: list[tuple[str, str, FileGroup]] = []
    paths = set()
    for group in group_files(walk, walk.root, _RULES):
        below = os.path.relpath(group.first, walk.root)
        below = below if below != "." else os.path.basename(walk.root)
        is_folder = group.first == group.folder
        name = program_reference(group.first, below, is_folder=is_folder)
        paths.add(below)
        if name == below:
            _add_model(walk, group, below)
        else:
            named.append((name, below, group))
    counts = Counter(name for name, _, _ in named)
    for name, below, group in named:
        _add_model(walk, group, name if counts[name] == 1 and name not in paths else below)
    return walk.result()


def _add_model(walk: StoreWalk, group: FileGroup, reference: str) -> None:
    files = tuple(
        replace(file, role=program_role(f"{group.folder}/{file.path}", file.role))
        for file in group.files
    )
    walk.add_model(
        FoundModel(
            store="directory",
            provider=PROVIDER,
            reference=reference,
            local_path=group.local_path,
            folder=group.folder,
            files=files,
            downloaded_at=newest_mtime(files),
            claims=Claims(format=format_of_files(files)),
            evidence=group.evidence,
        ),
        group.local_path,
    )

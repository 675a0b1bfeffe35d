"""Scan a plain folder of model files that no other program manages."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from model_catalog.files.completeness.judge import format_of_files
from model_catalog.files.safe_open import ProtectedFiles, StrPath
from model_catalog.stores.file_grouping import GroupingRules, group_files
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
    reference is the name of the root. The version is empty.
    """
    walk = StoreWalk.start("directory", root, protected, stop, progress, follow_links=follow_links)
    for group in group_files(walk, walk.root, _RULES):
        below = os.path.relpath(group.local_path, walk.root)
        walk.add_model(
            FoundModel(
                store="directory",
                provider=PROVIDER,
                reference=below if below != "." else os.path.basename(walk.root),
                local_path=group.local_path,
                folder=group.folder,
                files=group.files,
                downloaded_at=newest_mtime(group.files),
                claims=Claims(format=format_of_files(group.files)),
                evidence=group.evidence,
            ),
            group.local_path,
        )
    return walk.result()

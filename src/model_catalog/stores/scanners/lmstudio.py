"""
Scan the models of LM Studio, which has a folder for each publisher and each repository.

`PUBLISHER/REPOSITORY` contains `FILE.gguf` with its shards and projectors, or the files of an MLX
model. LM Studio does not show files outside of a repository folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from model_catalog.files.completeness.judge import format_of_files
from model_catalog.files.safe_open import ProtectedFiles, StrPath
from model_catalog.stores.file_grouping import GroupingRules, group_files
from model_catalog.stores.scan_result import Claims, FoundModel, Scan, newest_mtime
from model_catalog.stores.store_walk import READ_ERRORS, StoreWalk, error_reason

PROVIDER: Final = "lmstudio"

_RULES: Final = GroupingRules(share_projectors=True)


def scan(
    root: StrPath,
    *,
    protected: ProtectedFiles = (),
    stop: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
    follow_links: bool = True,
) -> Scan:
    """
    Scan LM Studio's models folder, as `Scanner` describes and `group_files` divides it.

    The reference is `publisher/repository`. The version is the path of the model's file in the
    repository; for a shard set, it is the first shard. If the repository itself is the model, the
    version is empty.
    """
    walk = StoreWalk.start("lmstudio", root, protected, stop, progress, follow_links=follow_links)
    for publisher in walk.list_folders(walk.root):
        for repository in walk.list_entries(publisher.path):
            if not repository.name.startswith("."):
                _scan_repository(walk, publisher.name, repository)
    return walk.result()


def _scan_repository(walk: StoreWalk, publisher: str, repository: os.DirEntry[str]) -> None:
    """
    Add the models of a repository to the walk. Its folder may be a link out of the store.

    In a folder behind a link, subfolders are listed only if a config.json says that it is a model.
    """
    try:
        path = walk.resolve_folder(repository)
    except READ_ERRORS as error:
        walk.add_problem(repository.path, error_reason(error))
        return
    is_linked = path != repository.path
    subfolders = not is_linked or os.path.lexists(f"{path}/config.json")
    found_before = walk.model_count
    for group in group_files(walk, path, replace(_RULES, subfolders=subfolders)):
        walk.add_model(
            FoundModel(
                store="lmstudio",
                provider=PROVIDER,
                reference=f"{publisher}/{repository.name}",
                version=group.first[len(path) + 1 :],
                local_path=group.local_path,
                folder=group.folder,
                files=group.files,
                downloaded_at=newest_mtime(group.files),
                claims=Claims(format=format_of_files(group.files)),
                evidence=group.evidence,
            ),
            group.local_path,
        )
    if is_linked and walk.model_count == found_before:
        walk.add_problem(repository.path, "it is a link to a folder that is not a model")

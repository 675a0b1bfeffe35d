"""
Scan the models of LM Studio, which has a folder for each publisher and each repository.

`PUBLISHER/REPOSITORY` contains `FILE.gguf` with its shards and projectors, or the files of an MLX
model. LM Studio does not show files outside of a repository folder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from model_catalog.files.completeness.judge import format_of_files
from model_catalog.files.safe_open import ProtectedFiles, StrPath
from model_catalog.stores.file_grouping import GroupingRules, group_files
from model_catalog.stores.scan_result import Claims, FoundModel, Scan, newest_mtime
from model_catalog.stores.store_walk import StoreWalk

PROVIDER: Final = "lmstudio"

_RULES: Final = GroupingRules(share_projectors=True)


def scan(
    root: StrPath,
    *,
    protected: ProtectedFiles = (),
    stop: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Scan:
    """
    Scan LM Studio's models folder, as `Scanner` describes and `group_files` divides it.

    The reference is `publisher/repository`. The version is the path of the model's file in the
    repository; for a shard set, it is the first shard. If the repository itself is the model, the
    version is empty.
    """
    walk = StoreWalk.start("lmstudio", root, protected, stop, progress)
    for publisher in walk.list_folders(walk.root):
        for repository in walk.list_folders(publisher.path):
            for group in group_files(walk, repository.path, _RULES):
                walk.add_model(
                    FoundModel(
                        store="lmstudio",
                        provider=PROVIDER,
                        reference=f"{publisher.name}/{repository.name}",
                        version=group.local_path[len(repository.path) + 1 :],
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

"""
The models of LM Studio, in a folder for each publisher and repository.

In `PUBLISHER/REPOSITORY` lie `FILE.gguf` with its shards and projectors, or the files of an MLX
model. What lies higher up LM Studio itself does not show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from model_catalog.files.safe_open import Forbidden, Pathlike
from model_catalog.stores.completeness import format_of, newest_mtime
from model_catalog.stores.file_grouping import group_files
from model_catalog.stores.scan_result import Claims, FoundModel, Scan
from model_catalog.stores.store_access import StoreWalk

PROVIDER: Final = "lmstudio"


def scan(
    root: Pathlike,
    *,
    forbidden: Forbidden = (),
    stop: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Scan:
    """
    The models in the folder, as `Scanner` says and `groups` divides them.

    A reference is `publisher/repository`. The version is the path in the repository of the file
    that is the model, of a set of shards the first, and "" where the repository is.
    """
    visit = StoreWalk.begin("lmstudio", root, forbidden, stop, progress)
    for publisher in visit.folders(visit.root):
        for repository in visit.folders(publisher.path):
            for group in group_files(visit, repository.path, is_one_kind=True):
                visit.add(
                    FoundModel(
                        store="lmstudio",
                        provider=PROVIDER,
                        reference=f"{publisher.name}/{repository.name}",
                        version=group.local_path[len(repository.path) + 1 :],
                        local_path=group.local_path,
                        folder=group.folder,
                        files=group.files,
                        downloaded_at=newest_mtime(group.files),
                        claims=Claims(format=format_of(group.files)),
                        reasons=group.reasons,
                    ),
                    group.local_path,
                )
    return visit.result()

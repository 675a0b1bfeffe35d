"""Read what huggingface_hub keeps in a folder that was given to it as `local_dir`."""

from __future__ import annotations

import os
from typing import Final

from model_catalog.files.completeness.evidence import StoreEvidence
from model_catalog.files.local_downloads import DOWNLOADS, list_downloads, unfinished_downloads
from model_catalog.stores.hub_tree import read_tree
from model_catalog.stores.store_walk import StoreWalk, is_folder, is_valid_name

CACHE_FOLDER: Final = ".cache"
_TREES: Final = f"{CACHE_FOLDER}/huggingface/trees"


class LocalDirs:
    """The folders of a walk that are a `local_dir`, and what is known of downloads to them."""

    def __init__(self, walk: StoreWalk) -> None:
        self._walk = walk
        self._evidence: dict[str, StoreEvidence] = {}

    def add(self, root: str) -> None:
        """Read the folder `.cache/huggingface` in a folder, if there is one."""
        start = len(root) + len(DOWNLOADS) + 2
        entries = list_downloads(root)
        if not entries:
            return
        for entry in entries:
            if entry.name.endswith(".incomplete"):
                self._walk.add_leftover(entry, "partial")
        paths = [entry.path[start:] for entry in entries]
        unfinished = [path for path in unfinished_downloads(paths) if is_valid_name(path)]
        # Sizes are not compared: a user may edit the files, which are not links to a cache.
        listed = dict.fromkeys(self._newest_tree(root))
        self._evidence[root] = StoreEvidence(unfinished=unfinished, listed=listed)

    def find(self, folder: str) -> StoreEvidence:
        """Return the evidence about a folder, with paths relative to it."""
        root = folder
        while self._evidence and len(root) >= len(self._walk.root):
            if root in self._evidence:
                return self._evidence[root].below(f"{folder}/"[len(root) + 1 :])
            root, slash, _ = root.rpartition("/")
            if not slash:
                break
        return StoreEvidence()

    def _newest_tree(self, root: str) -> list[str]:
        """Return the files of the revision that was downloaded last; empty if it is not known."""
        folder = f"{root}/{_TREES}"
        if not os.path.isdir(folder) or os.path.islink(folder):
            return []
        trees = [
            (_mtime_ns(entry), entry.name, entry)
            for entry in self._walk.list_entries(folder)
            if entry.name.endswith(".json") and not is_folder(entry)
        ]
        if not trees:
            return []
        return [path for path in read_tree(self._walk, max(trees)[2]) if is_valid_name(path)]


def _mtime_ns(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_mtime_ns
    except OSError:
        return 0

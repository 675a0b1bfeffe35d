"""The kinds of stores, the scanner of each, and detection of the kind of a folder."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice
from typing import Final

from model_catalog.files.safe_open import StrPath
from model_catalog.stores.scan_result import Scanner, StoreName
from model_catalog.stores.scanners import (
    directory,
    docker,
    huggingface,
    kagglehub,
    llamacpp,
    lmstudio,
    modelscope,
    ollama,
    ramalama,
)
from model_catalog.stores.store_walk import is_folder

SCANNERS: Final[Mapping[StoreName, Scanner]] = {
    "huggingface": huggingface.scan,
    "ollama": ollama.scan,
    "lmstudio": lmstudio.scan,
    "llamacpp": llamacpp.scan,
    "docker": docker.scan,
    "ramalama": ramalama.scan,
    "modelscope": modelscope.scan,
    "kagglehub": kagglehub.scan,
    "directory": directory.scan,
}
"""The scanner of each kind of store, in display order."""

_MARKS: Final[Mapping[StoreName, Callable[[Sequence[str], Collection[str]], bool]]] = {
    "ramalama": ramalama.is_model_folder,
    "modelscope": modelscope.is_cache_folder,
    "kagglehub": kagglehub.is_variation_folder,
}
"""Functions of the path of a folder below the root, and of the names in it."""

MAX_DETECTION_ENTRIES: Final = 2_000
"""The most entries below a folder that are read to detect its kind."""

PROVIDERS: Final[Mapping[StoreName, str]] = {
    "huggingface": huggingface.PROVIDER,
    "ollama": ollama.PROVIDER,
    "lmstudio": lmstudio.PROVIDER,
    "llamacpp": llamacpp.PROVIDER,
    "docker": docker.PROVIDER,
    "ramalama": ramalama.PROVIDER,
    "modelscope": modelscope.PROVIDER,
    "kagglehub": kagglehub.PROVIDER,
    "directory": directory.PROVIDER,
}
"""The provider of all models in a store of each kind."""


def detect_store(root: StrPath) -> StoreName:
    """
    Return the kind of the store in a folder, or "directory" if it is not a known store.

    Only names are read: those in the folder, and then at most MAX_DETECTION_ENTRIES below it. The
    folders of LM Studio and the older folders of llama.cpp cannot be distinguished from plain
    folders. Raises OSError as the system reports it.
    """
    folders, files = set(), set()
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name.startswith(huggingface.PREFIX):
                    return "huggingface"
                folders.add(entry.name)
            elif entry.name in {docker.INDEX, docker.LAYOUT}:
                files.add(entry.name)
    # Docker Model Runner has the folders of Ollama too.
    if files == {docker.INDEX, docker.LAYOUT}:
        return "docker"
    if {"manifests", "blobs"} <= folders:
        return "ollama"
    return _detect_by_marks(os.fspath(root)) or "directory"


def _detect_by_marks(root: str) -> StoreName | None:
    """Return the kind of the first mark of a store below a folder. Links are not followed."""
    folders: deque[tuple[str, ...]] = deque([()])
    left = MAX_DETECTION_ENTRIES
    while folders and left > 0:
        parts = folders.popleft()
        try:
            with os.scandir(os.path.join(root, *parts)) as listing:
                entries = list(islice(listing, left))
        except OSError:
            continue
        left -= len(entries)
        names = {entry.name for entry in entries}
        for store, is_mark in _MARKS.items():
            if is_mark(parts, names):
                return store
        folders.extend((*parts, entry.name) for entry in entries if is_folder(entry))
    return None

"""The kinds of stores, the scanner of each, and detection of the kind of a folder."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from model_catalog.files.safe_open import StrPath
from model_catalog.stores.scan_result import Scanner, StoreName
from model_catalog.stores.scanners import (
    directory,
    docker,
    hub_repositories,
    huggingface,
    kagglehub,
    llamacpp,
    lmstudio,
    modelscope,
    ollama,
    ramalama,
)
from model_catalog.stores.store_roots import is_lmstudio_home, is_own_folder, lmstudio_models
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


_FOLDERS_BELOW: Final[Mapping[StoreName, str]] = {
    "huggingface": "hub",
    "ollama": "models",
    "docker": "models",
    "ramalama": "store",
}
"""The folder that a program puts its store in, below the folder that belongs to the program."""


@dataclass(frozen=True, slots=True)
class StoreLocation:
    """The kind of a store, and the folder to scan: the store or one repository of it."""

    store: StoreName
    path: str


def detect_store(root: StrPath) -> StoreName:
    """
    Return the kind of the store in a folder or directly below it, as `locate_store`.

    Raises OSError as the system reports it.
    """
    return locate_store(root).store


def locate_store(path: StrPath, store: StoreName | None = None) -> StoreLocation:
    """
    Return the store in a folder; the kind is "directory" if it is not a known store.

    The folder may be above the store: HF_HOME with `hub`, the folders of Ollama, Docker and LM
    Studio with `models`, that of RamaLama with `store`. It may be one repository of a Hugging Face
    cache. With `store`, only a store of this kind is looked for, and the kind of the result is
    `store`.

    Only names are read: those in the folder, and then at most MAX_DETECTION_ENTRIES below it; and
    the settings of LM Studio. The models folder of LM Studio and the older
    folder of llama.cpp cannot be distinguished from plain folders. Raises OSError as the system
    reports it.
    """
    folder = os.fspath(path)
    kind = _kind_of_folder(folder)
    if kind != "directory" or store == "directory":
        return StoreLocation(store or kind, folder)
    if store in {None, "lmstudio"} and is_lmstudio_home(folder):
        return StoreLocation("lmstudio", lmstudio_models(folder))
    for each, name in _FOLDERS_BELOW.items():
        below = os.path.join(folder, name)
        if store in {None, each} and is_own_folder(below) and _has_store(below, each):
            return StoreLocation(each, below)
    return StoreLocation(store or _detect_by_marks(folder) or "directory", folder)


def _has_store(path: str, store: StoreName) -> bool:
    return _kind_of_folder(path) == store or (store in _MARKS and _detect_by_marks(path) == store)


def _kind_of_folder(path: str) -> StoreName:
    """Return the kind of the store in a folder by the names in it."""
    if hub_repositories.split_repository(path)[1] is not None:
        return "huggingface"
    folders, files = set(), set()
    with os.scandir(path) as entries:
        for entry in entries:
            # A program follows a link in the place of a folder.
            if entry.is_dir(follow_symlinks=False) or entry.is_symlink():
                if hub_repositories.is_repository_name(entry.name):
                    return "huggingface"
                folders.add(entry.name)
            elif entry.name in {docker.INDEX, docker.LAYOUT}:
                files.add(entry.name)
    # Docker Model Runner has the folders of Ollama too.
    if files == {docker.INDEX, docker.LAYOUT}:
        return "docker"
    return "ollama" if {"manifests", "blobs"} <= folders else "directory"


def _detect_by_marks(root: str) -> StoreName | None:
    """Return the kind of the first mark of a store below a folder. Links are not followed."""
    folders: deque[tuple[str, ...]] = deque([()])
    left = MAX_DETECTION_ENTRIES
    while folders and left > 0:
        parts = folders.popleft()
        if parts and hub_repositories.is_repository_name(parts[-1]):
            # It has the folders that RamaLama and ModelScope make too.
            continue
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

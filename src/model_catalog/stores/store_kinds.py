"""The kinds of stores, the scanner of each, and detection of the kind of a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from model_catalog.files.safe_open import StrPath
from model_catalog.stores.scan_result import Scanner, StoreName
from model_catalog.stores.scanners import directory, docker, huggingface, llamacpp, lmstudio, ollama

SCANNERS: Final[Mapping[StoreName, Scanner]] = {
    "huggingface": huggingface.scan,
    "ollama": ollama.scan,
    "lmstudio": lmstudio.scan,
    "llamacpp": llamacpp.scan,
    "docker": docker.scan,
    "directory": directory.scan,
}
"""The scanner of each kind of store, in display order."""

PROVIDERS: Final[Mapping[StoreName, str]] = {
    "huggingface": huggingface.PROVIDER,
    "ollama": ollama.PROVIDER,
    "lmstudio": lmstudio.PROVIDER,
    "llamacpp": llamacpp.PROVIDER,
    "docker": docker.PROVIDER,
    "directory": directory.PROVIDER,
}
"""The provider of all models in a store of each kind."""


def detect_store(root: StrPath) -> StoreName:
    """
    Return the kind of the store in a folder, or "directory" if it is not a known store.

    Only the names in the folder are read. The folders of LM Studio and the older folders of
    llama.cpp cannot be distinguished from plain folders. Raises OSError as the system reports it.
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
    return "ollama" if {"manifests", "blobs"} <= folders else "directory"

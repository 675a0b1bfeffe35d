"""Which kinds of stores there are, and of which one a folder is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from model_catalog.files.safe_open import StrPath
from model_catalog.stores.scan_result import Scanner, StoreName
from model_catalog.stores.scanners import directory, huggingface, llamacpp, lmstudio, ollama

SCANNERS: Final[Mapping[StoreName, Scanner]] = {
    "huggingface": huggingface.scan,
    "ollama": ollama.scan,
    "lmstudio": lmstudio.scan,
    "llamacpp": llamacpp.scan,
    "directory": directory.scan,
}
"""Every kind, in the order in which they are shown."""

PROVIDERS: Final[Mapping[StoreName, str]] = {
    "huggingface": huggingface.PROVIDER,
    "ollama": ollama.PROVIDER,
    "lmstudio": lmstudio.PROVIDER,
    "llamacpp": llamacpp.PROVIDER,
    "directory": directory.PROVIDER,
}
"""The provider of all models in a store of each kind."""


def detect_store(root: StrPath) -> StoreName:
    """
    Of which kind the store in a folder is, by what lies in it; a plain folder for anything else.

    Only the names in it are looked at. The folders of LM Studio, and the older ones of llama.cpp,
    look like any other. Raises OSError as the system gave it.
    """
    folders = set()
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name.startswith(huggingface.PREFIX):
                    return "huggingface"
                folders.add(entry.name)
    return "ollama" if {"manifests", "blobs"} <= folders else "directory"

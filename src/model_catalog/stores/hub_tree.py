"""
Read the tree of a revision in a Hugging Face cache: all files of the revision on the hub.

huggingface_hub 2.4 writes `trees/COMMIT.json`, with the size and the blob of each file.
"""

from __future__ import annotations

import os
import re
from typing import Final, NamedTuple

from model_catalog.files.formats.json_stream import JsonStream
from model_catalog.stores.link_resolution import SkippedError
from model_catalog.stores.store_walk import MAX_FILES, READ_ERRORS, StoreWalk, error_reason

MAX_TREE_BYTES: Final = 64 * 1024 * 1024
MAX_TREE_FILES: Final = 100_000

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_TREE_VERSION: Final = 1


class TreeFile(NamedTuple):
    """A file that a tree lists. `blob` is the name of its blob. None means that it is unknown."""

    size_bytes: int | None = None
    digest: str | None = None
    blob: str | None = None

    @classmethod
    def parse(cls, value: object) -> TreeFile:
        """Parse the entry of a file in a tree. Raises SkippedError if it is not an object."""
        if not isinstance(value, dict):
            raise SkippedError("the entry of a file is not an object")
        size, sha256, blob = value.get("size"), value.get("lfs_sha256"), value.get("blob_id")
        is_lfs = isinstance(sha256, str) and _SHA256.fullmatch(sha256) is not None
        if is_lfs:
            size, blob = value.get("lfs_size", size), sha256
        return cls(
            size if type(size) is int and size >= 0 else None,
            f"sha256:{sha256}" if is_lfs else None,
            blob if isinstance(blob, str) else None,
        )


def read_tree(walk: StoreWalk, tree: os.DirEntry[str]) -> dict[str, TreeFile]:
    """Return the files of a revision by path. Empty if its tree cannot be read."""
    try:
        with walk.open_file(walk.resolve_entry(tree), MAX_TREE_BYTES) as file:
            version, files = _parse_tree(JsonStream(file, 0, file.size_bytes))
    except READ_ERRORS as error:
        walk.add_problem(tree.path, error_reason(error))
        return {}
    return files if version == _TREE_VERSION else {}


def _parse_tree(stream: JsonStream) -> tuple[object, dict[str, TreeFile]]:
    """Return the version of the format, and the files. Raises the errors of JsonStream."""
    tree = stream.peek_short_object() or {}
    if isinstance(listed := tree.get("files"), dict):
        files = {path: TreeFile.parse(entry) for path, entry in listed.items()}
        return tree.get("format_version"), files
    version: object = None
    files = {}
    for member in stream.members(MAX_FILES):
        if member == "files":
            for path in stream.members(MAX_TREE_FILES):
                files[path] = TreeFile.parse(stream.value())
        elif member == "format_version":
            version = stream.value()
        else:
            stream.value()
    stream.require_end()
    return version, files

"""
Mark a snapshot in a Hugging Face cache as one that the catalog began, while no model records it.

The mark is the file `.model-catalog-COMMIT` in the folder of the repository. During a download it
is empty. After an eviction it lists the names that stay in the snapshot: files of no model, such as
a README.md beside GGUF files. A later download may then be the catalog's own, but only if the
snapshot has no other name. Another program would have added one with the weights.
"""

from __future__ import annotations

import json
import os
import stat
from typing import Final

_MAX_MARK_BYTES: Final = 16 * 1024 * 1024


def mark_path(repository: str, commit: str) -> str:
    """Return the path of the mark of a snapshot."""
    return os.path.join(repository, f".model-catalog-{commit}")


def write_mark(repository: str, commit: str, names: list[str]) -> None:
    """Write the mark of a snapshot with the names that stay in it. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(mark_path(repository, commit), flags, stat.S_IRUSR | stat.S_IWUSR)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        json.dump(sorted(names), file)


def covers_snapshot(repository: str, commit: str, snapshot: str) -> bool:
    """Return whether a mark is that of a download, or lists all names in the snapshot."""
    descriptor = os.open(mark_path(repository, commit), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        text = file.read(_MAX_MARK_BYTES)
    if not text:
        return True
    try:
        names = json.loads(text)
    except ValueError:
        return False
    return isinstance(names, list) and set(names_in(snapshot)) <= {str(each) for each in names}


def names_in(snapshot: str) -> list[str]:
    """Return the names of files and links in a snapshot, relative to it."""
    return [
        os.path.relpath(os.path.join(folder, name), snapshot)
        for folder, folders, files in os.walk(snapshot)
        for name in [*files, *(each for each in folders if os.path.islink(f"{folder}/{each}"))]
    ]

"""Find out which names other models need, because they have recorded the same file or path."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from model_catalog.domain.file_record import FileRecord
from model_catalog.downloads.eviction.found_files import base_folder
from model_catalog.downloads.queries.plan_queries import (
    SharedFile,
)


@dataclass(slots=True)
class NeededNames:
    """The real paths that models need, by the ids of these models."""

    names: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    folders: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Everything in these folders is needed."""

    @classmethod
    def of_paths(cls, unlisted: Iterable[tuple[int, str]]) -> NeededNames:
        """Return the names that models need whose files are not recorded."""
        needed = cls()
        needed.add_paths(unlisted)
        return needed

    def add_files(self, shared: Iterable[SharedFile]) -> None:
        """Add recorded files of models, and the blobs that they lead to."""
        for file in shared:
            base = base_folder(file.local_path, [file.path])
            self._add_name(f"{base}/{file.path}", file.model_id)

    def add_paths(self, unlisted: Iterable[tuple[int, str]]) -> None:
        """Add the paths of models whose files are not recorded."""
        for model_id, path in unlisted:
            if os.path.isdir(path):
                self.folders[os.path.realpath(path)].add(model_id)
            elif os.path.lexists(path):
                self._add_name(path, model_id)

    def _add_name(self, path: str, model_id: int) -> None:
        # Each name on the way is needed: the link, the link that it leads to, and the file.
        seen: set[str] = set()
        while path not in seen:
            folder, name = os.path.split(path)
            path = os.path.join(os.path.realpath(folder), name)
            seen.add(path)
            self.names[path].add(model_id)
            try:
                path = os.path.join(os.path.dirname(path), os.readlink(path))
            except OSError:
                return

    def others_of(self, path: str, ids: Collection[int]) -> set[int]:
        """Return the models that need a path, without some models."""
        found = set(self.names.get(path, ()))
        folder = path if self.folders else ""
        while folder:
            found |= self.folders.get(folder, set())
            folder = "" if folder == os.path.dirname(folder) else os.path.dirname(folder)
        return found.difference(ids)


class SharedFiles:
    """Finds the recorded files that other models share with a model."""

    def __init__(self, files: Iterable[SharedFile]) -> None:
        self._by_id: dict[str, list[SharedFile]] = defaultdict(list)
        for file in files:
            for key in (file.file_id, file.fingerprint):
                if key is not None:
                    self._by_id[key].append(file)

    def of_others(self, model_id: int, files: Sequence[FileRecord]) -> set[SharedFile]:
        """Return the files of other models that are files of a model."""
        keys = {key for file in files for key in (file.file_id, file.fingerprint) if key}
        return {
            each for key in keys for each in self._by_id.get(key, ()) if each.model_id != model_id
        }


def disk_bytes_of(files: Mapping[int, Sequence[FileRecord]]) -> int:
    """Return the bytes that the files of models take on the disk; a shared file counts once."""
    sizes: dict[object, int] = {}
    for model_id, of_model in files.items():
        for file in of_model:
            key = file.file_id or file.fingerprint or (model_id, file.path)
            sizes[key] = file.size_bytes if file.disk_bytes is None else file.disk_bytes
    return sum(sizes.values())

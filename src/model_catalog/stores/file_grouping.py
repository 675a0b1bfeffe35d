"""Which files in a folder are one model, where no program keeps book of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from model_catalog.files.file_names import ShardSet, file_role, is_partial, shard_info
from model_catalog.stores.completeness import incomplete_reasons
from model_catalog.stores.scan_result import StoreFile
from model_catalog.stores.store_access import (
    MAX_FILES,
    NO_TEXT,
    UNREADABLE,
    LinkTarget,
    StoreWalk,
    error_reason,
    is_folder,
    is_link,
    is_readable,
    shorten_list,
)

SUFFIXES: Final = (".gguf", ".safetensors")
"""What a model's file is called that stands alone; in any case."""

_MARKS: Final = ("adapter_config.json", "config.json", "model_index.json")
_PIPELINE: Final = "model_index.json"


@dataclass(frozen=True, slots=True)
class FileGroup:
    """Files that are one model: at `local_path` a folder, or one of the files in `folder`."""

    local_path: str
    folder: str
    files: tuple[StoreFile, ...]
    reasons: tuple[str, ...]


def group_files(visit: StoreWalk, root: str, *, is_one_kind: bool) -> Iterator[FileGroup]:
    """
    The models in a folder and below it.

    A folder with a config.json, or its like, beside weights is one, with all that is below it.
    Elsewhere each file of GGUF or safetensors is one, and each set of shards. A projector belongs
    to the GGUF model beside it, and where there are several, to each of them if all in a folder
    are of one kind; otherwise it stands alone. Hidden files and unfinished downloads are left out,
    and links to folders are not followed.
    """
    folders = [root]
    while folders:
        folder = _Folder(visit, folders.pop())
        folder.take(visit.entries(folder.path))
        if folder.is_model:
            yield from _whole_folder(visit, folder.path)
        else:
            folders += reversed(folder.folders)
            yield from _loose_files(folder, is_one_kind=is_one_kind)


def group_entries(
    visit: StoreWalk, root: str, entries: Iterable[os.DirEntry[str]]
) -> Iterator[FileGroup]:
    """The models that are among a folder's own files, of which each projector stands alone."""
    folder = _Folder(visit, root)
    folder.take(entries)
    yield from _loose_files(folder, is_one_kind=False)


@dataclass(slots=True)
class _Folder:
    """What lies in one folder; the targets are by their names in it."""

    visit: StoreWalk
    path: str
    folders: list[str] = field(default_factory=list)
    files: dict[str, LinkTarget] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)

    def take(self, entries: Iterable[os.DirEntry[str]], *, all_files: bool = False) -> None:
        """Take note of the folders and of the files that tell of a model, or of all files."""
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if is_folder(entry):
                self.folders.append(entry.path)
            elif is_partial(name):
                self.unfinished.append(name)
            elif is_link(entry) or all_files or _tells(name):
                self._take_file(entry)

    def _take_file(self, entry: os.DirEntry[str]) -> None:
        if not is_readable(entry.name):
            self.visit.blame(entry.path, NO_TEXT)
            return
        try:
            self.files[entry.name] = self.visit.target(entry)
        except UNREADABLE as error:
            self.unread.append(entry.name)
            self.visit.blame(entry.path, error_reason(error))

    @property
    def is_model(self) -> bool:
        """Whether it is one model as a whole."""
        if _PIPELINE in self.files:
            return True
        return any(mark in self.files for mark in _MARKS) and any(
            file_role(name) == "weights" for name in self.files
        )


def _tells(name: str) -> bool:
    return name in _MARKS or file_role(name) in {"weights", "projector"}


def _whole_folder(visit: StoreWalk, root: str) -> Iterator[FileGroup]:
    files: list[StoreFile] = []
    unread: list[str] = []
    unfinished: list[str] = []
    folders = [root]
    while folders:
        folder = _Folder(visit, folders.pop())
        problems_before = visit.problem_count
        entries = visit.entries(folder.path)
        if visit.problem_count > problems_before:
            unread.append(f"{folder.path}/"[len(root) + 1 :])
        folder.take(entries, all_files=True)
        folders += folder.folders
        prefix = f"{folder.path}/"[len(root) + 1 :]
        if not is_readable(prefix):
            visit.blame(folder.path, NO_TEXT)
            continue
        files += [
            target.as_file(prefix + name, file_role(name), None)
            for name, target in folder.files.items()
        ]
        unread += [prefix + name for name in folder.unread]
        unfinished += [prefix + name for name in folder.unfinished]
        if len(files) + len(unread) > MAX_FILES:
            visit.blame(root, f"it holds more than {MAX_FILES:,} files")
            return
    files.sort(key=lambda file: file.path)
    why = (*incomplete_reasons(files, unread), *_unfinished(unfinished))
    yield FileGroup(root, root, tuple(files), why)


def _loose_files(folder: _Folder, *, is_one_kind: bool) -> Iterator[FileGroup]:
    models: dict[str | ShardSet, list[str]] = {}
    projectors = []
    for name in folder.files:
        shard = shard_info(name)
        if not name.lower().endswith(SUFFIXES):
            continue
        if file_role(name) == "projector":
            projectors.append(name)
        else:
            models.setdefault(name if shard is None else shard[1], []).append(name)
    beside = [names for names in models.values() if names[0].lower().endswith(".gguf")]
    if not beside or not (is_one_kind or len(beside) == 1):
        models |= {name: [name] for name in projectors}
        projectors = []
    for key, names in models.items():
        together = sorted([*names, *projectors]) if names in beside else names
        files = tuple(folder.files[name].as_file(name, file_role(name), None) for name in together)
        stem = key if isinstance(key, str) else f"{key.stem}-"
        unread = [name for name in folder.unread if (it := shard_info(name)) and it[1] == key]
        unfinished = [name for name in folder.unfinished if name.startswith(stem)]
        why = (*incomplete_reasons(files, unread), *_unfinished(unfinished))
        yield FileGroup(f"{folder.path}/{names[0]}", folder.path, files, why)


def _unfinished(names: list[str]) -> list[str]:
    return [f"downloads that have not ended: {shorten_list(sorted(names))}"] if names else []

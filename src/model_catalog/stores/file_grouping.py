"""Which files in a folder are one model, where no program keeps book of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from model_catalog.files.file_names import (
    ShardSet,
    file_role,
    is_partial_download,
    parse_shard_name,
)
from model_catalog.stores.completeness import incomplete_reasons
from model_catalog.stores.scan_result import StoreFile
from model_catalog.stores.store_walk import (
    MAX_FILES,
    READ_ERRORS,
    UNPRINTABLE_NAME,
    LinkTarget,
    StoreWalk,
    error_reason,
    is_folder,
    is_link,
    is_valid_name,
    shorten_list,
)

SUFFIXES: Final = (".gguf", ".safetensors")
"""What a model's file is called that stands alone; in any case."""

_MODEL_CONFIGS: Final = ("adapter_config.json", "config.json", "model_index.json")
_PIPELINE_CONFIG: Final = "model_index.json"


@dataclass(frozen=True, slots=True)
class FileGroup:
    """Files that are one model: at `local_path` a folder, or one of the files in `folder`."""

    local_path: str
    folder: str
    files: tuple[StoreFile, ...]
    reasons: tuple[str, ...]


def group_files(walk: StoreWalk, root: str, *, share_projectors: bool) -> Iterator[FileGroup]:
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
        folder = _Folder(walk, folders.pop())
        folder.take(walk.list_entries(folder.path))
        if folder.is_model:
            yield from _group_folder(walk, folder.path)
        else:
            folders += reversed(folder.folders)
            yield from _group_single_files(folder, share_projectors=share_projectors)


def group_entries(
    walk: StoreWalk, root: str, entries: Iterable[os.DirEntry[str]]
) -> Iterator[FileGroup]:
    """The models that are among a folder's own files, of which each projector stands alone."""
    folder = _Folder(walk, root)
    folder.take(entries)
    yield from _group_single_files(folder, share_projectors=False)


@dataclass(slots=True)
class _Folder:
    """What lies in one folder; the targets are by their names in it."""

    walk: StoreWalk
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
            elif is_partial_download(name):
                self.unfinished.append(name)
            elif is_link(entry) or all_files or _is_relevant(name):
                self._take_file(entry)

    def _take_file(self, entry: os.DirEntry[str]) -> None:
        if not is_valid_name(entry.name):
            self.walk.add_problem(entry.path, UNPRINTABLE_NAME)
            return
        try:
            self.files[entry.name] = self.walk.resolve_entry(entry)
        except READ_ERRORS as error:
            self.unread.append(entry.name)
            self.walk.add_problem(entry.path, error_reason(error))

    @property
    def is_model(self) -> bool:
        """Whether it is one model as a whole."""
        if _PIPELINE_CONFIG in self.files:
            return True
        return any(mark in self.files for mark in _MODEL_CONFIGS) and any(
            file_role(name) == "weights" for name in self.files
        )


def _is_relevant(name: str) -> bool:
    return name in _MODEL_CONFIGS or file_role(name) in {"weights", "projector"}


def _group_folder(walk: StoreWalk, root: str) -> Iterator[FileGroup]:
    files: list[StoreFile] = []
    unread: list[str] = []
    unfinished: list[str] = []
    folders = [root]
    while folders:
        folder = _Folder(walk, folders.pop())
        problems_before = walk.problem_count
        entries = walk.list_entries(folder.path)
        if walk.problem_count > problems_before:
            unread.append(f"{folder.path}/"[len(root) + 1 :])
        folder.take(entries, all_files=True)
        folders += folder.folders
        prefix = f"{folder.path}/"[len(root) + 1 :]
        if not is_valid_name(prefix):
            walk.add_problem(folder.path, UNPRINTABLE_NAME)
            continue
        files += [
            target.to_store_file(prefix + name, file_role(name), None)
            for name, target in folder.files.items()
        ]
        unread += [prefix + name for name in folder.unread]
        unfinished += [prefix + name for name in folder.unfinished]
        if len(files) + len(unread) > MAX_FILES:
            walk.add_problem(root, f"it holds more than {MAX_FILES:,} files")
            return
    files.sort(key=lambda file: file.path)
    why = (*incomplete_reasons(files, unread), *_unfinished_reasons(unfinished))
    yield FileGroup(root, root, tuple(files), why)


def _group_single_files(folder: _Folder, *, share_projectors: bool) -> Iterator[FileGroup]:
    models: dict[str | ShardSet, list[str]] = {}
    projectors = []
    for name in folder.files:
        shard = parse_shard_name(name)
        if not name.lower().endswith(SUFFIXES):
            continue
        if file_role(name) == "projector":
            projectors.append(name)
        else:
            models.setdefault(name if shard is None else shard[1], []).append(name)
    beside = [names for names in models.values() if names[0].lower().endswith(".gguf")]
    if not beside or not (share_projectors or len(beside) == 1):
        models |= {name: [name] for name in projectors}
        projectors = []
    for key, names in models.items():
        names_in_group = sorted([*names, *projectors]) if names in beside else names
        files = tuple(
            folder.files[name].to_store_file(name, file_role(name), None) for name in names_in_group
        )
        stem = key if isinstance(key, str) else f"{key.stem}-"
        unread = [name for name in folder.unread if (it := parse_shard_name(name)) and it[1] == key]
        unfinished = [name for name in folder.unfinished if name.startswith(stem)]
        why = (*incomplete_reasons(files, unread), *_unfinished_reasons(unfinished))
        yield FileGroup(f"{folder.path}/{names[0]}", folder.path, files, why)


def _unfinished_reasons(names: list[str]) -> list[str]:
    return [f"downloads that have not ended: {shorten_list(sorted(names))}"] if names else []

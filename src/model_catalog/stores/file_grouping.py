"""Group the files in a folder into models, for stores without manifests."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from model_catalog.files.file_names import (
    WEIGHT_ROLES,
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
"""The suffixes, in lower case, of files that can be a model without a config.json."""

_MODEL_CONFIGS: Final = ("adapter_config.json", "config.json", "model_index.json")
_PIPELINE_CONFIG: Final = "model_index.json"


@dataclass(frozen=True, slots=True)
class FileGroup:
    """
    The files of one model.

    `local_path` is the folder of the model, or one of its files, which are in `folder`. `reasons`
    are the reasons why the model is incomplete.
    """

    local_path: str
    folder: str
    files: tuple[StoreFile, ...]
    reasons: tuple[str, ...]


def group_files(walk: StoreWalk, root: str, *, share_projectors: bool) -> Iterator[FileGroup]:
    """
    Yield the models in a folder and below it.

    A folder with a model_index.json, or with weights and a config.json or adapter_config.json, is
    one model, with everything below it. In any other folder, each GGUF or safetensors file is one
    model, and each shard set is one.

    A projector (`mmproj*.gguf`, the image encoder of a model) belongs to the only GGUF model in its
    folder. If there are several GGUF models, it belongs to each of them with `share_projectors`,
    and is a separate model without it.

    Hidden files are left out. Unfinished downloads are not files of a group; its `reasons` name
    them. Links to folders are not followed.
    """
    folders = [root]
    while folders:
        folder = _Folder(walk, folders.pop())
        folder.add_entries(walk.list_entries(folder.path))
        if folder.is_model:
            yield from _group_folder(walk, folder.path)
        else:
            folders += reversed(folder.folders)
            yield from _group_single_files(folder, share_projectors=share_projectors)


def group_entries(
    walk: StoreWalk, root: str, entries: Iterable[os.DirEntry[str]]
) -> Iterator[FileGroup]:
    """Yield the models among the given files of one folder. Subfolders are ignored."""
    folder = _Folder(walk, root)
    folder.add_entries(entries)
    yield from _group_single_files(folder, share_projectors=False)


@dataclass(slots=True)
class _Folder:
    """
    The content of one folder.

    `files` maps names to targets. `unread` are the names of files that could not be read, and
    `unfinished` those of unfinished downloads.
    """

    walk: StoreWalk
    path: str
    folders: list[str] = field(default_factory=list)
    files: dict[str, LinkTarget] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)

    def add_entries(self, entries: Iterable[os.DirEntry[str]], *, all_files: bool = False) -> None:
        """Add folders and the files that identify a model, or all files."""
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if is_folder(entry):
                self.folders.append(entry.path)
            elif is_partial_download(name):
                self.unfinished.append(name)
                self.walk.add_leftover(entry, "partial")
            elif is_link(entry) or all_files or _is_relevant(name):
                self._add_file(entry)

    def _add_file(self, entry: os.DirEntry[str]) -> None:
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
        """Whether the whole folder is one model."""
        if _PIPELINE_CONFIG in self.files:
            return True
        return any(name in self.files for name in _MODEL_CONFIGS) and any(
            file_role(name) in WEIGHT_ROLES for name in self.files
        )


def _is_relevant(name: str) -> bool:
    return name in _MODEL_CONFIGS or file_role(name) in WEIGHT_ROLES


def _group_folder(walk: StoreWalk, root: str) -> Iterator[FileGroup]:
    """Yield the model that consists of all files in a folder and below it."""
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
        folder.add_entries(entries, all_files=True)
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
            walk.add_problem(root, f"it contains more than {MAX_FILES:,} files")
            return
    files.sort(key=lambda file: file.path)
    reasons = (*incomplete_reasons(files, unread), *_unfinished_reasons(unfinished))
    yield FileGroup(root, root, tuple(files), reasons)


def _group_single_files(folder: _Folder, *, share_projectors: bool) -> Iterator[FileGroup]:
    """Yield the models among the files of a folder: single files and shard sets."""
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
    gguf_models = [names for names in models.values() if names[0].lower().endswith(".gguf")]
    if not gguf_models or not (share_projectors or len(gguf_models) == 1):
        models |= {name: [name] for name in projectors}
        projectors = []
    for key, names in models.items():
        all_names = sorted([*names, *projectors]) if names in gguf_models else names
        files = tuple(
            folder.files[name].to_store_file(name, file_role(name), None) for name in all_names
        )
        stem = key if isinstance(key, str) else f"{key.stem}-"
        unread = [
            name for name in folder.unread if (shard := parse_shard_name(name)) and shard[1] == key
        ]
        unfinished = [name for name in folder.unfinished if name.startswith(stem)]
        reasons = (*incomplete_reasons(files, unread), *_unfinished_reasons(unfinished))
        yield FileGroup(f"{folder.path}/{names[0]}", folder.path, files, reasons)


def _unfinished_reasons(names: list[str]) -> list[str]:
    return [f"unfinished downloads: {shorten_list(sorted(names))}"] if names else []

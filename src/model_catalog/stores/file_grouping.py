"""Group the files in a folder into models, for stores without manifests."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from model_catalog.files.completeness.evidence import StoreEvidence
from model_catalog.files.completeness.judge import format_of_files
from model_catalog.files.file_names import (
    WEIGHT_ROLES,
    file_role,
    finished_name,
    is_control_file,
    is_partial_download,
    is_piece,
)
from model_catalog.stores.plain_folders.companions import FileGroup, attach_companions
from model_catalog.stores.plain_folders.local_dirs import CACHE_FOLDER, LocalDirs
from model_catalog.stores.plain_folders.weight_files import ONNX, group_names
from model_catalog.stores.quantizations import (
    GGUF,
    PIPELINE_CONFIGS,
    FileSet,
    assign_companions,
    file_set,
    is_pipeline,
    split_files,
)
from model_catalog.stores.scan_result import Claims, FoundModel, StoreFile, newest_mtime
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
)

_LOADED_SUFFIXES: Final = (".gguf", ".safetensors")
_MODEL_CONFIGS: Final = ("adapter_config.json", "config.json")
_SAVED_MODEL: Final = "saved_model.pb"
"""TensorFlow 2 writes it at the top of a SavedModel, beside the folder `variables`."""
_BUNDLE_SUFFIXES: Final = (".mlpackage", ".mlmodelc")
"""The names of folders that are one model of Core ML."""


@dataclass(frozen=True, slots=True)
class GroupingRules:
    """
    How the files of a store are divided into models.

    With `any_format` each file with tensors can be a model, as in a plain folder. Without it, only
    GGUF and safetensors files can: the program that owns the store loads nothing else. Files that
    belong to no model are counted as passed over with `any_format`.

    A projector (the image encoder of a model) or a draft belongs to the only GGUF model in its
    folder. If there are several GGUF models, it belongs to each of them with `share_projectors`,
    and to those of the same name without it. With None it is a model of its own. In another folder
    it belongs to the only model there (`attach_companions`).

    Without `subfolders`, folders below are listed only if they belong to a model in the first one.
    """

    any_format: bool = False
    share_projectors: bool | None = None
    subfolders: bool = True


def group_files(walk: StoreWalk, root: str, rules: GroupingRules) -> list[FileGroup]:
    """
    Return the models in a folder and below it.

    A pipeline (`is_pipeline`) is one model, with everything below it. So is a folder with weights
    that are not GGUF files, and with a config.json or an adapter_config.json, also if the download
    of the weights is unfinished. GGUF quantizations in it are models of their own. So are a
    SavedModel of TensorFlow and a bundle of Core ML. In any other folder, each file with tensors is
    one model, and each set of files (`group_names`) is one. An ONNX model that is alone in its
    folder gets all files there: its external data can have any name.

    Hidden files are left out. Unfinished downloads are not files of a group; its `evidence` names
    them, also those of huggingface_hub to a `local_dir`. Links to folders are not followed.
    """
    return attach_companions(list(_group_in_folders(walk, root, rules)))


def _group_in_folders(walk: StoreWalk, root: str, rules: GroupingRules) -> Iterator[FileGroup]:
    """Yield the models in a folder and below it. Each has only the files of its own folder."""
    count = walk.model_count
    local_dirs = LocalDirs(walk)
    folders = [root]
    while folders:
        folder = _Folder(walk, folders.pop())
        folder.add_entries(walk.list_entries(folder.path))
        if folder.has_cache:
            local_dirs.add(folder.path)
        downloads = local_dirs.find(folder.path)
        folder.unfinished += downloads.unfinished
        if folder.is_model:
            groups = group_folder(walk, folder.path, downloads, counts_others=rules.any_format)
        else:
            folders += reversed(folder.folders) if rules.subfolders else []
            groups = _group_single_files(folder, rules)
        for group in groups:
            count += 1
            walk.report_progress(count)
            yield group


def group_entries(
    walk: StoreWalk, root: str, entries: Iterable[os.DirEntry[str]]
) -> Iterator[FileGroup]:
    """
    Yield the models among the given files of one folder. Subfolders are ignored.

    Projectors and drafts are models of their own, because the files may be those of several
    repositories.
    """
    folder = _Folder(walk, root)
    folder.add_entries(entries)
    yield from _group_single_files(folder, GroupingRules())


@dataclass(slots=True)
class _Folder:
    """
    The content of one folder.

    `files` maps names to targets. `unread` are the names of files that could not be read, and
    `unfinished` those of unfinished downloads. `others` are the entries that identify no model, and
    `entries` are those of all files and links.
    """

    walk: StoreWalk
    path: str
    folders: list[str] = field(default_factory=list)
    files: dict[str, LinkTarget] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    others: dict[str, os.DirEntry[str]] = field(default_factory=dict)
    entries: dict[str, os.DirEntry[str]] = field(default_factory=dict)
    has_cache: bool = False

    def add_entries(self, entries: Iterable[os.DirEntry[str]], *, all_files: bool = False) -> None:
        """Add folders and the files that identify a model, or all files."""
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                self.has_cache |= name == CACHE_FOLDER
                continue
            if is_folder(entry):
                self.folders.append(entry.path)
            elif is_partial_download(name):
                self.unfinished.append(name)
                self.walk.add_leftover(entry, "piece" if is_piece(name) else "partial")
            else:
                self.entries[name] = entry
                if is_link(entry) or all_files or _is_relevant(name):
                    self.add_file(entry)
                else:
                    self.others[name] = entry

    def add_file(self, entry: os.DirEntry[str]) -> None:
        """Add a file, or record why it cannot be read."""
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
        """Whether the folder and everything below it are the files of one model."""
        folders = (f"{os.path.basename(path)}/" for path in self.folders)
        if is_pipeline([*self.files, *folders]):
            return True
        if _SAVED_MODEL in self.files or self.path.lower().endswith(_BUNDLE_SUFFIXES):
            return True
        # A config.json beside GGUF files describes what they were converted from.
        return any(name in self.files for name in _MODEL_CONFIGS) and any(
            file_role(name) in WEIGHT_ROLES and not name.lower().endswith(GGUF)
            for name in (*self.files, *map(_final_name, self.unfinished))
        )


def _is_relevant(name: str) -> bool:
    return name in {*_MODEL_CONFIGS, *PIPELINE_CONFIGS} or file_role(name) in WEIGHT_ROLES


def group_folder(
    walk: StoreWalk,
    root: str,
    downloads: StoreEvidence | None = None,
    *,
    counts_others: bool = False,
) -> Iterator[FileGroup]:
    """
    Yield the model that consists of all files in a folder and below it.

    GGUF quantizations in it are models of their own, as `split_files` divides them. With
    `counts_others` the files that no model has are counted as passed over.
    """
    downloads = downloads or StoreEvidence()
    files: list[StoreFile] = []
    unread: list[str] = []
    unfinished: list[str] = [*downloads.unfinished]
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
    parts = split_files(files)
    if counts_others:
        used = {file.path for part in parts for file in part.files}
        for file in files:
            if file.path not in used:
                walk.passed_over.add_file(file)
    for part in parts:
        path = root if part.first is None else f"{root}/{part.first}"
        path_folder = f"{root}/{part.folder}".rstrip("/")
        own = {file_set(file.path) for file in part.files}
        is_whole = part.first is None
        evidence = StoreEvidence(
            gone=[name for name in unread if is_whole or file_set(name) in own],
            listed={name: None for name in downloads.listed if is_whole or file_set(name) in own},
            unfinished=[name for name in unfinished if is_whole or _is_partial_of(name, own)],
        )
        files_below = part.files_below_folder()
        yield FileGroup(path, path_folder, files_below, evidence.below(part.folder), path)


def add_groups(
    walk: StoreWalk, name: tuple[str, str, str], root: str, groups: Iterable[FileGroup]
) -> None:
    """
    Add the models in a folder to the walk, named by provider, reference and version.

    If a model is only a part of the folder, its version has the path of its file behind a slash. A
    group without a file that can be read is left out, because its problems are recorded.
    """
    provider, reference, version = name
    for group in groups:
        if not group.files and group.evidence.gone:
            continue
        part = group.first[len(root) + 1 :]
        walk.add_model(
            FoundModel(
                store=walk.store,
                provider=provider,
                reference=reference,
                version=f"{version}/{part}" if part else version,
                local_path=group.local_path,
                folder=group.folder,
                files=group.files,
                downloaded_at=newest_mtime(group.files),
                claims=Claims(format=format_of_files(group.files)),
                evidence=group.evidence,
            ),
            group.local_path,
        )


def _group_single_files(folder: _Folder, rules: GroupingRules) -> Iterator[FileGroup]:
    """Yield the models among the files of a folder: single files, and sets of files."""
    models, companions = _find_models(folder, rules)
    gguf_models = {
        names[0]: names[0]
        for names in models
        if names[0].lower().endswith(GGUF) and file_role(names[0]) == "weights"
    }
    if rules.share_projectors is None:
        gguf_models = {}
    owners = assign_companions(companions, gguf_models, to_all=bool(rules.share_projectors))
    models += group_names([each for each in companions if not owners[each]], ())
    if rules.any_format:
        _add_external_data(folder, models)
    used: set[str] = set()
    for names in models:
        own_companions = [name for name in companions if names[0] in owners[name]]
        used.update(names, own_companions)
        files = tuple(
            folder.files[name].to_store_file(name, file_role(name), None)
            for name in sorted([*names, *own_companions])
            if name in folder.files
        )
        own = {file_set(name) for name in names}
        unread = [name for name in folder.unread if file_set(name) in own]
        unfinished = [name for name in folder.unfinished if _is_partial_of(name, own)]
        evidence = StoreEvidence(gone=unread, unfinished=unfinished)
        path = f"{folder.path}/{names[0]}"
        yield FileGroup(path, folder.path, files, evidence, path)
    if rules.any_format:
        for name, entry in folder.entries.items():
            if name not in used:
                folder.walk.passed_over.add(entry)


def _find_models(folder: _Folder, rules: GroupingRules) -> tuple[list[list[str]], list[str]]:
    """Return the files of each model in a folder, and the names of projectors and drafts."""
    weights, companions = [], []
    for name in folder.files:
        if not (
            file_role(name) in WEIGHT_ROLES
            if rules.any_format
            else name.lower().endswith(_LOADED_SUFFIXES)
        ):
            continue
        if file_role(name) in {"projector", "draft"} and name.lower().endswith(GGUF):
            companions.append(name)
        else:
            weights.append(name)
    names = {*folder.files, *folder.others} if rules.any_format else ()
    models = group_names(weights, names)
    for name in {name for names in models for name in names}.difference(folder.files):
        # The graph of a model is not a file with tensors.
        folder.add_file(folder.others[name])
    return models, companions


def _add_external_data(folder: _Folder, models: list[list[str]]) -> None:
    """Give all other files of a folder to an ONNX model that is alone in it."""
    if len(models) != 1 or not models[0][0].lower().endswith(ONNX):
        return
    if len(folder.others) <= MAX_FILES:
        for entry in folder.others.values():
            folder.add_file(entry)
        models[0] += folder.others


def _is_partial_of(path: str, sets: Collection[FileSet]) -> bool:
    """
    Return whether an unfinished download becomes a file of the sets, or says that one is.

    It may have the name that it gets at its end.
    """
    return file_set(_final_name(path)) in sets


def _final_name(path: str) -> str:
    """Return the path that an unfinished download gets at its end, or has if it has that name."""
    folder, slash, name = path.rpartition("/")
    final = name.rpartition(".")[0] if is_control_file(name) else finished_name(name) or name
    return folder + slash + final

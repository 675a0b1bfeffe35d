"""Split the files of a folder into the models that can be loaded separately."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from model_catalog.files.completeness.needed_files import MODULES_INDEX, PIPELINE_INDEX
from model_catalog.files.file_names import ShardSet, file_role, parse_shard_name
from model_catalog.stores.scan_result import StoreFile

GGUF: Final = ".gguf"

FileSet: TypeAlias = tuple[str, str | ShardSet]
"""A file or a shard set: its folder, with `/` at the end unless it is empty, and its name."""

PIPELINE_CONFIGS: Final = (PIPELINE_INDEX, MODULES_INDEX)
"""Files of diffusers and sentence-transformers that name the folders of a pipeline."""

_PIPELINE_PARTS: Final = frozenset({"scheduler", "text_encoder"})
_PIPELINE_WEIGHTS: Final = frozenset({"unet", "transformer", "vae"})
_COMPANIONS: Final = ("projector", "draft")
_QUANTIZATION: Final = re.compile(
    r"[-._](ud[-._])?(i?q[0-9]\w*|tq[0-9]\w*|bf16|f16|fp16|f32|mxfp4\w*|nvfp4\w*)$"
)
_COMPANION_WORDS: Final = re.compile(r"^(mtp|eagle3|dflash|dspark)-|(^|[-._])mmproj(?=[-._]|$)")


@dataclass(frozen=True, slots=True)
class Part:
    """
    Files that are one model. Their paths are relative to the folder that was split.

    `first` is the file or the first shard that a program opens; None stands for the whole folder.
    """

    first: str | None
    files: tuple[StoreFile, ...]

    @property
    def folder(self) -> str:
        """The folder of `first`, with `/` at the end; empty for the folder that was split."""
        return "" if self.first is None else file_set(self.first)[0]

    def files_below_folder(self) -> tuple[StoreFile, ...]:
        """Return the files with their paths relative to `folder`."""
        if not (start := len(self.folder)):
            return self.files
        return tuple(replace(file, path=file.path[start:]) for file in self.files)


def split_files(files: Sequence[StoreFile]) -> list[Part]:
    """
    Split the files of a folder, sorted by path, into models.

    Each GGUF quantization is a model: a file, or a set of shards. It gets the projectors and drafts
    of its folder. All other weights are one model, with all files that no other model has. A
    pipeline is one model, and so is a folder with only one quantization.
    """
    quantizations = _weight_sets(file for file in files if _is_gguf(file, ("weights",)))
    has_others = any(
        file.role == "weights" and not file.path.lower().endswith(GGUF) for file in files
    )
    if is_pipeline(file.path for file in files) or len(quantizations) + has_others <= 1:
        return [Part(None, tuple(files))]
    used: set[str] = set()
    parts = []
    for key, members in quantizations.items():
        companions = [
            file
            for file in files
            if file_set(file.path)[0] == key[0] and _is_gguf(file, _COMPANIONS)
        ]
        parts.append(_part(members, companions))
        used.update(file.path for file in parts[-1].files)
    rest = [file for file in files if file.path not in used]
    if has_others:
        return [Part(None, tuple(rest)), *parts]
    # An adapter, an importance matrix, or a projector without a model in its folder.
    alone = ("adapter", "imatrix", *_COMPANIONS)
    singles = [each for each in _weight_sets(rest).values() if _is_gguf(each[0], alone)]
    return [*parts, *(_part(members, ()) for members in singles)]


def _part(members: Sequence[StoreFile], companions: Iterable[StoreFile]) -> Part:
    files = sorted([*members, *companions], key=lambda file: file.path)
    return Part(members[0].path, tuple(files))


def _weight_sets(files: Iterable[StoreFile]) -> dict[FileSet, list[StoreFile]]:
    sets: dict[FileSet, list[StoreFile]] = {}
    for file in files:
        sets.setdefault(file_set(file.path), []).append(file)
    return sets


def _is_gguf(file: StoreFile, roles: Collection[str]) -> bool:
    return file.role in roles and file.path.lower().endswith(GGUF)


def file_set(path: str) -> FileSet:
    """Return the file or the shard set that a path belongs to."""
    folder, slash, name = path.rpartition("/")
    shard = parse_shard_name(name)
    return folder + slash, name if shard is None else shard[1]


def is_pipeline(paths: Iterable[str]) -> bool:
    """
    Return whether files, or files and folders, are those of a pipeline with several folders.

    Without a file that names its folders, a pipeline of diffusers has a scheduler or a text
    encoder, and the weights of a UNet, a transformer or a VAE, each in a folder of that name.
    """
    folders = set()
    for path in paths:
        first, slash, _ = path.partition("/")
        if not slash and first in PIPELINE_CONFIGS:
            return True
        if slash:
            folders.add(first)
    return bool(folders & _PIPELINE_PARTS) and bool(folders & _PIPELINE_WEIGHTS)


def assign_companions(
    companions: Iterable[str], models: Mapping[str, str], *, to_all: bool
) -> dict[str, list[str]]:
    """
    Return for each projector and draft of a folder the GGUF models that it belongs to.

    `models` are the names of the models' first files by any key. A companion belongs to the only
    model, or to all models with `to_all`. Otherwise it belongs to the models of the same name
    without the quantization; a companion without a name of its own belongs to all models if they
    are quantizations of one model.
    """
    stems = {key: _stem(name) for key, name in models.items()}
    owners = {}
    for companion in companions:
        stem = _stem(companion)
        if to_all or len(models) == 1 or (not stem and len(set(stems.values())) == 1):
            owners[companion] = list(models)
        else:
            owners[companion] = [key for key in models if stem and stems[key] == stem]
    return owners


def _stem(name: str) -> str:
    """Return the name of a model in lower case, without its suffix, shard and quantization."""
    shard = parse_shard_name(name)
    name = (name[: -len(GGUF)] if shard is None else shard[1].stem).lower()
    if file_role(f"{name}{GGUF}") in _COMPANIONS:
        name = _COMPANION_WORDS.sub("", name)
    # A projector can have a quantization of its own behind that of its model.
    for _ in range(2):
        name = _QUANTIZATION.sub("", f"-{name}").removeprefix("-")
    return name.strip("-._")

"""The files of a model in folders without manifests, and projectors in a folder of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from model_catalog.files.completeness.evidence import StoreEvidence
from model_catalog.stores.quantizations import GGUF
from model_catalog.stores.scan_result import StoreFile

_COMPANIONS: Final = ("projector", "draft")
_COLLECTION: Final = "models"
"""A folder of this name collects models. text-generation-webui has a folder `mmproj` beside it."""


@dataclass(frozen=True, slots=True)
class FileGroup:
    """
    The files of one model.

    `local_path` is the folder of the model, or one of its files, which are in `folder`. `evidence`
    is what the folder tells beside the files. `first` is the path that names the model: its first
    file, or its folder.
    """

    local_path: str
    folder: str
    files: tuple[StoreFile, ...]
    evidence: StoreEvidence
    first: str

    @property
    def is_companion(self) -> bool:
        """Whether the files are a projector or a draft that no model in their folder has."""
        return bool(self.files) and all(file.role in _COMPANIONS for file in self.files)

    @property
    def is_gguf_model(self) -> bool:
        """Whether the model has the path of a GGUF file."""
        is_file = self.local_path != self.folder and self.local_path.lower().endswith(GGUF)
        return is_file and any(file.role == "weights" for file in self.files)


def attach_companions(groups: Sequence[FileGroup]) -> list[FileGroup]:
    """
    Give projectors and drafts in another folder to the only model that they can belong to.

    That model is a GGUF model in a folder of the projector's folder, in the folder above it, or in
    a folder beside it. No other model may be below the folder that has both, because that folder
    becomes the path of the model.
    """
    companions = [group for group in groups if group.is_companion]
    if not companions:
        return list(groups)
    below = _models_below(group for group in groups if not group.is_companion)
    folders: dict[str, str] = {}
    owned: dict[str, list[FileGroup]] = {}
    taken = set()
    for companion in companions:
        owner = _find_owner(companion, below)
        # Two companions in different folders would give the model two paths.
        if owner is None or folders.setdefault(owner[0].first, owner[1]) != owner[1]:
            continue
        owned.setdefault(owner[0].first, []).append(companion)
        taken.add(companion.first)
    return [
        _merge(group, owned[group.first], folders[group.first]) if group.first in owned else group
        for group in groups
        if group.first not in taken
    ]


def _models_below(models: Iterable[FileGroup]) -> dict[str, list[FileGroup]]:
    """Return the models below each folder, but not more than two: only a single one matters."""
    below: dict[str, list[FileGroup]] = {}
    for model in models:
        folder = model.folder
        while folder:
            known = below.setdefault(folder, [])
            if len(known) > 1:
                # The folders above have two as well.
                break
            known.append(model)
            folder = _parent(folder)
    return below


def _find_owner(
    companion: FileGroup, below: Mapping[str, Sequence[FileGroup]]
) -> tuple[FileGroup, str] | None:
    """Return the model of a projector or a draft, and the folder that has both."""
    folder = companion.folder
    if folder in below:
        common, models = folder, below[folder]
    else:
        common = _parent(folder)
        models = below.get(common, [])
    if len(models) != 1 or not models[0].is_gguf_model:
        return None
    place = models[0].folder
    is_near = place == common or _parent(place) == common
    is_collection = common != folder and place == f"{common}/{_COLLECTION}"
    return (models[0], common) if is_near and not is_collection else None


def _parent(folder: str) -> str:
    return folder.rpartition("/")[0]


def _merge(model: FileGroup, companions: Iterable[FileGroup], folder: str) -> FileGroup:
    """Return a model with the path of a folder above it, and the companions in that folder."""
    groups = [model, *companions]
    files = []
    evidence = StoreEvidence()
    for group in groups:
        prefix = f"{group.folder}/"[len(folder) + 1 :]
        files += [replace(file, path=prefix + file.path) for file in group.files]
        evidence = replace(
            evidence,
            gone=[*evidence.gone, *(prefix + path for path in group.evidence.gone)],
            unfinished=[
                *evidence.unfinished,
                *(prefix + path for path in group.evidence.unfinished),
            ],
        )
    files.sort(key=lambda file: file.path)
    return FileGroup(folder, folder, tuple(files), evidence, model.first)

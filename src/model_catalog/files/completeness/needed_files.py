"""
Choose from the files of a repository those that loading a model needs.

The list of a repository says what exists there, not what was asked for: mlx-lm, diffusers and
`hf download --include` leave out files on purpose. Only file names are used.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Final

from model_catalog.files.file_names import WEIGHT_ROLES, ShardSet, file_role, parse_shard_name

PIPELINE_INDEX: Final = "model_index.json"
MODULES_INDEX: Final = "modules.json"
_MODEL_CONFIGS: Final = ("config.json", "adapter_config.json")
VOCABULARIES: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)
"""Any one of these is enough for a tokenizer of transformers."""
_GGUF: Final = ".gguf"
_PREFERRED_ENDINGS: Final = (".safetensors", ".bin")
# sentence-transformers calls the folders of its modules 1_Pooling, 2_Dense and so on.
_MODULE_FOLDER: Final = re.compile(r"[0-9]+_[A-Za-z]+/")


def needed_files(existing: Collection[str], listed: Collection[str]) -> list[str]:
    """
    Return the listed files that do not exist and that the existing ones need, sorted.

    - A shard, if another shard of its set exists. Other weights in a folder that has some are an
      alternative, as another format or quantization.
    - `config.json` or `adapter_config.json` beside weights that are not GGUF files, and one
      vocabulary, if the folder has a config.
    - In a pipeline whose `model_index.json` or `modules.json` exists: the same for each of its
      folders that has files here, a tokenizer in its folder, and the weights of such a folder.
    """
    names = [path for path in listed if path not in existing]
    if not names:
        return []
    here, absent = _by_folder(existing), _by_folder(names)
    is_pipeline = PIPELINE_INDEX in existing or MODULES_INDEX in existing
    needed = set(_begun_sets(existing, names))
    for folder, names_here in absent.items():
        is_part = is_pipeline and folder != "" and _is_component(folder, here)
        chosen = _needed_in_folder(here.get(folder, set()), names_here, is_part=is_part)
        needed.update(folder + name for name in chosen)
    return sorted(needed)


def _by_folder(paths: Iterable[str]) -> dict[str, set[str]]:
    folders: dict[str, set[str]] = {}
    for path in paths:
        folder = _folder(path)
        folders.setdefault(folder, set()).add(path[len(folder) :])
    return folders


def is_needed(path: str) -> bool:
    """Return whether loading may need a file, from its name. True for a folder (`NAME/`)."""
    return path.endswith("/") or file_role(path) != "other"


def _is_component(folder: str, folders: Collection[str]) -> bool:
    return (
        folder in folders
        or folder.startswith("tokenizer")
        or bool(_MODULE_FOLDER.fullmatch(folder))
    )


def _needed_in_folder(
    here: Collection[str], absent: Collection[str], *, is_part: bool
) -> Iterable[str]:
    weights = [name for name in here if file_role(name) in WEIGHT_ROLES]
    has_loaded_weights = any(not name.lower().endswith(_GGUF) for name in weights)
    if has_loaded_weights or is_part:
        yield from (name for name in _MODEL_CONFIGS if name in absent)
    if is_part and not weights:
        yield from _best_weights(absent)
    has_config = any(name in here or name in absent for name in _MODEL_CONFIGS)
    has_vocabulary = any(name in VOCABULARIES or name.endswith(".tiktoken") for name in here)
    if not has_vocabulary and ((has_loaded_weights and has_config) or is_part):
        yield from [name for name in VOCABULARIES if name in absent][:1]


def _best_weights(names: Iterable[str]) -> list[str]:
    """Return one set of weights among alternatives: safetensors before .bin, without a variant."""
    sets: dict[str | ShardSet, list[str]] = {}
    for name in sorted(names):
        if file_role(name) in WEIGHT_ROLES:
            shard = parse_shard_name(name)
            sets.setdefault(name if shard is None else shard[1], []).append(name)
    order = sorted(sets.values(), key=lambda files: (_rank(files[0]), len(files[0]), files[0]))
    return order[0] if order else []


def _rank(name: str) -> int:
    lower = name.lower()
    return next(
        (rank for rank, ending in enumerate(_PREFERRED_ENDINGS) if lower.endswith(ending)),
        len(_PREFERRED_ENDINGS),
    )


def _begun_sets(existing: Iterable[str], names: Iterable[str]) -> Iterable[str]:
    begun = {key for path in existing if (key := _set_of(path)) is not None}
    return (path for path in names if _set_of(path) in begun) if begun else ()


def _set_of(path: str) -> tuple[str, ShardSet] | None:
    folder = _folder(path)
    shard = parse_shard_name(path[len(folder) :])
    return None if shard is None else (folder, shard[1])


def _folder(path: str) -> str:
    """Return the folder of a path, with `/` at the end; empty for a file at the top."""
    return path[: path.rfind("/") + 1]

"""What a file name tells: the role of the file, its shard set, and whether it is a download."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from model_catalog.errors import InvalidModelError

MAX_NAME_BYTES: Final = 255
"""The longest file name, in bytes, that common file systems allow."""

Role: TypeAlias = Literal[
    "weights",
    "config",
    "tokenizer",
    "projector",
    "adapter",
    "draft",
    "imatrix",
    "template",
    "license",
    "other",
]
"""
The purpose of a file in a model.

`file_role` never returns "template" or "license". Only a store with manifests, such as Ollama's,
assigns those.
"""

WEIGHT_ROLES: Final[tuple[Role, ...]] = ("weights", "adapter", "projector", "draft", "imatrix")
"""The roles of files with tensors. Each can be a model of its own."""

_SHARD_NAME: Final = re.compile(
    r"(?P<stem>.+)-(?P<index>[0-9]{5})-of-(?P<count>[0-9]{5,6})(?P<suffix>\.(gguf|safetensors|bin))"
)
_WEIGHT_SUFFIXES: Final = (".gguf", ".safetensors", ".bin", ".ckpt", ".pt", ".pth")
_PARTIAL_SUFFIXES: Final = (
    ".aria2",
    ".crdownload",
    ".download",
    ".incomplete",
    ".part",
    ".partial",
    ".tmp",
)
# llama.cpp b7700 takes a file with `mmproj` anywhere in its name for a projector, and finds drafts
# by these prefixes. `mtp` elsewhere in a name is a model with its own prediction layers.
_DRAFT_PREFIXES: Final = ("mtp-", "eagle3-", "dflash-", "dspark-")
# Files of llama-imatrix are called `imatrix.gguf`, `imatrix.dat` or `NAME.imatrix`. A model that
# was quantized with one has its quantization behind that word.
_IMATRIX_NAME: Final = re.compile(r"imatrix(?!.*[-._](i?q[0-9]|tq[0-9]|bf?16|f16|f32|mxfp4))")
_IMATRIX_FILE: Final = re.compile(r"(.*[-._])?imatrix(\.dat)?|imatrix.*\.(dat|gguf_file)")
# convert_lora_to_gguf.py writes `NAME-LoRA-F16.gguf`, and older tools `ggml-lora-NAME.gguf`.
_LORA_NAME: Final = re.compile(r"(^|[-._])lora(?=[-._])(?!.*merged)")
# PEFT, mlx-lm and diffusers.
_ADAPTER_NAME: Final = re.compile(
    r"^(adapter_model|adapters|pytorch_lora_weights)[-._]|(^|[-._])lora(?=[-._])(?!.*merged)"
)
_CONFIG_SUFFIXES: Final = ("config.json", ".index.json", "params.json")
_TOKENIZER_SUFFIXES: Final = (
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
)


@dataclass(frozen=True)
class ShardSet:
    """
    The shard files `stem`-00001-of-0000N`suffix` of one folder.

    `count_text` is N with the zeros that the names contain.
    """

    stem: str
    count_text: str
    suffix: str

    @property
    def count(self) -> int:
        """The number of shards in the set."""
        return int(self.count_text)

    def file_names(self) -> Iterator[str]:
        """Yield the names of all shards, from the first to the last."""
        for index in range(1, self.count + 1):
            yield f"{self.stem}-{index:05}-of-{self.count_text}{self.suffix}"


def parse_shard_name(name: str) -> tuple[int, ShardSet] | None:
    """
    Return the shard number, counted from 1, and the shard set of a name.

    An example of such a name is `m-00001-of-00003.gguf`. The result is None for any other name.
    """
    match = _SHARD_NAME.fullmatch(name)
    if match is None or not 1 <= int(match["index"]) <= int(match["count"]):
        return None
    return int(match["index"]), ShardSet(match["stem"], match["count"], match["suffix"])


def file_role(name: str) -> Role:
    """Return the role of a file, from its name only. The name may be a path."""
    name = name.rpartition("/")[2].lower()
    if name.endswith(_WEIGHT_SUFFIXES):
        return _role_of_weights(name)
    if _IMATRIX_FILE.fullmatch(name):
        return "imatrix"
    if name.startswith(("tokenizer", "vocab.")) or name.endswith(
        (".tiktoken", *_TOKENIZER_SUFFIXES)
    ):
        return "tokenizer"
    return "config" if name.endswith(_CONFIG_SUFFIXES) else "other"


def _role_of_weights(name: str) -> Role:
    """Return the role of a file with tensors, from its name in lower case."""
    if name.startswith(_DRAFT_PREFIXES):
        return "draft"
    if not name.endswith(".gguf"):
        return "adapter" if _ADAPTER_NAME.search(name) else "weights"
    if "mmproj" in name:
        return "projector"
    if _IMATRIX_NAME.search(name):
        return "imatrix"
    return "adapter" if _LORA_NAME.search(name) else "weights"


def is_partial_download(name: str) -> bool:
    """Return whether download programs use such a name for an unfinished download."""
    return name.endswith(_PARTIAL_SUFFIXES) or "-partial-" in name


def is_plain_file_name(name: str) -> bool:
    """Return whether a text is the name of a file, without any path that could leave its folder."""
    return (
        name.isprintable()
        and name not in {"", ".", ".."}
        and not any(character in name for character in "/\\")
        and len(name.encode()) <= MAX_NAME_BYTES
    )


WORKING_DIRECTORY_GONE: Final = (
    "it is relative, and the working directory of this process no longer exists; give an absolute "
    "path, or change the directory"
)


def absolute_path(path: str | os.PathLike[str]) -> str:
    """
    Return the absolute form of a path of a model. Links and `..` are not resolved.

    Raises InvalidModelError for a relative path if the working directory no longer exists.
    """
    try:
        return os.fspath(Path(path).absolute())
    except OSError as error:
        raise InvalidModelError(
            "local_path", path, f"cannot be used: {WORKING_DIRECTORY_GONE}"
        ) from error

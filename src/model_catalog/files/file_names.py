"""What the name of a file tells of it: what it is for, and which others belong to it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

MAX_NAME_BYTES: Final = 255
"""In the name of a file, on any file system there is."""

Role: TypeAlias = Literal[
    "weights", "config", "tokenizer", "projector", "adapter", "template", "license", "other"
]
"""What a file of a model is for; the name of none says "adapter", "template" or "license", and
only a store that keeps book of it does."""

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
_CONFIG_SUFFIXES: Final = ("config.json", ".index.json", "params.json")
_TOKENIZER_SUFFIXES: Final = (
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
)


@dataclass(frozen=True)
class ShardSet:
    """The files `stem`-00001-of-0000N`suffix` of one folder; N as it is written."""

    stem: str
    count_text: str
    suffix: str

    @property
    def count(self) -> int:
        return int(self.count_text)

    def file_names(self) -> Iterator[str]:
        """Those of its files, from the first to the last."""
        for index in range(1, self.count + 1):
            yield f"{self.stem}-{index:05}-of-{self.count_text}{self.suffix}"


def parse_shard_name(name: str) -> tuple[int, ShardSet] | None:
    """Which shard, from 1, of which set a name like `m-00001-of-00003.gguf` is; None for others."""
    match = _SHARD_NAME.fullmatch(name)
    if match is None or not 1 <= int(match["index"]) <= int(match["count"]):
        return None
    return int(match["index"]), ShardSet(match["stem"], match["count"], match["suffix"])


def file_role(name: str) -> Role:
    """What a file is for, by its name alone."""
    name = name.rpartition("/")[2].lower()
    if name.endswith(_WEIGHT_SUFFIXES):
        return "projector" if name.startswith("mmproj") else "weights"
    if name.startswith(("tokenizer", "vocab.")) or name.endswith(
        (".tiktoken", *_TOKENIZER_SUFFIXES)
    ):
        return "tokenizer"
    return "config" if name.endswith(_CONFIG_SUFFIXES) else "other"


def is_partial_download(name: str) -> bool:
    """Whether this is what a program calls a file for as long as it downloads it."""
    return name.endswith(_PARTIAL_SUFFIXES) or "-partial-" in name


def is_plain_file_name(name: str) -> bool:
    """Whether a text is the name of a file, and of nothing outside of the folder it is read in."""
    return (
        name.isprintable()
        and name not in {"", ".", ".."}
        and not any(character in name for character in "/\\")
        and len(name.encode()) <= MAX_NAME_BYTES
    )

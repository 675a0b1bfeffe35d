"""What a file name tells: the role of the file, its shard set, and whether it is a download."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from model_catalog.errors import InvalidModelError
from model_catalog.files.formats.unread_formats import format_of_name
from model_catalog.files.model_kind import Role

MAX_NAME_BYTES: Final = 255
"""The longest file name, in bytes, that common file systems allow."""

WEIGHT_ROLES: Final[tuple[Role, ...]] = ("weights", "adapter", "projector", "draft", "imatrix")
"""The roles of files with tensors. Each can be a model of its own."""

_SHARD_NAME: Final = re.compile(
    r"(?P<stem>.+)-(?P<index>[0-9]{5})-of-(?P<count>[0-9]{5,6})"
    r"(?P<suffix>(\.[A-Za-z0-9_]+)?\.(?i:gguf|safetensors|bin))"
)
_INDEX_NAME: Final = re.compile(
    r"(?P<stem>.+)(?P<ending>\.(?i:safetensors|bin))\.index(?P<variant>\.[A-Za-z0-9_]+)?\.json"
)
_READ_SUFFIXES: Final = (".gguf", ".safetensors", ".sft", ".bin", ".ckpt", ".pt", ".pth")
# Endings of huggingface_hub (with and without the id of a try), llama.cpp, LM Studio, Jan, LocalAI,
# ModelScope (with the first and the last byte of a piece), curl and wget wrappers and browsers, and
# of the pieces of a file that was split without headers.
_PARTIAL_NAME: Final = re.compile(
    r"(?s:(?P<name>.+?))"
    r"(\.[0-9a-f]{8}\.incomplete|\.incomplete|\.downloadInProgress|\.sync\.part|\.part|\.partial"
    r"|\.downloading|\.download|\.crdownload|\.tmp|-partial(-[0-9]+)?|\.parallel_tmp"
    r"|(?<=\.safetensors)_[0-9]+_[0-9]+|(?<=\.(?:gguf|onnx))_[0-9]+_[0-9]+"
    r"|(?<=\.(?:bin|pth))_[0-9]+_[0-9]+|(?<=\.pt)_[0-9]+_[0-9]+"
    r"|(?<=\.gguf)([.-]split-[a-z]|\.part-[a-z]|\.part[0-9]+of[0-9]+))",
    re.IGNORECASE,
)
_PIECE_NAME: Final = re.compile(
    r".+\.gguf([.-]split-[a-z]|\.part-[a-z]|\.part[0-9]+of[0-9]+)", re.IGNORECASE | re.DOTALL
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
# transformers (Trainer), accelerate and DeepSpeed write these beside the weights, to continue a
# training later.
_TRAINING_STATE: Final = re.compile(
    r"(optimizer|scheduler|scaler|sampler|rng_state|random_states)(_[0-9]+)?\.(pt|pth|bin)"
    r"|training_args\.bin|.*_optim_states\.pt"
)
_FILE_MANAGER_NAMES: Final = (".DS_Store", "Thumbs.db", "desktop.ini")
# Blobs of Ollama, Docker Model Runner and RamaLama.
_DIGEST_NAME: Final = re.compile(r"(sha256[-:])?[0-9a-fA-F]{64}|[0-9a-fA-F]{128}")
# GPT4All
_PARTIAL_PREFIX: Final = "incomplete-"
_CONTROL_SUFFIX: Final = ".aria2"
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

    `count_text` is N with the zeros that the names contain. `suffix` may begin with a variant, as
    in `.fp16.safetensors`. Some programs count from 00000.
    """

    stem: str
    count_text: str
    suffix: str

    @property
    def count(self) -> int:
        """The number of shards in the set."""
        return int(self.count_text)

    def numbers(self, existing: Collection[int]) -> range:
        """
        Return the numbers of all shards, if shards with the given numbers exist.

        The count begins at 0 if the shard 0 exists, and at 1 otherwise.
        """
        first = 0 if 0 in existing else 1
        last = self.count if first == 1 or self.count in existing else self.count - 1
        return range(first, last + 1)

    def file_name(self, number: int) -> str:
        """Return the name of the shard with a number."""
        return f"{self.stem}-{number:05}-of-{self.count_text}{self.suffix}"

    def file_names(self, existing: Collection[int] = ()) -> Iterator[str]:
        """Yield the names of all shards in order, counted as `numbers` does."""
        return map(self.file_name, self.numbers(existing))

    @property
    def index_names(self) -> tuple[str, ...]:
        """The names that the index of the set can have, with the variant in either place."""
        variant, _, ending = self.suffix.lower().rpartition(".")
        stem, dot, stem_variant = self.stem.rpartition(".")
        if not variant and dot:
            # transformers and older releases of diffusers: m.fp16-00001-of-00002.safetensors
            return (
                f"{self.stem}.{ending}.index.json",
                f"{stem}.{ending}.index.{stem_variant}.json",
            )
        return (
            f"{self.stem}.{ending}.index{variant}.json",
            f"{self.stem}{variant}.{ending}.index.json",
        )


# The files of different models mostly have the same names.
@lru_cache(maxsize=1024)
def parse_shard_name(name: str) -> tuple[int, ShardSet] | None:
    """
    Return the shard number, counted from 0 or 1, and the shard set of a name.

    Examples of such a name are `m-00001-of-00003.gguf`, which llama.cpp writes, and
    `m-00001-of-00003.fp16.safetensors`, which diffusers writes. The result is None for any other
    name.
    """
    # Most names are not those of shards, and the regular expression takes longer.
    match = _SHARD_NAME.fullmatch(name) if "-of-" in name else None
    if match is None or not 0 <= int(match["index"]) <= int(match["count"]):
        return None
    return int(match["index"]), ShardSet(match["stem"], match["count"], match["suffix"])


@lru_cache(maxsize=1024)
def file_role(name: str) -> Role:
    """Return the role of a file, from its name only. The name may be a path."""
    path, name = name, name.rpartition("/")[2].lower()
    if name.endswith(_READ_SUFFIXES) or format_of_name(path) is not None:
        return "other" if _TRAINING_STATE.fullmatch(name) else _role_of_weights(name)
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


def is_index(name: str) -> bool:
    """Return whether a file lists shards of safetensors or .bin files, as in `m.bin.index.json`."""
    return _INDEX_NAME.fullmatch(name) is not None


def is_partial_download(name: str) -> bool:
    """Return whether download programs use such a name for an unfinished download."""
    return finished_name(name) is not None or is_control_file(name)


def is_piece(name: str) -> bool:
    """Return whether a file is a piece of one that was split without headers, and not a shard."""
    return _PIECE_NAME.fullmatch(name) is not None


def finished_name(name: str) -> str | None:
    """Return the name that an unfinished download gets at its end; None for any other name."""
    if name.startswith(_PARTIAL_PREFIX) and len(name) > len(_PARTIAL_PREFIX):
        return name.removeprefix(_PARTIAL_PREFIX)
    match = _PARTIAL_NAME.fullmatch(name)
    return None if match is None else match["name"]


def is_control_file(name: str) -> bool:
    """
    Return whether a file says that the file of the same name without its ending is unfinished.

    aria2 writes to the final name, and removes `NAME.aria2` at the end.
    """
    return name.endswith(_CONTROL_SUFFIX) and name != _CONTROL_SUFFIX


def is_digest_name(name: str) -> bool:
    """Return whether a store has named a file by a digest, so that its name tells nothing else."""
    return _DIGEST_NAME.fullmatch(name) is not None


def is_system_file(name: str) -> bool:
    """
    Return whether an operating system creates such a file beside the files of its users.

    These are the files of file managers, and AppleDouble files (`._NAME`): macOS writes one beside
    each file on a disk without extended attributes, such as exFAT or SMB.
    """
    return name.startswith("._") or name in _FILE_MANAGER_NAMES


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

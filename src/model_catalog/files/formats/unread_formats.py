"""
Name the formats of weights that this package does not read, by file names and by first bytes.

A model in such a format is recorded, and its completeness is unknown. Also recognise what stands in
place of weights: a pointer of Git LFS, or a web page.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

UNKNOWN: Final = "unknown"
"""Stands for the format of weights that begin like no format known here."""

FORMAT_LABELS: Final[Mapping[str, str]] = {
    "onnx": "ONNX",
    "tensorflow": "TensorFlow or Keras",
    "flax": "Flax (msgpack)",
    "npz": "NumPy (npz)",
    "nemo": "NeMo",
    "openvino": "OpenVINO",
    "ctranslate2": "CTranslate2",
    "coreml": "Core ML",
    "tflite": "TensorFlow Lite or LiteRT",
    "paddle": "PaddlePaddle",
    "executorch": "ExecuTorch",
    "ggml": "GGML",
    "llamafile": "llamafile",
    "tensorrt": "TensorRT",
    "mnn": "MNN",
}
"""The formats that are named and not read, with the texts that messages use."""

_FORMATS_BY_ENDING: Final[Mapping[str, str]] = {
    ".onnx": "onnx",
    ".onnx_data": "onnx",
    ".onnx.data": "onnx",
    ".ort": "onnx",
    ".h5": "tensorflow",
    ".keras": "tensorflow",
    ".pb": "tensorflow",
    ".msgpack": "flax",
    ".npz": "npz",
    ".nemo": "nemo",
    ".mlmodel": "coreml",
    ".tflite": "tflite",
    ".litertlm": "tflite",
    ".task": "tflite",
    ".pdparams": "paddle",
    ".pdiparams": "paddle",
    ".pte": "executorch",
    ".ggml": "ggml",
    ".llamafile": "llamafile",
    ".engine": "tensorrt",
    ".mnn": "mnn",
}
UNREAD_ENDINGS: Final = tuple(_FORMATS_BY_ENDING)
"""The endings, in lower case, of the names of files with weights in these formats."""

# TensorFlow's checkpoints are NAME.data-00000-of-00001 and NAME.index.
_TENSORFLOW_DATA: Final = re.compile(r".*\.data-[0-9]{5}-of-[0-9]{5}")
# ONNX graphs may keep their tensors in files that are called NAME.onnx_data_1 and so on.
_ONNX_DATA: Final = re.compile(r".*\.onnx_data(_[0-9]+)?")
_CTRANSLATE2_SPEC: Final = re.compile(rb"[\x01-\x20]\0\0\0[\x02-\x40]\0[A-Za-z]+Spec\0", re.DOTALL)
_FORMATS_BY_MAGIC: Final[Mapping[bytes, str]] = {
    # Little-endian `ggml`, `ggmf`, `ggjt` and `ggla` of llama.cpp before GGUF, and of whisper.cpp.
    **dict.fromkeys((b"lmgg", b"fmgg", b"tjgg", b"algg"), "ggml"),
    b"\x89HDF\r\n\x1a\n": "tensorflow",
    b"MZqFpD": "llamafile",
}
_LFS_POINTER: Final = re.compile(
    rb"version https://(git-lfs\.github|hawser\.github)\.com/spec/v1\n(ext-[^\n]*\n)*"
    rb"oid sha256:(?P<digest>[0-9a-f]{64})\nsize (?P<size>[0-9]{1,19})\n?"
)
MAX_POINTER_BYTES: Final = 1024
"""Git LFS treats no larger file as a pointer."""
POINTER_BYTES: Final = range(100, 201)
"""The sizes of nearly all pointers: without extensions they have 127 to 145 bytes."""
HEAD_BYTES: Final = 512
"""The first bytes that `format_of_bytes` and `is_web_page` look at."""


class LfsPointer(NamedTuple):
    """The size in bytes and the digest (`sha256:` and digits) that a pointer of Git LFS names."""

    size_bytes: int
    digest: str


def format_of_name(path: str, paths: Collection[str] = ()) -> str | None:
    """
    Return the format of a file of weights that is not read, from its path; otherwise None.

    `paths` are those of the other files of the model: the weights of OpenVINO are a `.bin` file
    beside an `.xml` file of the same name.
    """
    lower = path.lower()
    if (".mlpackage/" in lower or ".mlmodelc/" in lower) and lower.endswith((".bin", ".mlmodel")):
        return "coreml"
    if _TENSORFLOW_DATA.fullmatch(lower):
        return "tensorflow"
    if _ONNX_DATA.fullmatch(lower):
        return "onnx"
    if lower.endswith(".bin"):
        return "openvino" if f"{path[:-4]}.xml" in paths else None
    if not lower.endswith(UNREAD_ENDINGS):
        return None
    return next(name for ending, name in _FORMATS_BY_ENDING.items() if lower.endswith(ending))


def format_of_bytes(head: bytes) -> str | None:
    """Return the format that a file with these first bytes has, if it is one that is not read."""
    if _CTRANSLATE2_SPEC.match(head):
        return "ctranslate2"
    if head[4:6] == b"ET" and head[6:8].isdigit():
        return "executorch"
    if head[4:8] == b"TFL3":
        return "tflite"
    return next((name for magic, name in _FORMATS_BY_MAGIC.items() if head.startswith(magic)), None)


def parse_lfs_pointer(content: bytes) -> LfsPointer | None:
    """Return what a pointer of Git LFS (specification v1) names; None for any other content."""
    match = _LFS_POINTER.fullmatch(content)
    if match is None:
        return None
    return LfsPointer(int(match["size"]), f"sha256:{match['digest'].decode()}")


def is_web_page(head: bytes) -> bool:
    """Return whether a file begins as an HTML page, as a login page or an error of a server."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return text.startswith((b"<!doctype html", b"<html", b"<head"))

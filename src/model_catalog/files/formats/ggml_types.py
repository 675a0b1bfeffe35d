"""
The numbers of tensor types and of file types in a GGUF file, and their names.

They are those of gguf 0.19.0; 31 to 33 are from gguf 0.10.0, and Q2_0 is from llama.cpp 0c1e57098.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

TENSOR_TYPES: Final[Mapping[int, tuple[str, int, int]]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    31: ("Q4_0_4_4", 32, 18),
    32: ("Q4_0_4_8", 32, 18),
    33: ("Q4_0_8_8", 32, 18),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}
"""For each tensor type: its name, the elements in a block, and the bytes of a block."""

_FILE_TYPES: Final[Mapping[int, str]] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    33: "Q4_0_4_4",
    34: "Q4_0_4_8",
    35: "Q4_0_8_8",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}
_GUESSED_FLAG: Final = 1024
"""Added to the file type by a converter that guessed the type."""


def file_type_name(number: int) -> str:
    """Return the usual name of a quantization, or for example `ftype 99` for an unknown number."""
    number &= ~_GUESSED_FLAG
    return _FILE_TYPES.get(number, f"ftype {number}")


def tensor_type_name(number: int) -> str:
    """Return the name of a tensor type, or for example `type 99` for an unknown number."""
    return TENSOR_TYPES[number][0] if number in TENSOR_TYPES else f"type {number}"


def block_elements(number: int) -> int:
    """Return the elements in a block of a tensor type; 1 if the type is unknown."""
    return TENSOR_TYPES[number][1] if number in TENSOR_TYPES else 1


def tensor_size_bytes(number: int, elements: int) -> int | None:
    """Return the size of a tensor in bytes, or None if its type is unknown."""
    if number not in TENSOR_TYPES:
        return None
    _, block, block_bytes = TENSOR_TYPES[number]
    return elements // block * block_bytes

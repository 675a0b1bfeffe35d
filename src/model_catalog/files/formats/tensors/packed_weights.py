"""
Count the parameters of weights that a quantization has packed into integers.

The names of the tensors tell the program that packed them. Read from the code of these programs:
GPTQ and AWQ (`qweight`, 32-bit words), compressed-tensors (`weight_packed`), mlx-lm (`weight` in
U32 words, with `scales`), bitsandbytes (`weight` in U8 with `absmax`, two parameters a byte, or
`weight` in I8 with `SCB`), MXFP4 of transformers (`_blocks`), ModelOpt NVFP4 (`weight` in U8 with
`weight_scale`), and FP8 (`weight` in F8 with `weight_scale`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

TensorCounts: TypeAlias = tuple[tuple[str, str, int], ...]
"""For each part of a weight and each data type: the part, the type and the number of elements."""

_WORD_BITS: Final = 32
_SCALE_PARTS: Final = {
    *("absmax", "biases", "g_idx", "input_global_scale", "input_scale", "k_scale"),
    *("nested_absmax", "nested_quant_map", "output_scale", "quant_map", "quant_state", "qzeros"),
    *("SCB", "scales", "v_scale", "weight_format", "weight_g_idx", "weight_global_scale"),
    *("weight_scale", "weight_scale_2", "weight_scale_inv", "weight_shape"),
    *("weight_zero_point", "_scales"),
}
"""The parts that a quantization adds to a weight."""
_PACKED_PARTS: Final = {"qweight", "weight", "weight_packed", "_blocks"}
_PARTS: Final = _SCALE_PARTS | _PACKED_PARTS
_WORD_TYPES: Final = {"I32", "U32"}
_FP8_WEIGHTS: Final = {
    ("weight", dtype) for dtype in ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
}
_FP_SCALES: Final = {"weight_scale", "weight_scale_inv", "weight_scale_2"}
_METHODS: Final[tuple[tuple[str, set[tuple[str, str]], set[str]], ...]] = (
    ("words", {("qweight", "I32"), ("weight_packed", "I32")}, set()),
    ("mlx", {("weight", "U32")}, {"scales"}),
    ("bitsandbytes 4-bit", {("weight", "U8")}, {"absmax", "quant_state"}),
    ("bitsandbytes 8-bit", {("weight", "I8")}, {"SCB"}),
    ("mxfp4", {("_blocks", "U8")}, {"_scales"}),
    ("fp4", {("weight_packed", "U8")}, set()),
    ("fp4", {("weight", "U8")}, _FP_SCALES),
    ("fp8", _FP8_WEIGHTS, _FP_SCALES),
)
"""For each method: the kinds of its weights, and the parts of which one must be there too."""


@dataclass(frozen=True)
class Packing:
    """
    The settings of a config.json that tell how weights are packed. None means unknown.

    `bits` is the width of all weights. `group_size` is the number of weights with one scale, if it
    is the same for all.
    """

    bits: int | None = None
    group_size: int | None = None


def part_of_name(name: str) -> str:
    """Return the part of a quantized weight that a tensor is; "" for all other names."""
    last = name.rpartition(".")[2]
    if last in _PARTS:
        return last
    if last.endswith(("_blocks", "_scales")):
        return last[-7:]
    return "quant_state" if ".quant_state." in name else ""


def merge_counts(parts: Iterable[TensorCounts]) -> TensorCounts:
    """Add up the counts of several files."""
    totals: Counter[tuple[str, str]] = Counter()
    for counts in parts:
        for part, dtype, elements in counts:
            totals[part, dtype] += elements
    return tuple((part, dtype, elements) for (part, dtype), elements in totals.items())


def main_dtype(counts: TensorCounts) -> str | None:
    """Return the data type with the most elements. None without tensors."""
    totals: Counter[str] = Counter()
    for _, dtype, elements in counts:
        totals[dtype] += elements
    return max(sorted(totals), key=lambda dtype: totals[dtype], default=None)


def count_elements(counts: TensorCounts) -> int:
    """Return the number of elements of all tensors."""
    return sum(elements for _, _, elements in counts)


def packing_method(counts: TensorCounts) -> str | None:
    """
    Return how weights were packed, from the names and types of the tensors. None if they were not.

    The result is "words" for weights of an unknown width in 32-bit words, "unknown" for other
    integers of 32 bits, else the name of a quantization.
    """
    parts = {part for part, _, _ in counts}
    kinds = {(part, dtype) for part, dtype, _ in counts}
    for method, weights, scales in _METHODS:
        if kinds & weights and (not scales or parts & scales):
            return method
    # No model computes with weights of these types.
    return "unknown" if main_dtype(counts) in _WORD_TYPES else None


def count_parameters(counts: TensorCounts, packing: Packing | None) -> int | None:
    """
    Return the number of parameters of the model, or None if it is unknown.

    Without `packing` only those are counted whose width the tensors tell.
    """
    method = packing_method(counts)
    if method is None:
        return count_elements(counts)
    total = 0
    for part, dtype, elements in counts:
        parameters = _parameters(method, (part, dtype), elements, packing or Packing())
        if parameters is None:
            return None
        total += parameters
    return total


def _parameters(method: str, kind: tuple[str, str], elements: int, packing: Packing) -> int | None:
    """Return the parameters in the tensors of a kind, if weights were packed by a method."""
    part, dtype = kind
    if method == "mlx" and part in {"scales", "weight"}:
        if part == "weight":
            # The scales are counted instead, because the width can differ from layer to layer.
            return 0 if dtype == "U32" else elements
        return None if packing.group_size is None else elements * packing.group_size
    if part in _SCALE_PARTS:
        return 0
    if dtype in _WORD_TYPES:
        is_known = method == "words" and part in _PACKED_PARTS and packing.bits is not None
        return elements * _WORD_BITS // (packing.bits or 1) if is_known else None
    return 2 * elements if dtype == "U8" and part in _PACKED_PARTS else elements

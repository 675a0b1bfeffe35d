"""What a config.json says about the quantization of the weights, by the program that wrote it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from model_catalog.files.formats import header
from model_catalog.files.formats.tensors.packed_weights import Packing

_MAX_BITS: Final = 64
_MAX_GROUP_SIZE: Final = 65_536
_BIT_NAMES: Final = ("bits", "w_bit", "nbits")
"""GPTQ and AWQ write `bits`, older versions of AutoAWQ `w_bit`, and HQQ `nbits`."""


@dataclass(frozen=True)
class Quantization:
    """
    The quantization of a model: its name, for example `gptq 4-bit`, and how weights are packed.

    `packing` is None if the config says nothing about a quantization.
    """

    name: str | None = None
    packing: Packing | None = None


def read_quantization(member: str, settings: object) -> Quantization:
    """
    Read the member `quantization` or `quantization_config` of a config.json.

    mlx-lm writes both with the same value: `bits`, `group_size`, and an object for each layer that
    differs. The others write `quant_method` in `quantization_config`.
    """
    if not isinstance(settings, dict):
        return Quantization()
    method = header.printable_text(settings.get("quant_method"))
    layers = [each for each in settings.values() if isinstance(each, dict)]
    if method is None and _is_mlx(settings):
        return _mlx(settings, layers)
    if method is None and member == "quantization":
        return Quantization()
    if method is None and settings.keys() & {"load_in_4bit", "load_in_8bit"}:
        method = "bitsandbytes"
    bits = _bits(settings)
    if method is None and bits is None:
        return Quantization()
    name = f"{method or ''} {_width(settings, bits)}".strip()
    return Quantization(header.printable_text(name), Packing(bits))


def best_quantization(found: Iterable[Quantization]) -> Quantization:
    """Return the one of several members that says most."""
    return max(
        found,
        key=lambda each: (each.name is not None, each.packing is not None),
        default=Quantization(),
    )


def _is_mlx(settings: Mapping[str, Any]) -> bool:
    return _integer(settings.get("group_size"), _MAX_GROUP_SIZE) is not None


def _mlx(settings: Mapping[str, Any], layers: list[dict[str, Any]]) -> Quantization:
    group_size = _integer(settings.get("group_size"), _MAX_GROUP_SIZE)
    bits = _integer(settings.get("bits"), _MAX_BITS)
    same_bits = all(each.get("bits", bits) == bits for each in layers)
    same_groups = all(each.get("group_size", group_size) == group_size for each in layers)
    mode = settings.get("mode", "affine")
    words = ["mlx"] if mode == "affine" else ["mlx", str(mode)]
    if bits is not None:
        words.append(f"{bits}-bit" if same_bits else f"mixed, mostly {bits}-bit")
    packing = Packing(bits if same_bits else None, group_size if same_groups else None)
    return Quantization(header.printable_text(" ".join(words)), packing)


def _bits(settings: Mapping[str, Any]) -> int | None:
    """Return the width of the packed weights."""
    if settings.get("load_in_4bit") is True:
        return 4
    if settings.get("load_in_8bit") is True:
        return 8
    groups = settings.get("config_groups")
    if isinstance(groups, dict):
        # compressed-tensors and ModelOpt: a group is a set of layers.
        widths = {
            _integer(weights.get("num_bits"), _MAX_BITS)
            for group in groups.values()
            if isinstance(group, dict) and isinstance(weights := group.get("weights"), dict)
        }
        return widths.pop() if len(widths) == 1 else None
    for name in _BIT_NAMES:
        if (bits := _integer(settings.get(name), _MAX_BITS)) is not None:
            return bits
    return None


def _width(settings: Mapping[str, Any], bits: int | None) -> str:
    if bits is not None:
        return f"{bits}-bit"
    algorithm = settings.get("quant_algo")
    return algorithm if isinstance(algorithm, str) else ""


def _integer(value: object, maximum: int) -> int | None:
    return value if type(value) is int and 0 < value <= maximum else None

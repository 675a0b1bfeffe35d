"""The picture of the layers, drawn from the contract of import-linter in pyproject.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from html import escape
from importlib import import_module
from inspect import getdoc
from pathlib import Path
from textwrap import wrap
from typing import Final

_PYPROJECT: Final = Path(__file__).parents[2] / "pyproject.toml"

_WIDTH: Final = 760
_GAP: Final = 10
_ARROW_HEIGHT: Final = 22
_NAME_LINE: Final = 26
_TEXT_LINE: Final = 15
_PADDING: Final = 8
_CHARACTER_WIDTH: Final = 6.4


def read_layers() -> list[list[str]]:
    """Return the names of the packages of each layer, the highest layer first."""
    contracts = tomllib.loads(_PYPROJECT.read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (each["layers"] for each in contracts if each["type"] == "layers")
    return [[name.strip() for name in layer.split("|")] for layer in layers]


def describe(name: str) -> str:
    """Return the first paragraph of a docstring, without backticks and the last full stop."""
    doc = getdoc(import_module(f"model_catalog.{name}")) or ""
    return " ".join(doc.split("\n\n")[0].replace("`", "").split()).removesuffix(".")


def draw_layers(layers: Sequence[Sequence[str]]) -> str:
    """Return the SVG image as text: a row for each layer, and an arrow to the next one."""
    parts: list[str] = []
    y = 1.0
    for number, names in enumerate(layers):
        if number:
            parts.append(
                f'<path class="arrow" marker-end="url(#layer-head)" '
                f'd="M{_WIDTH / 2:g} {y - _ARROW_HEIGHT + 3:g}V{y - 3:g}"/>'
            )
        width = (_WIDTH - 2 - _GAP * (len(names) - 1)) / len(names)
        texts = [wrap(describe(name), int((width - 16) / _CHARACTER_WIDTH)) for name in names]
        height = _NAME_LINE + max(map(len, texts)) * _TEXT_LINE + _PADDING
        for position, (name, lines) in enumerate(zip(names, texts, strict=True)):
            x = 1 + position * (width + _GAP)
            parts.extend(_draw_box(name, lines, (x, y, width, height)))
        y += height + _ARROW_HEIGHT
    return "".join((_head(y - _ARROW_HEIGHT + 1, layers), *parts, "</svg>"))


def _head(height: float, layers: Sequence[Sequence[str]]) -> str:
    order = "; ".join(" and ".join(names) for names in layers)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:g}" role="img" '
        f'class="diagram layer-diagram" aria-label="Layers, from the top: {escape(order)}">'
        '<defs><marker id="layer-head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>'
    )


def _draw_box(
    name: str, lines: Sequence[str], box: tuple[float, float, float, float]
) -> Iterator[str]:
    x, y, width, height = box
    middle = x + width / 2
    yield f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>'
    yield f'<text class="name" x="{middle:g}" y="{y + 20:g}">{escape(name)}</text>'
    for number, line in enumerate(lines):
        below = y + _NAME_LINE + (number + 0.75) * _TEXT_LINE
        yield f'<text x="{middle:g}" y="{below:g}">{escape(line)}</text>'

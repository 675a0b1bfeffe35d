"""Diagrams of the pages: boxes on a grid and arrows between them, drawn as SVG images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

_CELL_WIDTH: Final = 260
_CELL_HEIGHT: Final = 92
_BOX_WIDTH: Final = 132
_BOX_HEIGHT: Final = 38
_LABEL_LINE: Final = 13


@dataclass(frozen=True)
class Arrow:
    """An arrow between two boxes. The lines of `label` are written at its middle."""

    start: str
    end: str
    label: str = ""
    shift: int = 0
    """How far the arrow is moved sideways, in pixels, so that two arrows do not overlap."""


@dataclass(frozen=True)
class Diagram:
    """Boxes, named by their texts, at (column, row), and arrows between them."""

    title: str
    boxes: Mapping[str, tuple[float, float]]
    arrows: Sequence[Arrow]

    def draw(self) -> str:
        """Return the SVG image as text. Its colours are those of the text around it."""
        width = (max(column for column, _ in self.boxes.values()) + 1) * _CELL_WIDTH
        height = (max(row for _, row in self.boxes.values()) + 1) * _CELL_HEIGHT
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
            f'role="img" class="diagram" aria-label="{escape(self.title)}">'
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto-start-reverse"><path class="tip" d="M0 0L8 4L0 8z"/>'
            "</marker></defs>"
        )
        parts = [head, *(self._draw_arrow(arrow) for arrow in self.arrows)]
        for name in self.boxes:
            x, y = self._middle(name)
            parts.append(
                f'<rect x="{x - _BOX_WIDTH / 2:g}" y="{y - _BOX_HEIGHT / 2:g}" rx="6" '
                f'width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}"/>'
                f'<text class="name" x="{x:g}" y="{y + 4:g}">{escape(name)}</text>'
            )
        return "".join((*parts, "</svg>"))

    def _middle(self, name: str) -> tuple[float, float]:
        column, row = self.boxes[name]
        return (column + 0.5) * _CELL_WIDTH, (row + 0.5) * _CELL_HEIGHT

    def _draw_arrow(self, arrow: Arrow) -> str:
        (x1, y1), (x2, y2) = self._middle(arrow.start), self._middle(arrow.end)
        if y1 == y2:
            side = 1 if x2 > x1 else -1
            x1, x2 = x1 + side * _BOX_WIDTH / 2, x2 - side * _BOX_WIDTH / 2
            y1, y2 = y1 + arrow.shift, y2 + arrow.shift
        else:
            side = 1 if y2 > y1 else -1
            y1, y2 = y1 + side * _BOX_HEIGHT / 2, y2 - side * _BOX_HEIGHT / 2
            x1, x2 = x1 + arrow.shift, x2 + arrow.shift
        lines = arrow.label.split("\n")
        x, y = (x1 + x2) / 2, (y1 + y2) / 2 - (len(lines) - 1) * _LABEL_LINE - 5
        y += max(arrow.shift, 0) + 5 * (y1 != y2)
        label = "".join(
            f'<text class="label" x="{x:g}" y="{y + number * _LABEL_LINE:g}">{escape(line)}</text>'
            for number, line in enumerate(lines)
            if line
        )
        return (
            f'<path class="arrow" marker-end="url(#head)" d="M{x1:g} {y1:g}L{x2:g} {y2:g}"/>{label}'
        )


FILE_STATES: Final = Diagram(
    "The states of the files of a model",
    {
        "unchecked": (0, 1),
        "present": (1, 1),
        "changed": (2, 0),
        "missing": (2, 1),
        "offline": (2, 2),
        "unreadable": (1, 2),
    },
    (
        Arrow("unchecked", "present", "check: all files\nare as recorded"),
        Arrow("present", "changed", "written or touched"),
        Arrow("present", "missing", "file deleted", -8),
        Arrow("missing", "present", "it is back", 14),
        Arrow("present", "offline", "disk not mounted"),
        Arrow("present", "unreadable", "no permission"),
    ),
)

LIFE_CYCLE: Final = Diagram(
    "The life of a model",
    {
        "not recorded": (0, 0),
        "claimed": (1, 0),
        "recorded": (2, 0),
        "in use": (3, 0),
        "scanned": (1, 1.3),
        "verified": (2, 1.3),
        "evicted": (3, 1.3),
    },
    (
        Arrow("not recorded", "claimed", "get_or_download:\none caller"),
        Arrow("claimed", "recorded", "downloaded\nand whole"),
        Arrow("recorded", "in use", "use_model", -8),
        Arrow("in use", "recorded", "block ends", 14),
        Arrow("not recorded", "scanned", "scan, add"),
        Arrow("scanned", "recorded", "adopt"),
        Arrow("recorded", "verified", "verify"),
        Arrow("recorded", "evicted", "prune"),
    ),
)

DOWNLOAD_STATES: Final = Diagram(
    "The states of a download",
    {"queued": (0, 0), "running": (1, 0), "done": (2, 0), "failed": (1, 1)},
    (
        Arrow("queued", "running", "a slot is free"),
        Arrow("running", "done", "registered"),
        Arrow("running", "failed", "error, cancelled, lease expired"),
        Arrow("queued", "failed", ""),
    ),
)

DIAGRAMS: Final[Mapping[str, Diagram]] = {
    "file-states": FILE_STATES,
    "life-cycle": LIFE_CYCLE,
    "download-states": DOWNLOAD_STATES,
}

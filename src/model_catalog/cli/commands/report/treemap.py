"""
Divide a rectangle into rectangles whose areas are proportional to sizes.

The squarified layout of Bruls, Huizing and van Wijk, "Squarified Treemaps" (2000): rows are filled
along the shorter side, and a row ends when another item would make its rectangles less square.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Rectangle(NamedTuple):
    """A rectangle: its upper left corner, its width and its height, in one unit."""

    x: float
    y: float
    width: float
    height: float

    def inset(self, border: float, top: float) -> Rectangle:
        """Return the rectangle without a border and a strip at its top; never below zero."""
        return Rectangle(
            self.x + border,
            self.y + top,
            max(0.0, self.width - 2 * border),
            max(0.0, self.height - top - border),
        )


def divide(area: Rectangle, sizes: Sequence[float]) -> list[Rectangle]:
    """
    Return a rectangle for each size, in the order of the sizes.

    `sizes` must be positive and sorted, largest first. The rectangles fill the area.
    """
    total = sum(sizes)
    if not total:
        return []
    scale = area.width * area.height / total
    pending = [size * scale for size in sizes]
    found: list[Rectangle] = []
    while pending:
        side = min(area.width, area.height)
        count = 1
        while count < len(pending) and _worst_ratio(pending[: count + 1], side) <= _worst_ratio(
            pending[:count], side
        ):
            count += 1
        row, pending = pending[:count], pending[count:]
        placed, area = _place_row(area, row)
        found += placed
    return found


def _worst_ratio(row: Sequence[float], side: float) -> float:
    """The largest ratio of the sides of a row's rectangles. `row` has areas, largest first."""
    total = sum(row)
    if not side or not total or not row[-1]:
        return float("inf")
    return max(side**2 * row[0] / total**2, total**2 / (side**2 * row[-1]))


def _place_row(area: Rectangle, row: Sequence[float]) -> tuple[list[Rectangle], Rectangle]:
    """Place a row along the shorter side; return its rectangles, and the area that is left."""
    is_tall = area.width < area.height
    side = area.width if is_tall else area.height
    depth = sum(row) / side if side else 0.0
    placed, offset = [], 0.0
    for each in row:
        length = each / depth if depth else 0.0
        placed.append(
            Rectangle(area.x + offset, area.y, length, depth)
            if is_tall
            else Rectangle(area.x, area.y + offset, depth, length)
        )
        offset += length
    left = (
        Rectangle(area.x, area.y + depth, area.width, max(0.0, area.height - depth))
        if is_tall
        else Rectangle(area.x + depth, area.y, max(0.0, area.width - depth), area.height)
    )
    return placed, left

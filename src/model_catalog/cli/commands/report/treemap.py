"""
Divide a rectangle into rectangles whose areas are proportional to sizes.

The squarified layout of Bruls, Huizing and van Wijk, "Squarified Treemaps" (2000): rows are filled
along the shorter side, and a row ends when another item would make its rectangles less square.
"""

from __future__ import annotations

import math
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
    pending = list(sizes)
    found: list[Rectangle] = []
    while pending:
        side = min(area.width, area.height)
        scale = area.width * area.height / sum(pending)
        count = 1
        while count < len(pending) and _worst_ratio(
            pending[: count + 1], scale, side
        ) <= _worst_ratio(pending[:count], scale, side):
            count += 1
        placed, area = _place_row(area, pending[:count], sum(pending))
        found += placed
        pending = pending[count:]
    return found


def _worst_ratio(row: Sequence[float], scale: float, side: float) -> float:
    """The largest ratio of the sides of a row's rectangles, whose areas are `scale` times `row`."""
    area = sum(row) * scale
    if not side or not area or not row[-1] * scale:
        return math.inf
    return max(side**2 * row[0] * scale / area**2, area**2 / (side**2 * row[-1] * scale))


def _place_row(
    area: Rectangle, row: Sequence[float], total: float
) -> tuple[list[Rectangle], Rectangle]:
    """
    Place a row along the shorter side; return its rectangles, and the area that is left.

    Lengths are shares of the sides, so that rounding cannot leave the area.
    """
    is_tall = area.width < area.height
    side, other_side = sorted((area.width, area.height))
    depth = other_side * (sum(row) / total)
    placed, before, row_total = [], 0.0, sum(row)
    for each in row:
        offset, length = side * (before / row_total), side * (each / row_total)
        before += each
        placed.append(
            Rectangle(area.x + offset, area.y, length, depth)
            if is_tall
            else Rectangle(area.x, area.y + offset, depth, length)
        )
    left = (
        Rectangle(area.x, area.y + depth, area.width, area.height - depth)
        if is_tall
        else Rectangle(area.x + depth, area.y, area.width - depth, area.height)
    )
    return placed, left

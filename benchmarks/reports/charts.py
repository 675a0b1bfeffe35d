"""Charts as SVG, drawn by matplotlib. The same numbers give the same file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from itertools import count
from typing import Any, Final

_OWN_COLORS: Final = ("#d1242f", "#e8761a", "#c2408e", "#c99700")
_OTHER_COLORS: Final = (
    "#57606a", "#2f8f83", "#8250df", "#4f86c6", "#7c8f2f", "#8a7360", "#3aa0b5", "#b65b5b",
)  # fmt: skip
_OTHER_MARKERS: Final = "sD^vPX<>p*h"
_LIBRARY_SUFFIX: Final = ", asyncpg"
_SHIFT: Final = 0.17


def draw_ratios(
    ratios: Mapping[str, Mapping[str, float]], own_names: Sequence[str], heading: str
) -> str:
    """
    One line for each benchmark, one marker for each contender at its ratio to the baseline.

    `own_names` are the contenders that are drawn larger and above the line of their benchmark; the
    others are drawn below it. Ratios that are not finite or not positive are left out, because the
    axis is logarithmic.
    """
    rows = {
        title: {name: ratio for name, ratio in row.items() if math.isfinite(ratio) and ratio > 0}
        for title, row in ratios.items()
    }
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    names.sort(key=lambda name: name not in own_names)
    styles = _marker_styles(names, own_names)
    with _figure(10, 2 + 0.42 * len(rows)) as (figure, axes):
        for name in names:
            shift = -_SHIFT if name in own_names else _SHIFT
            points = [
                (row[name], number + shift)
                for number, row in enumerate(rows.values())
                if name in row
            ]
            axes.plot(*zip(*points, strict=True), label=name, linestyle="none", **styles[name])
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:f}".rstrip("0").rstrip(".") + "x")
        axes.minorticks_off()
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(color="#d0d7de", linewidth=0.6)
        axes.axvline(1, color="#57606a", linewidth=1.2, zorder=1)
        axes.set_xlabel("time per call as a multiple of the baseline; left is faster; logarithmic")
        return _to_svg(figure, heading, columns=4)


def draw_growth(calls: Mapping[str, Mapping[int, float]], heading: str) -> str:
    """One line for each call: the number of models across, microseconds up; both logarithmic."""
    with _figure(9, 5) as (figure, axes):
        colors = (*_OTHER_COLORS[1:], *_OWN_COLORS)
        for (call, seconds), color, marker in zip(
            calls.items(), colors, _OTHER_MARKERS, strict=False
        ):
            points = sorted((rows, cost * 1e6) for rows, cost in seconds.items() if cost > 0)
            axes.plot(*zip(*points, strict=True), label=call, color=color, marker=marker)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.grid(color="#d0d7de", linewidth=0.6)
        axes.set_xlabel("number of models in the catalog")
        axes.set_ylabel("microseconds per call")
        return _to_svg(figure, heading, columns=3)


def _marker_styles(names: Sequence[str], own_names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A color and a shape for each name. A library has the same on both databases."""
    own_numbers, other_numbers = count(), count()
    others: dict[str, int] = {}
    styles: dict[str, dict[str, Any]] = {}
    for name in names:
        if name in own_names:
            color = _OWN_COLORS[next(own_numbers) % len(_OWN_COLORS)]
            styles[name] = {"color": color, "marker": "o", "markersize": 8, "zorder": 4}
            continue
        library = name.removesuffix(_LIBRARY_SUFFIX)
        if library not in others:
            others[library] = next(other_numbers)
        number = others[library]
        styles[name] = {
            "color": _OTHER_COLORS[number % len(_OTHER_COLORS)],
            "marker": _OTHER_MARKERS[number % len(_OTHER_MARKERS)],
            "markersize": 6,
            "alpha": 0.85,
            "zorder": 3,
        }
    return styles


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Any, Any]]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    options = {
        "svg.hashsalt": "model-catalog",  # the identifiers in the file, otherwise random
        "svg.fonttype": "none",  # text stays text: the file is smaller and can be searched
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(options):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def _to_svg(figure: Any, heading: str, columns: int) -> str:
    figure.suptitle(heading, fontsize=13, fontweight="bold")
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Title": heading}, facecolor="white")
    return text.getvalue()

"""The charts: SVG written by hand, to be read on a light ground and on a dark one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Final

from benchmarks.cases.growth import Growth
from benchmarks.harness.rounds import Result

# Middling tones, that stand out from white as from black.
_TONES: Final = (
    "#8b949e", "#c2793f", "#2f8f83", "#9a6dd7", "#b6628f",
    "#7c8f2f", "#4f86c6", "#a08a2a", "#b65b5b", "#5f9e5f", "#3aa0b5", "#8a7360", "#6e6fd0",
)  # fmt: skip
_OURS: Final = ("#e5484d", "#f0883e", "#d6409f", "#e5a000")
_LEFT, _RIGHT, _TOP, _ROW, _FOOT = 250, 30, 96, 26, 40
_WIDTH: Final = 900
_STYLE: Final = (
    "text{font:12px system-ui,sans-serif;fill:#24292f}"
    ".head{font-size:15px;font-weight:600}.small{font-size:11px}"
    ".rule{stroke:#8b949e;stroke-opacity:.35}.base{stroke:#8b949e;stroke-width:1.5}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}}"
)


def ratios(
    results: Mapping[str, Result], titles: Sequence[str], ours: Sequence[str], heading: str
) -> str:
    """A line a work and a dot a contender, at its ratio to the base; to the left is faster."""
    rows = [(title, results[title].ratios) for title in titles if title in results]
    rows = [(title, {n: r for n, r in of.items() if _drawable(r)}) for title, of in rows]
    names = list(dict.fromkeys(name for _, of in rows for name in of))
    names.sort(key=lambda name: name in ours)
    tones = _tones(names, ours)
    low, high = _decades(ratio for _, of in rows for ratio in of.values())

    def across(ratio: float) -> float:
        share = (math.log10(ratio) - low) / (high - low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    legend, top = _legend(names, tones)
    bottom = top + len(rows) * _ROW
    drawn = [_text(12, 24, heading, "head"), _text(12, 42, _MEANING, "small"), *legend]
    for power in range(low, high + 1):
        x = across(10.0**power)
        kind = "base" if power == 0 else "rule"
        drawn.append(_line(x, top, x, bottom, kind))
        drawn.append(_text(x, bottom + 18, f"{10.0**power:g}x", "small", "middle"))
    for number, (title, of) in enumerate(rows):
        y = top + number * _ROW + _ROW / 2
        drawn.append(_text(_LEFT - 12, y + 4, title, anchor="end"))
        drawn.append(_line(_LEFT, y, _WIDTH - _RIGHT, y, "rule"))
        for name in sorted(of, key=lambda name: name in ours):
            label = f"{title}: {name}, {of[name]:.3g}x"
            drawn.append(_dot(across(of[name]), y, 6 if name in ours else 4, tones[name], label))
    return _svg(bottom + _FOOT, drawn, heading)


_MEANING: Final = "time a call, as a multiple of the base's; to the left is faster; logarithmic"


def growths(found: Sequence[Growth], heading: str) -> str:
    """A line a call: rows across, microseconds up, both logarithmic."""
    names = [each.call for each in found]
    tones = dict(zip(names, (*_TONES[1:], *_OURS), strict=False))
    costs = [cost * 1e6 for each in found for cost in each.seconds.values() if cost > 0]
    counts = sorted({rows for each in found for rows in each.seconds})
    low, high = _decades(costs)
    legend, top = _legend(names, tones)
    bottom, left = top + 300, 90

    def across(rows: int) -> float:
        first, last = math.log10(counts[0]), math.log10(counts[-1])
        share = (math.log10(rows) - first) / ((last - first) or 1)
        return left + share * (_WIDTH - left - _RIGHT)

    def up(microseconds: float) -> float:
        return bottom - (math.log10(microseconds) - low) / (high - low) * (bottom - top)

    meaning = "microseconds a call, by the number of models in the catalog; both logarithmic"
    drawn = [_text(12, 24, heading, "head"), _text(12, 42, meaning, "small"), *legend]
    for power in range(low, high + 1):
        y = up(10.0**power)
        drawn.append(_line(left, y, _WIDTH - _RIGHT, y, "rule"))
        drawn.append(_text(left - 8, y + 4, f"{10.0**power:,.0f}", "small", "end"))
    drawn += [_text(across(rows), bottom + 18, f"{rows:,}", "small", "middle") for rows in counts]
    for each in found:
        tone = tones[each.call]
        points = [(across(rows), up(cost * 1e6)) for rows, cost in sorted(each.seconds.items())]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{tone}" stroke-width="2"/>')
        drawn += [
            _dot(
                across(rows),
                up(cost * 1e6),
                4,
                tone,
                f"{each.call}, {rows:,}: {cost * 1e6:,.0f} us",
            )
            for rows, cost in each.seconds.items()
        ]
    return _svg(bottom + _FOOT, drawn, heading)


def _drawable(ratio: float) -> bool:
    return math.isfinite(ratio) and ratio > 0


def _decades(values: Iterable[float]) -> tuple[int, int]:
    """The powers of ten that hold all values, one of them apart at least."""
    known = list(values) or [1.0]
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    return (low, high) if low < high else (low - 1, high + 1)


def _tones(names: Sequence[str], ours: Sequence[str]) -> dict[str, str]:
    """A tone for each; a library has the same on both databases."""
    mine = [name for name in names if name in ours]
    others = list(dict.fromkeys(_library(name) for name in names if name not in ours))
    tones = {name: _OURS[number % len(_OURS)] for number, name in enumerate(mine)}
    return tones | {
        name: _TONES[others.index(_library(name)) % len(_TONES)]
        for name in names
        if name not in ours
    }


def _library(name: str) -> str:
    return name.removesuffix(", asyncpg")


def _legend(names: Sequence[str], tones: Mapping[str, str]) -> tuple[list[str], float]:
    """What is what, in as many lines as it takes, and where they end."""
    drawn, x, y = [], 18.0, 64.0
    for name in names:
        wide = 26 + 7 * len(name)
        if x + wide > _WIDTH - _RIGHT:
            x, y = 18.0, y + 18
        drawn += [_dot(x, y, 5, tones[name], name), _text(x + 10, y + 4, name, "small")]
        x += wide
    return drawn, max(y + 22, _TOP)


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} class="{kind}">{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _dot(x: float, y: float, radius: int, tone: str, label: str) -> str:
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{tone}">'
        f"<title>{escape(label)}</title></circle>"
    )


def _svg(height: float, drawn: Iterable[str], heading: str) -> str:
    inner = "\n".join(drawn)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}"'
        f' role="img" aria-label="{escape(heading)}">\n<style>{_STYLE}</style>\n{inner}\n</svg>\n'
    )

"""Everything there is to measure, in the order in which it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from benchmarks import adoption, disk, hive, processes
from benchmarks.match import part_of
from benchmarks.parts import Part
from benchmarks.works import WORKS

PARTS: Final[tuple[Part, ...]] = (
    *(part_of(work) for work in WORKS),
    *processes.PARTS,
    *hive.PARTS,
    *adoption.PARTS,
    *disk.PARTS,
)
"""Each work on every database it is meant for, and what is no call of a catalog alone."""


def chosen(words: Sequence[str], *, quick: bool) -> list[Part]:
    """Those with one of the words in their names; `table` are those that a target is set for."""
    return [
        part
        for part in PARTS
        if not (quick and part.long)
        and any(part.in_table if word == "table" else word in part.name for word in words or [""])
    ]

"""What a run is made of: parts with a name each, on the same terms and the same stock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.contenders import ContenderSpec
from benchmarks.harness.database_files import DatabaseFiles
from benchmarks.harness.rounds import Result

ALLOWED: Final = "what is allowed"
"""Who is beside ours where it is held against a number and not against anybody."""


@dataclass(frozen=True)
class Settings:
    """How long, and how safely, everybody works."""

    rounds: int = 40
    budget_s: float = 2.0
    durability: str = "full"
    quick: bool = False


@dataclass(frozen=True)
class Environment:
    """Who is there, on which database, with what."""

    entrants: Mapping[str, list[ContenderSpec]]
    """By database; one that is not there has none."""
    stock: DatabaseFiles
    folder: Path
    terms: Settings = field(default_factory=Settings)


@dataclass(frozen=True)
class Benchmark:
    """One thing that is measured; it may come to several lines, each with a title and a result."""

    name: str
    play: Callable[[Environment], Awaitable[Mapping[str, Result]]]
    in_table: bool = False
    """Whether a target is set for it."""
    long: bool = False
    """Whether it is left out in a hurry."""

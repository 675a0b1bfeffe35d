"""The parts of a benchmark run: benchmarks with names, the settings, and the environment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.contenders import ContenderSpec
from benchmarks.harness.database_files import DatabaseFiles
from benchmarks.harness.rounds import Result

ALLOWED: Final = "allowed maximum"
"""The name of the other column when a value is compared with a fixed limit."""


@dataclass(frozen=True)
class Settings:
    """The number of rounds, the time budget and the durability, equal for all contenders."""

    rounds: int = 40
    budget_s: float = 2.0
    """Seconds that one contender may use in one benchmark; see `run_rounds`."""
    durability: str = "full"
    """SQLite's `synchronous` on every connection: `full` or `normal`."""
    quick: bool = False


@dataclass(frozen=True)
class Environment:
    """What every benchmark uses: the contenders, the databases and a temporary folder."""

    contenders: Mapping[str, list[ContenderSpec]]
    """The contenders of each database; an empty list when the database is not available."""
    databases: DatabaseFiles
    folder: Path
    settings: Settings = field(default_factory=Settings)


@dataclass(frozen=True)
class Benchmark:
    """A named measurement. It returns one or more rows, each with a title and a result."""

    name: str
    run: Callable[[Environment], Awaitable[Mapping[str, Result]]]
    has_target: bool = False
    """Whether a target is set for it: `--only table` selects these."""
    skip_when_quick: bool = False

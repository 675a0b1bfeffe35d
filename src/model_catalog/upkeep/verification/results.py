"""The levels, verdicts and results of a verification."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, TypeAlias

from model_catalog.mapping.tables import Model

Level: TypeAlias = Literal["quick", "structure", "full"]
LEVELS: Final = ("quick", "structure", "full")


class Verdict(StrEnum):
    """The outcome of verifying a model."""

    OK = "ok"
    """The files match the catalog, as far as the level compares them."""
    MISMATCH = "mismatch"
    """The content differs from the recorded digest."""
    INCOMPLETE = "incomplete"
    """A shard is missing, or a file is shorter than its header says."""
    CHANGED = "changed"
    """A file was modified since it was last read, or while it was being read."""
    MISSING = "missing"
    OFFLINE = "offline"
    UNREADABLE = "unreadable"
    UNFINISHED = "unfinished"
    """The budget ended before all files were read. The next call reads the other files."""


@dataclass(frozen=True, slots=True)
class VerifiedModel:
    """A model as it is recorded now, the verdict, and the reason for the verdict."""

    model: Model
    verdict: Verdict
    detail: str | None = None
    read_bytes: int = 0
    """How many bytes were hashed for this model."""
    is_new: bool = True
    """Whether the verdict differs from what was recorded before this verification."""

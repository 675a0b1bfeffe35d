"""The copies of models on the hosts of a fleet, the totals of hosts, and where a copy would fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from model_catalog.domain.file_record import FileState
from model_catalog.domain.fleet.host import Host, HostState
from model_catalog.domain.model_ref import ModelRef
from model_catalog.domain.ndjson import iso_time


@dataclass(frozen=True, slots=True)
class ModelCopy:
    """A model on one host, as it is recorded there. It is a name: `catalog.get_model(copy)`."""

    ref: ModelRef
    host: str
    """`""` for a model that was recorded without a host."""
    host_state: HostState
    local_path: str
    size_bytes: int | None
    state: FileState
    """What the last check of the files found."""
    is_whole: bool
    """Whether no file is known to be missing, too short or damaged."""
    is_pinned: bool
    downloaded_at: datetime | None
    last_used_at: datetime | None

    @property
    def is_present(self) -> bool:
        """Whether the files, as last checked, are there."""
        return self.state.is_as_recorded

    @property
    def is_usable(self) -> bool:
        """Whether the copy is whole and present, and its host is not lost."""
        return self.is_whole and self.is_present and self.host_state is not HostState.LOST

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that `model-catalog who-has --json` prints, as JSON values."""
        return {
            "host": self.host,
            "host_state": str(self.host_state),
            "provider": self.ref.provider,
            "reference": self.ref.reference,
            "version": self.ref.version,
            "usable": self.is_usable,
            "whole": self.is_whole,
            "state": str(self.state),
            "pinned": self.is_pinned,
            "size_bytes": self.size_bytes,
            "downloaded_at": None if self.downloaded_at is None else iso_time(self.downloaded_at),
            "last_used_at": None if self.last_used_at is None else iso_time(self.last_used_at),
            "local_path": self.local_path,
        }


_STATE_RANKS = (HostState.ALIVE, HostState.NEVER, HostState.UNREGISTERED, HostState.LOST)


def best_first(copies: Sequence[ModelCopy]) -> list[ModelCopy]:
    """
    Sort copies, the best one first.

    Usable copies come before others, hosts that are alive before others, then the copy that was
    used last. Ties are sorted by host and version.
    """

    def rank(copy: ModelCopy) -> tuple[Any, ...]:
        used = copy.last_used_at
        return (
            not copy.is_usable,
            _STATE_RANKS.index(copy.host_state),
            not copy.is_whole,
            not copy.is_present,
            used is None,
            0.0 if used is None else -used.timestamp(),
            copy.host,
            copy.ref.version or "",
        )

    return sorted(copies, key=rank)


@dataclass(frozen=True, slots=True)
class ModelCopies:
    """A version of a model with all its copies, the best one first."""

    ref: ModelRef
    copies: tuple[ModelCopy, ...]

    @property
    def usable_count(self) -> int:
        """The number of copies that are whole and present, on hosts that are not lost."""
        return sum(copy.is_usable for copy in self.copies)

    def to_spare(self, keep: int) -> list[ModelCopy]:
        """
        Return the copies that are not needed to keep `keep` usable ones, least recently used first.

        A copy that is pinned or not usable is never among them.
        """
        usable = [copy for copy in self.copies if copy.is_usable]
        unpinned = [copy for copy in usable if not copy.is_pinned]
        unpinned.sort(key=_least_recently_used)
        return unpinned[: max(0, len(usable) - keep)]


def _least_recently_used(copy: ModelCopy) -> tuple[float, str]:
    used = copy.last_used_at
    return (float("-inf") if used is None else used.timestamp(), copy.host)


@dataclass(frozen=True, slots=True)
class HostTotals:
    """
    The number of models of a host and the sum of their sizes; an unknown size counts 0.

    The space is that of its registration or of its last heartbeat.
    """

    host: str
    state: HostState
    model_count: int
    size_bytes: int
    capacity_bytes: int | None = None
    free_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that `model-catalog du --fleet --json` prints."""
        return {
            "host": self.host,
            "state": str(self.state),
            "models": self.model_count,
            "size_bytes": self.size_bytes,
            "capacity_bytes": self.capacity_bytes,
            "free_bytes": self.free_bytes,
        }


class Exclusion(StrEnum):
    """Why a plan places no copy on a host."""

    HAS_MODEL = "has the model"
    """It has a copy of this version, in whatever state."""
    LOST = "lost"
    NEVER_ALIVE = "never alive"
    """It has sent no heartbeat yet."""
    OTHER_LABELS = "other labels"
    UNKNOWN_SPACE = "unknown space"
    """Its free space was never recorded."""
    NO_ROOM = "no room"


@dataclass(frozen=True, slots=True)
class ExcludedHost:
    """A host on which a plan places no copy, and why."""

    host: Host
    reason: Exclusion


@dataclass(frozen=True, slots=True)
class OfferedHost:
    """A host with room for a copy."""

    host: Host
    copy_count: int
    """The number of other versions of the model that it has."""
    free_after_bytes: int
    """The free space that would be left, less the reserve."""


@dataclass(frozen=True, slots=True)
class PlacementPlan:
    """
    Where a copy of a model would fit. It reserves nothing and downloads nothing.

    `offers` are sorted by the number of other versions of the model that a host has, fewest first,
    then by free space, largest first, then by name. `excluded` are all other hosts, sorted by name.
    """

    ref: ModelRef
    size_bytes: int
    copies: tuple[ModelCopy, ...]
    """The copies of this version that exist, the best one first: sources to copy from."""
    offers: tuple[OfferedHost, ...]
    excluded: tuple[ExcludedHost, ...]

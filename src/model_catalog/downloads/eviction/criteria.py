"""The criteria of an eviction plan: what the caller wants to free, and which models may go."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from model_catalog.domain import validation
from model_catalog.errors import InvalidModelError
from model_catalog.upkeep.worker_threads import device_of, run_in_thread


@dataclass(frozen=True, slots=True)
class Criteria:
    """Which models may be deleted, and how many bytes are to be freed."""

    free_bytes: int | None
    unused_since: datetime | None
    """Only models that were last used before this time are deleted."""
    max_total_bytes: int | None
    providers: Collection[str] | None
    device: int | None
    """Only models on the disk with this number are deleted."""

    @property
    def has_target(self) -> bool:
        """Whether a number of bytes is to be reached."""
        return self.free_bytes is not None or self.max_total_bytes is not None


async def validated_criteria(
    *,
    free_bytes: int | None,
    keep_days: float | None,
    max_total_bytes: int | None,
    providers: Collection[str] | None,
    disk_of: str | os.PathLike[str] | None,
) -> Criteria:
    """Return the criteria of a plan. Raises InvalidModelError, also if there is none."""
    for name, value in (("free_bytes", free_bytes), ("max_total_bytes", max_total_bytes)):
        if value is not None:
            validation.non_negative_int(name, value)
    if free_bytes is None and keep_days is None and max_total_bytes is None:
        problem = "is missing: give free_bytes, keep_days or max_total_bytes"
        raise InvalidModelError("free_bytes", None, problem)
    return Criteria(
        free_bytes,
        None if keep_days is None else _days_ago(keep_days),
        max_total_bytes,
        None if providers is None else _providers(providers),
        None if disk_of is None else await _device(disk_of),
    )


def _providers(values: Collection[str]) -> Collection[str]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidModelError("providers", values, "is not a list of providers: give a list")
    return frozenset(validation.lookup_text("providers", value) for value in values)


async def _device(disk_of: str | os.PathLike[str]) -> int:
    path = validation.path("disk_of", disk_of)
    device = await run_in_thread(lambda _: device_of(path))
    if device == -1:
        raise InvalidModelError("disk_of", path, "does not exist: give a path on the disk")
    return device


def _days_ago(days: float) -> datetime:
    try:
        if days >= 0:
            return datetime.now(UTC) - timedelta(days=days)
    except (OverflowError, TypeError):
        pass
    raise InvalidModelError("keep_days", days, "is not a number of days from 0 to about 700,000")

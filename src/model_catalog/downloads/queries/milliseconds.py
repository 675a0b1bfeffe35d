"""Times in milliseconds since 1970, as the tables of claims, downloads and uses store them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def to_datetime(milliseconds: int) -> datetime:
    """Return a time in UTC."""
    return _EPOCH + timedelta(milliseconds=milliseconds)


def to_milliseconds(seconds: float) -> int:
    """Return a duration in whole milliseconds."""
    return int(seconds * 1000)

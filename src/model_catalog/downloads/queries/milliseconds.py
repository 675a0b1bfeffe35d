"""Times in milliseconds since 1970, as the tables of claims, downloads and uses store them."""

from __future__ import annotations


def to_milliseconds(seconds: float) -> int:
    """Return a duration in whole milliseconds."""
    return int(seconds * 1000)

"""Parts of a sequence that fit into one statement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

_BATCH_SIZE: Final = 500
"""Values in one statement."""


def in_batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield parts of a sequence that fit into one statement."""
    for start in range(0, len(items), _BATCH_SIZE):
        yield items[start : start + _BATCH_SIZE]

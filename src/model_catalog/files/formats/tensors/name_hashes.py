"""Find names that occur several times in a long list, with 8 bytes of memory for each name."""

from __future__ import annotations

from array import array
from typing import Final

_BUCKET_SIZE: Final = 1024
"""About how many hashes are compared at a time: a set of them takes 100 KB."""


class NameHashes:
    """
    The hashes of names, in the order in which they were added.

    A set of Python integers takes ten times the memory: 25 MB for 262,144 names.
    """

    def __init__(self) -> None:
        self._hashes = array("q")

    def add(self, name: str | bytes) -> None:
        """Add a name. The hash of a name differs from process to process."""
        self._hashes.append(hash(name))

    def superseded(self) -> set[int]:
        """Return the positions, counted from 0, of the names that occur again later."""
        repeated = {
            value
            for bucket in self._buckets()
            if len(set(bucket)) < len(bucket)
            for value in _repeated_values(bucket)
        }
        if not repeated:
            return set()
        last = {value: at for at, value in enumerate(self._hashes) if value in repeated}
        return {at for at, value in enumerate(self._hashes) if last.get(value, at) != at}

    def _buckets(self) -> list[array[int]]:
        """Return the hashes in parts. Equal hashes are in the same part."""
        count = 1 + len(self._hashes) // _BUCKET_SIZE
        if count == 1:
            return [self._hashes]
        buckets = [array("q") for _ in range(count)]
        for value in self._hashes:
            buckets[value % count].append(value)
        return buckets


def _repeated_values(values: array[int]) -> set[int]:
    seen: set[int] = set()
    return {value for value in values if value in seen or seen.add(value)}  # type: ignore[func-returns-value]

"""The tensors of a safetensors header, with few bytes of memory for each."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Final

from model_catalog.files.formats.tensors.name_hashes import NameHashes
from model_catalog.files.formats.tensors.packed_weights import TensorCounts, part_of_name

_MAX_KINDS: Final = 10_000
_BUCKETS: Final = 256


class InOrderTensors:
    """
    The totals of tensors that are listed in the order of their data, each with its own name.

    Nearly all files are written so. It takes 8 bytes a tensor. `is_in_order` tells whether the
    data of the tensors are contiguous in the order of the list, and `superseded` which names occur
    again later. If that is not so, `AnyTensors` has to read the list again.
    """

    def __init__(self) -> None:
        self.counts = KindCounts()
        self.is_in_order = True
        self.data_size_bytes = 0
        self._names = NameHashes()

    def add(self, name: str, dtype: str, elements: int, span: tuple[int, int]) -> bool:
        """Add a tensor. Return False if there are too many different data types."""
        self._names.add(name)
        self.is_in_order = self.is_in_order and span[0] == self.data_size_bytes
        self.data_size_bytes = span[1]
        return self.counts.add(name, dtype, elements)

    def superseded(self) -> set[int]:
        """Return the positions of the tensors whose names occur again later."""
        return self._names.superseded()


class AnyTensors:
    """
    The totals of tensors in any order, without those at the positions `superseded`.

    It takes 16 bytes a tensor, and more for a moment when it sorts them.
    """

    def __init__(self, superseded: Collection[int]) -> None:
        self.counts = KindCounts()
        self._superseded = superseded
        self._position = 0
        self._begins = array("Q")
        self._ends = array("Q")

    def add(self, name: str, dtype: str, elements: int, span: tuple[int, int]) -> bool:
        """Add a tensor. Return False if there are too many different data types."""
        self._position += 1
        if self._position - 1 in self._superseded:
            return True
        self._begins.append(span[0])
        self._ends.append(span[1])
        return self.counts.add(name, dtype, elements)

    @property
    def data_size_bytes(self) -> int | None:
        """The end of the last tensor. None if tensors overlap or leave a gap."""
        end = 0
        for begin, next_begin in self._sorted_spans():
            if begin != end:
                return None
            end = next_begin
        return end

    def _sorted_spans(self) -> Iterator[tuple[int, int]]:
        # Sorting all of them at once would take 13 MB for 100,000 tensors.
        buckets = [array("I") for _ in range(_BUCKETS)]
        beyond = max(self._begins, default=0) + 1
        for position, begin in enumerate(self._begins):
            buckets[begin * _BUCKETS // beyond].append(position)
        for bucket in buckets:
            yield from sorted((self._begins[at], self._ends[at]) for at in bucket)


class KindCounts:
    """The number of elements of each part of a weight and data type."""

    def __init__(self) -> None:
        self._totals: Counter[tuple[str, str]] = Counter()

    def add(self, name: str, dtype: str, elements: int) -> bool:
        """Add a tensor. Return False if there are too many different data types."""
        self._totals[part_of_name(name), dtype] += elements
        return len(self._totals) <= _MAX_KINDS

    def result(self) -> TensorCounts:
        """Return the parts, the types and the numbers."""
        return tuple((part, dtype, count) for (part, dtype), count in self._totals.items())

"""The tensors of a safetensors header, with 34 bytes of memory for each."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Final

from model_catalog.files.formats.name_hashes import NameHashes
from model_catalog.files.formats.packed_weights import TensorCounts, part_of_name

_MAX_KINDS: Final = 65_535


class TensorTable:
    """
    The element count, the byte range and the kind of each tensor, in file order.

    A kind is a part of a weight, see `part_of_name`, and a data type. If a name occurs several
    times, only the last tensor counts, as in the safetensors package.
    """

    def __init__(self) -> None:
        self._names = NameHashes()
        self._kinds: dict[tuple[str, str], int] = {}
        self._kind_numbers = array("H")
        self._elements = array("Q")
        self._begins = array("Q")
        self._ends = array("Q")

    def add(self, name: str, dtype: str, elements: int, span: tuple[int, int]) -> bool:
        """Add a tensor. Return False if there are too many different data types."""
        kind = self._kinds.setdefault((part_of_name(name), dtype), len(self._kinds))
        if kind > _MAX_KINDS:
            return False
        self._names.add(name)
        self._kind_numbers.append(kind)
        self._elements.append(elements)
        self._begins.append(span[0])
        self._ends.append(span[1])
        return True

    def drop_superseded(self) -> None:
        """Remove each tensor whose name occurs again later."""
        superseded = self._names.superseded()
        if not superseded:
            return
        for column in (self._kind_numbers, self._elements, self._begins, self._ends):
            kept = [value for at, value in enumerate(column) if at not in superseded]
            column[:] = array(column.typecode, kept)

    def counts(self) -> TensorCounts:
        """Return the number of elements of each kind."""
        totals: Counter[int] = Counter()
        for number, elements in zip(self._kind_numbers, self._elements, strict=True):
            totals[number] += elements
        return tuple(
            (part, dtype, totals[number])
            for (part, dtype), number in self._kinds.items()
            if number in totals
        )

    def data_size_bytes(self) -> int | None:
        """Return the end of the last tensor. None if tensors overlap or leave a gap."""
        end = _end_in_order(self._begins, self._ends)
        if end is not None:
            return end
        # Few programs write the tensors in another order than that of their data.
        spans = sorted(
            begin << 64 | end for begin, end in zip(self._begins, self._ends, strict=True)
        )
        end = 0
        for span in spans:
            if span >> 64 != end:
                return None
            end = span & (2**64 - 1)
        return end


def _end_in_order(begins: array[int], ends: array[int]) -> int | None:
    end = 0
    for begin, next_begin in zip(begins, ends, strict=True):
        if begin != end:
            return None
        end = next_begin
    return end

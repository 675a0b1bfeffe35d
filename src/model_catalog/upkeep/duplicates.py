"""Which bytes lie on this machine several times, and what could be had back of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Final

from model_catalog.domain.model_ref import ModelRef
from model_catalog.errors import StoppedError
from model_catalog.files.fingerprint import fingerprint_text
from model_catalog.files.safe_open import file_identity, non_regular_kind, stat_path
from model_catalog.mapping.column_types import decode_path
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.repository.operations.model_files import DUPLICATE_COLUMNS
from model_catalog.upkeep.worker_threads import Stop, run_in_thread

_DIGESTS: Final = 500
"""Digests that are looked at together."""


@dataclass(frozen=True, slots=True)
class CopyLocation:
    """A file under the name that it has in a model; `store` is whose it is, None the user's own."""

    ref: ModelRef
    path: str
    store: str | None


@dataclass(frozen=True, slots=True)
class DuplicateCopy:
    """
    Bytes that are on a disk once, under all the names that are recorded of them.

    `unknown_links` counts the hard links to them that are not recorded: as long as there are any,
    nothing is had back by removing those that are.
    """

    places: tuple[CopyLocation, ...]
    unknown_links: int = 0

    @property
    def is_reclaimable(self) -> bool:
        """Whether all of its names are the user's own, and no other is left when they have gone."""
        return not self.unknown_links and all(place.store is None for place in self.places)


@dataclass(frozen=True, slots=True)
class DuplicateSet:
    """Several copies of the same bytes, by the digest that they should have."""

    digest: str
    size_bytes: int
    copies: tuple[DuplicateCopy, ...]

    @property
    def redundant_bytes(self) -> int:
        """What all copies but one take, whoever they belong to."""
        return (len(self.copies) - 1) * self.size_bytes

    @property
    def reclaimable_bytes(self) -> int:
        """What may be had back without touching any store; one copy always stays."""
        free = sum(each.is_reclaimable for each in self.copies)
        return min(free, len(self.copies) - 1) * self.size_bytes


async def find_duplicates(catalog: ModelCatalog) -> tuple[DuplicateSet, ...]:
    """
    The bytes that several models have, each with a copy of its own; the most redundant first.

    Names that lead to one file, as hard links and symbolic links do, are one copy. Only the status
    of files is asked, in a thread: the digests are the expected ones, those that a store knows or
    a verification has read, and a file that is not there, or is not the one that was recorded, is
    no copy. Nothing is written. Raises nothing of the disk's.
    """
    found: list[DuplicateSet] = []
    last: str | None = None
    while rows := await catalog.repeated(last, _DIGESTS):
        last = rows[-1][0]
        found += await run_in_thread(partial(_duplicates, rows))
    return tuple(sorted(found, key=lambda each: (-each.redundant_bytes, each.digest)))


def _duplicates(rows: Sequence[Sequence[Any]], stop: Stop) -> list[DuplicateSet]:
    found = []
    for digest, group in groupby(rows, lambda row: row[0]):
        if stop():
            raise StoppedError("the search for duplicates was stopped")
        duplicate = _duplicate(digest, group)
        if duplicate is not None:
            found.append(duplicate)
    return found


def _duplicate(digest: str, rows: Iterable[Sequence[Any]]) -> DuplicateSet | None:
    places: dict[tuple[int, int], list[CopyLocation]] = {}
    statuses: dict[tuple[int, int], os.stat_result] = {}
    for row in rows:
        values = dict(zip(DUPLICATE_COLUMNS, row, strict=True))
        path = _path_of(values)
        try:
            seen = stat_path(path)
        except OSError:
            continue
        if non_regular_kind(seen) is not None or not _is_recorded(seen, values):
            continue
        ref = ModelRef(values["provider"], values["reference"], values["version"])
        places.setdefault(file_identity(seen), []).append(CopyLocation(ref, path, values["store"]))
        statuses[file_identity(seen)] = seen
    models = {place.ref for those in places.values() for place in those}
    size_bytes = max((seen.st_size for seen in statuses.values()), default=0)
    # Two files of one model that are the same are both a part of it.
    if len(places) < 2 or len(models) < 2 or not size_bytes:  # noqa: PLR2004 - several
        return None
    copies = (_copy(those, statuses[bytes_of]) for bytes_of, those in places.items())
    return DuplicateSet(digest, size_bytes, tuple(sorted(copies, key=_order)))


def _order(copy: DuplicateCopy) -> tuple[str, str]:
    return str(copy.places[0].ref), copy.places[0].path


def _copy(places: list[CopyLocation], seen: os.stat_result) -> DuplicateCopy:
    known = {os.path.realpath(place.path) for place in places}
    ordered = sorted(places, key=lambda place: (str(place.ref), place.path))
    return DuplicateCopy(tuple(ordered), max(0, seen.st_nlink - len(known)))


def _path_of(values: dict[str, Any]) -> str:
    path, name = decode_path(values["local_path"]) or "", decode_path(values["path"])
    if name is None:
        return path
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    return os.path.join(folder, name)


def _is_recorded(seen: os.stat_result, values: dict[str, Any]) -> bool:
    if values["fingerprint"] is not None:
        return bool(fingerprint_text(seen) == values["fingerprint"])
    return values["size_bytes"] in (None, seen.st_size)

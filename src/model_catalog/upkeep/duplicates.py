"""Find model files that are on this machine more than once, and the space they use."""

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
from model_catalog.upkeep.queries.duplicate_queries import DUPLICATE_COLUMNS, duplicate_digest_rows
from model_catalog.upkeep.worker_threads import Stop, run_in_thread

_BATCH_SIZE: Final = 500
"""Digests in a batch."""


@dataclass(frozen=True, slots=True)
class CopyLocation:
    """A path of a copy, the model it belongs to, and that model's store (None: the user's own)."""

    ref: ModelRef
    path: str
    store: str | None


@dataclass(frozen=True, slots=True)
class DuplicateCopy:
    """
    One file on a disk, with all its recorded paths.

    `unknown_links` counts the names of the file (hard links) that are not recorded. While there are
    any, removing the recorded paths frees no space. A recorded symbolic link is not such a name.
    """

    places: tuple[CopyLocation, ...]
    unknown_links: int = 0

    @property
    def is_reclaimable(self) -> bool:
        """Whether all paths are the user's own, so that removing them frees the space."""
        return not self.unknown_links and all(place.store is None for place in self.places)


@dataclass(frozen=True, slots=True)
class DuplicateSet:
    """Copies of the same content, which have the same expected digest."""

    digest: str
    size_bytes: int
    copies: tuple[DuplicateCopy, ...]

    @property
    def redundant_bytes(self) -> int:
        """The size of all copies but one, including copies in stores."""
        return (len(self.copies) - 1) * self.size_bytes

    @property
    def reclaimable_bytes(self) -> int:
        """The space that the user's own copies can free; one copy always stays."""
        reclaimable_count = sum(copy.is_reclaimable for copy in self.copies)
        return min(reclaimable_count, len(self.copies) - 1) * self.size_bytes


async def find_duplicates(catalog: ModelCatalog) -> tuple[DuplicateSet, ...]:
    """
    Find content that several models have on disk more than once, sorted by redundant bytes.

    The largest sum of redundant bytes comes first; ties are sorted by digest. Paths that lead to
    one file, such as hard links and symbolic links, are one copy.

    Compares expected digests, which a store recorded or a verification read. Reads only the status
    of files, in a thread. A file that does not exist, or that differs from its record, is ignored.
    Writes nothing, and raises no OSError.
    """
    found: list[DuplicateSet] = []
    last_digest: str | None = None
    while rows := await duplicate_digest_rows(catalog, last_digest, _BATCH_SIZE):
        last_digest = rows[-1][0]
        found += await run_in_thread(partial(_find_in_rows, rows))
    return tuple(sorted(found, key=lambda each: (-each.redundant_bytes, each.digest)))


def _find_in_rows(rows: Sequence[Sequence[Any]], stop: Stop) -> list[DuplicateSet]:
    found = []
    for digest, group in groupby(rows, lambda row: row[0]):
        if stop():
            raise StoppedError("the search for duplicates was stopped")
        duplicate = _duplicate_set(digest, group)
        if duplicate is not None:
            found.append(duplicate)
    return found


def _duplicate_set(digest: str, rows: Iterable[Sequence[Any]]) -> DuplicateSet | None:
    locations: dict[tuple[int, int], list[CopyLocation]] = {}
    statuses: dict[tuple[int, int], os.stat_result] = {}
    for row in rows:
        values = dict(zip(DUPLICATE_COLUMNS, row, strict=True))
        path = _path_of(values)
        try:
            found = stat_path(path)
        except OSError:
            continue
        if non_regular_kind(found) is not None or not _is_recorded(found, values):
            continue
        ref = ModelRef(values["provider"], values["reference"], values["version"])
        location = CopyLocation(ref, path, values["store"])
        locations.setdefault(file_identity(found), []).append(location)
        statuses[file_identity(found)] = found
    size_bytes = max((found.st_size for found in statuses.values()), default=0)
    # A pointer of Git LFS has the digest of the file that it stands for, and is no copy.
    locations = {
        file_id: group
        for file_id, group in locations.items()
        if statuses[file_id].st_size == size_bytes
    }
    models = {location.ref for group in locations.values() for location in group}
    # Two identical files inside one model are not duplicates: the model needs both.
    if len(locations) < 2 or len(models) < 2 or not size_bytes:  # noqa: PLR2004 - two copies
        return None
    copies = (_copy(group, statuses[file_id]) for file_id, group in locations.items())
    return DuplicateSet(digest, size_bytes, tuple(sorted(copies, key=_sort_key)))


def _sort_key(copy: DuplicateCopy) -> tuple[str, str]:
    return str(copy.places[0].ref), copy.places[0].path


def _copy(locations: list[CopyLocation], found: os.stat_result) -> DuplicateCopy:
    # Removing a link frees nothing. A path below a linked folder is a name of the file itself.
    known_paths = {
        os.path.join(os.path.realpath(folder), name)
        for folder, name in (os.path.split(location.path) for location in locations)
        if not os.path.islink(os.path.join(folder, name))
    }
    ordered = sorted(locations, key=lambda location: (str(location.ref), location.path))
    return DuplicateCopy(tuple(ordered), max(0, found.st_nlink - len(known_paths)))


def _path_of(values: dict[str, Any]) -> str:
    path, name = decode_path(values["local_path"]) or "", decode_path(values["path"])
    if name is None:
        return path
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    return os.path.join(folder, name)


def _is_recorded(found: os.stat_result, values: dict[str, Any]) -> bool:
    """Whether a file is the recorded one, by its fingerprint; without one, by its size."""
    if values["fingerprint"] is not None:
        return bool(fingerprint_text(found) == values["fingerprint"])
    return values["size_bytes"] in (None, found.st_size)

"""Find out which names the deletion of a model removes, in which order, and what that frees."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from model_catalog.downloads.eviction.found_files import FoundFiles, Name, unreadable
from model_catalog.downloads.eviction.hub_cache import (
    RepositoryListing,
    is_shared_blob_of,
    link_target,
    links_to_shared_blob,
    manifest_of,
    split_snapshot_path,
)
from model_catalog.files.safe_open import disk_bytes, file_identity

IsNeeded: TypeAlias = Callable[[str], bool]
"""Returns whether a model that is kept needs the name at a path."""


class Removal(NamedTuple):
    """A name to remove. Its bytes are freed if it is the last name of its file."""

    name: Name
    freed_bytes: int
    is_shared_blob: bool = False
    described: str | None = None
    """The path of the file that it only describes. It stays while this file does."""


@dataclass(slots=True)
class RemovedNames:
    """
    The names that the models before in a plan remove. Nothing is removed while a plan is made.

    In an execution it is empty at the beginning of each model: the disk tells.
    """

    paths: set[str] = field(default_factory=set)
    counts: Counter[tuple[int, int]] = field(default_factory=Counter)
    """The number of removed names of each file."""

    def add(self, name: Name) -> int:
        """Add a name, and return the bytes that its removal frees."""
        self.paths.add(name.path)
        identity = file_identity(name.status)
        self.counts[identity] += 1
        is_last = self.counts[identity] == name.status.st_nlink
        return disk_bytes(name.status) if is_last else 0


class RemovalPlanner:
    """
    Finds the names to remove for one model after another.

    It lists each repository of a Hugging Face cache once.
    """

    def __init__(self) -> None:
        self._listings: dict[str, RepositoryListing] = {}

    def find_removals(
        self, found: FoundFiles, is_needed: IsNeeded, removed: RemovedNames
    ) -> list[Removal]:
        """
        Return the names to remove, the blobs of a link before the link, and add them to `removed`.

        In this order a killed process leaves a link that still tells which blob was its own. Raises
        RefusedError if a folder cannot be listed.
        """
        own = {
            chain[0].path
            for chain in found.chains
            if chain[0].path not in removed.paths and not is_needed(chain[0].path)
        }
        gone = removed.paths | own
        removals: list[Removal] = []
        for chain in found.chains:
            if chain[0].path not in own:
                continue
            names = [chain[0]]
            for name in chain[1:]:
                if is_needed(name.path) or self._has_other_links(name.path, names[-1], gone):
                    break
                names.append(name)
                gone.add(name.path)
            for name in reversed(names):
                if name.path not in removed.paths:
                    # The chain is a link, its blob, and the shared blob that this one leads to.
                    is_shared_blob = name is not chain[0] and name is not chain[1]
                    removals += _find_manifest(name, removed)
                    removals.append(Removal(name, removed.add(name), is_shared_blob))
        return removals + self._find_descriptions(found, removed)

    def _has_other_links(self, path: str, link: Name, gone: set[str]) -> bool:
        """Return whether a blob has links that stay."""
        snapshot = split_snapshot_path(link.path)
        if snapshot is None:
            links = links_to_shared_blob(path)
            return links is None or not links <= gone
        return not self._listing(snapshot.repository).links_to.get(path, set()) <= gone

    def _find_descriptions(self, found: FoundFiles, removed: RemovedNames) -> list[Removal]:
        """Return the files that describe the snapshots of which nothing is left."""
        removals = []
        for snapshot in sorted(found.snapshots):
            listing = self._listing(snapshot.repository)
            if listing.entries.get(snapshot.folder, set()) <= removed.paths:
                for path in listing.files_about(snapshot.commit):
                    removals += _find_removal(path, removed)
        return removals

    def _listing(self, repository: str) -> RepositoryListing:
        if repository not in self._listings:
            try:
                self._listings[repository] = RepositoryListing.read(repository)
            except OSError as error:
                raise unreadable(error) from error
        return self._listings[repository]


def _find_manifest(blob: Name, removed: RemovedNames) -> list[Removal]:
    """Return the removal of the list of links to a shared blob that was removed before its link."""
    if not blob.is_link or not is_shared_blob_of(blob.path, target := link_target(blob.path)):
        return []
    is_gone = target in removed.paths or not os.path.lexists(target)
    if not is_gone:
        return []
    return [each._replace(described=target) for each in _find_removal(manifest_of(target), removed)]


def _find_removal(path: str, removed: RemovedNames) -> list[Removal]:
    if path in removed.paths:
        return []
    try:
        name = Name(path, os.lstat(path))
    except OSError:
        return []
    return [Removal(name, removed.add(name))]

"""Hash the files of one model within a read budget."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from model_catalog.errors import CatalogError, FileChangedError
from model_catalog.files.digest import HashedFile, blob_id_of_link, hash_file
from model_catalog.files.fingerprint import Fingerprint
from model_catalog.files.safe_open import file_identity
from model_catalog.upkeep.verification.read_budget import ReadBudget
from model_catalog.upkeep.worker_threads import ProgressMeter, Stop, file_identities, run_in_thread


class FileHasher:
    """Hashes the files of one model in threads. A file that has several names is read once."""

    def __init__(
        self, database_files: Sequence[Path], budget: ReadBudget, meter: ProgressMeter
    ) -> None:
        self._database_files = database_files
        self._budget = budget
        self._meter = meter
        self._hashed: dict[tuple[int, int], HashedFile] = {}
        self.read_bytes = 0
        self.was_cut_short = False
        """Whether the budget did not allow a file of this model."""

    async def hash(self, path: str, found: os.stat_result) -> HashedFile | None:
        """
        Hash a file with the given status; None if the budget does not allow it.

        If the file is a link to a blob that is named by its Git blob id, that is compared too.
        Raises FileChangedError if the file was replaced since, and what `hash_file` raises.
        """
        file_id, expected = file_identity(found), Fingerprint.from_stat(found)
        known = self._hashed.get(file_id)
        if known is not None and known.fingerprint == expected:
            return known
        if not self._budget.try_take(found.st_size):
            self.was_cut_short = True
            return None
        before = self.read_bytes
        try:
            self._hashed[file_id] = await self._read(path, expected)
        except (CatalogError, OSError):
            self._budget.give_back(found.st_size - (self.read_bytes - before))
            raise
        return self._hashed[file_id]

    async def _read(self, path: str, expected: Fingerprint) -> HashedFile:
        before = self.read_bytes

        def work(stop: Stop) -> HashedFile:
            report = self._meter.counter(path)

            def count(read_bytes: int) -> None:
                self.read_bytes = before + read_bytes
                if report is not None:
                    report(read_bytes)

            protected = file_identities(self._database_files)
            blob_id = blob_id_of_link(path)
            return hash_file(path, count, stop, protected=protected, blob_id=blob_id)

        hashed = await run_in_thread(work)
        if hashed.fingerprint != expected:
            raise FileChangedError(path, "it was replaced by another file")
        return hashed

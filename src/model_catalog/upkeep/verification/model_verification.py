"""The catalog against the bytes: models are read and compared, the longest unread ones first."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, Literal, TypeAlias, Unpack

from model_catalog.domain import validation
from model_catalog.domain.file_record import FileRecord, FileState, actual_digest, expected_digest
from model_catalog.errors import (
    BadLayoutError,
    CatalogError,
    FileChangedError,
    InvalidModelError,
    ModelNotFoundError,
    NotAFileError,
    ProtectedFileError,
)
from model_catalog.files.digest import HashedFile, hash_file
from model_catalog.files.fingerprint import Fingerprint
from model_catalog.files.safe_open import errno_name, file_identity, stat_path
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.repository.operations.check_queries import CheckedModel
from model_catalog.repository.operations.model_files import VerificationCandidate
from model_catalog.repository.statements.filters import Filters
from model_catalog.upkeep.checks.file_status import MountCache, check_status
from model_catalog.upkeep.inspection import InspectedFiles, inspect_files
from model_catalog.upkeep.verification.file_comparison import (
    NOT_COMPARED,
    actual_model_digest,
    compare_reading,
    file_records,
    files_to_read,
    join_names,
)
from model_catalog.upkeep.verification.read_budget import ReadBudget
from model_catalog.upkeep.worker_threads import (
    Meter,
    OnProgress,
    Stop,
    device_lock,
    device_of,
    file_identities,
    run_in_thread,
)

Level: TypeAlias = Literal["quick", "structure", "full"]
LEVELS: Final = ("quick", "structure", "full")


class Verdict(StrEnum):
    """What came of verifying a model."""

    OK = "ok"
    """As recorded, as far as the level looks."""
    MISMATCH = "mismatch"
    """Its bytes are not the ones its digest was recorded of."""
    INCOMPLETE = "incomplete"
    """A shard is missing, or a file is shorter than its header says."""
    CHANGED = "changed"
    """It was written to since it was read last, or while it was read now."""
    MISSING = "missing"
    OFFLINE = "offline"
    UNREADABLE = "unreadable"
    UNFINISHED = "unfinished"
    """The budget ended before all of it was read: the next call goes on from there."""


@dataclass(frozen=True, slots=True)
class VerifiedModel:
    """A model as it is recorded now, what came of verifying it, and why."""

    model: Model
    verdict: Verdict
    detail: str | None = None
    read_bytes: int = 0
    """How many bytes were hashed for it."""


async def verify_models(
    catalog: ModelCatalog,
    level: Level = "full",
    *,
    max_bytes: int | None = None,
    max_seconds: float | None = None,
    not_since: timedelta | None = None,
    on_progress: OnProgress | None = None,
    **filters: Unpack[Filters],
) -> AsyncGenerator[VerifiedModel, None]:
    """
    Verify models, and yield each as soon as it is done; those that were read longest ago first.

    `quick` asks for the status of their files, `structure` reads their headers as well and tells
    whether a file is as long as its tensors say, and `full` reads every byte. What has no digest
    yet gets the one that is read. A mismatch is recorded beside the expected digest and never over
    it: `accept_model` does that. What is missing or offline is told of, and left to `check_models`
    to record. Models on several disks are read at the same time, those on one disk in turn.

    `max_bytes` and `max_seconds` end it before the first file that would go beyond; one file is
    read in any case. What was read is recorded file by file: the next call goes on from there.
    `not_since` leaves out what was read within that time. `on_progress` is called in the loop, ten
    times a second, with the bytes read and the bytes to read. Stop it by closing the iterator.

    Raises InvalidModelError for a level that there is not, and what the filters raise.
    """
    if level not in LEVELS:
        raise InvalidModelError("level", level, f"is none of {', '.join(LEVELS)}")
    before = None if not_since is None else datetime.now(UTC) - not_since
    due = await catalog.due(before, **filters)
    budget = ReadBudget(
        validation.non_negative_int("max_bytes", max_bytes),
        None if max_seconds is None else validation.seconds("max_seconds", max_seconds),
    )
    verification = _Verification(catalog, level, budget, Meter(on_progress, _to_read(due, level)))
    by_disk: dict[int, list[VerificationCandidate]] = {}
    for device, each in zip(await run_in_thread(lambda _: _devices(due)), due, strict=True):
        by_disk.setdefault(device, []).append(each)
    async with aclosing(_as_they_come(verification, list(by_disk.values()))) as results:
        async for result in results:
            yield result


def _to_read(due: list[VerificationCandidate], level: Level) -> int:
    return sum(each.size_bytes or 0 for each in due) if level == "full" else 0


def _devices(due: list[VerificationCandidate]) -> list[int]:
    return [device_of(each.local_path) for each in due]


async def _as_they_come(
    verification: _Verification, queues: list[list[VerificationCandidate]]
) -> AsyncGenerator[VerifiedModel, None]:
    """The results of several disks, each of which is worked through in its order."""
    results: asyncio.Queue[VerifiedModel | None] = asyncio.Queue()

    async def work(queue: list[VerificationCandidate]) -> None:
        try:
            for due in queue:
                result = await verification.of(due)
                if result is not None:
                    await results.put(result)
                if verification.is_over:
                    break
        finally:
            await results.put(None)

    tasks = [asyncio.create_task(work(queue)) for queue in queues]
    try:
        running = len(tasks)
        while running:
            result = await results.get()
            if result is None:
                running -= 1
            else:
                yield result
        for task in tasks:
            # A database that went away is an error of the call, and not of one model.
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(slots=True)
class _Reading:
    """What was read of one model in this pass, by what its files are told by, and how much."""

    of: dict[tuple[int, int], HashedFile] = field(default_factory=dict)
    read_bytes: int = 0
    was_cut_short: bool = False


class _Verification:
    """One pass: models at one level within one budget."""

    def __init__(
        self, catalog: ModelCatalog, level: Level, budget: ReadBudget, meter: Meter
    ) -> None:
        self._catalog = catalog
        self._level = level
        self._budget = budget
        self._meter = meter
        self._disks = MountCache()

    @property
    def is_over(self) -> bool:
        return self._budget.is_over

    async def of(self, due: VerificationCandidate) -> VerifiedModel | None:
        """What came of a model; None for one that is gone, or was not begun."""
        reading = _Reading()
        result = await self._result(due, reading)
        if self._level == "full" and not reading.was_cut_short:
            # What need not or cannot be read is not waited for.
            self._meter.expect(reading.read_bytes - (due.size_bytes or 0), due.local_path)
        return result

    async def _result(self, due: VerificationCandidate, reading: _Reading) -> VerifiedModel | None:
        ref = due.ref
        try:
            model = await self._catalog.get_model(ref.reference, ref.provider, ref.version)
            files = await self._catalog.list_files(ref.reference, ref.provider, model.version)
        except ModelNotFoundError:
            return None
        holding = _holding(model, files)
        seen = await run_in_thread(lambda _: check_status(holding, self._disks))
        if seen.state not in (FileState.PRESENT, FileState.CHANGED):
            return VerifiedModel(model, Verdict(seen.state), seen.detail)
        verdict = Verdict.OK if seen.state is FileState.PRESENT else Verdict.CHANGED
        first = VerifiedModel(model, verdict, seen.detail)
        if self._level == "full":
            # Other bytes than were registered are not to be taken for the expected ones.
            is_other = verdict is Verdict.CHANGED and not files and model.digest is None
            return first if is_other else await self._through(first, files, reading)
        if not self._budget.take(0):
            return None
        return first if self._level == "quick" else await self._through(first, files, reading)

    async def _through(
        self, first: VerifiedModel, files: list[FileRecord], reading: _Reading
    ) -> VerifiedModel | None:
        """What came of opening a model's files, the first look at which is given."""
        model = first.model
        try:
            inspected = await self._inspect(model)
        except (OSError, BadLayoutError, NotAFileError, ProtectedFileError) as error:
            detail = errno_name(error) if isinstance(error, OSError) else str(error)
            return VerifiedModel(model, Verdict.UNREADABLE, detail)
        if self._level == "structure":
            return await self._conclude_structure(first, inspected)
        return await self._read(model, files, inspected, reading)

    async def _inspect(self, model: Model) -> InspectedFiles:
        database = self._catalog.database_files
        return await run_in_thread(
            lambda stop: inspect_files(model.local_path, stop, file_identities(database))
        )

    async def _conclude_structure(
        self, first: VerifiedModel, inspected: InspectedFiles
    ) -> VerifiedModel | None:
        reason = inspected.found["incomplete_reason"]
        values: dict[str, object] = {"incomplete_reason": reason}
        stored = await self._catalog.store_found(first.model, values)
        if stored is None:
            return None
        if reason is not None:
            return VerifiedModel(stored, Verdict.INCOMPLETE, reason)
        return replace(first, model=stored)

    async def _read(
        self, model: Model, files: list[FileRecord], inspected: InspectedFiles, reading: _Reading
    ) -> VerifiedModel | None:
        if not files:
            files = file_records(inspected, model.digest)
            values = {"inventoried_at": inspected.found["inventoried_at"]}
            if model.size_bytes is None:
                values["size_bytes"] = inspected.described.size_bytes
            stored = await self._catalog.store_found(model, values, files)
            if stored is None:
                return None
            model = stored
        root = inspected.described.files.root
        device = await run_in_thread(lambda _: device_of(model.local_path))
        verified_at = model.verified_at
        done: dict[str, FileRecord] = {file.path: file for file in files}
        was_begun = False
        for file in await run_in_thread(lambda _: files_to_read(files, verified_at, root)):
            async with device_lock(device):
                found = await self._attempt(model, root, file, reading)
            if found is None:
                reading.was_cut_short = True
                if not was_begun:
                    return None
                detail = f"{file.path!r} is next"
                return VerifiedModel(model, Verdict.UNFINISHED, detail, reading.read_bytes)
            if not isinstance(found, HashedFile):
                return VerifiedModel(model, *found, reading.read_bytes)
            was_begun = True
            done[file.path] = compare_reading(file, found)
            await self._catalog.store_reading(model, done[file.path])
        return await self._conclude(model, list(done.values()), inspected, reading.read_bytes)

    async def _attempt(
        self, model: Model, root: str, file: FileRecord, reading: _Reading
    ) -> HashedFile | tuple[Verdict, str] | None:
        """What was read of a file, or what kept it from being read; None at the budget's end."""
        path = f"{root}/{file.path}"
        is_known = file.digest is not None or model.digest is not None
        try:
            found = await run_in_thread(lambda _: stat_path(path))
            if found.st_size == file.size_bytes or is_known:
                return await self._read_once(path, found, reading)
        except (FileChangedError, NotAFileError) as error:
            return Verdict.CHANGED, str(error)
        except (ProtectedFileError, OSError) as error:
            why = errno_name(error) if isinstance(error, OSError) else str(error)
            return Verdict.UNREADABLE, f"{file.path!r} cannot be read: {why}"
        sizes = f"{found.st_size} bytes, and {file.size_bytes} are recorded"
        return Verdict.CHANGED, f"{file.path!r} has {sizes}"

    async def _read_once(
        self, path: str, found: os.stat_result, reading: _Reading
    ) -> HashedFile | None:
        """A file that has several names is read by one of them."""
        bytes_of, expected = file_identity(found), Fingerprint.from_stat(found)
        again = reading.of.get(bytes_of)
        if again is not None and again.fingerprint == expected:
            return again
        if not self._budget.take(found.st_size):
            return None
        before = reading.read_bytes
        try:
            reading.of[bytes_of] = await self._hash(path, expected, reading)
        except (CatalogError, OSError):
            self._budget.give_back(found.st_size - (reading.read_bytes - before))
            raise
        return reading.of[bytes_of]

    async def _hash(self, path: str, expected: Fingerprint, reading: _Reading) -> HashedFile:
        database = self._catalog.database_files
        before = reading.read_bytes

        def work(stop: Stop) -> HashedFile:
            tell = self._meter.of(path)

            def count(read_bytes: int) -> None:
                reading.read_bytes = before + read_bytes
                if tell is not None:
                    tell(read_bytes)

            return hash_file(path, count, stop, protected=file_identities(database))

        found = await run_in_thread(work)
        if found.fingerprint != expected:
            raise FileChangedError(path, "another was put in its place")
        return found

    async def _conclude(
        self, model: Model, files: list[FileRecord], inspected: InspectedFiles, read_bytes: int
    ) -> VerifiedModel | None:
        found, expected = actual_digest(files), expected_digest(files)
        damaged = [file.path for file in files if file.is_damaged]
        if model.digest is not None and found == model.digest:
            # What the files were expected to have was itself read from another state of them.
            files = [
                replace(file, digest=file.found_digest or file.digest, found_digest=None)
                for file in files
            ]
            damaged = []
        elif model.digest is not None and found is not None and not damaged:
            damaged = [file.path for file in files]
        reason = inspected.found["incomplete_reason"]
        now = datetime.now(UTC)
        values = {
            "found_digest": actual_model_digest(found, files) if damaged else None,
            "verified_at": max((file.hashed_at for file in files if file.hashed_at), default=now),
            "incomplete_reason": reason,
        }
        if not damaged:
            values |= {
                "digest": model.digest or expected,
                "state": FileState.PRESENT,
                "state_detail": None,
                "missing_since": None,
                "checked_at": now,
                "mount_point": inspected.found["mount_point"],
            }
        stored = await self._catalog.store_found(model, values, files)
        if stored is None:
            return None
        if damaged:
            return VerifiedModel(stored, Verdict.MISMATCH, join_names(damaged), read_bytes)
        if reason is not None:
            return VerifiedModel(stored, Verdict.INCOMPLETE, reason, read_bytes)
        detail = NOT_COMPARED if stored.digest is not None and found is None else None
        return VerifiedModel(stored, Verdict.OK, detail, read_bytes)


def _holding(model: Model, files: list[FileRecord]) -> CheckedModel:
    return CheckedModel(
        model.id,
        model.local_path,
        model.size_bytes,
        model.state,
        model.state_detail,
        model.mount_point,
        model.found_digest is not None,
        [(file.path, file.size_bytes, file.fingerprint) for file in files],
    )

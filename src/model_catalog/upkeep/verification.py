"""The catalog against the bytes: models are read and compared, the longest unread ones first."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, Literal, TypeAlias, Unpack

from model_catalog import rules
from model_catalog.catalog import ModelCatalog
from model_catalog.contents import Due
from model_catalog.errors import (
    BadLayoutError,
    FileChangedError,
    InvalidModelError,
    NotAFileError,
    ProtectedFileError,
)
from model_catalog.files.digest import Hashed, hashed
from model_catalog.files.fingerprint import Fingerprint, is_settled
from model_catalog.files.opening import errno_name, status
from model_catalog.holdings import Holding
from model_catalog.inventory import FileRecord, FileState, digest_of, found_digest_of
from model_catalog.model import Model
from model_catalog.query import Filters
from model_catalog.upkeep.inspection import Inspected, inspect, read_at
from model_catalog.upkeep.looking import Disks, look
from model_catalog.upkeep.threads import (
    Meter,
    OnProgress,
    Stop,
    device_of,
    disk_turn,
    identities,
    in_thread,
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
class Verified:
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
) -> AsyncGenerator[Verified, None]:
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
    budget = _Budget(
        rules.size_bytes("max_bytes", max_bytes),
        None if max_seconds is None else rules.seconds("max_seconds", max_seconds),
    )
    verification = _Verification(catalog, level, budget, Meter(on_progress, _to_read(due, level)))
    by_disk: dict[int, list[Due]] = {}
    for device, each in zip(await in_thread(lambda _: _devices(due)), due, strict=True):
        by_disk.setdefault(device, []).append(each)
    async with aclosing(_as_they_come(verification, list(by_disk.values()))) as results:
        async for result in results:
            yield result


def _to_read(due: list[Due], level: Level) -> int:
    return sum(each.size_bytes or 0 for each in due) if level == "full" else 0


def _devices(due: list[Due]) -> list[int]:
    return [device_of(each.local_path) for each in due]


async def _as_they_come(
    verification: _Verification, queues: list[list[Due]]
) -> AsyncGenerator[Verified, None]:
    """The results of several disks, each of which is worked through in its order."""
    results: asyncio.Queue[Verified | None] = asyncio.Queue()

    async def work(queue: list[Due]) -> None:
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


class _Budget:
    """How much may be read, and for how long."""

    def __init__(self, max_bytes: int | None, max_seconds: float | None) -> None:
        self._left_bytes = max_bytes
        self._until = None if max_seconds is None else time.monotonic() + max_seconds
        self._began = False
        self.is_over = False

    def take(self, size_bytes: int) -> bool:
        """Whether so many bytes may still be read; the first file may in any case."""
        if self._began and not self._allows(size_bytes):
            self.is_over = True
            return False
        self._began = True
        if self._left_bytes is not None:
            self._left_bytes -= size_bytes
        return True

    def _allows(self, size_bytes: int) -> bool:
        if self._until is not None and time.monotonic() >= self._until:
            return False
        return self._left_bytes is None or size_bytes <= self._left_bytes


class _Verification:
    """One pass: models at one level within one budget."""

    def __init__(self, catalog: ModelCatalog, level: Level, budget: _Budget, meter: Meter) -> None:
        self._catalog = catalog
        self._level = level
        self._budget = budget
        self._meter = meter
        self._disks = Disks()

    @property
    def is_over(self) -> bool:
        return self._budget.is_over

    async def of(self, due: Due) -> Verified | None:
        """What came of a model; None for one that is gone, or was not begun."""
        ref = due.ref
        model = await self._catalog.find_model(ref.reference, ref.provider, ref.version)
        if model is None:
            return None
        files = await self._catalog.list_files(ref.reference, ref.provider, model.version)
        holding = _holding(model, files)
        seen = await in_thread(lambda _: look(holding, self._disks))
        if seen.state not in (FileState.PRESENT, FileState.CHANGED):
            return Verified(model, Verdict(seen.state), seen.detail)
        if self._level == "quick":
            verdict = Verdict.OK if seen.state is FileState.PRESENT else Verdict.CHANGED
            return Verified(model, verdict, seen.detail)
        try:
            inspected = await self._inspect(model)
        except (OSError, BadLayoutError, NotAFileError, ProtectedFileError) as error:
            detail = errno_name(error) if isinstance(error, OSError) else str(error)
            return Verified(model, Verdict.UNREADABLE, detail)
        if self._level == "structure":
            return await self._conclude_structure(model, inspected, seen.state, seen.detail)
        return await self._read(model, files, inspected)

    async def _inspect(self, model: Model) -> Inspected:
        database = self._catalog.database_files
        return await in_thread(lambda stop: inspect(model.local_path, stop, identities(database)))

    async def _conclude_structure(
        self, model: Model, inspected: Inspected, state: FileState, detail: str | None
    ) -> Verified:
        reason = inspected.found["incomplete_reason"]
        values: dict[str, object] = {"incomplete_reason": reason}
        stored = await self._catalog.store_found(model, values) or model
        if reason is not None:
            return Verified(stored, Verdict.INCOMPLETE, reason)
        verdict = Verdict.OK if state is FileState.PRESENT else Verdict.CHANGED
        return Verified(stored, verdict, detail)

    async def _read(
        self, model: Model, files: list[FileRecord], inspected: Inspected
    ) -> Verified | None:
        if not files:
            files = _listed(inspected, model.digest)
            values = {"inventoried_at": inspected.found["inventoried_at"]}
            listed = await self._catalog.store_found(model, values, files)
            if listed is None:
                return None
            model = listed
        root = inspected.described.files.root
        device = await in_thread(lambda _: device_of(model.local_path))
        done: dict[str, FileRecord] = {file.path: file for file in files}
        read: dict[tuple[int, int], Hashed] = {}
        read_bytes = 0
        for file in _unread(model, files, root):
            if not self._budget.take(file.size_bytes):
                if not read_bytes:
                    return None
                return Verified(model, Verdict.UNFINISHED, f"{file.path!r} is next", read_bytes)
            async with disk_turn(device):
                reading = await self._attempt(root, file, read)
            if not isinstance(reading, Hashed):
                return Verified(model, *reading, read_bytes)
            read_bytes += reading.fingerprint.size_bytes
            done[file.path] = _compared(file, reading)
            await self._catalog.store_reading(model, done[file.path])
        return await self._conclude(model, list(done.values()), inspected, read_bytes)

    async def _attempt(
        self, root: str, file: FileRecord, read: dict[tuple[int, int], Hashed]
    ) -> Hashed | tuple[Verdict, str]:
        """What was read of a file, or what kept it from being read."""
        try:
            return await self._hash(f"{root}/{file.path}", read)
        except (FileChangedError, NotAFileError) as error:
            return Verdict.CHANGED, str(error)
        except OSError as error:
            return Verdict.UNREADABLE, f"{file.path!r} cannot be read: {errno_name(error)}"

    async def _hash(self, path: str, read: dict[tuple[int, int], Hashed]) -> Hashed:
        database = self._catalog.database_files

        def work(stop: Stop) -> tuple[tuple[int, int], Hashed]:
            found = status(path)
            bytes_of = found.st_dev, found.st_ino
            if bytes_of in read and read[bytes_of].fingerprint == Fingerprint.of(found):
                self._meter.skip(found.st_size)
                return bytes_of, read[bytes_of]
            counter = self._meter.of(path)
            return bytes_of, hashed(path, counter, stop, forbidden=identities(database))

        bytes_of, reading = await in_thread(work)
        read[bytes_of] = reading
        return reading

    async def _conclude(
        self, model: Model, files: list[FileRecord], inspected: Inspected, read_bytes: int
    ) -> Verified | None:
        found, expected = found_digest_of(files), digest_of(files)
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
        values = {
            "found_digest": found if damaged else None,
            "verified_at": max((file.hashed_at for file in files if file.hashed_at), default=None),
            "incomplete_reason": reason,
        }
        if not damaged:
            values |= {
                "digest": model.digest or expected,
                "state": FileState.PRESENT,
                "state_detail": None,
                "missing_since": None,
                "checked_at": datetime.now(UTC),
                "mount_point": inspected.found["mount_point"],
            }
        stored = await self._catalog.store_found(model, values, files)
        if stored is None:
            return None
        if damaged:
            return Verified(stored, Verdict.MISMATCH, _named(damaged), read_bytes)
        if reason is not None:
            return Verified(stored, Verdict.INCOMPLETE, reason, read_bytes)
        return Verified(stored, Verdict.OK, None, read_bytes)


def _holding(model: Model, files: list[FileRecord]) -> Holding:
    return Holding(
        model.id,
        model.local_path,
        model.size_bytes,
        model.state,
        model.state_detail,
        model.mount_point,
        model.found_digest is not None,
        [(file.path, file.size_bytes, file.fingerprint) for file in files],
    )


def _listed(inspected: Inspected, digest: str | None) -> list[FileRecord]:
    """The files of a model of which none were known; a single one has the model's digest."""
    if len(inspected.files) == 1:
        return [replace(inspected.files[0], digest=digest)]
    return inspected.files


def _unread(model: Model, files: list[FileRecord], root: str) -> list[FileRecord]:
    """Those still to be read, the longest unread first: a pass may have ended among them."""
    left = [file for file in files if not _was_read_since(file, model.verified_at, root)]
    return sorted(left or files, key=lambda file: (file.hashed_at or _NEVER, file.path))


_NEVER: Final = datetime.min.replace(tzinfo=UTC)


def _was_read_since(file: FileRecord, verified_at: datetime | None, root: str) -> bool:
    """Whether a pass that did not come to its end has read these very bytes."""
    if file.hashed_at is None or (verified_at is not None and file.hashed_at <= verified_at):
        return False
    try:
        now = Fingerprint.of(status(os.path.join(root, file.path)))
    except OSError:
        return False
    hashed_at_ns = int(file.hashed_at.timestamp()) * 1_000_000_000
    return str(now) == file.fingerprint and is_settled(now, hashed_at_ns)


def _compared(file: FileRecord, reading: Hashed) -> FileRecord:
    """A file with what was read of it beside what is expected, which is the first that was read."""
    other = file.digest not in (None, reading.digest)
    return replace(
        file,
        digest=file.digest or reading.digest,
        found_digest=reading.digest if other else None,
        # That of other bytes would let the file pass for the one that was recorded.
        fingerprint=file.fingerprint if other else str(reading.fingerprint),
        hashed_at=read_at(reading),
    )


def _named(paths: list[str]) -> str:
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]!r}{more} has other bytes than were recorded"

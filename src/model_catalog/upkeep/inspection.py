"""What lies at a path, as it is recorded of a model: its files, its claims, its digests."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from model_catalog.domain import fields, validation
from model_catalog.domain.file_record import FileRecord, FileState, expected_digest
from model_catalog.errors import FileChangedError, StoppedError
from model_catalog.files.digest import HashedFile, hash_file
from model_catalog.files.model_description import ModelDescription, describe_model
from model_catalog.files.model_files import ModelFile
from model_catalog.files.mounts import mount_point
from model_catalog.files.safe_open import ProtectedFiles
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.upkeep.worker_threads import (
    Meter,
    OnProgress,
    Stop,
    device_lock,
    device_of,
    file_identities,
    run_in_thread,
)


@dataclass(frozen=True, slots=True)
class RegisteredPath:
    """A model as it is recorded, and what was found at its path."""

    model: Model
    described: ModelDescription

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not whole: a shard is missing, a file is shorter than it says. Often none."""
        return self.described.reasons


@dataclass(frozen=True, slots=True)
class InspectedFiles:
    """What was found at a path: described, and as it is stored."""

    described: ModelDescription
    files: list[FileRecord]
    claims: Mapping[str, Any]
    found: Mapping[str, Any]

    @property
    def digest(self) -> str | None:
        """The digest of all files together; None where they were not hashed."""
        return expected_digest(self.files)


async def inspect_path(
    catalog: ModelCatalog, path: str, *, digest: bool, on_progress: OnProgress | None = None
) -> InspectedFiles:
    """What lies at a path, read in a thread; with its digests one disk is read by one at a time."""
    files = catalog.database_files
    inspected = await run_in_thread(lambda stop: inspect_files(path, stop, file_identities(files)))
    if not digest:
        return inspected
    meter = Meter(on_progress, inspected.described.size_bytes)
    async with device_lock(await run_in_thread(lambda _: device_of(path))):
        return await run_in_thread(
            lambda stop: hash_all(inspected, stop, file_identities(files), meter.of)
        )


def inspect_files(path: str, stop: Stop, protected: ProtectedFiles) -> InspectedFiles:
    """
    Look at a file or a folder and read its headers; no more of it is read.

    Raises what `describe` raises.
    """
    described = describe_model(path, stop, protected=protected)
    now = datetime.now(UTC).replace(microsecond=0)
    files = [
        FileRecord(
            file.path,
            file.size_bytes,
            file.role,
            fingerprint=None if file.fingerprint is None else str(file.fingerprint),
        )
        for file in described.files.files
    ]
    found = {
        **dict.fromkeys(fields.INSPECTION_FIELDS),
        "state": FileState.PRESENT,
        "checked_at": now,
        "mount_point": mount_point(path),
        "inventoried_at": now,
        "incomplete_reason": join_reasons(described.reasons),
    }
    return InspectedFiles(described, files, _claims(described), found)


def _claims(described: ModelDescription) -> dict[str, Any]:
    return {
        f"claimed_{name}": getattr(described.header, name, None) for name in fields.HEADER_FIELDS
    }


def join_reasons(reasons: Sequence[str]) -> str | None:
    """The reasons why a model is not whole in one text, cut where it is too long to store."""
    if not reasons:
        return None
    # A name that is no UTF-8 may be among them.
    text = "; ".join(reasons).encode("utf-8", "backslashreplace")
    return text[: validation.MAX_DETAIL_BYTES].decode("utf-8", "ignore")


def hash_all(
    inspected: InspectedFiles,
    stop: Stop,
    protected: ProtectedFiles,
    counter: Callable[[str], Callable[[int], None] | None],
) -> InspectedFiles:
    """
    The same with the digest of each file, read now; one file under several names is read once.

    Raises what `hashed` raises.
    """
    read: dict[object, HashedFile] = {}
    files = []
    members: dict[str, ModelFile] = {file.path: file for file in inspected.described.files.files}
    root = inspected.described.files.root
    for file in inspected.files:
        if stop():
            raise StoppedError(f"the hashing of {root!r} was stopped")
        bytes_of = members[file.path].identity or file.path
        if bytes_of not in read:
            path = os.path.join(root, file.path)
            read[bytes_of] = hash_file(path, counter(file.path), stop, protected=protected)
            if str(read[bytes_of].fingerprint) != (file.fingerprint or ""):
                # Its header and its size are those of other bytes than its digest.
                raise FileChangedError(path, "it was written to")
        files.append(with_reading(file, read[bytes_of]))
    # The last of the readings is when all of it was known to be so.
    verified_at = max((file.hashed_at for file in files if file.hashed_at), default=None)
    return replace(inspected, files=files, found={**inspected.found, "verified_at": verified_at})


def with_reading(file: FileRecord, reading: HashedFile) -> FileRecord:
    """A file of which the bytes were read, whatever they should have been."""
    return replace(
        file,
        size_bytes=reading.fingerprint.size_bytes,
        digest=reading.digest,
        found_digest=None,
        fingerprint=str(reading.fingerprint),
        hashed_at=read_time(reading),
    )


def read_time(reading: HashedFile) -> datetime:
    """When the reading of a file began, in whole seconds."""
    return datetime.fromtimestamp(reading.started_at_ns // 1_000_000_000, UTC)

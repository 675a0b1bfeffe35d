"""Read the files of a model: describe them, take the metadata of their headers, hash them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, cast

from model_catalog.domain import fields, validation
from model_catalog.domain.file_record import FileRecord, FileState, expected_digest
from model_catalog.errors import FileChangedError, StoppedError
from model_catalog.files.completeness.evidence import Completeness
from model_catalog.files.digest import HashedFile, hash_file
from model_catalog.files.formats.pickle_format import PICKLE
from model_catalog.files.model_description import (
    ModelDescription,
    describe_files,
    describe_model,
)
from model_catalog.files.model_files import ModelFile, list_model_files
from model_catalog.files.model_kind import Role, kind_of_model
from model_catalog.files.mounts import mount_point
from model_catalog.files.safe_open import ProtectedFiles, format_file_id, stat_path
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog, find_database_files
from model_catalog.upkeep.worker_threads import (
    OnProgress,
    ProgressMeter,
    Stop,
    device_lock,
    device_of,
    file_identities,
    run_in_thread,
)

_LINE_END: Final = "\n"
"""Between the reasons of a column. File names in reasons are escaped."""


@dataclass(frozen=True, slots=True)
class RegisteredPath:
    """A model as it is recorded, and the description of the files at its path."""

    model: Model
    described: ModelDescription

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the model is incomplete (a missing shard, a truncated file); empty if complete."""
        return self.described.reasons


@dataclass(frozen=True, slots=True)
class InspectedFiles:
    """The files at a path: their description, and the values to record of them."""

    described: ModelDescription
    files: list[FileRecord]
    claims: Mapping[str, Any]
    """The columns `claimed_...` with the metadata of the headers."""
    found: Mapping[str, Any]
    """The other columns that an inspection sets."""

    @property
    def learned(self) -> dict[str, Any]:
        """
        The columns that a verification sets from the headers. An unknown value replaces no other.

        The kind is that of the header, because a scan knows more about the roles of files.
        """
        header = self.described.header
        known = {name: value for name, value in self.claims.items() if value is not None}
        if header is None or header.general_type is None:
            known.pop("claimed_kind", None)
        return {**known, "headers_read_at": self.found["headers_read_at"]}

    @property
    def digest(self) -> str | None:
        """The digest of all files; None if they were not hashed."""
        return expected_digest(self.files)


async def inspect_path(
    catalog: ModelCatalog,
    path: str,
    *,
    digest: bool,
    listed: Sequence[FileRecord] = (),
    on_progress: OnProgress | None = None,
) -> InspectedFiles:
    """
    Inspect the files at a path in a thread; with `digest` also hash them.

    `listed` is that of `inspect_files`. The hashing holds the lock of the disk. Raises what
    `inspect_files` and `hash_files` raise.
    """
    database_files = await find_database_files(catalog)
    inspected = await run_in_thread(
        lambda stop: inspect_files(path, stop, file_identities(database_files), listed)
    )
    if not digest:
        return inspected
    meter = ProgressMeter(on_progress, inspected.described.size_bytes)
    async with device_lock(await run_in_thread(lambda _: device_of(path))):
        return await run_in_thread(
            lambda stop: hash_files(inspected, stop, file_identities(database_files), meter.counter)
        )


def inspect_files(
    path: str, stop: Stop, protected: ProtectedFiles, listed: Sequence[FileRecord] = ()
) -> InspectedFiles:
    """
    Describe a file or a folder from the status and the headers of its files.

    With `listed`, the model has these files and no others: a scan of a store has listed them.
    Raises what `describe_model` raises, also OSError if nothing is at the path.
    """
    if listed:
        stat_path(path)
        roles = [(file.path, cast("Role", file.role)) for file in listed]
        model_files = list_model_files(path, roles, protected=protected)
        described = describe_files(model_files, stop, protected=protected)
    else:
        described = describe_model(path, stop, protected=protected)
    now = datetime.now(UTC).replace(microsecond=0)
    files = [
        FileRecord(
            file.path,
            file.size_bytes,
            file.role,
            described.pointers.get(file.path),
            fingerprint=None if file.fingerprint is None else str(file.fingerprint),
            file_id=None if file.identity is None else format_file_id(file.identity),
            disk_bytes=file.disk_bytes,
        )
        for file in described.files.files
    ]
    found = {
        **dict.fromkeys(fields.INSPECTION_FIELDS),
        "state": FileState.PRESENT,
        "checked_at": now,
        "mount_point": mount_point(path),
        "inventoried_at": now,
        "headers_read_at": now,
        **completeness_values(described.completeness),
    }
    return InspectedFiles(described, files, header_claims(described), found)


def header_claims(described: ModelDescription) -> dict[str, Any]:
    """Return the columns `claimed_...` with the values of the headers; None for an unknown one."""
    claims = {
        f"claimed_{name}": getattr(described.header, name, None) for name in fields.HEADER_FIELDS
    }
    roles = {file.role for file in described.files.files}
    return {**claims, "claimed_kind": kind_of_model(roles, described.header)}


def completeness_values(completeness: Completeness) -> dict[str, str | None]:
    """Return the columns that record a verdict about a model's completeness."""
    return {
        "incomplete_reason": _join(completeness.reasons, "; "),
        "unknown_reason": _join(completeness.unknown, "; "),
        "listing_reason": _join(completeness.listing, _LINE_END),
        "content_reason": _join(completeness.content or (), _LINE_END),
    }


def recorded_completeness(
    listing_reason: str | None,
    content_reason: str | None,
    unknown_reason: str | None,
    *,
    has_content: bool,
) -> Completeness:
    """Return the verdict that columns record; `has_content` says that the files were read."""
    return Completeness(
        listing=_split(listing_reason),
        content=_split(content_reason) if has_content else None,
        unknown=() if unknown_reason is None else (unknown_reason,),
    )


def merged_completeness(model: Model, inspected: InspectedFiles) -> Completeness:
    """
    Return the verdict about the files of a recorded model that were read again.

    A scan knows more about the files that a model of a store should have. Its reasons stay.
    """
    found = inspected.described.completeness
    if model.store is None or model.inventoried_at is None:
        return found
    listed = recorded_completeness(model.listing_reason, None, None, has_content=False)
    return replace(found, listing=listed.listing)


def learned_claims(model: Model, inspected: InspectedFiles) -> dict[str, Any]:
    """Return the columns that the headers give. Bytes that are no pickle overrule a file name."""
    learned: dict[str, Any] = dict(inspected.learned)
    if inspected.described.header is None and model.claimed_format == PICKLE:
        learned["claimed_format"] = None
    return learned


def _split(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(text.split(_LINE_END))


def _join(reasons: Sequence[str], separator: str) -> str | None:
    """Join reasons, cut to the stored length; None without any."""
    if not reasons:
        return None
    # A reason may contain a file name that is not valid UTF-8.
    text = separator.join(reasons).encode("utf-8", "backslashreplace")
    return text[: validation.MAX_DETAIL_BYTES].decode("utf-8", "ignore")


def hash_files(
    inspected: InspectedFiles,
    stop: Stop,
    protected: ProtectedFiles,
    counter: Callable[[str], Callable[[int], None] | None],
) -> InspectedFiles:
    """
    Hash every file of an inspection, and return the inspection with the digests.

    A file that has several names is read once. A pointer of Git LFS is not read: the digest that it
    names is the expected one. Raises StoppedError, FileChangedError if a file
    was modified since the inspection, and what `hash_file` raises.
    """
    hashed: dict[object, HashedFile] = {}
    files = []
    model_files: dict[str, ModelFile] = {
        file.path: file for file in inspected.described.files.files
    }
    root = inspected.described.files.root
    for file in inspected.files:
        if stop():
            raise StoppedError(f"hashing the files of {root!r} was stopped")
        if file.path in inspected.described.pointers:
            files.append(file)
            continue
        file_id = model_files[file.path].identity or file.path
        if file_id not in hashed:
            path = os.path.join(root, file.path)
            hashed[file_id] = hash_file(path, counter(file.path), stop, protected=protected)
            if str(hashed[file_id].fingerprint) != (file.fingerprint or ""):
                # The header and the size were read from other content than the digest.
                raise FileChangedError(path, "its content was modified")
        files.append(record_hash(file, hashed[file_id]))
    # The time of the newest hash: only since then were all files known to be as recorded.
    verified_at = max((file.hashed_at for file in files if file.hashed_at), default=None)
    return replace(inspected, files=files, found={**inspected.found, "verified_at": verified_at})


def record_hash(file: FileRecord, hashed: HashedFile) -> FileRecord:
    """Return a file record with the digest that was read as the expected digest."""
    return replace(
        file,
        size_bytes=hashed.fingerprint.size_bytes,
        digest=hashed.digest,
        found_digest=None,
        fingerprint=str(hashed.fingerprint),
        hashed_at=hash_time(hashed),
    )


def hash_time(hashed: HashedFile) -> datetime:
    """Return when the hashing of a file began, in UTC and whole seconds."""
    return datetime.fromtimestamp(hashed.started_at_ns // 1_000_000_000, UTC)

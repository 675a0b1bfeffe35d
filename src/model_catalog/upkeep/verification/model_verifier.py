"""Verify one model at one level, and record the result."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from model_catalog.domain.file_record import FileRecord, FileState, actual_digest, expected_digest
from model_catalog.errors import (
    BadLayoutError,
    FileChangedError,
    ModelNotFoundError,
    NotAFileError,
    ProtectedFileError,
)
from model_catalog.execution.executor import reads_from_primary
from model_catalog.files.digest import HashedFile
from model_catalog.files.safe_open import errno_name, stat_path
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog, find_database_files
from model_catalog.upkeep.checks.file_status import MountCache, check_status, describe_sizes
from model_catalog.upkeep.inspection import (
    InspectedFiles,
    completeness_values,
    inspect_files,
    learned_claims,
    merged_completeness,
)
from model_catalog.upkeep.queries.check_queries import CheckedModel
from model_catalog.upkeep.queries.verification_queries import (
    VerificationCandidate,
    save_file_digest,
    save_inspection,
)
from model_catalog.upkeep.verification.digest_comparison import (
    NOT_COMPARED,
    compare_digest,
    describe_mismatch,
    files_to_read,
    first_file_records,
    found_model_digest,
    with_pointers,
)
from model_catalog.upkeep.verification.file_hasher import FileHasher
from model_catalog.upkeep.verification.read_budget import ReadBudget
from model_catalog.upkeep.verification.results import Level, Verdict, VerifiedModel
from model_catalog.upkeep.worker_threads import (
    ProgressMeter,
    device_lock,
    device_of,
    file_identities,
    run_in_thread,
)


class ModelVerifier:
    """Verifies models at one level. All of them share one budget and one progress meter."""

    def __init__(
        self, catalog: ModelCatalog, level: Level, budget: ReadBudget, meter: ProgressMeter
    ) -> None:
        self._catalog = catalog
        self._level = level
        self._budget = budget
        self._meter = meter
        self._mounts = MountCache()

    @property
    def is_exhausted(self) -> bool:
        """Whether the budget has ended."""
        return self._budget.is_exhausted

    @reads_from_primary
    async def verify(self, candidate: VerificationCandidate) -> VerifiedModel | None:
        """Verify a model; None if it was removed, or if the budget did not allow its first file."""
        hasher = FileHasher(await find_database_files(self._catalog), self._budget, self._meter)
        result = await self._verify(candidate, hasher)
        if self._level == "full" and not hasher.was_cut_short:
            # Bytes that were not read, or cannot be read, are taken off the expected total.
            more_bytes = hasher.read_bytes - (candidate.size_bytes or 0)
            self._meter.adjust_total(more_bytes, candidate.local_path)
        return result

    async def _verify(
        self, candidate: VerificationCandidate, hasher: FileHasher
    ) -> VerifiedModel | None:
        try:
            model = await self._catalog.get_model(candidate.ref)
            files = await self._catalog.list_files(model)
        except ModelNotFoundError:
            return None
        checked = _checked_model(model, files)
        found = await run_in_thread(lambda _: check_status(checked, self._mounts))
        if found.state not in (FileState.PRESENT, FileState.CHANGED):
            is_new = (found.state, found.detail) != (model.state, model.state_detail)
            return VerifiedModel(model, Verdict(found.state), found.detail, is_new=is_new)
        verdict = Verdict.OK if found.state is FileState.PRESENT else Verdict.CHANGED
        is_new = found.state is not model.state
        by_status = VerifiedModel(model, verdict, found.detail, is_new=is_new)
        if self._level == "full":
            # Without a digest, changed content must not become the expected content.
            is_unknown = verdict is Verdict.CHANGED and not files and model.digest is None
            return by_status if is_unknown else await self._verify_content(by_status, files, hasher)
        if not self._budget.try_take(0):
            return None
        if self._level == "quick":
            return by_status
        return await self._verify_content(by_status, files, hasher)

    async def _verify_content(
        self, by_status: VerifiedModel, files: list[FileRecord], hasher: FileHasher
    ) -> VerifiedModel | None:
        """Read the headers of a model, and its files at the level `full`."""
        model = by_status.model
        try:
            inspected = await self._inspect(model, files)
        except (OSError, BadLayoutError, NotAFileError, ProtectedFileError) as error:
            detail = errno_name(error) if isinstance(error, OSError) else str(error)
            return VerifiedModel(model, Verdict.UNREADABLE, detail)
        if self._level == "structure":
            return await self._record_structure(by_status, inspected)
        return await self._verify_digests(model, files, inspected, hasher)

    async def _inspect(self, model: Model, files: list[FileRecord]) -> InspectedFiles:
        database_files = await find_database_files(self._catalog)
        listed = () if model.store is None else tuple(files)
        return await run_in_thread(
            lambda stop: inspect_files(
                model.local_path, stop, file_identities(database_files), listed
            )
        )

    async def _record_structure(
        self, by_status: VerifiedModel, inspected: InspectedFiles
    ) -> VerifiedModel | None:
        completeness = merged_completeness(by_status.model, inspected)
        texts = completeness_values(completeness)
        values: dict[str, object] = {**texts}
        reason = texts["incomplete_reason"]
        if by_status.verdict is Verdict.OK:
            values |= learned_claims(by_status.model, inspected)
        stored = await save_inspection(self._catalog, by_status.model, values)
        if stored is None:
            return None
        if reason is not None:
            is_new = reason != by_status.model.incomplete_reason
            return VerifiedModel(stored, Verdict.INCOMPLETE, reason, is_new=is_new)
        return replace(by_status, model=stored, detail=by_status.detail or stored.unknown_reason)

    async def _verify_digests(
        self,
        model: Model,
        files: list[FileRecord],
        inspected: InspectedFiles,
        hasher: FileHasher,
    ) -> VerifiedModel | None:
        """Hash the files of a model one after the other, and record each digest."""
        if not files:
            files = first_file_records(inspected, model.digest)
            values = {"inventoried_at": inspected.found["inventoried_at"]}
            if model.size_bytes is None:
                values["size_bytes"] = inspected.described.size_bytes
            stored = await save_inspection(self._catalog, model, values, files)
            if stored is None:
                return None
            model = stored
        files = with_pointers(files, inspected)
        to_read = [file for file in files if file.path not in inspected.described.pointers]
        root = inspected.described.files.root
        device = await run_in_thread(lambda _: device_of(model.local_path))
        verified_at = model.verified_at
        compared: dict[str, FileRecord] = {file.path: file for file in files}
        has_read_a_file = False
        for file in await run_in_thread(lambda _: files_to_read(to_read, verified_at, root)):
            async with device_lock(device):
                result = await self._hash_file(model, root, file, hasher)
            if result is None:
                if not has_read_a_file:
                    return None
                detail = f"the next file to read is {file.path!r}"
                return VerifiedModel(model, Verdict.UNFINISHED, detail, hasher.read_bytes)
            if not isinstance(result, HashedFile):
                return VerifiedModel(model, *result, hasher.read_bytes)
            has_read_a_file = True
            compared[file.path] = compare_digest(file, result)
            await save_file_digest(self._catalog, model, compared[file.path])
        # A file of the right digest has another size only if a pointer of Git LFS named the digest.
        added_bytes = sum(compared[file.path].size_bytes - file.size_bytes for file in files)
        return await self._record_digests(
            model, list(compared.values()), inspected, hasher.read_bytes, added_bytes
        )

    async def _hash_file(
        self, model: Model, root: str, file: FileRecord, hasher: FileHasher
    ) -> HashedFile | tuple[Verdict, str] | None:
        """Hash a file. Returns verdict and detail if that failed; None if the budget ended."""
        path = f"{root}/{file.path}"
        has_digest = file.digest is not None or model.digest is not None
        try:
            found = await run_in_thread(lambda _: stat_path(path))
            if found.st_size == file.size_bytes or has_digest:
                return await hasher.hash(path, found)
        except (FileChangedError, NotAFileError) as error:
            return Verdict.CHANGED, str(error)
        except (ProtectedFileError, OSError) as error:
            reason = errno_name(error) if isinstance(error, OSError) else str(error)
            return Verdict.UNREADABLE, f"{file.path!r} cannot be read: {reason}"
        return Verdict.CHANGED, describe_sizes(file.path, found.st_size, file.size_bytes)

    async def _record_digests(
        self,
        model: Model,
        files: list[FileRecord],
        inspected: InspectedFiles,
        read_bytes: int,
        added_bytes: int,
    ) -> VerifiedModel | None:
        """Compare the digest of all files with the model's, and record the outcome."""
        actual, expected = actual_digest(files), expected_digest(files)
        damaged = [file for file in files if file.is_damaged]
        if model.digest is not None and actual == model.digest:
            # The recorded digests of the files were read when the content was not the expected one.
            files = [
                replace(file, digest=file.found_digest or file.digest, found_digest=None)
                for file in files
            ]
            damaged = []
        elif model.digest is not None and actual is not None and not damaged:
            damaged = files
        completeness = merged_completeness(model, inspected)
        texts = completeness_values(completeness)
        reason = texts["incomplete_reason"]
        now = datetime.now(UTC)
        values: dict[str, object] = {
            "found_digest": found_model_digest(actual, files) if damaged else None,
            "verified_at": max((file.hashed_at for file in files if file.hashed_at), default=now),
            **texts,
        }
        if not damaged:
            values |= {**learned_claims(model, inspected), "digest": model.digest or expected}
            if model.size_bytes is not None:
                values["size_bytes"] = model.size_bytes + added_bytes
        if not damaged and not _has_new_pointer(files, inspected):
            values |= {
                "state": FileState.PRESENT,
                "state_detail": None,
                "missing_since": None,
                "checked_at": now,
                "mount_point": inspected.found["mount_point"],
            }
        stored = await save_inspection(self._catalog, model, values, files)
        if stored is None:
            return None
        if damaged:
            is_new = stored.found_digest != model.found_digest
            mismatch = describe_mismatch(damaged)
            return VerifiedModel(stored, Verdict.MISMATCH, mismatch, read_bytes, is_new=is_new)
        if reason is not None:
            is_new = reason != model.incomplete_reason
            return VerifiedModel(stored, Verdict.INCOMPLETE, reason, read_bytes, is_new=is_new)
        detail = NOT_COMPARED if stored.digest is not None and actual is None else None
        detail = detail or stored.unknown_reason
        return VerifiedModel(stored, Verdict.OK, detail, read_bytes)


def _has_new_pointer(files: list[FileRecord], inspected: InspectedFiles) -> bool:
    """Whether a pointer of Git LFS has replaced a file that was recorded."""
    found = {file.path: file.fingerprint for file in inspected.files}
    pointers = inspected.described.pointers
    return any(file.path in pointers and file.fingerprint != found[file.path] for file in files)


def _checked_model(model: Model, files: list[FileRecord]) -> CheckedModel:
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

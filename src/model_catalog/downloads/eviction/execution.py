"""Execute a plan: delete the files and the records of its models, one model after another."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Event
from typing import Final

from model_catalog.concurrency.completion import run_to_completion
from model_catalog.domain.file_record import BEING_DELETED, FileState
from model_catalog.downloads.eviction.deletion import Deletion
from model_catalog.downloads.eviction.found_files import (
    RefusedError,
    base_folder,
    find_files,
    same_content,
)
from model_catalog.downloads.eviction.model_record import ModelRecord
from model_catalog.downloads.eviction.needed_names import NeededNames
from model_catalog.downloads.eviction.plan import (
    EvictedModel,
    EvictionPlan,
    EvictionResult,
    KeptModel,
    KeptReason,
    OnEviction,
    PlannedModel,
)
from model_catalog.downloads.eviction.planning import deletable_model
from model_catalog.downloads.eviction.removals import IsNeeded, RemovalPlanner, RemovedNames
from model_catalog.downloads.leases import require_no_transaction
from model_catalog.downloads.queries.claim_queries import renew_claims
from model_catalog.downloads.queries.eviction_queries import (
    BeginDeletion,
    EndDeletion,
    FilesQuery,
    ModelFiles,
    Refusal,
    RestoredState,
    UpdatedFingerprint,
    begin_deletion,
    cancel_deletion,
    finish_deletion,
    forget_model,
    select_model_files,
    select_unlisted,
)
from model_catalog.downloads.queries.plan_queries import (
    SharedFile,
)
from model_catalog.downloads.states import Holder, is_shared_disk
from model_catalog.errors import CatalogError, ClaimLostError, InvalidModelError, ModelInUseError
from model_catalog.execution.executor import read, write
from model_catalog.files.fingerprint import Fingerprint
from model_catalog.repository.model_catalog import ModelCatalog, executor_of, find_database_files
from model_catalog.upkeep.worker_threads import file_identities, run_in_thread

LEASE_S: Final = 60
"""How long a claim to delete a model lasts. If the process is killed, it expires then."""

RENEW_S: Final = 10
"""The seconds after which the claim is renewed, between two files."""

_INTERRUPTED: Final = "its deletion was not finished"


async def execute_plan(
    catalog: ModelCatalog,
    plan: EvictionPlan,
    *,
    delete_files: bool,
    on_progress: OnEviction | None,
) -> EvictionResult:
    """Do what `EvictionPlan.execute` describes."""
    # A rollback would keep the records of files that are deleted.
    require_no_transaction(catalog, "execute")
    executor_of(catalog).forbid_nested_write()
    if on_progress is not None and not callable(on_progress):
        raise InvalidModelError("on_progress", on_progress, "is not a function: give a function")
    unlisted = await executor_of(catalog).run(read(select_unlisted, None))
    needed = await run_in_thread(lambda _: NeededNames.of_paths(unlisted))
    deleted_ids: set[int] = set()
    evicted: list[EvictedModel] = []
    kept: list[KeptModel] = []
    freed_bytes = 0
    for planned in plan.models:
        deleted_ids.add(planned.record.id)
        eviction = _Eviction(
            catalog,
            planned,
            lambda path: bool(needed.others_of(path, deleted_ids)),
            is_shared=is_shared_disk(plan.scope),
        )
        refusal = await (eviction.delete() if delete_files else eviction.forget())
        freed_bytes += eviction.freed_bytes
        outcome: EvictedModel | KeptModel
        if refusal is None:
            outcome = EvictedModel(planned.ref, planned.local_path, eviction.freed_bytes)
            evicted.append(outcome)
        else:
            outcome = KeptModel(planned.record.id, planned.ref, refusal.reason, refusal.detail)
            kept.append(outcome)
            deleted_ids.discard(planned.record.id)
        if on_progress is not None:
            on_progress(outcome, plan)
    return EvictionResult(tuple(evicted), tuple(kept), freed_bytes)


@dataclass(slots=True)
class _Checked:
    """A deletion whose files were all checked, and the files of other models that share them."""

    deletion: Deletion
    shared: Sequence[SharedFile]


class _Eviction:
    """The deletion of one model of a plan."""

    def __init__(
        self, catalog: ModelCatalog, planned: PlannedModel, is_needed: IsNeeded, *, is_shared: bool
    ) -> None:
        self._catalog = catalog
        self._executor = executor_of(catalog)
        self._planned = planned
        self._is_needed = is_needed
        self._is_shared = is_shared
        self._holder = Holder.new()
        self._deletion: Deletion | None = None

    @property
    def freed_bytes(self) -> int:
        """The bytes on the disk that were freed."""
        return 0 if self._deletion is None else self._deletion.freed_bytes

    async def forget(self) -> Refusal | None:
        """Delete the record of the model after all checks; return why it is kept, or None."""
        request = (self._request(), self._executor.database.cascades)
        return await self._executor.run(write(forget_model, request))

    async def delete(self) -> Refusal | None:
        """Delete the files and the record of the model; return why it is kept, or None."""
        try:
            return await self._delete()
        except ClaimLostError:
            return Refusal(KeptReason.BEING_DELETED, "its claim has expired")
        except BaseException:
            await self._give_up()
            raise

    async def _delete(self) -> Refusal | None:
        database_files = await find_database_files(self._catalog)
        paths = list(_paths_above(self._planned))
        begun = await self._executor.run(write(begin_deletion, self._request()))
        if isinstance(begun, Refusal):
            return begun
        query = FilesQuery(begun, paths, self._is_shared)
        files = await self._executor.run(read(select_model_files, query))
        try:
            checked = await run_in_thread(
                lambda _: _check(begun, files, self._is_needed, file_identities(database_files))
            )
            self._deletion = checked.deletion
            await self._run(checked.deletion)
        except RefusedError as error:
            return await self._restore(begun, Refusal(error.reason, error.detail))
        return await self._finish(begun, checked)

    async def _give_up(self) -> None:
        """
        Release the claim of a deletion that was cancelled or has failed.

        The next plan can then finish the deletion at once. If no file was deleted, the model gets
        its former state back.
        """
        record = self._planned.record
        is_begun = self._deletion is not None and self._deletion.deleted_count > 0
        ended = self._ended(record)
        state = RestoredState(FileState.MISSING, BEING_DELETED, record.missing_since)
        if not is_begun:
            state = RestoredState(record.state, record.state_detail, record.missing_since)
        # The error that is passed on says more.
        with suppress(CatalogError):
            await self._executor.run(write(cancel_deletion, (ended, state)))

    def _ended(
        self, before: ModelRecord, updated: Sequence[UpdatedFingerprint] = ()
    ) -> EndDeletion:
        cascades = self._executor.database.cascades
        return EndDeletion(before, self._holder.token, cascades, updated)

    def _request(self) -> BeginDeletion:
        planned = self._planned
        return BeginDeletion(
            planned.record,
            self._holder,
            LEASE_S * 1000,
            is_owned=planned.is_owned,
            is_shared=self._is_shared,
        )

    async def _run(self, deletion: Deletion) -> None:
        """Delete all files, and renew the claim meanwhile. Raises RefusedError, ClaimLostError."""
        durations_ms = {self._holder.token: LEASE_S * 1000}
        cancelled = Event()
        while True:
            # A thread that still deletes must not outlive its claim.
            part = run_in_thread(lambda _: deletion.run(cancelled.is_set, RENEW_S))
            await run_to_completion(part, cancelled.set)
            if deletion.is_done:
                return
            if not await self._executor.run(write(renew_claims, durations_ms)):
                raise ClaimLostError

    async def _finish(self, before: ModelRecord, checked: _Checked) -> Refusal | None:
        updated = await run_in_thread(lambda _: list(_changed_fingerprints(checked.shared)))
        ended = self._ended(before, updated)
        try:
            return await self._executor.run(write(finish_deletion, ended))
        except ModelInUseError as error:
            # A row of another program refers to it since the deletion began.
            state = RestoredState(FileState.MISSING, "its files were deleted", None)
            await self._executor.run(write(cancel_deletion, (ended, state)))
            return Refusal(KeptReason.IN_USE, str(error))

    async def _restore(self, before: ModelRecord, refusal: Refusal) -> Refusal:
        """Record the former state of a model, or that its deletion stopped halfway."""
        if self._deletion is not None and self._deletion.deleted_count:
            state = RestoredState(FileState.MISSING, f"{_INTERRUPTED}: {refusal.detail}", None)
        elif before.is_being_deleted and refusal.reason is KeptReason.UNREADABLE:
            # The next plan tries again.
            state = RestoredState(before.state, before.state_detail, before.missing_since)
        elif before.is_being_deleted:
            state = RestoredState(FileState.MISSING, f"{_INTERRUPTED}: {refusal.detail}", None)
        else:
            state = RestoredState(before.state, before.state_detail, before.missing_since)
        await self._executor.run(write(cancel_deletion, (self._ended(before), state)))
        return refusal


def _paths_above(planned: PlannedModel) -> Iterable[str]:
    """Yield the path of a model and the folders above it, as another model may have recorded."""
    path = planned.local_path
    yield path
    while path not in (planned.root, os.path.dirname(path)):
        path = os.path.dirname(path)
        yield path


def _check(
    model: ModelRecord,
    files: ModelFiles,
    is_needed: IsNeeded,
    protected: Collection[tuple[int, int]],
) -> _Checked:
    """Check all files of a model before the first is deleted. Raises RefusedError."""
    deletable = deletable_model(model, files.files)
    if not deletable.files and not deletable.is_unfinished:
        raise RefusedError(KeptReason.NO_FILE_LIST)
    found = find_files(deletable, protected)
    needed = NeededNames.of_paths(files.unlisted)
    needed.add_files(files.shared)
    removals = RemovalPlanner().find_removals(
        found,
        lambda path: is_needed(path) or bool(needed.others_of(path, ())),
        RemovedNames(),
    )
    return _Checked(Deletion(found, removals), files.shared)


def _changed_fingerprints(shared: Iterable[SharedFile]) -> Iterable[UpdatedFingerprint]:
    """Yield the files of other models whose ctime the deletion of a hard link has changed."""
    for file in shared:
        if file.fingerprint is None:
            continue
        base = base_folder(file.local_path, [file.path])
        try:
            found = Fingerprint.from_stat(os.stat(f"{base}/{file.path}"))
        except OSError:
            continue
        before = Fingerprint.parse(file.fingerprint)
        if found != before and same_content(before, found):
            yield UpdatedFingerprint(file.model_id, file.path, file.fingerprint, str(found))

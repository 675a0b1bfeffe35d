"""Plan which models to delete: the least recently used first, as many as the target needs."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime

from model_catalog.domain.file_record import FileRecord
from model_catalog.domain.model_ref import ModelName, resolve_name
from model_catalog.downloads.eviction.criteria import Criteria, validated_criteria
from model_catalog.downloads.eviction.found_files import (
    DeletableModel,
    FoundFiles,
    RefusedError,
    find_files,
)
from model_catalog.downloads.eviction.model_record import ModelRecord
from model_catalog.downloads.eviction.needed_names import (
    NeededNames,
    SharedFiles,
    disk_bytes_of,
)
from model_catalog.downloads.eviction.plan import (
    EvictionPlan,
    KeptModel,
    KeptReason,
    PlannedModel,
)
from model_catalog.downloads.eviction.removals import RemovalPlanner, RemovedNames
from model_catalog.downloads.queries.claim_queries import Purpose
from model_catalog.downloads.queries.plan_queries import (
    EvictionRows,
    RowsQuery,
    select_rows,
)
from model_catalog.downloads.states import Scope, is_shared_disk
from model_catalog.errors import DeletionRefusedError, InvalidModelError, StoppedError
from model_catalog.execution.executor import read, reads_from_primary
from model_catalog.repository.model_catalog import ModelCatalog, executor_of, find_database_files
from model_catalog.upkeep.worker_threads import Stop, file_identities, run_in_thread

_NEVER = datetime.min.replace(tzinfo=UTC)

_UNKNOWN = "a model that was registered at the same time"
"""PostgreSQL takes a new snapshot for each statement, so a model may have files and no row yet."""


async def plan_eviction(
    catalog: ModelCatalog,
    *,
    free_bytes: int | None = None,
    keep_days: float | None = None,
    max_total_bytes: int | None = None,
    providers: Collection[str] | None = None,
    disk_of: str | os.PathLike[str] | None = None,
    scope: Scope = "host",
) -> EvictionPlan:
    """
    Plan which models to delete, the least recently used first. Nothing is written.

    At least one criterion is given. `free_bytes` are the bytes on the disk to free. With
    `max_total_bytes`, models are deleted until all managed models take at most that many bytes.
    `keep_days` restricts both to models that were not used for more than that many days; alone, it
    selects all of these. `providers` and `disk_of`, a path on a disk, restrict which models may be
    deleted.

    A model without a use counts as used when it was downloaded, and one without that time as
    unused. The plan never contains a model that is pinned, in use, being downloaded, owned by the
    store of another program, or not downloaded by the catalog (`managed_root` is None); nor one
    whose files are not the recorded ones. It begins with deletions that a killed process has not
    finished.

    With `scope="fleet"` all hosts share the disk. A model is then kept if one of another host has
    the same path or one of its files. With "host" the models of other hosts do not count.

    The disk is read in a thread, outside of a transaction. Raises InvalidModelError for an invalid
    criterion or scope.
    """
    is_shared = is_shared_disk(scope)
    criteria = await validated_criteria(
        free_bytes=free_bytes,
        keep_days=keep_days,
        max_total_bytes=max_total_bytes,
        providers=providers,
        disk_of=disk_of,
    )
    rows = await executor_of(catalog).run(read(select_rows, RowsQuery(is_shared=is_shared)))
    database_files = await find_database_files(catalog)

    def plan(stop: Stop) -> EvictionPlan:
        return _Planner(rows, file_identities(database_files), stop, scope).plan(criteria)

    return await run_in_thread(plan)


@reads_from_primary
async def plan_deletion(
    catalog: ModelCatalog, models: Iterable[ModelName], *, scope: Scope = "host"
) -> EvictionPlan:
    """
    Plan the deletion of models that the user names. Nothing is written.

    A model may be one that the catalog has not downloaded; its files are deleted in the folder of
    its path only. If its files are not recorded, its path must be a file of the recorded size.
    `scope` is that of `plan_eviction`.

    Raises ModelNotFoundError, and DeletionRefusedError for a model that is pinned, in use, being
    downloaded, owned by the store of another program, or whose files are not the recorded ones.
    """
    if isinstance(models, str) or not isinstance(models, Iterable):
        raise InvalidModelError("models", models, "is not a list of models: give a list")
    is_shared = is_shared_disk(scope)
    ids = {(await catalog.get_model(*resolve_name(name))).id for name in models}
    rows = await executor_of(catalog).run(read(select_rows, RowsQuery(ids, is_shared)))
    database_files = await find_database_files(catalog)

    def plan(stop: Stop) -> EvictionPlan:
        return _Planner(rows, file_identities(database_files), stop, scope).plan_named(ids)

    planned = await run_in_thread(plan)
    for kept in planned.kept:
        raise DeletionRefusedError(str(kept.ref), _sentence(kept))
    return planned


def _sentence(kept: KeptModel) -> str:
    return f"{kept.reason} ({kept.detail})" if kept.detail else str(kept.reason)


class _Simulation:
    """Finds the bytes that the deletion of models frees, one after another. Deletes nothing."""

    def __init__(self, planner: _Planner) -> None:
        self._planner = planner
        self._removed = RemovedNames()
        self._ids: set[int] = set()
        self.freed_bytes: dict[int, int] = {}
        """By the id of the model."""
        self.total = 0

    def add(self, model: ModelRecord) -> None:
        """Delete a model after those that were added before."""
        self._ids.add(model.id)
        freed_bytes = self._planner.freed_bytes(model, self._ids, self._removed)
        self.freed_bytes[model.id] = freed_bytes
        self.total += freed_bytes


class _Planner:
    def __init__(
        self,
        rows: EvictionRows,
        protected: Collection[tuple[int, int]],
        stop: Stop,
        scope: Scope = "host",
    ) -> None:
        self._rows = rows
        self._protected = protected
        self._stop = stop
        self._shared = SharedFiles(rows.shared)
        self._scope: Scope = scope
        self._needed = NeededNames.of_paths(rows.others.at_paths)
        self._removals = RemovalPlanner()
        self._found: dict[int, FoundFiles] = {}
        self._kept: dict[int, KeptModel] = {}

    def plan(self, criteria: Criteria) -> EvictionPlan:
        """Return the plan that meets some criteria."""
        self._needed.add_paths(_unlisted(self._rows.models))
        candidates: list[ModelRecord] = []
        for model in self._rows.models:
            if (kept := self._find_reason(model, criteria)) is None:
                candidates.append(model)
            else:
                self._kept[model.id] = kept
        candidates.sort(
            key=lambda each: (not each.is_being_deleted, each.used_at or _NEVER, each.id)
        )
        selected = [
            model
            for model in candidates
            if model.is_being_deleted and self._search(model, criteria)
        ]
        simulation = self._simulate(selected)
        candidates = [model for model in candidates if not model.is_being_deleted]
        if criteria.max_total_bytes is not None:
            candidates = [model for model in candidates if self._search(model, criteria)]
        target = self._target_bytes(criteria, selected, candidates)
        for model in candidates:
            if target is not None and simulation.total >= target:
                self._keep(model, KeptReason.NOT_NEEDED)
            elif model.id in self._found or self._search(model, criteria):
                simulation.add(model)
                selected.append(model)
        selected = self._without_kept_sharers(selected)
        if target is not None:
            selected = self._without_useless(selected)
        return self._result(selected, target)

    def plan_named(self, ids: Collection[int]) -> EvictionPlan:
        """Return the plan for these models. `kept` are those of them that may not be deleted."""
        named = [model for model in self._rows.models if model.id in ids]
        others = [model for model in self._rows.models if model.id not in ids]
        self._needed.add_paths(_unlisted(others))
        criteria = Criteria(None, None, None, None, None)
        selected = []
        for model in named:
            kept = self._find_reason(model, criteria, is_named=True)
            if kept is not None:
                self._kept[model.id] = kept
            elif self._search(model, criteria):
                selected.append(model)
        return self._result(self._without_kept_sharers(selected), None)

    def _find_reason(
        self, model: ModelRecord, criteria: Criteria, *, is_named: bool = False
    ) -> KeptModel | None:
        """Return why the database alone says that a model is kept; None if it does not."""
        reason, detail = self._reason_of_others(model)
        if reason is not None:
            pass
        elif criteria.providers is not None and model.provider not in criteria.providers:
            reason = KeptReason.OTHER_PROVIDER
        elif model.is_being_deleted:
            return None
        elif model.managed_root is None and model.store is not None:
            reason, detail = KeptReason.OTHER_STORE, model.store
        elif model.managed_root is None and not is_named:
            reason = KeptReason.UNKNOWN_OWNER
        elif model.inventoried_at is None and not is_named:
            reason = KeptReason.NO_FILE_LIST
        elif not model.state.is_as_recorded:
            reason = KeptReason.NOT_AS_RECORDED
            detail = f"{model.state}: {model.state_detail}" if model.state_detail else model.state
        elif criteria.unused_since is not None and (
            model.used_at is not None and model.used_at >= criteria.unused_since
        ):
            reason = KeptReason.USED_RECENTLY
        return None if reason is None else KeptModel(model.id, model.ref, reason, detail)

    def _reason_of_others(self, model: ModelRecord) -> tuple[KeptReason | None, str]:
        claim = self._rows.claims.get((model.provider, model.reference))
        if model.pinned_at is not None:
            return KeptReason.PINNED, ""
        if (users := self._rows.users.get(model.id)) is not None:
            return KeptReason.IN_USE, f"by {users}"
        if claim is not None:
            is_download = claim.purpose == Purpose.DOWNLOAD
            reason = KeptReason.DOWNLOADING if is_download else KeptReason.BEING_DELETED
            return reason, f"by process {claim.process_id} on {claim.host}"
        return None, ""

    def _search(self, model: ModelRecord, criteria: Criteria) -> bool:
        """Find the files of a model; return False, and keep it, if it may not be deleted."""
        if self._stop():
            raise StoppedError("the planning of an eviction was stopped")
        deletable = deletable_model(model, self._rows.files.get(model.id, ()))
        if not deletable.files and not model.is_being_deleted:
            self._keep(model, KeptReason.NO_FILE_LIST)
            return False
        try:
            found = find_files(deletable, self._protected)
        except RefusedError as error:
            self._keep(model, error.reason, error.detail)
            return False
        if criteria.device is not None and os.stat(found.root).st_dev != criteria.device:
            self._keep(model, KeptReason.OTHER_DISK)
            return False
        self._needed.add_files(self._shared.of_others(model.id, deletable.files))
        self._found[model.id] = found
        return True

    def _keep(self, model: ModelRecord, reason: KeptReason, detail: str = "") -> None:
        self._kept[model.id] = KeptModel(model.id, model.ref, reason, detail)

    def _target_bytes(
        self,
        criteria: Criteria,
        unfinished: Sequence[ModelRecord],
        candidates: Sequence[ModelRecord],
    ) -> int | None:
        """Return the bytes that the plan has to free, with those of unfinished deletions."""
        if not criteria.has_target:
            return None
        target = criteria.free_bytes or 0
        if criteria.max_total_bytes is not None:
            ids = {model.id for model in candidates}
            kept = {
                model.id: self._rows.files.get(model.id, ())
                for model in self._rows.models
                if model.managed_root is not None
                and not model.is_being_deleted
                and model.id not in ids
            }
            # A deletion frees links and lists of a cache too, so these are part of the total.
            deletable_bytes = self._simulate([*unfinished, *candidates]).total
            total_bytes = disk_bytes_of(kept) + deletable_bytes
            if self._simulate(unfinished).total + criteria.max_total_bytes < total_bytes:
                target = max(target, total_bytes - criteria.max_total_bytes)
        return target

    def freed_bytes(self, model: ModelRecord, gone: Collection[int], removed: RemovedNames) -> int:
        """Return the bytes that a deletion frees after others; `gone` are the deleted models."""
        removals = self._removals.find_removals(
            self._found[model.id],
            lambda path: bool(self._needed.others_of(path, gone)),
            removed,
        )
        return sum(each.freed_bytes for each in removals)

    def _simulate(self, models: Iterable[ModelRecord]) -> _Simulation:
        simulation = _Simulation(self)
        for model in models:
            simulation.add(model)
        return simulation

    def _without_kept_sharers(self, selected: Sequence[ModelRecord]) -> list[ModelRecord]:
        """Leave out models one of whose own names a model needs that is kept."""
        remaining = list(selected)
        while True:
            ids = {model.id for model in remaining}
            kept = [
                (model, others)
                for model in remaining
                if (others := self._sharers(model, ids)) and not model.is_being_deleted
            ]
            if not kept:
                return remaining
            refs = {model.id: str(model.ref) for model in self._rows.models}
            refs |= self._rows.others.names
            for model, others in kept:
                names = [refs.get(each, _UNKNOWN) for each in sorted(others)]
                self._keep(model, KeptReason.SHARED, ", ".join(names))
                remaining.remove(model)

    def _sharers(self, model: ModelRecord, ids: Collection[int]) -> set[int]:
        return {
            other
            for chain in self._found[model.id].chains
            for other in self._needed.others_of(chain[0].path, ids)
        }

    def _without_useless(self, selected: Sequence[ModelRecord]) -> list[ModelRecord]:
        """Leave out models whose deletion frees nothing, alone or with the others."""
        remaining = list(selected)
        simulation = self._simulate(remaining)
        for model in selected:
            if simulation.freed_bytes[model.id] or model.is_being_deleted:
                continue
            without = [each for each in remaining if each is not model]
            if self._simulate(without).total == simulation.total:
                self._keep(model, KeptReason.NOT_NEEDED, "deleting it frees nothing")
                remaining = without
        return remaining

    def _result(self, selected: Sequence[ModelRecord], target: int | None) -> EvictionPlan:
        simulation = self._simulate(selected)
        models = tuple(
            PlannedModel(
                model,
                model.ref,
                model.local_path,
                self._found[model.id].model.root,
                simulation.freed_bytes[model.id],
            )
            for model in selected
        )
        shortfall = 0 if target is None else max(0, target - simulation.total)
        kept = tuple(self._kept[model_id] for model_id in sorted(self._kept))
        return EvictionPlan(models, kept, shortfall, self._scope)


def deletable_model(model: ModelRecord, files: Sequence[FileRecord]) -> DeletableModel:
    """Return the facts of a model that its deletion needs."""
    path, is_owned = model.local_path, model.managed_root is not None
    is_unlisted = not is_owned and model.inventoried_at is None
    if is_unlisted and model.size_bytes is not None and not os.path.isdir(path):
        files = (FileRecord(os.path.basename(path), model.size_bytes),)
    return DeletableModel(
        model.id,
        path,
        model.managed_root or os.path.dirname(path) or ".",
        files,
        model.mount_point,
        is_unfinished=model.is_being_deleted,
        is_owned=is_owned,
        compares_sizes=is_unlisted,
    )


def _unlisted(models: Iterable[ModelRecord]) -> list[tuple[int, str]]:
    return [(model.id, model.local_path) for model in models if model.inventoried_at is None]

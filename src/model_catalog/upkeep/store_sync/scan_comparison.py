"""Compare the scan of a store with the catalog, and plan the changes. Nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from model_catalog.domain import key_validation, validation
from model_catalog.domain.fields import KEY_FIELDS
from model_catalog.domain.file_record import LEFT_STORE, FileRecord, FileState
from model_catalog.domain.model_ref import ModelRef
from model_catalog.domain.search_text import fold_case
from model_catalog.errors import InvalidModelError, StoppedError
from model_catalog.files.completeness.evidence import Completeness
from model_catalog.mapping.column_types import decode_path
from model_catalog.stores.scan_result import FoundModel, Scan, ScanProblem
from model_catalog.upkeep.checks.file_status import MountCache, describe_absence, is_absent
from model_catalog.upkeep.inspection import completeness_values
from model_catalog.upkeep.queries.check_queries import CheckResult
from model_catalog.upkeep.queries.store_sync_queries import (
    PLAIN_FOLDER,
    AliasKey,
    ModelKey,
    ModelToStore,
    StoreRows,
)
from model_catalog.upkeep.store_sync.file_list_comparison import (
    compare_files,
    has_same_weights,
    merge_file_list,
    state_of_found,
)
from model_catalog.upkeep.store_sync.model_disks import ModelDisks
from model_catalog.upkeep.store_sync.model_values import ScanContext
from model_catalog.upkeep.store_sync.scan_changes import RecordedModel, ScanChanges, StoreFinding
from model_catalog.upkeep.store_sync.succession import Successions, find_successions
from model_catalog.upkeep.worker_threads import Stop

HeaderReader: TypeAlias = Callable[[FoundModel], tuple[dict[str, Any], Completeness, FoundModel]]
"""Reads the headers of a model; returns claims to record, the verdict, and what it has learned."""

_PRESENT_AGAIN: Final = "present again"
"""The detail of a model that was missing, offline, unreadable or changed."""


def compare_scan(
    scan: Scan,
    rows: StoreRows,
    stop: Stop,
    *,
    read_headers: HeaderReader | None = None,
    progress: Callable[[int], object] | None = None,
) -> ScanChanges:
    """
    Return the changes that bring the catalog in line with a scan.

    `read_headers` is called for each model whose present files had no header read. Otherwise
    accesses the disk only to see whether a recorded model that was not found still exists.
    `progress` is called with the number of models that were compared. Raises StoppedError.
    """
    return _Comparison(scan, rows, read_headers).compare(stop, progress)


class _Comparison:
    def __init__(self, scan: Scan, rows: StoreRows, read_headers: HeaderReader | None) -> None:
        self._read_headers = read_headers
        self._scan = scan
        now = datetime.now(UTC).replace(microsecond=0)
        self._context = ScanContext(scan.store, scan.root, ModelDisks(scan.root), now)
        self._mounts = MountCache()
        self._recorded = {model.key: model for model in map(RecordedModel.from_row, rows.models)}
        by_id = {model.id: model for model in self._recorded.values()}
        for row in rows.files:
            if (files := by_id[row[0]].files) is not None:
                files[decode_path(row[1]) or ""] = row
        self._aliases = rows.aliases
        self._plain_roots = rows.plain_roots
        self._aliases_of_store: dict[int, list[AliasKey]] = {}
        for alias, (model_id, store) in rows.aliases.items():
            if store == scan.store:
                self._aliases_of_store.setdefault(model_id, []).append(alias)
        self._found_aliases = {
            (found.provider, found.reference, alias)
            for found in scan.found
            for alias in found.aliases
        }
        self._found_keys: set[ModelKey] = set()
        self._successions = self._find_successions()
        self._changes = ScanChanges()

    def compare(self, stop: Stop, progress: Callable[[int], object] | None) -> ScanChanges:
        for count, found in enumerate(self._scan.found, 1):
            if stop():
                raise StoppedError(f"adopting the store {self._scan.root!r} was stopped")
            try:
                self._compare_model(found)
            except InvalidModelError as error:
                self._add_problem(found, f"{error.field} {error.reason}")
            if progress is not None:
                progress(count)
        self._find_gone()
        self._changes.problems += self._scan.problems
        self._changes.problems.sort(key=lambda problem: (problem.path, problem.reason))
        return self._changes

    def _add_problem(self, found: FoundModel, reason: str) -> None:
        problem = ScanProblem(found.local_path, reason, found.reference, found.version)
        self._changes.problems.append(problem)

    def _compare_model(self, found: FoundModel) -> None:
        key, recorded = self._find_recorded(found)
        # Before the validation: a model that cannot be recorded still exists, so its row must not
        # be reported as gone.
        self._found_keys.add(key)
        for alias in found.aliases:
            key_validation.alias("alias", alias)
        to_store = self._changes.models_to_store
        if recorded is None and (heir := self._successions.heirs.get(key)) is not None:
            self._rename(found, heir)
            return
        if recorded is None:
            copied = self._successions.copies.get(key)
            values, files, reasons = self._all_values(key, found, None)
            if copied is not None and copied.is_managed_at(found.local_path):
                values["managed_root"] = copied.managed_root
            to_store[key] = ModelToStore(
                key,
                None,
                values,
                files,
                copied_key=None if copied is None else copied.key,
                copied_id=None if copied is None else copied.id,
            )
            alias_details = self._compare_aliases(found, key)
            self._changes.new.append(_finding(key, found, *alias_details, *reasons))
            return
        details = self._compare_recorded(found, recorded)
        self._count_if_lost(recorded, is_lost=state_of_found(found, ())[0] is FileState.MISSING)
        alias_details = self._compare_aliases(found, key)
        if alias_details and key not in to_store:
            to_store[key] = ModelToStore(key, recorded.id, {}, None)
        if details or alias_details:
            self._changes.changed.append(_finding(key, found, *details, *alias_details))
        else:
            self._changes.unchanged.append(ModelRef(*key))

    def _find_successions(self) -> Successions:
        """Find recorded models that the store now has under another name, or as several models."""
        names = {}
        for found in self._scan.found:
            key = (found.provider, found.reference, found.version)
            prefixed = (found.provider, f"{self._scan.root}/{found.reference}", found.version)
            for each in (prefixed, key):
                if each in self._recorded:
                    names[key] = each
                    break
        if len(names) == len(self._scan.found):
            return Successions()
        in_store = [model for model in self._recorded.values() if self._is_in_store(model)]
        return find_successions(self._scan.found, in_store, names)

    def _rename(self, found: FoundModel, recorded: RecordedModel) -> None:
        """Plan that a row continues under the name that its files have now."""
        old, key = recorded.key, (found.provider, found.reference, found.version)
        values, files, reasons = self._all_values(key, found, recorded)
        values |= dict(zip(KEY_FIELDS, key, strict=True))
        values["reference_folded"] = fold_case(key[1])
        self._changes.models_to_store[key] = ModelToStore(
            key, recorded.id, values, files, recorded_key=old
        )
        del self._recorded[old]
        self._recorded[key] = recorded
        aliases = self._compare_aliases(found, key)
        detail = f"recorded as {ModelRef(*old[:2], old[2] or None)} before"
        self._changes.changed.append(_finding(key, found, detail, *aliases, *reasons))

    def _find_recorded(self, found: FoundModel) -> tuple[ModelKey, RecordedModel | None]:
        """
        Return the key under which to record a model, and the recorded model with that key.

        The key may belong to a model of another store, or to one that the user has recorded at
        another path. Then the reference of the second model gets the path of its store as a prefix.
        """
        key = (found.provider, found.reference, found.version)
        prefixed = (found.provider, f"{self._scan.root}/{found.reference}", found.version)
        recorded = self._recorded.get(prefixed)
        if recorded is not None and self._is_in_store(recorded):
            return prefixed, recorded
        recorded = self._recorded.get(key)
        if recorded is None or self._is_in_store(recorded) or self._is_same(recorded, found):
            return key, recorded
        if prefixed in self._recorded:
            raise InvalidModelError("reference", prefixed[1], "is already used by another model")
        validation.non_blank_text("reference", prefixed[1], key_validation.MAX_REFERENCE)
        return prefixed, None

    def _is_in_store(self, recorded: RecordedModel) -> bool:
        root = self._scan.root
        is_plain = recorded.store == PLAIN_FOLDER and recorded.store_root in self._plain_roots
        return (
            (is_plain or (recorded.store == self._scan.store and recorded.store_root == root))
            # A model that was relinked to a path outside the store no longer belongs to it.
            and f"{recorded.local_path}/".startswith(root.rstrip("/") + "/")
        )

    def _is_same(self, recorded: RecordedModel, found: FoundModel) -> bool:
        """Whether a recorded model outside the store is the found one, recorded differently."""
        if recorded.local_path == found.local_path:
            return True
        if recorded.store is None and recorded.local_path.startswith(f"{found.local_path}/"):
            return True
        # A store that was moved: the same model no longer exists at its recorded path.
        return (
            recorded.size_bytes in {None, found.size_bytes}
            and is_absent(recorded.local_path)
            and self._mounts.offline_reason(recorded.checked_model) is None
        )

    def _compare_recorded(self, found: FoundModel, recorded: RecordedModel) -> list[str]:
        """Plan the changes of a recorded model, and return a description of each."""
        key = recorded.key
        if recorded.is_own and recorded.local_path.startswith(f"{found.local_path}/"):
            # The user has registered one file of the folder.
            return []
        compared = compare_files(found, recorded.files)
        if not compared.is_same_list or recorded.size_bytes != found.size_bytes:
            if recorded.is_own and recorded.files is not None:
                # `add` lists other files than a scan of a store does. Its list stays.
                return []
            values, listed, _ = self._all_values(key, found, recorded)
            self._changes.models_to_store[key] = ModelToStore(key, recorded.id, values, listed)
            return ["its files changed"]
        values, details = self._compare_columns(found, recorded)
        result = self._check_result(found, recorded, compared.changed)
        if recorded.headers_read_at is None and result.state.is_as_recorded:
            header_values, completeness, read = self._read(found)
            values |= header_values
        else:
            read, completeness = found, found.completeness.with_content_of(recorded.completeness)
        # A pointer of Git LFS that was read names the digest of its file.
        has_new_facts = not compared.has_same_facts or read is not found
        files = merge_file_list(read, recorded.files)[0] if has_new_facts else None
        details += self._compare_completeness(completeness, recorded, values)
        if result.state is not result.model.state:
            is_present = result.state is FileState.PRESENT
            details.append(_PRESENT_AGAIN if is_present else str(result.state))
            if not values:
                self._changes.check_results.append(result)
            else:
                values |= self._context.state_values(
                    result.state, result.detail, result.mount_point
                )
        if values or files is not None:
            self._changes.models_to_store[key] = ModelToStore(key, recorded.id, values, files)
        return details

    def _all_values(
        self, key: ModelKey, found: FoundModel, recorded: RecordedModel | None
    ) -> tuple[dict[str, Any], list[FileRecord], Sequence[str]]:
        """
        Return the columns and files of a new or changed model, and why it is incomplete.

        What was read of the weights stays if they are the same and are not read again.
        """
        header_values, completeness, found = self._read(found)
        values, files = self._context.all_values(key, found, recorded)
        if recorded is not None and not header_values and has_same_weights(found, recorded.files):
            completeness = completeness.with_content_of(recorded.completeness)
            header_values["headers_read_at"] = recorded.headers_read_time
        values |= {**header_values, **completeness_values(completeness)}
        return values, files, completeness.reasons

    def _read(self, found: FoundModel) -> tuple[dict[str, Any], Completeness, FoundModel]:
        """Return columns of headers, if they are to be read, the verdict, and the model."""
        if self._read_headers is None:
            return {}, found.completeness, found
        claims, completeness, found = self._read_headers(found)
        return {**claims, "headers_read_at": self._context.now}, completeness, found

    def _compare_columns(
        self, found: FoundModel, recorded: RecordedModel
    ) -> tuple[dict[str, Any], list[str]]:
        """Return the changed columns of a model, without its state, and descriptions of them."""
        values: dict[str, Any] = {}
        details = []
        if recorded.local_path != found.local_path:
            values["local_path"] = validation.path("local_path", found.local_path)
            if recorded.leaves_managed_root(found.local_path):
                values["managed_root"] = None
            details.append(f"moved from {recorded.local_path}")
        if not recorded.is_own and not self._is_in_store(recorded):
            values |= {"store": self._scan.store, "store_root": self._scan.root}
            details.append(f"now in a store of {self._scan.store}")
        if recorded.claimed_kind is None:
            values["claimed_kind"] = found.kind
        return values, details

    def _compare_completeness(
        self, completeness: Completeness, recorded: RecordedModel, values: dict[str, Any]
    ) -> list[str]:
        """Add the changed columns of the verdict to `values`; return a description of them."""
        if recorded.is_own and recorded.headers_read_at is not None:
            # `add` has read the files that the user has named.
            return []
        if completeness.content is None and recorded.is_verified and not completeness.reasons:
            # An older release has not recorded what its verification had read.
            return []
        changed = {
            name: value
            for name, value in completeness_values(completeness).items()
            if value != getattr(recorded, name)
        }
        values |= changed
        if "incomplete_reason" not in changed:
            return []
        return [changed["incomplete_reason"] or "complete"]

    def _check_result(
        self, found: FoundModel, recorded: RecordedModel, changed: Sequence[str]
    ) -> CheckResult:
        state, detail = state_of_found(found, changed)
        if state is FileState.PRESENT and recorded.state == FileState.UNCHECKED:
            # The first scan of an unchecked, unchanged model does not report it as changed.
            state = FileState.UNCHECKED
        mount = self._context.disks.mount_point_of(found)
        return CheckResult(recorded.checked_model, state, detail, mount)

    def _compare_aliases(self, found: FoundModel, key: ModelKey) -> list[str]:
        """Plan the changes of a model's aliases, and return a description of each."""
        recorded = self._recorded.get(key)
        details = []
        for alias in found.aliases:
            target_id, store = self._aliases.get((*key[:2], alias), (None, self._scan.store))
            if recorded is not None and target_id == recorded.id:
                continue
            if store is None:
                self._add_problem(
                    found, f"the alias {alias!r} was set by the user and points to another version"
                )
                continue
            self._changes.alias_targets[*key[:2], alias] = key
            if recorded is not None:
                details.append(f"alias {alias} set")
        for alias_key in [] if recorded is None else self._aliases_of_store.get(recorded.id, []):
            if (found.provider, found.reference, alias_key[2]) not in self._found_aliases:
                if self._has_problem_in_folder(found):
                    continue
                self._changes.removed_aliases.append(alias_key)
                details.append(f"alias {alias_key[2]} removed")
        return details

    def _find_gone(self) -> None:
        """Plan the state of the store's models that the scan did not find."""
        offline_reasons: set[str] = set()
        for key, recorded in self._recorded.items():
            if key in self._found_keys or not self._is_in_store(recorded):
                continue
            if not self._scan.covers(recorded.local_path):
                continue
            reference = recorded.reference.removeprefix(f"{self._scan.root}/")
            if self._scan.may_hide(reference, recorded.version, recorded.local_path):
                continue
            model = recorded.checked_model
            if model.state is FileState.MISSING:
                continue
            does_not_exist = is_absent(recorded.local_path)
            if (reason := self._mounts.offline_reason(model)) is not None:
                if model.state is not FileState.OFFLINE:
                    result = CheckResult(model, FileState.OFFLINE, reason)
                    self._changes.check_results.append(result)
                offline_reasons.add(reason)
                continue
            self._count_if_lost(recorded, is_lost=does_not_exist)
            detail = describe_absence(recorded.local_path) if does_not_exist else LEFT_STORE
            self._changes.check_results.append(CheckResult(model, FileState.MISSING, detail))
            self._changes.gone.append(recorded.finding)
        self._changes.problems += [
            ScanProblem(self._scan.root, reason) for reason in sorted(offline_reasons)
        ]

    def _count_if_lost(self, recorded: RecordedModel, *, is_lost: bool) -> None:
        if recorded.state != FileState.MISSING:
            self._changes.present_count += 1
            if is_lost:
                self._changes.lost[recorded.key] = recorded.id

    def _has_problem_in_folder(self, found: FoundModel) -> bool:
        """Whether the scan had a problem in the model's top-level folder of the store."""
        root = self._scan.root.rstrip("/") + "/"
        folder = root + found.local_path.removeprefix(root).partition("/")[0]
        return any(
            problem.path == folder or problem.path.startswith(f"{folder}/")
            for problem in self._scan.problems
        )


def _finding(key: ModelKey, found: FoundModel, *details: str) -> StoreFinding:
    return StoreFinding(ModelRef(*key), found.local_path, found.size_bytes, ", ".join(details))

"""What a scan of a store says that the catalog does not: compared, and nothing written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from model_catalog.domain import fields, validation
from model_catalog.domain.fields import KEY_FIELDS
from model_catalog.domain.file_record import LEFT_STORE, FileRecord, FileState, expected_digest
from model_catalog.domain.model_ref import ModelRef
from model_catalog.errors import InvalidModelError, StoppedError
from model_catalog.files.mounts import mount_point
from model_catalog.mapping.column_types import decode_path, decode_state
from model_catalog.mapping.tables import fold_case
from model_catalog.repository.operations.check_queries import CheckedModel, CheckResult
from model_catalog.repository.operations.store_sync_queries import (
    MODEL_COLUMNS,
    AliasKey,
    ModelKey,
    ModelToStore,
    StoreRows,
)
from model_catalog.stores.scan_result import FoundModel, Scan, ScanProblem
from model_catalog.upkeep.checks.file_status import MountCache
from model_catalog.upkeep.inspection import join_reasons
from model_catalog.upkeep.store_sync.file_listing import (
    compare_files,
    merge_file_list,
    stored_state,
)
from model_catalog.upkeep.verification.file_comparison import actual_model_digest
from model_catalog.upkeep.worker_threads import Stop

AGAIN: Final = "there again"


@dataclass(frozen=True, slots=True)
class StoreFinding:
    """
    A model of a store as an adoption met it.

    `detail` says what of it has changed, and of a new one why it is not whole.
    """

    ref: ModelRef
    local_path: str
    size_bytes: int | None
    detail: str = ""

    @property
    def key(self) -> ModelKey:
        """Provider, reference and version."""
        return self.ref.provider, self.ref.reference, self.ref.version or ""


@dataclass(slots=True)
class ScanChanges:
    """What is to be written, and what is to be told; nothing of the one without the other."""

    adoptees: dict[ModelKey, ModelToStore] = field(default_factory=dict)
    looks: list[CheckResult] = field(default_factory=list)
    moved: dict[AliasKey, ModelKey] = field(default_factory=dict)
    removed: list[AliasKey] = field(default_factory=list)
    new: list[StoreFinding] = field(default_factory=list)
    changed: list[StoreFinding] = field(default_factory=list)
    gone: list[StoreFinding] = field(default_factory=list)
    unchanged: list[ModelRef] = field(default_factory=list)
    problems: list[ScanProblem] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return not (self.adoptees or self.looks or self.removed)


@dataclass(slots=True)
class _Known:
    """A model that is recorded, with its files by their paths; None where they are not known."""

    id: int
    provider: str
    reference: str
    version: str
    local_path: str
    size_bytes: int | None
    state: str
    state_detail: str | None
    mount_point: str | None
    digest: str | None
    found_digest: str | None
    incomplete_reason: str | None
    verified_at: datetime | None
    inventoried_at: datetime | None
    store: str | None
    store_root: str | None
    files: dict[str, Sequence[Any]] | None = None

    @classmethod
    def of(cls, row: Sequence[Any]) -> _Known:
        values = dict(zip(MODEL_COLUMNS, row, strict=True))
        for name in ("local_path", "mount_point", "store_root"):
            values[name] = decode_path(values[name])
        values["local_path"] = values["local_path"] or ""
        return cls(**values, files=None if values["inventoried_at"] is None else {})

    @property
    def key(self) -> ModelKey:
        return self.provider, self.reference, self.version

    @property
    def holding(self) -> CheckedModel:
        return CheckedModel(
            self.id,
            self.local_path,
            self.size_bytes,
            decode_state(self.state),
            self.state_detail,
            self.mount_point,
            self.found_digest is not None,
        )

    @property
    def sighting(self) -> StoreFinding:
        return StoreFinding(ModelRef(*self.key), self.local_path, self.size_bytes)


def compare_scan(scan: Scan, stored: StoreRows, stop: Stop) -> ScanChanges:
    """
    What is to be written so that the catalog says what the scan does.

    The disk is asked only whether what was recorded, and was not found, is still there. Raises
    StoppedError.
    """
    return _Comparison(scan, stored).compare(stop)


class _Comparison:
    def __init__(self, scan: Scan, stored: StoreRows) -> None:
        self._scan = scan
        self._now = datetime.now(UTC).replace(microsecond=0)
        self._mount_point = mount_point(scan.root)
        self._disks = MountCache()
        self._known = {known.key: known for known in map(_Known.of, stored.models)}
        self._by_id = {known.id: known for known in self._known.values()}
        for row in stored.files:
            if (files := self._by_id[row[0]].files) is not None:
                files[decode_path(row[1]) or ""] = row
        self._aliases = stored.aliases
        self._made_here: dict[int, list[AliasKey]] = {}
        for alias, (model_id, store) in stored.aliases.items():
            if store == scan.store:
                self._made_here.setdefault(model_id, []).append(alias)
        self._pointed = {
            (found.provider, found.reference, alias)
            for found in scan.found
            for alias in found.aliases
        }
        self._met: set[ModelKey] = set()
        self._made = ScanChanges()

    def compare(self, stop: Stop) -> ScanChanges:
        for found in self._scan.found:
            if stop():
                raise StoppedError(f"the adoption of {self._scan.root!r} was stopped")
            try:
                self._meet(found)
            except InvalidModelError as error:
                self._blame(found.local_path, f"{error.field} {error.reason}", found)
        self._find_gone()
        self._made.problems += self._scan.problems
        self._made.problems.sort(key=lambda problem: (problem.path, problem.reason))
        return self._made

    def _blame(self, path: str, reason: str, found: FoundModel) -> None:
        self._made.problems.append(ScanProblem(path, reason, found.reference, found.version))

    def _meet(self, found: FoundModel) -> None:
        key, known = self._place_of(found)
        # What cannot be recorded is there all the same: the row that it has is not said to be gone.
        self._met.add(key)
        for alias in found.aliases:
            validation.alias("alias", alias)
        if known is None:
            self._made.adoptees[key] = ModelToStore(key, None, *self._whole(key, found, None))
            pointed = self._point(found, key)
            self._made.new.append(_sighting(key, found, *pointed, *found.reasons))
            return
        details = self._differ(found, known)
        pointed = self._point(found, key)
        if pointed and key not in self._made.adoptees:
            self._made.adoptees[key] = ModelToStore(key, known.id, {}, None)
        if details or pointed:
            self._made.changed.append(_sighting(key, found, *details, *pointed))
        else:
            self._made.unchanged.append(ModelRef(*key))

    def _place_of(self, found: FoundModel) -> tuple[ModelKey, _Known | None]:
        """
        The name under which a model is recorded, and the row of that name.

        Two stores may hold a model of one name, or the user has recorded one that lies elsewhere:
        then the one that came second is called by the path of its store as well.
        """
        key = (found.provider, found.reference, found.version)
        apart = (found.provider, f"{self._scan.root}/{found.reference}", found.version)
        known = self._known.get(apart)
        if known is not None and self._is_here(known):
            return apart, known
        known = self._known.get(key)
        if known is None or self._is_here(known) or self._is_taken_over(known, found):
            return key, known
        if apart in self._known:
            raise InvalidModelError("reference", apart[1], "is that of another model")
        validation.non_blank_text("reference", apart[1], validation.MAX_REFERENCE)
        return apart, None

    def _is_here(self, known: _Known) -> bool:
        root = self._scan.root
        return (
            known.store == self._scan.store
            and known.store_root == root
            # One that was found elsewhere by its bytes is not the store's to lose.
            and f"{known.local_path}/".startswith(root.rstrip("/") + "/")
        )

    def _is_taken_over(self, known: _Known, found: FoundModel) -> bool:
        """Whether a row of the same name is of the same model, which was recorded otherwise."""
        if known.local_path == found.local_path:
            return True
        if known.store is None and known.local_path.startswith(f"{found.local_path}/"):
            return True
        # A store that was moved: the same model is no longer where it was.
        return (
            known.size_bytes in {None, found.size_bytes}
            and _is_gone(known.local_path)
            and self._disks.reason_offline(known.holding) is None
        )

    def _differ(self, found: FoundModel, known: _Known) -> list[str]:
        """Note what is to be written of a known model; return it in words."""
        touched, same = compare_files(found, known.files)
        if not same or known.size_bytes != found.size_bytes:
            values, files = self._whole(known.key, found, known)
            self._made.adoptees[known.key] = ModelToStore(known.key, known.id, values, files)
            return ["its files"]
        values, details = {}, []
        if known.local_path != found.local_path:
            values["local_path"] = validation.path("local_path", found.local_path)
            details.append(f"lay at {known.local_path}")
        if not self._is_here(known):
            values |= {"store": self._scan.store, "store_root": self._scan.root}
            details.append(f"in a store of {self._scan.store}")
        reason = join_reasons(found.reasons)
        # What a verification has found of it is not taken back by a look at the names.
        if reason != known.incomplete_reason and (reason or known.verified_at is None):
            values["incomplete_reason"] = reason
            details.append(reason or "whole")
        look = self._look(found, known, touched)
        if look.state is not look.holding.state:
            details.append(str(look.state) if look.state is not FileState.PRESENT else AGAIN)
            if not values:
                self._made.looks.append(look)
            else:
                values |= self._state_values(look)
        if values:
            self._made.adoptees[known.key] = ModelToStore(known.key, known.id, values, None)
        return details

    def _look(self, found: FoundModel, known: _Known, touched: Sequence[str]) -> CheckResult:
        state, detail = stored_state(found, touched)
        if state is FileState.PRESENT and known.state == FileState.UNCHECKED:
            # Of one at which nobody has looked it is no news that it is there.
            state = FileState.UNCHECKED
        return CheckResult(known.holding, state, detail, self._mount_point)

    def _state_values(self, look: CheckResult) -> dict[str, Any]:
        missing = look.state is FileState.MISSING
        return {
            "state": look.state,
            "state_detail": look.detail,
            "checked_at": self._now,
            "missing_since": self._now if missing else None,
            "mount_point": self._mount_point,
        }

    def _whole(
        self, key: ModelKey, found: FoundModel, known: _Known | None
    ) -> tuple[dict[str, Any], list[FileRecord]]:
        """All that a scan tells of a model. Raises InvalidModelError."""
        files, touched = merge_file_list(found, None if known is None else known.files)
        digest = expected_digest(files)
        damaged = any(file.is_damaged for file in files)
        if digest is None and known is not None and known.size_bytes == found.size_bytes:
            digest = known.digest
        claimed = {f"claimed_{name}": getattr(found.claims, name) for name in fields.HEADER_FIELDS}
        said = {
            "local_path": found.local_path,
            "size_bytes": found.size_bytes,
            "downloaded_at": found.downloaded_at or self._now,
            "digest": digest,
            **claimed,
        }
        values = {name: fields.UPDATABLE_FIELDS[name](name, value) for name, value in said.items()}
        values |= {
            **self._state_values(CheckResult(_NOTHING, *stored_state(found, touched))),
            "found_digest": actual_model_digest(None, files) if damaged else None,
            "verified_at": None,
            "inventoried_at": self._now,
            "incomplete_reason": join_reasons(found.reasons),
            **dict.fromkeys(fields.SIGNATURE_FIELDS),
            "store": self._scan.store,
            "store_root": validation.path("store_root", self._scan.root),
        }
        if known is None:
            fields.validate_model(
                {**dict(zip(KEY_FIELDS, key, strict=True)), "local_path": found.local_path}
            )
            values["reference_folded"] = fold_case(key[1])
            values["source_url"] = validation.url("source_url", found.source_url)
        return values, files

    def _point(self, found: FoundModel, key: ModelKey) -> list[str]:
        """Note which aliases are to point at a model, and which are no more; in words."""
        known = self._known.get(key)
        told = []
        for alias in found.aliases:
            at, store = self._aliases.get((*key[:2], alias), (None, self._scan.store))
            if known is not None and at == known.id:
                continue
            if store is None:
                self._blame(
                    found.local_path,
                    f"the alias {alias!r} is your own and points at another version",
                    found,
                )
                continue
            self._made.moved[*key[:2], alias] = key
            if known is not None:
                told.append(f"alias {alias}")
        for alias_key in [] if known is None else self._made_here.get(known.id, []):
            if (found.provider, found.reference, alias_key[2]) not in self._pointed:
                if self._is_unsure(found):
                    continue
                self._made.removed.append(alias_key)
                told.append(f"no alias {alias_key[2]}")
        return told

    def _find_gone(self) -> None:
        offline: set[str] = set()
        for key, known in self._known.items():
            if key in self._met or not self._is_here(known):
                continue
            reference = known.reference.removeprefix(f"{self._scan.root}/")
            if self._scan.may_hide(reference, known.version, known.local_path):
                continue
            held = known.holding
            if held.state is FileState.MISSING:
                continue
            if (reason := self._disks.reason_offline(held)) is not None:
                if held.state is not FileState.OFFLINE:
                    self._made.looks.append(CheckResult(held, FileState.OFFLINE, reason))
                offline.add(reason)
                continue
            gone = _is_gone(known.local_path)
            detail = f"{known.local_path!r} is not there" if gone else LEFT_STORE
            self._made.looks.append(CheckResult(held, FileState.MISSING, detail))
            self._made.gone.append(known.sighting)
        self._made.problems += [ScanProblem(self._scan.root, reason) for reason in sorted(offline)]

    def _is_unsure(self, found: FoundModel) -> bool:
        """Whether a problem lies in the folder of the store in which a model lies."""
        root = self._scan.root.rstrip("/") + "/"
        folder = root + found.local_path.removeprefix(root).partition("/")[0]
        return any(
            problem.path == folder or problem.path.startswith(f"{folder}/")
            for problem in self._scan.problems
        )


def _is_gone(path: str) -> bool:
    """Whether nothing is at a path; of one that may not be looked at that is not known."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


_NOTHING: Final = CheckedModel(0, "", None, FileState.UNCHECKED, None, None, is_damaged=False)


def _sighting(key: ModelKey, found: FoundModel, *details: str) -> StoreFinding:
    return StoreFinding(ModelRef(*key), found.local_path, found.size_bytes, ", ".join(details))

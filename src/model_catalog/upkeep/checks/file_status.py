"""Compare the status of model files (`stat`) with the catalog. No file is opened."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from model_catalog.domain.file_record import (
    BEING_DELETED,
    LEFT_STORE,
    LEFT_STORE_0_1_0,
    FileState,
)
from model_catalog.files.fingerprint import fingerprint_text
from model_catalog.files.mounts import is_mount_point, mount_point
from model_catalog.files.safe_open import errno_name, non_regular_kind, stat_path
from model_catalog.upkeep.queries.check_queries import CheckedModel, CheckResult, Row
from model_catalog.upkeep.worker_threads import Stop

_ABSENT_ERRORS: Final = {errno.ENOENT, errno.ENOTDIR}
# What the system reports of a disk that was removed, or of a file server that is down.
_OFFLINE_ERRORS: Final = {
    errno.ENOTCONN,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENODEV,
    errno.ENXIO,
}

# A model gets the first of these states that one of its files has.
_STATE_PRIORITY: Final = (
    FileState.OFFLINE,
    FileState.MISSING,
    FileState.UNREADABLE,
    FileState.CHANGED,
)

_MISSING_TOLERANCE: Final = 10
"""Up to this many models of one group may go missing in any check or scan."""

_LEFT_STORE: Final = (LEFT_STORE, LEFT_STORE_0_1_0)


class MountCache:
    """Caches facts about mount points and root folders for one pass over many models."""

    def __init__(self, roots: Iterable[str] = ()) -> None:
        # Longest first: if one root is inside another, the inner one counts.
        self._roots = sorted({root.rstrip("/") or "/" for root in roots}, key=len, reverse=True)
        self._unreachable_reasons: dict[str, str | None] = {}
        self._mount_points: dict[str, str] = {}
        self._mounted: dict[str, bool] = {}
        self.has_roots = bool(self._roots)

    def mount_point_of(self, path: str) -> str:
        """Return the mount point of the disk that a path is on."""
        folder = os.path.dirname(path)
        if folder not in self._mount_points:
            self._mount_points[folder] = mount_point(folder)
        return self._mount_points[folder]

    def group_of(self, model: CheckedModel) -> str:
        """Return the root that contains a model; without one, the mount point of its disk."""
        return self._root_of(model.local_path) or (
            model.mount_point or self.mount_point_of(model.local_path)
        )

    def offline_reason(self, model: CheckedModel) -> str | None:
        """Return why absent files may still exist on a disk that is offline; None if it is not."""
        root = self._root_of(model.local_path)
        if root is not None and (reason := self._unreachable_reason(root)) is not None:
            return reason
        mount = model.mount_point
        if mount is not None and not self._is_mounted(mount):
            return f"nothing is mounted at {mount!r}"
        return None

    def _root_of(self, path: str) -> str | None:
        for root in self._roots:
            if root in ("/", path) or path.startswith(root + "/"):
                return root
        return None

    def _unreachable_reason(self, root: str) -> str | None:
        if root not in self._unreachable_reasons:
            try:
                with os.scandir(root) as entries:
                    reason = None if any(True for _ in entries) else f"the root {root!r} is empty"
            except OSError as error:
                reason = f"the root {root!r} cannot be listed: {errno_name(error)}"
            self._unreachable_reasons[root] = reason
        return self._unreachable_reasons[root]

    def _is_mounted(self, mount: str) -> bool:
        if mount not in self._mounted:
            self._mounted[mount] = is_mount_point(mount)
        return self._mounted[mount]


def is_mass_loss(missing_count: int, model_count: int) -> bool:
    """
    Return whether so many models of a group are newly missing that their disk may not be mounted.

    `model_count` is without the models that were missing before.
    """
    return missing_count > max(_MISSING_TOLERANCE, model_count / 2)


@dataclass(frozen=True, slots=True)
class StatusSummary:
    """The result of `check_statuses`: ids of unchanged models, and the results of the others."""

    present_ids: list[int]
    results: list[CheckResult]
    groups: list[str]
    """The root or the mount point of each result."""
    group_sizes: Counter[str]
    """How many models each root and mount point has, without those already recorded as missing."""


def check_statuses(rows: Sequence[Row], mounts: MountCache, stop: Stop) -> StatusSummary:
    """
    Check the models of these rows, which are sorted by model.

    Stops early when `stop()` returns True; the summary then contains fewer models.
    """
    summary = StatusSummary([], [], [], Counter())
    # Tuples are faster than SQLAlchemy rows, because every value of a row is read.
    plain_rows = [tuple(row) for row in rows]
    start = 0
    while start < len(plain_rows) and not stop():
        first = plain_rows[start]
        end = start + 1
        while end < len(plain_rows) and plain_rows[end][0] == first[0]:
            end += 1
        if not mounts.has_roots and _is_unchanged(plain_rows, start, end):
            summary.present_ids.append(first[0])
            summary.group_sizes[first[5]] += 1
        else:
            result = check_status(CheckedModel.from_rows(plain_rows[start:end]), mounts)
            group = mounts.group_of(result.model)
            summary.results.append(result)
            summary.groups.append(group)
            if result.model.state is not FileState.MISSING:
                summary.group_sizes[group] += 1
        start = end
    return summary


def _is_unchanged(rows: Sequence[Row], start: int, end: int) -> bool:
    """
    Whether a model was present and all its files are unchanged, as in nearly all models.

    This is only a fast path. If it returns False, `check_status` finds out the state.
    """
    _, path, _, state, detail, mount, found_digest, name, _, fingerprint = rows[start]
    if state != "present" or detail or found_digest or mount is None or name is None:
        return False
    try:
        if fingerprint_text(os.stat(path)) == fingerprint:
            return end == start + 1
        root = path.rpartition("/")[0] if path.endswith(f"/{name}") else path
        for index in range(start, end):
            row = rows[index]
            if fingerprint_text(os.stat(f"{root}/{row[7]}")) != row[9]:
                return False
    except (OSError, ValueError, AttributeError):
        return False
    return True


def check_status(model: CheckedModel, mounts: MountCache) -> CheckResult:
    """Compare the current status of a model's files with the catalog."""
    if model.state is FileState.MISSING and model.state_detail == BEING_DELETED:
        # A file that is there now may be deleted before this result is recorded.
        return CheckResult(model, FileState.MISSING, BEING_DELETED)
    problems = _find_problems(model)
    if not problems:
        if model.state is FileState.MISSING and model.state_detail in _LEFT_STORE:
            # The files may belong to another model of the store. Only a scan can tell.
            return CheckResult(model, FileState.MISSING, LEFT_STORE)
        return CheckResult(
            model,
            FileState.PRESENT,
            mount_point=model.mount_point or mounts.mount_point_of(model.local_path),
        )
    state = min((found for found, _ in problems), key=_STATE_PRIORITY.index)
    if state is FileState.MISSING and (reason := mounts.offline_reason(model)) is not None:
        return CheckResult(model, FileState.OFFLINE, reason)
    details = [detail for found, detail in problems if found is state]
    more = f" and {len(details) - 1} more" if len(details) > 1 else ""
    return CheckResult(model, state, details[0] + more)


def _find_problems(model: CheckedModel) -> list[tuple[FileState, str]]:
    """Return the state and the detail of each file that differs from its record."""
    path = model.local_path
    try:
        found = stat_path(path)
    except OSError as error:
        return [_describe_error(path, error)]
    file_kind = non_regular_kind(found)
    if file_kind not in (None, "a directory"):
        return [(FileState.CHANGED, f"{path!r} is {file_kind}")]
    if not model.files:
        if file_kind is None and model.size_bytes not in (None, found.st_size):
            return [(FileState.CHANGED, describe_sizes(path, found.st_size, model.size_bytes))]
        return []
    root = path if file_kind == "a directory" else os.path.dirname(path) or "."
    problems = []
    for name, size_bytes, fingerprint in model.files:
        file_path = f"{root}/{name}"
        try:
            file_status = found if file_path == path else stat_path(file_path)
        except OSError as error:
            problems.append(_describe_error(name, error))
        else:
            problems += _compare_file(name, file_status, size_bytes, fingerprint)
    return problems


def _compare_file(
    name: str, found: os.stat_result, size_bytes: int, fingerprint: str | None
) -> list[tuple[FileState, str]]:
    if fingerprint_text(found) == fingerprint:
        return []
    if (file_kind := non_regular_kind(found)) is not None:
        return [(FileState.CHANGED, f"{name!r} is {file_kind}")]
    if found.st_size != size_bytes:
        return [(FileState.CHANGED, describe_sizes(name, found.st_size, size_bytes))]
    if fingerprint is None:
        return []
    return [(FileState.CHANGED, describe_changed_files([name]))]


def describe_changed_files(names: Sequence[str]) -> str:
    """Return the detail for files whose fingerprint has changed; the first one is named."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]!r} was modified, replaced or touched{more}"


def describe_absence(name: str) -> str:
    """Return the detail for a path that does not exist."""
    return f"{name!r} does not exist"


def is_absent(path: str) -> bool:
    """Return whether a path is known not to exist; False if its status cannot be read."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


def _describe_error(name: str, error: OSError) -> tuple[FileState, str]:
    if error.errno in _ABSENT_ERRORS:
        return FileState.MISSING, describe_absence(name)
    state = FileState.OFFLINE if error.errno in _OFFLINE_ERRORS else FileState.UNREADABLE
    return state, f"the status of {name!r} cannot be read: {errno_name(error)}"


def describe_sizes(name: str, size_bytes: int, recorded: int | None) -> str:
    """Return the detail for a file whose size differs from the recorded one."""
    return f"{name!r} has {size_bytes} bytes, but {recorded} bytes are recorded"

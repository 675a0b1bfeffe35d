"""What the status of a model's files tells, against what is recorded of them; nothing is opened."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from model_catalog.domain.file_record import LEFT_STORE, FileState
from model_catalog.files.fingerprint import fingerprint_text
from model_catalog.files.mounts import is_mount_point, mount_point
from model_catalog.files.safe_open import errno_name, non_regular_kind, stat_path
from model_catalog.repository.operations.check_queries import CheckedModel, CheckResult, Row
from model_catalog.upkeep.worker_threads import Stop

_ABSENT: Final = {errno.ENOENT, errno.ENOTDIR}
# What a system says of a disk, or of the server of one, that has gone away.
_GONE: Final = {errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENODEV, errno.ENXIO}

# Of several files the first of these is what is said of the model.
_WORST: Final = (
    FileState.OFFLINE,
    FileState.MISSING,
    FileState.UNREADABLE,
    FileState.CHANGED,
)


class MountCache:
    """What a pass over many models learns of their disks, each asked once."""

    def __init__(self, roots: Iterable[str] = ()) -> None:
        # The longest first: of a folder inside another the inner one decides.
        self._roots = sorted({root.rstrip("/") or "/" for root in roots}, key=len, reverse=True)
        self._unreachable: dict[str, str | None] = {}
        self._mount_points: dict[str, str] = {}
        self._mounted: dict[str, bool] = {}
        self.has_roots = bool(self._roots)

    def mount_of(self, path: str) -> str:
        """Where the disk is mounted on which a path lies."""
        folder = os.path.dirname(path)
        if folder not in self._mount_points:
            self._mount_points[folder] = mount_point(folder)
        return self._mount_points[folder]

    def group_of(self, holding: CheckedModel) -> str:
        """The root or the mount point that holds a model."""
        return self._root_of(holding.local_path) or (
            holding.mount_point or self.mount_of(holding.local_path)
        )

    def reason_offline(self, holding: CheckedModel) -> str | None:
        """Why what is not there may well be there; None where its disk is."""
        root = self._root_of(holding.local_path)
        if root is not None and (reason := self._reason_unreachable(root)) is not None:
            return reason
        mount = holding.mount_point
        if mount is not None and not self._is_mounted(mount):
            return f"nothing is mounted at {mount!r}"
        return None

    def _root_of(self, path: str) -> str | None:
        for root in self._roots:
            if root in ("/", path) or path.startswith(root + "/"):
                return root
        return None

    def _reason_unreachable(self, root: str) -> str | None:
        if root not in self._unreachable:
            try:
                with os.scandir(root) as entries:
                    reason = None if any(True for _ in entries) else f"{root!r} is empty"
            except OSError as error:
                reason = f"{root!r} cannot be listed: {errno_name(error)}"
            self._unreachable[root] = reason
        return self._unreachable[root]

    def _is_mounted(self, mount: str) -> bool:
        if mount not in self._mounted:
            self._mounted[mount] = is_mount_point(mount)
        return self._mounted[mount]


@dataclass(frozen=True, slots=True)
class StatusSummary:
    """What was seen of many models: which are as they were, what is to be said of the others."""

    present_ids: list[int]
    looks: list[CheckResult]
    groups: list[str]
    """The root or the mount point of each look."""
    held: Counter[str]
    """How many models each root and mount point held, those left out that were missing before."""


def check_statuses(rows: Sequence[Row], disks: MountCache, stop: Stop) -> StatusSummary:
    """What is to be recorded of the models of these rows; of fewer if it is stopped."""
    seen = StatusSummary([], [], [], Counter())
    # Tuples, for of each row all values are asked for.
    plain = [tuple(row) for row in rows]
    at = 0
    while at < len(plain) and not stop():
        first = plain[at]
        end = at + 1
        while end < len(plain) and plain[end][0] == first[0]:
            end += 1
        if not disks.has_roots and _are_as_they_were(plain, at, end):
            seen.present_ids.append(first[0])
            seen.held[first[5]] += 1
        else:
            found = check_status(CheckedModel.of(plain[at:end]), disks)
            group = disks.group_of(found.holding)
            seen.looks.append(found)
            seen.groups.append(group)
            if found.holding.state is not FileState.MISSING:
                seen.held[group] += 1
        at = end
    return seen


def _are_as_they_were(rows: Sequence[Row], at: int, end: int) -> bool:
    """
    Whether a model was present, and is with all of its files: what nearly all of them are.

    It is here for its speed alone: what it does not know of, `look` finds out.
    """
    _, path, _, state, detail, mount, found_digest, name, _, fingerprint = rows[at]
    if state != "present" or detail or found_digest or mount is None or name is None:
        return False
    try:
        if fingerprint_text(os.stat(path)) == fingerprint:
            return end == at + 1
        root = path.rpartition("/")[0] if path.endswith(f"/{name}") else path
        for number in range(at, end):
            row = rows[number]
            if fingerprint_text(os.stat(f"{root}/{row[7]}")) != row[9]:
                return False
    except (OSError, ValueError, AttributeError):
        return False
    return True


def check_status(holding: CheckedModel, disks: MountCache) -> CheckResult:
    """What is to be recorded of a model as it lies there at this moment."""
    findings = _findings(holding)
    if not findings:
        if holding.state is FileState.MISSING and holding.state_detail == LEFT_STORE:
            # The bytes may be those of another model, and their store alone can tell.
            return CheckResult(holding, FileState.MISSING, LEFT_STORE)
        return CheckResult(
            holding,
            FileState.PRESENT,
            mount_point=holding.mount_point or disks.mount_of(holding.local_path),
        )
    state = min((found for found, _ in findings), key=_WORST.index)
    if state is FileState.MISSING and (reason := disks.reason_offline(holding)) is not None:
        return CheckResult(holding, FileState.OFFLINE, reason)
    details = [detail for found, detail in findings if found is state]
    more = f" and {len(details) - 1} more" if len(details) > 1 else ""
    return CheckResult(holding, state, details[0] + more)


def _findings(holding: CheckedModel) -> list[tuple[FileState, str]]:
    """What is not as it is recorded, file by file."""
    path = holding.local_path
    try:
        found = stat_path(path)
    except OSError as error:
        return [_trouble(path, error)]
    what = non_regular_kind(found)
    if what not in (None, "a directory"):
        return [(FileState.CHANGED, f"{path!r} is {what}")]
    if not holding.files:
        if what is None and holding.size_bytes not in (None, found.st_size):
            return [(FileState.CHANGED, _sizes(path, found.st_size, holding.size_bytes))]
        return []
    root = path if what == "a directory" else os.path.dirname(path) or "."
    findings = []
    for name, size_bytes, fingerprint in holding.files:
        place = f"{root}/{name}"
        try:
            inner = found if place == path else stat_path(place)
        except OSError as error:
            findings.append(_trouble(name, error))
        else:
            findings += _differences(name, inner, size_bytes, fingerprint)
    return findings


def _differences(
    name: str, found: os.stat_result, size_bytes: int, fingerprint: str | None
) -> list[tuple[FileState, str]]:
    if fingerprint_text(found) == fingerprint:
        return []
    if (what := non_regular_kind(found)) is not None:
        return [(FileState.CHANGED, f"{name!r} is {what}")]
    if found.st_size != size_bytes:
        return [(FileState.CHANGED, _sizes(name, found.st_size, size_bytes))]
    if fingerprint is None:
        return []
    return [(FileState.CHANGED, f"{name!r} was written to, replaced or touched")]


def _trouble(name: str, error: OSError) -> tuple[FileState, str]:
    if error.errno in _ABSENT:
        return FileState.MISSING, f"{name!r} is not there"
    state = FileState.OFFLINE if error.errno in _GONE else FileState.UNREADABLE
    return state, f"{name!r} cannot be looked at: {errno_name(error)}"


def _sizes(name: str, size_bytes: int, recorded: int | None) -> str:
    return f"{name!r} has {size_bytes} bytes, and {recorded} are recorded"

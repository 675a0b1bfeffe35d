"""Exceptions about downloads: claims, failures, disk space."""

from __future__ import annotations

from collections.abc import Sequence

from model_catalog.errors.base import CatalogError, command, shown


class ClaimLostError(CatalogError):
    """
    Another process has taken over the claim of a download or an eviction. Nothing was written.

    The process was stopped, or its event loop was blocked, for longer than the claim lasts.
    """

    def __init__(self) -> None:
        super().__init__(
            "the claim has expired, and another process has taken it over or may do so: this "
            "process was stopped, or its event loop was blocked, for longer than lease_s. Nothing "
            "was written. Ask for the model again"
        )


class DownloadFailedError(CatalogError):
    """Other callers tried to download a model and failed: `model`, `attempts` and `reason`."""

    def __init__(self, model: str, attempts: int, reason: str) -> None:
        tries = "an attempt" if attempts == 1 else f"{attempts} attempts"
        super().__init__(
            f"{model} could not be downloaded: {tries} of other callers failed while this one "
            f"waited, the last one because {reason}. Ask for the model again to try once more"
        )
        self.model = model
        self.attempts = attempts
        self.reason = reason


class DownloadTimeoutError(CatalogError, TimeoutError):
    """A model was not there within `timeout_s` seconds: `model` and `waited_for`."""

    def __init__(self, model: str, timeout_s: float, waited_for: str) -> None:
        super().__init__(
            f"{model} was not there after {timeout_s:g} s: {waited_for}. Ask for it again, or "
            f"increase timeout_s"
        )
        self.model = model
        self.timeout_s = timeout_s
        self.waited_for = waited_for


class IncompleteDownloadError(CatalogError):
    """A download has returned a model that is not whole: `model`, `path` and `reasons`."""

    def __init__(self, model: str, path: str, reasons: Sequence[str]) -> None:
        super().__init__(
            f"{model} was not registered, because its files at {path!r} are incomplete: "
            f"{'; '.join(reasons)}. Download it again"
        )
        self.model = model
        self.path = path
        self.reasons = tuple(reasons)


class NotEnoughSpaceError(CatalogError):
    """
    The disk of a download has too little free space: `path`, `needed_bytes` and `free_bytes`.

    `plan` is the eviction plan that would make room, or None if no plan would.
    """

    def __init__(
        self, path: str, needed_bytes: int, free_bytes: int, plan: object | None = None
    ) -> None:
        shortfall = needed_bytes - free_bytes
        way_out = (
            f"Evict models to make room: the attribute `plan` lists them, and so does "
            f"{command('prune', '--free', f'{needed_bytes}B', '--dry-run')}"
            if plan is not None
            else "No model may be evicted to make enough room: free disk space, or use another disk"
        )
        super().__init__(
            f"the disk of {shown(path)} has {free_bytes:,} bytes free, and the download needs "
            f"{needed_bytes:,}: {shortfall:,} bytes are missing. {way_out}"
        )
        self.path = path
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        self.plan = plan


class HubDownloadError(CatalogError):
    """A download from the Hugging Face hub failed: `model` and `reason`. It has no secrets."""

    def __init__(self, model: str, reason: str, way_out: str) -> None:
        super().__init__(f"{model} could not be downloaded: {reason}. {way_out}")
        self.model = model
        self.reason = reason


class DeletionRefusedError(CatalogError):
    """The files of a model may not be deleted, and nothing was deleted: `model` and `reason`."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(
            f"the files of {shown(model)} may not be deleted: {reason}. Nothing was deleted. "
            f"Remove only its record without `--delete-files`, or change what stands in the way"
        )
        self.model = model
        self.reason = reason

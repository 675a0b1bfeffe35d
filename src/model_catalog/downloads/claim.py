"""The claim of a download: the right to download one model, and what the download reports."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import re
import shutil
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Final, Protocol, TypeVar

from model_catalog.concurrency.completion import run_to_completion
from model_catalog.domain import validation
from model_catalog.domain.model_ref import ModelRef
from model_catalog.domain.validation import non_negative_int
from model_catalog.downloads.queries.claim_queries import (
    CANCELLED,
    STOPPED,
    ClaimedName,
    failed_tokens,
)
from model_catalog.downloads.states import Holder
from model_catalog.errors import ClaimLostError, InvalidModelError
from model_catalog.execution.executor import read
from model_catalog.files.file_names import absolute_path
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog, executor_of
from model_catalog.upkeep.worker_threads import run_in_thread

T = TypeVar("T")

log = logging.getLogger("model_catalog.downloads")

_MAX_ERROR_LENGTH: Final = 1000
_MAX_FOLDER_NAME_BYTES: Final = 100
_TOKEN_DIGITS: Final = 16
_MAX_TRIES: Final = 10


class PreparedDownload(Protocol):
    """A download whose files have been looked at, and which only has to be registered."""

    async def register(self, catalog: ModelCatalog) -> Model:
        """
        Register the model, and return it. Reads no file.

        The transaction of `catalog` also ends the claim.
        """


class Claim:
    """
    The right of this process to download a model. No other caller downloads it meanwhile.

    `ref` is the name under which the model was asked for. `token` is a random text that no other
    attempt has. The claim is renewed in the background.
    """

    def __init__(
        self, catalog: ModelCatalog, name: ClaimedName, holder: Holder, lease_s: float
    ) -> None:
        self.ref: Final[ModelRef] = name.key.ref
        self.token: Final = holder.token
        self.lease_s: Final = lease_s
        self.renewed_at = time.monotonic()
        self.done_bytes = 0
        self.total_bytes: int | None = None
        self._catalog = catalog
        self._name = name
        self._folders: list[str] = []
        self._has_new_progress = False
        self._lost: Final = asyncio.Event()

    @property
    def is_lost(self) -> bool:
        """
        Whether another process has taken the claim over, or may do so. May be read in any thread.

        The task of the download is then cancelled. A thread should end when it sees this.
        """
        return self._lost.is_set()

    def report(self, done_bytes: int, total_bytes: int | None = None) -> None:
        """
        State how many bytes are done, and how many there are; None if that is not known.

        May be called from any thread and as often as wanted: it is written once a second. Raises
        InvalidModelError.
        """
        self.done_bytes = non_negative_int("done_bytes", done_bytes) or 0
        self.total_bytes = non_negative_int("total_bytes", total_bytes)
        self._has_new_progress = True

    async def create_folder(self, root: str | os.PathLike[str]) -> str:
        """
        Create a folder below `root` for the files of this attempt only, and return its path.

        A process that lost its claim without noticing, and still writes, writes to another folder.
        The folder is deleted if the attempt fails. Those of earlier attempts whose processes were
        killed are deleted now. A second call with the same root returns the same folder. Raises
        InvalidModelError, and OSError as the system reports it.
        """
        full = absolute_path(validation.path("root", root))
        parent = os.path.join(full, _folder_name(self.ref))
        folder = os.path.join(parent, self.token[:_TOKEN_DIGITS])
        tokens = await executor_of(self._catalog).run(read(failed_tokens, self._name))
        stale = {token[:_TOKEN_DIGITS] for token in tokens}
        self._folders.append(folder)
        # The thread must not make the folder after `delete_folders`.
        await run_to_completion(run_in_thread(lambda _: _make_folder(parent, folder, stale)))
        return folder

    async def delete_folders(self) -> None:
        """Delete the folders of this attempt, because it has failed."""
        folders = [*self._folders]
        self._folders.clear()
        if folders:
            await run_in_thread(lambda _: _delete_folders(folders))

    def require_held(self) -> None:
        """Raise ClaimLostError if the claim is lost."""
        if self.is_lost:
            raise ClaimLostError

    async def wait_until_lost(self) -> None:
        """Wait until the claim is lost."""
        await self._lost.wait()

    def take_progress(self) -> tuple[int, int | None] | None:
        """Return the reported bytes; None if there was no report since the last call."""
        if not self._has_new_progress:
            return None
        # Reset before the values are read: a report of another thread may come in between.
        self._has_new_progress = False
        return self.done_bytes, self.total_bytes

    def lose(self) -> None:
        """Mark the claim as lost."""
        self._lost.set()


def _folder_name(ref: ModelRef) -> str:
    """Return the name of the folder for all attempts to download a model."""
    name = re.sub(r"[^\w.-]+", "--", f"{ref.provider}--{ref.reference}").lstrip(".-")
    # File systems limit a name to 255 bytes, and one character may take four.
    return name.encode()[:_MAX_FOLDER_NAME_BYTES].decode(errors="ignore") or "model"


def _make_folder(parent: str, folder: str, stale: Collection[str]) -> None:
    # Another attempt may delete the empty parent between two calls.
    for _ in range(_MAX_TRIES):
        with contextlib.suppress(FileNotFoundError):
            os.makedirs(folder, exist_ok=True)
            _delete_stale(parent, stale)
            return
    os.makedirs(folder, exist_ok=True)


def _delete_stale(parent: str, stale: Collection[str]) -> None:
    with os.scandir(parent) as entries:
        found = [each for each in entries if each.name in stale]
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            _delete_folder(entry.path)


def _delete_folders(folders: Collection[str]) -> None:
    for folder in folders:
        _delete_folder(folder)


def _delete_folder(folder: str) -> None:
    """Delete a folder of an attempt, without following links, and its parent if that is empty."""
    shutil.rmtree(folder, ignore_errors=True)
    # An OSError: it is not empty.
    with contextlib.suppress(OSError):
        os.rmdir(os.path.dirname(folder))


async def run_unless_lost(claim: Claim, download: Callable[[Claim], Awaitable[T]]) -> T:
    """Return what a download returns; cancel it and raise ClaimLostError if its claim is lost."""
    task = asyncio.ensure_future(_call(download, claim))
    losing = asyncio.ensure_future(claim.wait_until_lost())
    try:
        await asyncio.wait([task, losing], return_when=asyncio.FIRST_COMPLETED)
    finally:
        losing.cancel()
        # Also after a second cancellation: the download must not outlive its claim.
        await run_to_completion(_cancel(task))
    claim.require_held()
    return task.result()


async def _call(download: Callable[[Claim], Awaitable[T]], claim: Claim) -> T:
    running = download(claim)
    if not inspect.isawaitable(running):
        problem = "is not an async function: define it with `async def`"
        raise InvalidModelError("download", download, problem)
    return await running


async def _cancel(task: asyncio.Future[T]) -> None:
    """Cancel a download unless it has ended, and wait for its end."""
    if task.done():
        return
    task.cancel()
    # `await task` raises CancelledError for both tasks, so it could not tell which was cancelled.
    await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        log.debug("a download failed when it was cancelled", exc_info=error)


def describe_error(error: BaseException) -> str:
    """Return the text that is recorded for the error of a download."""
    if isinstance(error, asyncio.CancelledError):
        return CANCELLED
    if isinstance(error, ClaimLostError):
        return STOPPED
    name = type(error).__name__
    try:
        text = f"{name}: {error}" if str(error) else name
    except Exception:  # noqa: BLE001 - the error is foreign, and so is its text
        text = name
    printable = "".join(
        each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text
    )
    return printable.encode("utf-8", "replace").decode()[:_MAX_ERROR_LENGTH]

"""Find a model, or let exactly one caller of all processes and hosts download it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final, TypeAlias
from weakref import WeakKeyDictionary

from model_catalog.concurrency.completion import run_to_completion
from model_catalog.concurrency.loop_values import LoopValues
from model_catalog.domain import validation
from model_catalog.domain.model_ref import ModelName
from model_catalog.downloads.claim import Claim, describe_error, run_unless_lost
from model_catalog.downloads.disk_space import require_space
from model_catalog.downloads.leases import (
    DEFAULT_LEASE_S,
    keeper_of,
    require_no_transaction,
    validate_lease,
)
from model_catalog.downloads.presence import PresenceCache
from model_catalog.downloads.queries.claim_queries import (
    CANCELLED,
    ClaimedName,
    ClaimOutcome,
    ClaimRequest,
    EndedDownload,
    KeyStatus,
    Purpose,
    end_download,
    select_key_status,
    select_state,
    start_download,
    take_claim,
)
from model_catalog.downloads.registration import (
    Downloaded,
    prepare,
    register_and_release,
    register_copies,
)
from model_catalog.downloads.states import DownloadState, Holder, Scope, is_shared_disk
from model_catalog.downloads.waiting import wait_until_unclaimed
from model_catalog.errors import (
    CatalogError,
    ClaimLostError,
    DownloadFailedError,
    DownloadTimeoutError,
    InvalidModelError,
)
from model_catalog.execution.executor import read, reads_from_primary, write
from model_catalog.files.file_names import absolute_path
from model_catalog.files.safe_open import StrPath
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog, executor_of
from model_catalog.repository.operations.lookup import LookupKey

DownloadFunction: TypeAlias = Callable[[Claim], Awaitable[Downloaded]]
FindFunction: TypeAlias = Callable[[ModelCatalog], Awaitable[Model | None]]

_RECORDED: Final = "recorded"


@dataclass(frozen=True, slots=True)
class _Options:
    """The options of one call of `get_or_download`."""

    download: DownloadFunction
    find: FindFunction | None
    root: str | None
    size_bytes: int | None
    max_attempts: int
    retry_pause_s: float
    lease_s: float
    slots: asyncio.Semaphore | None
    scope: Scope

    def validate(self) -> None:
        """Raise InvalidModelError for an invalid option."""
        functions: dict[str, object] = {"download": self.download, "find": self.find}
        for name, function in functions.items():
            if not callable(function) and not (function is None and name == "find"):
                problem = "is not a function: give an async function"
                raise InvalidModelError(name, function, problem)
        if self.slots is not None and not hasattr(self.slots, "__aenter__"):
            problem = "is not a semaphore: give an asyncio.Semaphore"
            raise InvalidModelError("slots", self.slots, problem)
        validation.non_negative_int("size_bytes", self.size_bytes)
        validation.count("max_attempts", self.max_attempts)
        validation.seconds("retry_pause_s", self.retry_pause_s)
        validate_lease(self.lease_s)
        is_shared_disk(self.scope)


@reads_from_primary
async def get_or_download(
    catalog: ModelCatalog,
    ref: ModelName,
    download: DownloadFunction,
    *,
    timeout_s: float | None = None,
    root: StrPath | None = None,
    size_bytes: int | None = None,
    max_attempts: int = 3,
    retry_pause_s: float = 1.0,
    lease_s: float = DEFAULT_LEASE_S,
    slots: asyncio.Semaphore | None = None,
    find: FindFunction | None = None,
    scope: Scope = "host",
) -> Model:
    """
    Return a model that is recorded and present, or else download and register it, once.

    Of all callers that share the database, one calls `download(claim)` at a time. The others wait,
    and all get the same model. A recorded model is returned without a write if its files are there.
    They are looked at in a thread, and again when the last look is more than 5 s old.

    `download` is an async function. It gets a `Claim`, and returns the path of a file or a folder,
    or a `Model` with the same provider and reference. Its files are inspected as `register_path`
    does, before one transaction registers the model and ends the claim. With `root`, the files must
    be below this folder, and the catalog may later delete them: see `plan_eviction`. With
    `size_bytes`, the free space of the disk of `root` is compared with it first.

    An error of `download` is recorded and passed on. Then one waiting caller tries with its own
    `download`, after `retry_pause_s` seconds, which doubles each time. A caller that has waited for
    `max_attempts` failures raises DownloadFailedError.

    The claim is a row that this process renews. When the process is killed or stopped, another
    caller takes over after `lease_s` seconds. A process that continues afterwards cannot register
    anything: its `download` is cancelled, and it gets the model of its successor.

    With `scope="fleet"` all hosts share the disk: one of them downloads at a time. A model that
    another host has recorded is recorded for this host too, without a download, if its files are
    found at the same path.

    `timeout_s` limits the whole call. `slots` limits how many downloads run at a time: a claim
    waits for it in the state `queued`. `find(catalog)` finds the model in place of `find_model`.

    Raises InvalidModelError; TransactionError in a transaction or over a host's session, because it
    commits; DownloadTimeoutError; DownloadFailedError; IncompleteDownloadError;
    NotEnoughSpaceError; OSError if the path that `download` returned cannot be read; and what
    `find_model` raises.
    """
    presence = _presence_of(catalog)
    model = await (catalog.find_model(ref) if find is None else find(catalog))
    if model is not None and presence.is_known(model):
        return model
    require_no_transaction(catalog, "get_or_download")
    folder = None if root is None else absolute_path(validation.path("root", root))
    options = _Options(
        download, find, folder, size_bytes, max_attempts, retry_pause_s, lease_s, slots, scope
    )
    options.validate()
    return await _Call(catalog, LookupKey.validated(ref), options, presence).run_within(timeout_s)


# The names that a task of this event loop downloads or waits for. One task asks the database.
_flights: Final = LoopValues[ModelCatalog, dict[LookupKey, asyncio.Event]](lambda _: {})
_presence: Final[WeakKeyDictionary[ModelCatalog, PresenceCache]] = WeakKeyDictionary()


def _presence_of(catalog: ModelCatalog) -> PresenceCache:
    cache = _presence.get(catalog)
    if cache is None:
        cache = _presence[catalog] = PresenceCache()
    return cache


class _Call:
    """One call of `get_or_download` that has not found its model at once."""

    def __init__(
        self, catalog: ModelCatalog, key: LookupKey, options: _Options, presence: PresenceCache
    ) -> None:
        self._catalog = catalog
        self._executor = executor_of(catalog)
        self._key = key
        self._name = ClaimedName(key, is_shared_disk(options.scope))
        self._options = options
        self._presence = presence
        self._keeper = keeper_of(catalog)
        self._last_ended_id: int | None = None
        self._failures = 0
        self.waits_for = "the catalog was being asked"
        """What the call was doing, for the message of a timeout."""

    async def run_within(self, timeout_s: float | None) -> Model:
        """Return the model. Raises what `get_or_download` raises."""
        if timeout_s is None:
            return await self._run()
        limit = asyncio.timeout(validation.seconds("timeout_s", timeout_s))
        try:
            async with limit:
                return await self._run()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise DownloadTimeoutError(str(self._key.ref), timeout_s, self.waits_for) from error

    async def _run(self) -> Model:
        flights = _flights.get(self._catalog)
        while True:
            model, known_bad = await self._find_present()
            if model is not None:
                return model
            if self._last_ended_id is None:
                # Failures from now on count.
                await self._read_status()
            if (flight := flights.get(self._key)) is not None:
                self.waits_for = "another task of this process was downloading it"
                await flight.wait()
                continue
            with _flight(flights, self._key):
                model = await self._try(known_bad)
            if model is not None:
                return model

    async def _find_present(self) -> tuple[Model | None, tuple[int, str] | None]:
        """Return the recorded model if its files are there; else the id and path without files."""
        find = self._options.find
        named = model = await (self._find_named() if find is None else find(self._catalog))
        if model is not None and await self._is_present(model):
            return model, None
        if find is not None:
            named = await self._find_named()
        if self._name.is_shared and (model := await self._find_copy()) is not None:
            return model, None
        if named is None or not named.state.is_as_recorded:
            return None, None
        return None, (named.id, named.local_path)

    async def _find_named(self) -> Model | None:
        return await self._catalog.find_model(self._key.ref)

    async def _find_copy(self) -> Model | None:
        """Record what other hosts have recorded of the model; return it if its files are here."""
        find = self._options.find
        for model in await register_copies(self._catalog, self._key, is_whole=find is not None):
            self._presence.remember(model)
        found = await (self._find_named() if find is None else find(self._catalog))
        return found if found is not None and await self._is_present(found) else None

    async def _is_present(self, model: Model) -> bool:
        if not model.state.is_as_recorded:
            return False
        return self._presence.is_known(model) or await self._presence.look(self._catalog, model)

    async def _try(self, known_bad: tuple[int, str] | None) -> Model | None:
        """Download the model, or wait until another process has ended; None if it is to be read."""
        status, pause_s = await self._read_status()
        if status.holder is None and pause_s > 0:
            self.waits_for = "the pause after a failed download had not ended"
            await asyncio.sleep(pause_s)
        if status.holder is None:
            holder = Holder.new()
            outcome = await self._take_claim(holder, known_bad)
            if outcome.is_taken:
                return await self._download(holder, known_bad)
            if outcome.other is None:
                # The model was registered since, or another attempt has failed.
                return None
            status = KeyStatus(outcome.other, status.downloads)
        self.waits_for = f"{status.holder} was downloading it"
        await wait_until_unclaimed(self._catalog, self._name)
        return None

    async def _read_status(self) -> tuple[KeyStatus, float]:
        """Return the status of the name, and the seconds to wait until the next attempt."""
        status = await self._executor.run(read(select_key_status, self._name))
        return status, self._count_failures(status)

    def _count_failures(self, status: KeyStatus) -> float:
        """
        Count the downloads that have failed since this call began.

        Returns the seconds to wait until the next attempt. Raises DownloadFailedError if there were
        too many.
        """
        ended = (row.id for row in status.downloads if not DownloadState(row.state).is_active)
        newest = next(ended, 0)
        if self._last_ended_id is None:
            self._last_ended_id = newest
            return 0.0
        failed = [
            row
            for row in status.downloads
            if row.id > self._last_ended_id and row.state == "failed" and row.error != CANCELLED
        ]
        self._last_ended_id = newest
        self._failures += len(failed)
        if not failed:
            return 0.0
        if self._failures >= self._options.max_attempts:
            raise DownloadFailedError(str(self._key.ref), self._failures, failed[0].error or "?")
        pause_s: float = self._options.retry_pause_s * 2 ** (self._failures - 1)
        return pause_s - (failed[0].ended_ms_ago or 0) / 1000

    async def _take_claim(self, holder: Holder, known_bad: tuple[int, str] | None) -> ClaimOutcome:
        request = ClaimRequest(
            self._name,
            Purpose.DOWNLOAD,
            holder,
            int(self._options.lease_s * 1000),
            known_bad,
            self._last_ended_id,
            is_queued=self._options.slots is not None,
        )
        taking = asyncio.ensure_future(self._executor.run(write(take_claim, request)))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            # The claim may have been taken: it must not stay until it expires.
            await run_to_completion(self._give_back(taking, holder))
            raise

    async def _give_back(self, taking: asyncio.Future[ClaimOutcome], holder: Holder) -> None:
        await asyncio.wait([taking])
        # At the end of an event loop `taking` is cancelled too, and has perhaps taken the claim.
        if taking.cancelled() or (taking.exception() is None and taking.result().is_taken):
            await self._record_failure(EndedDownload(holder.token, CANCELLED, 0, None))

    async def _download(self, holder: Holder, known_bad: tuple[int, str] | None) -> Model | None:
        """Download under a claim that was taken; None if the claim was lost."""
        claim = Claim(self._catalog, self._name, holder, self._options.lease_s)
        self._keeper.add_claim(claim)
        self.waits_for = "its own download had not ended"
        try:
            model = await self._download_and_register(claim, known_bad)
        except Exception as error:
            # A process that was stopped may find its files deleted before it learns that the claim
            # is lost. The successor has the model, or its error.
            is_lost = await run_to_completion(self._fail(claim, describe_error(error)))
            if is_lost or isinstance(error, ClaimLostError):
                return None
            raise
        except BaseException as error:
            await run_to_completion(self._fail(claim, describe_error(error)))
            raise
        finally:
            self._keeper.remove(claim.token)
        self._presence.remember(model)
        return model

    async def _download_and_register(
        self, claim: Claim, known_bad: tuple[int, str] | None
    ) -> Model:
        options = self._options
        if options.root is not None and options.size_bytes is not None:
            await require_space(self._catalog, options.root, options.size_bytes, options.scope)
        async with options.slots if options.slots is not None else nullcontext():
            if options.slots is not None:
                await self._executor.run(write(start_download, claim.token))
            downloaded = await run_unless_lost(claim, options.download)
            prepared = await prepare(self._catalog, self._key, downloaded, options.root)
            claim.require_held()
            key = self._key if options.find is None else None
            return await register_and_release(self._catalog, key, claim, prepared, known_bad)

    async def _fail(self, claim: Claim, error: str) -> bool:
        """
        Record that a download has failed, release its claim, and delete its folders.

        Returns whether another process has taken the claim over.
        """
        ended = EndedDownload(claim.token, error, claim.done_bytes, claim.total_bytes)
        state = await self._record_failure(ended)
        # The files must stay if the model was registered all the same: a cancellation or a lost
        # connection may come after the commit. If the database cannot be asked, the next attempt
        # deletes the folders.
        if state in {_RECORDED, DownloadState.FAILED}:
            await claim.delete_folders()
        return state == DownloadState.FAILED

    async def _record_failure(self, ended: EndedDownload) -> str | None:
        """Return `recorded`; or the state of a download without a claim, None if not known."""
        try:
            try:
                await self._executor.run(write(end_download, ended))
            except ClaimLostError:
                return await self._executor.run(read(select_state, ended.token))
        except (CatalogError, OSError):
            # The claim expires. The error of the download is more important.
            return None
        return _RECORDED


@contextmanager
def _flight(flights: dict[LookupKey, asyncio.Event], key: LookupKey) -> Iterator[None]:
    """Let the other tasks of this process wait until the block has ended."""
    flights[key] = ended = asyncio.Event()
    try:
        yield
    finally:
        del flights[key]
        ended.set()

"""Download a model from the Hugging Face hub, once, and register it in place."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence

from model_catalog.concurrency.ownership import running_loop
from model_catalog.concurrency.threads import REPORT_INTERVAL_S, to_thread
from model_catalog.domain.model_ref import ModelName, ModelRef, resolve_name
from model_catalog.downloads.claim import Claim, PreparedDownload
from model_catalog.downloads.disk_space import require_space
from model_catalog.downloads.hub.hub_files import HubRequest
from model_catalog.downloads.hub.hub_progress import HubProgress
from model_catalog.downloads.hub.hub_registration import (
    is_managed,
    list_models_of,
    prepare_snapshot,
)
from model_catalog.downloads.hub.hub_snapshot import (
    HubListing,
    download_snapshot,
    list_request,
)
from model_catalog.downloads.leases import DEFAULT_LEASE_S
from model_catalog.downloads.single_flight import get_or_download
from model_catalog.downloads.states import Scope
from model_catalog.errors import ClaimLostError, StoppedError
from model_catalog.files.safe_open import StrPath
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.upkeep.worker_threads import OnProgress, Progress, run_in_thread


async def download_from_hub(
    catalog: ModelCatalog,
    ref: ModelName,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    cache_dir: StrPath | None = None,
    timeout_s: float | None = None,
    max_attempts: int = 3,
    lease_s: float = DEFAULT_LEASE_S,
    on_progress: OnProgress | None = None,
    scope: Scope = "host",
) -> Model:
    """
    Return a model of the Hugging Face hub; download and register it if it is not recorded.

    `ref` is `hf:organisation/name`, for the main branch, or `hf:organisation/name@revision`, where
    the revision is a branch, a tag or a commit. Of all callers in all processes one downloads: see
    `get_or_download`, also for the other options and errors.

    huggingface_hub downloads into its own cache, or into `cache_dir`: only the files that match one
    of the patterns `include`, or all, without those that match one of `exclude`. Patterns are those
    of `fnmatch`, for paths in the repository. It reads its environment: HF_HOME, HF_TOKEN,
    HF_ENDPOINT and others. Files that the cache has are not downloaded again. Tokens are neither
    stored nor logged.

    The models of that commit are registered as a scan of the cache does: with files, digests,
    headers, and branches as aliases. Each GGUF quantization is a model. The one that was asked for
    is returned: without `include` the model that `find_model(ref)` finds.

    Without `include` a recorded model counts as present unless it is incomplete. With it, each
    pattern must match a recorded file of the same revision.

    The catalog may later delete the files if it began the folder of that commit. Otherwise they
    belong to the program that did, and `Model.foreign` is true.

    `scope` is that of `get_or_download`: with "fleet" the cache is on a disk that all hosts share.

    `on_progress` is called in the event loop, at most ten times a second.

    Raises HubDownloadError, NotInstalledError without huggingface_hub, NotEnoughSpaceError for the
    bytes that are not in the cache, InvalidModelError, OSError, and what `get_or_download` raises.
    """
    reference, provider, version = resolve_name(ref)
    request = HubRequest.of(ModelRef(provider, reference, version), include, exclude)
    download = HubDownload(catalog, request, cache_dir, on_progress, scope)
    model = await get_or_download(
        catalog,
        request.ref,
        download,
        timeout_s=timeout_s,
        max_attempts=max_attempts,
        lease_s=lease_s,
        find=request.find,
        scope=scope,
    )
    await download.finish()
    return model


class HubDownload:
    """A download from the hub: the function that `get_or_download` calls under a claim."""

    def __init__(
        self,
        catalog: ModelCatalog,
        request: HubRequest,
        cache_dir: StrPath | None,
        on_progress: OnProgress | None,
        scope: Scope = "host",
    ) -> None:
        self._catalog = catalog
        self._request = request
        self._cache_dir = None if cache_dir is None else os.fsdecode(cache_dir)
        self._on_progress = on_progress
        self._scope: Scope = scope
        self._listing: HubListing | None = None
        self._began = False

    async def __call__(self, claim: Claim) -> PreparedDownload:
        """Download the files, and compare the models of the snapshot with the catalog."""
        catalog, request = self._catalog, self._request
        listing, models = await asyncio.gather(
            to_thread(list_request, request, self._cache_dir), list_models_of(catalog, request)
        )
        await require_space(catalog, listing.cache, listing.needed_bytes, self._scope)
        was_managed = is_managed(models, listing)
        self._began = await self._download(claim, listing, may_begin=was_managed is not False)
        self._listing = listing
        managed = self._began or was_managed is True
        return await prepare_snapshot(catalog, request, listing, managed=managed)

    async def _download(self, claim: Claim, listing: HubListing, *, may_begin: bool) -> bool:
        """Download the files; return whether the folder of the commit is the catalog's own."""
        cancelled = threading.Event()
        report = _Reporter(claim, str(self._request.ref), self._on_progress)
        progress = HubProgress(
            report,
            lambda: cancelled.is_set() or claim.is_lost,
            cached_bytes=listing.total_bytes - listing.needed_bytes,
            total_bytes=listing.total_bytes,
        )
        try:
            return await to_thread(
                download_snapshot, self._request, listing, progress, may_begin=may_begin
            )
        except StoppedError as error:
            raise ClaimLostError from error
        finally:
            # A thread cannot be cancelled: it ends with the chunk that it downloads.
            cancelled.set()

    async def finish(self) -> None:
        """Delete what is only needed until the model is registered."""
        if self._began and (listing := self._listing) is not None:
            await run_in_thread(lambda _: listing.unmark())


class _Reporter:
    """Reports bytes to a claim, and to a function in the event loop."""

    def __init__(self, claim: Claim, name: str, on_progress: OnProgress | None) -> None:
        self._claim = claim
        self._name = name
        self._on_progress = on_progress
        self._loop = running_loop()
        self._reported_at = 0.0

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        self._claim.report(done_bytes, total_bytes)
        now = time.monotonic()
        is_due = now - self._reported_at >= REPORT_INTERVAL_S or done_bytes == total_bytes
        if self._on_progress is None or not is_due:
            return
        self._reported_at = now
        show: Callable[[Progress], object] = self._on_progress
        # RuntimeError: the event loop is closed, so no task is waiting for the report.
        with contextlib.suppress(RuntimeError):
            progress = Progress(self._name, done_bytes, total_bytes)
            self._loop.call_soon_threadsafe(show, progress)

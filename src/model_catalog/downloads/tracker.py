"""List downloads, and wait for one, in all processes and hosts that share the database."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from model_catalog.domain import validation
from model_catalog.domain.model_ref import ModelName
from model_catalog.downloads.leases import require_no_transaction
from model_catalog.downloads.queries.claim_queries import ClaimedName
from model_catalog.downloads.queries.download_queries import DownloadFilter, select_downloads
from model_catalog.downloads.states import Download, DownloadState
from model_catalog.downloads.waiting import wait_until_unclaimed
from model_catalog.errors import DownloadTimeoutError, InvalidModelError
from model_catalog.execution.executor import read
from model_catalog.repository.model_catalog import ModelCatalog, executor_of
from model_catalog.repository.operations.lookup import LookupKey


async def list_downloads(
    catalog: ModelCatalog,
    ref: ModelName | None = None,
    *,
    states: Iterable[DownloadState | str] | None = None,
    limit: int | None = 100,
) -> list[Download]:
    """
    Return downloads, the newest first: of all names or of one, in all states or in some.

    The last 1,000 that have ended are kept. A download whose process was killed is `failed` once
    its claim has expired. Raises InvalidModelError.
    """
    wanted = DownloadFilter(
        None if ref is None else LookupKey.validated(ref),
        None if states is None else _states(states),
        validation.limit("limit", limit),
    )
    return await executor_of(catalog).run(read(select_downloads, wanted))


def _states(values: Iterable[DownloadState | str]) -> tuple[DownloadState, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidModelError("states", values, "is not a list of states: give a list")
    return tuple(map(_state, values))


def _state(value: DownloadState | str) -> DownloadState:
    try:
        return DownloadState(value)
    except ValueError as error:
        known = ", ".join(DownloadState)
        raise InvalidModelError("states", value, f"is not a state: give {known}") from error


async def wait_for_download(
    catalog: ModelCatalog, ref: ModelName, *, timeout_s: float | None = None
) -> Download | None:
    """
    Wait until no caller downloads a model any more, and return its last download.

    Returns at once if no download is running, and None if none is known. `ref` is the name under
    which the model was asked for. Raises DownloadTimeoutError after `timeout_s` seconds, and
    TransactionError in a transaction, which may not see the end of the download.
    """
    require_no_transaction(catalog, "wait_for_download")
    key = LookupKey.validated(ref)
    limit = asyncio.timeout(
        None if timeout_s is None else validation.seconds("timeout_s", timeout_s)
    )
    try:
        async with limit:
            await wait_until_unclaimed(catalog, ClaimedName(key))
    except TimeoutError as error:
        if not limit.expired() or timeout_s is None:
            raise
        raise DownloadTimeoutError(str(key.ref), timeout_s, "its download had not ended") from error
    downloads = await list_downloads(catalog, ref, limit=1)
    return downloads[0] if downloads else None

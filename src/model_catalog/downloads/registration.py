"""Register what a download has returned, in the transaction that ends its claim."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from model_catalog.domain import validation
from model_catalog.domain.file_record import FileRecord
from model_catalog.downloads.claim import Claim, PreparedDownload
from model_catalog.downloads.queries.claim_queries import EndedDownload, end_download
from model_catalog.downloads.queries.shared_disk_queries import (
    RecordQuery,
    copy_record,
    select_records,
)
from model_catalog.errors import (
    CatalogBusyError,
    CatalogReplacedError,
    CatalogUnavailableError,
    IncompleteDownloadError,
    InvalidModelError,
)
from model_catalog.execution.executor import Operation, read, write
from model_catalog.files.file_names import absolute_path
from model_catalog.files.safe_open import StrPath
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog, executor_of
from model_catalog.repository.operations.lookup import LookupKey, find
from model_catalog.repository.operations.model_files import register_with_files
from model_catalog.upkeep.checks.file_status import MountCache, check_statuses
from model_catalog.upkeep.inspection import inspect_path
from model_catalog.upkeep.queries.check_queries import Row, load_check_rows_of
from model_catalog.upkeep.worker_threads import run_in_thread

Downloaded: TypeAlias = "StrPath | Model | PreparedDownload"
"""What a download returns: a path, a Model with a path, or a registration that is prepared."""


_RETRY_PAUSE_S: Final = 0.2
"""The seconds between two attempts to register a model in a database that is busy or away."""


@dataclass(frozen=True, slots=True)
class _InspectedDownload:
    """A model to register with the files that were found at its path."""

    model: Model
    files: Sequence[FileRecord]
    found: Mapping[str, Any]

    async def register(self, catalog: ModelCatalog) -> Model:
        """Register the model in the transaction of a catalog."""
        operation: Operation[Any, Model] = register_with_files(self.model, self.files, self.found)
        return await executor_of(catalog).run(operation)


async def prepare(
    catalog: ModelCatalog, key: LookupKey, downloaded: Downloaded, root: str | None
) -> PreparedDownload:
    """
    Look at the files of a download, in a thread, and return what is to be registered.

    With `root` the catalog manages the model's files there. Raises InvalidModelError for a result
    that is not the model `key`, IncompleteDownloadError, OSError, and what `register_path` raises.
    """
    if isinstance(downloaded, Model):
        model = downloaded
        model.local_path = absolute_path(validation.path("local_path", model.local_path))
    elif isinstance(downloaded, str | os.PathLike):
        model = Model(
            reference=key.reference,
            provider=key.provider,
            version=key.version or "",
            local_path=absolute_path(validation.path("the path of the download", downloaded)),
        )
    elif hasattr(downloaded, "register"):
        return downloaded
    else:
        problem = f"is a {type(downloaded).__name__}: return a path or a Model"
        raise InvalidModelError("the result of the download", downloaded, problem)
    if (model.provider, model.reference) != (key.provider, key.reference):
        problem = f"is not the model that was asked for, which is {key.ref}"
        raise InvalidModelError("the result of the download", str(model.ref), problem)
    inspected = await inspect_path(catalog, model.local_path, digest=False)
    if inspected.described.reasons:
        raise IncompleteDownloadError(str(model.ref), model.local_path, inspected.described.reasons)
    model.size_bytes = inspected.described.size_bytes
    found = {**inspected.claims, **inspected.found}
    if root is not None:
        await run_in_thread(lambda _: _require_inside(root, model.local_path))
        found["managed_root"] = root
    return _InspectedDownload(model, inspected.files, found)


def _require_inside(root: str, local_path: str) -> None:
    # One of the two paths may be written with a link or with `..`.
    folder = os.path.realpath(os.path.dirname(local_path))
    if local_path == root or not f"{folder}/".startswith(os.path.realpath(root).rstrip("/") + "/"):
        problem = f"is not below root, which is {root!r}: download to a path below it"
        raise InvalidModelError("the path of the download", local_path, problem)


async def register_copies(catalog: ModelCatalog, key: LookupKey, *, is_whole: bool) -> list[Model]:
    """
    Record models for the catalog's host that other hosts have recorded, if their files are here.

    The files are looked at in a thread. With `is_whole` these are all versions of a reference, but
    for those whose files this host has recorded and has. Otherwise it is the one model that the key
    means. Empty if there is none.
    """
    executor = executor_of(catalog)
    copied: dict[str, Model] = {}
    copies = await executor.run(read(select_records, RecordQuery(key, is_whole)))
    present = await _present_versions(catalog, key) if copies and is_whole else set[str]()
    for copy in copies:
        if copy.version in present or copy.version in copied or (copied and not is_whole):
            continue
        rows = await load_check_rows_of(catalog, copy.id, copy.host)
        if rows and await _are_present(rows):
            model = await executor.run(write(copy_record, copy))
            if model is not None:
                copied[copy.version] = model
    return list(copied.values())


async def _present_versions(catalog: ModelCatalog, key: LookupKey) -> set[str]:
    """Return the versions of a reference whose files this host has recorded and has."""
    present = set()
    for model in await catalog.list_models(provider=key.provider, reference=key.reference):
        rows = await load_check_rows_of(catalog, model.id)
        if model.state.is_as_recorded and rows and await _are_present(rows):
            present.add(model.version)
    return present


async def _are_present(rows: Sequence[Row]) -> bool:
    """Return whether the files of a model are there and unchanged, as a check sees them."""
    summary = await run_in_thread(lambda stop: check_statuses(rows, MountCache(), stop))
    return all(result.state.is_as_recorded for result in summary.results)


async def register_and_release(
    catalog: ModelCatalog,
    key: LookupKey | None,
    claim: Claim,
    prepared: PreparedDownload,
    known_bad: tuple[int, str] | None = None,
) -> Model:
    """
    Register a model and end the claim of its download in one transaction; return the model.

    The model must be the one that `key` means; with None it may be any other. Without a version it
    may be another one than the newest if that was recorded during the download; `known_bad` is the
    model that was the newest before, and whose files are not there. While the database
    is busy or cannot be reached, this is tried again for as long as the claim lasts, because a
    download takes longer than most interruptions.

    Raises ClaimLostError, and then registers nothing, if another process has taken the claim over.
    """
    end = time.monotonic() + claim.lease_s
    while True:
        claim.require_held()
        try:
            return await _register_once(catalog, key, claim, prepared, known_bad)
        except CatalogReplacedError:
            raise
        except (CatalogBusyError, CatalogUnavailableError):
            if time.monotonic() >= end:
                raise
        await asyncio.sleep(_RETRY_PAUSE_S)


async def _register_once(
    catalog: ModelCatalog,
    key: LookupKey | None,
    claim: Claim,
    prepared: PreparedDownload,
    known_bad: tuple[int, str] | None,
) -> Model:
    ended = EndedDownload(claim.token, None, claim.done_bytes, claim.total_bytes)
    async with catalog.transaction() as inner:
        executor = executor_of(inner)
        await executor.run(write(end_download, ended))
        model = await prepared.register(inner)
        if key is None:
            return model
        found = await executor.run(find(key))
        if found is not None and key.version is None and _is_newer(found, known_bad):
            return model
        if found is None or found.id != model.id:
            problem = (
                f"is not what {key.ref} means: register the version that was asked for, or an "
                f"alias of it"
            )
            raise InvalidModelError("the result of the download", str(model.ref), problem)
        return found


def _is_newer(found: Model, known_bad: tuple[int, str] | None) -> bool:
    """Return whether a model was recorded during a download, by another process or by a scan."""
    return found.state.is_as_recorded and (found.id, found.local_path) != known_bad

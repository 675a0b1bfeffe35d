"""How what lies on the disk gets into the catalog: it is looked at, and then recorded."""

from __future__ import annotations

import os
from pathlib import Path

from model_catalog.errors import FileChangedError
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.upkeep.inspection import RegisteredPath, inspect_path
from model_catalog.upkeep.worker_threads import OnProgress


async def register_path(
    catalog: ModelCatalog,
    path: str | os.PathLike[str],
    *,
    provider: str,
    reference: str,
    version: str = "",
    digest: bool = False,
    on_progress: OnProgress | None = None,
) -> RegisteredPath:
    """
    Look at a file or a folder, and record it as a model with its files and what its headers claim.

    A folder, or a file that is one shard of a set, is one model; one that is not whole is recorded
    all the same, and the reasons are told. With `digest` every byte is read, and the SHA-256 of
    each file recorded. What the headers claimed before is replaced, and what the user said is not.
    The disk is read in a thread, before the one short transaction; the catalog's own database is
    never opened, wherever it lies.

    Raises what `register_model` raises, NotAFileError for a FIFO or a device, ProtectedFileError
    for the database, BadLayoutError for a folder of too many files, FileChangedError for a file
    that is written to meanwhile, and OSError for a path that is not there or cannot be read.
    """
    full = os.fspath(Path(path).absolute())  # noqa: ASYNC240 - it asks for the working directory alone
    inspected = await inspect_path(catalog, full, digest=digest, on_progress=on_progress)
    model = Model(
        reference=reference,
        provider=provider,
        version=version,
        local_path=full,
        size_bytes=inspected.described.size_bytes,
        **inspected.claims,
    )
    if inspected.digest is not None:
        model.digest = inspected.digest
    recorded = await catalog.register_found(model, inspected.found, inspected.files)
    return RegisteredPath(recorded, inspected.described)


async def accept_model(
    catalog: ModelCatalog,
    reference: str,
    provider: str,
    version: str | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> RegisteredPath:
    """
    Take what lies at a model's path for what it should be: every byte is read and recorded anew.

    It is the only call that puts another digest in the place of an expected one. It is no download:
    `download_count` and what the user said stay. Raises ModelNotFoundError, FileChangedError, and
    what `register_path` raises of the disk.
    """
    model = await catalog.get_model(reference, provider, version)
    inspected = await inspect_path(catalog, model.local_path, digest=True, on_progress=on_progress)
    values = {
        **inspected.found,
        **inspected.claims,
        "size_bytes": inspected.described.size_bytes,
        "digest": inspected.digest,
    }
    stored = await catalog.store_found(model, values, inspected.files)
    if stored is None:
        raise FileChangedError(model.local_path, "its model was recorded anew")
    return RegisteredPath(stored, inspected.described)

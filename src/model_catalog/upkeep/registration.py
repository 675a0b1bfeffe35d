"""Register the model at a path, and accept changed files as the new content of a model."""

from __future__ import annotations

import os

from model_catalog.domain.model_ref import ModelName, resolve_name
from model_catalog.errors import FileChangedError
from model_catalog.execution.executor import reads_from_primary
from model_catalog.files.file_names import absolute_path
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.upkeep.inspection import (
    RegisteredPath,
    completeness_values,
    inspect_path,
    learned_claims,
    merged_completeness,
)
from model_catalog.upkeep.queries.verification_queries import register_inspected, save_inspection
from model_catalog.upkeep.worker_threads import OnProgress


async def register_path(
    catalog: ModelCatalog,
    path: str | os.PathLike[str],
    reference: ModelName | None = None,
    provider: str | None = None,
    version: str | None = None,
    *,
    digest: bool = False,
    on_progress: OnProgress | None = None,
) -> RegisteredPath:
    """
    Register a file or a folder as a model, with its files and the metadata of their headers.

    The model is named as in the methods of `ModelCatalog`, but a version is never an alias, and
    without a version it is a model without a version.

    A folder is one model, and so is a set of shards if `path` names one shard. An incomplete model
    is registered too; the result gives the reasons. With `digest` every byte is read, and the
    SHA-256 of each file is recorded. Header metadata of an earlier registration is replaced;
    fields that the user has set stay.

    The disk is read in a thread, before one short transaction. The catalog's own database is never
    opened, even if it is in the folder.

    Raises what `register_model` raises; NotAFileError for a FIFO or a device; ProtectedFileError
    for the database; BadLayoutError for a folder with too many files; FileChangedError if a file
    was modified in the meantime; and OSError if the path does not exist or cannot be read.
    """
    reference, provider, version = resolve_name(reference, provider, version)
    full = absolute_path(path)
    inspected = await inspect_path(catalog, full, digest=digest, on_progress=on_progress)
    model = Model(
        reference=reference,
        provider=provider,
        version=version or "",
        local_path=full,
        size_bytes=inspected.described.size_bytes,
        **inspected.claims,
    )
    if inspected.digest is not None:
        model.digest = inspected.digest
    recorded = await register_inspected(catalog, model, inspected.found, inspected.files)
    return RegisteredPath(recorded, inspected.described)


@reads_from_primary
async def accept_model(
    catalog: ModelCatalog,
    reference: ModelName,
    provider: str | None = None,
    version: str | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> RegisteredPath:
    """
    Accept the files at a model's path as its expected content: read and record all of them again.

    This replaces the expected digests and the size; a check or a verification never does that.
    `download_count` and the other fields that the user has set stay. A model of a store keeps the
    list of files and the reasons of the last scan. Raises ModelNotFoundError, FileChangedError, and
    what `register_path` raises for the disk.
    """
    model = await catalog.get_model(reference, provider, version)
    listed = () if model.store is None else await catalog.list_files(model)
    inspected = await inspect_path(
        catalog, model.local_path, digest=True, listed=listed, on_progress=on_progress
    )
    values = {
        **inspected.found,
        **completeness_values(merged_completeness(model, inspected)),
        **(learned_claims(model, inspected) if listed else inspected.claims),
        "size_bytes": inspected.described.size_bytes,
        "digest": inspected.digest,
    }
    stored = await save_inspection(catalog, model, values, inspected.files)
    if stored is None:
        raise FileChangedError(model.local_path, "its record in the catalog was changed")
    return RegisteredPath(stored, inspected.described)

"""Find models that were moved by their content, and record their new paths."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

from model_catalog.domain.file_record import FileRecord, FileState
from model_catalog.domain.model_ref import ModelName
from model_catalog.errors import (
    DigestMismatchError,
    FileChangedError,
    ModelNotFoundError,
    NotAFileError,
    ProtectedFileError,
)
from model_catalog.execution.executor import reads_from_primary
from model_catalog.files.digest import file_digest
from model_catalog.files.file_names import absolute_path, is_partial_download
from model_catalog.files.safe_open import ProtectedFiles, file_identity, non_regular_kind, stat_path
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog, find_database_files
from model_catalog.upkeep.inspection import RegisteredPath, inspect_path
from model_catalog.upkeep.queries.verification_queries import save_inspection
from model_catalog.upkeep.worker_threads import (
    OnProgress,
    ProgressMeter,
    Stop,
    device_lock,
    device_of,
    file_identities,
    run_in_thread,
)


@dataclass(frozen=True, slots=True)
class MovedModel:
    """A missing model, and the path at which its content was found."""

    model: Model
    path: str


@reads_from_primary
async def relink_model(
    catalog: ModelCatalog,
    reference: ModelName,
    provider: str | None = None,
    version: str | None = None,
    *,
    path: str | os.PathLike[str],
    on_progress: OnProgress | None = None,
) -> RegisteredPath:
    """
    Record another path for a model, after comparing the content at that path with the record.

    Reads every byte if the model has a digest; otherwise the size must be the same. All other
    fields of the model stay. Raises ModelNotFoundError; DigestMismatchError for other content, and
    then changes nothing; FileChangedError; and what `register_path` raises for the disk.
    """
    model = await catalog.get_model(reference, provider, version)
    files = await catalog.list_files(model)
    # File names that sha256sum escapes have no combined digest. Then each file is compared.
    by_file = model.digest is None and bool(files) and all(file.digest for file in files)
    has_digest = by_file or model.digest is not None
    full = absolute_path(path)
    # A scan of a store lists files beside the weights. A file that is alone may have a new name.
    listed = files if model.store is not None and len(files) > 1 else ()
    inspected = await inspect_path(
        catalog, full, digest=has_digest, listed=listed, on_progress=on_progress
    )
    if by_file and _digests(files) != _digests(inspected.files):
        raise DigestMismatchError(full, "the recorded digests of its files", "other digests")
    if model.digest is not None and inspected.digest != model.digest:
        raise DigestMismatchError(full, f"{model.digest}", f"{inspected.digest}")
    size_bytes = inspected.described.size_bytes
    if not has_digest and model.size_bytes not in (None, size_bytes):
        raise DigestMismatchError(full, f"{model.size_bytes} bytes", f"{size_bytes} bytes")
    values = {**inspected.found, **inspected.claims, "local_path": full, "size_bytes": size_bytes}
    stored = await save_inspection(catalog, model, values, inspected.files)
    if stored is None:
        raise FileChangedError(full, "its record in the catalog was changed")
    return RegisteredPath(stored, inspected.described)


@reads_from_primary
async def find_moved(
    catalog: ModelCatalog,
    roots: Iterable[str | os.PathLike[str]],
    *,
    on_progress: OnProgress | None = None,
) -> list[MovedModel]:
    """
    Search folders for the models that a check found missing; sorted as `list_models` sorts them.

    Hashes the files of a matching size; a model with several files is found if all of them match.
    If a model is found at more than one path, the first path in sort order is returned. Nothing is
    recorded; `relink_model` does that. A model without digests cannot be identified, and is
    skipped. Hidden folders, unfinished downloads, links to folders and unreadable files are skipped
    too. Raises OSError for a root that cannot be listed.
    """
    wanted = []
    for model in await catalog.list_models(state=FileState.MISSING):
        try:
            files = await catalog.list_files(model)
        except ModelNotFoundError:
            continue
        if not files and model.digest is not None and model.size_bytes is not None:
            name = os.path.basename(model.local_path)
            files = [FileRecord(name, model.size_bytes, digest=model.digest)]
        if files and all(file.digest for file in files):
            wanted.append((model, files))
    if not wanted:
        return []
    paths = list(dict.fromkeys(absolute_path(root) for root in roots))
    search = _Search(
        file_identities(await find_database_files(catalog)), ProgressMeter(on_progress, 0)
    )
    async with AsyncExitStack() as locks:
        # Sorted, so that two searches that lock the same disks cannot deadlock.
        for device in sorted(await run_in_thread(lambda _: set(map(device_of, paths)))):
            await locks.enter_async_context(device_lock(device))
        return await run_in_thread(lambda stop: search.run(wanted, paths, stop))


def _digests(files: Iterable[FileRecord]) -> dict[str, str | None]:
    return {file.path: file.digest for file in files}


class _Search:
    """One search below some roots. Each file is hashed at most once."""

    def __init__(self, protected: ProtectedFiles, meter: ProgressMeter) -> None:
        self._protected = protected
        self._meter = meter
        self._digests: dict[tuple[int, int], str | None] = {}

    def run(
        self, wanted: list[tuple[Model, list[FileRecord]]], roots: list[str], stop: Stop
    ) -> list[MovedModel]:
        sizes = {file.size_bytes for _, files in wanted for file in files}
        paths_by_size: dict[int, set[str]] = {}
        for root in roots:
            for path, size_bytes in _files_below(root, stop):
                if size_bytes in sizes:
                    paths_by_size.setdefault(size_bytes, set()).add(path)
        self._meter.total_bytes = sum(size * len(paths) for size, paths in paths_by_size.items())
        found = []
        for model, files in wanted:
            new_path = self._find_path(model, files, paths_by_size, stop)
            if new_path is not None:
                found.append(MovedModel(model, new_path))
        return found

    def _find_path(
        self,
        model: Model,
        files: list[FileRecord],
        paths_by_size: Mapping[int, set[str]],
        stop: Stop,
    ) -> str | None:
        # The fewest other files have the size of the largest file.
        largest = max(files, key=lambda file: file.size_bytes)
        name = os.path.basename(model.local_path)
        for path in sorted(paths_by_size.get(largest.size_bytes, ())):
            if self._digest(path, stop) != largest.digest:
                continue
            if len(files) == 1 and files[0].path == name:
                return path
            if not path.endswith(f"/{largest.path}"):
                continue
            root = path[: -len(largest.path) - 1]
            if all(self._digest(f"{root}/{file.path}", stop) == file.digest for file in files):
                # A set of shards is recorded by one shard, a folder by its own path.
                return f"{root}/{name}" if any(file.path == name for file in files) else root
        return None

    def _digest(self, path: str, stop: Stop) -> str | None:
        """Return the digest of a file; None if it cannot be read."""
        try:
            file_id = file_identity(stat_path(path))
            if file_id not in self._digests:
                self._digests[file_id] = None
                counter = self._meter.counter(path)
                self._digests[file_id] = file_digest(path, counter, stop, protected=self._protected)
            return self._digests[file_id]
        except (OSError, FileChangedError, NotAFileError, ProtectedFileError):
            return None


def _files_below(root: str, stop: Stop) -> Iterator[tuple[str, int]]:
    """Yield path and size of the regular files below a folder; links to files are followed."""
    folders = [root]
    while folders and not stop():
        folder = folders.pop()
        try:
            with os.scandir(folder) as scanned:
                entries = list(scanned)
        except OSError:
            if folder == root:
                raise
            continue
        for entry in entries:
            if entry.name.startswith(".") or is_partial_download(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif (size_bytes := _file_size(entry)) is not None:
                yield entry.path, size_bytes


def _file_size(entry: os.DirEntry[str]) -> int | None:
    try:
        found = entry.stat()
    except OSError:
        return None
    return found.st_size if non_regular_kind(found) is None else None

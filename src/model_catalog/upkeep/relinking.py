"""Models that lie elsewhere than they are recorded: found by their bytes, and recorded there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from model_catalog.domain.file_record import FileRecord, FileState
from model_catalog.errors import (
    DigestMismatchError,
    FileChangedError,
    ModelNotFoundError,
    NotAFileError,
    ProtectedFileError,
)
from model_catalog.files.digest import file_digest
from model_catalog.files.file_names import is_partial_download
from model_catalog.files.safe_open import ProtectedFiles, file_identity, non_regular_kind, stat_path
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.upkeep.inspection import RegisteredPath, inspect_path
from model_catalog.upkeep.worker_threads import (
    Meter,
    OnProgress,
    Stop,
    device_lock,
    device_of,
    file_identities,
    run_in_thread,
)


@dataclass(frozen=True, slots=True)
class MovedModel:
    """A missing model, and where its bytes were found."""

    model: Model
    path: str


async def relink_model(
    catalog: ModelCatalog,
    reference: str,
    provider: str,
    version: str | None = None,
    *,
    path: str | os.PathLike[str],
    on_progress: OnProgress | None = None,
) -> RegisteredPath:
    """
    Record that a model lies at another path, once its bytes there are shown to be the same.

    Every byte is read where its digest is known; else its size has to be the same. Whatever else is
    known of it stays. Raises ModelNotFoundError, DigestMismatchError for other bytes, and then
    nothing was changed; FileChangedError, and what `register_path` raises of the disk.
    """
    model = await catalog.get_model(reference, provider, version)
    files = await catalog.list_files(model.reference, model.provider, model.version)
    # Of names that sha256sum escapes there is no digest of all files, and one of each.
    by_file = model.digest is None and bool(files) and all(file.digest for file in files)
    known = by_file or model.digest is not None
    full = _absolute(path)
    inspected = await inspect_path(catalog, full, digest=known, on_progress=on_progress)
    if by_file and _digests(files) != _digests(inspected.files):
        raise DigestMismatchError(full, "the digests of its files", "others")
    if model.digest is not None and inspected.digest != model.digest:
        raise DigestMismatchError(full, f"{model.digest}", f"{inspected.digest}")
    size_bytes = inspected.described.size_bytes
    if not known and model.size_bytes not in (None, size_bytes):
        raise DigestMismatchError(full, f"{model.size_bytes} bytes", f"{size_bytes} bytes")
    values = {**inspected.found, **inspected.claims, "local_path": full, "size_bytes": size_bytes}
    stored = await catalog.store_found(model, values, inspected.files)
    if stored is None:
        raise FileChangedError(full, "its model was recorded anew")
    return RegisteredPath(stored, inspected.described)


async def find_moved(
    catalog: ModelCatalog,
    roots: Iterable[str | os.PathLike[str]],
    *,
    on_progress: OnProgress | None = None,
) -> list[MovedModel]:
    """
    Look below some folders for the models that a check found missing; by their names.

    A file of the right size is hashed, and of several that belong together each; the first place by
    its path is told. Nothing is recorded: `relink_model` does that. A model of which no digest is
    known cannot be told from another, and is not looked for. Hidden folders, unfinished downloads
    and links to folders are passed over, and so is what cannot be read. Raises OSError for a root
    that cannot be listed.
    """
    wanted = []
    for model in await catalog.list_models(state=FileState.MISSING):
        try:
            files = await catalog.list_files(model.reference, model.provider, model.version)
        except ModelNotFoundError:
            continue
        if not files and model.digest is not None and model.size_bytes is not None:
            name = os.path.basename(model.local_path)
            files = [FileRecord(name, model.size_bytes, digest=model.digest)]
        if files and all(file.digest for file in files):
            wanted.append((model, files))
    if not wanted:
        return []
    places = list(dict.fromkeys(_absolute(root) for root in roots))
    search = _Search(file_identities(catalog.database_files), Meter(on_progress, 0))
    async with AsyncExitStack() as turns:
        # In one order, for two searches are not to wait for each other.
        for device in sorted(await run_in_thread(lambda _: set(map(device_of, places)))):
            await turns.enter_async_context(device_lock(device))
        return await run_in_thread(lambda stop: search.run(wanted, places, stop))


def _absolute(path: str | os.PathLike[str]) -> str:
    # As it is recorded elsewhere: what `..` leads to is for the system to say, links followed.
    return os.fspath(Path(path).absolute())


def _digests(files: Iterable[FileRecord]) -> dict[str, str | None]:
    return {file.path: file.digest for file in files}


class _Search:
    """One search: what lies below the roots by its size, and the digests that were read of it."""

    def __init__(self, protected: ProtectedFiles, meter: Meter) -> None:
        self._protected = protected
        self._meter = meter
        self._digests: dict[tuple[int, int], str | None] = {}

    def run(
        self, wanted: list[tuple[Model, list[FileRecord]]], roots: list[str], stop: Stop
    ) -> list[MovedModel]:
        sizes = {file.size_bytes for _, files in wanted for file in files}
        by_size: dict[int, set[str]] = {}
        for root in roots:
            for path, size_bytes in _files_below(root, stop):
                if size_bytes in sizes:
                    by_size.setdefault(size_bytes, set()).add(path)
        self._meter.total_bytes = sum(size * len(paths) for size, paths in by_size.items())
        found = []
        for model, files in wanted:
            place = self._place_of(model, files, by_size, stop)
            if place is not None:
                found.append(MovedModel(model, place))
        return found

    def _place_of(
        self,
        model: Model,
        files: list[FileRecord],
        by_size: Mapping[int, set[str]],
        stop: Stop,
    ) -> str | None:
        # The largest is the one of which there are the fewest others of its size.
        largest = max(files, key=lambda file: file.size_bytes)
        name = os.path.basename(model.local_path)
        for path in sorted(by_size.get(largest.size_bytes, ())):
            if self._digest(path, stop) != largest.digest:
                continue
            if len(files) == 1 and files[0].path == name:
                return path
            if not path.endswith(f"/{largest.path}"):
                continue
            root = path[: -len(largest.path) - 1]
            if all(self._digest(f"{root}/{file.path}", stop) == file.digest for file in files):
                # Of a set of shards one is named, of a folder the folder.
                return f"{root}/{name}" if any(file.path == name for file in files) else root
        return None

    def _digest(self, path: str, stop: Stop) -> str | None:
        """The digest of a file, read once whatever it is called; None where it cannot be read."""
        try:
            bytes_of = file_identity(stat_path(path))
            if bytes_of not in self._digests:
                self._digests[bytes_of] = None
                counter = self._meter.of(path)
                digest = file_digest(path, counter, stop, protected=self._protected)
                self._digests[bytes_of] = digest
            return self._digests[bytes_of]
        except (OSError, FileChangedError, NotAFileError, ProtectedFileError):
            return None


def _files_below(root: str, stop: Stop) -> Iterator[tuple[str, int]]:
    """The regular files below a folder that may be a model's, and their sizes, links followed."""
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
            elif (size_bytes := _size_of(entry)) is not None:
                yield entry.path, size_bytes


def _size_of(entry: os.DirEntry[str]) -> int | None:
    try:
        found = entry.stat()
    except OSError:
        return None
    return found.st_size if non_regular_kind(found) is None else None

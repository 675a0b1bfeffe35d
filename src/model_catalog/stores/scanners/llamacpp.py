"""
The cache of llama.cpp, which has had two layouts.

Until the spring of 2026 each file lay beside the others as `ORG_REPOSITORY_FILE.gguf`, with a
`.json` that says from which URL it is; since then the layout is huggingface_hub's. Both are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from model_catalog.files.file_names import Role
from model_catalog.files.formats.json_stream import JsonStream
from model_catalog.files.safe_open import ProtectedFiles, StrPath
from model_catalog.stores.completeness import detect_format, newest_mtime
from model_catalog.stores.file_grouping import FileGroup, group_entries
from model_catalog.stores.scan_result import Claims, FoundModel, Scan, StoreFile
from model_catalog.stores.scanners.huggingface import PREFIX, scan_repository
from model_catalog.stores.store_walk import (
    READ_ERRORS,
    SkippedError,
    StoreWalk,
    error_reason,
    is_valid_name,
)

PROVIDER: Final = "llamacpp"
MAX_METADATA_BYTES: Final = 64 * 1024

_SUFFIX: Final = ".gguf"
_PROJECTOR: Final = "mmproj"
_MAX_MEMBERS: Final = 100
_URL: Final = re.compile(r"(https?://[^/@?#]+/([^/@?#]+/[^/@?#]+)/resolve/[^/?#]+/([^?#]+))")


def scan(
    root: StrPath,
    *,
    protected: ProtectedFiles = (),
    stop: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Scan:
    """
    The models in the cache, as `Scanner` says.

    Of the old layout a reference is the repository and the version the file's path in it, of a set
    of shards the first; of a file beside which no note says where it is from, the reference is its
    own name, for where in it the repository ends cannot be told. Of the other layout they are the
    repository and the commit.
    """
    walk = StoreWalk.start("llamacpp", root, protected, stop, progress)
    files = []
    for entry in walk.list_entries(walk.root):
        if entry.name.startswith(PREFIX):
            scan_repository(walk, entry, PROVIDER)
        elif entry.name.endswith(_SUFFIX):
            files.append(entry)
    found = [(group, _read_origin(walk, group)) for group in group_entries(walk, walk.root, files)]
    models = {origin.repository for _, origin in found if not origin.is_projector}
    projectors: dict[str, list[StoreFile]] = {}
    for group, origin in found:
        if origin.is_projector and origin.repository in models:
            those = [replace(file, role="projector") for file in group.files]
            projectors.setdefault(origin.repository, []).extend(those)
    for group, origin in found:
        beside = projectors.get(origin.repository, [])
        if beside and origin.is_projector:
            continue
        _add_model(walk, group, origin, beside)
    return walk.result()


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a file is from; without a note it is a repository of its own."""

    repository: str
    path: str
    url: str | None

    @property
    def is_projector(self) -> bool:
        name = (self.path or self.repository).rpartition("/")[2]
        return name.startswith(_PROJECTOR) or (not self.path and f"_{_PROJECTOR}" in name)

    @property
    def role(self) -> Role:
        return "projector" if self.is_projector else "weights"


def _read_origin(walk: StoreWalk, group: FileGroup) -> _Origin:
    """What the note beside a model's first file says, where that is how the file got its name."""
    name = group.local_path[len(group.folder) + 1 :]
    unknown = _Origin(name.removesuffix(_SUFFIX), "", None)
    note = f"{group.local_path}.json"
    try:
        with walk.open_file(walk.follow_links(note), MAX_METADATA_BYTES) as file:
            stream = JsonStream(file, 0, file.size_bytes)
            members = {member: stream.value() for member in stream.members(_MAX_MEMBERS)}
            stream.finish()
        match = _URL.fullmatch(str(members.get("url")))
        if match is None or not is_valid_name(match[1]):
            raise SkippedError("it names no file of a repository")
        if f"{match[2]}_{match[3]}".replace("/", "_") != name:
            raise SkippedError("it names another file than it lies beside")
    except FileNotFoundError:
        return unknown
    except READ_ERRORS as error:
        walk.add_problem(note, error_reason(error))
        return unknown
    return _Origin(match[2], match[3], match[1])


def _add_model(walk: StoreWalk, group: FileGroup, origin: _Origin, beside: list[StoreFile]) -> None:
    files = [replace(file, role=origin.role) for file in group.files]
    files = sorted([*files, *beside], key=lambda file: file.path)
    walk.add_model(
        FoundModel(
            store="llamacpp",
            provider=PROVIDER,
            reference=origin.repository,
            version=origin.path,
            local_path=group.local_path,
            folder=group.folder,
            files=tuple(files),
            downloaded_at=newest_mtime(files),
            claims=Claims(format=detect_format(files)),
            source_url=origin.url,
            reasons=group.reasons,
        ),
        group.local_path,
    )

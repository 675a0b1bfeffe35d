"""
Scan the cache of llama.cpp, in both of its layouts.

Until spring 2026 all files were in one folder as `ORG_REPOSITORY_FILE.gguf`. Next to each file, a
`.json` file contains the URL of its download. Newer releases use the layout of huggingface_hub.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from model_catalog.files.completeness.judge import format_of_files
from model_catalog.files.file_names import file_role, is_partial_download
from model_catalog.files.formats.json_stream import JsonStream
from model_catalog.files.model_kind import Role
from model_catalog.files.safe_open import ProtectedFiles, StrPath
from model_catalog.stores.file_grouping import group_entries
from model_catalog.stores.link_resolution import SkippedError
from model_catalog.stores.plain_folders.companions import FileGroup
from model_catalog.stores.scan_result import Claims, FoundModel, Scan, StoreFile, newest_mtime
from model_catalog.stores.scanners.hub_repositories import (
    PREFIX,
    count_repository,
    split_repository,
)
from model_catalog.stores.scanners.huggingface import scan_repository
from model_catalog.stores.store_walk import (
    READ_ERRORS,
    StoreWalk,
    error_reason,
    is_valid_name,
)

PROVIDER: Final = "llamacpp"
MAX_METADATA_BYTES: Final = 64 * 1024

_SUFFIX: Final = ".gguf"
_MAX_MEMBERS: Final = 100
_URL: Final = re.compile(r"(https?://[^/@?#]+/([^/@?#]+/[^/@?#]+)/resolve/[^/?#]+/([^?#]+))")


def scan(
    root: StrPath,
    *,
    protected: ProtectedFiles = (),
    stop: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
    follow_links: bool = True,
) -> Scan:
    """
    Scan the cache, as `Scanner` describes.

    In the old layout, the reference is the repository, and the version is the path of the file in
    it; for a shard set, it is the first shard. For a file without a `.json` file, the reference is
    the file name, because the name alone does not tell where the repository ends. In the new
    layout, reference and version are the repository and the commit.
    """
    cache, name = split_repository(root)
    walk = StoreWalk.start("llamacpp", cache, protected, stop, progress, follow_links=follow_links)
    files = []
    walk.restrict_to(name)
    for entry in walk.list_root():
        if entry.name.startswith(PREFIX):
            scan_repository(walk, entry, PROVIDER)
        elif entry.name.endswith(_SUFFIX):
            files.append(entry)
        elif is_partial_download(entry.name):
            walk.add_leftover(entry, "partial")
        else:
            count_repository(walk, entry)
    groups = group_entries(walk, walk.root, files)
    origins = [(group, _read_origin(walk, group)) for group in groups]
    models = {origin.repository for _, origin in origins if origin.role == "weights"}
    companions: dict[str, list[StoreFile]] = {}
    for group, origin in origins:
        if origin.is_companion and origin.repository in models:
            files_of_group = [replace(file, role=origin.role) for file in group.files]
            companions.setdefault(origin.repository, []).extend(files_of_group)
    for group, origin in origins:
        shared_files = companions.get(origin.repository, [])
        if shared_files and origin.is_companion:
            continue
        if origin.role != "weights":
            shared_files = []
        _add_model(walk, group, origin, shared_files)
    return walk.result()


@dataclass(frozen=True, slots=True)
class _Origin:
    """
    The repository, the path in it and the URL from which a file was downloaded.

    Without a `.json` file, the repository is the file name, and the path is empty.
    """

    repository: str
    path: str
    url: str | None

    @property
    def is_companion(self) -> bool:
        """Whether the file belongs to the models of its repository."""
        return self.role in {"projector", "draft"}

    @property
    def role(self) -> Role:
        # Without a `.json` file it is not known where the repository ends and the file begins.
        return file_role((self.path or self.repository).removesuffix(_SUFFIX) + _SUFFIX)


def _read_origin(walk: StoreWalk, group: FileGroup) -> _Origin:
    """Read the `.json` file of the first file of a model. It must match the file name."""
    name = group.local_path[len(group.folder) + 1 :]
    unknown = _Origin(name.removesuffix(_SUFFIX), "", None)
    metadata_path = f"{group.local_path}.json"
    try:
        with walk.open_file(walk.follow_links(metadata_path), MAX_METADATA_BYTES) as file:
            stream = JsonStream(file, 0, file.size_bytes)
            members = {member: stream.value() for member in stream.members(_MAX_MEMBERS)}
            stream.require_end()
        match = _URL.fullmatch(str(members.get("url")))
        if match is None or not is_valid_name(match[1]):
            raise SkippedError("its url is not the URL of a file in a repository")
        if f"{match[2]}_{match[3]}".replace("/", "_") != name:
            raise SkippedError("its url belongs to another file than the file of the same name")
    except FileNotFoundError:
        return unknown
    except READ_ERRORS as error:
        walk.add_problem(metadata_path, error_reason(error))
        return unknown
    return _Origin(match[2], match[3], match[1])


def _add_model(
    walk: StoreWalk, group: FileGroup, origin: _Origin, shared_files: list[StoreFile]
) -> None:
    files = [replace(file, role=origin.role) for file in group.files]
    files = sorted([*files, *shared_files], key=lambda file: file.path)
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
            claims=Claims(format=format_of_files(files)),
            source_url=origin.url,
            evidence=group.evidence,
        ),
        group.local_path,
    )

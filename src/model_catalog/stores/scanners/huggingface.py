"""
The cache of huggingface_hub, in which every revision of a repository is a folder of links.

The layout is that of huggingface_hub 2.4: `models--ORG--NAME` holds `snapshots/COMMIT` with the
files of a revision, links into `blobs`; `refs` with a file for each branch, tag and pull request;
and `trees/COMMIT.json`, where there is one, with what belongs to a revision. Where the system has
no links, the snapshots hold the files themselves. Datasets and spaces are left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from model_catalog.domain import validation
from model_catalog.errors import InvalidModelError
from model_catalog.files.file_names import file_role
from model_catalog.files.formats.json_stream import JsonStream
from model_catalog.files.safe_open import ProtectedFiles, StrPath
from model_catalog.stores.completeness import detect_format, incomplete_reasons, newest_mtime
from model_catalog.stores.scan_result import Claims, FoundModel, Scan, StoreFile
from model_catalog.stores.store_walk import (
    MAX_FILES,
    READ_ERRORS,
    UNPRINTABLE_NAME,
    LinkTarget,
    SkippedError,
    StoreWalk,
    error_reason,
    is_folder,
    is_link,
    is_valid_name,
    non_folder_reason,
    shorten_list,
)

PROVIDER: Final = "hf"
PREFIX: Final = "models--"
MAX_TREE_BYTES: Final = 64 * 1024 * 1024
MAX_TREE_FILES: Final = 100_000

_MAX_REF_BYTES: Final = 64
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_INCOMPLETE_BLOB: Final = re.compile(r"([0-9a-f]{40}|[0-9a-f]{64})(\.[0-9a-f]{8})?\.incomplete")
_FOLDERS: Final = ("blobs", "refs", "snapshots", "trees")
_TREE_VERSION: Final = 1


def scan(
    root: StrPath,
    *,
    protected: ProtectedFiles = (),
    stop: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Scan:
    """
    The models in a cache, as `Scanner` says: each commit is a version, each ref of it an alias.

    A revision of which some files are not there is found, and the reasons say so: many are
    downloaded in part.
    """
    walk = StoreWalk.start("huggingface", root, protected, stop, progress)
    for entry in walk.list_entries(walk.root):
        if entry.name.startswith(PREFIX):
            scan_repository(walk, entry, PROVIDER)
    return walk.result()


def scan_repository(walk: StoreWalk, entry: os.DirEntry[str], provider: str) -> None:
    """
    Gather the revisions in the folder of one repository.

    Of its name every `--` is a `/`, as huggingface_hub and llama.cpp read it. Which of them was
    one cannot be told, but both allow a `--` in no id, and no two folders have the same id.
    """
    if (what := non_folder_reason(entry)) is not None:
        walk.add_problem(entry.path, what)
        return
    reference = entry.name.removeprefix(PREFIX).replace("--", "/")
    if not is_valid_name(reference) or "" in reference.split("/"):
        walk.add_problem(entry.path, "its name is that of no repository")
        return
    _RepositoryScan(walk, entry.path, provider, reference).scan()


@dataclass(frozen=True, slots=True)
class _TreeFile:
    """What a tree says of one file; `blob` is what the file with its bytes is called."""

    size_bytes: int | None = None
    digest: str | None = None
    blob: str | None = None

    @classmethod
    def read(cls, value: object) -> _TreeFile:
        """What is written of one; LeftOutError for what is no object."""
        if not isinstance(value, dict):
            raise SkippedError("what it says of a file is no object")
        size, sha256, blob = value.get("size"), value.get("lfs_sha256"), value.get("blob_id")
        is_lfs = isinstance(sha256, str) and _SHA256.fullmatch(sha256) is not None
        if is_lfs:
            size, blob = value.get("lfs_size", size), sha256
        return cls(
            size if type(size) is int and size >= 0 else None,
            f"sha256:{sha256}" if is_lfs else None,
            blob if isinstance(blob, str) else None,
        )


_UNKNOWN: Final = _TreeFile()


class _RepositoryScan:
    """One repository, as it is looked through."""

    def __init__(self, walk: StoreWalk, path: str, provider: str, reference: str) -> None:
        self._walk = walk
        self._path = path
        self._provider = provider
        self._reference = reference
        self._blobs: dict[str, os.DirEntry[str]] = {}
        # A blob is looked at once, in however many revisions it is.
        self._targets: dict[str, LinkTarget] = {}
        self._unfinished: set[str] = set()

    def scan(self) -> None:
        parts = {}
        problems_before = self._walk.problem_count
        for entry in self._walk.list_entries(self._path):
            if entry.name not in _FOLDERS:
                continue
            if (what := non_folder_reason(entry)) is None:
                parts[entry.name] = entry.path
            else:
                self._walk.add_problem(entry.path, what)
        if "blobs" in parts:
            self._blobs = {entry.name: entry for entry in self._walk.list_entries(parts["blobs"])}
            self._unfinished = {
                match[1] for name in self._blobs if (match := _INCOMPLETE_BLOB.fullmatch(name))
            }
        refs = self._refs(parts["refs"]) if "refs" in parts else {}
        trees = (
            {entry.name: entry for entry in self._walk.list_entries(parts["trees"])}
            if "trees" in parts
            else {}
        )
        commits = []
        for entry in self._walk.list_folders(parts["snapshots"]) if "snapshots" in parts else ():
            if _COMMIT.fullmatch(entry.name):
                commits.append(entry.name)
                aliases = tuple(sorted(refs.pop(entry.name, {})))
                self._revision(entry, aliases, trees.get(f"{entry.name}.json"))
            else:
                self._walk.add_problem(entry.path, "its name is no commit")
        for commit, names in refs.items():
            for path in names.values():
                self._walk.add_problem(
                    path, f"of the commit {commit}, which it names, nothing is here"
                )
        if not commits and self._walk.problem_count == problems_before:
            more = ", and a download that has not ended" if self._unfinished else ""
            self._walk.add_problem(self._path, f"no revision is in it{more}")

    def _refs(self, root: str) -> dict[str, dict[str, str]]:
        """By commit, the names of the refs that point at it, and where each is written."""
        found: dict[str, dict[str, str]] = {}
        folders = [root]
        count = 0
        while folders:
            for entry in self._walk.list_entries(folders.pop()):
                count += 1
                if count > MAX_FILES:
                    self._walk.add_problem(root, f"it holds more than {MAX_FILES:,} refs")
                    return found
                if is_folder(entry):
                    folders.append(entry.path)
                    continue
                try:
                    commit = self._commit_in(entry)
                    name = validation.alias("alias", entry.path[len(root) + 1 :])
                except InvalidModelError as error:
                    self._walk.add_problem(entry.path, f"its name {error.reason}")
                except READ_ERRORS as error:
                    self._walk.add_problem(entry.path, error_reason(error))
                else:
                    found.setdefault(commit, {})[name] = entry.path
        return found

    def _commit_in(self, entry: os.DirEntry[str]) -> str:
        with self._walk.open_file(self._walk.resolve_entry(entry), _MAX_REF_BYTES) as file:
            text = file.read_at(0, _MAX_REF_BYTES).decode("ascii", "replace").strip()
        if _COMMIT.fullmatch(text) is None:
            raise SkippedError("what is written in it is no commit")
        return text

    def _revision(
        self, snapshot: os.DirEntry[str], aliases: tuple[str, ...], tree: os.DirEntry[str] | None
    ) -> None:
        files: list[StoreFile] = []
        gone: list[str] = []
        unread = 0
        expected = {} if tree is None else self._expected(tree)
        folders = [snapshot.path]
        count = 0
        while folders:
            folder = folders.pop()
            problems_before = self._walk.problem_count
            entries = self._walk.list_entries(folder)
            if self._walk.problem_count > problems_before:
                unread += 1
                gone.append(f"{folder}/"[len(snapshot.path) + 1 :])
            for entry in entries:
                count += 1
                if count > MAX_FILES:
                    self._walk.add_problem(snapshot.path, f"it holds more than {MAX_FILES:,} files")
                    return
                if is_folder(entry):
                    folders.append(entry.path)
                    continue
                path = entry.path[len(snapshot.path) + 1 :]
                if not is_valid_name(path):
                    self._walk.add_problem(entry.path, UNPRINTABLE_NAME)
                    continue
                try:
                    files.append(self._file(entry, path, expected.get(path)))
                except FileNotFoundError:
                    gone.append(path)
                    self._walk.add_problem(entry.path, "it leads to a file that is not there")
                except READ_ERRORS as error:
                    unread += 1
                    gone.append(path)
                    self._walk.add_problem(entry.path, error_reason(error))
        if unread and not files:
            # All that could be said of it is that it has no bytes, which is not so.
            self._walk.add_problem(snapshot.path, "none of its files can be read")
            return
        files.sort(key=lambda file: file.path)
        self._walk.add_model(
            FoundModel(
                store=self._walk.store,
                provider=self._provider,
                reference=self._reference,
                version=snapshot.name,
                aliases=aliases,
                local_path=snapshot.path,
                folder=snapshot.path,
                files=tuple(files),
                downloaded_at=newest_mtime(files),
                claims=Claims(format=detect_format(files)),
                reasons=(
                    *incomplete_reasons(files, gone),
                    *self._contradictions(files, gone, expected),
                ),
            ),
            snapshot.path,
        )

    def _file(self, entry: os.DirEntry[str], path: str, expected: _TreeFile | None) -> StoreFile:
        digest = None if expected is None else expected.digest
        role = file_role(path)
        if not is_link(entry):
            return self._walk.resolve_entry(entry).to_store_file(path, role, digest)
        # The folders on the way are none but real ones, so that the text of a link tells where
        # it leads; the system need not be asked.
        way, _, name = os.readlink(entry.path).rpartition("/")
        is_usual = way == "../" * (path.count("/") + 2) + "blobs"
        blob = self._blobs.get(name) if is_usual else None
        if blob is None:
            target = self._walk.follow_links(entry.path)
            folder, _, name = target.path.rpartition("/")
            if folder != f"{self._path}/blobs":
                name = ""
        elif (known := self._targets.get(name)) is not None:
            target = known
        else:
            # It may itself be a link, into the blobs that the repositories of a cache share; those
            # have the names of other digests than SHA-256.
            target = self._targets[name] = self._walk.resolve_entry(blob)
        return target.to_store_file(
            path, role, f"sha256:{name}" if _SHA256.fullmatch(name) else digest
        )

    def _expected(self, tree: os.DirEntry[str]) -> dict[str, _TreeFile]:
        """What belongs to a revision, by path; nothing where its tree cannot be read."""
        found: dict[str, _TreeFile] = {}
        version = None
        try:
            with self._walk.open_file(self._walk.resolve_entry(tree), MAX_TREE_BYTES) as file:
                stream = JsonStream(file, 0, file.size_bytes)
                for member in stream.members(MAX_FILES):
                    if member == "files":
                        for path in stream.members(MAX_TREE_FILES):
                            found[path] = _TreeFile.read(stream.value())
                    elif member == "format_version":
                        version = stream.value()
                    else:
                        stream.value()
                stream.finish()
        except READ_ERRORS as error:
            self._walk.add_problem(tree.path, error_reason(error))
            return {}
        return found if version == _TREE_VERSION else {}

    def _contradictions(
        self, files: Collection[StoreFile], gone: Collection[str], expected: dict[str, _TreeFile]
    ) -> list[str]:
        """What speaks against a revision being whole, beside the names of its files."""
        found = []
        for file in files:
            wanted = expected.get(file.path, _UNKNOWN).size_bytes
            if wanted not in {None, file.size_bytes}:
                found.append(f"{file.path!r} has {file.size_bytes} bytes: {wanted} are needed")
        there = {file.path for file in files}.union(gone)
        absent = sorted(path for path in expected if path not in there)
        if absent:
            found.append(f"not here, of {len(expected)} files: {shorten_list(absent)}")
        if not expected:
            unfinished = self._unfinished
        else:
            unfinished = {expected[path].blob or "" for path in absent} & self._unfinished
        if unfinished:
            found.append(f"downloads that have not ended: {shorten_list(sorted(unfinished))}")
        return found

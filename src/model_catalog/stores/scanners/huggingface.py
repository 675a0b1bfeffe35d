"""
Scan the cache of huggingface_hub, in which each revision of a repository is a folder of links.

The layout is that of huggingface_hub 2.4. `models--ORG--NAME/snapshots/COMMIT` contains the files
of a revision as links into `blobs`. `refs` contains a file for each branch, tag and pull request.
`trees/COMMIT.json`, if it exists, lists all files of a revision. On a system without links, the
snapshots contain the files themselves. Datasets, spaces and kernels are only counted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from model_catalog.domain import key_validation
from model_catalog.errors import InvalidModelError
from model_catalog.files.completeness.evidence import StoreEvidence
from model_catalog.files.completeness.judge import format_of_files
from model_catalog.files.file_names import file_role, is_plain_file_name
from model_catalog.files.safe_open import ProtectedFiles, StrPath
from model_catalog.stores.hub_tree import TreeFile, read_tree
from model_catalog.stores.link_resolution import SkippedError
from model_catalog.stores.quantizations import Part, file_set, split_files
from model_catalog.stores.scan_result import Claims, FoundModel, Scan, StoreFile, newest_mtime
from model_catalog.stores.scanners.hub_repositories import (
    BLOB,
    PARTS,
    PREFIX,
    count_repository,
    resolve_repository,
    split_repository,
)
from model_catalog.stores.store_walk import (
    MAX_FILES,
    READ_ERRORS,
    UNPRINTABLE_NAME,
    LinkTarget,
    StoreWalk,
    error_reason,
    is_folder,
    is_link,
    is_valid_name,
)

PROVIDER: Final = "hf"

_MAX_REF_BYTES: Final = 512
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_INCOMPLETE_BLOB: Final = re.compile(r"([0-9a-f]{40}|[0-9a-f]{64})(\.[0-9a-f]{8})?\.incomplete")
_UNFINISHED_REF: Final = ".tmp"


def scan(
    root: StrPath,
    *,
    protected: ProtectedFiles = (),
    stop: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
    follow_links: bool = True,
) -> Scan:
    """
    Scan a cache, as `Scanner` describes. Each commit is a version, and its refs are aliases.

    If the root is a repository, only it is scanned, as a part of its cache.

    A revision with missing files is also found, with the reasons: users often download only some
    of the files.
    """
    cache, name = split_repository(root)
    walk = StoreWalk.start(
        "huggingface", cache, protected, stop, progress, follow_links=follow_links
    )
    walk.restrict_to(name)
    for entry in walk.list_root():
        if entry.name.startswith(PREFIX):
            scan_repository(walk, entry, PROVIDER)
        else:
            count_repository(walk, entry)
    return walk.result()


def scan_repository(walk: StoreWalk, entry: os.DirEntry[str], provider: str) -> None:
    """
    Add the revisions in the folder of one repository to the walk.

    Each `--` in the folder name stands for `/`, as huggingface_hub and llama.cpp read it. Both
    forbid `--` in repository ids, so two folders never have the same id.
    """
    try:
        path = resolve_repository(walk, entry)
    except READ_ERRORS as error:
        walk.add_problem(entry.path, error_reason(error))
        return
    reference = entry.name.removeprefix(PREFIX).replace("--", "/")
    if not is_valid_name(reference) or "" in reference.split("/"):
        walk.add_problem(entry.path, "its name is not a valid repository name")
        return
    _RepositoryScan(walk, path, provider, reference).scan()


@dataclass(slots=True)
class _RevisionFiles:
    """
    The files of one revision.

    `gone` are the paths without readable bytes, and `unread_count` those that exist but could not
    be read.
    """

    files: list[StoreFile] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    unread_count: int = 0


def _is_alias(text: str) -> bool:
    try:
        key_validation.alias("alias", text)
    except InvalidModelError:
        return False
    return True


class _RepositoryScan:
    """The scan of one repository. It lists the blobs once and caches their targets."""

    def __init__(self, walk: StoreWalk, path: str, provider: str, reference: str) -> None:
        self._walk = walk
        self._path = path
        self._provider = provider
        self._reference = reference
        self._blobs: dict[str, os.DirEntry[str]] = {}
        # stat() is called once for each blob, even if many revisions contain it.
        self._targets: dict[str, LinkTarget] = {}
        self._unfinished: set[str] = set()
        self._folders: dict[str, str] = {}
        self._has_unread_blobs = False

    def scan(self) -> None:
        """Scan every revision and add it to the walk."""
        problems_before = self._walk.problem_count
        self._folders = folders = self._find_folders()
        if "blobs" in folders:
            self._blobs = {entry.name: entry for entry in self._walk.list_entries(folders["blobs"])}
            # A program that is killed leaves its partial file, and the next one does not remove it.
            self._unfinished = {
                match[1]
                for name in self._blobs
                if (match := _INCOMPLETE_BLOB.fullmatch(name)) and match[1] not in self._blobs
            }
        refs = self._read_refs(folders["refs"]) if "refs" in folders else {}
        trees = (
            {entry.name: entry for entry in self._walk.list_entries(folders["trees"])}
            if "trees" in folders
            else {}
        )
        has_revision = False
        snapshots = self._walk.list_folders(folders["snapshots"]) if "snapshots" in folders else ()
        for entry in snapshots:
            has_revision = True
            aliases = tuple(sorted(refs.pop(entry.name, {})))
            self._scan_revision(entry, aliases, trees.get(f"{entry.name}.json"))
        # A link to `blobs` may lead to a folder with other files.
        is_own = not self._walk.links.is_outside(folders.get("blobs", self._walk.root))
        for name, entry in self._blobs.items():
            is_partial = name.endswith(".incomplete")
            if name not in self._targets and (is_own or is_partial or BLOB.fullmatch(name)):
                self._walk.add_leftover(entry, "partial" if is_partial else "orphan")
        for commit, names in refs.items():
            for path in names.values():
                self._walk.add_problem(path, f"the commit {commit} that it names is not here")
        if not has_revision and self._walk.problem_count == problems_before:
            more = ", and a download is unfinished" if self._unfinished else ""
            self._walk.add_problem(self._path, f"it contains no revision{more}")

    def _find_folders(self) -> dict[str, str]:
        """Return the paths of the known folders of the repository by name. Links are followed."""
        folders = {}
        for entry in self._walk.list_entries(self._path):
            if entry.name not in PARTS:
                continue
            try:
                folders[entry.name] = self._walk.resolve_folder(entry, is_part=True)
            except READ_ERRORS as error:
                self._walk.add_problem(entry.path, error_reason(error))
                self._has_unread_blobs |= entry.name == "blobs"
        return folders

    def _read_refs(self, root: str) -> dict[str, dict[str, str]]:
        """Return the refs of each commit: a dict from the name of a ref to the path of its file."""
        refs: dict[str, dict[str, str]] = {}
        folders = [root]
        count = 0
        while folders:
            for entry in self._walk.list_entries(folders.pop()):
                count += 1
                if count > MAX_FILES:
                    self._walk.add_problem(root, f"it contains more than {MAX_FILES:,} refs")
                    return refs
                if is_folder(entry):
                    folders.append(entry.path)
                    continue
                if entry.name.endswith(_UNFINISHED_REF):
                    self._walk.add_leftover(entry, "partial")
                    continue
                try:
                    commit = self._read_commit(entry)
                    name = key_validation.alias("alias", entry.path[len(root) + 1 :])
                except InvalidModelError as error:
                    self._walk.add_problem(entry.path, f"its name {error.reason}")
                except READ_ERRORS as error:
                    self._walk.add_problem(entry.path, error_reason(error))
                else:
                    refs.setdefault(commit, {})[name] = entry.path
        return refs

    def _read_commit(self, entry: os.DirEntry[str]) -> str:
        """Return the name of the snapshot in the file of a ref, which is usually a commit hash."""
        with self._walk.open_file(self._walk.resolve_entry(entry), _MAX_REF_BYTES) as file:
            text = file.read_at(0, _MAX_REF_BYTES).decode("utf-8", "replace").strip()
        if not is_plain_file_name(text):
            raise SkippedError("its content is not the name of a snapshot")
        return text

    def _scan_revision(
        self, snapshot: os.DirEntry[str], aliases: tuple[str, ...], tree: os.DirEntry[str] | None
    ) -> None:
        expected = {} if tree is None else read_tree(self._walk, tree)
        revision = self._find_files(snapshot.path, expected)
        if revision is None:
            return
        files, gone = revision.files, revision.gone
        if revision.unread_count and not files:
            # A model without any files would be reported as missing, which may be wrong.
            self._walk.add_problem(snapshot.path, "none of its files can be read")
            return
        files.sort(key=lambda file: file.path)
        parts = [
            self._describe_part(part, snapshot, aliases, gone, expected)
            for part in split_files(files)
        ]
        # The ref of a repository with several quantizations means its first one that is complete.
        main = next((each for each in parts if each.is_complete), parts[0])
        for each in parts:
            found = each
            if each is main and main.local_path != snapshot.path:
                found = replace(each, aliases=tuple(sorted((*aliases, *each.aliases))))
            self._walk.add_model(found, found.local_path)

    def _describe_part(
        self,
        part: Part,
        snapshot: os.DirEntry[str],
        aliases: tuple[str, ...],
        gone: Collection[str],
        expected: Mapping[str, TreeFile],
    ) -> FoundModel:
        """Return the model of a whole snapshot, or of one quantization in it."""
        path, version, folder = snapshot.path, snapshot.name, snapshot.path
        if part.first is not None:
            path, version = f"{path}/{part.first}", f"{version}/{part.first}"
            folder = f"{folder}/{part.folder}".rstrip("/")
            own = {file_set(file.path) for file in part.files}
            gone = [name for name in gone if file_set(name) in own]
            expected = {name: each for name, each in expected.items() if file_set(name) in own}
            aliases = tuple(filter(_is_alias, (f"{alias}/{part.first}" for alias in aliases)))
        files = part.files_below_folder()
        evidence = StoreEvidence(
            gone=gone,
            listed={name: each.size_bytes for name, each in expected.items()},
            unfinished=self._unfinished_files(expected, is_whole=part.first is None),
        )
        return FoundModel(
            store=self._walk.store,
            provider=self._provider,
            reference=self._reference,
            version=version,
            aliases=aliases,
            local_path=path,
            folder=folder,
            files=files,
            downloaded_at=newest_mtime(files),
            claims=Claims(format=format_of_files(files)),
            evidence=evidence.below(part.folder),
        )

    def _find_files(self, root: str, expected: Mapping[str, TreeFile]) -> _RevisionFiles | None:
        """Return the files of a snapshot, or None if there are too many."""
        revision = _RevisionFiles()
        folders = [root]
        count = 0
        while folders:
            folder = folders.pop()
            problems_before = self._walk.problem_count
            entries = self._walk.list_entries(folder)
            if self._walk.problem_count > problems_before:
                revision.unread_count += 1
                revision.gone.append(f"{folder}/"[len(root) + 1 :])
            for entry in entries:
                count += 1
                if count > MAX_FILES:
                    self._walk.add_problem(root, f"it contains more than {MAX_FILES:,} files")
                    return None
                if is_folder(entry):
                    folders.append(entry.path)
                    continue
                path = entry.path[len(root) + 1 :]
                if not is_valid_name(path):
                    self._walk.add_problem(entry.path, UNPRINTABLE_NAME)
                    continue
                try:
                    revision.files.append(self._read_file(entry, path, expected.get(path)))
                except FileNotFoundError:
                    # A link to `blobs` on a disk that is not mounted: the file may still exist.
                    revision.unread_count += self._has_unread_blobs
                    revision.gone.append(path)
                    self._walk.add_problem(entry.path, "it links to a file that does not exist")
                except READ_ERRORS as error:
                    revision.unread_count += 1
                    revision.gone.append(path)
                    self._walk.add_problem(entry.path, error_reason(error))
        return revision

    def _read_file(
        self, entry: os.DirEntry[str], path: str, expected: TreeFile | None
    ) -> StoreFile:
        digest = None if expected is None else expected.digest
        role = file_role(path)
        if not is_link(entry):
            return self._walk.resolve_entry(entry).to_store_file(path, role, digest)
        # All folders above the entry are real folders. The text of the link therefore tells the
        # target without a system call for each of them.
        link_folder, _, name = os.readlink(entry.path).rpartition("/")
        is_usual = link_folder == "../" * (path.count("/") + 2) + "blobs"
        is_usual = is_usual and self._folders["snapshots"] == f"{self._path}/snapshots"
        blob = self._blobs.get(name) if is_usual else None
        if blob is None:
            target = self._walk.follow_links(entry.path)
            folder, _, name = target.path.rpartition("/")
            if folder != self._folders.get("blobs"):
                name = ""
        elif (cached := self._targets.get(name)) is not None:
            target = cached
        else:
            # The blob can be a link to the blobs that all repositories of a cache share. Those are
            # named by digests other than SHA-256.
            target = self._targets[name] = self._walk.resolve_entry(blob)
        digest = f"sha256:{name}" if _SHA256.fullmatch(name) else digest
        return target.to_store_file(path, role, digest)

    def _unfinished_files(
        self, expected: Mapping[str, TreeFile], *, is_whole: bool
    ) -> Collection[str]:
        """
        Return the files of a revision whose download has begun and not ended.

        Without a tree that is known for the blobs only by their names, and not which files they
        become: they count for each whole revision.
        """
        if expected:
            return [name for name, each in expected.items() if each.blob in self._unfinished]
        return self._unfinished if is_whole else ()

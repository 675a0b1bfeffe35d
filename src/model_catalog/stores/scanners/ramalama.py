"""
Scan the store of RamaLama, in which each model has a folder with refs, snapshots and blobs.

`SOURCE/ORGANIZATION/NAME/refs/TAG.json` has the hash of a snapshot, and lists its files with their
hashes, names and types. `snapshots/HASH/NAME` is a hard link, a symbolic link or a copy of
`blobs/HASH`; a colon in a hash is a dash in the names of files. An unfinished download is
`blobs/HASH.partial`. Older releases wrote a text file `refs/TAG`.

The layout is that of RamaLama 0.24 and 0.25: `ramalama/model_store/store.py`, `reffile.py`,
`global_store.py` and `snapshot_file.py`. A hash in a ref can be that of the content, that of the
name of the file (`generate_sha256` in `ramalama/transports/url.py` and `hf_style_repo_base.py`), or
the SHA-1 of Git. So no digest is taken from it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from model_catalog.files.completeness.evidence import StoreEvidence
from model_catalog.files.completeness.judge import format_of_files
from model_catalog.files.file_names import WEIGHT_ROLES, file_role, is_plain_file_name
from model_catalog.files.model_kind import Role
from model_catalog.files.safe_open import ProtectedFiles, StrPath
from model_catalog.stores.link_resolution import SkippedError
from model_catalog.stores.manifests import read_members
from model_catalog.stores.scan_result import Claims, FoundModel, Scan, StoreFile, newest_mtime
from model_catalog.stores.store_walk import (
    MAX_FILES,
    READ_ERRORS,
    StoreWalk,
    error_reason,
    is_folder,
    is_valid_name,
    non_folder_reason,
)

PROVIDER: Final = "ramalama"
SOURCES: Final = ("file", "http", "https", "huggingface", "modelscope", "oci", "ollama")
"""The folders in a store: the transports of the program."""
PARTS: Final = ("blobs", "refs", "snapshots")
"""The folders of a model."""
MAX_REF_BYTES: Final = 1024 * 1024

_STORE: Final = "store"
_JSON: Final = ".json"
_PARTIAL: Final = ".partial"
_SEPARATOR: Final = "---"
# `ramalama list` shows these names.
_PREFIXES: Final[Mapping[str, str]] = {"huggingface": "hf://", "file": "file:///"}
_GGUF: Final = "gguf"
_ROLES: Final[Mapping[str, Role]] = {
    _GGUF: "weights",
    "safetensor": "weights",
    "mmproj": "projector",
    "chat_template": "template",
}
_OLD_TYPES: Final[Mapping[str, str]] = {
    "model": _GGUF,
    "chat": "chat_template",
    "mmproj": "mmproj",
}


def scan(
    root: StrPath,
    *,
    protected: ProtectedFiles = (),
    stop: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
    follow_links: bool = True,
) -> Scan:
    """
    Scan a store, as `Scanner` describes. `root` is the folder `store`, or the one above it.

    The reference is the name without its tag as `ramalama list` shows it, such as `hf://org/name`,
    and the version is the tag. The path of a model is its GGUF file, or its snapshot if its weights
    have another format or are in a subfolder.
    """
    walk = StoreWalk.start("ramalama", root, protected, stop, progress, follow_links=follow_links)
    store = walk.root
    entries = walk.list_entries(store)
    for entry in entries:
        if entry.name == _STORE and not any(each.name in SOURCES for each in entries):
            try:
                store = walk.resolve_folder(entry, is_part=True)
                entries = walk.list_entries(store)
            except READ_ERRORS as error:
                walk.add_problem(entry.path, error_reason(error))
    for source in entries:
        if source.name in SOURCES:
            if (reason := non_folder_reason(source)) is None:
                _scan_source(walk, source)
            else:
                walk.add_problem(source.path, reason)
    return walk.result()


def is_model_folder(parts: Sequence[str], names: Collection[str]) -> bool:
    """Return whether a folder is that of a model, by its path in a store and the names in it."""
    below = parts[1:] if parts[:1] == (_STORE,) else parts
    return len(below) > 1 and below[0] in SOURCES and all(part in names for part in PARTS)


def _scan_source(walk: StoreWalk, source: os.DirEntry[str]) -> None:
    """Add the models of one transport to the walk: every folder below it that has refs."""
    folders = [source.path]
    while folders:
        folder = folders.pop()
        entries = walk.list_entries(folder)
        names = {entry.name for entry in entries}
        is_model = "refs" in names and folder != source.path
        if is_model:
            name = folder[len(source.path) + 1 :]
            reference = _PREFIXES.get(source.name, f"{source.name}://") + name
            if is_valid_name(name):
                _ModelScan(walk, folder, reference, entries).scan()
            else:
                walk.add_problem(folder, "its name is not a valid model name")
        # A folder is not listed if it is a link, because it could lead to one above it.
        folders += [
            entry.path
            for entry in reversed(entries)
            if is_folder(entry) and not (is_model and entry.name in PARTS)
        ]


@dataclass(frozen=True, slots=True)
class _ListedFile:
    """
    A file in a ref: its path in the snapshot, the name of its blob, and its role.

    The ref gives a type to weights, projectors and templates, which the program passes to the
    engine. Any other file has none.
    """

    path: str
    blob: str
    role: Role
    has_type: bool
    is_gguf: bool

    @classmethod
    def parse(cls, value: object) -> _ListedFile:
        """Parse a file in a ref. Raises SkippedError if it is invalid."""
        if not isinstance(value, dict):
            raise SkippedError("the entry of a file is not an object")
        return cls.make(value.get("name"), value.get("hash"), value.get("type"))

    @classmethod
    def make(cls, name: object, digest: object, kind: object) -> _ListedFile:
        """Return a file with the values of a ref. Raises SkippedError if they are invalid."""
        if not isinstance(name, str) or not all(map(is_plain_file_name, name.split("/"))):
            raise SkippedError("the name of a file is not a path in its snapshot")
        blob = _file_name(digest, "the hash of a file")
        role = _ROLES.get(kind, "other") if isinstance(kind, str) else "other"
        named = file_role(name)
        if role == "other":
            return cls(name, blob, named, has_type=False, is_gguf=False)
        # RamaLama gives LoRA adapters and importance matrices the type of weights.
        is_named = role == "weights" and named in {"adapter", "imatrix", "projector", "draft"}
        role = named if is_named else role
        return cls(name, blob, role, has_type=True, is_gguf=kind == _GGUF)


def _file_name(value: object, what: str) -> str:
    """Return the file name of a hash, as `sanitize_filename` of RamaLama makes it."""
    name = value.replace(":", "-") if isinstance(value, str) else ""
    if not is_plain_file_name(name):
        raise SkippedError(f"{what} is not the name of a file")
    return name


@dataclass(frozen=True, slots=True)
class _Ref:
    """A tag of a model: the folder of its snapshot, and its files."""

    snapshot: str
    files: Sequence[_ListedFile]


@dataclass(slots=True)
class _ModelScan:
    """The scan of the folder of one model, with all its tags."""

    walk: StoreWalk
    path: str
    reference: str
    entries: Iterable[os.DirEntry[str]]
    _parts: dict[str, str] = field(default_factory=dict)
    _blobs: dict[str, os.DirEntry[str]] = field(default_factory=dict)

    def scan(self) -> None:
        """Scan every ref and add its model to the walk."""
        walk = self.walk
        problems_before = walk.problem_count
        for entry in self.entries:
            if entry.name in PARTS:
                try:
                    self._parts[entry.name] = walk.resolve_folder(entry, is_part=True)
                except READ_ERRORS as error:
                    walk.add_problem(entry.path, error_reason(error), self.reference)
                    if entry.name == "snapshots":
                        # It is unknown which files the models have.
                        return
        if "blobs" in self._parts:
            entries = walk.list_entries(self._parts["blobs"], self.reference)
            self._blobs = {entry.name: entry for entry in entries}
        blobs = self._scan_refs()
        is_all_known = walk.problem_count == problems_before
        for name, entry in self._blobs.items():
            if name.endswith(_PARTIAL):
                walk.add_leftover(entry, "partial")
            elif name not in blobs and is_all_known:
                walk.add_leftover(entry, "orphan")

    def _scan_refs(self) -> set[str]:
        """Add the model of each ref to the walk. Return the names of the blobs that they list."""
        blobs: set[str] = set()
        refs = self._parts.get("refs")
        for entry in () if refs is None else self.walk.list_entries(refs, self.reference):
            if is_folder(entry):
                continue
            tag = entry.name.removesuffix(_JSON)
            try:
                ref = self._read_ref(entry)
                blobs.update(file.blob for file in ref.files)
                if (model := self._make_model(tag, ref)) is not None:
                    self.walk.add_model(model, entry.path)
            except READ_ERRORS as error:
                self.walk.add_problem(entry.path, error_reason(error), self.reference, tag)
        return blobs

    def _read_ref(self, entry: os.DirEntry[str]) -> _Ref:
        target = self.walk.resolve_entry(entry)
        if not entry.name.endswith(_JSON):
            with self.walk.open_file(target, MAX_REF_BYTES) as file:
                return _parse_old_ref(file.read_at(0, MAX_REF_BYTES).decode())
        lists = {"files": _ListedFile.parse}
        members = read_members(self.walk, target, MAX_REF_BYTES, ["hash"], lists)
        files = members.get("files")
        if files is None:
            raise SkippedError("it has no list of files")
        return _Ref(_file_name(members.get("hash"), "its hash"), files)

    def _make_model(self, tag: str, ref: _Ref) -> FoundModel | None:
        """Return the model of a ref, or None if none of its files can be read."""
        snapshots = self._parts.get("snapshots", f"{self.path}/snapshots")
        folder = f"{snapshots}/{ref.snapshot}"
        ref = self._with_linked_weights(folder, ref)
        if (files := self._find_files(folder, ref, tag)) is None:
            return None
        gguf = next((file.path for file in ref.files if file.is_gguf), None)
        is_in_subfolder = any("/" in file.path for file in ref.files if file.role in WEIGHT_ROLES)
        evidence = StoreEvidence(
            required={file.path: None for file in ref.files if file.has_type},
            # Files without a type, such as a README, are listed, and loading may not need them.
            listed={file.path: None for file in ref.files},
            unfinished=[file.path for file in ref.files if file.blob + _PARTIAL in self._blobs],
        )
        return FoundModel(
            store="ramalama",
            provider=PROVIDER,
            reference=self.reference,
            version=tag,
            local_path=folder if gguf is None or is_in_subfolder else f"{folder}/{gguf}",
            folder=folder,
            files=files,
            downloaded_at=newest_mtime(files),
            claims=Claims(format=format_of_files(files) or (gguf and _GGUF)),
            evidence=evidence,
        )

    def _with_linked_weights(self, folder: str, ref: _Ref) -> _Ref:
        """
        Return a ref with the weights that are a link to a blob in the store of Ollama.

        RamaLama links a model that Ollama has already, under the name of the model, and does not
        list it in the ref (`pull` in ramalama/transports/ollama.py).
        """
        name = self.path.rpartition("/")[2]
        has_weights = any(file.role in WEIGHT_ROLES for file in ref.files)
        if has_weights or not os.path.lexists(f"{folder}/{name}"):
            return ref
        return _Ref(ref.snapshot, [*ref.files, _ListedFile.make(name, ref.snapshot, _GGUF)])

    def _find_files(self, folder: str, ref: _Ref, tag: str) -> tuple[StoreFile, ...] | None:
        """
        Return the files of a snapshot that exist, sorted by path.

        None if none of those that exist can be read; the walk has a problem for each of them.
        """
        files: dict[str, StoreFile] = {}
        problems_before = self.walk.problem_count
        for each in ref.files:
            path = f"{folder}/{each.path}"
            try:
                target = self.walk.follow_links(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except READ_ERRORS as error:
                self.walk.add_problem(path, error_reason(error), self.reference, tag)
                continue
            files[each.path] = target.to_store_file(each.path, each.role, None)
        if not files and self.walk.problem_count > problems_before:
            # A model without files would lose the digests that were recorded.
            return None
        return tuple(files[path] for path in sorted(files))


def _parse_old_ref(text: str) -> _Ref:
    """Parse the text of an old ref: the hash, and a line `NAME---TYPE` for each file."""
    lines = [line.strip() for line in text.split("\n")]
    snapshot = _file_name(lines[0], "its hash")
    if len(lines) > MAX_FILES:
        raise SkippedError(f"it lists more than {MAX_FILES:,} files")
    files = []
    for line in filter(None, lines[1:]):
        name, _, kind = line.partition(_SEPARATOR)
        # The old form does not name blobs. Those of a snapshot are found by their links.
        files.append(_ListedFile.make(name, snapshot, _OLD_TYPES.get(kind, "other")))
    return _Ref(snapshot, files)

"""
Scan the store of Docker Model Runner: an index of models, OCI manifests, blobs and bundles.

`models.json` lists the models, each with its id, tags and files. An id is the SHA-256 of the
manifest `manifests/sha256/ID`. A manifest lists a config and layers, and each of them is
`blobs/sha256/HEX`, named by the digest of its content. The first run of a model makes
`bundles/sha256/ID`: hard links to its layers under the names of files, and the files of archives
among its layers. A bundle is made again when it is damaged, so it is no evidence. A download is
`HEX.incomplete` until its digest was verified. Digests of SHA-512, which the program accepts too,
are not read.

The layout is that of Docker Model Runner after 1.2.6 (642c721): `pkg/distribution/internal/store`
and `pkg/distribution/internal/bundle`; the media types are in `pkg/distribution/types/config.go`
and `pkg/distribution/modelpack/types.go`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from model_catalog.files.completeness.evidence import StoreEvidence
from model_catalog.files.file_names import WEIGHT_ROLES, file_role
from model_catalog.files.formats import header
from model_catalog.files.model_kind import Role
from model_catalog.files.safe_open import ProtectedFiles, StrPath
from model_catalog.stores.link_resolution import SkippedError
from model_catalog.stores.manifests import (
    parse_descriptor,
    parse_parameter_count,
    parse_quantization,
    read_members,
)
from model_catalog.stores.scan_result import Claims, FoundModel, Scan, StoreFile, mtime_to_datetime
from model_catalog.stores.store_walk import (
    MAX_FILES,
    READ_ERRORS,
    LinkTarget,
    StoreWalk,
    error_reason,
    is_folder,
)

PROVIDER: Final = "docker"
INDEX: Final = "models.json"
LAYOUT: Final = "layout.json"
MAX_INDEX_BYTES: Final = 4 * 1024 * 1024
MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
MAX_CONFIG_BYTES: Final = 1024 * 1024

_ALGORITHM: Final = "sha256"
_FOLDERS: Final = ("blobs", "bundles", "manifests")
_ID: Final = re.compile(r"sha256:([0-9a-f]{64})")
_DIGEST: Final = re.compile(r"sha256:([0-9a-fA-F]{64})")
# A reference of the package distribution/reference, with the registry.
_TAG: Final = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._/:-]*?)(?::([A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?"
)
_DOCKER_HUB: Final = ("docker.io/", "index.docker.io/")
_DEFAULT_TAG: Final = "latest"
_INCOMPLETE: Final = ".incomplete"
_PARTIAL_NAME: Final = re.compile(r".+(\.incomplete|\.tmp-[0-9]+)")
_ROLES: Final[Mapping[str, Role]] = {
    "application/vnd.docker.ai.gguf.v3": "weights",
    "application/vnd.docker.ai.safetensors": "weights",
    "application/vnd.docker.ai.dduf": "weights",
    "application/vnd.docker.ai.mmproj": "projector",
    "application/vnd.docker.ai.license": "license",
    "application/vnd.docker.ai.chat.template.jinja": "template",
    "application/vnd.cncf.model.weight.v1.raw": "weights",
    "application/vnd.cncf.model.weight.v1.gguf": "weights",
    "application/vnd.cncf.model.weight.v1.safetensors": "weights",
}
_FILE_PATH: Final = "org.cncf.model.filepath"


def scan(
    root: StrPath,
    *,
    protected: ProtectedFiles = (),
    stop: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
    follow_links: bool = True,
) -> Scan:
    """
    Scan a store, as `Scanner` describes. The version is the tag.

    The reference is the name before the tag, such as `ai/gemma3` or `huggingface.co/org/name`,
    without the registry of Docker Hub. A model without a tag has its id as the reference, which the
    program accepts too. The path of a model is that of the blob with its weights, or with the first
    of them: a bundle exists only after the first run, and its files are links to the same bytes.
    """
    walk = StoreWalk.start("docker", root, protected, stop, progress, follow_links=follow_links)
    folders: dict[str, str | None] = {}
    index = None
    for entry in walk.list_entries(walk.root, ""):
        if entry.name == INDEX:
            index = entry
        elif _PARTIAL_NAME.fullmatch(entry.name):
            walk.add_leftover(entry, "partial")
        elif entry.name in _FOLDERS:
            try:
                folders[entry.name] = walk.resolve_folder(entry, is_part=True)
            except READ_ERRORS as error:
                folders[entry.name] = None
                walk.add_problem(entry.path, error_reason(error), "")
    _StoreScan(walk, folders).scan(index)
    return walk.result()


@dataclass(frozen=True, slots=True)
class _IndexEntry:
    """A model in the index: the digits of its id, and the names that it has."""

    hexadecimal: str
    names: Sequence[tuple[str, str]]

    @classmethod
    def parse(cls, value: object) -> _IndexEntry:
        """Parse an entry of the index. Raises SkippedError if it is invalid."""
        if not isinstance(value, dict):
            raise SkippedError("an entry of the index is not an object")
        identifier, tags = value.get("id"), value.get("tags")
        match = _ID.fullmatch(identifier) if isinstance(identifier, str) else None
        if match is None:
            raise SkippedError("the id of a model in the index is not a SHA-256")
        if tags is not None and not isinstance(tags, list):
            raise SkippedError("the tags of a model in the index are not a list")
        names = dict.fromkeys(_parse_tag(tag) for tag in tags or ())
        return cls(match[1], tuple(names) or ((match[0], ""),))


def _parse_entry(value: object) -> _IndexEntry | str:
    """Return an entry of the index, or the reason why it is invalid."""
    try:
        return _IndexEntry.parse(value)
    except SkippedError as error:
        return str(error)


def _parse_tag(value: object) -> tuple[str, str]:
    """Return the reference and the version of a tag. Raises SkippedError if it is invalid."""
    match = _TAG.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise SkippedError("a tag in the index is not the name of a model")
    name, tag = match[1], match[2] or _DEFAULT_TAG
    for registry in _DOCKER_HUB:
        name = name.removeprefix(registry)
    return name, tag


@dataclass(frozen=True, slots=True)
class _Blob:
    """A blob that a manifest lists. `name` is the name of its file: the digits of its digest."""

    role: Role
    name: str
    size_bytes: int

    @classmethod
    def parse(cls, value: object, role: Role | None = None) -> _Blob:
        """Parse a descriptor in a manifest. Raises SkippedError if it is invalid."""
        descriptor, digits, size = parse_descriptor(value, _DIGEST, is_config=role == "config")
        return cls(role or _parse_role(descriptor), digits, size)


def _parse_role(descriptor: Mapping[str, Any]) -> Role:
    """Return the role of a layer: of the file that it is, or of its media type."""
    role = _ROLES.get(str(descriptor.get("mediaType")), "other")
    annotations = descriptor.get("annotations")
    path = annotations.get(_FILE_PATH) if isinstance(annotations, dict) else None
    if isinstance(path, str) and path.isprintable() and role in {"weights", "other"}:
        named = file_role(path)
        # An annotation tells a projector from other weights, which can have the same media type.
        return named if named in WEIGHT_ROLES or role == "other" else role
    return role


class _StoreScan:
    """The scan of one store. It lists the blobs once and caches their targets."""

    def __init__(self, walk: StoreWalk, folders: Mapping[str, str | None]) -> None:
        self._walk = walk
        self._folders = folders
        self._paths = {
            name: f"{folders.get(name, f'{walk.root}/{name}')}/{_ALGORITHM}" for name in _FOLDERS
        }
        self._manifests = self._list("manifests", "")
        # If the blobs cannot be listed, it is unknown which models exist.
        problems_before = walk.problem_count
        self._blobs = self._list("blobs", "")
        is_refused = "blobs" in folders and folders["blobs"] is None
        self._are_blobs_listed = not is_refused and walk.problem_count == problems_before
        self._bundles = self._list("bundles", None)
        self._targets: dict[str, LinkTarget] = {}

    def _list(self, name: str, reference: str | None) -> dict[str, os.DirEntry[str]]:
        """Return the entries of the folder of the algorithm, by name."""
        if (parent := self._folders.get(name)) is None:
            return {}
        for folder in self._walk.list_entries(parent, reference):
            if folder.name != _ALGORITHM:
                continue
            try:
                path = self._walk.resolve_folder(folder, is_part=True)
            except READ_ERRORS as error:
                self._walk.add_problem(folder.path, error_reason(error), reference)
                return {}
            self._paths[name] = path
            return {each.name: each for each in self._walk.list_entries(path, reference)}
        return {}

    def scan(self, index: os.DirEntry[str] | None) -> None:
        """Add the models in the index to the walk. Without an index there are none."""
        walk = self._walk
        problems_before = walk.problem_count
        for entry in () if index is None else self._read_index(index):
            manifest = self._manifests.pop(entry.hexadecimal, None)
            self._bundles.pop(entry.hexadecimal, None)
            try:
                self._scan_model(entry, manifest)
            except READ_ERRORS as error:
                path = f"{self._paths['manifests']}/{entry.hexadecimal}"
                for reference, version in entry.names:
                    walk.add_problem(path, error_reason(error), reference, version)
        self._add_leftovers(is_all_known=walk.problem_count == problems_before)

    def _add_leftovers(self, *, is_all_known: bool) -> None:
        """Add the files that no model needs. A model that cannot be read may need any of them."""
        for rest in (*self._blobs.values(), *self._manifests.values()):
            if _PARTIAL_NAME.fullmatch(rest.name):
                self._walk.add_leftover(rest, "partial")
            elif rest.name not in self._targets and is_all_known:
                self._walk.add_leftover(rest, "orphan")
        folders = [each.path for each in self._bundles.values() if is_all_known and is_folder(each)]
        file_count = 0
        while folders and file_count < MAX_FILES:
            for entry in self._walk.list_entries(folders.pop()):
                if is_folder(entry):
                    folders.append(entry.path)
                else:
                    file_count += 1
                    self._walk.add_leftover(entry, "orphan")

    def _read_index(self, index: os.DirEntry[str]) -> Sequence[_IndexEntry]:
        """Return the valid entries of the index. The others are problems."""
        try:
            target = self._walk.resolve_entry(index)
            lists = {"models": _parse_entry}
            members = read_members(self._walk, target, MAX_INDEX_BYTES, (), lists)
            if "models" not in members:
                raise SkippedError("it has no list of models")
        except READ_ERRORS as error:
            self._walk.add_problem(index.path, error_reason(error), "")
            return ()
        entries: dict[str, _IndexEntry] = {}
        name_count = 0
        # The program writes null when its last model was removed.
        for each in members["models"] or ():
            if not isinstance(each, str):
                name_count += len(each.names)
                if name_count > MAX_FILES:
                    reason = f"it lists more than {MAX_FILES:,} names"
                elif each.hexadecimal in entries:
                    reason = "it lists a model twice"
                else:
                    entries[each.hexadecimal] = each
                    continue
            else:
                reason = each
            self._walk.add_problem(index.path, reason, "")
        return list(entries.values())

    def _scan_model(self, entry: _IndexEntry, manifest: os.DirEntry[str] | None) -> None:
        if manifest is None:
            raise SkippedError("the index lists a model whose manifest does not exist")
        target = self._walk.resolve_entry(manifest)
        lists = {"layers": _Blob.parse}
        members = read_members(self._walk, target, MAX_MANIFEST_BYTES, ["config"], lists)
        config, layers = _Blob.parse(members.get("config"), "config"), members.get("layers") or ()
        weights = [layer for layer in layers if layer.role == "weights"]
        if not weights:
            raise SkippedError("it lists no weights")
        claims, reasons = self._read_config(config)
        blobs = [*layers, config]
        files = self._find_blobs(blobs)
        if not self._are_blobs_listed:
            return
        required = {blob.name: blob.size_bytes for blob in blobs}
        evidence = StoreEvidence(
            required=required,
            unfinished=[name for name in required if f"{name}{_INCOMPLETE}" in self._blobs],
            reasons=reasons,
        )
        folder = self._paths["blobs"]
        for reference, version in entry.names:
            model = FoundModel(
                store="docker",
                provider=PROVIDER,
                reference=reference,
                version=version,
                local_path=f"{folder}/{weights[0].name}",
                folder=folder,
                files=files,
                downloaded_at=mtime_to_datetime(target.status.st_mtime_ns),
                claims=claims,
                evidence=evidence,
            )
            self._walk.add_model(model, manifest.path)

    def _target(self, name: str) -> LinkTarget:
        """Return the file of a blob. Raises FileNotFoundError if it does not exist."""
        if (target := self._targets.get(name)) is None:
            if (entry := self._blobs.get(name)) is None:
                raise FileNotFoundError
            target = self._targets[name] = self._walk.resolve_entry(entry)
        return target

    def _find_blobs(self, blobs: Iterable[_Blob]) -> tuple[StoreFile, ...]:
        """Return the blobs that exist, sorted by name."""
        files: dict[str, StoreFile] = {}
        for blob in blobs:
            try:
                target = self._target(blob.name)
            except FileNotFoundError:
                continue
            digest = f"sha256:{blob.name.lower()}"
            files.setdefault(blob.name, target.to_store_file(blob.name, blob.role, digest))
        return tuple(files[name] for name in sorted(files))

    def _read_config(self, blob: _Blob) -> tuple[Claims, tuple[str, ...]]:
        """Return the values in the config of a model, and why it could not be read."""
        try:
            target = self._target(blob.name)
            config = read_members(self._walk, target, MAX_CONFIG_BYTES, ["config"]).get("config")
        except FileNotFoundError:
            # The judge reports this blob as missing, like any other.
            return Claims(), ()
        except READ_ERRORS as error:
            return Claims(), (f"{blob.name!r}: {error_reason(error)}",)
        if not isinstance(config, dict):
            return Claims(), ()
        claims = Claims(
            format=header.printable_text(config.get("format")),
            architecture=header.printable_text(config.get("architecture")),
            quantization=parse_quantization(config.get("quantization")),
            context_length=header.valid_context_length(config.get("context_size")),
            parameter_count=parse_parameter_count(
                config.get("parameters") or config.get("paramSize")
            ),
        )
        return claims, ()

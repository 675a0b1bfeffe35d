"""
The store of Ollama: a manifest for each name of a model, and blobs by their digests.

`manifests/HOST/NAMESPACE/MODEL/TAG` is JSON that names a config and layers, each
`blobs/sha256-DIGEST`, as Ollama's packages `manifest` and `types/model` have it; older releases
wrote `sha256:DIGEST`. Many manifests may
name one blob. A model that runs in the cloud has a manifest and no weights: it is not on this
machine, and is left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from model_catalog.files.file_names import Role, file_role
from model_catalog.files.formats import header
from model_catalog.files.formats.json_stream import JsonStream
from model_catalog.files.safe_open import ProtectedFiles, StrPath
from model_catalog.stores.scan_result import Claims, FoundModel, Scan, StoreFile, mtime_to_datetime
from model_catalog.stores.store_walk import (
    READ_ERRORS,
    LinkTarget,
    SkippedError,
    StoreWalk,
    error_reason,
    is_valid_name,
    non_folder_reason,
    shorten_list,
)

PROVIDER: Final = "ollama"
MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
MAX_CONFIG_BYTES: Final = 1024 * 1024

_DEFAULT_HOST: Final = "registry.ollama.ai"
_DEFAULT_NAMESPACE: Final = "library"
_NAME_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_HOST_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_DIGEST: Final = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")
_SIZE_TEXT: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([KMBT])")
_UNITS: Final = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_MEDIA_TYPE_PREFIX: Final = "application/vnd.ollama.image."
_ROLES: Final[Mapping[str, Role]] = {
    "model": "weights",
    "tensor": "weights",
    "projector": "projector",
    "adapter": "adapter",
    "template": "template",
    "license": "license",
    "params": "config",
}
_MAX_MEMBERS: Final = 100
_SCHEMA_VERSION: Final = 2


def scan(
    root: StrPath,
    *,
    protected: ProtectedFiles = (),
    stop: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Scan:
    """
    The models in a store, as `Scanner` says: the tag is the version.

    A reference is what `ollama list` shows before the tag: what is from the library of Ollama's
    own registry is called by its name alone. The path of a model is that of its weights, or of the
    first of them.
    """
    walk = StoreWalk.start("ollama", root, protected, stop, progress)
    parts = {}
    for entry in walk.list_entries(walk.root, ""):
        if entry.name in {"manifests", "blobs"}:
            if (what := non_folder_reason(entry)) is None:
                parts[entry.name] = entry.path
            else:
                walk.add_problem(entry.path, what, "")
    if "manifests" in parts:
        _StoreScan(walk, parts).scan()
    return walk.result()


@dataclass(frozen=True, slots=True)
class _ManifestName:
    """What a manifest's path says of its model."""

    reference: str
    tag: str

    @classmethod
    def of(cls, host: str, namespace: str, model: str, tag: str) -> _ManifestName:
        if host != _DEFAULT_HOST:
            return cls(f"{host}/{namespace}/{model}", tag)
        return cls(model if namespace == _DEFAULT_NAMESPACE else f"{namespace}/{model}", tag)


@dataclass(frozen=True, slots=True)
class _Layer:
    """What a manifest says of one blob."""

    role: Role
    hexadecimal: str
    size_bytes: int

    @classmethod
    def read(cls, value: object, role: Role | None = None) -> _Layer:
        """What is written of one; LeftOutError for what is none."""
        if not isinstance(value, dict):
            raise SkippedError("a layer in it is no object")
        digest, size = value.get("digest"), value.get("size")
        match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
        if match is None:
            raise SkippedError("the digest of a layer in it is none")
        if type(size) is not int or size < 0:
            raise SkippedError("the size of a layer in it is none")
        return cls(role or cls._role(value), match[1], size)

    @staticmethod
    def _role(value: Mapping[str, object]) -> Role:
        kind = str(value.get("mediaType")).removeprefix(_MEDIA_TYPE_PREFIX)
        name = value.get("name")
        if kind == "json" and isinstance(name, str):
            return file_role(name)
        return _ROLES.get(kind, "other")

    @property
    def digest(self) -> str:
        return f"sha256:{self.hexadecimal.lower()}"

    @property
    def blob(self) -> str:
        return f"sha256-{self.hexadecimal}"


@dataclass(frozen=True, slots=True)
class _ModelDetails:
    """What the config of a model says of it, and why it could not be read."""

    claims: Claims
    is_remote: bool = False
    reasons: tuple[str, ...] = ()


class _StoreScan:
    """A store, as it is looked through."""

    def __init__(self, walk: StoreWalk, parts: Mapping[str, str]) -> None:
        self._walk = walk
        self._manifests = parts["manifests"]
        self._folder = parts.get("blobs", f"{walk.root}/blobs")
        # Of a store whose blobs cannot be listed it is not known what is there.
        problems = walk.problem_count
        listing = walk.list_entries(self._folder, "") if "blobs" in parts else []
        self._is_listed = walk.problem_count == problems
        # Where a blob is there by both spellings, the first in order is the one of this day.
        self._blobs = {entry.name.replace(":", "-", 1): entry for entry in reversed(listing)}
        self._unfinished = {
            name.partition("-partial")[0] for name in self._blobs if "-partial" in name
        }
        self._targets: dict[str, LinkTarget] = {}

    def scan(self) -> None:
        for host in self._named(self._walk.list_folders(self._manifests, ""), _HOST_PART):
            for namespace in self._named(self._walk.list_folders(host.path, ""), _NAME_PART):
                for model in self._named(self._walk.list_folders(namespace.path, ""), _NAME_PART):
                    parts = (host.name, namespace.name, model.name)
                    reference = _ManifestName.of(*parts, "").reference
                    tags = self._walk.list_entries(model.path, reference)
                    for tag in self._named(tags, _NAME_PART):
                        self._scan_manifest(tag, _ManifestName.of(*parts, tag.name))

    def _named(
        self, entries: Iterable[os.DirEntry[str]], pattern: re.Pattern[str]
    ) -> list[os.DirEntry[str]]:
        """Those whose names can be part of a model's."""
        found = []
        for entry in entries:
            if pattern.fullmatch(entry.name):
                found.append(entry)
            elif not (entry.name.startswith(".") and is_valid_name(entry.name)):
                self._walk.add_problem(entry.path, "its name is that of no model")
        return found

    def _scan_manifest(self, entry: os.DirEntry[str], name: _ManifestName) -> None:
        try:
            manifest = self._walk.resolve_entry(entry)
            config, layers = self._read_manifest(manifest)
            details = self._read_details(config)
            if any(layer.role == "weights" for layer in layers):
                if self._is_listed:
                    model = self._model(name, manifest, (*layers, config), details)
                    self._walk.add_model(model, entry.path)
            elif not details.is_remote:
                raise SkippedError("it names no weights")
        except READ_ERRORS as error:
            self._walk.add_problem(entry.path, error_reason(error), name.reference, name.tag)

    def _read_manifest(self, manifest: LinkTarget) -> tuple[_Layer, list[_Layer]]:
        members = self._members(manifest, MAX_MANIFEST_BYTES)
        if members.get("schemaVersion") != _SCHEMA_VERSION:
            raise SkippedError(f"it is no manifest of version {_SCHEMA_VERSION}")
        layers = members.get("layers")
        if not isinstance(layers, list):
            raise SkippedError("it has no list of layers")
        return _Layer.read(members.get("config"), "config"), [_Layer.read(item) for item in layers]

    def _members(self, target: LinkTarget, limit_bytes: int) -> dict[str, Any]:
        with self._walk.open_file(target, limit_bytes) as file:
            stream = JsonStream(file, 0, file.size_bytes)
            members = {name: stream.value() for name in stream.members(_MAX_MEMBERS)}
            stream.finish()
        return members

    def _read_details(self, config: _Layer) -> _ModelDetails:
        try:
            members = self._members(self._target(config), MAX_CONFIG_BYTES)
        except FileNotFoundError:
            # The blob is told to be missing as every other is.
            return _ModelDetails(Claims())
        except READ_ERRORS as error:
            return _ModelDetails(Claims(), reasons=(f"{config.blob!r}: {error_reason(error)}",))
        found = Claims(
            format=header.printable_text(members.get("model_format")),
            architecture=header.printable_text(members.get("model_family")),
            quantization=_quantization(members.get("file_type")),
            context_length=header.valid_context_length(members.get("context_length")),
            parameter_count=parse_parameter_count(members.get("model_type")),
        )
        return _ModelDetails(found, is_remote=bool(members.get("remote_host")))

    def _target(self, layer: _Layer) -> LinkTarget:
        """Where the bytes of a layer are; FileNotFoundError where they are not."""
        name = layer.blob
        if (target := self._targets.get(name)) is None:
            if (entry := self._blobs.get(name)) is None:
                raise FileNotFoundError
            target = self._targets[name] = self._walk.resolve_entry(entry)
        return target

    def _model(
        self,
        name: _ManifestName,
        manifest: LinkTarget,
        layers: Iterable[_Layer],
        details: _ModelDetails,
    ) -> FoundModel:
        files: dict[str, StoreFile] = {}
        weights = ""
        missing, reasons = [], list(details.reasons)
        for layer in layers:
            try:
                target = self._target(layer)
            except FileNotFoundError:
                missing.append(layer.blob)
                path = layer.blob
            else:
                path = self._blobs[layer.blob].name
                files.setdefault(path, target.to_store_file(path, layer.role, layer.digest))
                if target.status.st_size != layer.size_bytes:
                    reasons.append(
                        f"{path!r} has {target.status.st_size} bytes: {layer.size_bytes} are needed"
                    )
            if layer.role == "weights":
                weights = weights or path
        if missing:
            reasons.append(f"missing: {shorten_list(missing)}")
        if unfinished := sorted(self._unfinished.intersection(missing)):
            reasons.append(f"downloads that have not ended: {shorten_list(unfinished)}")
        return FoundModel(
            store="ollama",
            provider=PROVIDER,
            reference=name.reference,
            version=name.tag,
            local_path=f"{self._folder}/{weights}",
            folder=self._folder,
            files=tuple(files[path] for path in sorted(files)),
            downloaded_at=mtime_to_datetime(manifest.status.st_mtime_ns),
            claims=details.claims,
            reasons=tuple(reasons),
        )


def parse_parameter_count(value: object) -> int | None:
    """How many "8.0B" are, or None for what is no such text; as exact as it is written."""
    match = _SIZE_TEXT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    count = round(float(match[1]) * _UNITS[match[2]])
    return count if 0 < count <= header.MAX_PARAMETERS else None


def _quantization(value: object) -> str | None:
    # What Ollama calls a type of weights that it does not know.
    return None if value == "unknown" else header.printable_text(value)

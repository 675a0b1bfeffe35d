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
from model_catalog.files.safe_open import Forbidden, Pathlike
from model_catalog.stores.scan_result import Claims, FoundModel, Scan, StoreFile, mtime_to_datetime
from model_catalog.stores.store_access import (
    UNREADABLE,
    LinkTarget,
    SkippedError,
    StoreWalk,
    error_reason,
    is_readable,
    not_a_folder,
    shorten_list,
)

PROVIDER: Final = "ollama"
MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
MAX_CONFIG_BYTES: Final = 1024 * 1024

_HOST: Final = "registry.ollama.ai"
_NAMESPACE: Final = "library"
_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_HOST_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_DIGEST: Final = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")
_SIZE: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([KMBT])")
_UNITS: Final = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_MEDIA: Final = "application/vnd.ollama.image."
_ROLES: Final[Mapping[str, Role]] = {
    "model": "weights",
    "tensor": "weights",
    "projector": "projector",
    "adapter": "adapter",
    "template": "template",
    "license": "license",
    "params": "config",
}
_MEMBERS: Final = 100
_VERSION: Final = 2


def scan(
    root: Pathlike,
    *,
    forbidden: Forbidden = (),
    stop: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Scan:
    """
    The models in a store, as `Scanner` says: the tag is the version.

    A reference is what `ollama list` shows before the tag: what is from the library of Ollama's
    own registry is called by its name alone. The path of a model is that of its weights, or of the
    first of them.
    """
    visit = StoreWalk.begin("ollama", root, forbidden, stop, progress)
    parts = {}
    for entry in visit.entries(visit.root, ""):
        if entry.name in {"manifests", "blobs"}:
            if (what := not_a_folder(entry)) is None:
                parts[entry.name] = entry.path
            else:
                visit.blame(entry.path, what, "")
    if "manifests" in parts:
        _Store(visit, parts).look_through()
    return visit.result()


@dataclass(frozen=True, slots=True)
class _Name:
    """What a manifest's path says of its model."""

    reference: str
    tag: str

    @classmethod
    def of(cls, host: str, namespace: str, model: str, tag: str) -> _Name:
        if host != _HOST:
            return cls(f"{host}/{namespace}/{model}", tag)
        return cls(model if namespace == _NAMESPACE else f"{namespace}/{model}", tag)


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
        kind = str(value.get("mediaType")).removeprefix(_MEDIA)
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
class _Details:
    """What the config of a model says of it, and why it could not be read."""

    claims: Claims
    is_remote: bool = False
    reasons: tuple[str, ...] = ()


class _Store:
    """A store, as it is looked through."""

    def __init__(self, visit: StoreWalk, parts: Mapping[str, str]) -> None:
        self._visit = visit
        self._manifests = parts["manifests"]
        self._folder = parts.get("blobs", f"{visit.root}/blobs")
        # Of a store whose blobs cannot be listed it is not known what is there.
        problems = visit.problem_count
        listing = visit.entries(self._folder, "") if "blobs" in parts else []
        self._is_listed = visit.problem_count == problems
        # Where a blob is there by both spellings, the first in order is the one of this day.
        self._blobs = {entry.name.replace(":", "-", 1): entry for entry in reversed(listing)}
        self._unfinished = {
            name.partition("-partial")[0] for name in self._blobs if "-partial" in name
        }
        self._targets: dict[str, LinkTarget] = {}

    def look_through(self) -> None:
        for host in self._named(self._visit.folders(self._manifests, ""), _HOST_PART):
            for namespace in self._named(self._visit.folders(host.path, ""), _PART):
                for model in self._named(self._visit.folders(namespace.path, ""), _PART):
                    parts = (host.name, namespace.name, model.name)
                    reference = _Name.of(*parts, "").reference
                    tags = self._visit.entries(model.path, reference)
                    for tag in self._named(tags, _PART):
                        self._look_at(tag, _Name.of(*parts, tag.name))

    def _named(
        self, entries: Iterable[os.DirEntry[str]], pattern: re.Pattern[str]
    ) -> list[os.DirEntry[str]]:
        """Those whose names can be part of a model's."""
        found = []
        for entry in entries:
            if pattern.fullmatch(entry.name):
                found.append(entry)
            elif not (entry.name.startswith(".") and is_readable(entry.name)):
                self._visit.blame(entry.path, "its name is that of no model")
        return found

    def _look_at(self, entry: os.DirEntry[str], name: _Name) -> None:
        try:
            manifest = self._visit.target(entry)
            config, layers = self._read_manifest(manifest)
            details = self._read_details(config)
            if any(layer.role == "weights" for layer in layers):
                if self._is_listed:
                    model = self._model(name, manifest, (*layers, config), details)
                    self._visit.add(model, entry.path)
            elif not details.is_remote:
                raise SkippedError("it names no weights")
        except UNREADABLE as error:
            self._visit.blame(entry.path, error_reason(error), name.reference, name.tag)

    def _read_manifest(self, manifest: LinkTarget) -> tuple[_Layer, list[_Layer]]:
        members = self._members(manifest, MAX_MANIFEST_BYTES)
        if members.get("schemaVersion") != _VERSION:
            raise SkippedError(f"it is no manifest of version {_VERSION}")
        layers = members.get("layers")
        if not isinstance(layers, list):
            raise SkippedError("it has no list of layers")
        return _Layer.read(members.get("config"), "config"), [_Layer.read(item) for item in layers]

    def _members(self, target: LinkTarget, limit_bytes: int) -> dict[str, Any]:
        with self._visit.open(target, limit_bytes) as file:
            stream = JsonStream(file, 0, file.size_bytes)
            members = {name: stream.value() for name in stream.members(_MEMBERS)}
            stream.finish()
        return members

    def _read_details(self, config: _Layer) -> _Details:
        try:
            members = self._members(self._target(config), MAX_CONFIG_BYTES)
        except FileNotFoundError:
            # The blob is told to be missing as every other is.
            return _Details(Claims())
        except UNREADABLE as error:
            return _Details(Claims(), reasons=(f"{config.blob!r}: {error_reason(error)}",))
        found = Claims(
            format=header.text(members.get("model_format")),
            architecture=header.text(members.get("model_family")),
            quantization=_quantization(members.get("file_type")),
            context_length=header.context_length(members.get("context_length")),
            parameter_count=parameter_count(members.get("model_type")),
        )
        return _Details(found, is_remote=bool(members.get("remote_host")))

    def _target(self, layer: _Layer) -> LinkTarget:
        """Where the bytes of a layer are; FileNotFoundError where they are not."""
        name = layer.blob
        if (target := self._targets.get(name)) is None:
            if (entry := self._blobs.get(name)) is None:
                raise FileNotFoundError
            target = self._targets[name] = self._visit.target(entry)
        return target

    def _model(
        self, name: _Name, manifest: LinkTarget, layers: Iterable[_Layer], details: _Details
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
                files.setdefault(path, target.as_file(path, layer.role, layer.digest))
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


def parameter_count(value: object) -> int | None:
    """How many "8.0B" are, or None for what is no such text; as exact as it is written."""
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    count = round(float(match[1]) * _UNITS[match[2]])
    return count if 0 < count <= header.MAX_PARAMETERS else None


def _quantization(value: object) -> str | None:
    # What Ollama calls a type of weights that it does not know.
    return None if value == "unknown" else header.text(value)

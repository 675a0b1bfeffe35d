"""
Scan the store of Ollama: a manifest for each model name, and blobs named by their digests.

`manifests/HOST/NAMESPACE/MODEL/TAG` is a JSON file that lists a config and layers. Each of them is
`blobs/sha256-DIGEST`; older releases wrote `sha256:DIGEST`. An unfinished download is
`sha256-DIGEST-partial`, with a file for each piece, or `sha256-DIGEST.tmp`. The packages `manifest`
and `types/model` of Ollama 0.33 define the format. Several manifests can share a blob.

Weights are one layer `model`, or many layers `tensor`, each a safetensors file. A draft belongs to
its model: a layer `draft`, or the tensors whose names begin with `draft.tensor_prefix` of the
config. A model that runs in the cloud has a manifest and no weights. It is not on this machine and
is left out; `Scan.remote_models` names it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from model_catalog.files.completeness.evidence import StoreEvidence
from model_catalog.files.file_names import file_role
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
    READ_ERRORS,
    LinkTarget,
    StoreWalk,
    error_reason,
    is_valid_name,
)

PROVIDER: Final = "ollama"
MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
MAX_CONFIG_BYTES: Final = 1024 * 1024

_DEFAULT_HOST: Final = "registry.ollama.ai"
_DEFAULT_NAMESPACE: Final = "library"
_NAME_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_HOST_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_DIGEST: Final = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")
# Pieces and parts of a download, or a layer that is being written.
_PARTIAL: Final = re.compile(
    r"(sha256-[0-9a-fA-F]{64})(?:-partial.*|\.tmp)|sha256-[0-9]{1,20}|.*-partial.*", re.DOTALL
)
_MEDIA_TYPE_PREFIX: Final = "application/vnd.ollama.image."
_ROLES: Final[Mapping[str, Role]] = {
    "model": "weights",
    "tensor": "weights",
    "projector": "projector",
    "adapter": "adapter",
    "draft": "draft",
    "template": "template",
    "license": "license",
    "params": "config",
}
_CONFIG_MEMBERS: Final = (
    "model_format",
    "model_family",
    "file_type",
    "context_length",
    "model_type",
    "remote_host",
    "remote_model",
    "draft",
)
_SCHEMA_VERSION: Final = 2


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

    The reference is the part before the tag in the output of `ollama list`. A model from the
    library of Ollama's own registry has a short reference: its name only. The path of a model is
    the path of its weights, or of the first weights file.
    """
    walk = StoreWalk.start("ollama", root, protected, stop, progress, follow_links=follow_links)
    folders: dict[str, str | None] = {}
    for entry in walk.list_entries(walk.root, ""):
        if entry.name in {"manifests", "blobs"}:
            try:
                folders[entry.name] = walk.resolve_folder(entry, is_part=True)
            except READ_ERRORS as error:
                folders[entry.name] = None
                walk.add_problem(entry.path, error_reason(error), "")
    if (manifests := folders.get("manifests")) is None:
        return walk.result()
    store = _StoreScan(walk, manifests, folders.get("blobs", f"{walk.root}/blobs"))
    store.scan()
    return replace(walk.result(), remote_models=tuple(sorted(store.remote_models)))


@dataclass(frozen=True, slots=True)
class _ManifestName:
    """The reference and the tag of a model, from the path of its manifest."""

    reference: str
    tag: str

    @classmethod
    def from_path_parts(cls, host: str, namespace: str, model: str, tag: str) -> _ManifestName:
        if host != _DEFAULT_HOST:
            return cls(f"{host}/{namespace}/{model}", tag)
        return cls(model if namespace == _DEFAULT_NAMESPACE else f"{namespace}/{model}", tag)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A blob that a manifest lists."""

    role: Role
    hexadecimal: str
    size_bytes: int
    name: str = ""

    @classmethod
    def parse(cls, value: object, role: Role | None = None) -> _Layer:
        """Parse a layer in a manifest. Raises SkippedError if it is invalid."""
        descriptor, digits, size = parse_descriptor(value, _DIGEST, is_config=role == "config")
        name = descriptor.get("name")
        name = name if isinstance(name, str) else ""
        return cls(role or cls._parse_role(descriptor), digits, size, name)

    @staticmethod
    def _parse_role(value: Mapping[str, object]) -> Role:
        kind = str(value.get("mediaType")).removeprefix(_MEDIA_TYPE_PREFIX)
        name = value.get("name")
        if kind == "json" and isinstance(name, str):
            return file_role(name)
        return _ROLES.get(kind, "other")

    def with_draft(self, prefix: str) -> _Layer:
        """Return this layer with the role of a draft if it is a tensor with this prefix."""
        is_draft = self.role == "weights" and self.name.startswith(prefix)
        return replace(self, role="draft") if is_draft else self

    @property
    def digest(self) -> str:
        return f"sha256:{self.hexadecimal.lower()}"

    @property
    def blob_name(self) -> str:
        return f"sha256-{self.hexadecimal}"


@dataclass(frozen=True, slots=True)
class _ModelDetails:
    """The values in the config of a model. `reasons` say why the config could not be read."""

    claims: Claims
    is_remote: bool = False
    draft_prefix: str = ""
    reasons: tuple[str, ...] = ()


class _StoreScan:
    """The scan of one store. It lists the blobs once and caches their targets."""

    def __init__(self, walk: StoreWalk, manifests: str, blobs: str | None) -> None:
        self._walk = walk
        self._manifests_folder = manifests
        self._blobs_folder = blobs or ""
        # If the blobs cannot be listed, it is unknown which models exist.
        problems_before = walk.problem_count
        entries = walk.list_entries(blobs, "") if blobs and os.path.lexists(blobs) else []
        self._are_blobs_listed = blobs is not None and walk.problem_count == problems_before
        # If a blob exists in both spellings, the first in sort order is the current one.
        self._blobs = {entry.name.replace(":", "-", 1): entry for entry in reversed(entries)}
        self._unfinished = {
            match[1] for name in self._blobs if (match := _PARTIAL.fullmatch(name)) and match[1]
        }
        self.remote_models: list[str] = []
        self._targets: dict[str, LinkTarget] = {}

    def scan(self) -> None:
        """Scan every manifest and add its model to the walk."""
        walk = self._walk
        problems_before = walk.problem_count
        hosts = walk.list_folders(self._manifests_folder, "")
        for host in self._valid_entries(hosts, _HOST_PART):
            for namespace in self._valid_entries(walk.list_folders(host.path, ""), _NAME_PART):
                models = walk.list_folders(namespace.path, "")
                for model in self._valid_entries(models, _NAME_PART):
                    parts = (host.name, namespace.name, model.name)
                    reference = _ManifestName.from_path_parts(*parts, "").reference
                    tags = walk.list_entries(model.path, reference)
                    for tag in self._valid_entries(tags, _NAME_PART):
                        name = _ManifestName.from_path_parts(*parts, tag.name)
                        self._scan_manifest(tag, name)
        self._add_leftovers(is_all_known=walk.problem_count == problems_before)

    def _add_leftovers(self, *, is_all_known: bool) -> None:
        """Add the blobs that no model needs. A manifest that cannot be read may need any."""
        # A link to `blobs` may lead to a folder with other files.
        is_own = not self._walk.links.is_outside(self._blobs_folder)
        for blob_name, blob in self._blobs.items():
            if not is_own and not blob_name.startswith("sha256-"):
                continue
            if _PARTIAL.fullmatch(blob_name):
                self._walk.add_leftover(blob, "partial")
            elif blob_name not in self._targets and is_all_known:
                self._walk.add_leftover(blob, "orphan")

    def _valid_entries(
        self, entries: Iterable[os.DirEntry[str]], pattern: re.Pattern[str]
    ) -> list[os.DirEntry[str]]:
        """Return the entries whose names can be part of a model name. The others are problems."""
        valid = []
        for entry in entries:
            if pattern.fullmatch(entry.name):
                valid.append(entry)
            elif not (entry.name.startswith(".") and is_valid_name(entry.name)):
                self._walk.add_problem(entry.path, "its name is not a valid model name")
        return valid

    def _scan_manifest(self, entry: os.DirEntry[str], name: _ManifestName) -> None:
        try:
            manifest = self._walk.resolve_entry(entry)
            config, layers = self._read_manifest(manifest)
            details = self._read_details(config)
            if details.draft_prefix:
                layers = [layer.with_draft(details.draft_prefix) for layer in layers]
            if any(layer.role == "weights" for layer in layers):
                if self._are_blobs_listed:
                    model = self._make_model(name, manifest, (*layers, config), details)
                    self._walk.add_model(model, entry.path)
            elif details.is_remote:
                self.remote_models.append(f"{name.reference}:{name.tag}")
            else:
                raise SkippedError("it lists no weights")
        except READ_ERRORS as error:
            self._walk.add_problem(entry.path, error_reason(error), name.reference, name.tag)

    def _read_manifest(self, manifest: LinkTarget) -> tuple[_Layer, list[_Layer]]:
        """Return the config and the layers of a manifest."""
        wanted = ["schemaVersion", "config"]
        lists = {"layers": _Layer.parse}
        members = read_members(self._walk, manifest, MAX_MANIFEST_BYTES, wanted, lists)
        if members.get("schemaVersion") != _SCHEMA_VERSION:
            raise SkippedError(f"it is not a manifest of version {_SCHEMA_VERSION}")
        if "layers" not in members:
            raise SkippedError("it has no list of layers")
        # Ollama writes null for a model in the cloud that has no layers.
        return _Layer.parse(members.get("config"), "config"), members["layers"] or []

    def _read_details(self, config: _Layer) -> _ModelDetails:
        try:
            target = self._target(config)
            members = read_members(self._walk, target, MAX_CONFIG_BYTES, _CONFIG_MEMBERS)
        except FileNotFoundError:
            # _make_model() reports this blob as missing, like any other.
            return _ModelDetails(Claims())
        except READ_ERRORS as error:
            reason = f"{config.blob_name!r}: {error_reason(error)}"
            return _ModelDetails(Claims(), reasons=(reason,))
        claims = Claims(
            format=header.printable_text(members.get("model_format")),
            architecture=header.printable_text(members.get("model_family")),
            quantization=parse_quantization(members.get("file_type")),
            context_length=header.valid_context_length(members.get("context_length")),
            parameter_count=parse_parameter_count(members.get("model_type")),
        )
        draft = members.get("draft")
        prefix = draft.get("tensor_prefix") if isinstance(draft, dict) else None
        return _ModelDetails(
            claims,
            is_remote=bool(members.get("remote_host") or members.get("remote_model")),
            draft_prefix=prefix if isinstance(prefix, str) else "",
        )

    def _target(self, layer: _Layer) -> LinkTarget:
        """Return the file of a blob. Raises FileNotFoundError if it does not exist."""
        name = layer.blob_name
        if (target := self._targets.get(name)) is None:
            if (entry := self._blobs.get(name)) is None:
                raise FileNotFoundError
            target = self._targets[name] = self._walk.resolve_entry(entry)
        return target

    def _make_model(
        self,
        name: _ManifestName,
        manifest: LinkTarget,
        layers: Iterable[_Layer],
        details: _ModelDetails,
    ) -> FoundModel:
        files: dict[str, StoreFile] = {}
        weights_path = ""
        required: dict[str, int | None] = {}
        for layer in layers:
            try:
                target = self._target(layer)
            except FileNotFoundError:
                path = layer.blob_name
            else:
                path = self._blobs[layer.blob_name].name
                files.setdefault(path, target.to_store_file(path, layer.role, layer.digest))
            required[path] = layer.size_bytes
            if layer.role == "weights":
                weights_path = weights_path or path
        evidence = StoreEvidence(
            required=required,
            unfinished=self._unfinished.intersection(required).difference(files),
            reasons=details.reasons,
        )
        return FoundModel(
            store="ollama",
            provider=PROVIDER,
            reference=name.reference,
            version=name.tag,
            local_path=f"{self._blobs_folder}/{weights_path}",
            folder=self._blobs_folder,
            files=tuple(files[path] for path in sorted(files)),
            downloaded_at=mtime_to_datetime(manifest.status.st_mtime_ns),
            claims=details.claims,
            evidence=evidence,
        )

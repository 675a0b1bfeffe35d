"""Verify the signature of a model with the signer's public key, and record the result."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from model_catalog.domain.file_record import FileRecord
from model_catalog.domain.model_ref import ModelName
from model_catalog.errors import BadSignatureError, FileChangedError, InvalidModelError
from model_catalog.execution.executor import reads_from_primary
from model_catalog.files.digest import file_digest
from model_catalog.files.file_names import parse_shard_name
from model_catalog.files.fingerprint import Fingerprint, is_settled
from model_catalog.files.safe_open import ProtectedFiles, stat_path
from model_catalog.files.signing.public_key import read_public_key
from model_catalog.files.signing.required_files import refuse_unreadable, required_file_paths
from model_catalog.files.signing.signature import (
    SignedManifest,
    require_matching_files,
    verify_bundle,
)
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog, find_database_files
from model_catalog.upkeep.queries.verification_queries import save_inspection
from model_catalog.upkeep.worker_threads import (
    OnProgress,
    ProgressMeter,
    Stop,
    device_lock,
    device_of,
    file_identities,
    run_in_thread,
)

_BUNDLE_NAME: Final = "model.sig"
"""The name that model-signing gives a folder's bundle. A file's bundle is its name and `.sig`."""
_MAX_DETAIL_CHARACTERS: Final = 1000


@dataclass(frozen=True, slots=True)
class Signature:
    """A model as it is recorded now, and whether its signature is valid for a key."""

    model: Model
    is_valid: bool
    key_fingerprint: str
    """The fingerprint of the key: `sha256:` and 64 hexadecimal digits, of the key in DER."""
    reason: str | None
    """Why the signature was refused; None if it is valid."""


@reads_from_primary
async def verify_signature(
    catalog: ModelCatalog,
    reference: ModelName,
    provider: str | None = None,
    version: str | None = None,
    *,
    key: bytes | str | os.PathLike[str],
    bundle: str | os.PathLike[str] | None = None,
    follow_links: bool = False,
    ignore_paths: Iterable[str | os.PathLike[str]] = (),
    on_progress: OnProgress | None = None,
) -> Signature:
    """
    Verify a model's OpenSSF model-signing bundle with a public key, offline, and record the result.

    `key` is the signer's public key: the path of a PEM file, or its bytes. A key beside the model
    is never used. The default bundle is `model.sig` in the model's folder; for a file it is the
    file's name and `.sig`. A set of shards is signed as a whole, so its bundle is the folder's. A
    file that was hashed before and has not changed is not read again. Symbolic links are refused,
    as model-signing refuses them when it signs, unless `follow_links` is set.

    `ignore_paths` are files and folders that need no signature, as huggingface_hub's `.cache`,
    relative to the model's folder, or absolute. A signed file among them counts as missing.

    A signature is refused if a file was altered, is missing, cannot be read, was renamed or is not
    signed, or if another key signed the model. A link that leads to no file counts as missing. A
    refusal is recorded like a valid signature.

    Raises ModelNotFoundError, InvalidKeyError, NotInstalledError without the extra `signing`,
    InvalidModelError for an ignored path outside the model, FileChangedError, BadLayoutError,
    ProtectedFileError, and OSError if the bundle or the model's path does not exist.
    """
    model = await catalog.get_model(reference, provider, version)
    files = await catalog.list_files(model)
    database_files = await find_database_files(catalog)
    meter = ProgressMeter(on_progress, 0)
    path = await run_in_thread(lambda _: _signed_path(model.local_path, files))
    list_names = partial(required_file_paths, follow_links=follow_links)

    def work(stop: Stop) -> tuple[str, str | None]:
        ignored = [_path_inside(path, each) for each in ignore_paths]
        protected = file_identities(database_files)
        public_key = read_public_key(os.path.abspath(key) if not isinstance(key, bytes) else key)
        try:
            signed = verify_bundle(bundle or _default_bundle(path), public_key, protected=protected)
            names = list_names(path, signed, ignored_paths=ignored, protected=protected)
            digests = _FileDigests(path, files, meter, signed, protected)
            # Not the model's size: the bundle and the excluded files are not signed.
            meter.adjust_total(sum(digests.size_bytes(name) for name in names), path)
            require_matching_files(signed, {name: digests.digest(name, stop) for name in names})
        except BadSignatureError as error:
            return public_key.fingerprint, error.reason
        return public_key.fingerprint, None

    async with device_lock(await run_in_thread(lambda _: device_of(model.local_path))):
        fingerprint, reason = await run_in_thread(work)
    stored = await save_inspection(catalog, model, _result_columns(fingerprint, reason))
    if stored is None:
        raise FileChangedError(model.local_path, "its record in the catalog was changed")
    return Signature(stored, reason is None, fingerprint, reason)


def _result_columns(fingerprint: str, reason: str | None) -> dict[str, Any]:
    # A reason may contain a file name that is not valid UTF-8.
    detail = reason and reason[:_MAX_DETAIL_CHARACTERS].encode("utf-8", "backslashreplace").decode()
    return {
        "signed_by": fingerprint if reason is None else None,
        "signature_verdict": "valid" if reason is None else "refused",
        "signature_detail": detail,
        "signature_checked_at": datetime.now(UTC),
    }


def _path_inside(root: str, path: str | os.PathLike[str]) -> str:
    """Return a path inside the model with `/`, without `.`, `..` and a slash at the end."""
    text = os.path.normpath(os.path.join(root, path))
    inside = text.removeprefix(os.path.normpath(root).rstrip("/") + "/")
    if inside == text or not inside:
        raise InvalidModelError(
            "ignore_paths", os.fspath(path), "is not inside the model: give a path in its folder"
        )
    return inside


def _signed_path(local_path: str, files: list[FileRecord]) -> str:
    """Return the folder of a set of shards, which is recorded by one shard; else the path."""
    shard = parse_shard_name(os.path.basename(local_path))
    is_set = len(files) > 1 or (shard is not None and shard[1].count > 1)
    if is_set and not _is_folder(local_path):
        return os.path.dirname(local_path) or "."
    return local_path


def _default_bundle(local_path: str) -> str:
    if _is_folder(local_path):
        return os.path.join(local_path, _BUNDLE_NAME)
    return f"{local_path}.sig"


def _is_folder(local_path: str) -> bool:
    """Return whether a path is a folder. Raises OSError if nothing exists there."""
    try:
        return stat.S_ISDIR(stat_path(local_path).st_mode)
    except OSError:
        # A link whose file was lost is still there, and its signature is refused.
        os.lstat(local_path)
        return False


class _FileDigests:
    """The digests of a model's files: the recorded ones if still valid, else read from the disk."""

    def __init__(
        self,
        local_path: str,
        files: list[FileRecord],
        meter: ProgressMeter,
        signed: SignedManifest,
        protected: ProtectedFiles,
    ) -> None:
        self._root = local_path if _is_folder(local_path) else os.path.dirname(local_path)
        self._signed = signed
        self._recorded = {file.path: file for file in files}
        self._meter = meter
        self._protected = protected

    def size_bytes(self, name: str) -> int:
        with refuse_unreadable(name, self._signed):
            return stat_path(os.path.join(self._root, name)).st_size

    def digest(self, name: str, stop: Stop) -> str:
        with refuse_unreadable(name, self._signed):
            return self._digest(name, stop)

    def _digest(self, name: str, stop: Stop) -> str:
        path = os.path.join(self._root, name)
        file = self._recorded.get(name)
        # The recorded fingerprint of a damaged file is not that of its present content.
        if file is not None and not file.is_damaged and file.digest and file.hashed_at:
            found = Fingerprint.from_stat(stat_path(path))
            hashed_at_ns = int(file.hashed_at.timestamp()) * 1_000_000_000
            if str(found) == file.fingerprint and is_settled(found, hashed_at_ns):
                self._meter.add(found.size_bytes, path)
                return file.digest
        return file_digest(path, self._meter.counter(path), stop, protected=self._protected)

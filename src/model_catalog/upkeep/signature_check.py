"""Who signed a model: its bundle held against a key of the caller's, and what came of it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime

from model_catalog.domain.file_record import FileRecord
from model_catalog.errors import BadSignatureError, FileChangedError
from model_catalog.files.digest import file_digest
from model_catalog.files.file_names import parse_shard_name
from model_catalog.files.fingerprint import Fingerprint, is_settled
from model_catalog.files.safe_open import ProtectedFiles, stat_path
from model_catalog.files.signing.public_key import read_public_key
from model_catalog.files.signing.required_files import required_file_paths
from model_catalog.files.signing.signature import require_matching_files, verify_bundle
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.upkeep.worker_threads import (
    Meter,
    OnProgress,
    Stop,
    device_lock,
    device_of,
    file_identities,
    run_in_thread,
)

BUNDLE_NAME = "model.sig"
"""What model-signing calls the bundle in a folder; of a file it is the file's name and `.sig`."""


@dataclass(frozen=True, slots=True)
class Signature:
    """A model as it is recorded now, and whether its signature is the key's and over its files."""

    model: Model
    is_valid: bool
    key_fingerprint: str
    """Of the key that it was held against: `sha256:` and 64 digits, of the DER of the key."""
    reason: str | None
    """Why the signature was refused."""


async def verify_signature(
    catalog: ModelCatalog,
    reference: str,
    provider: str,
    version: str | None = None,
    *,
    key: bytes | str | os.PathLike[str],
    bundle: str | os.PathLike[str] | None = None,
    follow_links: bool = False,
    on_progress: OnProgress | None = None,
) -> Signature:
    """
    Hold a model against a bundle of OpenSSF model-signing, offline, and record what came of it.

    `key` is the signer's public key, a PEM file or its bytes: it comes from the caller, and none
    that lies beside a model is looked at. The bundle is `model.sig` in the model's folder, or the
    file's name and `.sig`, unless another is named; of a set of shards it is the folder's, for what
    is signed is all of them. A file that was read before and is the same
    still is not read again. Links are refused as the signing of them is, unless `follow_links`.

    What is altered, missing, renamed, unsigned, or signed by another key is refused: that is a
    result, and recorded. Raises ModelNotFoundError, InvalidKeyError, NotInstalledError without the
    extra `signing`, FileChangedError, BadLayoutError, ProtectedFileError, and OSError where there
    is no bundle or a file cannot be read.
    """
    model = await catalog.get_model(reference, provider, version)
    files = await catalog.list_files(model.reference, model.provider, model.version)
    database = catalog.database_files
    meter = Meter(on_progress, 0)
    path = await run_in_thread(lambda _: _signed_path(model.local_path, files))

    def hold(stop: Stop) -> tuple[str, str | None]:
        protected = file_identities(database)
        public = read_public_key(os.path.abspath(key) if not isinstance(key, bytes) else key)
        try:
            signed = verify_bundle(bundle or _bundle_of(path), public, protected=protected)
            names = required_file_paths(
                path, signed, follow_links=follow_links, protected=protected
            )
            reading = _Reading(path, files, meter, protected)
            # Not the model's size: the bundle and what was left out are no part of it.
            meter.expect(sum(reading.size_bytes(name) for name in names), path)
            require_matching_files(signed, {name: reading.digest(name, stop) for name in names})
        except BadSignatureError as error:
            return public.fingerprint, error.reason
        return public.fingerprint, None

    async with device_lock(await run_in_thread(lambda _: device_of(model.local_path))):
        fingerprint, reason = await run_in_thread(hold)
    values = {
        "signed_by": fingerprint if reason is None else None,
        "signature_verdict": "valid" if reason is None else "refused",
        "signature_detail": reason and reason[:1000].encode("utf-8", "backslashreplace").decode(),
        "signature_checked_at": datetime.now(UTC),
    }
    stored = await catalog.store_found(model, values)
    if stored is None:
        raise FileChangedError(model.local_path, "its model was recorded anew")
    return Signature(stored, reason is None, fingerprint, reason)


def _signed_path(local_path: str, files: list[FileRecord]) -> str:
    """The folder of a set, which is recorded by one of its shards; else what is recorded."""
    shard = parse_shard_name(os.path.basename(local_path))
    is_set = len(files) > 1 or (shard is not None and shard[1].count > 1)
    if is_set and not stat.S_ISDIR(stat_path(local_path).st_mode):
        return os.path.dirname(local_path) or "."
    return local_path


def _bundle_of(local_path: str) -> str:
    if stat.S_ISDIR(stat_path(local_path).st_mode):
        return os.path.join(local_path, BUNDLE_NAME)
    return f"{local_path}.sig"


class _Reading:
    """The digests of a model's files, read where what is recorded of them is not enough."""

    def __init__(
        self, local_path: str, files: list[FileRecord], meter: Meter, protected: ProtectedFiles
    ) -> None:
        is_folder = stat.S_ISDIR(stat_path(local_path).st_mode)
        self._root = local_path if is_folder else os.path.dirname(local_path)
        self._known = {file.path: file for file in files}
        self._meter = meter
        self._protected = protected

    def size_bytes(self, name: str) -> int:
        return stat_path(os.path.join(self._root, name)).st_size

    def digest(self, name: str, stop: Stop) -> str:
        path = os.path.join(self._root, name)
        known = self._known.get(name)
        # Of damaged files the fingerprint of the bytes that were found is not kept.
        if known is not None and not known.is_damaged and known.digest and known.hashed_at:
            found = Fingerprint.from_stat(stat_path(path))
            read_at_ns = int(known.hashed_at.timestamp()) * 1_000_000_000
            if str(found) == known.fingerprint and is_settled(found, read_at_ns):
                self._meter.add(found.size_bytes, path)
                return known.digest
        return file_digest(path, self._meter.of(path), stop, protected=self._protected)

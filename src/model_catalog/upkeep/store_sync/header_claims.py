"""Read the headers of the models that a scan has found, to record what they claim."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from model_catalog.domain import fields
from model_catalog.files.completeness.evidence import Completeness
from model_catalog.files.completeness.judge import UNKNOWN_FORMAT
from model_catalog.files.file_names import WEIGHT_ROLES, is_index
from model_catalog.files.formats.pickle_format import PICKLE
from model_catalog.files.model_description import (
    ModelDescription,
    describe_files,
    may_be_placeholder,
)
from model_catalog.files.model_files import ModelFile, ModelFiles
from model_catalog.files.safe_open import ProtectedFiles, file_identity, stat_path
from model_catalog.stores.scan_result import FoundModel, StoreFile
from model_catalog.upkeep.inspection import header_claims
from model_catalog.upkeep.worker_threads import Stop


def read_header_claims(
    found: FoundModel, stop: Stop, protected: ProtectedFiles
) -> tuple[dict[str, Any], Completeness, FoundModel]:
    """
    Return the columns `claimed_...` of the headers and config.json, the verdict, and the model.

    The files of the model that are pointers of Git LFS have the digests that these name. No claims
    if no header can be read. Opens only files that are still those that the scan found,
    so that a link which was moved since leads nowhere else. Raises StoppedError.
    """
    to_read = [file for file in found.files if _is_read(file)]
    moved = {file.path for file in to_read if not _is_still_there(found.folder, file)}
    files = tuple(
        ModelFile(file.path, file.size_bytes, file.role, file.identity, file.fingerprint)
        for file in found.files
        if file.path not in moved
    )
    model_files = ModelFiles(found.folder, files, evidence=found.evidence)
    described = describe_files(model_files, stop, protected=protected)
    if any(file.path not in moved and not _is_still_there(found.folder, file) for file in to_read):
        # A link was moved while its file was read. The header may be that of another file.
        return {}, found.completeness, found
    completeness = found.completeness.with_content_of(described.completeness)
    if described.pointers:
        found = replace(found, files=tuple(_with_digest(described, file) for file in found.files))
    if described.header is None:
        return _claims_without_header(found, described), completeness, found
    claims = {
        name: fields.UPDATABLE_FIELDS[name](name, value)
        for name, value in header_claims(described).items()
        if value is not None
    }
    return claims, completeness, found


def _claims_without_header(found: FoundModel, described: ModelDescription) -> dict[str, Any]:
    """Return the columns for a model of which no header could be read."""
    claims: dict[str, Any] = {}
    if found.claims.format == PICKLE:
        # A name such as m.ckpt only suggests a pickle. Its bytes decide.
        claims["claimed_format"] = None
    is_one_file = found.kind == "model" and found.local_path != found.folder
    if is_one_file and described.completeness.unknown == (UNKNOWN_FORMAT,):
        # Many programs have files with endings such as .bin, and nothing else tells of a model.
        claims["claimed_kind"] = "unknown"
    return claims


def _with_digest(described: ModelDescription, file: StoreFile) -> StoreFile:
    """Return a file with the digest that a pointer names, if the store states none."""
    return replace(file, digest=file.digest or described.pointers.get(file.path))


def _is_read(file: StoreFile) -> bool:
    return (
        file.role in WEIGHT_ROLES
        or file.path == "config.json"
        or is_index(file.path)
        or may_be_placeholder(file)
    )


def _is_still_there(folder: str, file: StoreFile) -> bool:
    try:
        return file_identity(stat_path(f"{folder}/{file.path}")) == file.identity
    except OSError:
        return False

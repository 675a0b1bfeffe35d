"""Facts about model files on disk: digests, fingerprints, headers, file lists, signatures."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model_catalog.files.digest import HashedFile, combine_digests, file_digest, hash_file
    from model_catalog.files.file_names import ShardSet, file_role, parse_shard_name
    from model_catalog.files.fingerprint import Fingerprint, file_fingerprint, is_settled
    from model_catalog.files.formats.header import Header
    from model_catalog.files.formats.header_reader import read_header
    from model_catalog.files.model_config import ModelConfig, WeightIndex, read_config, read_index
    from model_catalog.files.model_description import ModelDescription, describe_model
    from model_catalog.files.model_files import (
        ModelFile,
        ModelFiles,
        SkippedFile,
        find_model_files,
    )
    from model_catalog.files.model_kind import Role
    from model_catalog.files.safe_open import ProtectedFiles, StrPath
    from model_catalog.files.signing.public_key import PublicKey, read_public_key
    from model_catalog.files.signing.required_files import required_file_paths
    from model_catalog.files.signing.signature import (
        SignatureDifferences,
        SignedManifest,
        compare_files,
        require_matching_files,
        verify_bundle,
    )

__all__ = [
    "Fingerprint",
    "HashedFile",
    "Header",
    "ModelConfig",
    "ModelDescription",
    "ModelFile",
    "ModelFiles",
    "ProtectedFiles",
    "PublicKey",
    "Role",
    "ShardSet",
    "SignatureDifferences",
    "SignedManifest",
    "SkippedFile",
    "StrPath",
    "WeightIndex",
    "combine_digests",
    "compare_files",
    "describe_model",
    "file_digest",
    "file_fingerprint",
    "file_role",
    "find_model_files",
    "hash_file",
    "is_settled",
    "parse_shard_name",
    "read_config",
    "read_header",
    "read_index",
    "read_public_key",
    "require_matching_files",
    "required_file_paths",
    "verify_bundle",
]

_MODULES = {
    "Fingerprint": "fingerprint",
    "HashedFile": "digest",
    "Header": "formats.header",
    "ModelConfig": "model_config",
    "ModelDescription": "model_description",
    "ModelFile": "model_files",
    "ModelFiles": "model_files",
    "ProtectedFiles": "safe_open",
    "PublicKey": "signing.public_key",
    "Role": "model_kind",
    "ShardSet": "file_names",
    "SignatureDifferences": "signing.signature",
    "SignedManifest": "signing.signature",
    "SkippedFile": "model_files",
    "StrPath": "safe_open",
    "WeightIndex": "model_config",
    "combine_digests": "digest",
    "compare_files": "signing.signature",
    "describe_model": "model_description",
    "file_digest": "digest",
    "file_fingerprint": "fingerprint",
    "file_role": "file_names",
    "find_model_files": "model_files",
    "hash_file": "digest",
    "is_settled": "fingerprint",
    "parse_shard_name": "file_names",
    "read_config": "model_config",
    "read_header": "formats.header_reader",
    "read_index": "model_config",
    "read_public_key": "signing.public_key",
    "require_matching_files": "signing.signature",
    "required_file_paths": "signing.required_files",
    "verify_bundle": "signing.signature",
}


# Each name is imported on first use. The modules of this package import one another, and most
# programs need only some of them: `model_catalog.domain` needs digests, but no header readers.
def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

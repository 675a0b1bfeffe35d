"""
Verify an OpenSSF model-signing bundle with a public key, and compare it with the files found.

The bundle format is Sigstore's (docs.sigstore.dev/about/bundle). It contains a DSSE envelope
(github.com/secure-systems-lab/dsse). The payload of the envelope is an in-toto statement with the
predicate that model-signing 1.x writes. Nothing is requested over a network, and no model file is
read.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import PurePosixPath
from typing import Any, Final

from model_catalog.errors import BadSignatureError, InvalidModelError, shown
from model_catalog.files.formats.json_stream import parse_json
from model_catalog.files.safe_open import (
    ProtectedFiles,
    StrPath,
    file_identity,
    open_regular_file,
)
from model_catalog.files.signing.public_key import PublicKey

MAX_BUNDLE_BYTES: Final = 16 * 1024 * 1024
"""The largest bundle. Each signed file takes about 250 bytes."""
MAX_STATEMENT_VALUES: Final = 200_000
"""The most JSON values in a statement. Each signed file takes four."""
SINGLE_FILE: Final = "."
"""The path that model-signing writes for a single signed file. The file name is not signed."""

_MAX_BUNDLE_VALUES: Final = 1_000
_MAX_LISTED_NAMES: Final = 5
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_FORBIDDEN_CHARACTERS: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters and lone surrogates. JSON can escape the latter, but a signer cannot have
signed a file whose name contains one."""

_BUNDLE_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
_STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"
_OLD_PREDICATE_TYPE: Final = "https://model_signing/Digests/v0.1"


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """
    The content of a bundle whose signature is valid: the key, and the files that are signed.

    `digests` maps a path, with `/`, to `sha256:` and 64 hexadecimal digits, in bundle order. The
    path of a single signed file is SINGLE_FILE. `ignored_paths` are the files and folders that the
    signer left out: the signature does not cover anything at these paths. `identity` is the
    (st_dev, st_ino) of the bundle, which may be in the folder that it signs.
    """

    path: str
    key_fingerprint: str
    digests: Mapping[str, str]
    ignored_paths: frozenset[str]
    identity: tuple[int, int] = field(compare=False, repr=False)

    @property
    def is_single_file(self) -> bool:
        """Whether the bundle signs one file without its name."""
        return SINGLE_FILE in self.digests

    def is_ignored(self, path: str) -> bool:
        """Return whether the signer left out this path inside the model, or a folder above it."""
        return _is_in_any(path, self.ignored_paths)


@dataclass(frozen=True, slots=True)
class SignatureDifferences:
    """
    The differences between the files found and the files signed. Each list is sorted.

    `tampered` have another digest. `renamed` are pairs of the signed path and the path found for
    files with equal digests; these paths are in no other list. The value is false if nothing
    differs, and `str()` describes the differences.
    """

    tampered: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.tampered or self.missing or self.extra or self.renamed)

    def __str__(self) -> str:
        kinds = (
            ("tampered with", map(shown, self.tampered)),
            ("missing", map(shown, self.missing)),
            ("not signed", map(shown, self.extra)),
            ("renamed", (f"{shown(old)} to {shown(new)}" for old, new in self.renamed)),
        )
        return "; ".join(
            f"{kind}: {text}" for kind, names in kinds if (text := _format_names(names))
        )


def verify_bundle(
    path: StrPath, key: PublicKey, *, protected: ProtectedFiles = ()
) -> SignedManifest:
    """
    Verify the signature of a bundle and return its content.

    The files are not compared: call `require_matching_files` for that. The key alone decides the
    algorithm. A key named in the bundle can only cause a refusal. Raises BadSignatureError for a
    bundle that is damaged, altered, signed with another key, or of an unknown kind. Raises
    NotAFileError, ProtectedFileError, and OSError as the system reports it.
    """
    with open_regular_file(path, protected) as file:
        raw = file.read_at(0, MAX_BUNDLE_BYTES + 1)
    try:
        digests, ignored_paths = _parse_statement(_verified_payload(raw, key))
    except _InvalidBundleError as error:
        raise BadSignatureError(file.path, str(error)) from None
    return SignedManifest(
        file.path, key.fingerprint, digests, ignored_paths, file_identity(file.status)
    )


def compare_files(signed: SignedManifest, found: Mapping[str, str]) -> SignatureDifferences:
    """
    Compare the digests of the files found, by path, with the signed ones.

    Ignored paths may be among the files found, and are skipped. The name of a single signed file
    is not compared if exactly one file was found. Raises InvalidModelError for a digest that is
    not `sha256:` and 64 hexadecimal digits.
    """
    for digest in found.values():
        if _DIGEST.fullmatch(digest) is None:
            raise InvalidModelError(
                "digest", digest, "is not a SHA-256: use sha256: and 64 hexadecimal digits"
            )
    actual = {path: digest for path, digest in found.items() if not signed.is_ignored(path)}
    expected = signed.digests
    if signed.is_single_file and len(actual) == 1:
        expected = dict(zip(actual, expected.values(), strict=True))
    missing, extra = expected.keys() - actual.keys(), actual.keys() - expected.keys()
    renamed = () if signed.is_single_file else _match_renamed(missing, expected, extra, actual)
    common = expected.keys() & actual.keys()
    return SignatureDifferences(
        tampered=tuple(sorted(path for path in common if expected[path] != actual[path])),
        missing=tuple(sorted(missing - {old for old, _ in renamed})),
        extra=tuple(sorted(extra - {new for _, new in renamed})),
        renamed=renamed,
    )


def require_matching_files(signed: SignedManifest, found: Mapping[str, str]) -> None:
    """
    Raise BadSignatureError, with the differences, unless the files found are those signed.

    `found` and InvalidModelError are as in `compare_files`.
    """
    if differences := compare_files(signed, found):
        reason = str(differences)
        if SINGLE_FILE in differences.missing:
            reason = f"it signs one file without its name, but {len(found)} files were found"
        raise BadSignatureError(signed.path, reason)


class _InvalidBundleError(Exception):
    """Raised with the reason by functions that do not know the path of the bundle."""


def _verified_payload(raw: bytes, key: PublicKey) -> bytes:
    """Return the payload of a bundle after its signature has been verified."""
    if len(raw) > MAX_BUNDLE_BYTES:
        raise _InvalidBundleError(f"it is larger than {MAX_BUNDLE_BYTES >> 20} MiB")
    match _parse_json(raw, _MAX_BUNDLE_VALUES):
        case {
            "mediaType": str(media_type),
            "verificationMaterial": dict(material),
            "dsseEnvelope": {
                "payloadType": str(payload_type),
                "payload": str(payload),
                "signatures": [{"sig": str(signature)}],
            },
        }:
            pass
        case _:
            raise _InvalidBundleError("it is not a bundle with one signed statement")
    if media_type != _BUNDLE_TYPE:
        raise _InvalidBundleError(f"its media type is {shown(media_type)}, not {_BUNDLE_TYPE}")
    if payload_type != _PAYLOAD_TYPE:
        raise _InvalidBundleError(f"its payload is {shown(payload_type)}, not {_PAYLOAD_TYPE}")
    _check_key_hint(material, key)
    signed = _decode_base64(payload)
    # DSSE's pre-authentication encoding: the lengths separate the type from the payload.
    message = b"DSSEv1 %d %b %d %b" % (
        len(_PAYLOAD_TYPE),
        _PAYLOAD_TYPE.encode(),
        len(signed),
        signed,
    )
    if not key.is_valid_signature(message, _decode_base64(signature)):
        raise _InvalidBundleError(
            f"it is not signed with the key {key.fingerprint}, or it was altered after signing"
        )
    return signed


def _check_key_hint(material: Mapping[str, Any], key: PublicKey) -> None:
    match material:
        case {"publicKey": dict(public_key)}:
            hint = public_key.get("hint")
        case {"certificate": _} | {"x509CertificateChain": _}:
            raise _InvalidBundleError(
                "it is signed with a certificate: only plain keys are supported"
            )
        case _:
            raise _InvalidBundleError("it does not say that it is signed with a key")
    # The first releases of model-signing wrote no hint.
    if hint not in (None, "", key.hint):
        raise _InvalidBundleError(f"it is signed with another key than {key.fingerprint}")


def _parse_statement(payload: bytes) -> tuple[dict[str, str], frozenset[str]]:
    """Return the digests by path and the ignored paths of a statement."""
    statement = _parse_json(payload, MAX_STATEMENT_VALUES)
    match statement:
        case {"_type": str(statement_type), "predicateType": str(predicate_type)}:
            pass
        case _:
            raise _InvalidBundleError("its payload is not an in-toto statement")
    if statement_type != _STATEMENT_TYPE:
        raise _InvalidBundleError(
            f"its statement type is {shown(statement_type)}, not {_STATEMENT_TYPE}"
        )
    if predicate_type == _OLD_PREDICATE_TYPE:
        raise _InvalidBundleError(
            "it was made by a release of model-signing before 1.0: sign the model again"
        )
    if predicate_type != _PREDICATE_TYPE:
        raise _InvalidBundleError(
            f"its predicate type is {shown(predicate_type)}, not {_PREDICATE_TYPE}"
        )
    match statement:
        case {
            "subject": [{"digest": {"sha256": str(root_digest)}}],
            "predicate": {"serialization": dict(serialization), "resources": list(resources)},
        }:
            pass
        case _:
            raise _InvalidBundleError("its statement was not written by model-signing")
    _require_whole_file_sha256(serialization)
    digests = _parse_digests(resources)
    joined = b"".join(bytes.fromhex(digest.removeprefix("sha256:")) for digest in digests.values())
    if hashlib.sha256(joined).hexdigest() != root_digest:
        raise _InvalidBundleError("its root digest does not match the digests of its files")
    return digests, _parse_ignored_paths(serialization.get("ignore_paths", []), digests)


def _require_whole_file_sha256(serialization: Mapping[str, Any]) -> None:
    method, hash_type = serialization.get("method"), serialization.get("hash_type")
    if method != "files":
        raise _InvalidBundleError(
            f"it signs {shown(method)}: only digests of whole files are supported"
        )
    if hash_type != "sha256":
        raise _InvalidBundleError(f"its digests are {shown(hash_type)}: only sha256 is supported")


def _parse_digests(resources: Iterable[object]) -> dict[str, str]:
    digests: dict[str, str] = {}
    for resource in resources:
        match resource:
            case {"name": str(name), "algorithm": "sha256", "digest": str(digest)}:
                digest = f"sha256:{digest}"
            case _:
                raise _InvalidBundleError("one of its files has no name or no SHA-256")
        if _DIGEST.fullmatch(digest) is None:
            raise _InvalidBundleError(f"the digest of {shown(name)} is not a SHA-256")
        if name != SINGLE_FILE and not _is_path_inside_model(name):
            raise _InvalidBundleError(f"it lists {shown(name)}, which is not a path inside a model")
        if name in digests:
            raise _InvalidBundleError(f"it lists {shown(name)} twice")
        digests[name] = digest
    if not digests:
        raise _InvalidBundleError("it signs no files")
    if SINGLE_FILE in digests and len(digests) > 1:
        raise _InvalidBundleError(f"it lists {SINGLE_FILE!r} along with other files")
    return digests


def _parse_ignored_paths(paths: object, digests: Mapping[str, str]) -> frozenset[str]:
    """Return the normalized paths that the signer left out. Paths outside the model are dropped."""
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise _InvalidBundleError("its ignored paths are not a list of texts")
    normalized = {str(PurePosixPath(path)) for path in paths}
    if SINGLE_FILE in normalized:
        raise _InvalidBundleError("it ignores the whole model")
    inside = frozenset(path for path in normalized if _is_path_inside_model(path))
    for name in digests:
        if _is_in_any(name, inside):
            raise _InvalidBundleError(f"it signs {shown(name)} and also ignores it")
    return inside


def _is_in_any(path: str, ancestors: frozenset[str]) -> bool:
    """Return whether a path, or a folder above it, is in a set of paths."""
    return any(prefix in ancestors for prefix in accumulate(path.split("/"), "{}/{}".format))


def _is_path_inside_model(path: str) -> bool:
    """Return whether a path stays inside the model and is in normal form."""
    return _FORBIDDEN_CHARACTERS.search(path) is None and not any(
        part in {"", ".", ".."} for part in path.split("/")
    )


def _match_renamed(
    missing: Iterable[str],
    expected: Mapping[str, str],
    extra: Iterable[str],
    actual: Mapping[str, str],
) -> tuple[tuple[str, str], ...]:
    """Pair missing and extra paths that have equal digests, in path order."""
    paths_by_digest: dict[str, list[str]] = defaultdict(list)
    for path in sorted(extra, reverse=True):
        paths_by_digest[actual[path]].append(path)
    return tuple(
        (path, same.pop()) for path in sorted(missing) if (same := paths_by_digest[expected[path]])
    )


def _format_names(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - _MAX_LISTED_NAMES
    return ", ".join(listed[:_MAX_LISTED_NAMES]) + (f" and {more} more" if more > 0 else "")


def _parse_json(raw: bytes, limit: int) -> Any:
    try:
        return parse_json(raw, limit)
    except ValueError as error:
        raise _InvalidBundleError(str(error)) from None


def _decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise _InvalidBundleError("a part of it is not base64") from None

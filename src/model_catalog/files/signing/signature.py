"""
Who signed a model and over which files: a bundle of OpenSSF model-signing, held against a key.

The bundle is Sigstore's (docs.sigstore.dev/about/bundle), in it a DSSE envelope
(github.com/secure-systems-lab/dsse), in that an in-toto statement whose predicate is
model-signing's, as its 1.x writes it. Nothing is asked of a network, and no model file is read.
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
from model_catalog.files.safe_open import ProtectedFiles, StrPath, file_identity, open_regular_file
from model_catalog.files.signing.public_key import PublicKey

MAX_BUNDLE_BYTES: Final = 16 * 1024 * 1024
"""A signed file takes some 250 bytes of it."""
MAX_STATEMENT_VALUES: Final = 200_000
"""In a statement; a signed file takes four."""
SINGLE_FILE: Final = "."
"""What model-signing lists a file as that was signed by itself; its name is not signed."""

_MAX_BUNDLE_VALUES: Final = 1_000
_MAX_LISTED_NAMES: Final = 5
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_FORBIDDEN_CHARACTERS: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, and what JSON may escape and no name on a disk can be signed with."""

_BUNDLE_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
_STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"
_OLD_PREDICATE_TYPE: Final = "https://model_signing/Digests/v0.1"


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """
    What a bundle says, its signature proven: by which key, over which files.

    `digests` are `sha256:` and 64 hexadecimal digits by path, with `/`, in the order of the
    bundle; a file that was signed by itself is SINGLE_FILE. `left_out` are the files and folders
    that the signer left out: whatever is or comes there, the signature says nothing of it.
    """

    path: str
    key_fingerprint: str
    digests: Mapping[str, str]
    ignored_paths: frozenset[str]
    identity: tuple[int, int] = field(compare=False, repr=False)
    """The (st_dev, st_ino) of the bundle, which may lie in the folder it is over."""

    @property
    def is_single_file(self) -> bool:
        return SINGLE_FILE in self.digests

    def is_ignored(self, path: str) -> bool:
        """Whether the signer left this path inside the model out, or a folder that it lies in."""
        return _is_in_any(path, self.ignored_paths)


@dataclass(frozen=True, slots=True)
class SignatureDifferences:
    """
    Where the files found are not those signed, each list sorted; what is renamed is in it alone.

    `renamed` are pairs of the path signed and the path found: the digest is the same.
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
            ("renamed", (f"{shown(was)} to {shown(found)}" for was, found in self.renamed)),
        )
        return "; ".join(
            f"{kind}: {text}" for kind, names in kinds if (text := _format_names(names))
        )


def verify_bundle(
    path: StrPath, key: PublicKey, *, protected: ProtectedFiles = ()
) -> SignedManifest:
    """
    What a bundle says, if it is the key's; which files are there is for `require_same` to hold.

    The key alone decides the algorithm: whatever the bundle says of keys is at most a reason to
    refuse it. Raises BadSignatureError for a bundle that is damaged, altered, another key's or of
    a kind that is not known, NotAFileError, ProtectedFileError, and OSError as the system gave it.
    """
    with open_regular_file(path, protected) as file:
        raw = file.read_at(0, MAX_BUNDLE_BYTES + 1)
    try:
        digests, left_out = _parse_statement(_verified_payload(raw, key))
    except _InvalidBundleError as refused:
        raise BadSignatureError(file.path, str(refused)) from None
    return SignedManifest(file.path, key.fingerprint, digests, left_out, file_identity(file.status))


def compare_files(signed: SignedManifest, found: Mapping[str, str]) -> SignatureDifferences:
    """
    Where the files found, their digests by path, are not those signed.

    What the signer left out may be among them and is passed over. A file that was signed by
    itself may have any name: if one file was found, it is that one. Raises InvalidModelError for
    a digest that is not written as `sha256:` and 64 hexadecimal digits.
    """
    for digest in found.values():
        if _DIGEST.fullmatch(digest) is None:
            raise InvalidModelError("digest", digest, "is no SHA-256: give sha256:, then 64 digits")
    there = {path: digest for path, digest in found.items() if not signed.is_ignored(path)}
    wanted = signed.digests
    if signed.is_single_file and len(there) == 1:
        wanted = dict(zip(there, wanted.values(), strict=True))
    missing, extra = wanted.keys() - there.keys(), there.keys() - wanted.keys()
    renamed = () if signed.is_single_file else _match_renamed(missing, wanted, extra, there)
    return SignatureDifferences(
        tampered=tuple(sorted(p for p in wanted.keys() & there.keys() if wanted[p] != there[p])),
        missing=tuple(sorted(missing - {was for was, _ in renamed})),
        extra=tuple(sorted(extra - {became for _, became in renamed})),
        renamed=renamed,
    )


def require_matching_files(signed: SignedManifest, found: Mapping[str, str]) -> None:
    """
    Raise BadSignatureError, with their names, unless the files found are exactly those signed.

    `found` and the other error are as for `differences`.
    """
    if differing := compare_files(signed, found):
        reason = str(differing)
        if SINGLE_FILE in differing.missing:
            reason = f"it is of one file, which was signed by itself, and {len(found)} were found"
        raise BadSignatureError(signed.path, reason)


class _InvalidBundleError(Exception):
    """What is wrong with a bundle, where its path is not known."""


def _verified_payload(raw: bytes, key: PublicKey) -> bytes:
    """The bytes in a bundle that the key's owner has signed."""
    if len(raw) > MAX_BUNDLE_BYTES:
        raise _InvalidBundleError(f"it is longer than {MAX_BUNDLE_BYTES >> 20} MiB")
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
            raise _InvalidBundleError("it is no bundle of one signed statement")
    if media_type != _BUNDLE_TYPE:
        raise _InvalidBundleError(f"it is of the type {shown(media_type)}, not {_BUNDLE_TYPE}")
    if payload_type != _PAYLOAD_TYPE:
        raise _InvalidBundleError(f"it holds a {shown(payload_type)}, not a {_PAYLOAD_TYPE}")
    _check_key_hint(material, key)
    signed = _decode_base64(payload)
    # DSSE's pre-authentication encoding: the lengths keep the type from running into the payload.
    message = b"DSSEv1 %d %b %d %b" % (
        len(_PAYLOAD_TYPE),
        _PAYLOAD_TYPE.encode(),
        len(signed),
        signed,
    )
    if not key.is_valid_signature(message, _decode_base64(signature)):
        raise _InvalidBundleError(
            f"the key {key.fingerprint} has not signed it: another has, or it was altered since"
        )
    return signed


def _check_key_hint(material: Mapping[str, Any], key: PublicKey) -> None:
    match material:
        case {"publicKey": dict(named)}:
            hint = named.get("hint")
        case {"certificate": _} | {"x509CertificateChain": _}:
            raise _InvalidBundleError(
                "it is signed with a certificate, and only plain keys are known"
            )
        case _:
            raise _InvalidBundleError("it does not say that it is signed with a key")
    # The first releases of model-signing wrote none.
    if hint not in (None, "", key.hint):
        raise _InvalidBundleError(f"it is signed with another key than {key.fingerprint}")


def _parse_statement(payload: bytes) -> tuple[dict[str, str], frozenset[str]]:
    """The digests that a statement lists, and what it leaves out."""
    statement = _parse_json(payload, MAX_STATEMENT_VALUES)
    match statement:
        case {"_type": str(kind), "predicateType": str(predicate_type)}:
            pass
        case _:
            raise _InvalidBundleError("what is signed in it is no statement")
    if kind != _STATEMENT_TYPE:
        raise _InvalidBundleError(
            f"its statement is of the type {shown(kind)}, not {_STATEMENT_TYPE}"
        )
    if predicate_type == _OLD_PREDICATE_TYPE:
        raise _InvalidBundleError("it was made by a model-signing before 1.0: have it signed again")
    if predicate_type != _PREDICATE_TYPE:
        raise _InvalidBundleError(f"it states a {shown(predicate_type)}, not a {_PREDICATE_TYPE}")
    match statement:
        case {
            "subject": [{"digest": {"sha256": str(root)}}],
            "predicate": {"serialization": dict(serialization), "resources": list(resources)},
        }:
            pass
        case _:
            raise _InvalidBundleError("its statement is not one of model-signing's")
    _require_whole_file_sha256(serialization)
    digests = _parse_digests(resources)
    joined = b"".join(bytes.fromhex(digest.removeprefix("sha256:")) for digest in digests.values())
    if hashlib.sha256(joined).hexdigest() != root:
        raise _InvalidBundleError("the digest of all its files is not that of those it lists")
    return digests, _parse_ignored_paths(serialization.get("ignore_paths", []), digests)


def _require_whole_file_sha256(serialization: Mapping[str, Any]) -> None:
    method, hash_type = serialization.get("method"), serialization.get("hash_type")
    if method != "files":
        raise _InvalidBundleError(
            f"it is over {shown(method)}, and only digests of whole files can be compared"
        )
    if hash_type != "sha256":
        raise _InvalidBundleError(
            f"its digests are {shown(hash_type)}, and only sha256 can be compared"
        )


def _parse_digests(resources: Iterable[object]) -> dict[str, str]:
    digests: dict[str, str] = {}
    for resource in resources:
        match resource:
            case {"name": str(name), "algorithm": "sha256", "digest": str(digest)}:
                digest = f"sha256:{digest}"
            case _:
                raise _InvalidBundleError("a file in it has no name and SHA-256")
        if _DIGEST.fullmatch(digest) is None:
            raise _InvalidBundleError(f"the digest of {shown(name)} in it is no SHA-256")
        if name != SINGLE_FILE and not _is_path_inside_model(name):
            raise _InvalidBundleError(f"it names {shown(name)}, which is no path inside a model")
        if name in digests:
            raise _InvalidBundleError(f"it names {shown(name)} twice")
        digests[name] = digest
    if not digests:
        raise _InvalidBundleError("it is over no files")
    if SINGLE_FILE in digests and len(digests) > 1:
        raise _InvalidBundleError(f"it names {SINGLE_FILE!r} beside other files")
    return digests


def _parse_ignored_paths(paths: object, digests: Mapping[str, str]) -> frozenset[str]:
    """What the signer left out; paths that lead out of the model leave nothing out."""
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise _InvalidBundleError("what it leaves out is no list of paths")
    normal = {str(PurePosixPath(path)) for path in paths}
    if SINGLE_FILE in normal:
        raise _InvalidBundleError("it leaves the whole model out")
    inside = frozenset(path for path in normal if _is_path_inside_model(path))
    for name in digests:
        if _is_in_any(name, inside):
            raise _InvalidBundleError(f"it signs {shown(name)}, and leaves it out")
    return inside


def _is_in_any(path: str, places: frozenset[str]) -> bool:
    """Whether the path, or a folder that it lies in, is one of these."""
    return any(way in places for way in accumulate(path.split("/"), "{}/{}".format))


def _is_path_inside_model(path: str) -> bool:
    """Whether this is a path inside a model, written in the one way there is."""
    return _FORBIDDEN_CHARACTERS.search(path) is None and not any(
        part in {"", ".", ".."} for part in path.split("/")
    )


def _match_renamed(
    missing: Iterable[str],
    wanted: Mapping[str, str],
    extra: Iterable[str],
    there: Mapping[str, str],
) -> tuple[tuple[str, str], ...]:
    names: dict[str, list[str]] = defaultdict(list)
    for path in sorted(extra, reverse=True):
        names[there[path]].append(path)
    return tuple((path, same.pop()) for path in sorted(missing) if (same := names[wanted[path]]))


def _format_names(names: Iterable[str]) -> str:
    found = list(names)
    more = len(found) - _MAX_LISTED_NAMES
    return ", ".join(found[:_MAX_LISTED_NAMES]) + (f" and {more} more" if more > 0 else "")


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

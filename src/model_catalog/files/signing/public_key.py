"""
Public keys for signature verification. The caller supplies the key.

A key that comes with a model is never used: an attacker who alters the model can replace it.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from model_catalog.errors import InvalidKeyError, NotInstalledError
from model_catalog.files.safe_open import ProtectedFiles, StrPath, open_regular_file

# cryptography is an optional dependency and slow to import. It is imported inside the functions
# that need it.
if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

MAX_KEY_BYTES: Final = 64 * 1024

_CURVE_HASHES: Final = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
"""The hash that model-signing uses for a key on each curve, by the names in cryptography."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """
    An elliptic-curve public key for verifying signatures.

    `fingerprint` is `sha256:` and 64 hexadecimal digits: the digest of the DER
    SubjectPublicKeyInfo, as `openssl pkey -pubin -outform DER | sha256sum` prints it. `hint` is
    the digest of the PEM form, without `sha256:`. model-signing writes it into each bundle that is
    signed with the key.
    """

    fingerprint: str
    hint: str
    _key: EllipticCurvePublicKey = field(compare=False, repr=False)

    def is_valid_signature(self, message: bytes, signature: bytes) -> bool:
        """Return whether a signature is valid: ECDSA with the hash that belongs to the curve."""
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - see above
        from cryptography.hazmat.primitives import hashes  # noqa: PLC0415 - see above
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - see above

        algorithm: hashes.HashAlgorithm = getattr(hashes, _CURVE_HASHES[self._key.curve.name])()
        try:
            self._key.verify(signature, message, ec.ECDSA(algorithm))
        except InvalidSignature:
            return False
        return True


def read_public_key(pem: bytes | StrPath, *, protected: ProtectedFiles = ()) -> PublicKey:
    """
    Read the public key in a PEM file, or in PEM passed as bytes.

    Raises InvalidKeyError for anything but an EC key on P-256, P-384 or P-521. Raises
    NotInstalledError without the extra `signing`, NotAFileError, ProtectedFileError, and OSError
    as the system reports it.
    """
    if isinstance(pem, bytes):
        return _load_pem(pem, "the given PEM")
    with open_regular_file(pem, protected) as file:
        return _load_pem(file.read_at(0, MAX_KEY_BYTES + 1), repr(os.fspath(pem)))


def _load_pem(pem: bytes, source: str) -> PublicKey:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - see above
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - see above
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - see above
    except ImportError as error:
        raise NotInstalledError("cryptography", "signing") from error

    if len(pem) > MAX_KEY_BYTES:
        raise InvalidKeyError(source, f"it is larger than {MAX_KEY_BYTES >> 10} KiB")
    if b"PRIVATE KEY-----" in pem:
        raise InvalidKeyError(source, "it contains a private key, which only its owner should have")
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidKeyError(source, "it contains no readable public key") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InvalidKeyError(source, "it is not an EC key")
    if key.curve.name not in _CURVE_HASHES:
        raise InvalidKeyError(source, f"it is on the curve {key.curve.name}")

    form = serialization.PublicFormat.SubjectPublicKeyInfo
    der = key.public_bytes(serialization.Encoding.DER, form)
    canonical_pem = key.public_bytes(serialization.Encoding.PEM, form)
    return PublicKey(
        "sha256:" + hashlib.sha256(der).hexdigest(), hashlib.sha256(canonical_pem).hexdigest(), key
    )

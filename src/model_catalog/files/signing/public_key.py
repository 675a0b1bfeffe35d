"""The public key that a signature is held against: the caller's own, none that a model brings."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from model_catalog.errors import InvalidKeyError, NotInstalledError
from model_catalog.files.safe_open import ProtectedFiles, StrPath, open_regular_file

# cryptography takes its time to import and may not be there: no module of ours imports it.
if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

MAX_KEY_BYTES: Final = 64 * 1024

_CURVE_HASHES: Final = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
"""What model-signing hashes for a key on each curve, as cryptography calls both."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """
    An EC key to verify with.

    `fingerprint` is `sha256:` and 64 hexadecimal digits, of the DER SubjectPublicKeyInfo as
    `openssl pkey -pubin -outform DER | sha256sum` gives it. `hint` is what model-signing writes
    into a bundle of this key: the same of the PEM, without `sha256:`.
    """

    fingerprint: str
    hint: str
    _key: EllipticCurvePublicKey = field(compare=False, repr=False)

    def is_valid_signature(self, message: bytes, signature: bytes) -> bool:
        """Whether this is the key's ECDSA signature, with the hash that belongs to its curve."""
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
    The public key in a PEM file, or in PEM given as bytes.

    Raises InvalidKeyError for anything but an EC key on P-256, P-384 or P-521, NotInstalledError
    without the extra `signing`, NotAFileError, ProtectedFileError, and OSError as the system
    gave it.
    """
    if isinstance(pem, bytes):
        return _load_pem(pem, "what was given")
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
        raise InvalidKeyError(source, f"it is longer than {MAX_KEY_BYTES >> 10} KiB")
    if b"PRIVATE KEY-----" in pem:
        raise InvalidKeyError(source, "it holds a private key, which nobody but its owner needs")
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidKeyError(source, "there is no public key in it that can be read") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InvalidKeyError(source, "it is of another kind than EC")
    if key.curve.name not in _CURVE_HASHES:
        raise InvalidKeyError(source, f"it is on the curve {key.curve.name}")

    form = serialization.PublicFormat.SubjectPublicKeyInfo
    der = key.public_bytes(serialization.Encoding.DER, form)
    canonical_pem = key.public_bytes(serialization.Encoding.PEM, form)
    return PublicKey(
        "sha256:" + hashlib.sha256(der).hexdigest(), hashlib.sha256(canonical_pem).hexdigest(), key
    )

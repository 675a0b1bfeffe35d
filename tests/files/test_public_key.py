"""Which keys are accepted for signature verification."""

import base64
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from signed_bundles import digest, pem, private_key, private_pem

from model_catalog import InvalidKeyError, NotInstalledError
from model_catalog.files.signing.public_key import read_public_key

PRIVATE = private_key()
KEY = read_public_key(pem(PRIVATE))


def test_a_key_is_read_from_a_file_or_from_bytes(tmp_path):
    """
    Both give an equal key, with the fingerprint that openssl prints.
    """
    path = tmp_path / "key.pub"
    path.write_bytes(b"a comment\n" + pem(PRIVATE))

    assert read_public_key(path) == read_public_key(str(path)) == KEY
    body = b"".join(pem(PRIVATE).splitlines()[1:-1])
    assert KEY.fingerprint == digest(base64.b64decode(body))


@pytest.mark.parametrize(
    ("reason", "content"),
    [
        ("no readable public key", b""),
        ("no readable public key", b"ssh-ed25519 AAAA"),
        ("no readable public key", pem(PRIVATE)[:-40]),
        ("no readable public key", pem(PRIVATE, serialization.Encoding.DER)),
        ("no readable public key", pem(PRIVATE).replace(b"M", b"N", 1)),
        ("private key", private_pem(PRIVATE)),
        ("not an EC key", pem(ed25519.Ed25519PrivateKey.generate())),
        ("not an EC key", pem(rsa.generate_private_key(65537, 2048))),
        ("the curve secp256k1", pem(private_key(ec.SECP256K1()))),
        ("the curve secp224r1", pem(private_key(ec.SECP224R1()))),
        ("larger than 64 KiB", b" " * 65_537),
    ],
    # The keys differ in each process, but the name of a test must not.
    ids=[
        "empty",
        "SSH key",
        "truncated",
        "DER",
        "changed character",
        "private key",
        "Ed25519",
        "RSA",
        "secp256k1",
        "secp224r1",
        "too long",
    ],
)
def test_anything_but_an_ec_public_key_is_refused(tmp_path, reason, content):
    """
    The error says which key is needed, and names the file if there is one.
    """
    path = tmp_path / "key.pub"
    path.write_bytes(content)
    with pytest.raises(InvalidKeyError, match=reason) as caught:
        read_public_key(path)
    assert caught.value.source == repr(str(path))
    with pytest.raises(InvalidKeyError, match=r"(?s)the given PEM.*P-256, P-384 or P-521"):
        read_public_key(content)


def test_without_cryptography_the_error_says_what_to_install():
    """
    The signing modules can be imported without cryptography.
    """
    script = (
        "import sys\n"
        "sys.modules['cryptography'] = None\n"
        "from model_catalog import NotInstalledError\n"
        "from model_catalog.files.signing import public_key, required_files, signature\n"
        "try: public_key.read_public_key(b'')\n"
        "except NotInstalledError as error: print(error, error.extra, sep='|')\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout
    assert output == (
        "cryptography is not installed: pip install 'model-catalog[signing]'|signing\n"
    )
    assert NotInstalledError("x", "y").package == "x"

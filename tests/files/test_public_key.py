"""Which keys a signature may be held against."""

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
    Both are one key, which is told by the fingerprint that openssl gives.
    """
    path = tmp_path / "key.pub"
    path.write_bytes(b"a comment\n" + pem(PRIVATE))

    assert read_public_key(path) == read_public_key(str(path)) == KEY
    body = b"".join(pem(PRIVATE).splitlines()[1:-1])
    assert KEY.fingerprint == digest(base64.b64decode(body))


@pytest.mark.parametrize(
    ("reason", "content"),
    [
        ("no public key", b""),
        ("no public key", b"ssh-ed25519 AAAA"),
        ("no public key", pem(PRIVATE)[:-40]),
        ("no public key", pem(PRIVATE, serialization.Encoding.DER)),
        ("no public key", pem(PRIVATE).replace(b"M", b"N", 1)),
        ("private key", private_pem(PRIVATE)),
        ("another kind than EC", pem(ed25519.Ed25519PrivateKey.generate())),
        ("another kind than EC", pem(rsa.generate_private_key(65537, 2048))),
        ("the curve secp256k1", pem(private_key(ec.SECP256K1()))),
        ("the curve secp224r1", pem(private_key(ec.SECP224R1()))),
        ("longer than 64 KiB", b" " * 65_537),
    ],
    # The keys are made anew in each process, and a test has to have one name in all.
    ids=[
        "nothing",
        "of ssh",
        "cut off",
        "DER",
        "another letter",
        "private",
        "Ed25519",
        "RSA",
        "secp256k1",
        "secp224r1",
        "long",
    ],
)
def test_what_is_no_ec_public_key_is_refused(tmp_path, reason, content):
    """
    It says which key is wanted, and names the file where there is one.
    """
    path = tmp_path / "key.pub"
    path.write_bytes(content)
    with pytest.raises(InvalidKeyError, match=reason) as caught:
        read_public_key(path)
    assert caught.value.source == repr(str(path))
    with pytest.raises(InvalidKeyError, match=r"(?s)what was given.*P-256, P-384 or P-521"):
        read_public_key(content)


def test_without_the_package_it_says_what_to_install():
    """
    The rooms can be imported without cryptography, and do not import it.
    """
    script = (
        "import sys\n"
        "sys.modules['cryptography'] = None\n"
        "from model_catalog import NotInstalledError\n"
        "from model_catalog.files.signing import public_key, required_files, signature\n"
        "try: public_key.read_public_key(b'')\n"
        "except NotInstalledError as error: print(error, error.extra, sep='|')\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout
    assert told == ("cryptography is not installed: pip install 'model-catalog[signing]'|signing\n")
    assert NotInstalledError("x", "y").package == "x"

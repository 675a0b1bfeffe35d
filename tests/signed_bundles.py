"""Signature bundles in the format of model-signing, valid and invalid, made with `cryptography`."""

import base64
import hashlib
import json

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PAYLOAD_TYPE = "application/vnd.in-toto+json"
IGNORED_PATHS = [".git", ".github", ".gitignore", ".gitattributes", "model.sig"]
HASHES = {256: hashes.SHA256, 384: hashes.SHA384, 521: hashes.SHA512}


def private_key(curve=None):
    return ec.generate_private_key(curve or ec.SECP256R1())


def pem(private, encoding=serialization.Encoding.PEM):
    return private.public_key().public_bytes(
        encoding, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def private_pem(private):
    return private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def digests(**files):
    """Return the digests of contents by file name; `__` in a keyword stands for `.`."""
    return {name.replace("__", "."): digest(content) for name, content in files.items()}


def resource(name, value):
    return {"name": name, "algorithm": "sha256", "digest": value.removeprefix("sha256:")}


def root_of(resources):
    joined = b"".join(bytes.fromhex(each["digest"]) for each in resources)
    return hashlib.sha256(joined).hexdigest()


def statement(found, *, resources=None, root=None, **serialization_changes):
    """Return the statement that model-signing writes for files with these digests."""
    resources = [resource(*each) for each in found.items()] if resources is None else resources
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "m", "digest": {"sha256": root or root_of(resources)}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": IGNORED_PATHS,
                **serialization_changes,
            },
            "resources": resources,
        },
    }


def sign(private, payload, algorithm=None, payload_type=PAYLOAD_TYPE):
    pae = f"DSSEv1 {len(payload_type)} {payload_type} {len(payload)} ".encode() + payload
    return private.sign(pae, ec.ECDSA(algorithm or HASHES[private.key_size]()))


def envelope(private, payload, **signing):
    """Return a bundle with this payload, before its conversion to JSON."""
    return {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {
            "publicKey": {"hint": hashlib.sha256(pem(private)).hexdigest()},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [
                {"sig": base64.b64encode(sign(private, payload, **signing)).decode(), "keyid": ""}
            ],
        },
    }


def bundle(private, stated):
    """Return the bytes of a bundle for a statement, or for a payload of bytes."""
    payload = stated if isinstance(stated, bytes) else json.dumps(stated).encode()
    return json.dumps(envelope(private, payload)).encode()

"""Certificates of an authority, of a server and of a client, for encrypted connections."""

import datetime as dt
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """An authority with a certificate of its own; `text` is that certificate."""

    def __init__(self):
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("authority of a test")
        certificate = _builder(self._name, self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.text = _text(certificate.sign(self._key, hashes.SHA256()))

    def issue(self, name, *addresses):
        """Return a certificate for a name and addresses, and its private key, as texts."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName(name)]
        names += [x509.IPAddress(ipaddress.ip_address(each)) for each in addresses]
        certificate = _builder(_name(name), self._name, key).add_extension(
            x509.SubjectAlternativeName(names), critical=False
        )
        return _text(certificate.sign(self._key, hashes.SHA256())), key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode()


def _name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject, issuer, key):
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
    )


def _text(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM).decode()

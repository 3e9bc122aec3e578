"""Certificates of the API's listeners, for programs that know names and authorities.

The mesh has no use for them: nodes are their keys (`identity.tls`). A key of curve P-256, since
browsers and many HTTP libraries take no Ed25519 certificate.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from swarmd.base.errors import ConfigError

_LASTS: Final = datetime.timedelta(days=3650)
_HTTP: Final = "http/1.1"


def make_api_certificate(names: Sequence[str], addresses: Sequence[str]) -> tuple[bytes, bytes]:
    """A certificate that vouches for itself, and its key, both PEM. It is good for ten years."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "swarmd API")])
    alternatives: list[x509.GeneralName] = [x509.DNSName(one) for one in names if one.isascii()]
    alternatives += [x509.IPAddress(ipaddress.ip_address(one)) for one in addresses]
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + _LASTS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(key, hashes.SHA256())
    )
    raw_key = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return certificate.public_bytes(serialization.Encoding.PEM), raw_key


def api_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """What a listener speaks: TLS 1.3, HTTP/1.1, no client certificates.

    Raises:
        ConfigError: the files are missing, unreadable, or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([_HTTP])
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        why = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigError(
            f"cannot use {certificate} and {key} for TLS ({why}): see gateway.tls_certificate "
            "and gateway.tls_key"
        ) from error
    return context


def _no_password() -> str:
    """Nobody is there to type one."""
    raise ConfigError("gateway.tls_key is encrypted: give a key file without a pass phrase")


def fingerprint_of(certificate: Path) -> str:
    """SHA-256 of the first certificate of a PEM file, in hex. Raises ConfigError."""
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{certificate} holds no certificate that can be read") from error
    return found.fingerprint(hashes.SHA256()).hex()

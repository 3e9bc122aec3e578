"""HTTP over TLS, with the standard library alone: a command must start fast.

Whom a client talks to is settled before a credential is sent: by the one certificate that it
was told, or by the authorities that this machine trusts and the server's name.
"""

from __future__ import annotations

import hashlib
import http.client
import socket
import ssl
from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

from swarmd.base.errors import BadRequest, Untrusted

SCHEME: Final = "https://"
# To connect, and to shake hands; a host that is gone answers nothing.
CONNECT_S: Final = 5.0
_FINGERPRINT_CHARS: Final = 64


def read_fingerprints(text: str) -> frozenset[str]:
    """SHA-256s in hex, with or without colons, divided by commas. Raises BadRequest."""
    found = frozenset(one.replace(":", "").strip().lower() for one in text.split(",") if text)
    for one in found:
        if len(one) != _FINGERPRINT_CHARS or not set(one) <= set("0123456789abcdef"):
            raise BadRequest(
                f"a certificate's fingerprint has {_FINGERPRINT_CHARS} hex digits (SHA-256); "
                "`swarmctl status` on that host shows it"
            )
    return found


def read_url(url: str) -> tuple[str, int]:
    """Host and port of `https://host:port`. Raises BadRequest."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadRequest(f"{url!r} is no address of a daemon: {error}") from error
    if not host or port is None or parts.path not in ("", "/") or parts.query or parts.username:
        raise BadRequest(f"{url!r} is no address of a daemon: expected like https://host:7580")
    return host, port


class TlsConnection(http.client.HTTPSConnection):
    """HTTP over TLS 1.3. `sent` tells whether any byte of a request may have reached the daemon.

    Args:
        fingerprints: SHA-256 in hex of certificates, of which the server must show one; none:
            the authorities that this machine trusts, and the name.
    """

    def __init__(self, url: str, timeout_s: float, fingerprints: Collection[str] = ()) -> None:
        host, port = read_url(url)
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if fingerprints:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        super().__init__(host, port, timeout=min(timeout_s, CONNECT_S), context=context)
        self._url = url
        self._timeout_s = timeout_s
        self._fingerprints = fingerprints
        self.sent = False

    def connect(self) -> None:
        """Raises Untrusted: it is another server than was meant. Nothing was sent to it."""
        try:
            super().connect()
        except ssl.SSLCertVerificationError as error:
            raise Untrusted(
                f"the certificate of {self._url} is not trusted here ({error.verify_message}): "
                "name it with --fingerprint, as `swarmctl status` on that host shows it"
            ) from error
        assert isinstance(self.sock, ssl.SSLSocket)
        der = self.sock.getpeercert(binary_form=True) or b""
        found = hashlib.sha256(der).hexdigest()
        if self._fingerprints and found not in self._fingerprints:
            self.close()
            raise Untrusted(
                f"the certificate of {self._url} is not the one that was named: it has the "
                f"fingerprint {found}"
            )
        self.sock.settimeout(self._timeout_s)
        self.sent = True


def connect(url: str, timeout_s: float, fingerprints: Collection[str]) -> socket.socket:
    """A connected socket of its own. Raises OSError, Untrusted."""
    connection = TlsConnection(url, timeout_s, fingerprints)
    connection.connect()
    taken: socket.socket = connection.sock
    connection.sock = None
    return taken

"""HTTP over a unix socket, with the standard library alone: a command must start fast."""

from __future__ import annotations

import http.client
import socket


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket. `sent` tells whether any byte may have reached the daemon."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self.sent = False

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
        self.sent = True


def why_broken(error: Exception) -> str:
    """Why a connection could not be made or broke, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "no such socket"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(error, PermissionError):
        return "permission denied: see gateway.socket_group"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "the connection broke"

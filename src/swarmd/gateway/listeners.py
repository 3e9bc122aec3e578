"""Sockets that the gateway listens on, and TLS where other hosts come in."""

from __future__ import annotations

import errno
import grp
import os
import socket
import ssl
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

from swarmd.base.errors import ConfigError, DataFolderRefused, PortTaken
from swarmd.base.files import write_atomically
from swarmd.base.sealed_file import Sealer, open_file, seal_file
from swarmd.identity.certificates import api_context, fingerprint_of, make_api_certificate
from swarmd.observe.log import get_logger

_BACKLOG: Final = 128
_PROBE_TIMEOUT_S: Final = 1.0
_SOCKET_MODE: Final = 0o660
ROOM: Final = "gateway"
_CERTIFICATE: Final = "tls.crt"
_KEY: Final = "tls.key"

log = get_logger("gateway")


def open_socket(path: Path, group: str = "") -> socket.socket:
    """A listening unix socket of mode 0660 at `path`; what a dead daemon left is replaced.

    Raises:
        DataFolderRefused: a living daemon answers there.
        ConfigError: the folder or the group is the problem; the message names the setting.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        _remove_stale(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Between bind and chmod nobody may slip in: the umask makes it private from the start.
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        if group:
            os.chown(path, -1, _group_id(group))
        path.chmod(_SOCKET_MODE)
        listener.listen(_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot make the socket {path}: {error.strerror or error}; choose another with "
            "gateway.socket (--socket)"
        ) from error
    return listener


def _remove_stale(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} exists and is not a socket: choose another gateway.socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except TimeoutError:
            pass  # Somebody listens who is too busy to accept.
    raise DataFolderRefused(
        f"another swarmd is running: it answers at {path}; end it with `swarmctl stop`, or give "
        "this one its own gateway.socket, mesh.port and node.data_folder"
    )


def _group_id(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise ConfigError(f"gateway.socket_group = {group!r}: there is no such group") from error


def open_loopback(port: int) -> socket.socket:
    """A listening socket on 127.0.0.1. Raises PortTaken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        raise PortTaken(
            f"port {port} on 127.0.0.1 is taken: set another gateway.tcp_port, or 0 for none"
        ) from error
    listener.listen(_BACKLOG)
    return listener


def open_remote(listen: str) -> socket.socket:
    """A listening socket at `host:port`, as `gateway.listen` has it.

    Raises:
        PortTaken: another program listens there.
        ConfigError: this host has no such address.
    """
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        listener.bind((host, int(port)))
        listener.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise PortTaken(f"gateway.listen: {listen} is taken: choose another port") from error
        why = error.strerror if isinstance(error, OSError) else "no such port"
        raise ConfigError(f"gateway.listen: cannot listen at {listen}: {why}") from error
    return listener


# ---- TLS ------------------------------------------------------------------------------


class TlsFiles:
    """The certificate and key of the listeners; files that were replaced are taken at once.

    New connections get what the files hold now; those that are open go on. Files that cannot be
    used leave what was in use before, and are named in the log.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._paths = (certificate, key)
        self._seen = self._stamp()
        self._context = api_context(certificate, key)
        self._fingerprint = fingerprint_of(certificate)

    def fingerprint(self) -> str:
        """Of the certificate that the next connection is shown."""
        self.context()
        return self._fingerprint

    def context(self) -> ssl.SSLContext:
        """For the next connection."""
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._context = api_context(*self._paths)
                self._fingerprint = fingerprint_of(self._paths[0])
                log.info("the certificate of the API was replaced", file=str(self._paths[0]))
            except ConfigError as error:
                log.error("the certificate of the API was not replaced", error=error.message)
        return self._context

    def _stamp(self) -> tuple[tuple[int, int, int], ...]:
        try:
            found = [path.stat() for path in self._paths]
        except OSError:
            return ()
        return tuple((one.st_mtime_ns, one.st_ino, one.st_size) for one in found)


def open_tls(
    certificate: str,
    key: str,
    data_folder: Path,
    names: Sequence[str],
    sealer: Sealer | None = None,
) -> TlsFiles:
    """The files that the settings name, or ones that this node makes and keeps.

    Args:
        sealer: of the data folder, if it is sealed; then what the TLS library reads is in memory.

    Raises:
        ConfigError: one of two settings is given, or the files cannot be used.
        CorruptFile: what this node keeps is damaged.
    """
    if bool(certificate) != bool(key):
        raise ConfigError("gateway.tls_certificate and gateway.tls_key go together: give both")
    if certificate:
        return TlsFiles(Path(certificate), Path(key))
    folder = data_folder / ROOM
    made = (folder / _CERTIFICATE, folder / _KEY)
    if not all(path.exists() for path in made):
        folder.mkdir(mode=0o700, exist_ok=True)
        raws = make_api_certificate(names, _addresses())
        for path, raw, mode in reversed([*zip(made, raws, (0o644, 0o600), strict=True)]):
            written = raw if sealer is None else seal_file(sealer, ROOM, raw)
            write_atomically(path, written, mode=mode)
    if sealer is None:
        return TlsFiles(*made)
    opened = [open_file(sealer, ROOM, one.read_bytes(), source=str(one)) for one in made]
    return TlsFiles(*map(_in_memory, opened))


def _in_memory(content: bytes) -> Path:
    """A file that is on no disk, for as long as this process runs."""
    fd = os.memfd_create("swarmd", os.MFD_CLOEXEC)
    os.write(fd, content)
    return Path(f"/proc/self/fd/{fd}")


def _addresses() -> list[str]:
    families = (socket.AF_INET, socket.AF_INET6)
    return [
        one.address.partition("%")[0]
        for found in psutil.net_if_addrs().values()
        for one in found
        if one.family in families
    ]

"""What this machine says about itself: disk, port, clock, firewall tools. Reads, never writes.

Used by the daemon for itself, and by `swarmctl doctor` when there is no daemon.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swarmd.mesh.standing import JoinFailure, Standing, last_join_failure

# For others to get through it to agents is meant (`agents.accounts`); to see what is in it is not.
_READ_OR_WRITE: Final = 0o066
_FIREWALLS: Final = ("ufw", "firewall-cmd", "nft", "iptables")
_TIMEX_BYTES: Final = 256
_STATE_UNSYNCHRONISED: Final = 5


@dataclass(frozen=True, slots=True)
class LocalFacts:
    """`port_problem` and `folder_problem` are empty where all is well."""

    data_folder: str
    folder_problem: str
    free_bytes: int
    port: int
    port_problem: str
    port_is_ours: bool
    clock_synchronised: bool | None
    firewalls: tuple[str, ...]
    standing: Standing | None = None
    """None where the disk was not asked, or the node was never in a swarm."""
    join_failure: JoinFailure | None = None


def gather(
    *,
    data_folder: Path,
    port: int,
    bind: Sequence[str],
    port_is_ours: bool,
    standing: Standing | None = None,
) -> LocalFacts:
    """Look at this machine.

    Args:
        port_is_ours: the daemon that asks holds the port, so nothing is probed.
        standing: what the data folder says of a node whose daemon does not run.
    """
    return LocalFacts(
        data_folder=str(data_folder),
        folder_problem=folder_problem(data_folder),
        free_bytes=_free_bytes(data_folder),
        port=port,
        port_problem="" if port_is_ours else port_problem(port, bind),
        port_is_ours=port_is_ours,
        clock_synchronised=_clock_synchronised(),
        firewalls=tuple(tool for tool in _FIREWALLS if shutil.which(tool)),
        standing=standing,
        join_failure=last_join_failure(data_folder),
    )


def folder_problem(folder: Path) -> str:
    """Why nothing can be kept in `folder`; empty if it can."""
    existing = folder
    while not existing.exists():
        if existing == existing.parent:
            return "no part of its path exists"
        existing = existing.parent
    if not existing.is_dir():
        return f"{existing} is not a folder"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"this user may not write to {existing}"
    if existing == folder and folder.stat().st_mode & _READ_OR_WRITE:
        return "other users may read it (its mode should be 0700, or 0711)"
    return ""


def port_problem(port: int, bind: Sequence[str]) -> str:
    """Who could not bind `port`, over TCP and UDP on each address; empty if all could."""
    for address in bind:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for kind, name in ((socket.SOCK_STREAM, "TCP"), (socket.SOCK_DGRAM, "UDP")):
            try:
                with socket.socket(family, kind) as probe:
                    if kind == socket.SOCK_STREAM:
                        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    if family == socket.AF_INET6:
                        probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    probe.bind((address, port))
            except OSError as error:
                if family == socket.AF_INET6 and error.errno in _NO_IPV6:
                    continue
                return f"{name} port {port} on {address}: {error.strerror}"
    return ""


# Address family not supported, cannot assign requested address: the host has no IPv6.
_NO_IPV6: Final = frozenset({97, 99})


def _free_bytes(folder: Path) -> int:
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        return shutil.disk_usage(existing).free
    except OSError:
        return -1


def _clock_synchronised() -> bool | None:
    """What the kernel says (adjtimex(2)); None where it cannot be asked."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        state = libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _STATE_UNSYNCHRONISED

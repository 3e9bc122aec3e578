"""Where a node keeps its files: system folders for root, XDG folders for everybody else.

The environment and the user id are arguments, so that a test chooses them. The runtime
folder never falls back to /tmp: whoever makes a folder there first could pose as the daemon.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def data_folder(environ: Mapping[str, str] | None = None, uid: int | None = None) -> Path:
    """Keys, journals and blobs: /var/lib/swarmd, or $XDG_DATA_HOME/swarmd."""
    return _pick("/var/lib/swarmd", "XDG_DATA_HOME", ".local/share", environ, uid)


def config_folder(environ: Mapping[str, str] | None = None, uid: int | None = None) -> Path:
    """swarmd.toml and the admin keys: /etc/swarmd, or $XDG_CONFIG_HOME/swarmd."""
    return _pick("/etc/swarmd", "XDG_CONFIG_HOME", ".config", environ, uid)


def runtime_folder(environ: Mapping[str, str] | None = None, uid: int | None = None) -> Path:
    """The socket: /run/swarmd, or $XDG_RUNTIME_DIR/swarmd, or ~/.local/state/swarmd without it."""
    return _pick("/run/swarmd", "XDG_RUNTIME_DIR", ".local/state", environ, uid)


def _pick(
    system: str, variable: str, below_home: str, environ: Mapping[str, str] | None, uid: int | None
) -> Path:
    if environ is None:
        environ = os.environ
    if (os.getuid() if uid is None else uid) == 0:
        return Path(system)
    given = environ.get(variable, "")
    # The XDG specification: a relative path in these variables is invalid and ignored.
    if given.startswith("/"):
        return Path(given) / "swarmd"
    return Path(environ.get("HOME") or Path.home()) / below_home / "swarmd"

"""As whom agents run, on a daemon that root has started.

An agent's code is its author's, not the host's: it must not read the node's key, nor speak to the
daemon's socket as its admin. So each agent gets a user of its own, out of numbers that systemd's
register of users leaves unused and that need no account. They share a group, which may read the
unpacked code. A daemon that runs as anybody but root cannot change users: there agents run as
the daemon does.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import trio

from swarmd.agents.config import AS_DAEMON, AgentsConfig
from swarmd.base.errors import ConfigError
from swarmd.base.ids import digest

# https://systemd.io/UIDS-GIDS: 60578 to 61183 are nobody's.
GROUP: Final = 60_578
_FIRST_USER: Final = 60_579
_USERS: Final = 605
_PROBE: Final = "import os, sys, swarmd.sdk.worker; os.stat(sys.argv[1])"
_PROBE_TIMEOUT_S: Final = 30.0
_AS_ROOT: Final = f"have them run as root with agents.user = {AS_DAEMON!r}"
_OTHERS_PASS: Final = 0o001
_OTHERS_READ: Final = 0o004


class Account(NamedTuple):
    user: int
    group: int


class Accounts:
    """See the module.

    Args:
        folder: what agents must be able to get through to: the one with their code.

    Raises:
        ConfigError: `agents.user` names nobody, or cannot be had.
    """

    def __init__(self, config: AgentsConfig, folder: Path) -> None:
        self._folder = folder
        self._fixed: Account | None = None
        self._taken: dict[int, str] = {}
        self._problem: str | None = None
        self._asking = trio.Lock()
        self.own = os.geteuid() == 0 and config.user != AS_DAEMON
        if config.user in ("", AS_DAEMON):
            return
        if not self.own:
            raise ConfigError(
                f"agents.user = {config.user!r}: only a daemon that root started can run agents "
                "as somebody else"
            )
        try:
            found = pwd.getpwnam(config.user)
        except KeyError as error:
            raise ConfigError(f"agents.user = {config.user!r}: there is no such user") from error
        self._fixed = Account(found.pw_uid, found.pw_gid)

    @property
    def counted(self) -> bool:
        """Are an agent's processes told from others' by their user?"""
        return self.own and self._fixed is None

    @property
    def group(self) -> int | None:
        """The group that must be able to read agents' code; None if the daemon's own user does."""
        if not self.own:
            return None
        return self._fixed.group if self._fixed is not None else GROUP

    def of(self, agent: str) -> Account | None:
        """As whom the agent of this name runs; None is as the daemon does.

        The same name mostly has the same user; two names have different ones while there are no
        more than there are numbers. Another daemon of this host may give a number to another agent.
        """
        if not self.own:
            return None
        if self._fixed is not None:
            return self._fixed
        first = int.from_bytes(digest(b"agent's user", agent.encode())[:8], "big") % _USERS
        for step in range(_USERS):
            number = (first + step) % _USERS
            if self._taken.setdefault(number, agent) == agent:
                return Account(_FIRST_USER + number, GROUP)
        return Account(_FIRST_USER + first, GROUP)

    async def problem(self) -> str:
        """Why agents cannot run as users of their own here; empty if they can. It is tried once."""
        if not self.own:
            return ""
        async with self._asking:
            if self._problem is None:
                self._problem = await trio.to_thread.run_sync(self._try)
        return self._problem

    def _try(self) -> str:
        account = self._fixed or Account(GROUP, GROUP)
        try:
            _check_may_give(self._folder, account)
        except OSError as error:
            return (
                f"agents cannot run as users of their own on this host: root may not give them "
                f"their files ({error.strerror}); {_AS_ROOT}"
            )
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", _PROBE, str(self._folder)],
                env={},
                user=account.user,
                group=account.group,
                extra_groups=(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PROBE_TIMEOUT_S,
                cwd="/",
                check=False,
            )
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            failed = str(error)
        else:
            if done.returncode == 0:
                return ""
            failed = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        blocked = next(_blocked(self._folder), None)
        where = f"{blocked} lets nobody else through" if blocked else failed
        return (
            f"agents cannot run as users of their own on this host ({where}): open that way "
            f"(`chmod o+x`), or {_AS_ROOT}"
        )


def _check_may_give(folder: Path, account: Account) -> None:
    """Raises OSError: root may not, as in some containers and on some shares."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".tmp") as probe:
        os.fchown(probe.fileno(), account.user, account.group)


def _blocked(folder: Path) -> Iterator[Path]:
    """What stands between everybody and what agents need."""
    for wanted in (Path(sys.executable).resolve(), Path(sys.prefix), Path(__file__), folder):
        for part in (*reversed(wanted.parents), wanted):
            needed = _OTHERS_PASS if part.is_dir() else _OTHERS_READ
            if not part.stat().st_mode & needed:
                yield part

"""Which swarm: made by this node, joined with a token or by approval, or the one on disk.

Nothing is written before it is sure: a refused token leaves nothing in the folder but, for the
doctor, how it was refused. Making or joining the swarm that the node is in already changes
nothing; another one is refused.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from swarmd.app.folder import DataFolder
from swarmd.base.disk import Disk
from swarmd.base.errors import AlreadyExists, BadRequest, Forbidden, SwarmError
from swarmd.base.ids import short
from swarmd.base.names import check_name
from swarmd.config import Ask, Config, Init, Join, Resume, StartMode
from swarmd.identity.entries import issue_token
from swarmd.identity.epochs import first_epoch
from swarmd.identity.fingerprints import door_of, fingerprint_of_swarm, parse_fingerprint
from swarmd.identity.genesis import init_swarm
from swarmd.identity.keys import SigningKey
from swarmd.identity.tokens import Token, decode_token, encode_token, moment_of
from swarmd.mesh.addresses import Address
from swarmd.mesh.approval.joiner import Asking, Meeting, Progress
from swarmd.mesh.discovery.service import find_swarm
from swarmd.mesh.join import JoinResult, join_swarm
from swarmd.mesh.sockets import bind
from swarmd.mesh.standing import forget_join_failure, note_join_failure
from swarmd.mesh.trust import Trust, has_trust, open_trust

FIRST_TOKEN_USES: Final = 20
FIRST_TOKEN_TTL_MS: Final = 60 * 60 * 1000
_FIND_TIMEOUT_S: Final = 8.0
_LINE_CHARS_MAX: Final = 79

Say = Callable[[str], None]


@dataclass(frozen=True)
class Beginning:
    """What the services are opened with. `first_entry` logs the token made by `--init`."""

    trust: Trust
    epochs: tuple[bytes, ...] = ()
    seeds: tuple[Address, ...] = ()
    first_entry: bytes | None = None
    first_token: str = ""


def check_mode(mode: StartMode) -> None:
    """Refuse a name, token or fingerprint that cannot be right, before anything is touched.

    Raises:
        BadRequest, TokenRefused: see `check_name`, `decode_token` and `parse_fingerprint`.
    """
    if isinstance(mode, Init):
        check_name(mode.name, "swarm")
    elif isinstance(mode, Join):
        decode_token(mode.token)
    elif isinstance(mode, Ask) and mode.swarm:
        parse_fingerprint(mode.swarm)


async def begin(
    config: Config,
    folder: DataFolder,
    disk: Disk,
    mode: StartMode,
    say: Say,
    waits: Callable[[str], None] = lambda reason: None,
) -> Beginning | None:
    """Settle which swarm the node is in; None if it is in none and was not told one.

    Args:
        waits: told what the node waits for, if it does, for those who ask its API.

    Raises:
        Forbidden: the folder belongs to another swarm.
        PortTaken: the mesh port, so nothing was made or joined.
        TokenRefused, Unreachable, ...: the join failed. Nothing was written but why.
    """
    if has_trust(disk):
        trust = open_trust(disk)
        _check_same(trust, mode, say)
        return Beginning(trust)
    if not isinstance(mode, Resume):
        bind(config.mesh).close()
    if isinstance(mode, Init):
        return _make_swarm(config, folder, disk, mode.name, say)
    if isinstance(mode, Join | Ask):
        return await _enter(config, folder, disk, mode, say, waits)
    return None


async def _enter(
    config: Config,
    folder: DataFolder,
    disk: Disk,
    mode: Join | Ask,
    say: Say,
    waits: Callable[[str], None],
) -> Beginning:
    """Join, and keep for the doctor how it failed if it does."""
    try:
        if isinstance(mode, Join):
            found = await _join(config, folder, disk, decode_token(mode.token), say)
        else:
            found = await _ask(config, folder, disk, mode, say, waits)
    except SwarmError as error:
        with suppress(OSError):  # The error itself is what counts.
            note_join_failure(folder.path, error, time.time_ns() // 1_000_000)
        raise
    with suppress(OSError):
        forget_join_failure(folder.path)
    return found


def _check_same(trust: Trust, mode: StartMode, say: Say) -> None:
    swarm = f"{trust.genesis.name} ({short(trust.swarm_id)})"
    if isinstance(mode, Init):
        if mode.name != trust.genesis.name:
            raise Forbidden(
                f"this node is in the swarm {swarm} already: start `swarmd` without --init, or "
                f"make {mode.name} in another --data-folder"
            )
    elif isinstance(mode, Join):
        token = decode_token(mode.token)
        if token.swarm_id != trust.swarm_id:
            raise Forbidden(
                f"this node is in the swarm {swarm} and the token is for another "
                f"({short(token.swarm_id)}): join that one from another --data-folder"
            )
    elif isinstance(mode, Ask):
        own = fingerprint_of_swarm(door_of(trust.swarm_id))
        if mode.swarm and not own.begins(parse_fingerprint(mode.swarm)):
            raise Forbidden(
                f"this node is in the swarm {swarm}, whose fingerprint is {own.hex}: join another "
                "one from another --data-folder"
            )
    if not isinstance(mode, Resume):
        say(f"this node is in the swarm {swarm} already; nothing changed")


def _make_swarm(config: Config, folder: DataFolder, disk: Disk, name: str, say: Say) -> Beginning:
    admin_path = config.keys_folder / f"{name}.admin.key"
    recovery_path = config.keys_folder / f"{name}.recovery.key"
    for path in (admin_path, recovery_path):
        if path.exists():
            raise AlreadyExists(
                f"{path} exists: it is the key of an earlier swarm {name}; move it away, or "
                "choose another name"
            )
    genesis, _, admin, recovery = init_swarm(name, config.node_name, node_key=folder.key)
    _save(admin_path, admin)
    _save(recovery_path, recovery)
    trust = open_trust(disk, genesis)
    token, entry = issue_token(
        trust.swarm_id,
        moment_of(trust.head, first_epoch(genesis)),
        admin,
        uses=FIRST_TOKEN_USES,
        expires_ms=trust.store_time_ms + FIRST_TOKEN_TTL_MS,
    )
    say(f"made the swarm {name} ({short(trust.swarm_id)}); this node is {config.node_name}")
    say(f"admin key: {admin_path} (needed to make tokens)")
    say(f"recovery key: {recovery_path} (move it to a safe place away from this host)")
    return Beginning(trust, first_entry=entry, first_token=encode_token(token))


def _save(path: Path, key: SigningKey) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    key.save(path)


async def _join(
    config: Config, folder: DataFolder, disk: Disk, token: Token, say: Say
) -> Beginning:
    if config.mesh.mdns and not config.mesh.seeds:
        say("looking for the swarm by mDNS ...")
    addresses = await find_swarm(config.mesh, token.swarm_id, timeout_s=_FIND_TIMEOUT_S)
    result = await join_swarm(addresses, token, folder.key, config.node_name)
    return _joined(config, disk, result, say)


def _joined(config: Config, disk: Disk, result: JoinResult, say: Say) -> Beginning:
    trust = open_trust(disk, result.genesis, result.records, result.certificate)
    say(f"joined the swarm {trust.genesis.name} ({short(trust.swarm_id)}) as {config.node_name}")
    return Beginning(trust, epochs=result.epochs, seeds=result.seeds)


# ---- without a token -----------------------------------------------------------------------


async def _ask(
    config: Config,
    folder: DataFolder,
    disk: Disk,
    mode: Ask,
    say: Say,
    waits: Callable[[str], None],
) -> Beginning:
    """Ask to be let in, and wait. Nothing is written before."""
    if config.mesh.mdns and not config.mesh.seeds:
        say("looking for a swarm by mDNS ...")
    screen = _Screen(config.node_name, say, waits)

    async def find() -> Sequence[Address]:
        return await find_swarm(config.mesh, None, timeout_s=_FIND_TIMEOUT_S)

    asking = Asking(
        find,
        folder.key,
        config.node_name,
        wanted=parse_fingerprint(mode.swarm) if mode.swarm else None,
        agree=screen.agree,
        begin=screen.begin,
        tell=screen.tell,
    )
    try:
        result = await asking.run(config.mesh.join_wait_s)
    finally:
        screen.clear()
    waits("it is still starting")
    return _joined(config, disk, result, say)


class _Screen:
    """What the person at the joining node sees."""

    def __init__(self, node: str, say: Say, waits: Callable[[str], None]) -> None:
        self._node, self._say, self._waits = node, say, waits
        self._moving = sys.stdout.isatty()
        self._shown = False
        self._trouble = ""

    async def agree(self, meeting: Meeting) -> None:
        """Have the person compare the swarm's fingerprint. Raises Forbidden, BadRequest."""
        if not sys.stdin.isatty():
            raise BadRequest(
                f"a swarm called {meeting.name} answers, and nobody is at a terminal to compare "
                f"its fingerprint, {meeting.swarm.hex}, with what `swarmctl status` shows on a "
                "member: give the swarm's with --swarm FINGERPRINT"
            )
        self._say(
            f"a swarm called {meeting.name} answers. Its agents will run on this host: compare its "
            f"fingerprint\nwith what `swarmctl status` shows on a member:\n{meeting.swarm.shown()}"
        )
        # Abandoned by Ctrl-C: the thread reads on and holds nothing up.
        said = await trio.to_thread.run_sync(_read_yes, abandon_on_cancel=True)
        if not said:
            raise Forbidden("nothing was asked of that swarm, and nothing was written")

    def begin(self, meeting: Meeting) -> None:
        """Say how this node is known to the swarm that it asks."""
        self._say(
            f"asking {meeting.name} to let {self._node} in. This node's fingerprint:\n"
            f"{meeting.node.shown()}\n"
            "who holds an admin key of the swarm sees the same in `swarmctl node pending`, and "
            f"lets it in with:\n  swarmctl node approve {meeting.node.raw.hex()}"
        )
        self._waits(
            f"it waits until an admin of {meeting.name} approves it: "
            f"`swarmctl node approve {meeting.node.raw.hex()}` there"
        )

    def tell(self, progress: Progress) -> None:
        if self._moving:
            left = f"{progress.left_s / 60:.0f} min" if progress.left_s > 90 else "a minute"
            line = f"waiting to be approved, {left} more" + (
                f"; {progress.trouble}" if progress.trouble else ""
            )
            sys.stdout.write(f"\r\x1b[K{line[:_LINE_CHARS_MAX]}")
            sys.stdout.flush()
            self._shown = True
        elif progress.trouble != self._trouble:
            self._trouble = progress.trouble
            if progress.trouble:
                self._say(f"waiting goes on; {progress.trouble}")

    def clear(self) -> None:
        if self._shown:
            sys.stdout.write("\r\x1b[K")
            sys.stdout.flush()


def _read_yes() -> bool:
    try:
        return input("ask it to let this node in? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False

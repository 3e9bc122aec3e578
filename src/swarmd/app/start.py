"""Which swarm: made by this node, joined with a token, or the one on disk.

Nothing is written before it is sure: a refused token leaves the folder as it was. Making or
joining the swarm that the node is in already changes nothing; another one is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swarmd.app.folder import DataFolder
from swarmd.base.disk import Disk
from swarmd.base.errors import AlreadyExists, Forbidden
from swarmd.base.ids import short
from swarmd.base.names import check_name
from swarmd.config import Config, Init, Join, Resume, StartMode
from swarmd.identity.entries import issue_token
from swarmd.identity.epochs import first_epoch
from swarmd.identity.genesis import init_swarm
from swarmd.identity.keys import SigningKey
from swarmd.identity.tokens import Token, decode_token, encode_token, moment_of
from swarmd.mesh.addresses import Address
from swarmd.mesh.join import join_swarm
from swarmd.mesh.service import find_swarm
from swarmd.mesh.sockets import bind
from swarmd.mesh.trust import Trust, has_trust, open_trust

FIRST_TOKEN_USES: Final = 20
FIRST_TOKEN_TTL_MS: Final = 60 * 60 * 1000
_FIND_TIMEOUT_S: Final = 8.0

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
    """Refuse a name or token that cannot be right, before anything is touched.

    Raises:
        BadRequest, TokenRefused: see `check_name` and `decode_token`.
    """
    if isinstance(mode, Init):
        check_name(mode.name, "swarm")
    elif isinstance(mode, Join):
        decode_token(mode.token)


async def begin(
    config: Config, folder: DataFolder, disk: Disk, mode: StartMode, say: Say
) -> Beginning | None:
    """Settle which swarm the node is in; None if it is in none and was not told one.

    Raises:
        Forbidden: the folder belongs to another swarm.
        PortTaken: the mesh port, so nothing was made or joined.
        TokenRefused, Unreachable, ...: the join failed. Nothing was written.
    """
    if has_trust(disk):
        trust = open_trust(disk)
        _check_same(trust, mode, say)
        return Beginning(trust)
    if not isinstance(mode, Resume):
        bind(config.mesh).close()
    if isinstance(mode, Init):
        return _make_swarm(config, folder, disk, mode.name, say)
    if isinstance(mode, Join):
        return await _join(config, folder, disk, decode_token(mode.token), say)
    return None


def _check_same(trust: Trust, mode: StartMode, say: Say) -> None:
    swarm = f"{trust.genesis.name} ({short(trust.swarm_id)})"
    if isinstance(mode, Init):
        if mode.name != trust.genesis.name:
            raise Forbidden(
                f"this node is in the swarm {swarm} already: start `swarmd` without --init, or "
                f"make {mode.name} in another --data-folder"
            )
        say(f"this node is in the swarm {swarm} already; nothing changed")
    elif isinstance(mode, Join):
        token = decode_token(mode.token)
        if token.swarm_id != trust.swarm_id:
            raise Forbidden(
                f"this node is in the swarm {swarm} and the token is for another "
                f"({short(token.swarm_id)}): join that one from another --data-folder"
            )
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
    trust = open_trust(disk, result.genesis, result.records, result.certificate)
    say(f"joined the swarm {trust.genesis.name} ({short(trust.swarm_id)}) as {config.node_name}")
    return Beginning(trust, epochs=result.epochs, seeds=result.seeds)

"""A small swarm for the tests of this room: keys, a real chain, disks, open meshes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import trio
from certifying import certified, now_of
from founding import ADMIN, lab

from swarmd.base.clock import BootClock
from swarmd.base.files import FileDisk
from swarmd.base.ids import NodeId
from swarmd.base.rng import make_rng
from swarmd.identity.authority import Admission, AuthorityState
from swarmd.identity.entries import Admit, Evict, fresh_nonce, issue_token, sign_entry
from swarmd.identity.keys import SigningKey
from swarmd.identity.tokens import Token
from swarmd.mesh.config import MeshConfig
from swarmd.mesh.service import Mesh, open_mesh
from swarmd.mesh.sockets import bind
from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.swim.messages import MemberState
from swarmd.mesh.trust import Trust

KEYS = [SigningKey.from_seed(bytes([number]) * 32) for number in range(1, 8)]


class FixedRoster:
    """A trust without a chain: the keys given, minus those taken away."""

    def __init__(self, *keys: SigningKey, swarm_id: bytes = bytes(32)) -> None:
        self.swarm_id = swarm_id
        self.version = 1
        self.min_version = 0
        self._keys = list(keys)
        self._wake = trio.Event()

    def admissions(self) -> list[Admission]:
        return [
            Admission(key.key_id, key.public, "n", key.certificate, ("voter", "worker"), 0, 0, 0)
            for key in self._keys
        ]

    def admission(self, node_id: NodeId) -> Admission | None:
        return next((a for a in self.admissions() if a.node_id == node_id), None)

    async def changed(self, version: int) -> None:
        while self.version == version:
            await self._wake.wait()

    def become(self, *keys: SigningKey) -> None:
        self._keys = list(keys)
        self._changed()

    def raise_version(self, lowest: int) -> None:
        self.min_version = lowest
        self._changed()

    def _changed(self) -> None:
        self.version += 1
        self._wake.set()
        self._wake = trio.Event()


def chain(nodes: int = 3, *, nonce: bytes = b"g" * 16) -> tuple[AuthorityState, Token]:
    """A swarm whose first `nodes` keys are admitted, and a token for more."""
    genesis = lab(KEYS[0], "n0", nonce=nonce)
    state = AuthorityState(genesis)
    token, entry = issue_token(
        genesis.swarm_id, now_of(state), ADMIN, uses=10, expires_ms=10_000_000
    )
    state.apply(entry, 1_000)
    for number in range(1, nodes):
        admit(state, token, number)
    return state, token


def admit(state: AuthorityState, token: Token, number: int) -> None:
    key = KEYS[number]
    entry = Admit(
        token.token_id, key.public, f"n{number}", key.certificate, token.roles, b"j" * 16, b"s" * 16
    )
    state.apply(sign_entry(entry, token.swarm_id, token.key, key), 2_000)


def evict(state: AuthorityState, number: int) -> None:
    entry = Evict(KEYS[number].key_id, fresh_nonce())
    state.apply(sign_entry(entry, state.genesis.swarm_id, ADMIN), 3_000)


def trust_of(folder: Path, state: AuthorityState) -> Trust:
    return certified(FileDisk(folder), state, KEYS[0])


async def run_mesh(
    folder: Path,
    number: int,
    trust: Trust,
    config: MeshConfig,
    *,
    task_status: trio.TaskStatus[tuple[Mesh, trio.CancelScope]],
) -> None:
    """A node until its scope is cancelled, which is as sudden as a kill."""
    with trio.CancelScope() as scope:
        async with open_mesh(
            config,
            SwimConfig(profile="local"),
            key=KEYS[number],
            trust=trust,
            disk=FileDisk(folder),
            clock=BootClock(),
            rng=make_rng(number),
            name=f"n{number}",
        ) as mesh:
            task_status.started((mesh, scope))
            await trio.sleep_forever()


@contextlib.asynccontextmanager
async def meshes(
    folder: Path, configs: list[MeshConfig], state: AuthorityState
) -> AsyncIterator[list[tuple[Mesh, trio.CancelScope]]]:
    async with trio.open_nursery() as nursery:
        nodes = []
        for number, config in enumerate(configs):
            place = folder / str(number)
            trust = trust_of(place, state)
            nodes.append(await nursery.start(run_mesh, place, number, trust, config))
        yield nodes
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 - nothing to wait on
            await trio.sleep(0.005)


def free_port() -> int:
    bound = bind(MeshConfig(port=0, bind=("127.0.0.1",)))
    bound.close()
    return bound.port


def configs(count: int = 3) -> list[MeshConfig]:
    """One port on as many loopback addresses, the first the seed of all."""
    port = free_port()
    return [
        MeshConfig(
            port=port,
            bind=(f"127.0.0.{number}",),
            seeds=("127.0.0.1",),
            mdns=False,
            seed_retry_s=0.2,
        )
        for number in range(1, count + 1)
    ]


def sees(mesh: Mesh, state: MemberState = MemberState.ALIVE) -> int:
    return sum(member.state is state for member in mesh.membership.members())

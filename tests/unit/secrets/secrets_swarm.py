"""A swarm of stores with secrets on every running node."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from store_swarm import Swarm, TrioClock, View, running_swarm

from swarmd.base.rng import make_rng
from swarmd.identity.authority import AuthorityState
from swarmd.identity.entries import Evict, SetRoles, fresh_nonce, sign_entry
from swarmd.identity.heads import Head, sign_head
from swarmd.sim.disk import SimDisk
from swarmd.state.secrets.keyring import FILE_NAME, read_keyring
from swarmd.state.secrets.service import Secrets, open_secrets


@dataclass
class Vault:
    """The secrets of one node while it runs."""

    secrets: Secrets
    scope: trio.CancelScope


class SecretSwarm:
    """Nodes with secrets; `crash` ends both. Disks of keys outlive it."""

    def __init__(self, swarm: Swarm, nursery: trio.Nursery) -> None:
        self.swarm = swarm
        self._nursery = nursery
        self._vaults: dict[int, Vault] = {}
        self.disks: dict[int, SimDisk] = {}

    async def start(self, *indices: int) -> None:
        await self.swarm.start(*(i for i in indices if self.swarm.nodes[i].store is None))
        for index in indices:
            self.disks.setdefault(index, SimDisk(self.swarm.world, f"s{index}"))
            self._vaults[index] = await self._nursery.start(self._run, index)

    async def _run(self, index: int, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        node = self.swarm.nodes[index]
        assert node.store is not None
        assert node.trust is not None
        rng = make_rng(f"secrets {index} {trio.current_time()}")
        with trio.CancelScope() as scope:
            async with open_secrets(
                node.store,
                node.trust,
                node.link,
                View(self.swarm),
                self.disks[index],
                TrioClock(),
                rng,
            ) as secrets:
                task_status.started(Vault(secrets, scope))
                await trio.sleep_forever()

    async def crash(self, *indices: int) -> None:
        for index in indices:
            self._vaults.pop(index).scope.cancel()
        await self.swarm.crash(*indices)

    def at(self, index: int) -> Secrets:
        return self._vaults[index].secrets

    @property
    def up(self) -> list[int]:
        return sorted(self._vaults)

    def keys_on_disk(self, index: int) -> int:
        raw = self.disks[index].read(FILE_NAME)
        return len(read_keyring(raw)) if raw is not None else 0

    def evict(self, index: int) -> None:
        self._sign(Evict(self.swarm.id(index), fresh_nonce()))

    def set_roles(self, index: int, *roles: str) -> None:
        self._sign(SetRoles(self.swarm.id(index), roles, fresh_nonce()))

    def _sign(self, entry: Any) -> None:
        """Have an authority entry count everywhere; the stores of these tests hold no log."""
        swarm = self.swarm
        state = AuthorityState.load(swarm.genesis, swarm.records)
        state.apply(sign_entry(entry, swarm.genesis.swarm_id, swarm.admin), 2)
        swarm.records = state.dump()
        keys = {node.node_id: node.key for node in swarm.nodes}
        for index in self.up:
            trust = swarm.nodes[index].trust
            assert trust is not None
            assert trust.epochs is not None
            trust.note(swarm.records[-1:])
            epoch = trust.epochs.head
            signers = [keys[node] for node in epoch.node_ids]
            head = Head(epoch.key, *trust.noted)
            trust.learn((), sign_head(head, trust.swarm_id, *signers))


@asynccontextmanager
async def secret_swarm(*indices: int, logged: bool = False) -> AsyncIterator[SecretSwarm]:
    """`logged`: the stores' own log says who may what; else only what their nodes trust does."""
    async with running_swarm() as swarm, trio.open_nursery() as nursery:
        secrets = SecretSwarm(swarm, nursery)
        if logged:
            await swarm.start_with_logged_records()
        await secrets.start(*indices)
        size = 3 if len(indices) > 2 else 1
        await until(lambda: len(swarm.store(indices[0]).voters) == size)
        await swarm.coordinator()
        yield secrets
        nursery.cancel_scope.cancel()


async def until(holds: Callable[[], bool], *, within_s: float = 15.0) -> None:
    with trio.fail_after(within_s):
        while not holds():  # noqa: ASYNC110 - nothing to wait on
            await trio.sleep(0.02)

"""A node that slept while all it knew were replaced learns what it missed, and from anybody."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio
from certifying import certificate_of, seal
from small_swarm import ADMIN, KEYS, admit, chain, evict, run_mesh

from swarmd.base.errors import Evicted, SwarmError, Unreachable, Untrusted
from swarmd.base.files import FileDisk
from swarmd.identity.authority import AuthorityState
from swarmd.identity.entries import Policy, fresh_nonce, sign_entry
from swarmd.identity.epochs import Chain
from swarmd.identity.keys import SigningKey
from swarmd.mesh.addresses import Address
from swarmd.mesh.catching_up import catch_up_from_outside
from swarmd.mesh.config import MeshConfig
from swarmd.mesh.trust import Trust, open_trust
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World

SLEEPER, PRESENT = KEYS[1], KEYS[2]


def slept_through() -> tuple[AuthorityState, AuthorityState, Chain]:
    """The log as the sleeper knows it, as it is now, and the epochs since the genesis."""
    then, token = chain(2)
    now = AuthorityState.load(then.genesis, then.dump())
    admit(now, token, 2)
    epochs = Chain(then.genesis)
    seal(epochs, [KEYS[0]], [PRESENT])
    evict(now, 0)
    seal(epochs, [PRESENT], [PRESENT])
    return then, now, epochs


def trust_of(
    state: AuthorityState, epochs: Chain, *voters: SigningKey, folder: Path | None = None
) -> Trust:
    disk = SimDisk(World(1), "t") if folder is None else FileDisk(folder)
    certificate = certificate_of(state, *voters, chain=epochs)
    trust = open_trust(disk, state.genesis, state.dump(), certificate)
    trust.epochs = epochs
    return trust


async def ask(
    folder: Path, sleeper: Trust, present: Trust, key: SigningKey = SLEEPER
) -> tuple[AuthorityState, tuple[bytes, ...], bytes]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = MeshConfig(bind=("127.0.0.1",), port=port, mdns=False)
    refused: SwarmError | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(run_mesh, folder, 2, present, config)
        try:
            where: list[Address] = [("127.0.0.1", 1), ("127.0.0.1", port)]
            missed = await catch_up_from_outside(where, sleeper, key)
        except SwarmError as error:  # Out of the nursery it would come in a group.
            refused = error
        nursery.cancel_scope.cancel()
    if refused is not None:
        raise refused
    return missed.state, missed.epochs, missed.certificate


async def test_it_learns_who_is_there_now(tmp_path: Path) -> None:
    then, now, epochs = slept_through()
    sleeper = trust_of(then, Chain(then.genesis), KEYS[0])
    state, certificates, certificate = await ask(
        tmp_path, sleeper, trust_of(now, epochs, PRESENT, folder=tmp_path)
    )
    assert state.head == now.head
    assert certificates == epochs.certificates_from(1)
    assert sleeper.epochs is not None
    for one in certificates:
        sleeper.epochs.extend(one)
    sleeper.adopt(state, certificate)
    assert sleeper.admission(PRESENT.key_id) is not None
    assert sleeper.admission(KEYS[0].key_id) is None


async def test_what_replaced_voters_told_it_gives_way(tmp_path: Path) -> None:
    then, now, epochs = slept_through()
    lie = AuthorityState.load(then.genesis, then.dump())
    lie.apply(sign_entry(Policy(1, fresh_nonce()), lie.swarm_id, ADMIN), 5_000)
    sleeper = trust_of(lie, Chain(then.genesis), KEYS[0])
    state, _, _ = await ask(tmp_path, sleeper, trust_of(now, epochs, PRESENT, folder=tmp_path))
    assert state.head == now.head


async def test_who_is_up_to_date_learns_that_nobody_knows_more(tmp_path: Path) -> None:
    _, now, epochs = slept_through()
    current = Chain(now.genesis)
    for certificate in epochs.certificates_from(1):
        current.extend(certificate)
    with pytest.raises(SwarmError):
        await ask(
            tmp_path,
            trust_of(now, current, PRESENT),
            trust_of(now, epochs, PRESENT, folder=tmp_path),
        )


async def test_who_was_evicted_is_told_so_and_a_stranger_is_shown_nothing(tmp_path: Path) -> None:
    then, now, epochs = slept_through()
    sleeper = trust_of(then, Chain(then.genesis), KEYS[0])
    present = trust_of(now, epochs, PRESENT, folder=tmp_path)
    with pytest.raises(Untrusted, match="no node of this swarm"):
        await ask(tmp_path, sleeper, present, KEYS[5])
    evict(now, 1)
    other = trust_of(now, epochs, PRESENT, folder=tmp_path / "again")
    with pytest.raises(Evicted):
        await ask(tmp_path / "again", sleeper, other)


async def test_nobody_there_is_said(tmp_path: Path) -> None:
    then, _, _ = slept_through()
    sleeper = trust_of(then, Chain(then.genesis), KEYS[0])
    with pytest.raises(Unreachable):
        await catch_up_from_outside([("127.0.0.1", 1)], sleeper, SLEEPER)

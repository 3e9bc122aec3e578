"""Whole meshes on loopback: they find each other, notice deaths, and say goodbye."""

from __future__ import annotations

import itertools
from pathlib import Path

import trio
from small_swarm import KEYS, chain, meshes, until

from swarmd.mesh.config import MeshConfig
from swarmd.mesh.service import Mesh
from swarmd.mesh.sockets import bind
from swarmd.mesh.swim.service import MemberState

PORTS = itertools.count(21_000 + 0)


def configs(count: int = 3, **extra: object) -> list[MeshConfig]:
    """One port on as many loopback addresses, the first the seed of the others."""
    with_port = MeshConfig(port=0, bind=("127.0.0.1",))
    bound = bind(with_port)
    port = bound.port
    bound.close()
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


async def test_three_find_each_other_by_a_seed_and_see_one_die(tmp_path: Path) -> None:
    state, _ = chain()
    async with meshes(tmp_path, configs(), state) as nodes:
        started = trio.current_time()
        await until(lambda: all(sees(mesh) == 3 for mesh, _ in nodes))
        assert trio.current_time() - started < 5
        victim, scope = nodes[2]
        scope.cancel()
        await until(lambda: all(sees(mesh, MemberState.DEAD) == 1 for mesh, _ in nodes[:2]))
        for mesh, _ in nodes[:2]:
            member = mesh.membership.get(victim.link.node_id)
            assert member is not None
            assert member.state is MemberState.DEAD
        assert [r.member for r in nodes[1][0].seed_report()] == [KEYS[0].key_id]

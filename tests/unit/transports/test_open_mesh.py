"""Whole meshes on loopback: they find each other, notice deaths, and say goodbye."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import trio
from certifying import certified, let_count, now_of
from small_swarm import (
    ADMIN,
    KEYS,
    chain,
    configs,
    free_port,
    meshes,
    run_mesh,
    sees,
    trust_of,
    until,
)

from swarmd.base.errors import (
    ConfigError,
    Outdated,
    PortTaken,
    SwarmError,
    Unavailable,
    Untrusted,
)
from swarmd.base.files import FileDisk
from swarmd.base.ids import NodeId
from swarmd.identity.authority import AuthorityState
from swarmd.identity.entries import (
    Policy,
    encode_record,
    fresh_nonce,
    issue_token,
    sign_entry,
)
from swarmd.identity.epochs import Chain
from swarmd.mesh import service
from swarmd.mesh.addresses import Address
from swarmd.mesh.config import MeshConfig
from swarmd.mesh.discovery.interfaces import InterfaceWatch
from swarmd.mesh.discovery.service import find_swarm
from swarmd.mesh.join import join_swarm
from swarmd.mesh.service import Mesh
from swarmd.mesh.swim.service import MemberChange, MemberState
from swarmd.mesh.trust import Trust, open_trust
from swarmd.observe.metrics import REGISTRY
from swarmd.wire.codec import Family, Message
from swarmd.wire.version import PROTOCOL_VERSION


class Say(Message, frozen=True, tag=1):
    number: int


TALK = Family("talk", Say)


def state_of(mesh: Mesh, node_id: NodeId) -> MemberState | None:
    member = mesh.membership.get(node_id)
    return None if member is None else member.state


async def test_three_find_each_other_by_a_seed_and_see_one_die(tmp_path: Path) -> None:
    state, _ = chain()
    async with meshes(tmp_path, configs(), state) as nodes:
        await until(lambda: all(sees(mesh) == 3 for mesh, _ in nodes), within_s=5)
        victim, scope = nodes[2]
        scope.cancel()
        await until(
            lambda: all(
                state_of(mesh, victim.link.node_id) is MemberState.DEAD for mesh, _ in nodes[:2]
            )
        )
        assert [r.member for r in nodes[1][0].seed_report()] == [KEYS[0].key_id]
        assert "itself" in nodes[0][0].seed_report()[0].problem


async def test_a_killed_member_comes_back_as_itself(tmp_path: Path) -> None:
    state, _ = chain()
    wanted = configs()
    async with meshes(tmp_path, wanted, state) as nodes, trio.open_nursery() as nursery:
        await until(lambda: all(sees(mesh) == 3 for mesh, _ in nodes))
        nodes[2][1].cancel()
        await until(lambda: all(sees(mesh) == 2 for mesh, _ in nodes[:2]))
        place = tmp_path / "2"
        back, _ = await nursery.start(run_mesh, place, 2, trust_of(place, state), wanted[2])
        await until(lambda: sees(back) == 3 and all(sees(mesh) == 3 for mesh, _ in nodes[:2]))
        nursery.cancel_scope.cancel()


async def test_a_member_that_leaves_is_left_and_never_suspected(tmp_path: Path) -> None:
    state, _ = chain()
    async with meshes(tmp_path, configs(), state) as nodes:
        await until(lambda: all(sees(mesh) == 3 for mesh, _ in nodes))
        changes = [mesh.membership.subscribe() for mesh, _ in nodes[:2]]
        leaver, scope = nodes[2]
        with trio.fail_after(5):
            await leaver.leave()
        scope.cancel()
        for listener in changes:
            with trio.fail_after(5):
                change = await listener.receive()
            assert change.after is not None
            assert change.after.state is MemberState.LEFT
        await trio.sleep(0.5)
        assert all(sees(mesh, MemberState.LEFT) == 1 for mesh, _ in nodes[:2])


async def test_all_start_again_without_seeds_and_remember_each_other(tmp_path: Path) -> None:
    state, _ = chain()
    wanted = configs()
    async with meshes(tmp_path, wanted, state) as nodes:
        await until(lambda: all(sees(mesh) == 3 for mesh, _ in nodes))
        await until(lambda: all((tmp_path / str(n) / "members").exists() for n in range(3)))
        await trio.sleep(1.2)  # The snapshot is written once a second at most.
    seedless = [msgspec.structs.replace(config, seeds=()) for config in wanted]
    async with meshes(tmp_path, seedless, state) as nodes:
        await until(lambda: all(sees(mesh) == 3 for mesh, _ in nodes))


async def test_streams_work_between_members_of_a_mesh(tmp_path: Path) -> None:
    state, _ = chain(2)
    async with meshes(tmp_path, configs(2), state) as nodes, trio.open_nursery() as nursery:
        (a, _), (b, _) = nodes
        await until(lambda: sees(a) == 2)
        inbox = b.link.open_inbox(TALK)

        async def echo() -> None:
            async for inbound in inbox:
                await inbound.answer(inbound.message)

        nursery.start_soon(echo)
        assert await a.link.request(TALK, b.link.node_id, Say(5), timeout_s=5) == Say(5)
        nursery.cancel_scope.cancel()


async def test_two_swarms_at_the_same_addresses_stay_two(tmp_path: Path) -> None:
    """The same keys even: only the swarm differs."""
    labels = {"where": "udp", "reason": "other_swarm"}
    before = REGISTRY.get_sample_value("swarmd_dropped_total", labels) or 0.0
    state, _ = chain(2)
    other, _ = chain(3, nonce=b"h" * 16)
    wanted = configs(3)
    async with meshes(tmp_path, wanted[:2], state) as nodes, trio.open_nursery() as nursery:
        place = tmp_path / "other"
        stray, _ = await nursery.start(run_mesh, place, 2, trust_of(place, other), wanted[2])
        await until(lambda: all(sees(mesh) == 2 for mesh, _ in nodes))
        after = (REGISTRY.get_sample_value("swarmd_dropped_total", labels) or 0.0) - before
        await until(
            lambda: (REGISTRY.get_sample_value("swarmd_dropped_total", labels) or 0.0) > before
        )
        assert after >= 0
        assert sees(stray) == 1
        assert all(len(mesh.membership.members()) == 2 for mesh, _ in nodes)
        assert "no member" in stray.seed_report()[0].problem
        nursery.cancel_scope.cancel()


async def test_a_joiner_is_admitted_through_a_mesh_and_becomes_a_member_at_once(
    tmp_path: Path,
) -> None:
    state, _ = chain(2)
    log = AuthorityState.load(state.genesis, state.dump())
    token, entry = issue_token(
        state.genesis.swarm_id, now_of(log), ADMIN, uses=1, expires_ms=10_000_000
    )
    log.apply(entry, 3_000)
    wanted = configs(3)
    async with trio.open_nursery() as nursery:
        nodes: list[Mesh] = []
        trusts = []
        for number in range(2):
            trusts.append(certified(FileDisk(tmp_path / str(number)), log, KEYS[0]))
            place = tmp_path / str(number)
            mesh, _ = await nursery.start(run_mesh, place, number, trusts[number], wanted[number])
            nodes.append(mesh)
        seed: Address = ("127.0.0.1", wanted[0].port)
        with pytest.raises(Unavailable, match="starting"):
            await join_swarm([seed], token, KEYS[2], "n2")

        async def admit(raw: bytes) -> Sequence[bytes]:
            record = encode_record(log.apply(raw, 4_000))
            let_count(trusts[0], [record], KEYS[0])
            return [record]

        nodes[0].serve_joins(admit)
        result = await join_swarm([seed], token, KEYS[2], "n2")
        assert seed in result.seeds
        started = trio.current_time()
        place = tmp_path / "2"
        trust = open_trust(FileDisk(place), result.genesis, result.records, result.certificate)
        trust.epochs = Chain(result.genesis)
        mesh, _ = await nursery.start(run_mesh, place, 2, trust, wanted[2])
        nodes.append(mesh)
        await until(lambda: all(sees(mesh) == 3 for mesh in nodes))
        assert trio.current_time() - started < 3
        nursery.cancel_scope.cancel()


async def test_a_mesh_is_found_by_multicast_on_loopback(tmp_path: Path) -> None:
    """No seeds: nodes that listen on loopback alone announce themselves there."""
    state, _ = chain(2, nonce=os.urandom(16))  # Others may try the same on this loopback.
    port = free_port()
    wanted = [
        MeshConfig(port=port, bind=(f"127.0.0.{n}",), interfaces=("lo",), seed_retry_s=0.2)
        for n in (1, 2)
    ]
    async with meshes(tmp_path, wanted, state) as nodes:
        await until(lambda: all(sees(mesh) == 2 for mesh, _ in nodes), within_s=15)
        await until(lambda: all(m.discovery_report()[0].announced for m, _ in nodes), within_s=15)
        report = nodes[0][0].discovery_report()[0]
        assert report.interface == "lo"
        assert report.announced_as == (f"127.0.0.1:{port}",)
        found = await find_swarm(wanted[0], state.genesis.swarm_id)
        assert found
        assert set(found) <= {("127.0.0.1", port), ("127.0.0.2", port)}


async def test_a_taken_port_is_named_with_its_setting(tmp_path: Path) -> None:
    state, _ = chain(1)
    config = configs(1)[0]
    async with meshes(tmp_path, [config], state), trio.open_nursery() as nursery:
        trust = trust_of(tmp_path / "again", state)
        with pytest.raises(ExceptionGroup) as caught:
            async with trio.open_nursery() as inner:
                await inner.start(run_mesh, tmp_path / "again", 0, trust, config)
        assert caught.group_contains(PortTaken, match=r"mesh\.port")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("config", "kind", "text"),
    [
        (MeshConfig(port=0, bind=("192.0.2.77",), mdns=False), ConfigError, "192.0.2.77"),
        (MeshConfig(port=0, bind=("localhost",), mdns=False), ConfigError, "localhost"),
        (MeshConfig(port=0, seeds=("a:b",), mdns=False), ConfigError, "a:b"),
        (
            MeshConfig(port=0, bind=("127.0.0.1",), advertise=("no.such.host.invalid",)),
            ConfigError,
            "no.such.host",
        ),
    ],
)
async def test_what_cannot_be_listened_on_is_named(
    tmp_path: Path, config: MeshConfig, kind: type[SwarmError], text: str
) -> None:
    state, _ = chain(1)
    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await nursery.start(run_mesh, tmp_path, 0, trust_of(tmp_path, state), config)
    assert caught.group_contains(kind, match=text)


async def test_a_key_that_is_no_members_is_refused(tmp_path: Path) -> None:
    state, _ = chain(1)
    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await nursery.start(run_mesh, tmp_path, 3, trust_of(tmp_path, state), configs(1)[0])
    assert caught.group_contains(Untrusted)


def policy(state: AuthorityState, version: int) -> bytes:
    """The record by which the swarm accepts no version below this."""
    entry = sign_entry(Policy(version, fresh_nonce()), state.swarm_id, ADMIN)
    return encode_record(state.apply(entry, 4_000))


async def test_a_daemon_that_is_outdated_does_not_start(tmp_path: Path) -> None:
    state, _ = chain(1)
    policy(state, PROTOCOL_VERSION + 1)
    with trio.fail_after(10), pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await nursery.start(run_mesh, tmp_path, 0, trust_of(tmp_path, state), configs(1)[0])
    assert caught.group_contains(Outdated, match="takes protocol version 2 or above")


async def test_who_is_outdated_hears_of_it_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is newer: it learns the policy from its store, cuts the second off and tells it."""
    state, _ = chain(2)
    newer, older = (trust_of(tmp_path / str(number), state) for number in (0, 1))
    real = service._check_may_run

    def check(trust: Trust, me: NodeId) -> None:
        if trust is not newer:
            real(trust, me)

    monkeypatch.setattr(service, "_check_may_run", check)
    first, second = configs(2)
    ended = trio.Event()

    async def run_second() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            await run_mesh(tmp_path / "1", 1, older, second, task_status=trio.TASK_STATUS_IGNORED)
        assert caught.group_contains(Outdated, match="upgrade it")
        ended.set()

    async with trio.open_nursery() as nursery:
        mesh, _ = await nursery.start(run_mesh, tmp_path / "0", 0, newer, first)
        nursery.start_soon(run_second)
        await until(lambda: sees(mesh) == 2 and mesh.link.connected() == [KEYS[1].key_id])
        let_count(newer, [policy(state, PROTOCOL_VERSION + 1)], KEYS[0])
        await until(ended.is_set, within_s=2.0)
        await until(lambda: mesh.link.connected() == [], within_s=2.0)
        nursery.cancel_scope.cancel()


async def test_junk_at_the_port_changes_nothing(tmp_path: Path) -> None:
    state, _ = chain(2)
    wanted = configs(2)
    async with meshes(tmp_path, wanted, state) as nodes:
        await until(lambda: all(sees(mesh) == 2 for mesh, _ in nodes))
        changes = nodes[0][0].membership.subscribe()
        sock = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
        with sock:
            for number in range(2_000):
                junk = bytes([number % 5]) + number.to_bytes(4, "big") * (number % 320)
                await sock.sendto(junk, ("127.0.0.1", wanted[0].port))
        await trio.sleep(1)
        with pytest.raises(trio.WouldBlock):
            changes.receive_nowait()
        assert all(sees(mesh) == 2 for mesh, _ in nodes)


async def test_where_a_joiner_looks() -> None:
    seeds = MeshConfig(seeds=("127.0.0.1", "127.0.0.2:5"), mdns=False)
    assert await find_swarm(seeds, bytes(32)) == [("127.0.0.1", 7575), ("127.0.0.2", 5)]
    assert await find_swarm(MeshConfig(mdns=False), bytes(32)) == []
    with pytest.raises(ConfigError, match=r"no\.such\.host"):
        await find_swarm(MeshConfig(seeds=("no.such.host.invalid",)), bytes(32))


async def test_members_are_told_of_new_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, _ = chain(2)
    watch = InterfaceWatch()

    @asynccontextmanager
    async def watched() -> AsyncIterator[InterfaceWatch]:
        yield watch

    monkeypatch.setattr(service, "watch_interfaces", watched)
    async with meshes(tmp_path, configs(2), state) as nodes:
        (a, _), (b, _) = nodes
        await until(lambda: sees(a) == 2 == sees(b))

        async def moved(config: MeshConfig, port: int) -> tuple[Address, ...]:
            host = "127.0.0.11" if config.bind == ("127.0.0.1",) else "127.0.0.2"
            return ((host, port),)

        monkeypatch.setattr(service, "advertised", moved)
        watch.announce()
        await until(lambda: ("127.0.0.11", a.port) in b.addresses.lookup(a.link.node_id))


async def test_a_reset_stream_of_a_living_member_kills_nobody(tmp_path: Path) -> None:
    state, _ = chain(2)
    async with meshes(tmp_path, configs(2), state) as nodes:
        (a, _), (b, _) = nodes
        await until(lambda: sees(a) == 2 == sees(b))
        changes = a.membership.subscribe()
        for _ in range(5):
            await until(lambda: b.link.node_id in a.link.connected(), within_s=5)
            before = list(a._streams._ports.values())
            b._streams.drop(a.link.node_id, "for a test")
            # The next connection may be open before anybody looks.
            await until(lambda ports=before: not any(port.is_open for port in ports))
            await trio.sleep(0.1)
            a._streams._reconnected.clear()
            a._streams.reconnect(b.link.node_id)
        await trio.sleep(1)
        while changes._waiting:
            change = changes.receive_nowait()
            assert change.after is not None
            assert change.after.state is not MemberState.DEAD
        assert sees(a) == 2


async def test_only_who_comes_or_moves_is_called_again_at_once(tmp_path: Path) -> None:
    """A doubt that is refuted says nothing of TCP, which a firewall may refuse."""
    state, _ = chain(2)
    async with meshes(tmp_path, configs(2), state) as nodes:
        (a, _), (b, _) = nodes
        await until(lambda: sees(a) == 2 == sees(b))
        peer = b.link.node_id
        await trio.sleep(0.3)
        known = a.membership.get(peer)
        assert known is not None
        doubted = replace(known, state=MemberState.SUSPECT)
        a._streams._failures[peer] = (8, 0.0)
        a.membership._perform_changed(MemberChange(doubted, known))
        await trio.sleep(0.2)
        assert peer in a._streams._failures
        b.membership.set_addresses((*b.local_addresses, ("127.0.0.99", b.port)))
        await until(lambda: peer not in a._streams._failures)


async def test_names_that_mean_the_same_as_before_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, _ = chain(1)
    looked, began = 0, 0
    host = "127.0.0.1"

    async def looked_up(config: MeshConfig, port: int) -> tuple[Address, ...]:
        nonlocal looked
        looked += 1
        return ((host, port),)

    def begin_anew(mesh: Mesh, gone: object) -> None:
        nonlocal began
        began += 1

    monkeypatch.setattr(service, "_NAMES_EVERY_S", 0.02)
    monkeypatch.setattr(service, "advertised", looked_up)
    monkeypatch.setattr(Mesh, "_begin_anew", begin_anew)
    watch = InterfaceWatch()

    @asynccontextmanager
    async def watched() -> AsyncIterator[InterfaceWatch]:
        yield watch

    monkeypatch.setattr(service, "watch_interfaces", watched)
    one = [msgspec.structs.replace(config, advertise=("localhost",)) for config in configs(1)]
    async with meshes(tmp_path, one, state) as [(mesh, _)]:
        await until(lambda: looked > 5)
        assert began == 0
        host = "127.0.0.12"
        await until(lambda: began == 1)
        assert mesh.local_addresses == ((host, mesh.port),)
        watch.announce()
        await until(lambda: began == 2)
        looked = 0
        await until(lambda: looked > 5)
        assert began == 2

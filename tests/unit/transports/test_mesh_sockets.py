"""Listening: one port for both protocols, and what others are told."""

from __future__ import annotations

import pytest

from swarmd.base.errors import ConfigError, PortTaken
from swarmd.mesh.config import MeshConfig
from swarmd.mesh.sockets import advertised, bind, listening_hosts, multicast_interfaces


async def test_any_port_is_one_port_for_both_protocols_on_all_addresses() -> None:
    bound = bind(MeshConfig(port=0, bind=("127.0.0.1", "127.0.0.2")))
    try:
        names = [s.getsockname() for s in bound.datagrams]
        names += [listener.socket.getsockname() for listener in bound.listeners]
        assert {port for _, port in names} == {bound.port}
        assert sorted(host for host, _ in names) == sorted(["127.0.0.1", "127.0.0.2"] * 2)
    finally:
        bound.close()


async def test_a_taken_port_leaves_nothing_bound() -> None:
    first = bind(MeshConfig(port=0, bind=("127.0.0.2",)))
    config = MeshConfig(port=first.port, bind=("127.0.0.1", "127.0.0.2"))
    with pytest.raises(PortTaken, match=str(first.port)):
        bind(config)
    first.close()
    bind(config).close()


async def test_both_families_by_default() -> None:
    bound = bind(MeshConfig(port=0, bind=("127.0.0.1", "::1")))
    assert len(bound.datagrams) in (1, 2)
    bound.close()


async def test_what_others_are_told() -> None:
    assert await advertised(MeshConfig(bind=("127.0.0.3",)), 9) == (("127.0.0.3", 9),)
    wide = await advertised(MeshConfig(), 9)
    assert wide
    assert all(host not in ("0.0.0.0", "::") for host, _ in wide)
    told = await advertised(MeshConfig(advertise=("192.0.2.1", "192.0.2.2:5", "[fd00::1]:6")), 9)
    assert told == (("192.0.2.1", 9), ("192.0.2.2", 5), ("fd00::1", 6))


def test_a_wildcard_stands_for_addresses_that_others_can_reach() -> None:
    hosts = listening_hosts(MeshConfig())
    assert hosts
    assert len(hosts) == 1 or "127.0.0.1" not in hosts


def test_who_listens_on_loopback_alone_announces_there() -> None:
    assert multicast_interfaces(MeshConfig(bind=("127.0.0.2",))) == ("lo",)
    assert multicast_interfaces(MeshConfig()) == ()
    assert multicast_interfaces(MeshConfig(interfaces=("eth7",))) == ("eth7",)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (MeshConfig(port=70_000), "mesh.port"),
        (MeshConfig(bind=()), "mesh.bind"),
        (MeshConfig(connect_timeout_s=6), "mesh.connect_timeout_s"),
        (MeshConfig(connect_timeout_s=0), "mesh.connect_timeout_s"),
        (MeshConfig(idle_close_s=0), "mesh.idle_close_s"),
        (MeshConfig(handshake_timeout_s=-1), "mesh.handshake_timeout_s"),
        (MeshConfig(seed_retry_s=0), "mesh.seed_retry_s"),
        (MeshConfig(unproven_connections_max=0), "mesh.unproven_connections_max"),
        (MeshConfig(unproven_per_address_max=0), "mesh.unproven_per_address_max"),
    ],
)
def test_settings_that_cannot_work_are_named(config: MeshConfig, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        config.check()

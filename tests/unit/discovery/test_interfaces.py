"""What this host's interfaces are, and that waiting for them to change costs nothing."""

from __future__ import annotations

import pytest
import trio

from swarmd.mesh.discovery import interfaces
from swarmd.mesh.discovery.interfaces import (
    Interface,
    InterfaceWatch,
    is_link_local,
    usable_interfaces,
    watch_interfaces,
)

DUAL = Interface(
    "eth0",
    ("10.0.0.7", "2001:db8::7", "fe80::7"),
    ("10.0.0.0/24", "2001:db8::/64", "fe80::/64"),
    index=4,
)


def test_loopback_is_left_out_unless_it_is_asked_for() -> None:
    assert "lo" not in [one.name for one in usable_interfaces()]
    [lo] = usable_interfaces(("lo",))
    assert lo.is_loopback
    assert lo.ipv4.startswith("127.")
    assert lo.holds("127.9.9.9")
    assert lo.mtu_bytes > 0
    assert usable_interfaces(("nosuch0",)) == []


def test_multicast_leaves_from_one_address_of_each_family() -> None:
    assert DUAL.ipv4 == "10.0.0.7"
    assert DUAL.ipv6 == "fe80::7", "link-local, which every host on the link can hear"
    assert Interface("a", ("2001:db8::7",), ("2001:db8::/64",)).ipv6 == "2001:db8::7"
    assert Interface("a", ("10.0.0.7",), ("10.0.0.0/24",)).ipv6 == ""


def test_a_scope_says_on_which_interface_an_address_is() -> None:
    assert DUAL.holds("fe80::9%4")
    assert DUAL.holds("fe80::9%eth0")
    assert not DUAL.holds("fe80::9%5"), "the same network, on another link"
    assert DUAL.holds("10.0.0.200")
    assert not DUAL.holds("10.0.1.200")
    assert is_link_local("fe80::9%4")
    assert not is_link_local("169.254.0.1"), "of IPv4, which needs no scope"


async def test_who_waits_is_told_of_a_change_and_of_nothing_before() -> None:
    async with watch_interfaces() as watch:
        version = watch.version
        with trio.move_on_after(0.3):
            await watch.changed(version)
        assert watch.version == version
        watch.announce()
        assert await watch.changed(version) == version + 1


async def test_without_netlink_the_host_is_looked_at_every_second(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    looks: list[list[Interface]] = [[], [], [DUAL]]

    def look() -> list[Interface]:
        return looks.pop(0) if len(looks) > 1 else looks[0]

    def none() -> None:
        raise OSError("no such thing")

    monkeypatch.setattr(interfaces, "_netlink", none)
    monkeypatch.setattr(interfaces, "_everything", look)
    watch = InterfaceWatch()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.follow)
        began = trio.current_time()
        await watch.changed(1)
        assert 1.9 <= trio.current_time() - began <= 2.1
        nursery.cancel_scope.cancel()

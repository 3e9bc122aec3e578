"""Multicast DNS: hints only, bounded, and every refusal counted with its reason."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio
import zeroconf

from swarmd.mesh.discovery.adverts import HEARD_MAX
from swarmd.mesh.discovery.interfaces import usable_interfaces
from swarmd.mesh.discovery.mdns import SERVICE, Mdns, find, open_mdns, swarm_hint

HINT = swarm_hint(b"s" * 32)
OTHER = swarm_hint(b"o" * 32)


@dataclass
class Info:
    """What a service says of itself."""

    port: int | None = 7575
    hosts: tuple[str, ...] = ("127.0.0.9",)
    properties: dict[bytes, bytes | None] = field(
        default_factory=lambda: {b"v": b"1", b"s": HINT.encode()}
    )

    def parsed_scoped_addresses(self) -> list[str]:
        return list(self.hosts)


def mdns() -> Mdns:
    made = Mdns(HINT, "me", 7575, ("lo",), addresses=(), announce=False)
    made._interfaces = usable_interfaces(("lo",))
    return made


def found(m: Mdns) -> list[tuple[str, int]]:
    addresses = []
    while m.found.statistics().current_buffer_used:
        addresses.append(m.found.receive_nowait())
    return addresses


def test_a_hint_names_the_swarm_to_members_only() -> None:
    assert len(HINT) == 16
    assert swarm_hint(b"s" * 32) == HINT != OTHER
    assert HINT not in (b"s" * 32).hex()


async def test_our_swarm_is_found() -> None:
    m = mdns()
    m.note("a." + SERVICE, Info(hosts=("127.0.0.9", "fe80::1%2", "fe80::2")))
    assert found(m) == [("127.0.0.9", 7575), ("fe80::1%2", 7575)], "none whose link is unknown"
    assert m.report()[0].heard == 1
    assert m.report()[0].refused == {}


async def test_what_is_refused_is_counted_by_reason_and_found_by_nobody() -> None:
    m = mdns()
    bad: list[Info | None] = [
        Info(properties={b"v": b"1", b"s": OTHER.encode()}),
        Info(properties={b"v": b"2", b"s": HINT.encode()}),
        Info(properties={b"v": b"1", b"s": None}),
        Info(properties={b"v": b"1", b"s": b"\xff" * 16}),
        Info(properties={}),
        Info(port=0),
        Info(port=None),
        Info(hosts=()),
        None,
    ]
    for number, info in enumerate(bad):
        m.note(f"bad{number}.{SERVICE}", info)
    assert found(m) == []
    report = m.report()[0]
    assert report.heard == 0
    assert report.others == (f"{OTHER} at 127.0.0.9:7575",)
    assert report.old_at == ("127.0.0.9:7575", "127.0.0.9:7575")
    assert report.refused == {
        "other_swarm": 1,
        "other_version": 2,
        "malformed": 5,
        "no_answer": 1,
    }


async def test_a_flood_of_services_keeps_a_bounded_number() -> None:
    m = mdns()
    for number in range(3 * HEARD_MAX):
        m.note(f"n{number}.{SERVICE}", Info())
    assert len(m._adverts) == HEARD_MAX
    assert len(found(m)) <= HEARD_MAX
    assert m.report()[0].refused["too_many"] > 0


async def test_a_flood_of_names_from_the_thread_is_bounded() -> None:
    m = mdns()
    for number in range(1_000):
        m.hear_from_thread(f"n{number}.{SERVICE}")
    m.hear_from_thread("x" * 300)
    await trio.sleep(0.05)
    assert m._waiting.statistics().current_buffer_used <= 256
    assert m.report()[0].refused["too_many"] >= 1_000 - 256


async def test_ones_own_name_is_not_looked_at() -> None:
    m = mdns()
    m.hear_from_thread(f"Me.{SERVICE}")
    m.hear_from_thread(f"you.{SERVICE}")
    await trio.sleep(0.05)
    assert m._waiting.statistics().current_buffer_used == 1


async def test_an_interface_that_is_not_there_is_reported_as_nothing() -> None:
    async with open_mdns(HINT, "a", 1, interfaces=("nosuch0",)) as m:
        await trio.sleep(0.05)
        assert m.report() == []


async def test_two_nodes_hear_each_other_on_loopback_and_a_joiner_finds_them() -> None:
    with trio.fail_after(20):
        async with (
            open_mdns(HINT, "aa", 7001, interfaces=("lo",), addresses=("127.0.0.2",)) as a,
            open_mdns(HINT, "bb", 7002, interfaces=("lo",), addresses=("127.0.0.3",)) as b,
            open_mdns(OTHER, "cc", 7003, interfaces=("lo",)) as c,
        ):
            assert await a.found.receive() == ("127.0.0.3", 7002)
            assert await b.found.receive() == ("127.0.0.2", 7001)
            seen = await find(HINT, interfaces=("lo",), timeout_s=5)
            assert set(seen) <= {("127.0.0.2", 7001), ("127.0.0.3", 7002)}
            assert seen
            while "other_swarm" not in c.report()[0].refused:  # noqa: ASYNC110
                await trio.sleep(0.05)
            assert c.found.statistics().current_buffer_used == 0


async def test_nobody_is_found_in_a_swarm_that_is_not_there() -> None:
    assert await find(swarm_hint(b"none"), interfaces=("lo",), timeout_s=0.3) == []


async def test_a_hostile_advert_on_the_link_is_refused() -> None:
    """A real one, with a hint of the right form and TXT data that is noise."""
    hostile = await trio.to_thread.run_sync(lambda: zeroconf.Zeroconf(interfaces=["127.0.0.1"]))
    try:
        info = zeroconf.ServiceInfo(
            SERVICE,
            f"evil.{SERVICE}",
            port=1,
            properties={b"v": b"1", b"s": bytes(200)},
            parsed_addresses=["127.0.0.66"],
        )
        await trio.to_thread.run_sync(hostile.register_service, info)
        with trio.fail_after(15):
            async with open_mdns(HINT, "a", 1, interfaces=("lo",), announce=False) as m:
                while not len(m._adverts):  # noqa: ASYNC110
                    await trio.sleep(0.05)
                assert m.report()[0].refused.get("malformed") == 1
                assert found(m) == []
    finally:
        await trio.to_thread.run_sync(hostile.close)

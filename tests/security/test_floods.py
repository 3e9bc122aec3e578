"""Many packets and connections, by who knows the swarm's id and everything that was ever sent."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import trio
from datagrams import COOKIE, HELLO, REPLY, forged_hellos
from small_swarm import KEYS, FixedRoster

from swarmd.base.clock import BootClock
from swarmd.identity.keys import SigningKey
from swarmd.mesh.addresses import Address, AddressBook
from swarmd.mesh.transports.sessions import Sessions
from swarmd.mesh.transports.udp import Datagrams, open_datagrams, udp_socket
from swarmd.observe.metrics import REGISTRY

FLOOD_PER_S = 5_000
# Processor time of a hostile hello from end to end, its sending and the answer included. Measured
# are 33 to 36 microseconds; 200 and more where its signature is checked.
HELLO_CPU_S_MAX = 110e-6
ROSTER = FixedRoster(*KEYS[:3])
TARGET, VICTIM, HONEST = KEYS[:3]


def dropped(reason: str) -> float:
    labels = {"where": "udp", "reason": reason}
    return REGISTRY.get_sample_value("swarmd_dropped_total", labels) or 0.0


@contextlib.asynccontextmanager
async def node(key: SigningKey, host: str) -> AsyncIterator[tuple[Datagrams, Address]]:
    sock = udp_socket(host, 0)
    opened = open_datagrams(key, ROSTER, AddressBook(), [sock], clock=BootClock())
    async with opened as datagrams:
        yield datagrams, sock.getsockname()


@contextlib.contextmanager
def hostile_sockets(count: int) -> Iterator[list[socket.socket]]:
    """Each at an address of its own, which stands for any: a spoofed one hears nothing back."""
    with contextlib.ExitStack() as opened:
        hosts = [f"127.6.{number >> 8}.{number & 255}" for number in range(1, count + 1)]
        yield [opened.enter_context(udp_socket(host, 0)) for host in hosts]


def forged(count: int) -> list[tuple[bytes, Sessions]]:
    return list(itertools.islice(forged_hellos(VICTIM.key_id, ROSTER), count))


def heard(sock: socket.socket) -> list[bytes]:
    """What has come back to a socket."""
    packets = []
    with contextlib.suppress(BlockingIOError):
        while True:
            packets.append(sock.recv(2_000))
    return packets


async def flood(
    sockets: list[socket.socket], packets: list[bytes], to: Address, *, seconds: float = 1e9
) -> None:
    step_s = 0.01
    ends = trio.current_time() + seconds
    senders, raws = itertools.cycle(sockets), itertools.cycle(packets)
    due = trio.current_time()
    while due < ends:
        for _ in range(round(FLOOD_PER_S * step_s)):
            with contextlib.suppress(BlockingIOError):
                next(senders).sendto(next(raws), to)
        due += step_s
        await trio.sleep_until(due)


def every_kind(to: Address) -> list[bytes]:
    """Packets that a stranger may send who has the swarm's id and has seen others' packets."""
    (hello, forger), *_ = forged(1)
    member = Sessions(VICTIM, ROSTER, AddressBook())
    member.hello(to, 0.0)
    _, seen_hello = member.outgoing.popleft()
    other = Sessions(HONEST, ROSTER, AddressBook())
    other.receive(seen_hello, to, 0.0)
    _, seen_reply = other.outgoing.popleft()
    return [
        hello,
        forger._showing(b"w" * 16, hello),
        hello[:17],
        hello[:-1],
        hello + bytes(600),
        seen_hello,
        seen_reply,
        forger._signed(REPLY, "udp-reply", b"\x01" + bytes(80)),
        forger._tagged(COOKIE, bytes(48), padded=True),
        forger._tagged(COOKIE, bytes(48), padded=False),
        b"\x03" + bytes(16),
        b"\x03" + bytes(1_199),
        *(bytes([kind]) * length for kind in (0, 1, 2, 4, 255) for length in (1, 17, 512, 1_200)),
    ]


@pytest.mark.alone
async def test_amplification_and_floods_of_hellos() -> None:
    """What comes back is never larger, a forged hello costs little, and who is honest gets in."""
    with hostile_sockets(300) as sockets:
        async with node(TARGET, "127.0.0.1") as (_, to), node(HONEST, "127.0.0.2") as (honest, _):
            kinds = every_kind(to)
            answered = set()

            async def each_kind() -> None:
                for sock, raw in zip(sockets, kinds, strict=False):
                    heard(sock)
                    sock.sendto(raw, to)
                await trio.sleep(0.1)
                for sock, raw in zip(sockets, kinds, strict=False):
                    back = heard(sock)
                    assert sum(map(len, back)) <= len(raw), raw
                    answered.update((raw[:1], packet[:1]) for packet in back)

            await each_kind()
            assert answered == {(HELLO, REPLY)}, "only to a hello that a member has signed"

            hellos = [hello for hello, _ in forged(2_000)]
            spoofed = sockets[len(kinds) :]
            await flood(spoofed, hellos, to, seconds=0.2)
            await each_kind()
            assert answered == {(HELLO, REPLY), (HELLO, COOKIE)}

            asked, cpu_s = dropped("no_cookie"), time.process_time()
            await flood(spoofed, hellos, to, seconds=1.0)
            await trio.sleep(0.1)
            asked, cpu_s = dropped("no_cookie") - asked, time.process_time() - cpu_s
            assert asked > FLOOD_PER_S / 2, "the kernel dropped too much to tell"
            assert cpu_s / asked < HELLO_CPU_S_MAX

            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood, spoofed, hellos, to)
                await trio.sleep(0.5)
                checked = dropped("bad_signature")
                honest.hello(to)
                with trio.fail_after(2):
                    assert await honest.met.receive() == (TARGET.key_id, to)
                assert dropped("bad_signature") == checked, "a forged hello was checked"
                nursery.cancel_scope.cancel()


@pytest.mark.alone
async def test_one_address_that_shows_cookies_leaves_room_for_others() -> None:
    with hostile_sockets(1) as sockets:
        (sock,) = sockets
        async with node(TARGET, "127.0.0.1") as (_, to), node(HONEST, "127.0.0.2") as (honest, _):
            made = forged(500)
            forgers = {next(iter(forger._handshakes)): forger for _, forger in made}
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood, sockets, [hello for hello, _ in made], to)
                shown: list[bytes] = []
                with trio.fail_after(5):
                    while len(shown) < 200:
                        await trio.sleep(0.001)
                        for asked in heard(sock):
                            forger = forgers[asked[17:49]]
                            forger.receive(asked, to, 0.0)
                            shown.extend(packet for _, packet in forger.outgoing)
                            forger.outgoing.clear()
                nursery.cancel_scope.cancel()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood, sockets, shown, to)
                refused, checked = dropped("hellos_per_address"), dropped("bad_signature")
                await trio.sleep(1.0)
                assert dropped("hellos_per_address") > refused + 1_000
                assert 0 < dropped("bad_signature") - checked <= 3 * 25
                honest.hello(to)
                with trio.fail_after(2):
                    assert await honest.met.receive() == (TARGET.key_id, to)
                nursery.cancel_scope.cancel()

"""Measures how long datagrams and streams take between two processes on this machine.

`sim/swim_scale.py` holds what it printed once: its members are as far apart as that. Run it on a
quiet machine: `.venv/bin/python scripts/loopback_delays.py`. Takes about ten seconds.
"""

from __future__ import annotations

import multiprocessing
import statistics
import struct
import time
from collections.abc import Sequence
from typing import Final

import trio

from swarmd.base.clock import BootClock
from swarmd.base.ids import NodeId
from swarmd.base.rng import make_rng
from swarmd.identity.authority import Admission
from swarmd.identity.keys import SigningKey
from swarmd.mesh.addresses import Address, AddressBook
from swarmd.mesh.config import MeshConfig
from swarmd.mesh.swim.messages import SWIM, StreamPing
from swarmd.mesh.transports.streams import open_streams
from swarmd.mesh.transports.udp import open_datagrams, udp_socket

DATAGRAMS: Final = 2_000
CONNECTIONS: Final = 40
# About what a ping takes up.
PAYLOAD_BYTES: Final = 100
_PAUSE_S: Final = 0.002
_PARTS: Final = 20


class _Both:
    """A roster of two."""

    swarm_id = bytes(32)
    version = 1
    min_version = 0

    def __init__(self, *keys: SigningKey) -> None:
        self._admissions = [
            Admission(key.key_id, key.public, "n", key.certificate, ("worker",), 0, 0, 0)
            for key in keys
        ]

    def admissions(self) -> Sequence[Admission]:
        return self._admissions

    def admission(self, node_id: NodeId) -> Admission | None:
        return next((one for one in self._admissions if one.node_id == node_id), None)

    async def changed(self, version: int) -> None:
        await trio.sleep_forever()


ASKER, ANSWERER = (SigningKey.from_seed(bytes([number]) * 32) for number in (1, 2))
ROSTER = _Both(ASKER, ANSWERER)


async def answer(addresses: multiprocessing.Queue[tuple[Address, Address]]) -> None:
    """Send back what comes, with the time at which it came."""
    sock = udp_socket("127.0.0.1", 0)
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with (
        open_datagrams(ANSWERER, ROSTER, AddressBook(), [sock], clock=BootClock()) as datagrams,
        open_streams(
            ANSWERER, ROSTER, AddressBook(), [listener], config=MeshConfig(), rng=make_rng(1)
        ) as streams,
        trio.open_nursery() as nursery,
    ):
        inbox = streams.open_inbox(SWIM)
        addresses.put((sock.getsockname(), listener.socket.getsockname()))

        async def answer_streams() -> None:
            async for inbound in inbox:
                await inbound.answer(StreamPing())

        nursery.start_soon(answer_streams)
        async for peer, data in datagrams.inbox:
            came = struct.pack("d", time.monotonic())
            datagrams.send_nowait(peer, (), data[:8] + came + data[16:])


async def ask_datagrams(address: Address) -> list[float]:
    """How long each took, one way, in seconds."""
    took: list[float] = []
    sock = udp_socket("127.0.0.1", 0)
    async with open_datagrams(ASKER, ROSTER, AddressBook(), [sock], clock=BootClock()) as datagrams:
        for _ in range(DATAGRAMS):
            data = struct.pack("d", time.monotonic()).ljust(PAYLOAD_BYTES, b"\0")
            datagrams.send_nowait(ANSWERER.key_id, [address], data)
            with trio.move_on_after(1.0):
                _, echo = await datagrams.inbox.receive()
                sent, came = struct.unpack_from("dd", echo)
                took.append(came - sent)
            await trio.sleep(_PAUSE_S)
    return took[10:]


async def ask_streams(address: Address) -> list[float]:
    """How long each took from nothing to its answer, in seconds."""
    took: list[float] = []
    for number in range(CONNECTIONS):
        book = AddressBook()
        book.learn(ANSWERER.key_id, [address])
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with open_streams(
            ASKER, ROSTER, book, [listener], config=MeshConfig(), rng=make_rng(number)
        ) as streams:
            began = time.monotonic()
            await streams.request(SWIM, ANSWERER.key_id, StreamPing(), timeout_s=5.0)
            took.append(time.monotonic() - began)
    return took


def parts(values: list[float]) -> str:
    """The middle of each of some equal parts, in milliseconds."""
    cuts = statistics.quantiles(values, n=2 * _PARTS)
    return ", ".join(f"{1e3 * cut:.3f}" for cut in cuts[::2])


def main() -> None:
    addresses: multiprocessing.Queue[tuple[Address, Address]] = multiprocessing.Queue()
    other = multiprocessing.Process(target=lambda: trio.run(answer, addresses), daemon=True)
    other.start()
    datagrams_at, streams_at = addresses.get(timeout=10)
    print("datagrams, one way, ms:", parts(trio.run(ask_datagrams, datagrams_at)))
    print("a connection and an answer, ms:", parts(trio.run(ask_streams, streams_at)))
    other.terminate()


if __name__ == "__main__":
    main()

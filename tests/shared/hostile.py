"""A hostile host: so many packets a second and idle connections, at daemons, from one address.

    python hostile.py SOURCE SWARM_ID_HEX PACKETS_PER_S CONNECTIONS HOST:PORT...

It knows the swarm's id. Connections that are closed on it are opened again. It runs until it is
ended, and prints `ready` once all connections were made for the first time.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import select
import socket
import sys
import time
from collections.abc import Sequence

from datagrams import forged_hellos
from small_swarm import KEYS, FixedRoster

STEP_S = 0.01
REOPENED_PER_STEP = 5


def packets(swarm_id: bytes) -> list[bytes]:
    """Hellos that look like a member's, parts and repeats of them, and noise."""
    roster = FixedRoster(*KEYS, swarm_id=swarm_id)
    found: list[bytes] = []
    for hello, _ in itertools.islice(forged_hellos(KEYS[1].key_id, roster), 500):
        found += [hello, hello[:-1], hello, b"\x03" + os.urandom(600), os.urandom(1_200)]
    return found


def connect(source: str, target: tuple[str, int]) -> socket.socket:
    one = socket.socket()
    one.setblocking(False)
    one.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
    one.bind((source, 0))
    with contextlib.suppress(BlockingIOError):
        one.connect(target)
    return one


def main(arguments: Sequence[str]) -> None:
    source, swarm_id, per_s, connections, *names = arguments
    resource.setrlimit(resource.RLIMIT_NOFILE, (20_000, 20_000))
    targets = [(host, int(port)) for host, _, port in (x.rpartition(":") for x in names)]
    where, raws = itertools.cycle(targets), itertools.cycle(packets(bytes.fromhex(swarm_id)))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((source, 0))
    udp.setblocking(False)
    poll = select.epoll()
    opened: dict[int, socket.socket] = {}
    made = 0
    due = time.monotonic()
    while True:
        for _ in range(round(int(per_s) * STEP_S)):
            with contextlib.suppress(BlockingIOError, ConnectionError):
                udp.sendto(next(raws), next(where))
        for descriptor, _ in poll.poll(0):
            poll.unregister(descriptor)
            opened.pop(descriptor).close()
        missing = int(connections) - len(opened)
        for _ in range(min(missing, 50 if made < int(connections) else REOPENED_PER_STEP)):
            try:
                one = connect(source, next(where))
            except OSError:
                break  # Out of ports: they come back.
            opened[one.fileno()] = one
            poll.register(one, select.EPOLLRDHUP | select.EPOLLHUP)
            made += 1
            if made == int(connections):
                print("ready", flush=True)
        due += STEP_S
        time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    main(sys.argv[1:])

"""One load process: so many clients, each with one operation under way, against one daemon.

    python load.py '{"peer": "swarmd", "socket": "...", "clients": 85, "op": "put", ...}'

It says `ready` on stdout when it is, and is told on stdin when to begin: `{"start", "end"}`, of
the monotonic clock, which processes of one host share. A client sends its next operation when
the last one was acknowledged; one that was refused for now is sent again until it is.
Operations are counted while `start` <= now < `end`, and each one's time is from its first
sending to its acknowledgement. The result is one line of JSON on stdout.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from etcd_peer import PUT, RANGE, EtcdStream

from swarmd.client import Client
from swarmd.client.keystream import KeyStream

KEYS_PER_CLIENT = 64
# A refusal that can be repeated is, after this pause.
PAUSE_S = 0.01
WRITES_UNDER_WAY = 64


class Target(Protocol):
    def put(self, key: str, value: bytes) -> int: ...
    def get(self, key: str) -> int: ...
    def take(self) -> list[tuple[int, bool]]:
        """(number, done or to be sent again) of at least one operation."""
        ...


class Swarmd:
    """The stream of operations that the API offers, as any program would use it."""

    def __init__(self, socket: str) -> None:
        self._keys: KeyStream = Client(socket).key_stream()
        self.put = self._keys.put
        self.get = self._keys.get

    def take(self) -> list[tuple[int, bool]]:
        found = []
        for done in self._keys.take():
            if done.error is not None and not done.error.retryable:
                raise RuntimeError(f"{done.error.code}: {done.error.message}")
            found.append((done.id, done.error is None))
        return found


class SwarmdRequests:
    """One request of the API per operation, on a connection that is kept. One client only."""

    def __init__(self, socket: str) -> None:
        import http.client

        from swarmd.base.unix_http import UnixConnection

        self._connection: http.client.HTTPConnection = UnixConnection(socket, 30.0)
        self._number = 0
        self._ok = False

    def put(self, key: str, value: bytes) -> int:
        headers = {"Content-Type": "application/octet-stream"}
        return self._ask("PUT", f"/api/v1/kv/{key}", value, headers)

    def get(self, key: str) -> int:
        return self._ask("GET", f"/api/v1/kv/{key}", None, {})

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> int:
        self._connection.request(method, path, body, headers)
        with self._connection.getresponse() as response:
            response.read()
            self._ok = response.status == 200
        self._number += 1
        return self._number

    def take(self) -> list[tuple[int, bool]]:
        return [(self._number, self._ok)]


def open_target(plan: dict[str, Any], op: str) -> Target:
    if plan["peer"] == "etcd":
        host, port = plan["address"]
        return EtcdStream((host, port), PUT if op == "put" else RANGE)
    if plan.get("requests"):
        return SwarmdRequests(plan["socket"])
    return Swarmd(plan["socket"])


@dataclass
class Tally:
    start: float
    end: float
    times: list[float] = field(default_factory=list)
    refused: int = 0
    last_ack: float = 0.0
    longest_gap_s: float = 0.0

    def acknowledged(self, sent_at: float, now: float) -> None:
        if self.start <= now < self.end:
            self.longest_gap_s = max(self.longest_gap_s, now - max(self.last_ack, self.start))
            self.times.append(now - sent_at)
        self.last_ack = now


def key_of(plan: dict[str, Any], client: int, turn: int) -> str:
    return f"{plan['prefix']}/{client:03d}/{turn % KEYS_PER_CLIENT}"


def value_of(plan: dict[str, Any]) -> bytes:
    size = int(plan["value_bytes"])
    return (bytes(range(256)) * (size // 256 + 1))[:size]


def write_all(target: Target, plan: dict[str, Any]) -> None:
    """Write every key that is going to be read."""
    value = value_of(plan)
    left = [
        key_of(plan, client, turn)
        for client in range(plan["clients"])
        for turn in range(KEYS_PER_CLIENT)
    ]
    under_way: dict[int, str] = {}
    while left or under_way:
        while left and len(under_way) < WRITES_UNDER_WAY:
            key = left.pop()
            under_way[target.put(key, value)] = key
        for number, ok in target.take():
            key = under_way.pop(number)
            if not ok:
                left.append(key)


def run(target: Target, plan: dict[str, Any]) -> Tally:
    """Keep every client busy until the end, then let what is under way be acknowledged."""
    tally = Tally(plan["start"], plan["end"])
    value = value_of(plan)
    make: Any = (lambda key: target.put(key, value)) if plan["op"] == "put" else target.get
    turns = [0] * plan["clients"]
    under_way: dict[int, tuple[int, str, float]] = {}  # number -> client, key, first sent at

    def send(client: int, key: str, since: float) -> None:
        under_way[make(key)] = (client, key, since)

    def next_of(client: int, now: float) -> None:
        turns[client] += 1
        send(client, key_of(plan, client, turns[client]), now)

    clock = time.monotonic
    while (now := clock()) < plan["start"] - plan["warm_up_s"]:
        time.sleep(0.01)
    for client in range(plan["clients"]):
        next_of(client, now)
    while under_way:
        answers = target.take()
        now = clock()
        again = [under_way.pop(number) for number, ok in answers if not ok]
        for number, ok in answers:
            if ok:
                client, _, since = under_way.pop(number)
                tally.acknowledged(since, now)
                if now < plan["end"]:
                    next_of(client, clock())
        if again:
            tally.refused += len(again)
            time.sleep(PAUSE_S)
            for client, key, since in again:
                send(client, key, since)
    return tally


def main() -> None:
    plan = json.loads(sys.argv[1])
    if plan["op"] == "get":
        write_all(open_target(plan, "put"), plan)
    target = open_target(plan, plan["op"])
    print("ready", flush=True)
    plan |= json.loads(sys.stdin.readline())
    tally = run(target, plan)
    result = {
        "count": len(tally.times),
        "times_us": [round(one * 1e6) for one in tally.times],
        "refused": tally.refused,
        "longest_gap_s": max(tally.longest_gap_s, plan["end"] - max(tally.last_ack, plan["start"])),
        "cpu_s": time.process_time(),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

"""Clients that write to shared memory at one node, at a given rate, and note what they are told.

    python memory_writer.py '{"socket": "...", "name": "a", "clients": 4, "rate": 500.0,
                              "start": 12.5, "end": 72.5, "notes": "/tmp/a.jsonl"}'

A process of its own, so that writers of two nodes do not wait for each other. Most keys are written
once; some belong to all writers everywhere, and some are deleted again. Times are of the monotonic
clock, which processes of one host share.
"""

from __future__ import annotations

import http.client
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec
from memory_ledger import Told

from swarmd.base.unix_http import UnixConnection

NAMESPACE: Final = "ledger"
# Keys that all writers write to.
SHARED_KEYS: Final = 50
SHARED: Final = 0.08
DELETED: Final = 0.04
# Keys of one prefix, so that they can be listed together.
BLOCK: Final = 1_000
_TIMEOUT_S: Final = 10.0
_HEADERS: Final = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`rate`: writes a second of all `clients` together."""

    socket: str
    name: str
    clients: int
    rate: float
    start: float
    end: float
    notes: str


class Writer:
    """One client, on a connection that is kept."""

    def __init__(self, plan: Plan, number: int) -> None:
        self.calls: list[Told] = []
        self._plan, self._number = plan, number
        self._name = f"{plan.name}{number}"
        self._rng = random.Random(self._name)
        self._connection = UnixConnection(plan.socket, _TIMEOUT_S)
        self._count = 0
        self._own: list[tuple[str, int]] = []

    def run(self) -> None:
        plan = self._plan
        pause_s = plan.clients / plan.rate
        due = plan.start + pause_s * self._number / plan.clients
        while due < plan.end and time.monotonic() < plan.end:
            time.sleep(max(0.0, due - time.monotonic()))
            self._turn()
            due += pause_s

    def _turn(self) -> None:
        chance = self._rng.random()
        if chance < DELETED and self._own:
            key, at_ms = self._own.pop(self._rng.randrange(len(self._own)))
            self._note(key, None, self._ask("DELETE", key, None, at_ms))
            return
        self._count += 1
        value = f"{self._name}.{self._count}"
        if chance < DELETED + SHARED:
            key = f"all/{self._rng.randrange(SHARED_KEYS)}"
            self._note(key, value, self._ask("PUT", key, value, 0))
            return
        key = f"{self._name}/{self._count // BLOCK}/{self._count}"
        at_ms = self._ask("PUT", key, value, 0)
        self._note(key, value, at_ms)
        if at_ms is not None:
            self._own.append((key, at_ms))

    def _note(self, key: str, value: str | None, at_ms: int | None) -> None:
        self.calls.append(Told(key, value, at_ms))

    def _ask(self, method: str, key: str, value: str | None, known_ms: int) -> int | None:
        """The stamp of what was written; None if it was not acknowledged.

        0 where another write had overtaken it when it was answered.
        """
        body = None if value is None else msgspec.msgpack.encode({"value": value})
        path = f"/api/v1/memory/{NAMESPACE}/{quote(key)}"
        try:
            self._connection.request(method, path, body, _HEADERS)
            with self._connection.getresponse() as response:
                answer: Any = msgspec.msgpack.decode(response.read())
        except (OSError, http.client.HTTPException) as error:
            print(f"{self._name}: {error!r}", file=sys.stderr)
            self._connection.close()
            return None
        if response.status != 200:
            print(f"{self._name}: {answer}", file=sys.stderr)
            return None
        if value is None:
            return known_ms
        return int(answer["created_at_ms"]) if answer["value"] == value else 0


def main() -> None:
    plan = msgspec.json.decode(sys.argv[1], type=Plan)
    writers = [Writer(plan, number) for number in range(plan.clients)]
    threads = [threading.Thread(target=one.run) for one in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    calls = [one.calls for one in writers]
    Path(plan.notes).write_bytes(msgspec.json.encode(calls))


def read_notes(path: Path) -> list[list[Told]]:
    """The calls of each client of a writer that has ended."""
    return msgspec.json.decode(path.read_bytes(), type=list[list[Told]])


if __name__ == "__main__":
    main()

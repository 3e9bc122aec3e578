"""The clients at one daemon: they ask, check nothing, and note every answer.

A process of its own, so that no client waits for another node's. It ends on SIGTERM, when the
calls under way have been answered. See `reliability_history` for what is noted.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from reliability_history import GENERATION_S, GROUP_SLOTS, REGISTER_SLOTS, Call

from swarmd.base.errors import SwarmError
from swarmd.client import Client
from swarmd.gateway.shapes import KvCompare, KvOperation

CALL_TIMEOUT_S: Final = 3.0
PATIENCE_S: Final = 60.0
# Nothing was done, for certain: no byte was sent, or the daemon has no store yet.
_NOT_DONE: Final = frozenset({"daemon_down", "not_ready"})
_PAUSE_AFTER_TROUBLE_S: Final = (0.1, 0.5)
_MODES: Final = ("default",) * 6 + ("exclusive",) * 2 + ("at_most_once",) * 2


class Notebook:
    """A file of calls, one line each."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        self._lock = threading.Lock()

    def note(self, call: Call) -> None:
        line = msgspec.json.encode(call) + b"\n"
        with self._lock:
            self._file.write(line)

    def close(self) -> None:
        with self._lock:
            self._file.close()


class Worker:
    """One client: a thread with a connection, chance and a notebook.

    Args:
        sockets: the daemon's own first, then the others'.
    """

    def __init__(self, name: str, sockets: list[str], options: Options) -> None:
        self.name = name
        self.sockets = sockets
        self.options = options
        self.rng = random.Random(f"{options.seed} {name}")
        self.client = Client(sockets[0], timeout_s=CALL_TIMEOUT_S)
        self._count = 0

    def fresh(self) -> str:
        """A value that nobody wrote before."""
        self._count += 1
        return f"{self.name}.{self._count}"

    def generation(self) -> int:
        return int((time.monotonic() - self.options.since) / GENERATION_S)

    def pause(self, least_s: float, most_s: float) -> None:
        self.options.ended.wait(self.rng.uniform(least_s, most_s))

    def run(self) -> None:
        while not self.options.ended.is_set():
            self.turn()

    def turn(self) -> None:
        raise NotImplementedError

    def call(self, kind: str, key: str, argument: Any, act: Callable[[], Any]) -> Any:
        """Do `act` and note it; its answer, or the error it ended in.

        `act` returns (result, revision) as they are noted.
        """
        called = time.monotonic()
        try:
            result, revision = act()
        except SwarmError as error:
            if error.code not in _NOT_DONE:
                self.options.notebook.note(Call(self.name, kind, key, called, None, argument))
            self.client.close()
            self.pause(*_PAUSE_AFTER_TROUBLE_S)
            return None
        returned = time.monotonic()
        call = Call(self.name, kind, key, called, returned, argument, result, revision)
        self.options.notebook.note(call)
        return call


class Options:
    """What all clients of the process share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.seed: int = arguments.seed
        self.since: float = arguments.since
        self.ledger: str = arguments.ledger
        self.stale_reads: bool = arguments.inject == "stale-reads"
        self.notebook = Notebook(arguments.history)
        self.ended = threading.Event()


class Registers(Worker):
    """Puts, compare-and-sets, deletes and reads of single keys."""

    def __init__(self, name: str, sockets: list[str], options: Options) -> None:
        super().__init__(name, sockets, options)
        # What this client last saw of a key: its value and its revision.
        self._seen: dict[str, tuple[str | None, int]] = {}
        self._generation = 0

    def turn(self) -> None:
        self.pause(0.0, 0.05)
        generation = self.generation()
        if generation != self._generation:
            self._generation, self._seen = generation, {}
        key = f"k/{generation}/{self.rng.randrange(REGISTER_SLOTS)}"
        [act] = self.rng.choices(
            (self.put, self.swap, self.get, self.delete, self.stale, self.get_old),
            (30, 25, 32, 6, 3, 4),
        )
        act(key)

    def put(self, key: str) -> None:
        value = self.fresh()

        def act() -> tuple[None, int]:
            return None, self.client.kv_put(key, value.encode()).mod_revision

        self._saw(key, value, self.call("put", key, value, act))

    def swap(self, key: str) -> None:
        """A compare-and-set against what this client saw last, which may be out of date."""
        old, expect = self._seen.get(key, (None, 0))
        value = self.fresh()

        def act() -> tuple[bool, int]:
            try:
                entry = self.client.kv_put(key, value.encode(), expect=expect)
            except SwarmError as error:
                if error.code != "conflict":
                    raise
                return False, 0
            return True, entry.mod_revision

        done = self.call("cas", key, [old, value], act)
        if done is not None and done.result:
            self._saw(key, value, done)
        else:
            self._seen.pop(key, None)

    def get(self, key: str) -> None:
        def act() -> tuple[str | None, int]:
            return self._read(key, stale=self.options.stale_reads)

        done = self.call("get", key, None, act)
        if done is not None:
            self._seen[key] = (done.result, done.revision)

    def get_old(self, key: str) -> None:
        """Read a key that was left alone some time ago."""
        if self._generation > 0:
            generation = self.rng.randrange(self._generation)
            self.get(f"k/{generation}/{self.rng.randrange(REGISTER_SLOTS)}")

    def stale(self, key: str) -> None:
        self.call("stale", key, None, lambda: self._read(key, stale=True))

    def delete(self, key: str) -> None:
        def act() -> tuple[bool, int]:
            try:
                self.client.kv_delete(key)
            except SwarmError as error:
                if error.code != "not_found":
                    raise
                return False, 0
            return True, 0

        self.call("delete", key, None, act)
        self._seen.pop(key, None)

    def _read(self, key: str, *, stale: bool) -> tuple[str | None, int]:
        try:
            entry = self.client.kv_get(key, stale=stale)
        except SwarmError as error:
            if error.code != "not_found":
                raise
            return None, 0
        return entry.value.decode(), entry.mod_revision

    def _saw(self, key: str, value: str, done: Any) -> None:
        if done is not None:
            self._seen[key] = (value, done.revision)
        else:
            self._seen.pop(key, None)


class Groups(Worker):
    """Keys that are read together and written in transactions, and keys that are written once."""

    def __init__(self, name: str, sockets: list[str], options: Options) -> None:
        super().__init__(name, sockets, options)
        self._seen: dict[str, Any] = {}

    def turn(self) -> None:
        self.pause(0.0, 0.08)
        group = f"g/{self.generation()}"
        keys = [f"{group}/{slot}" for slot in range(GROUP_SLOTS)]
        [act] = self.rng.choices((self.put, self.change, self.read, self.once), (20, 25, 30, 25))
        act(group, keys)

    def put(self, group: str, keys: list[str]) -> None:
        key, value = self.rng.choice(keys), self.fresh()

        def act() -> tuple[None, int]:
            return None, self.client.kv_put(key, value.encode()).mod_revision

        self.call("put", key, value, act)

    def change(self, group: str, keys: list[str]) -> None:
        """A transaction: new values for some keys if the first is as this client saw it last."""
        first, *others = self.rng.sample(keys, self.rng.randint(2, len(keys)))
        old, revision = self._seen.get(first, (None, 0))
        new = [self.fresh() for _ in (first, *others)]
        puts = [
            KvOperation(op="put", key=key, text=value)
            for key, value in zip((first, *others), new, strict=True)
        ]

        def act() -> tuple[bool, int]:
            done = self.client.kv_txn([KvCompare(key=first, revision=revision)], puts)
            return done.branch == "then", done.revision if done.branch == "then" else 0

        argument = [[first, old, new[0]], *map(list, zip(others, new[1:], strict=True))]
        self.call("txn", group, argument, act)

    def read(self, group: str, keys: list[str]) -> None:
        def act() -> tuple[dict[str, Any], int]:
            found = self.client.kv_list(f"{group}/")
            return {one.key: [one.value.decode(), one.mod_revision] for one in found}, 0

        done = self.call("list", f"{group}/", keys, act)
        self._seen = done.result if done is not None else {}

    def once(self, group: str, keys: list[str]) -> None:
        value = self.fresh()
        key = f"once/{value}"

        def act() -> tuple[bool, int]:
            try:
                entry = self.client.kv_put(key, value.encode(), expect=0)
            except SwarmError as error:
                if error.code != "conflict":
                    raise
                return False, 0
            return True, entry.mod_revision

        self.call("once", key, value, act)


class Watches(Worker):
    """Follows the groups' changes; where a watch breaks off for good, another one begins."""

    def run(self) -> None:
        count = 0
        while not self.options.ended.is_set():
            count += 1
            try:
                self._watch(f"{self.name}.{count}")
            except SwarmError:
                self.pause(*_PAUSE_AFTER_TROUBLE_S)

    def _watch(self, who: str) -> None:
        called = time.monotonic()
        with Client(self.sockets, timeout_s=2 * CALL_TIMEOUT_S) as client:
            for told in client.kv_watch("g/", retry_s=PATIENCE_S):
                changes = [
                    [one.key, (one.value or b"").decode(), one.revision] for one in told.changes
                ]
                self.options.notebook.note(
                    Call(who, "watch", "g/", called, time.monotonic(), None, changes, told.revision)
                )
                if self.options.ended.is_set():
                    return


class Tasks(Worker):
    """Submits tasks and waits for them; every one is written down outside when it starts."""

    def turn(self) -> None:
        mode = self.rng.choice(_MODES)
        keys = [self.fresh() for _ in range(self.rng.randint(1, 4))]
        batch = [self._task(key, mode) for key in keys]
        ids = self._submit(batch, keys, mode, self.sockets[0])
        while ids is None and not self.options.ended.is_set():
            ids = self._submit(batch, keys, mode, self.rng.choice(self.sockets))
        if self.rng.random() < 0.2:
            self._submit(batch, keys, mode, self.rng.choice(self.sockets))
        if ids:
            self._wait(ids)
        self.pause(0.0, 0.5)

    def _task(self, key: str, mode: str) -> dict[str, Any]:
        payload = {"ledger": self.options.ledger, "key": key, "ms": self.rng.randint(0, 300)}
        return {"agent": "ledger", "key": key, "input": payload, "mode": mode}

    def _submit(
        self, batch: list[dict[str, Any]], keys: list[str], mode: str, socket: str
    ) -> list[str] | None:
        """The tasks' ids once they are acknowledged; None if that is unknown."""
        called = time.monotonic()
        try:
            with Client(socket, timeout_s=CALL_TIMEOUT_S) as client:
                answers = client.submit(batch)
        except SwarmError:
            answers = []
        returned = time.monotonic()
        acknowledged = []
        for number, key in enumerate(keys):
            taken = bool(answers) and answers[number].error is None
            when = returned if taken else None
            task_id = answers[number].id if taken else None
            self.options.notebook.note(Call(self.name, "submit", key, called, when, mode, task_id))
            if task_id is not None:
                acknowledged.append(task_id)
        if len(acknowledged) == len(keys):
            return acknowledged
        self.pause(*_PAUSE_AFTER_TROUBLE_S)
        return None

    def _wait(self, ids: list[str]) -> None:
        """Note each task's end. Those that take too long are looked at when all is over."""
        called = time.monotonic()
        sockets = [self.sockets[0], *self.sockets]
        try:
            with Client(sockets, timeout_s=CALL_TIMEOUT_S) as client:
                for task in client.results(ids, retry_s=PATIENCE_S):
                    ended = [task.state, committed_fence(task)]
                    self.options.notebook.note(
                        Call(self.name, "task", task.id, called, time.monotonic(), None, ended)
                    )
                    if self.options.ended.is_set():
                        return
        except SwarmError:
            return  # The verdict asks for every task again.


def committed_fence(task: Any) -> int:
    """The fence under which the task's result was made, as the agent saw it."""
    return int(task.result["fence"]) if task.state == "succeeded" else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--socket", action="append", required=True, dest="sockets")
    parser.add_argument("--history", type=Path, required=True)
    parser.add_argument("--ledger", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--since", type=float, required=True, help="on the monotonic clock")
    parser.add_argument("--inject", choices=("", "stale-reads"), default="")
    arguments = parser.parse_args()
    options = Options(arguments)
    kinds = {"r": Registers, "s": Registers, "g": Groups, "w": Watches, "t": Tasks}
    workers = [
        kind(f"{arguments.name}{letter}", arguments.sockets, options)
        for letter, kind in kinds.items()
    ]
    signal.signal(signal.SIGTERM, lambda *_: options.ended.set())
    broken: list[BaseException] = []

    def run(worker: Worker) -> None:
        try:
            worker.run()
        except BaseException as error:
            broken.append(error)
            options.ended.set()
            raise

    threads = [threading.Thread(target=run, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    options.notebook.close()
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

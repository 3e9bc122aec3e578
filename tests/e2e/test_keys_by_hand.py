"""Watches, transactions and leases of real daemons, also when they are killed."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from localswarm import BIN, LocalSwarm, wait_until
from mistakes import short_folder

from swarmd.base.errors import SwarmError
from swarmd.client import Client, KvCompare, KvOperation


@pytest.fixture(scope="module")
def lab() -> Iterator[LocalSwarm]:
    """Three daemons with three voters, for those tests of this file that kill none."""
    with short_folder() as root, LocalSwarm(root, 3) as swarm:
        swarm.form()
        yield swarm


def write(swarm: LocalSwarm, key: str, value: bytes) -> int:
    """Put through any daemon that lives, until one acknowledges; repeating it is harmless."""
    deadline = time.monotonic() + 30
    while True:
        for daemon in swarm.alive():
            try:
                with Client(daemon.socket, timeout_s=10) as client:
                    return client.kv_put(key, value).mod_revision
            except SwarmError:
                if time.monotonic() > deadline:
                    raise


class Watching:
    """A watch in a thread of its own, through several daemons."""

    def __init__(self, swarm: LocalSwarm, *indices: int) -> None:
        self.seen: list[tuple[int, str, bytes | None]] = []
        self.marked = threading.Event()
        self.error: BaseException | None = None
        self._sockets = [swarm[index].socket for index in indices]
        threading.Thread(target=self._run, daemon=True).start()
        assert self.marked.wait(20), self.error

    def _run(self) -> None:
        try:
            for told in Client(self._sockets).kv_watch("w/"):
                self.marked.set()
                self.seen += [(one.revision, one.key, one.value) for one in told.changes]
        except SwarmError as error:
            self.error = error  # At the end of the test all daemons are gone.

    def reaches(self, revision: int) -> None:
        wait_until(f"change {revision} is told", lambda: self.seen and self.seen[-1][0] >= revision)


@pytest.mark.long
def test_watches_go_on_over_killed_daemons(folder: Path) -> None:
    """Four daemons, three of them voters; the coordinator and the watched one are killed."""
    with LocalSwarm(folder, 4) as swarm:
        swarm.form(voters=3)
        watches = [Watching(swarm, 0, 1, 2, 3), Watching(swarm, 2, 3), Watching(swarm, 3, 2)]
        last = 0
        for number in range(30):
            last = write(swarm, f"w/{number}", b"%d" % number)
            if number == 10:
                killed = swarm.coordinator() or swarm[0]
                killed.kill()
            if number == 20:
                killed.start()
                swarm.wait_whole(voters=3)
                swarm[2].kill()
        for watch in watches:
            watch.reaches(last)
            # A write whose answer was lost is repeated, and then told with both revisions.
            names = [key for _, key, _ in watch.seen]
            assert list(dict.fromkeys(names)) == [f"w/{number}" for number in range(30)]
            assert watch.seen == sorted(set(watch.seen))
            assert watch.seen == watches[0].seen


@pytest.mark.long
def test_keys_go_with_their_lease_also_when_the_coordinator_is_killed(folder: Path) -> None:
    with LocalSwarm(folder, 3) as swarm:
        swarm.form()
        with Client(swarm[1].socket) as client:
            short, long = client.lease_grant(3.0).id, client.lease_grant(600.0).id
            client.kv_put("short", b"", lease=short)
            client.kv_put("long", b"", lease=long)
        began = time.monotonic()
        killed = swarm.coordinator()
        assert killed is not None
        killed.kill()
        other = swarm.alive()[0]
        wait_until(
            "the key of the short lease goes",
            lambda: [one["key"] for one in other.json("kv", "list")] == ["long"],
        )
        assert time.monotonic() - began > 2.0
        gone = other.ctl("lease", "renew", str(short), "--json")
        assert (gone.returncode, json.loads(gone.stdout)["error"]["code"]) == (1, "lease_expired")
        assert other.json("lease", "renew", str(long))["left_s"] == 600.0
        assert other.ctl("lease", "revoke", str(long)).returncode == 0
        assert other.json("kv", "list") == []


def test_a_transaction_is_all_or_nothing_from_each_daemon(lab: LocalSwarm) -> None:
    """Each adds to both of two counters, by compares; in the end both say the same."""
    rounds = 10

    def add(socket: Path) -> None:
        with Client(socket) as client:
            for _ in range(rounds):
                while True:
                    now = {one.key: one for one in client.kv_list("n/")}
                    compares, puts = [], []
                    for key in ("n/a", "n/b"):
                        entry = now.get(key)
                        value = int(entry.value) if entry else 0
                        revision = entry.mod_revision if entry else 0
                        compares.append(KvCompare(key=key, revision=revision))
                        puts.append(KvOperation(op="put", key=key, text=str(value + 1)))
                    if client.kv_txn(compares, puts).branch == "then":
                        break

    threads = [threading.Thread(target=add, args=(daemon.socket,)) for daemon in lab.daemons]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {one["key"]: one for one in lab[0].json("kv", "list", "n/")}
    values = [int(base64.b64decode(found[key]["value"])) for key in ("n/a", "n/b")]
    assert values == [3 * rounds] * 2
    assert found["n/a"]["mod_revision"] == found["n/b"]["mod_revision"]


def test_watch_as_typed_ends_with_ctrl_c(lab: LocalSwarm) -> None:
    command = [str(BIN / "swarmctl"), "kv", "watch", "colour", "--from", "1", "--json"]
    environ = {**os.environ, "SWARMCTL_SOCKET": str(lab[2].socket)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
    assert process.stdout is not None
    revision = lab[0].json("kv", "put", "colour", "blue")["mod_revision"]
    told = json.loads(process.stdout.readline())
    assert told == {"key": "colour", "value": "Ymx1ZQ==", "revision": revision}
    process.send_signal(2)
    assert process.wait(10) == 130


@pytest.mark.parametrize("index", [0, 2])
def test_each_mistake_has_a_code_of_its_own(lab: LocalSwarm, tmp_path: Path, index: int) -> None:
    daemon = lab[index]
    large = tmp_path / "large"
    large.write_bytes(b"x" * (1024 * 1024 + 1))
    many = tmp_path / "many.json"
    many.write_text(json.dumps({"then": [{"op": "put", "key": "bad/a", "text": ""}] * 257}))
    unknown = tmp_path / "unknown.json"
    unknown.write_text(json.dumps({"then": [{"op": "swap", "key": "bad/a"}]}))
    codes = []
    for words in (
        ("kv", "put", "bad/a", "--file", str(large)),
        ("kv", "put", "", "v"),
        ("kv", "put", "k" * 1_100, "v"),
        ("kv", "txn", str(many)),
        ("kv", "txn", str(unknown)),
        ("kv", "put", "bad/a", "v", "--expect", "99"),
        ("kv", "put", "bad/a", "v", "--lease", "99"),
        ("lease", "grant", "--ttl", "2d"),
    ):
        done = daemon.ctl(*words, "--json")
        assert done.returncode in (1, 2)
        codes.append(json.loads(done.stdout)["error"]["code"])
    assert codes == [
        "value_too_large",
        "empty_key",
        "key_too_long",
        "too_large",
        "unknown_operation",
        "conflict",
        "lease_expired",
        "bad_ttl",
    ]
    assert daemon.json("kv", "list", "bad/") == [], "nothing was half applied"

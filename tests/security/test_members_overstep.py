"""Who belongs, or did, and does what it may not: on real daemons, with the key of one of them."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from insiders import ask_as, is_heard, key_of, log_of
from localswarm import BIN, Daemon, LocalSwarm, wait_until

from swarmd.audit.anchors import anchor_key
from swarmd.identity.tls import MESH_ALPN, RAFT_ALPN
from swarmd.identity.voter import Voter
from swarmd.mesh.transports.carriers import Ended
from swarmd.state.raft import messages as m
from swarmd.state.secrets.records import RING_KEY, USES_KEY, secret_key
from swarmd.tasks.spec import (
    OFFICE_KEY,
    Assignment,
    assignment_key,
    encode_record,
    job_key,
    task_key,
)
from swarmd.wire.codec import Message

CUT_OFF_S = 2.0
AGENT = """
name = "echo"
version = "1"
entry = "echo:run"

[env]
PASSWORD = "secret:db"
"""
CODE = """
import os


def run(item):
    return [item, len(os.environ["PASSWORD"])]
"""


@pytest.fixture(scope="module")
def swarm() -> Iterator[LocalSwarm]:
    root = Path(tempfile.mkdtemp(prefix="swarmd-"))
    with LocalSwarm(root, 4) as four:
        four.form(voters=3)
        yield four
    shutil.rmtree(root, ignore_errors=True)


def spare_and_voters(swarm: LocalSwarm) -> tuple[Daemon, list[Daemon]]:
    seated = {one["node"] for one in swarm[0].json("voter", "list") if one["seat"]}
    [spare] = [d for d in swarm.daemons if d.name not in seated]
    return spare, [d for d in swarm.daemons if d is not spare]


def test_worker_talks_raft(swarm: LocalSwarm) -> None:
    """A member without the role of a voter is refused on the log's plane, and only there."""
    worker, voters = spare_and_voters(swarm)
    key = key_of(worker)
    log = log_of(swarm[0])
    assert is_heard(voters[0], key, log, RAFT_ALPN), "it may vote, so far"
    assert swarm[0].ctl("node", "roles", worker.name, "worker").returncode == 0
    for daemon in voters:
        wait_until("refused", lambda d=daemon: not is_heard(d, key, log, RAFT_ALPN))
        assert is_heard(daemon, key, log, MESH_ALPN)
    wait_until("whole again", lambda: swarm[0].try_json("status")["alive"] == 4)


def a_worker(swarm: LocalSwarm) -> tuple[Daemon, list[Daemon]]:
    """The member without a seat, which may only work from here on; and the voters."""
    worker, voters = spare_and_voters(swarm)
    assert swarm[0].ctl("node", "roles", worker.name, "worker").returncode == 0
    key, log = key_of(worker), log_of(swarm[0])
    for daemon in voters:
        wait_until("refused", lambda d=daemon: not is_heard(d, key, log, RAFT_ALPN))
    return worker, voters


def set_secret(daemon: Daemon, name: str, value: str) -> None:
    command = [str(BIN / "swarmctl"), "--socket", str(daemon.socket), "secret", "set", name]
    done = subprocess.run(command, input=value, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@contextmanager
def drops_of_a_dead_member() -> Iterator[None]:
    """Once it is found that the member's own daemon is dead, all of its connections are broken."""
    try:
        yield
    except* (Ended, trio.BrokenResourceError):
        pass


class Insider:
    """Root of a member: it stops the daemon there, and asks who coordinates in its place."""

    def __init__(self, swarm: LocalSwarm, member: Daemon) -> None:
        self.swarm, self.member = swarm, member
        self.key, self.log = key_of(member), log_of(member)
        self.id = self.key.key_id

    def __enter__(self) -> Insider:
        self.member.kill()  # A node has one connection to another: the daemon would take it back.
        return self

    def __exit__(self, *_: object) -> None:
        self.member.start()

    def ask(self, message: Message) -> Any:
        """What the coordinator answers."""

        def asked() -> Any:
            coordinator = self.swarm.coordinator()
            assert coordinator is not None
            answer = None
            with drops_of_a_dead_member():
                answer = ask_as(coordinator, self.key, self.log, m.STORE, message)
            return None if isinstance(answer, m.Redirect) else answer

        return wait_until("the coordinator answers", asked)

    def codes_of(self, ops: Sequence[m.Operation]) -> list[str | None]:
        """What becomes of each, forwarded in a group of its own."""
        answer = self.ask(m.Forward(tuple(m.Group(b"", 0, 0, (op,)) for op in ops)))
        return [result.code for results in answer.groups for result in results]

    def all_under(self, *prefixes: bytes) -> list[m.Entry]:
        asks = [m.RangeAsk(prefix, b"", 1_000, False) for prefix in prefixes]
        return [entry for one in asks for entry in self.ask(one).entries]


def test_worker_writes_what_is_not_its_own(swarm: LocalSwarm) -> None:
    """Goal: root of a member that may only work writes no assignment, nobody's anchor but its
    own, and nothing of the ring; and it is on record that it tried.

    Method: with the worker's key, and its daemon's TLS and hellos, every such operation is sent to
    the coordinator directly, plainly and inside of transactions.
    """
    worker, voters = a_worker(swarm)
    set_secret(worker, "db", "a password")  # So that there is a ring.
    with Insider(swarm, worker) as insider:
        count = write_everything(insider, voters[0])

    def on_record() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = voters[0].json("audit", "--kind", "member.overstepped")
        return found

    # One record for all that was refused in the same few seconds.
    [record] = wait_until("on record", on_record, timeout_s=40.0)
    assert record["actor"] == worker.name
    assert record["outcome"] == "forbidden"
    assert record["details"] == f"{count} times"
    wait_until("whole again", lambda: swarm[0].try_json("status")["alive"] == 4)


def write_everything(insider: Insider, victim: Daemon) -> int:
    """Have the coordinator refuse all that is not the insider's; how much that was."""
    theirs = anchor_key(key_of(victim).key_id, "security")
    mine = anchor_key(insider.id, "security")

    def anchored() -> bool:
        return theirs in {entry.key for entry in insider.all_under(m.ANCHOR_PREFIX)}

    wait_until("the victim named its records", anchored, timeout_s=60.0)
    protected = (b"a/", b"t/", b"j/", b"o/", m.SECRET_PREFIX)
    before = insider.all_under(*protected)
    assert RING_KEY in {entry.key for entry in before}
    task = "0" * 32
    assignment = encode_record(Assignment(task, 1, insider.id, b"b" * 8))
    keys = (
        assignment_key(task), task_key(task), job_key(task), OFFICE_KEY, theirs, RING_KEY, USES_KEY,
        secret_key("db"),
    )  # fmt: skip
    attempts: list[m.Operation] = [m.Put(key, assignment) for key in keys]
    attempts += [m.Delete(key) for key in keys if key != secret_key("db")]
    attempts += [m.Txn((), (m.Put(b"u/cover", b""), m.Put(key, assignment))) for key in keys]
    attempts += [m.Txn((m.Compare(b"u/none"),), (), (m.Put(key, b""),)) for key in keys]
    epoch = victim.json("status")["store"]["epoch"]
    seat = Voter(insider.key.public, bytes(16))
    attempts += [m.Add(b"x", 1), m.TakeOffice(insider.id), m.Seal(epoch + 1, (seat,))]
    assert insider.codes_of(attempts) == ["forbidden"] * len(attempts)
    assert insider.all_under(*protected) == before
    assert theirs in {entry.key for entry in insider.all_under(m.ANCHOR_PREFIX)}
    assert insider.all_under(b"u/cover") == []
    # Its own anchor is its own, and what users of its API may do is not kept from it.
    own = mine + b"/12345678"
    innocent = (m.Put(own, b"mine"), m.Delete(own), m.Put(b"u/notes", b"1"))
    assert insider.codes_of(innocent) == [None] * 3
    return len(attempts)


def test_a_workers_users_do_what_they_did(swarm: LocalSwarm, tmp_path: Path) -> None:
    """What a node that may only work proposes for its users goes on to be written."""
    worker, voters = a_worker(swarm)
    (tmp_path / "echo.toml").write_text(AGENT)
    (tmp_path / "echo.py").write_text(CODE)
    set_secret(worker, "db", "a password")
    set_secret(worker, "spare", "another one")
    for command in (
        ["kv", "put", "notes/1", "hello"],
        ["kv", "delete", "notes/1"],
        ["lock", "--ttl", "10s", "build", "true"],
        ["counter", "add", "builds", "3"],
        ["lease", "grant", "--ttl", "5s"],
        ["key", "create", "ci", "--role", "viewer"],
        ["key", "revoke", "ci"],
        ["voter", "pin", voters[0].name],
        ["voter", "unpin", voters[0].name],
        ["agent", "deploy", str(tmp_path / "echo.toml")],
        ["secret", "delete", "spare"],
    ):
        done = worker.ctl(*command)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    ran = worker.json("run", "echo", "--input", "7")
    assert (ran["state"], ran["result"]) == ("succeeded", [7, len("a password")])
    assert worker.ctl("agent", "remove", "echo").returncode == 0
    assert worker.ctl("counter", "get", "builds").stdout.split() == ["3"]


@pytest.mark.alone
def test_evicted_node(swarm: LocalSwarm) -> None:
    """Nothing is accepted from it, on any plane of anybody, two seconds after."""
    spare, others = spare_and_voters(swarm)
    key = key_of(spare)
    log = log_of(swarm[0])
    assert all(is_heard(daemon, key, log, MESH_ALPN) for daemon in others)
    began = time.monotonic()
    assert swarm[0].ctl("node", "evict", spare.name, "--yes", spare.name).returncode == 0
    for daemon in others:
        wait_until(
            "not heard any more",
            lambda d=daemon: not is_heard(d, key, log, MESH_ALPN),
            timeout_s=CUT_OFF_S,
        )
    assert time.monotonic() - began < CUT_OFF_S
    assert not any(is_heard(d, key, log, plane) for d in others for plane in (MESH_ALPN, RAFT_ALPN))


@pytest.mark.parametrize(
    "headers",
    [
        "Host: evil.example",
        "Host: evil.example:7575",
        "Host: localhost\r\nOrigin: http://evil.example",
        "Host: localhost\r\nOrigin: null",
        "Host: localhost\r\nOrigin: https://evil.example\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    ],
)
@pytest.mark.parametrize("what", ["GET /api/v1/status", "POST /api/v1/stop", "GET /health"])
def test_browser_as_a_deputy(swarm: LocalSwarm, headers: str, what: str) -> None:
    """A name that was bound anew, another site's page, its WebSocket: 403, and nothing is done."""
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(10)
        one.connect(str(swarm[0].socket))
        body = "Content-Length: 2\r\n\r\n{}" if what.startswith("POST") else "\r\n"
        one.sendall(f"{what} HTTP/1.1\r\n{headers}\r\n{body}".encode())
        assert one.recv(4_096).startswith(b"HTTP/1.1 403 ")
    assert swarm[0].json("status")["ready"]

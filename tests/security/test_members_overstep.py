"""Who belongs, or did, and does what it may not: on real daemons, with the key of one of them."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from insiders import is_heard, key_of, log_of
from localswarm import Daemon, LocalSwarm, wait_until

from swarmd.identity.tls import MESH_ALPN, RAFT_ALPN

CUT_OFF_S = 2.0


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

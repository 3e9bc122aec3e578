"""An agent that wants more than its task: on a daemon that root has started."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from localswarm import LocalSwarm

from swarmd.sdk.protocol import RESULT, encode_frame

AGENT = Path(__file__).parent / "agents" / "escaper" / "escaper.toml"

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can change users")


@pytest.fixture(scope="module")
def swarm() -> Iterator[LocalSwarm]:
    root = Path(tempfile.mkdtemp(prefix="swarmd-"))
    with LocalSwarm(root, 2) as two:
        two.form(voters=1)
        two[0].json("agent", "deploy", str(AGENT))
        yield two
    shutil.rmtree(root, ignore_errors=True)


def run(swarm: LocalSwarm, value: dict[str, Any], *, code: int = 0) -> Any:
    done = swarm[0].ctl("run", "escaper", "--input", json.dumps(value), "--json")
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_agent_escape(swarm: LocalSwarm) -> None:
    """The node's key, its disks, its socket, its process: out of reach; and a user of its own."""
    wanted: dict[str, Any] = {"read": [], "list": [], "write_to": [], "daemon": 0}
    for daemon in swarm.daemons:
        data = daemon.folder / "data"
        assert daemon.process is not None
        keys = list((daemon.folder / "keys").glob("*"))
        wanted["read"] += map(str, [data / "node.key", data / "node", data / "lock", *keys])
        rooms = [data, *(data / room for room in ("mesh", "raft", "blobs", "agents"))]
        wanted["list"] += map(str, [*rooms, data / "agents" / "scratch"])
        wanted["write_to"] += map(str, [data, data / "agents", data / "agents" / "bundles"])
        wanted["socket"] = str(daemon.socket)
        wanted["daemon"] = daemon.process.pid
    shown = run(swarm, wanted)
    found = shown["result"]
    assert found["reached"] == ["own folder"]
    assert 60_579 <= found["uid"] <= 61_183
    assert found["groups"] == [] or found["groups"] == [60_578]
    assert found["no_new_privs"]
    assert int(found["capabilities"], 16) == 0
    assert found["environ"] == ["HOME", "LANG", "PATH", "TMPDIR"]
    assert found["files"] == [1_024, 1_024]
    assert found["core"] == [0, 0]


def test_an_agent_cannot_answer_for_another_attempt(swarm: LocalSwarm) -> None:
    """What a task's result is goes by the daemon's fence; a frame of another run ends the agent."""
    before = swarm[0].json("status")["tasks"]
    frame = encode_frame(RESULT, 77, b"\xa6forged")
    shown = run(swarm, {"write": frame.hex()}, code=1)
    assert shown["error"]["code"] == "agent_garbage"
    assert shown.get("result") is None
    after = swarm[0].json("status")["tasks"]
    assert after["succeeded"] == before["succeeded"]

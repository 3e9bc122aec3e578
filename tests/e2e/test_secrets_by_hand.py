"""Secrets of real daemons: after an eviction, after all were killed, and in a snapshot file."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from localswarm import BIN, Daemon, LocalSwarm, wait_until

from swarmd.client import Client, TaskInput
from swarmd.state.secrets.keyring import FILE_NAME, read_keyring

VALUE = "a password that nobody shall see"
SPEC = """
name = "reader"
version = "1"
entry = "reader:run"

[env]
PASSWORD = "secret:db"
MODE = "a plain value that is nobody's business"
"""
CODE = """
import hashlib
import os


def run(item):
    text = os.environ["PASSWORD"] + os.environ["MODE"]
    return hashlib.sha256(text.encode()).hexdigest()
"""
EXPECTED = hashlib.sha256((VALUE + "a plain value that is nobody's business").encode()).hexdigest()


def read(daemon: Daemon) -> object:
    with Client(str(daemon.socket)) as client:
        [task] = client.submit([TaskInput(agent="reader", input=None)])
        [done] = client.results([task.id])
        return done.result if done.state == "succeeded" else done


def keys_of(daemon: Daemon) -> set[bytes]:
    try:
        raw = (daemon.folder / "data" / "secrets" / FILE_NAME).read_bytes()
    except FileNotFoundError:
        return set()
    return {key.raw for key in read_keyring(raw)}


def ended(daemon: Daemon) -> int:
    assert daemon.process is not None
    return daemon.process.wait(timeout=30)


@pytest.mark.long
def test_secrets_outlive_an_eviction_and_a_loss_of_power(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "reader.toml").write_text(SPEC)
    (tmp_path / "reader.py").write_text(CODE)
    with LocalSwarm(folder, 4) as swarm:
        swarm.form(voters=3)
        done = subprocess.run(
            [str(BIN / "swarmctl"), "--socket", str(swarm[3].socket), "secret", "set", "db"],
            input=VALUE,
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert swarm[1].ctl("agent", "deploy", str(tmp_path / "reader.toml")).returncode == 0
        assert read(swarm[2]) == EXPECTED
        wait_until("all have the key", lambda: all(map(keys_of, swarm.daemons)))
        first = keys_of(swarm[0])
        kept = (swarm[0].folder / "data" / "secrets" / FILE_NAME).read_bytes()
        voters = swarm[0].json("status")["store"]["voters"]
        gone = next(one for one in swarm.daemons if one.name not in voters)
        assert swarm[0].ctl("node", "evict", gone.name, "--yes", gone.name).returncode == 0
        left = [one for one in swarm.daemons if one is not gone]
        wait_until("another key", lambda: all(keys_of(one) > first for one in left))
        wait_until("the evicted node deletes what it had", lambda: not keys_of(gone))
        # Nor does one keep them that lost power before it could.
        assert ended(gone) == 1
        (gone.folder / "data" / "secrets" / FILE_NAME).write_bytes(kept)
        assert keys_of(gone) == first
        gone.start()
        assert ended(gone) == 1
        assert not keys_of(gone)
        assert [read(one) for one in left] == [EXPECTED] * 3
        for one in left:
            one.kill()
        for one in left:
            one.start()
        wait_until(
            "ready", lambda: all((one.try_json("status") or {}).get("ready") for one in left)
        )
        assert [read(one) for one in left] == [EXPECTED] * 3
        file = tmp_path / "snapshot"
        assert left[0].ctl("snapshot", "save", str(file)).returncode == 0
        raw = file.read_bytes()
        assert b"reader" in raw
        assert VALUE.encode() not in raw
        assert b"nobody's business" not in raw

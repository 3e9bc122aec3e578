"""What keeps nodes apart is made for real here, and the doctor names it and nothing else.

What takes hosts of their own - multicast, firewalls, MTUs, names - is in
`tests/hosts/test_doctor_hosts.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from localswarm import BIN, Daemon, LocalSwarm, wait_until
from mistakes import QUICK

from swarmd.wire.version import PROTOCOL_VERSION

ROOT = Path(__file__).resolve().parents[2]
# Preloaded by Python: this build says that it speaks the next protocol version, as a newer would.
NEWER_BUILD = f"""
import swarmd.wire.version
swarmd.wire.version.PROTOCOL_VERSION = {PROTOCOL_VERSION + 1}
"""

Checks = dict[str, dict[str, str]]


def doctor(daemon: Daemon) -> Checks:
    """All checks, by name."""
    done = daemon.ctl("doctor", "--json")
    assert done.returncode in (0, 1), done.stderr
    return {one["name"]: one for one in json.loads(done.stdout)["checks"]}


def complaints(daemon: Daemon) -> Checks:
    """What is not well; but for the clock of a node that has nobody to compare it with."""
    found = {name: one for name, one in doctor(daemon).items() if one["verdict"] != "ok"}
    if found.get("clock", {}).get("finding") == "this machine's clock is not synchronised":
        del found["clock"]
    return found


def from_outside(daemon: Daemon) -> Checks:
    """What is found while the daemon does not run, but for that."""
    done = subprocess.run(
        [str(BIN / "swarmctl"), "--socket", str(daemon.socket), "doctor", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "SWARMD_CONFIG": str(daemon.folder / "swarmd.toml")},
        check=False,
    )
    assert done.returncode == 1, done.stderr
    found = {one["name"]: one for one in json.loads(done.stdout)["checks"]}
    assert found.pop("daemon")["verdict"] == "fail"
    return {n: one for n, one in found.items() if one["verdict"] != "ok" and n != "clock"}


def ended(daemon: Daemon) -> None:
    assert daemon.process is not None
    wait_until("the daemon has ended", lambda: daemon.process.poll() is not None)  # type: ignore[union-attr]


def test_a_clock_that_is_off_is_named_with_its_owner(folder: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("a C compiler shifts a clock")
    library = folder / "clock_shift.so"
    source = str(ROOT / "scripts" / "clock_shift.c")
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), source, "-ldl"]
    subprocess.run(command, check=True)
    with LocalSwarm(folder / "s", 3, settings=QUICK) as swarm:
        swarm[2].environ = {"LD_PRELOAD": str(library), "CLOCK_SHIFT_S": "90"}
        swarm.form()
        found = complaints(swarm[2])
        assert set(found) == {"clock"}
        assert found["clock"]["verdict"] == "fail"
        assert "this machine's clock is 90." in found["clock"]["finding"]
        assert "ahead of the other members'" in found["clock"]["finding"]
        assert "set-ntp" in found["clock"]["advice"]
        found = complaints(swarm[0])
        assert set(found) == {"clock"}
        assert "n3's is 90." in found["clock"]["finding"]
        assert "ahead of this machine's and most others'" in found["clock"]["finding"]


def test_another_swarm_on_the_wire_is_named(folder: Path) -> None:
    with LocalSwarm(folder / "a", 1, static=False) as ours:
        ours.form()
        with LocalSwarm(folder / "b", 1, static=False) as other:  # Takes another port.
            other.form()
            found = wait_until(
                "the other swarm is heard",
                lambda: doctor(ours[0]).get("other swarms"),
                timeout_s=20,
            )
            assert found["verdict"] == "warn"
            assert f"{other[0].address}:{other[0].port}, and none of lab" in found["finding"]
            assert "with a token" in found["advice"]
            assert set(complaints(ours[0])) == {"other swarms", "mDNS lo", "quorum"}


def test_a_seed_that_belongs_to_another_swarm_is_named(folder: Path) -> None:
    with LocalSwarm(folder / "a", 1) as other:
        other.form()
        place = f"{other[0].address}:{other[0].port}"
        with LocalSwarm(folder / "b", 1, settings={"mesh": {"seeds": [place]}}) as ours:
            ours.form()
            found = complaints(ours[0])
            assert f"answer at seeds of this one: {place}: lab" in found["other swarms"]["finding"]
            assert set(found) == {"other swarms", "quorum"}


def test_who_speaks_another_version_is_named_and_who_is_too_old_finds_out(folder: Path) -> None:
    newer = folder / "newer"
    newer.mkdir()
    (newer / "sitecustomize.py").write_text(NEWER_BUILD)
    with LocalSwarm(folder / "s", 3, settings=QUICK) as swarm:
        for daemon in swarm.daemons[:2]:
            daemon.environ = {"PYTHONPATH": str(newer)}
        swarm.form()
        found = complaints(swarm[0])
        assert set(found) == {"version"}
        assert f"n3 speaks {PROTOCOL_VERSION} (0.1.0)" in found["version"]["finding"]
        found = complaints(swarm[2])
        assert set(found) == {"version"}
        assert (
            f"this node speaks protocol version {PROTOCOL_VERSION} " in found["version"]["finding"]
        )
        assert "upgrade" in found["version"]["advice"]
        swarm[0].json("authority", "min-version", str(PROTOCOL_VERSION + 1), "--force")
        ended(swarm[2])
        found = from_outside(swarm[2])
        assert set(found) == {"version"}
        assert (
            f"takes protocol version {PROTOCOL_VERSION + 1} or above" in found["version"]["finding"]
        )
        assert "upgrade swarmd on this host" in found["version"]["advice"]


def test_an_evicted_node_finds_out_from_its_own_disk(folder: Path) -> None:
    with LocalSwarm(folder / "s", 3, settings=QUICK) as swarm:
        swarm.form()
        swarm[0].json("node", "evict", "n3", "--yes", "n3")
        ended(swarm[2])
        found = from_outside(swarm[2])
        assert set(found) == {"swarm"}
        assert "was evicted from the swarm lab" in found["swarm"]["finding"]
        assert "empty data folder" in found["swarm"]["advice"]


def test_a_token_that_has_expired_is_remembered_as_the_reason(folder: Path) -> None:
    with LocalSwarm(folder / "s", 2, settings=QUICK) as swarm:
        first, second = swarm.daemons
        first.start("--init", "lab")
        wait_until("it is ready", lambda: (first.try_json("status") or {}).get("ready"))
        token = first.json("token", "create", "--ttl", "1s")["token"]
        time.sleep(2)
        second.start("--join", "-", stdin=token)
        ended(second)
        found = from_outside(second)
        assert set(found) == {"join"}
        assert "the join token has expired" in found["join"]["finding"]
        assert "swarmctl token create" in found["join"]["advice"]
        kept = (second.folder / "data" / "last-join").read_bytes()
        assert token.encode() not in kept
        assert token[:40].encode() not in kept
        second.start("--join", "-", stdin=first.json("token", "create")["token"])
        swarm.wait_whole()
        assert not (second.folder / "data" / "last-join").exists()
        second.terminate()
        assert from_outside(second) == {}

"""Each check of the doctor finds what is wrong and says what to do.

check        bad finding                          made by
-----------  -----------------------------------  -------------------------------------------
daemon       not running                          here
daemon       in no swarm                          here
daemon       not ready                            tests/unit/gateway/test_gateway_doctor.py
config       a setting that cannot be read        here
data folder  other users may read it              here
data folder  is no folder, not writable           here, tests/unit/gateway/test_gateway_doctor.py
data folder  little room, none                    tests/unit/gateway/test_gateway_doctor.py
port         taken over TCP, over UDP             here
clock        not synchronised                     tests/unit/gateway/test_gateway_doctor.py
clock        this node's or another's is off      tests/e2e/test_doctor_causes.py
swarm        evicted                              tests/e2e/test_doctor_causes.py
join         token expired                        tests/e2e/test_doctor_causes.py
version      another one is spoken, too old       tests/e2e/test_doctor_causes.py
other swarms announced beside this one            tests/e2e/test_doctor_causes.py
addresses    names of loopback, gone addresses    tests/hosts/test_doctor_hosts.py
mDNS         blocked here, blocked beyond         tests/hosts/test_doctor_hosts.py
firewall     one direction, TCP, UDP, both        tests/hosts/test_doctor_hosts.py
MTU          too small on the way, here           tests/hosts/test_doctor_hosts.py
mDNS         off and no seeds                     here
mDNS         no such interface, none at all       here, tests/unit/gateway/test_gateway_doctor.py
mDNS         announced, and nobody heard          here
mDNS         adverts refused                      here
seeds        no member there, no such host        here
members      not heard                            here
members      alive, and not reached over TCP      tests/unit/gateway/test_gateway_doctor.py
quorum       one voter                            here
quorum       no majority                          here
firewall     lines for the tool that is here      here, tests/unit/gateway/test_gateway_doctor.py
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from localswarm import BIN, Daemon, LocalSwarm, wait_until
from mistakes import QUICK, short_folder


@pytest.fixture(scope="module")
def lab() -> Iterator[LocalSwarm]:
    with short_folder() as root, LocalSwarm(root, 3, settings=QUICK) as swarm:
        swarm.form()
        yield swarm


def check(daemon: Daemon, name: str) -> dict[str, str]:
    """One check of the doctor, which says what to do unless all is well, in plain words."""
    done = daemon.ctl("doctor", "--json")
    assert done.returncode in (0, 1), done.stderr
    checks = {one["name"]: one for one in json.loads(done.stdout)["checks"]}
    assert name in checks, checks
    found: dict[str, str] = checks[name]
    assert found["verdict"] == "ok" or found["advice"], found
    failed = any(one["verdict"] == "fail" for one in checks.values())
    assert done.returncode == (1 if failed else 0)
    return found


def from_outside(folder: Path, name: str, **environ: str) -> dict[str, str]:
    """One check while no daemon runs, with the settings in the environment."""
    done = subprocess.run(
        [str(BIN / "swarmctl"), "--socket", str(folder / "none.sock"), "doctor", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "SWARMD_NODE_DATA_FOLDER": str(folder / "data"), **environ},
        check=False,
    )
    assert done.returncode == 1, done.stderr
    checks = {one["name"]: one for one in json.loads(done.stdout)["checks"]}
    found: dict[str, str] = checks[name]
    return found


# ---- without a daemon -----------------------------------------------------------------


def test_a_daemon_that_does_not_run_is_the_first_finding(folder: Path) -> None:
    found = from_outside(folder, "daemon")
    assert found["verdict"] == "fail"
    assert f"no swarmd answers at {folder / 'none.sock'} (no such socket)" in found["finding"]
    assert "start it with `swarmd`" in found["advice"]
    found = from_outside(folder, "config", SWARMD_MESH_PORT="many")
    assert found["verdict"] == "fail"
    assert "SWARMD_MESH_PORT" in found["finding"]
    assert "mesh.port" in found["finding"]


def test_a_folder_that_cannot_be_used_is_named(folder: Path) -> None:
    assert from_outside(folder, "data folder")["verdict"] == "ok"
    (folder / "data").mkdir()
    (folder / "data").chmod(0o755)
    found = from_outside(folder, "data folder")
    assert found["verdict"] == "fail"
    assert f"{folder / 'data'}: other users may read it" in found["finding"]
    assert "--data-folder" in found["advice"]
    (folder / "data").rmdir()
    (folder / "data").write_text("")
    assert "is not a folder" in from_outside(folder, "data folder")["finding"]


@pytest.mark.parametrize(
    ("kind", "name"), [(socket.SOCK_STREAM, "TCP"), (socket.SOCK_DGRAM, "UDP")]
)
def test_a_port_that_is_taken_is_named(folder: Path, kind: socket.SocketKind, name: str) -> None:
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        port = taken.getsockname()[1]
        found = from_outside(
            folder, "port", SWARMD_MESH_PORT=str(port), SWARMD_MESH_BIND="127.0.0.1"
        )
    assert found["verdict"] == "fail"
    assert f"{name} port {port} on 127.0.0.1: Address already in use" in found["finding"]
    assert "mesh.port (--port)" in found["advice"]


def test_firewall_lines_fit_the_port_and_the_tool(folder: Path) -> None:
    tools = folder / "bin"
    tools.mkdir()
    (tools / "ufw").write_text("#!/bin/sh\n")
    (tools / "ufw").chmod(0o755)
    found = from_outside(
        folder, "firewall", PATH=f"{tools}:{os.environ['PATH']}", SWARMD_MESH_PORT="7999"
    )
    assert "ufw allow 7999" in found["advice"]
    assert "ufw allow 5353/udp" in found["advice"]


# ---- one daemon -----------------------------------------------------------------------


def test_a_daemon_in_no_swarm_is_told_both_ways_in(folder: Path) -> None:
    with LocalSwarm(folder / "s", 1) as swarm:
        swarm[0].start()
        wait_until("the daemon answers", lambda: swarm[0].try_json("status"))
        found = check(swarm[0], "daemon")
        assert found["verdict"] == "fail"
        assert "is in no swarm" in found["finding"]
        assert "`swarmd --init NAME`" in found["advice"]
        assert "`swarmd --join -`" in found["advice"]
        text = swarm[0].ctl("doctor").stdout
        assert "answered" not in text
        assert "reached" not in text


def test_a_lonely_node_hears_what_it_lacks(folder: Path) -> None:
    """One node after the other ill: mDNS off, an interface that is not there, seeds of nobody."""
    with LocalSwarm(folder / "s", 1) as swarm:
        node = swarm[0]
        swarm.form()
        found = check(node, "quorum")
        assert found["verdict"] == "warn"
        assert "n1" in found["finding"]
        assert "from three nodes on, any one may be lost" in found["advice"]
        node.write_config(mesh={"mdns": False})
        again(node)
        found = check(node, "mDNS")
        assert found["verdict"] == "warn"
        assert "nobody can be found" in found["finding"]
        assert "--seed" in found["advice"]
        node.write_config(
            mesh={"mdns": False, "seeds": ["127.0.0.88:9", "no-such-host.invalid:7575"]}
        )
        again(node)
        found = check(node, "seeds")
        assert found["verdict"] == "fail"
        assert "127.0.0.88:9: no member has answered there" in found["finding"]
        assert "no-such-host.invalid" in found["finding"]
        assert "mesh.seeds" in found["advice"]
        node.write_config(mesh={"mdns": True, "interfaces": ["nope0"]})
        again(node)
        found = check(node, "mDNS")
        assert found["verdict"] == "fail"
        assert "no interface to announce on" in found["finding"]
        assert "mesh.interfaces" in found["advice"]
        assert "mesh.seeds" in found["advice"]
        (node.folder / "data").chmod(0o750)
        found = check(node, "data folder")
        assert found["verdict"] == "fail"
        assert "0700" in found["finding"]


def again(node: Daemon) -> None:
    node.kill()
    node.start()
    wait_until("the node is ready", lambda: (node.try_json("status") or {}).get("ready"))


def test_two_swarms_on_one_wire_refuse_each_other_s_adverts(folder: Path) -> None:
    with LocalSwarm(folder / "a", 1, static=False) as ours:
        ours.form()
        found = wait_until(
            "announced",
            lambda: (c := check(ours[0], "mDNS lo")) and "announced," in c["finding"] and c,
        )
        assert "0 other nodes heard" in found["finding"]
        assert "UDP 5353" in found["advice"]
        with LocalSwarm(folder / "b", 1, static=False) as other:
            other.form()
            found = wait_until(
                "an advert is refused",
                lambda: (c := check(ours[0], "mDNS lo")) and "refused" in c["finding"] and c,
                timeout_s=15,
            )
        assert "0 other nodes heard" in found["finding"]


# ---- three daemons --------------------------------------------------------------------


def test_a_whole_swarm_is_well(lab: LocalSwarm) -> None:
    for daemon in lab.daemons:
        done = daemon.ctl("doctor")
        assert done.returncode == 0, done.stdout
        assert "fail" not in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 100
    assert check(lab[1], "members")["finding"] == "2 others alive and reached"
    assert check(lab[1], "clock")["verdict"] in ("ok", "warn")
    assert check(lab[1], "quorum")["verdict"] == "ok"
    assert check(lab[1], "port")["finding"] == f"{lab[1].port} is open here, TCP and UDP"


def test_who_keeps_streams_to_whom_is_the_same_from_everywhere(lab: LocalSwarm) -> None:
    """Three voters, which talk to each other all the time."""
    for daemon in lab.daemons:
        found = daemon.json("node", "topology")
        assert [one["node"] for one in found["nodes"]] == ["n1", "n2", "n3"]
        ids = {one["node_id"] for one in found["nodes"]}
        for one in found["nodes"]:
            assert one["problem"] == ""
            assert set(one["peers"]) == ids - {one["node_id"]}
    text = lab[0].ctl("node", "topology").stdout
    assert text.count("coordinator") == 1
    assert text.count("──") == 6
    assert "only this side" not in text
    assert lab[0].ctl("node", "topology", "--dot").stdout.count(" -- ") == 3


def test_how_far_two_are_is_told_by_everyone(lab: LocalSwarm) -> None:
    """Each probes another in turn, so all have a coordinate soon; who was not heard is asked."""
    for daemon in lab.daemons:
        told: list[Any] = []

        def tells(asked: Daemon = daemon, told: list[Any] = told) -> bool:
            told[:] = [asked.try_json("node", "rtt", "n2", "n3")]
            return told != [None]

        wait_until("an estimate", tells)
        assert (told[0]["a"], told[0]["b"]) == ("n2", "n3")
        assert 0.0 < told[0]["rtt_ms"] < 1_000.0

    def heard() -> list[float | None]:
        return [one["rtt_ms"] for one in lab[0].json("members") if not one["itself"]]

    wait_until("both others heard", lambda: sum(map(bool, heard())) == 2)
    assert lab[0].ctl("node", "rtt", "n2").stdout.startswith("n2 - n1: ")


def test_members_are_watched_as_they_go_and_come(lab: LocalSwarm) -> None:
    first, _, third = lab.daemons
    watching = subprocess.Popen(
        [str(BIN / "swarmctl"), "members", "--watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SWARMCTL_SOCKET": str(first.socket)},
    )
    assert watching.stdout is not None
    for _ in lab.daemons:
        assert "alive at 127.0.0." in watching.stdout.readline()
    third.kill()
    seen = ""
    while "dead" not in seen:
        seen += watching.stdout.readline()
    assert "n3  alive -> " in seen
    lab.restart(third)
    while "-> alive" not in seen:
        seen += watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=10)
    assert (watching.returncode, "Traceback" in err) == (130, False)
    lab.wait_whole()


def test_members_and_voters_that_are_away_are_named(lab: LocalSwarm) -> None:
    first, second, third = lab.daemons
    third.kill()
    found = wait_until(
        "the loss is noticed",
        lambda: (c := check(first, "members")) and "not heard" in c["finding"] and c,
    )
    assert found["verdict"] == "warn"
    assert "not heard: n3" in found["finding"]
    assert f"port {first.port}" in found["advice"]
    assert check(first, "quorum")["verdict"] == "warn"
    second.kill()
    found = wait_until(
        "the majority is missed",
        lambda: (c := check(first, "quorum")) and c["verdict"] == "fail" and c,
    )
    assert "no majority of the voters (n1, n2, n3) answers" in found["finding"]
    assert "start the voters that are away" in found["advice"]
    assert first.ctl("doctor").returncode == 1
    for daemon in (second, third):
        lab.restart(daemon)
    lab.wait_whole()
    assert first.ctl("doctor").returncode == 0

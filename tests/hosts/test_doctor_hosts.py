"""Networks that keep nodes apart, made for real: the doctor names the cause, and nothing else.

The other causes are in `tests/e2e/test_doctor_causes.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from localswarm import Daemon, LocalSwarm, wait_until
from nethosts import Host, NetHosts
from test_discovery_hosts import swarm_on

pytestmark = pytest.mark.hosts

# Nobody comes or goes unless it says so: with all the seeds, multicast is not needed.
SEEDS = ["10.77.0.1", "10.77.0.2", "10.77.0.3"]

Checks = dict[str, dict[str, str]]


def complaints(daemon: Daemon) -> Checks:
    """What the doctor finds fault with; but for a clock that nobody is there to compare with."""
    done = daemon.ctl("doctor", "--json")
    assert done.returncode in (0, 1), done.stderr
    checks = {one["name"]: one for one in json.loads(done.stdout)["checks"]}
    found = {name: one for name, one in checks.items() if one["verdict"] != "ok"}
    if found.get("clock", {}).get("finding") == "this machine's clock is not synchronised":
        del found["clock"]
    return found


def firewall(daemon: Daemon, says: str) -> Checks:
    """What is found once the firewall is, with the words that it must be found with."""

    def look() -> Checks | None:
        found = complaints(daemon)
        return found if says in found.get("firewall", {}).get("finding", "") else None

    found: Checks = wait_until(f"{daemon.name} says: {says}", look, timeout_s=40, every_s=1)
    return found


def well(daemon: Daemon) -> None:
    wait_until(f"{daemon.name} is well", lambda: complaints(daemon) == {}, timeout_s=20)


def test_a_healthy_swarm_on_hosts_of_its_own_is_well(folder: Path) -> None:
    with swarm_on(folder, 3) as (_, swarm):
        swarm.form()
        for daemon in swarm.daemons:
            well(daemon)


# ---- multicast ----------------------------------------------------------------------------


def test_multicast_that_a_firewall_blocks_on_this_host(folder: Path) -> None:
    with swarm_on(folder, 3, seeds=SEEDS) as (hosts, swarm):
        hosts[1].drop("input", "udp dport 5353")
        swarm.form()
        found = complaints(swarm[1])
        assert set(found) == {"mDNS eth0"}
        assert "multicast is blocked on this host" in found["mDNS eth0"]["finding"]
        assert "udp dport" in found["mDNS eth0"]["advice"]
        well(swarm[0])


def test_multicast_that_may_not_even_leave(folder: Path) -> None:
    with swarm_on(folder, 1) as (hosts, swarm):
        hosts[0].drop("output", "udp dport 5353")
        swarm.form()
        found = complaints(swarm[0])
        assert "Operation not permitted" in found["mDNS eth0"]["finding"]
        assert found["mDNS eth0"]["verdict"] == "fail"
        assert set(found) == {"mDNS eth0", "quorum"}


def test_multicast_that_the_switch_does_not_pass(folder: Path) -> None:
    with swarm_on(folder, 3, seeds=SEEDS) as (hosts, swarm):
        hosts.keep_multicast()
        swarm.form()
        for daemon in swarm.daemons:
            found = wait_until(
                "nothing is heard",
                lambda d=daemon: (
                    "though" in (c := complaints(d)).get("mDNS eth0", {}).get("finding", "") and c
                ),
            )
            assert "multicast is blocked between the hosts" in found["mDNS eth0"]["finding"]
            assert set(found) == {"mDNS eth0"}


# ---- firewalls ----------------------------------------------------------------------------


def test_a_wall_that_stops_one_member_s_packets_one_way(folder: Path) -> None:
    """Nothing from n2 comes to n1. Who may be asked is n3."""
    with swarm_on(folder, 3, seeds=SEEDS) as (hosts, swarm):
        swarm.form()
        hosts.cut([hosts[1]], [hosts[0]], one_way=True)
        found = firewall(swarm[0], "UDP and TCP from n2 to this host is dropped")
        assert "open on this host" in found["firewall"]["advice"]
        assert set(found) <= {"firewall", "members", "quorum", "mDNS eth0"}
        found = firewall(swarm[1], "UDP and TCP from this host to n1 is dropped")
        assert "open on n1" in found["firewall"]["advice"]
        hosts.heal()
        for daemon in swarm.daemons:
            well(daemon)


def test_a_wall_between_the_only_two(folder: Path) -> None:
    """There is nobody to ask: n2 hears that n1 looks for it, and n1 hears nothing."""
    with swarm_on(folder, 2, seeds=SEEDS[:2], mdns=False) as (hosts, swarm):
        swarm.form()
        hosts.cut([hosts[1]], [hosts[0]], one_way=True)
        found = firewall(swarm[1], "UDP and TCP from this host to n1 is dropped")
        assert set(found) <= {"firewall", "members", "quorum", "seeds", "daemon"}
        found = complaints(swarm[0])
        assert "firewall" not in found, "for all it knows n2 is off"
        assert "not heard: n2" in found["members"]["finding"]


def test_a_host_that_lets_no_tcp_calls_in(folder: Path) -> None:
    with swarm_on(folder, 3, seeds=SEEDS) as (hosts, swarm):
        swarm.form()
        hosts[1].drop("input", "tcp dport 7575 ct state new")
        found = firewall(swarm[1], "TCP from n1, n3 to this host is dropped")
        assert set(found) == {"firewall"}
        assert "open on this host" in found["firewall"]["advice"]
        assert "tcp dport 7575 accept" in found["firewall"]["advice"]
        found = firewall(swarm[0], "TCP from this host to n2 is dropped")
        assert set(found) == {"firewall"}
        assert "open on n2" in found["firewall"]["advice"]


def test_a_host_that_takes_no_datagrams(folder: Path) -> None:
    with swarm_on(folder, 3, seeds=SEEDS) as (hosts, swarm):
        swarm.form()
        hosts[1].drop("input", "udp dport 7575")
        found = firewall(swarm[1], "UDP from n1, n3 to this host is dropped")
        assert set(found) <= {"firewall", "members", "quorum"}
        found = firewall(swarm[0], "UDP from this host to n2 is dropped")
        assert set(found) <= {"firewall", "members", "quorum"}


# ---- sizes, names, addresses --------------------------------------------------------------


def test_an_mtu_on_the_way_that_is_too_small(folder: Path) -> None:
    with swarm_on(folder, 3, seeds=SEEDS) as (hosts, swarm):
        swarm.form()
        hosts.set_mtu(hosts[1], 1_000)
        found = complaints(swarm[0])
        assert "1228 bytes do not get through to n2, while small ones do" in found["MTU"]["finding"]
        assert "ping -M do -s 1200" in found["MTU"]["advice"]
        assert set(found) <= {"MTU", "members", "quorum"}
        found = complaints(swarm[1])
        assert "do not get through to n1, n3" in found["MTU"]["finding"]
        assert set(found) <= {"MTU", "members", "quorum"}


def test_an_mtu_of_this_host_that_is_too_small(folder: Path) -> None:
    with swarm_on(folder, 2, seeds=SEEDS[:2]) as (hosts, swarm):
        swarm.form()
        hosts[0].do("ip link set eth0 mtu 1000")
        found = complaints(swarm[0])
        assert "this host itself sends no larger ones" in found["MTU"]["finding"]
        assert set(found) <= {"MTU", "quorum", "mDNS eth0"}


def know(host: Host, folder: Path, *lines: str) -> None:
    """Give a host an /etc/hosts of its own."""
    path = folder / f"{host.name}.hosts"
    path.write_text("127.0.0.1 localhost\n" + "\n".join(lines) + "\n")
    host.do(f"mount --bind {path} /etc/hosts")


def test_a_name_that_resolves_to_loopback(folder: Path) -> None:
    """As Debian writes a host's own name into its /etc/hosts."""
    with NetHosts(2) as hosts:
        mesh = {"bind": ["0.0.0.0"], "mdns": True, "interfaces": []}
        with LocalSwarm(
            folder, 2, static=False, settings={"mesh": mesh}, places=hosts.hosts
        ) as swarm:
            know(hosts[0], folder, "127.0.1.1 h1")
            know(hosts[1], folder, "127.0.1.1 h1")
            swarm[0].write_config(mesh={**mesh, "advertise": ["h1"]})
            swarm[0].start("--init", "lab")
            wait_until("it is ready", lambda: (swarm[0].try_json("status") or {}).get("ready"))
            found = complaints(swarm[0])
            assert found["addresses"]["verdict"] == "fail"
            says = "mesh.advertise names h1, which is 127.0.1.1 here"
            assert says in found["addresses"]["finding"]
            assert "/etc/hosts" in found["addresses"]["advice"]
            swarm[0].terminate()
            swarm[0].write_config(mesh=mesh)
            swarm[0].start()
            wait_until("it is ready", lambda: (swarm[0].try_json("status") or {}).get("ready"))
            swarm[1].write_config(mesh=mesh)
            swarm[1].start("--join", "-", stdin=swarm[0].json("token", "create")["token"])
            swarm.wait_whole()
            swarm[1].terminate()
            swarm[1].write_config(mesh={**mesh, "seeds": ["h1"]})
            swarm[1].start()
            swarm.wait_whole()
            found = wait_until(
                "it is announced", lambda: "mDNS eth0" not in (c := complaints(swarm[1])) and c
            )
            says = "mesh.seeds names h1, which is 127.0.1.1 here"
            assert says in found["addresses"]["finding"]
            assert set(found) <= {"addresses", "quorum"}


def test_an_address_to_listen_on_that_is_gone(folder: Path) -> None:
    with swarm_on(folder, 2, bind=["10.77.0.2"]) as (hosts, swarm):
        mesh = {"bind": ["10.77.0.1"], "mdns": True, "interfaces": []}
        swarm[0].write_config(mesh=mesh)
        swarm.form()
        hosts.move(hosts[1], "10.77.0.22")
        found = wait_until(
            "the address is missed", lambda: complaints(swarm[1]).get("addresses"), timeout_s=10
        )
        assert "mesh.bind names 10.77.0.2, which no interface of this host has" in found["finding"]
        assert "mesh.bind (--bind)" in found["advice"]

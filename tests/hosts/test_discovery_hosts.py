"""Real daemons on hosts of their own: how they find each other, whatever their network does."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from localswarm import Daemon, LocalSwarm, wait_until
from nethosts import Host, NetHosts, missing_tools

pytestmark = pytest.mark.hosts

ANYWHERE = {"bind": ["0.0.0.0", "::"], "mdns": True, "interfaces": []}
# Prints every address at which a swarmd is announced, as it is announced.
LISTENER = """
import trio
from swarmd.mesh.discovery.mdns import open_mdns

async def main():
    async with open_mdns("", "listener", 0, announce=False) as mdns:
        async for host, port in mdns.found:
            print(host, flush=True)

trio.run(main)
"""


@contextmanager
def swarm_on(
    folder: Path, count: int, *, families: Sequence[int] = (4,), **mesh: Any
) -> Iterator[tuple[NetHosts, LocalSwarm]]:
    """A swarm of one daemon per host, which find each other by mDNS alone unless told else."""
    reason = missing_tools()
    if reason:
        pytest.skip(reason)
    with NetHosts(count, families=families) as hosts:
        settings = {"mesh": {**ANYWHERE, **mesh}}
        with LocalSwarm(
            folder, count, static=False, settings=settings, places=hosts.hosts
        ) as swarm:
            yield hosts, swarm


def addresses_of(asked: Daemon, name: str) -> list[str]:
    found = asked.try_json("members") or []
    return next((one["addresses"] for one in found if one["name"] == name), [])


@contextmanager
def listening(host: Host, folder: Path) -> Iterator[Path]:
    """A file that gets a line for each address that is announced, as this host hears it."""
    heard = folder / "heard"
    process = host.start(sys.executable, "-c", LISTENER, log=str(heard))
    try:
        yield heard
    finally:
        process.terminate()
        process.wait()


def lines_of(path: Path) -> list[str]:
    return path.read_text().split()


@pytest.mark.alone
def test_a_changed_address_is_announced_within_two_seconds_and_the_old_one_never_again(
    folder: Path,
) -> None:
    with swarm_on(folder, 3) as (hosts, swarm):
        swarm.form()
        first, _, third = swarm.daemons
        with listening(hosts[0], folder) as heard:
            wait_until("the old address is heard", lambda: "10.77.0.3" in lines_of(heard))
            began = time.monotonic()
            hosts.move(hosts[2], "10.77.0.33")
            wait_until("the new one is heard", lambda: "10.77.0.33" in lines_of(heard), timeout_s=9)
            heard_s = time.monotonic() - began
            wait_until(
                "members are told",
                lambda: addresses_of(first, "n3") == [f"10.77.0.33:{third.port}"],
                timeout_s=9,
            )
            told_s = time.monotonic() - began
            count = len(lines_of(heard))
            swarm.wait_whole()
            time.sleep(3)
            assert "10.77.0.3" not in lines_of(heard)[count:]
        print(f"announced after {heard_s:.1f} s, members told after {told_s:.1f} s")
        assert heard_s <= 3
        assert told_s <= 5


def test_hosts_with_ipv6_alone_find_each_other(folder: Path) -> None:
    with swarm_on(folder, 3, families=(6,)) as (hosts, swarm):
        swarm.form()
        told = addresses_of(swarm[0], "n2")
        assert told == [f"[fd77:0:0:1::2]:{swarm[1].port}"]
        for host in hosts.hosts:  # From now on there are link-local addresses alone.
            number = int(host.name[1:])
            host.do(f"ip -6 addr del fd77:0:0:1::{number}/64 dev eth0")
        wait_until("nothing is left to tell", lambda: addresses_of(swarm[0], "n2") == [])
        swarm[1].kill()
        swarm[1].start()
        swarm.wait_whole()


def test_both_families_are_used_at_once(folder: Path) -> None:
    with swarm_on(folder, 2, families=(4, 6)) as (hosts, swarm):
        swarm.form()
        port = swarm[1].port
        assert addresses_of(swarm[0], "n2") == [f"10.77.0.2:{port}", f"[fd77:0:0:1::2]:{port}"]
        with listening(hosts[0], folder) as heard:
            wait_until(
                "it is announced over both",
                lambda: {"10.77.0.2", "fd77:0:0:1::2"} <= set(lines_of(heard)),
            )
        hosts[1].do("ip addr del 10.77.0.2/24 dev eth0")
        swarm.wait_whole()
        wait_until(
            "IPv6 is left", lambda: addresses_of(swarm[0], "n2") == [f"[fd77:0:0:1::2]:{port}"]
        )


@pytest.mark.alone
def test_an_interface_that_appears_later_is_used_at_once(folder: Path) -> None:
    with swarm_on(folder, 3) as (hosts, swarm):
        swarm.form()
        swarm[2].terminate()
        hosts[2].do("ip link set eth0 down")
        swarm[2].start()
        wait_until("it runs alone", lambda: swarm[2].try_json("status"))
        time.sleep(2)
        began = time.monotonic()
        hosts[2].do("ip link set eth0 up")
        hosts[2].do("ip route replace 224.0.0.0/4 dev eth0")
        swarm.wait_whole()
        took_s = time.monotonic() - began
        print(f"whole {took_s:.1f} s after the interface was there")
        assert took_s <= 10


def test_a_second_interface_is_announced_and_withdrawn(folder: Path) -> None:
    with swarm_on(folder, 2) as (hosts, swarm):
        swarm.form()
        port = swarm[1].port
        hosts.plug(hosts[1], "eth1", "10.78.0.2")
        both = {f"10.77.0.2:{port}", f"10.78.0.2:{port}"}
        wait_until("both are told", lambda: set(addresses_of(swarm[0], "n2")) == both, timeout_s=9)
        hosts[1].do("ip link set eth1 down")
        wait_until(
            "one is left",
            lambda: addresses_of(swarm[0], "n2") == [f"10.77.0.2:{port}"],
            timeout_s=9,
        )
        swarm.wait_whole()


def test_without_multicast_seeds_are_enough(folder: Path) -> None:
    with swarm_on(folder, 3, seeds=["10.77.0.1"]) as (hosts, swarm):
        hosts.keep_multicast()
        swarm.form()
        swarm[2].kill()
        swarm[2].start()
        swarm.wait_whole()

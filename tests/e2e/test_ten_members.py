"""Ten daemons that have nothing to do: who dies is known at once, who restarts is not suspected."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from localswarm import Daemon, LocalSwarm, wait_until

from swarmd.mesh.swim.watching import WATCHED

pytestmark = [pytest.mark.long, pytest.mark.alone]

_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT[\d:.]+Z)")
_COUNT = 10
_IDLE_CLOSE_S = 2.0
_ESTABLISHED = "01"


@pytest.fixture
def ten(folder: Path) -> Iterator[LocalSwarm]:
    """What has nothing to say is closed after two seconds, unless it is kept."""
    settings = {"mesh": {"idle_close_s": _IDLE_CLOSE_S}}
    with LocalSwarm(folder, _COUNT, settings=settings) as swarm:
        swarm.form(timeout_s=120)
        yield swarm


def told(daemon: Daemon, name: str, state: str, since: float) -> float | None:
    """When a daemon's log says that it came to hold a member so, in seconds of Unix time."""
    for line in daemon.log.read_text().splitlines():
        stamp = _STAMP.search(line)
        words = line.split()
        if stamp is None or f"node={name}" not in words or f"now={state}" not in words:
            continue
        at = datetime.strptime(stamp[1], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp()
        if at >= since:
            return at
    return None


def suspicions(swarm: LocalSwarm, since: float) -> list[str]:
    return [
        f"{daemon.name} suspected n{number}"
        for daemon in swarm.daemons
        for number in range(1, _COUNT + 1)
        if told(daemon, f"n{number}", "suspect", since) is not None
    ]


def wait_all_see_all(swarm: LocalSwarm) -> None:
    """Whoever votes: that changes once ten members have been there for a minute."""
    for daemon in swarm.daemons:
        wait_until(
            f"{daemon.name} sees all",
            lambda d=daemon: (d.try_json("status") or {}).get("alive") == _COUNT,
            timeout_s=60,
        )


def connected_to(daemon: Daemon, swarm: LocalSwarm) -> set[str]:
    """The other daemons that this one has a connection with."""
    names = {packed(other.address): other.name for other in swarm.daemons}
    found: set[str] = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        ends = [word.split(":")[0] for word in words[1:3]]
        ports = {int(word.split(":")[1], 16) for word in words[1:3]}
        if words[3] == _ESTABLISHED and daemon.port in ports and packed(daemon.address) in ends:
            found |= {names[end] for end in ends if end in names}
    return found - {daemon.name}


def packed(address: str) -> str:
    """An IPv4 address as the kernel lists it."""
    return "".join(f"{int(part):02X}" for part in reversed(address.split(".")))


def test_idle_connections_are_closed_and_four_are_kept_and_nobody_is_suspected(
    ten: LocalSwarm,
) -> None:
    began_at = time.time()
    time.sleep(6 * _IDLE_CLOSE_S)
    connected = [connected_to(daemon, ten) for daemon in ten.daemons]
    assert min(map(len, connected)) >= WATCHED
    assert sum(map(len, connected)) < _COUNT * (_COUNT - 1), "nothing was closed"
    assert suspicions(ten, began_at) == []


def test_a_killed_daemon_is_known_dead_to_all_in_a_second(ten: LocalSwarm) -> None:
    """Three times, for the host may be busy just then: twice within the second."""
    time.sleep(4 * _IDLE_CLOSE_S)  # Each has found whom it watches by now.
    took: list[float] = []
    for victim in (ten[7], ten[4], ten[9]):
        killed_at = time.time()
        victim.kill()
        others = [daemon for daemon in ten.daemons if daemon.process is not None]

        def known(name: str = victim.name, at: float = killed_at) -> bool:
            return all(told(daemon, name, "dead", at) is not None for daemon in ten.alive())

        wait_until(f"{victim.name} is known dead", known, timeout_s=20)
        times = [told(daemon, victim.name, "dead", killed_at) for daemon in others]
        took.append(max(at - killed_at for at in times if at is not None))
        victim.start()
        wait_all_see_all(ten)
    assert sorted(took)[1] < 1.0, took
    assert max(took) < 6.5, took


def test_a_rolling_restart_suspects_nobody(ten: LocalSwarm) -> None:
    began_at = time.time()
    for daemon in ten.daemons:
        assert daemon.terminate(timeout_s=30) == 0
        daemon.start()
        wait_all_see_all(ten)
    assert suspicions(ten, began_at) == []

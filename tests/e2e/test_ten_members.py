"""Ten daemons that have nothing to do: who dies is known at once, who restarts is not suspected."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from localswarm import Daemon, LocalSwarm, wait_until

pytestmark = pytest.mark.long

_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT[\d:.]+Z)")
_COUNT = 10


@pytest.fixture
def ten(folder: Path) -> Iterator[LocalSwarm]:
    with LocalSwarm(folder, _COUNT) as swarm:
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


def test_a_killed_daemon_is_known_dead_to_all_in_a_second(ten: LocalSwarm) -> None:
    """Three times, for the host may be busy just then: twice within the second."""
    time.sleep(5)  # Each has found whom it watches by now, and goes on having nothing to say.
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
        ten.wait_whole(voters=len(ten[0].json("status")["store"]["voters"]), timeout_s=60)
    assert sorted(took)[1] < 1.0, took
    assert max(took) < 6.5, took


def test_a_rolling_restart_suspects_nobody(ten: LocalSwarm) -> None:
    began_at = time.time()
    for daemon in ten.daemons:
        assert daemon.terminate(timeout_s=30) == 0
        daemon.start()
        for other in ten.daemons:
            wait_until(
                f"{other.name} sees all",
                lambda d=other: (d.try_json("status") or {}).get("alive") == _COUNT,
                timeout_s=60,
            )
    assert suspicions(ten, began_at) == []

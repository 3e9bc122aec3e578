"""Many hosts at once with one token: as a person does who has just bought a rack."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from localswarm import Daemon, LocalSwarm, wait_until

from swarmd.base.errors import SwarmError
from swarmd.client import Client
from swarmd.gateway.shapes import Status

JOINED_S = 10.0


def asked(daemon: Daemon) -> Status | None:
    """Its status, asked for without a process that would take the cores."""
    try:
        with Client(str(daemon.socket)) as client:
            return client.status()
    except SwarmError:
        return None


def is_in(daemon: Daemon) -> bool:
    found = asked(daemon)
    return found is not None and found.swarm == "lab"


def sees(daemon: Daemon, count: int) -> bool:
    found = asked(daemon)
    return found is not None and found.alive == count


@pytest.mark.alone
@pytest.mark.long
def test_ten_daemons_join_with_one_token_at_the_same_time(folder: Path) -> None:
    """Within 10 s each of them is in, and soon knows all the others; an eleventh is refused."""
    with LocalSwarm(folder / "s", 12) as swarm:
        first, *rest = swarm.daemons
        ten, late = rest[:10], rest[10]
        first.start("--init", "lab")
        wait_until("first", lambda: (first.try_json("status") or {}).get("ready"), timeout_s=30)
        token = first.json("token", "create", "--uses", "10", "--ttl", "1h")["token"]
        began = time.monotonic()
        for daemon in ten:
            daemon.start("--join", "-", stdin=token)
        for daemon in ten:
            wait_until("it is in", lambda d=daemon: is_in(d), timeout_s=60, every_s=0.1)
        took_s = time.monotonic() - began
        for daemon in (first, *ten):
            wait_until("it sees all", lambda d=daemon: sees(d, 11), timeout_s=60, every_s=0.1)
        print(f"all were in after {took_s:.1f} s, and seen {time.monotonic() - began:.1f} s")
        late.start("--join", "-", stdin=token)
        assert late.process is not None
        assert late.process.wait(30) != 0
        assert "the join token is used up" in late.log.read_text()
        assert not (late.folder / "data" / "mesh" / "authority").exists()
        [listed] = [one for one in first.json("token", "list", "--all") if one["uses_left"] == 0]
        assert listed["state"] == "used up"
        assert took_s < JOINED_S

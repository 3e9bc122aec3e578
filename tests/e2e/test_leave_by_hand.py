"""Nodes that leave one after the other, as somebody types it: what few nodes hold is read after."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from localswarm import Daemon, LocalSwarm

from swarmd.base.errors import ShuttingDown, Unreachable
from swarmd.client import Client
from swarmd.client.requests import DaemonDown

pytestmark = pytest.mark.long
VALUES = 120


def values_on(daemon: Daemon) -> dict[str, object]:
    with Client(str(daemon.socket)) as client:
        return {one.key: one.value for one in client.memory_list("archive").entries}


def test_two_leave_at_once_and_no_value_of_two_copies_is_lost(folder: Path) -> None:
    """And who asks a node that leaves is served by others all the while.

    Those go that are no voters: nothing else holds them up until others have what they hold.
    """
    with LocalSwarm(folder, 5) as swarm:
        swarm.form(voters=3)
        voters = swarm[0].json("status")["store"]["voters"]
        a, b = (one for one in swarm.daemons if one.name not in voters)
        staying = [one for one in swarm.daemons if one.name in voters]
        said = a.ctl("mem", "namespace", "create", "archive", "--copies", "2")
        assert said.returncode == 0, said.stderr
        expected: dict[str, object] = {}
        with Client(str(staying[0].socket)) as client, ThreadPoolExecutor() as pool:

            def write() -> None:
                key = f"k{len(expected):03}"
                client.memory_set("archive", key, len(expected))
                expected[key] = len(expected)

            for _ in range(VALUES):
                write()
            assert values_on(b) == expected
            leaving = [pool.submit(one.ctl, "leave") for one in (a, b)]
            while not all(one.done() for one in leaving):
                write()
                assert asked_of(a) in (1, None)
            for done in (one.result() for one in leaving):
                assert done.returncode == 0, done.stderr
                assert "left the swarm" in done.stdout
        for daemon in staying:
            assert values_on(daemon) == expected


def asked_of(daemon: Daemon) -> object:
    """A value as a node that leaves tells it; None: it takes no calls any more."""
    try:
        with Client(str(daemon.socket), timeout_s=10.0) as client:
            return client.memory_get("archive", "k001").value
    except (DaemonDown, Unreachable, ShuttingDown):
        return None

"""A host that was off while every host it knew was replaced: it finds its swarm again by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from localswarm import Daemon, LocalSwarm, wait_until


def voters(daemon: Daemon) -> set[str]:
    status = daemon.try_json("status")
    return set(status["store"]["voters"]) if status else set()


@pytest.mark.long
def test_a_host_that_was_off_finds_those_who_came_meanwhile(folder: Path) -> None:
    with LocalSwarm(folder, 7) as swarm:
        first, second, third, sleeper, *later = swarm.daemons
        old = (first, second, third)
        first.start("--init", "lab")
        wait_until("it is there", lambda: (first.try_json("status") or {}).get("ready"))

        def join(daemon: Daemon) -> None:
            token = first.json("token", "create", "--uses", "9", "--ttl", "1h")["token"]
            daemon.start("--join", "-", stdin=token)

        for daemon in (second, third, sleeper):
            join(daemon)
        wait_until("four are there", lambda: first.json("status")["alive"] == 4, timeout_s=30)
        wait_until("three vote", lambda: len(voters(first)) == 3, timeout_s=30)
        sleeper.terminate()
        for daemon in later:
            join(daemon)
        wait_until("six are there", lambda: first.json("status")["alive"] == 6, timeout_s=30)
        for daemon in later:
            assert first.ctl("voter", "pin", daemon.name).returncode == 0
        wait_until(
            "those who came later vote",
            lambda: voters(first) == {daemon.name for daemon in later},
            timeout_s=240,
        )
        key = first.folder / "keys" / "lab.admin.key"
        for daemon in old:
            out = later[0].ctl(
                "node", "evict", daemon.name, "--yes", daemon.name, "--admin-key", str(key)
            )
            assert out.returncode == 0, out.stderr
        for daemon in old:
            daemon.kill()
        sleeper.start()
        wait_until(
            "the sleeper is among those who are there",
            lambda: (sleeper.try_json("status") or {}).get("alive") == 4,
            timeout_s=90,
        )
        assert sleeper.ctl("kv", "put", "k", "v").returncode == 0
        assert later[0].ctl("kv", "get", "k").stdout.strip() == "v"
        assert sleeper.ctl("authority", "verify").returncode == 0

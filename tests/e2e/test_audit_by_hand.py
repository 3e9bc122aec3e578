"""The audit log as a person reads and checks it, on three daemons, one of which goes for good."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from localswarm import BIN, Daemon, LocalSwarm, wait_until

AGENT = """name = "counting"
version = "1"
entry = "counting:run"
"""
CODE = """def run(data, context):
    with context.lock("gate"):
        return context.counter("visits").add(1)
"""


def says(daemon: Daemon, *arguments: str, code: int = 0) -> str:
    done = daemon.ctl(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def kinds(daemon: Daemon, *arguments: str) -> list[str]:
    return [one["kind"] for one in daemon.try_json("audit", "--last", "1000", *arguments) or []]


def test_what_happened_is_told_by_every_node_and_verifies(folder: Path) -> None:
    with LocalSwarm(folder / "s", 3, settings={"audit": {"anchor_s": 1}}) as swarm:
        swarm.form()
        following = Following(swarm[1])
        an_agent_is_deployed_and_runs_three_times(swarm, folder)
        a_viewers_key_is_made_refused_and_revoked(swarm, folder)
        every_node_tells_all_of_it(swarm)
        it_says_who_did_what(swarm)
        assert "agent.deployed" in following.until("key.revoked")
        it_fits_a_terminal_and_tells_no_secret(swarm, folder)
        all_of_it_verifies(swarm)
        who_asked_by_way_of_another_node_is_named(swarm, folder)
        a_node_that_is_away_leaves_the_verdict_open(swarm)


def an_agent_is_deployed_and_runs_three_times(swarm: LocalSwarm, folder: Path) -> None:
    agent = folder / "agent"
    agent.mkdir()
    (agent / "counting.toml").write_text(AGENT)
    (agent / "counting.py").write_text(CODE)
    says(swarm[0], "agent", "deploy", str(agent / "counting.toml"))
    for _ in range(3):
        says(swarm[0], "run", "counting", "--input", "1")


def a_viewers_key_is_made_refused_and_revoked(swarm: LocalSwarm, folder: Path) -> None:
    n1, _, n3 = swarm.daemons
    says(n1, "key", "create", "ci", "--role", "viewer", "--out", str(folder / "ci.key"))
    wait_until("the key is known", lambda: with_key(n3, folder, "status").returncode == 0)
    refused = with_key(n3, folder, "kv", "put", "a", "1")
    assert "key ci may not do this" in refused.stderr
    assert "takes the rule audit:read" in with_key(n3, folder, "audit").stderr
    says(n1, "key", "revoke", "ci")


def every_node_tells_all_of_it(swarm: LocalSwarm) -> None:
    expected = {
        "node.started", "token.created", "node.admitted", "agent.deployed", "task.submitted",
        "attempt.started", "attempt.ended", "agent.call", "key.created", "access.refused",
        "key.revoked",
    }  # fmt: skip
    for daemon in swarm.daemons:
        wait_until("all of it is there", lambda d=daemon: expected <= set(kinds(d)))


def it_says_who_did_what(swarm: LocalSwarm) -> None:
    n1, n2, n3 = swarm.daemons
    refusals = n1.json("audit", "--kind", "access.refused", "--who", "key ci")
    assert {one["node"] for one in refusals} == {"n3"}
    assert refusals[0]["subject"] == "PUT /api/v1/kv/a"
    assert refusals[0]["outcome"] == "forbidden"
    calls = [one["subject"] for one in n2.json("audit", "--kind", "agent.call")]
    assert calls.count("lock gate") == calls.count("add to counter visits") == 3
    attempts = n3.json("audit", "--kind", "attempt.ended", "--stream", "work")
    assert [one["outcome"] for one in attempts] == ["ok"] * 3
    assert all(one["actor"].startswith("counting/") for one in attempts)
    of_n2 = n1.json("audit", "--since", "1h", "--of", "n2")
    assert {one["node"] for one in of_n2} == {"n2"}
    assert len(of_n2) < len(n1.json("audit", "--since", "1h", "--last", "1000"))


def it_fits_a_terminal_and_tells_no_secret(swarm: LocalSwarm, folder: Path) -> None:
    secret = (folder / "ci.key").read_text().strip()
    assert secret not in says(swarm[0], "audit", "--last", "1000", "--json")
    assert max(map(len, says(swarm[0], "audit").splitlines())) <= 80
    assert "no such option" in says(swarm[0], "audit", "--sinse", "1h", code=2).lower()


def all_of_it_verifies(swarm: LocalSwarm) -> None:
    n1, n2, _ = swarm.daemons
    wait_until("all is well", lambda: n2.ctl("audit", "--verify").returncode == 0)
    assert "all records verify, as 3 members keep them" in says(n1, "audit", "--verify")


def who_asked_by_way_of_another_node_is_named(swarm: LocalSwarm, folder: Path) -> None:
    n1 = swarm[0]
    says(n1, "--node", "n2", "key", "create", "over", "--role", "viewer",
         "--out", str(folder / "over.key"))  # fmt: skip
    [over] = wait_until("it is told", lambda: made_over(n1))
    assert over["actor"].endswith(" via n1")


def a_node_that_is_away_leaves_the_verdict_open(swarm: LocalSwarm) -> None:
    n1, _, n3 = swarm.daemons
    n3.kill()
    said = says(n1, "audit", "--verify", code=1)
    assert "not all was checked: 1 did not show what they keep" in said
    assert not verified(n1)["sound"]


def made_over(daemon: Daemon) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = daemon.json("audit", "--kind", "key.created", "--of", "n2")
    return made


def verified(daemon: Daemon) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        daemon.ctl("audit", "--verify", "--json").stdout.splitlines()[0]
    )
    return found


@pytest.mark.long
def test_what_a_node_recorded_outlives_it(folder: Path) -> None:
    """It is shut out and gone for good; another one only starts again."""
    with LocalSwarm(folder, 3, settings={"audit": {"anchor_s": 1}}) as swarm:
        swarm.form()
        n1, n2, n3 = swarm.daemons
        wait_until("it is told", lambda: "node.started" in kinds(n1, "--of", "n3"))
        before = kinds(n1, "--of", "n3")
        says(n1, "node", "evict", "n3", "--yes", "n3")
        n3.kill()
        wait_until("it is recorded", lambda: "node.evicted" in kinds(n2))
        assert set(before) <= set(kinds(n2, "--of", "n3"))
        wait_until("all is named in the store", lambda: anchored(n1))
        assert "all records verify, as 2 members keep them" in says(n1, "audit", "--verify")
        found = n2.json("audit", "--verify")
        assert found["sound"]
        assert {one["node"] for one in found["nodes"]} == {"n1", "n2", "n3"}
        assert n2.terminate() == 0
        n2.start()
        wait_until("it is back", lambda: n2.try_json("status"))
        wait_until("it is recorded", lambda: kinds(n1, "--of", "n2").count("node.started") == 2)
        assert "node.stopped" in kinds(n1, "--of", "n2")
        wait_until("all is well", lambda: n1.ctl("audit", "--verify").returncode == 0)


def anchored(daemon: Daemon) -> bool:
    found = daemon.try_json("audit", "--verify") or {"nodes": []}
    mine = [one for one in found["nodes"] if one["node"] == "n1"]
    return bool(mine) and all(one["anchored"] == one["last"] for one in mine)


def with_key(daemon: Daemon, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return daemon.ctl("--api-key-file", str(folder / "ci.key"), *arguments)


class Following:
    """`swarmctl audit --follow`, which is ended by Ctrl-C."""

    def __init__(self, daemon: Daemon) -> None:
        environ = {**os.environ, "SWARMCTL_SOCKET": str(daemon.socket)}
        command = [str(BIN / "swarmctl"), "audit", "--follow", "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)

    def until(self, kind: str) -> list[str]:
        """The kinds told up to `kind`, within half a minute."""
        assert self.process.stdout is not None
        patience = threading.Timer(30.0, self.process.kill)
        patience.start()
        seen: list[str] = []
        while kind not in seen:
            line = self.process.stdout.readline()
            assert line, f"{kind} was not told: {seen}"
            seen.append(json.loads(line)["kind"])
        patience.cancel()
        self.process.send_signal(2)
        assert self.process.wait(10) == 130
        return seen


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--verify", "--follow"], "leave the other options out"),
        (["--since", "yesterday"], "is not a duration"),
        (["--stream", "all"], "is not one of"),
    ],
)
def test_what_cannot_be_meant_is_refused(folder: Path, arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [str(BIN / "swarmctl"), "audit", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1

"""Who may do what, by hand on real daemons: admin keys, roles, tokens taken back, eviction."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from localswarm import Daemon, LocalSwarm, wait_until

from swarmd.base.errors import SwarmError
from swarmd.cli.authority_log import read_log
from swarmd.client import Client
from swarmd.identity.entries import Evict, fresh_nonce, sign_entry
from swarmd.identity.keys import SigningKey

EVICTED_S = 2.0


@pytest.fixture
def swarm(folder: Path) -> LocalSwarm:
    with LocalSwarm(folder, 4) as four:
        four.form(voters=3)
        yield four  # type: ignore[misc]


def says(daemon: Daemon, *arguments: str, code: int = 0) -> str:
    done = daemon.ctl(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def names(daemon: Daemon) -> set[str]:
    return {one["name"] for one in daemon.try_json("members") or []}


def seated(daemon: Daemon) -> set[str]:
    return {one["node"] for one in daemon.try_json("voter", "list") or [] if one["seat"]}


@pytest.mark.alone
def test_an_evicted_node_is_cut_off_everywhere_and_told_why(swarm: LocalSwarm) -> None:
    first = swarm[0]
    voters = seated(first)
    victim = swarm.by_name(max(voters - {"n1"}))
    others = [d for d in swarm.daemons if d is not victim]
    assert "nothing is changed" in says(first, "node", "evict", victim.name, "--yes", "n9", code=2)
    began = time.monotonic()
    says(first, "node", "evict", victim.name, "--yes", victim.name)
    for daemon in others:
        wait_until("it is gone", lambda d=daemon: victim.name not in names(d), timeout_s=EVICTED_S)
    process = victim.process
    assert process is not None
    wait_until("its daemon ends", lambda: process.poll() is not None, timeout_s=EVICTED_S)
    assert time.monotonic() - began < EVICTED_S
    assert process.returncode == 1
    told = "this node was evicted from the swarm lab"
    assert told in victim.log.read_text().splitlines()[-1]

    # Its seat goes to the fourth, and nothing that was promised is lost.
    wait_until("three voters again", lambda: seated(first) == {d.name for d in others})
    assert "is at revision" in says(first, "kv", "put", "after", "it")
    # It stays out: with its old folder, and its id is not used again.
    victim.start()
    assert victim.process is not None
    assert victim.process.wait(10) == 1
    assert told in victim.log.read_text().splitlines()[-1]
    token = first.json("token", "create")["token"]
    victim.start("--join", "-", stdin=token)
    assert victim.process.wait(20) == 1
    assert all(victim.name not in names(daemon) for daemon in others)
    assert "is evicted already" in says(first, "node", "evict", victim.name, "--yes", "x", code=2)
    assert f"{victim.name} evicted" in says(others[-1], "authority", "list", "--last", "2")
    for daemon in others:
        assert "3, and 1 evicted" in says(daemon, "authority", "verify")


def test_of_two_evictions_at_once_one_counts(trio_swarm: LocalSwarm) -> None:
    """Two admins, who know nothing of each other, leave the swarm a majority of its voters."""
    first, *victims = trio_swarm.daemons
    [path] = (first.folder / "keys").glob("*admin*")
    admin = SigningKey.load(path)
    start = Barrier(len(victims))

    def evict(victim: Daemon) -> str | None:
        with Client(first.socket) as client:
            log = read_log(client, client.authority_head()["swarm_id"])
            node_id = next(x.node_id for x in log.admissions.values() if x.name == victim.name)
            entry = sign_entry(Evict(node_id, fresh_nonce()), log.swarm_id, admin)
            start.wait(10)
            try:
                client.authority_propose(entry)
            except SwarmError as error:
                return error.code
            return None

    with ThreadPoolExecutor() as pool:
        codes = list(pool.map(evict, victims))
    assert sorted(map(str, codes)) == ["None", "no_majority_left"]
    gone, kept = victims if codes[0] is None else reversed(victims)
    assert "would be left, which is no majority" in says(
        first, "node", "evict", kept.name, "--yes", kept.name, code=1
    )
    process = gone.process
    assert process is not None
    wait_until("its daemon ends", lambda: process.poll() is not None)
    assert "is at revision" in says(kept, "kv", "put", "after", "it")
    assert "2, and 1 evicted" in says(first, "authority", "verify")


def test_roles_are_given_and_taken_without_a_restart(swarm: LocalSwarm) -> None:
    first = swarm[0]
    moved = swarm.by_name(max(seated(first) - {"n1"}))
    spare = next(d.name for d in swarm.daemons if d.name not in seated(first))
    assert f"{moved.name} may be worker" in says(first, "node", "roles", moved.name, "worker")

    def roles(daemon: Daemon, name: str) -> list[str]:
        found = {one["name"]: one["roles"] for one in daemon.try_json("members") or []}
        return found.get(name, [])

    wait_until(
        "its seat is given on", lambda: spare in seated(first) and moved.name not in seated(first)
    )
    for daemon in swarm.daemons:
        wait_until("all know", lambda d=daemon: roles(d, moved.name) == ["worker"])
    assert "may not vote" in says(first, "voter", "pin", moved.name, code=2)
    says(first, "node", "roles", moved.name, "voter", "worker")
    for daemon in swarm.daemons:
        wait_until("all know", lambda d=daemon: set(roles(d, moved.name)) == {"voter", "worker"})
    assert "no node is called 'n7'" in says(first, "node", "roles", "n7", "worker", code=2)
    assert "Invalid value" in says(first, "node", "roles", moved.name, "king", code=2)


def test_admin_keys_are_added_and_revoked(swarm: LocalSwarm, folder: Path) -> None:
    first = swarm[0]
    key = folder / "second.admin.key"
    made = first.json("admin", "new", str(key))
    assert key.stat().st_mode & 0o777 == 0o600
    assert "never written over" in says(first, "admin", "new", str(key), code=2)
    refused = says(swarm[1], "token", "create", "--admin-key", str(key), code=2)
    assert "is not an admin key of the swarm lab" in refused
    assert "no public key" in says(first, "admin", "add", "abc", code=2)
    says(first, "admin", "add", made["public"])
    token = swarm[1].json("token", "create", "--role", "worker", "--admin-key", str(key))
    [listed] = [one for one in first.json("token", "list") if one["id"].startswith(token["id"])]
    assert (listed["role"], listed["uses_left"], listed["state"]) == ("worker", 1, "good")
    genesis = next(one["id"] for one in first.json("admin", "list") if not one["added_by_record"])
    says(first, "admin", "revoke", genesis[:8], "--admin-key", str(key))
    assert [one["id"] for one in swarm[2].json("admin", "list")] == [made["id"]]
    assert "is not an admin key" in says(first, "token", "create", code=2)  # The one of --init.
    last = says(first, "admin", "revoke", made["id"], "--admin-key", str(key), code=1)
    assert "the last admin key stays" in last

    says(first, "token", "revoke", token["id"], "--admin-key", str(key))
    assert token["id"] not in says(first, "token", "list")
    assert "revoked" in says(first, "token", "list", "--all")
    late = Daemon("n5", folder / "n5", "127.0.0.5", first.port)
    late.write_config(mesh={"seeds": [f"127.0.0.1:{first.port}"], "mdns": False})
    late.start("--join", "-", stdin=token["token"])
    assert late.process is not None
    assert late.process.wait(20) != 0
    assert "the join token was revoked" in late.log.read_text()

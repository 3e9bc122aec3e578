"""raft status, coordinator and snapshot on real daemons."""

from __future__ import annotations

from pathlib import Path

from localswarm import LocalSwarm, wait_until

from swarmd.client import Client


def test_the_voters_logs_are_told_from_any_node(trio_swarm: LocalSwarm) -> None:
    swarm = trio_swarm
    for daemon in swarm.daemons:
        found = daemon.json("raft", "status")
        assert found["missing"] == []
        assert sorted(one["role"] for one in found["voters"]) == ["follower", "follower", "leader"]
        followers = [one for one in found["voters"] if one["role"] == "follower"]
        assert all(one["lag"] is not None and one["silence_s"] < 5 for one in followers)
        assert all(one["journal_bytes"] > 0 for one in found["voters"])
        assert all(one["fsync_slowest_ms"] > 0 for one in found["voters"])
    gone = next(d for d in swarm.daemons if d is not swarm.coordinator())
    gone.pause()
    try:
        other = next(d for d in swarm.daemons if d is not gone)
        done = other.ctl("raft", "status")
        assert done.returncode == 0
        assert f"{gone.name} is missing" in done.stderr
    finally:
        gone.resume()


def test_the_office_moves_where_it_is_told(trio_swarm: LocalSwarm) -> None:
    swarm = trio_swarm
    before = swarm[0].json("coordinator", "show")
    target = next(d for d in swarm.daemons if d.name != before["node"])
    asked = next(d for d in swarm.daemons if d.name not in (before["node"], target.name))
    assert asked.json("coordinator", "transfer", target.name) == {"coordinator": target.name}

    def moved() -> bool:
        found = asked.try_json("coordinator", "show")
        return bool(found and found["node"] == target.name and found["fence"] > before["fence"])

    wait_until("the office has moved", moved)
    assert asked.ctl("kv", "put", "after", "transfer").returncode == 0


def test_a_copy_brings_keys_back(trio_swarm: LocalSwarm, folder: Path) -> None:
    swarm = trio_swarm
    with Client(swarm[1].socket).key_stream() as stream:
        for number in range(3_000):
            stream.put(f"k/{number:04d}", b"%d" % number)
        assert all(done.error is None for done in stream.take_all())
    file = str(folder / "copy.snap")
    assert swarm[2].json("snapshot", "save", file)["keys"] == 3_000
    with Client(swarm[0].socket).key_stream() as stream:
        for number in range(0, 3_000, 2):
            stream.delete(f"k/{number:04d}")
        stream.put("k/0001", b"changed")
        stream.put("other", b"stays")
        list(stream.take_all())
    done = swarm[1].json("snapshot", "restore", file, "--yes")
    assert done == {"written": 1_501, "left": 0}
    with Client(swarm[0].socket) as client:
        assert client.kv_get("k/0001").value == b"1"
        assert client.kv_get("k/2998").value == b"2998"
        assert client.kv_get("other").value == b"stays"

"""Names that two living members carry, and tags, between real daemons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from localswarm import Daemon, LocalSwarm, wait_until

SAID = "several living members carry one name"


def members(asked: Daemon) -> dict[str, Any]:
    """By id."""
    return {one["node_id"]: one for one in asked.try_json("members") or []}


def test_tags_spread_and_a_shared_name_is_told_until_it_is_over(folder: Path) -> None:
    with LocalSwarm(folder, 3) as swarm:
        n1, n2, n3 = swarm.daemons
        n2.environ["SWARMD_NODE_TAGS"] = "rack=a,zone=east"
        swarm.form()
        ids = {one["name"]: node_id for node_id, one in members(n1).items()}
        assert members(n3)[ids["n2"]]["tags"] == {"rack": "a", "zone": "east"}
        done = n1.json("node", "tags", "n2", "rack=b", "--remove", "zone")
        assert done["tags"] == {"rack": "b"}
        for other in (n1, n3):
            wait_until("news", lambda o=other: members(o)[ids["n2"]]["tags"] == {"rack": "b"})

        n3.terminate()
        seeds = [f"{one.address}:{one.port}" for one in (n1, n2)]
        n3.write_config(node={"name": "n2"}, mesh={"mdns": False, "seeds": seeds})
        n3.start()
        twins = {ids["n2"], ids["n3"]}

        def namesakes(asked: Daemon) -> dict[str, list[str]]:
            return {k: one["namesakes"] for k, one in members(asked).items() if one["namesakes"]}

        for one in swarm.daemons:
            wait_until("both told", lambda o=one: namesakes(o).keys() == twins)
        assert namesakes(n1)[ids["n2"]] == [ids["n3"]]
        refused = n1.ctl("--node", "n2", "status")
        assert refused.returncode != 0
        assert all(one[:8] in refused.stderr for one in twins)
        assert n1.json("--node", ids["n3"][:8], "status")["node_id"] == ids["n3"]
        assert "several members carry this name" in n1.ctl("members").stdout
        checks = {one["name"]: one for one in n1.json("doctor")["checks"]}
        assert checks["names"]["verdict"] == "warn"
        for one in (n2, n3):
            assert SAID in one.log.read_text()

        n2.kill()
        wait_until("n2 dead", lambda: members(n1)[ids["n2"]]["state"] == "dead")
        assert namesakes(n1) == {}
        assert n1.json("--node", "n2", "status")["node_id"] == ids["n3"]
        assert "name conflict over" in n3.log.read_text()

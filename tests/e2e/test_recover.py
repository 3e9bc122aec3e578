"""Going on after disks are lost, on real daemons, as a person would type it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from localswarm import LocalSwarm, wait_until

from swarmd.client import Client


def _recovery_key(swarm: LocalSwarm) -> Path:
    found = sorted(swarm.root.rglob("*.recovery.key"))
    assert len(found) == 1, found
    return found[0]


@pytest.mark.long
def test_the_learner_of_two_goes_on_when_the_voters_disk_is_lost(folder: Path) -> None:
    """Acknowledged with `copies` 2, then the only voter's folder is gone: nothing is lost."""
    with LocalSwarm(folder, 2) as swarm:
        swarm.form(voters=1)
        voter, learner = swarm[0], swarm[1]
        wait_until(
            "both disks hold the store",
            lambda: learner.json("status")["store"]["copies"] == 2,
        )
        for number in range(20):
            assert voter.ctl("kv", "put", f"k{number}", "v").returncode == 0
        assert "spare" in voter.ctl("voter", "list").stdout
        refused = learner.ctl(
            "voter", "recover", "--recovery-key", str(_recovery_key(swarm)), "--yes", "lab"
        )
        assert refused.returncode == 1
        assert "nothing to recover from" in refused.stderr
        voter.kill()
        shutil.rmtree(voter.folder / "data", ignore_errors=True)
        learner.kill()
        learner.start()
        wait_until("the learner answers", lambda: learner.try_json("status") is not None)
        done = learner.ctl(
            "voter", "recover", "--recovery-key", str(_recovery_key(swarm)), "--yes", "lab"
        )
        assert done.returncode == 0, done.stderr
        assert "is lost for ever" in done.stderr
        with Client(learner.socket, timeout_s=20) as client:
            assert [one.value for one in client.kv_list()] == [b"v"] * 20
            assert client.kv_put("after", b"1").mod_revision > 20

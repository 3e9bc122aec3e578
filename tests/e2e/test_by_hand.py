"""The commands of the README, as a person types them, against three real daemons."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from localswarm import BIN, LocalSwarm, file_for_agents, wait_until

DOCUMENTS = Path(__file__).resolve().parents[2] / "examples" / "documents"

TEXTS = {
    "one.txt": "The swarm remembers. See https://example.org/one for more.",
    "two.md": "# Two\n\nThe swarm forgets nothing it acknowledged.",
    "bad.py": "def broken(:\n",
    "odd.txt": b"\xff\xfe\x00broken",
}


def write_texts(folder: Path) -> Path:
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_a_swarm_is_made_joined_used_and_left(folder: Path) -> None:
    docs = write_texts(folder / "docs")
    with LocalSwarm(folder / "s", 3) as swarm:
        swarm.form()
        it_says_how_it_was_made_and_joined(swarm)
        every_node_tells_the_same_of_it(swarm)
        keys_are_put_read_and_deleted_on_any_node(swarm)
        agents_are_deployed_and_run(swarm, docs)
        a_job_goes_through_its_stages(swarm, docs)
        agents_are_removed(swarm)
        who_stops_keeps_its_seat(swarm)
        who_leaves_hands_its_seat_on(swarm)


def it_says_how_it_was_made_and_joined(swarm: LocalSwarm) -> None:
    log = swarm[0].log.read_text()
    assert "made the swarm lab" in log
    assert "join token, good for 20 joins in 1 h" in log
    assert "joined the swarm lab" in swarm[1].log.read_text()


def every_node_tells_the_same_of_it(swarm: LocalSwarm) -> None:
    for daemon in swarm.daemons:
        members = daemon.json("members")
        assert sorted(m["name"] for m in members) == ["n1", "n2", "n3"]
        assert {m["state"] for m in members} == {"alive"}
        assert daemon.json("status")["store"]["may_lose"] == 1
    n1, _, n3 = swarm.daemons
    assert "3 alive of 3" in n3.ctl("status").stdout
    assert n1.ctl("doctor").returncode == 0
    assert n1.json("--node", "n3", "status")["node"] == "n3"


def keys_are_put_read_and_deleted_on_any_node(swarm: LocalSwarm) -> None:
    n1, n2, n3 = swarm.daemons
    assert n1.ctl("kv", "put", "colour", "blue").returncode == 0
    assert n2.ctl("kv", "get", "colour").stdout == "blue\n"
    assert "colour" in n3.ctl("kv", "list").stdout
    assert n3.ctl("kv", "delete", "colour").returncode == 0
    assert n1.ctl("kv", "get", "colour").returncode == 1


def agents_are_deployed_and_run(swarm: LocalSwarm, docs: Path) -> None:
    n1, n2, n3 = swarm.daemons
    for agent in ("parser", "extractor", "analyzer", "aggregator"):
        done = n2.ctl("agent", "deploy", str(DOCUMENTS / f"{agent}.toml"))
        assert done.returncode == 0, done.stderr
    assert "extractor" in n3.ctl("agent", "list").stdout
    assert "extractor:run" in n1.ctl("agent", "show", "extractor").stdout
    ran = n1.ctl("run", "parser", str(docs / "one.txt"), str(docs / "two.md"))
    assert ran.returncode == 0, ran.stderr
    assert "The swarm remembers" in ran.stdout
    detached = n3.ctl("run", "analyzer", "--input", '{"name": "x", "failed": "y"}', "--detach")
    task_id = detached.stdout.strip()
    wait_until(
        "detached task done", lambda: n1.json("task", "show", task_id)["state"] == "succeeded"
    )
    assert task_id in n2.ctl("task", "list").stdout
    assert "is succeeded" in n1.ctl("task", "cancel", task_id).stdout


def a_job_goes_through_its_stages(swarm: LocalSwarm, docs: Path) -> None:
    n1, n2, n3 = swarm.daemons
    job = n3.json("job", "run", str(DOCUMENTS / "pipeline.toml"), str(docs))
    report = job["result"]["report"]
    assert report["documents"] == 4
    assert [row["name"] for row in report["failed"]] == ["bad.py", "odd.txt"]
    assert "succeeded" in n1.ctl("job", "list").stdout
    assert "aggregate" in n2.ctl("job", "show", job["job"]).stdout


def agents_are_removed(swarm: LocalSwarm) -> None:
    assert swarm[0].ctl("agent", "remove", "aggregator").returncode == 0
    assert swarm[0].ctl("agent", "show", "aggregator").returncode == 1


def who_stops_keeps_its_seat(swarm: LocalSwarm) -> None:
    """The last one is stopped, and comes back."""
    n1, _, n3 = swarm.daemons
    assert n3.ctl("stop").returncode == 0
    assert n3.process is not None
    assert n3.process.wait(15) == 0
    states = {m["name"]: m["state"] for m in n1.json("members")}
    assert states["n3"] == "left"
    assert "n3" in n1.json("status")["store"]["voters"]
    swarm.restart(n3)
    swarm.wait_whole()


def who_leaves_hands_its_seat_on(swarm: LocalSwarm) -> None:
    n1, n2, n3 = swarm.daemons
    assert n3.ctl("leave").returncode == 0
    assert n3.process is not None
    assert n3.process.wait(20) == 0
    wait_until(
        "seat handed on", lambda: "n3" not in n1.json("status")["store"]["voters"], timeout_s=10
    )
    assert "n3" not in n2.json("status")["store"]["voters"]
    assert n2.ctl("kv", "put", "after", "leave").returncode == 0


def test_ctrl_c_on_run_cancels_its_tasks(folder: Path) -> None:
    agents = folder / "agents"
    agents.mkdir()
    (agents / "sleeper.toml").write_text(
        'name = "sleeper"\nversion = "1"\nruntime = "python"\nentry = "sleeper:run"\n'
    )
    (agents / "sleeper.py").write_text(
        "import time\n\ndef run(item, context):\n    time.sleep(item)\n    return item\n"
    )
    with LocalSwarm(folder / "s", 1) as swarm:
        swarm.form()
        daemon = swarm[0]
        assert daemon.ctl("agent", "deploy", str(agents / "sleeper.toml")).returncode == 0
        command = [str(BIN / "swarmctl"), "--socket", str(daemon.socket), "run", "sleeper"]
        running = subprocess.Popen(
            [*command, "--input", "60"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        wait_until("task runs", lambda: daemon.json("status")["tasks"]["running"] == 1)
        running.send_signal(signal.SIGINT)
        assert running.wait(10) == 130
        wait_until("task is cancelled", lambda: daemon.json("status")["tasks"]["cancelled"] == 1)
        wait_until("nothing runs", lambda: not busy_instances(swarm), timeout_s=5)


def busy_instances(swarm: LocalSwarm) -> list[str]:
    live = swarm[0].json("agent", "list")["instances"]
    return [one["agent"] for one in live if one["tasks"]]


@pytest.mark.alone
@pytest.mark.long
def test_sigterm_hands_work_back_and_no_worker_stays(folder: Path) -> None:
    """A daemon that is told to end does so within 10 s and leaves no process behind."""
    agents = Path(__file__).parent / "agents"
    ledger = file_for_agents(folder / "ledger")
    with LocalSwarm(folder / "s", 3) as swarm:
        swarm.form()
        assert swarm[0].ctl("agent", "deploy", str(agents / "ledger.toml")).returncode == 0
        inputs = []
        for n in range(24):
            payload = {"ledger": str(ledger), "key": f"k{n}", "ms": 12_000 if n < 12 else 100}
            inputs += ["--input", json.dumps(payload)]
        ran = swarm[1].ctl("run", "ledger", *inputs, "--detach")
        assert ran.returncode == 0, ran.stderr
        wait_until("tasks run", lambda: swarm[0].json("status")["tasks"]["running"] >= 6)
        victim = swarm[2]
        assert victim.process is not None
        pid = victim.process.pid
        began = time.monotonic()
        assert victim.terminate(timeout_s=12) == 0
        assert time.monotonic() - began < 11
        left = subprocess.run(
            ["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False
        ).stdout.split()
        assert left == []
        wait_until(
            "the others took over",
            lambda: swarm[0].json("status")["tasks"]["succeeded"] == 24,
            timeout_s=90,
        )

"""Whatever an agent does, its task fails with that cause after its retries; no daemon does."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from localswarm import LocalSwarm, wait_until
from mistakes import QUICK, failing, pid_of, short_folder

AGENTS = Path(__file__).parent / "agents"

# What the agent does, the cause's code, and what a person reads of it.
# A result that cannot be sent would not be better the second time: it is not tried again.
WAYS = [
    ("raise", "agent_raised", "ValueError: no such colour"),
    ("exit", "agent_crashed", "exited with status 7"),
    ("sys.exit", "agent_raised", "SystemExit: 3"),
    ("crash", "agent_crashed", "SIGSEGV"),
    ("sleep", "agent_timeout", "0.7 s"),
    ("garbage", "agent_garbage", "channel"),
    ("unpackable", "result_refused", "object"),
]


@pytest.fixture(scope="module")
def lab() -> Iterator[LocalSwarm]:
    """Two daemons, so that a second attempt may run elsewhere; both must outlive every test."""
    with short_folder() as root, LocalSwarm(root, 2, settings=QUICK) as swarm:
        swarm.form()
        for agent in ("bad_ways", "bad_import"):
            done = swarm[0].ctl("agent", "deploy", str(AGENTS / agent / f"{agent}.toml"))
            assert done.returncode == 0, done.stderr
        yield swarm


@pytest.fixture(autouse=True)
def daemons_live_on(lab: LocalSwarm) -> Iterator[None]:
    """The same processes, ready, and good agents still run on them."""
    before = [pid_of(daemon) for daemon in lab.daemons]
    yield
    assert [pid_of(daemon) for daemon in lab.daemons] == before
    done = lab[1].ctl("run", "bad-ways", "--input", '"well"')
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr
    for daemon in lab.daemons:
        log = daemon.log.read_text()
        assert "Traceback" not in log, log[-3_000:]


def ended(lab: LocalSwarm, task_id: str) -> dict[str, Any]:
    found: dict[str, Any] = lab[1].json("task", "show", task_id)
    return found


def test_each_way_to_fail_ends_its_task_with_that_cause(lab: LocalSwarm) -> None:
    inputs = [part for how, _, _ in WAYS for part in ("--input", f'"{how}"')]
    ran = lab[0].ctl("run", "bad-ways", *inputs, "--timeout", "0.7s", "--detach")
    assert ran.returncode == 0, ran.stderr
    ids = ran.stdout.split()
    for (how, code, said), task_id in zip(WAYS, ids, strict=True):
        task = wait_until(
            f"{how} has ended",
            lambda one=task_id: (t := ended(lab, one))["state"] in ("dead", "failed") and t,
        )
        final = ("failed", 1) if code == "result_refused" else ("dead", 2)
        assert (task["state"], task["attempts"]) == final, (how, task)
        assert task["error"]["code"] == code, (how, task["error"])
        assert said in task["error"]["message"], (how, task["error"])


def test_a_person_reads_node_attempts_and_cause_in_one_line(lab: LocalSwarm) -> None:
    done = lab[1].ctl("run", "bad-ways", "--input", '"raise"')
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert " dead on n" in line
    assert "after 2 attempts: agent_raised: ValueError: no such colour" in line
    shown = lab[0].ctl("task", "show", line.split()[1]).stdout
    assert "no such colour" in shown
    assert "bad_ways.py" in shown or "bad_ways" in shown


def test_an_agent_that_cannot_be_imported_says_why(lab: LocalSwarm) -> None:
    done = lab[0].ctl("run", "bad-import", "--input", "1")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "after 2 attempts: agent_spawn_failed" in line
    assert "RuntimeError: no licence server" in line


def test_noise_on_its_outputs_is_logged_and_harmless(lab: LocalSwarm) -> None:
    done = lab[0].ctl("run", "bad-ways", "--input", '"noise"')
    assert (done.returncode, done.stdout) == (0, "noise\n")
    logged = lab[1].ctl("agent", "logs", "bad-ways").stdout
    assert "noise" in logged
    assert "\x1b" not in logged, "an agent must not reach the terminal of who reads its logs"


def test_a_worker_process_that_is_killed_costs_an_attempt(lab: LocalSwarm) -> None:
    """SIGKILL from outside: tried again elsewhere, and dead when the retries are used up."""
    [task_id] = lab[0].ctl("run", "bad-ways", "--input", '"sleep"', "--detach").stdout.split()
    killed: set[int] = set()

    def kill_next() -> bool:
        for one in lab[0].json("agent", "show", "bad-ways")["instances"]:
            if task_id in one["tasks"] and one["pid"] not in killed:
                killed.add(one["pid"])
                os.kill(one["pid"], signal.SIGKILL)
        return str(ended(lab, task_id)["state"]) == "dead"

    wait_until("the task is dead", kill_next)
    assert len(killed) == 2
    task = ended(lab, task_id)
    assert task["error"]["code"] == "agent_crashed"
    assert "SIGKILL" in task["error"]["message"]


def test_a_job_over_a_failing_agent_names_the_cause(lab: LocalSwarm, tmp_path: Path) -> None:
    job = tmp_path / "j.toml"
    job.write_text('name = "j"\n[[stage]]\nname = "parse"\nagent = "bad-import"\nkind = "map"\n')
    text = tmp_path / "one.txt"
    text.write_text("one")
    done = lab[1].ctl("job", "run", str(job), str(text))
    assert done.returncode == 0, "an input that fails becomes a row of the result"
    assert "RuntimeError: no licence server" in done.stdout
    assert "0 of 1 tasks done, 1 failed" in done.stderr
    job.write_text(job.read_text().replace("bad-import", "nosuchagent"))
    assert "nosuchagent" in failing(lab[1], "job", "run", str(job), str(text), code=1)


def test_the_same_version_with_other_content_needs_replace(lab: LocalSwarm, tmp_path: Path) -> None:
    shutil.copytree(AGENTS / "bad_ways", tmp_path / "a")
    file, code = tmp_path / "a" / "bad_ways.toml", tmp_path / "a" / "bad_ways.py"
    same = lab[1].ctl("agent", "deploy", str(file))
    assert same.returncode == 0, "the same content again changes nothing"
    code.write_text(code.read_text().replace("no such colour", "no such flavour"))
    said = failing(lab[1], "agent", "deploy", str(file), code=1)
    assert "bad-ways" in said
    assert "1.0.0" in said
    assert "--replace" in said
    answered = lab[0].ctl("agent", "deploy", str(file), "--json")
    assert '"version_exists"' in answered.stdout
    assert "no such colour" in lab[0].ctl("run", "bad-ways", "--input", '"raise"').stderr
    assert lab[1].ctl("agent", "deploy", str(file), "--replace").returncode == 0
    assert "no such flavour" in lab[0].ctl("run", "bad-ways", "--input", '"raise"').stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "bad_ways.py").unlink(), "holds no files"),
        (lambda folder: (folder / "bad_ways.py").rename(folder / "other.py"), "bad_ways"),
        (lambda folder: (folder / "out").symlink_to("/etc"), "out"),
        (
            lambda folder: (folder / "big").write_bytes(b"x" * (65 * 1024 * 1024)),
            "more than 67108864 bytes",
        ),
    ],
    ids=["no files", "no code", "a link out", "too large"],
)
def test_a_folder_that_cannot_be_deployed_is_refused(
    lab: LocalSwarm, tmp_path: Path, change: Any, said: str
) -> None:
    shutil.copytree(AGENTS / "bad_ways", tmp_path / "a")
    change(tmp_path / "a")
    assert said in failing(lab[0], "agent", "deploy", str(tmp_path / "a" / "bad_ways.toml"), code=2)

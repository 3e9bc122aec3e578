"""Data folders of real daemons that are sealed show nothing of what the swarm was told."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from localswarm import BIN, Daemon, LocalSwarm, wait_until

from swarmd.client import Client, TaskInput

AGENT = '''
"""{code}"""

import hashlib
import os


def run(item, context):
    return {{"digest": hashlib.sha256(item["text"].encode()).hexdigest(), "is": os.environ["IS"],
             "at": os.path.dirname(__file__)}}
'''
SPEC = """
name = "{agent}"
version = "1"
entry = "keeper:run"
timeout_s = 20

[env]
PASSWORD = "secret:{secret}"
IS = "{plain}"
"""


class Planted:
    """Words that are nowhere else."""

    def __init__(self) -> None:
        names = (
            "node",
            "swarm",
            "agent",
            "code",
            "secret",
            "value",
            "plain",
            "key",
            "held",
            "input",
        )
        self.words = {name: f"pl{name}{secrets.token_hex(8)}" for name in names}

    def __getattr__(self, name: str) -> str:
        return self.words[name]

    def found(self, folder: Path) -> dict[str, set[str]]:
        """Which words are in which files, as they are or in the names of files."""
        hits: dict[str, set[str]] = {}
        for path in folder.rglob("*"):
            raw = bytes(path) + (path.read_bytes() if path.is_file() else b"")
            for name, word in self.words.items():
                if word.encode() in raw:
                    hits.setdefault(str(path.relative_to(folder)), set()).add(name)
        return hits


def swarmd(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "swarmd"), "--config", str(daemon.folder / "swarmd.toml"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def ran(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def planted() -> Planted:
    return Planted()


@pytest.fixture
def swarm(request: pytest.FixtureRequest, folder: Path, planted: Planted) -> Iterator[LocalSwarm]:
    with LocalSwarm(folder, request.param) as made:
        for daemon in made.daemons:
            daemon.name = planted.node + daemon.name
            text = (daemon.folder / "swarmd.toml").read_text()
            name = f'name = "{daemon.name[len(planted.node) :]}"'
            (daemon.folder / "swarmd.toml").write_text(
                text.replace(name, f'name = "{daemon.name}"') + "\n[audit]\nanchor_s = 1.0\n"
            )
        yield made


def use(swarm: LocalSwarm, planted: Planted) -> None:
    """Have the swarm hold one of each, and run one."""
    first = swarm[0]
    ran(first.ctl("kv", "put", planted.key, planted.held))
    set_secret = [str(BIN / "swarmctl"), "--socket", str(first.socket), "secret", "set"]
    subprocess.run([*set_secret, planted.secret], input=planted.value, text=True, check=True,
                   capture_output=True, timeout=30)  # fmt: skip
    place = swarm.root / "agent"
    place.mkdir()
    (place / "keeper.py").write_text(AGENT.format(code=planted.code))
    spec = SPEC.format(agent=planted.agent, secret=planted.secret, plain=planted.plain)
    (place / "keeper.toml").write_text(spec)
    ran(first.ctl("agent", "deploy", str(place / "keeper.toml")))
    run(swarm, planted)


def run(swarm: LocalSwarm, planted: Planted) -> list[str]:
    """Run the agent, with a large input, too; where its code lay."""
    texts = [planted.input, planted.input * 10_000]
    with Client(str(swarm[0].socket)) as client:
        made = [TaskInput(agent=planted.agent, input={"text": text}) for text in texts * 4]
        results = client.results([task.id for task in client.submit(made)])
        outcomes = list(results)
    assert [one.state for one in outcomes] == ["succeeded"] * 8, outcomes
    assert {one.result["is"] for one in outcomes} == {planted.plain}
    return [one.result["at"] for one in outcomes]


def check_all_is_there(swarm: LocalSwarm, planted: Planted) -> None:
    for daemon in swarm.daemons:
        assert planted.held in ran(daemon.ctl("kv", "get", planted.key))
    [secret] = swarm[0].json("secret", "list")
    assert secret["name"] == planted.secret
    verified = swarm[0].ctl("audit", "--verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    run(swarm, planted)


def stop(swarm: LocalSwarm, *, kill: bool = False) -> None:
    for daemon in swarm.daemons:
        daemon.kill() if kill else daemon.terminate()


def start(swarm: LocalSwarm, key: Path | None) -> None:
    for daemon in swarm.daemons:
        daemon.start(*([] if key is None else ["--data-key-file", str(key)]))
    swarm.wait_whole()
    for daemon in swarm.daemons:
        wait_until("it is ready", lambda d=daemon: (d.try_json("status") or {}).get("ready"))


def hits(swarm: LocalSwarm, planted: Planted) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for daemon in swarm.daemons:
        found |= planted.found(daemon.folder / "data")
    return found


@pytest.mark.parametrize("swarm", [3], indirect=True)
def test_a_swarm_that_is_sealed_from_the_start_shows_nothing(
    swarm: LocalSwarm, planted: Planted
) -> None:
    key = swarm.root / "key"
    ran(swarmd(swarm[0], "data-key", "new", str(key)))
    assert key.stat().st_mode & 0o777 == 0o600
    for daemon in swarm.daemons:
        daemon.environ["SWARMD_NODE_DATA_KEY_FILE"] = str(key)
    swarm.form()
    use(swarm, planted)
    assert all(at.startswith(("/dev/shm/", "/run/")) for at in run(swarm, planted))
    assert hits(swarm, planted) == {}
    stop(swarm, kill=True)
    assert hits(swarm, planted) == {}
    start(swarm, key)
    check_all_is_there(swarm, planted)
    assert hits(swarm, planted) == {}
    stop(swarm)
    assert hits(swarm, planted) == {}
    for daemon in swarm.daemons:
        assert (daemon.folder / "data" / "sealed").exists()

    other = swarm.root / "other"
    ran(swarmd(swarm[0], "data-key", "new", str(other)))
    again = swarmd(swarm[0], "data-key", "new", str(other))
    assert (again.returncode, "exists already" in again.stderr) == (2, True)
    for arguments, why in (
        ((), "is sealed under the key"),
        (("--data-key-file", str(other)), "and the key that was given is"),
        (("--data-key-file", str(swarm.root / "none")), "there is no key file"),
    ):
        refused = swarmd(swarm[0], *arguments)
        assert refused.returncode in (1, 2)
        assert why in refused.stderr, refused.stderr
        assert refused.stderr.count("\n") <= 2


@pytest.mark.parametrize("swarm", [1], indirect=True)
def test_a_folder_is_sealed_later_its_key_changed_and_removed(
    swarm: LocalSwarm, planted: Planted
) -> None:
    swarm.form()
    use(swarm, planted)
    in_clear = set().union(*hits(swarm, planted).values())
    assert in_clear >= {"node", "agent", "code", "key", "held", "input"}, "what is looked for shows"
    old, new = swarm.root / "old", swarm.root / "new"
    for key in (old, new):
        ran(swarmd(swarm[0], "data-key", "new", str(key)))
    busy = swarmd(swarm[0], "--data-key-file", str(old), "data-key", "change", str(new))
    assert "in use by a running swarmd" in busy.stderr

    stop(swarm)
    refused = swarmd(swarm[0], "--data-key-file", str(old))
    assert "is in clear, and a key was given; nothing was changed" in refused.stderr
    for daemon in swarm.daemons:
        without = swarmd(daemon, "data-key", "seal")
        assert (without.returncode, "no key was given" in without.stderr) == (2, True)
        done = swarmd(daemon, "--data-key-file", str(old), "data-key", "seal")
        assert str(old) in ran(done)
        assert "sealed under the key" in done.stderr
    start(swarm, old)
    assert hits(swarm, planted) == {}
    check_all_is_there(swarm, planted)

    stop(swarm)
    for daemon in swarm.daemons:
        done = swarmd(daemon, "--data-key-file", str(old), "data-key", "change", str(new))
        assert str(new) in ran(done)
    assert hits(swarm, planted) == {}
    assert "nothing was changed" in swarmd(swarm[0], "--data-key-file", str(old)).stderr
    start(swarm, new)
    check_all_is_there(swarm, planted)
    assert hits(swarm, planted) == {}

    stop(swarm)
    for daemon in swarm.daemons:
        ran(swarmd(daemon, "--data-key-file", str(new), "data-key", "remove"))
    start(swarm, None)
    check_all_is_there(swarm, planted)

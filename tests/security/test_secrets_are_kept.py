"""Secrets, environments and settings that were planted are found nowhere in clear text."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import shutil
import subprocess
import tempfile
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from localswarm import BIN, Daemon, LocalSwarm, wait_until

from swarmd.base.errors import Forbidden, NotFound
from swarmd.client import Client, TaskInput
from swarmd.identity.api_keys import new_api_key

AGENT = Path(__file__).parent / "agents" / "teller"
SPEC = """
name = "teller"
version = "{version}"
entry = "teller:run"
retries = 0
timeout_s = 20

[env]
DB_PASSWORD = "secret:db-password"
TLS_KEY = "secret:tls-key"
PLAIN = "{plain}"
"""


def planted() -> str:
    """A value that is nowhere else, and whose encodings differ from it."""
    return "pl%nted/" + secrets.token_urlsafe(24) + "+&"


@dataclass
class Lab:
    """A swarm with an agent that knows what was planted."""

    swarm: LocalSwarm
    folder: Path
    password: str = field(default_factory=planted)
    key: str = field(default_factory=lambda: "\n".join(planted() for _ in range(3)))
    plain: str = field(default_factory=planted)
    setting: str = field(default_factory=planted)
    inherited: str = field(default_factory=planted)

    def __getitem__(self, index: int) -> Daemon:
        return self.swarm[index]

    @property
    def all(self) -> list[str]:
        return [self.password, self.key, self.plain, self.setting, self.inherited]

    def forms(self, *values: str) -> list[bytes]:
        """What is looked for: each value as it is, and as it is commonly written."""
        found = []
        for value in "\n".join(values or self.all).split("\n"):
            raw = value.encode()
            # From the middle, so that it is found wherever the encoding of a whole began.
            encoded = [base64.b64encode(bytes(shift) + raw)[6:-8] for shift in range(3)]
            found += [raw[4:-4], urllib.parse.quote(value, safe="").encode(), raw.hex().encode()]
            found += encoded
        return found

    def set_secret(self, index: int, name: str, value: str) -> None:
        done = subprocess.run(
            [str(BIN / "swarmctl"), "--socket", str(self[index].socket), "secret", "set", name],
            input=value,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
        assert value[:8] not in done.stdout + done.stderr

    def deploy(self, index: int, version: str, *more: str) -> subprocess.CompletedProcess[str]:
        file = self.folder / "teller.toml"
        file.write_text(SPEC.format(version=version, plain=self.plain))
        shutil.copy(AGENT / "teller.py", self.folder)
        return self[index].ctl("agent", "deploy", str(file), *more)

    def run(self, index: int = 0, **value: bool) -> Any:
        """What `teller` told of itself, and the node where it ran."""
        with Client(str(self[index].socket)) as client:
            [task] = client.submit([TaskInput(agent="teller", input=value)])
            [result] = client.results([task.id])
            assert result.state == "succeeded", result
            return {**result.result, "node": result.node}

    def fail(self, index: int, **value: bool) -> str:
        done = self[index].ctl("run", "teller", "--input", json.dumps(value), "--json")
        assert done.returncode == 1, done.stdout + done.stderr
        return str(json.loads(done.stdout)["error"]["message"])

    def pid_of(self, daemon: Daemon) -> int:
        assert daemon.process is not None
        return daemon.process.pid


def digests(lab: Lab) -> dict[str, str]:
    values = {"DB_PASSWORD": lab.password, "TLS_KEY": lab.key, "PLAIN": lab.plain}
    return {name: hashlib.sha256(value.encode()).hexdigest() for name, value in values.items()}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Four daemons that log all they do. The last may only work, so it holds no keys."""
    root = Path(tempfile.mkdtemp(prefix="swarmd-"))
    with LocalSwarm(root, 4) as swarm:
        (root / "agent").mkdir()
        lab = Lab(swarm, root / "agent")
        for daemon in swarm.daemons:
            seeds = [f"{one.address}:{one.port}" for one in swarm.daemons if one is not daemon]
            daemon.write_config(
                node={
                    "name": daemon.name,
                    "data_folder": str(daemon.folder / "data"),
                    "keys_folder": str(daemon.folder / "keys"),
                    "log_level": "debug",
                },
                mesh={
                    "bind": [daemon.address],
                    "port": daemon.port,
                    "interfaces": ["lo"],
                    "mdns": False,
                    "seeds": seeds,
                },
                agents={"path": f"/usr/bin:/bin:/{lab.setting}"},
            )
            daemon.environ["PLANTED_TOKEN"] = lab.inherited
        swarm.form(voters=3)
        voters = swarm[0].json("status")["store"]["voters"]
        worker = next(one for one in swarm.daemons if one.name not in voters)
        done = swarm.by_name("n1").ctl("node", "roles", worker.name, "worker")
        assert done.returncode == 0, done.stderr
        swarm.daemons.sort(key=lambda one: one is worker)
        lab.set_secret(0, "db-password", lab.password)
        lab.set_secret(3, "tls-key", lab.key)
        deployed = lab.deploy(3, "1")
        assert deployed.returncode == 0, deployed.stderr
        yield lab
    shutil.rmtree(root, ignore_errors=True)


def everything(lab: Lab) -> Iterator[tuple[str, bytes]]:
    """All that could be looked at: logs, files, metrics, lists of processes."""
    for daemon in lab.swarm.daemons:
        for path in daemon.folder.rglob("*"):
            if path.is_file() and path.name != "swarmd.toml":
                yield str(path), path.read_bytes()
        with Client(str(daemon.socket)) as local:
            yield (
                f"metrics of {daemon.name}",
                local._open("GET", "/metrics", None, prefix="").read(),
            )
            local.close()
    daemons = {lab.pid_of(daemon) for daemon in lab.swarm.daemons}
    for process in Path("/proc").glob("[0-9]*"):
        names = ["cmdline"] if int(process.name) in daemons else ["cmdline", "environ"]
        for name in names:
            try:
                yield str(process / name), (process / name).read_bytes()
            except OSError:
                continue


def test_nothing_that_was_planted_is_found(lab: Lab) -> None:
    seen = set()
    for _ in range(12):
        found = lab.run(0, tell=True)
        assert found["digests"] == digests(lab), "the agent knows what was planted"
        assert "PLANTED_TOKEN" not in found["others"]
        seen.add(found["node"])
    assert seen
    raised = lab.fail(1, tell=True, **{"raise": True})
    assert "cannot log in with [secret db-password] and" in raised
    lab.fail(2, crash=True)
    logged = lab[0].ctl("agent", "logs", "teller").stdout
    assert "the password is [secret db-password] and the key is [secret tls-key]" in logged
    assert "crashing with [secret db-password]" in logged
    shown = [lab[0].ctl(*words, "--json").stdout for words in (
        ("agent", "show", "teller"), ("secret", "list"), ("task", "list"), ("agent", "list"),
    )]  # fmt: skip
    texts = [raised, logged, *shown]
    forms, of_agents = lab.forms(), lab.forms(lab.password, lab.key, lab.plain, lab.inherited)
    for text in texts:
        assert not [one for one in forms if one in text.encode()]
    files = 0
    for place, raw in everything(lab):
        files += 1
        # PATH of agents is a setting that they are given.
        wanted = of_agents if place.endswith("/environ") else forms
        assert not [one for one in wanted if one in raw], place
    assert files > 60


def test_a_worker_runs_agents_with_secrets_and_holds_no_keys(lab: Lab) -> None:
    worker = lab[3]
    assert not (worker.folder / "data" / "secrets" / "keyring").exists()
    for daemon in lab.swarm.daemons[:3]:
        keyring = daemon.folder / "data" / "secrets" / "keyring"
        wait_until("the keys are there", keyring.exists, timeout_s=10)
        assert keyring.stat().st_mode & 0o777 == 0o600
    nodes = set()
    for _ in range(40):
        nodes.add(lab.run(0)["node"])
        if worker.name in nodes:
            return
    raise AssertionError(nodes)


def test_a_changed_secret_reaches_what_starts_from_then_on(lab: Lab) -> None:
    lab.password = planted()
    lab.set_secret(3, "db-password", lab.password)

    def all_have_it() -> bool:
        return all(lab.run(0)["digests"] == digests(lab) for _ in range(8))

    wait_until("every process has the new one", all_have_it, timeout_s=20)
    [shown] = [one for one in lab[1].json("secret", "list") if one["name"] == "db-password"]
    assert (shown["version"], shown["used_by"]) == (2, ["teller"])


def test_what_is_used_is_not_deleted(lab: Lab) -> None:
    refused = lab[1].ctl("secret", "delete", "db-password")
    assert refused.returncode == 1
    assert "is used by teller" in refused.stderr
    lab.set_secret(1, "unused", "does not matter")
    assert lab[3].ctl("secret", "delete", "unused").returncode == 0
    assert lab[1].ctl("secret", "delete", "unused").returncode == 1


def test_the_same_again_changes_nothing_and_another_value_is_another_version(lab: Lab) -> None:
    assert lab.deploy(0, "1").returncode == 0
    assert lab.deploy(3, "1").returncode == 0
    plain, lab.plain = lab.plain, planted()
    assert "with other content" in lab.deploy(0, "1").stderr
    assert "with other content" in lab.deploy(3, "1").stderr
    lab.plain = plain


def test_who_may_not_use_a_secret_deploys_nothing_that_refers_to_it(lab: Lab) -> None:
    text, key_hash = new_api_key()
    rules = ["agent:deploy:teller", "secret:use:tls-key", "secret:set:mine"]
    with Client(str(lab[0].socket)) as admin:
        admin.create_api_key("deployer", key_hash, rules=rules)
    file = lab.folder / "key"
    file.write_text(text)
    file.chmod(0o600)
    done = lab[0].ctl(
        "--api-key-file", str(file), "agent", "deploy", str(lab.folder / "teller.toml")
    )
    assert "secret:use:db-password" in done.stderr
    with Client(str(lab[0].socket), api_key=text) as client:
        client.set_secret("mine", "anything at all")
        with pytest.raises(Forbidden):
            client.set_secret("db-password", "anything at all")
        with pytest.raises(Forbidden):
            client.secrets()
        with pytest.raises(Forbidden):
            client.delete_secret("mine")
        for key in ("s/v/mine", "../s/v/mine", "s/ring"):
            with pytest.raises((Forbidden, NotFound)):
                client.kv_get(key)
    with Client(str(lab[0].socket)) as admin:
        assert [one.key for one in admin.kv_list("s/")] == []
        with pytest.raises(NotFound):
            admin.kv_get("s/v/mine")

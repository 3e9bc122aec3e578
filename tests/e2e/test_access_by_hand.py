"""API keys as a person makes and uses them, on a real daemon that other hosts reach."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from localswarm import Daemon, LocalSwarm, wait_until
from mistakes import short_folder


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with short_folder() as root, LocalSwarm(root, 1) as swarm:
        with socket.socket() as probe:
            probe.bind((swarm[0].address, 0))
            port = probe.getsockname()[1]
        listen = {"socket": str(swarm[0].socket), "listen": [f"{swarm[0].address}:{port}"]}
        swarm[0].write_config(gateway=listen)
        swarm.form()
        yield swarm[0]


def says(daemon: Daemon, *arguments: str, code: int = 0) -> str:
    done = daemon.ctl(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_a_key_from_its_making_to_its_end(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "ci.key"
    said = says(
        daemon, "key", "create", "ci", "--role", "viewer", "--allow", "kv:write:ci/*",
        "--ttl", "90d", "--out", str(file),
    )  # fmt: skip
    assert "key ci is good for 90 d; it is not shown again" in said
    assert file.read_text().strip() not in said
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    status = daemon.json("status")
    [url] = status["api"]
    remote = ("--socket", url, "--fingerprint", status["api_fingerprint"])
    known = (*remote, "--api-key-file", str(file))
    wait_until("the key is known", lambda: daemon.ctl(*known, "status").returncode == 0)
    assert "key ci" in says(daemon, *known, "key", "whoami")
    assert says(daemon, *known, "kv", "put", "ci/a", "1")
    refused = says(daemon, *known, "kv", "put", "other", "1", code=2)
    assert "key ci may not do this: it takes the rule kv:write:other" in refused
    assert "this takes an API key" in says(daemon, *remote, "status", code=2)
    assert "is not trusted here" in says(daemon, "--socket", url, "status", code=1)

    session = says(daemon, *known, "key", "session", "--ttl", "1m").splitlines()[0]
    (tmp_path / "session").write_text(session)
    shown = says(daemon, *remote, "--api-key-file", str(tmp_path / "session"), "key", "whoami")
    assert shown.startswith("key ci (session)")

    row = next(one for one in says(daemon, "key", "list").splitlines() if one.startswith("ci "))
    assert row.split() == ["ci", "viewer", "90", "d", "kv:write:ci/*"]
    assert "the key ci counts no more" in says(daemon, "key", "revoke", "ci")
    wait_until("it is refused", lambda: daemon.ctl(*known, "status").returncode == 2, timeout_s=2)
    assert "it was revoked" in says(daemon, *known, "status", code=2)


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["create", "x"], 2, "allowed nothing: give a role, a rule, or both"),
        (["create", "x", "--allow", "task:sumbit"], 2, "did you mean task:submit?"),
        (["create", "x y", "--role", "viewer"], 2, "is not a key name"),
        (["create", "x", "--role", "king"], 2, "king"),
        (["create", "x", "--role", "viewer", "--out", "/"], 2, "/ exists"),
        (["create", "x", "--role", "viewer", "--out", "/no/where"], 2, "cannot write /no/where"),
        (["revoke", "x"], 1, "there is no API key x"),
        (["session", "--ttl", "20m"], 2, "from 1 to 900 s"),
        (["crate"], 2, "did you mean 'create'?"),
    ],
)
def test_mistakes(daemon: Daemon, arguments: list[str], code: int, why: str) -> None:
    assert why in says(daemon, "key", *arguments, code=code)
    assert daemon.json("key", "list") == []


def test_a_key_that_cannot_be_read(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"\xff\xfe")
    (tmp_path / "two").write_text("swk_a swk_b")
    for name, why in (
        ("none", "No such file"),
        ("bad", "it holds no key"),
        ("two", "one word of plain letters"),
    ):
        assert why in says(daemon, "--api-key-file", str(tmp_path / name), "status", code=2)


def test_rules_fit_a_terminal_and_programs(daemon: Daemon) -> None:
    shown = says(daemon, "key", "rules")
    assert max(map(len, shown.splitlines())) <= 80
    rules = json.loads(says(daemon, "key", "rules", "--json"))
    assert {one["rule"]: one["roles"] for one in rules}["key:manage"] == ["admin"]


def test_the_key_in_the_environment(daemon: Daemon) -> None:
    made = json.loads(says(daemon, "key", "create", "env", "--role", "viewer", "--json"))
    wait_until("known", lambda: "env" in {one["name"] for one in daemon.json("key", "list")})
    os.environ["SWARMCTL_API_KEY"] = made["key"]
    try:
        wait_until("it counts", lambda: "key env" in daemon.ctl("key", "whoami").stdout)
    finally:
        del os.environ["SWARMCTL_API_KEY"]
    says(daemon, "key", "revoke", "env")

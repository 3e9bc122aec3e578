"""swarmctl secret: where a value is read from, and what is printed."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_cli_commands import Run, ctl, live

__all__ = ["ctl", "live"]


def typed(monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))


def values(live: Any) -> dict[str, str]:
    found: dict[str, str] = live.services.secrets.values
    return found


def test_a_value_comes_from_standard_input_or_a_file(
    ctl: Run, live: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    typed(monkeypatch, b"from a pipe\n")
    ran = ctl("secret", "set", "db")
    assert (ran.code, ran.out) == (0, "the secret db is set (version 1)\n")
    assert values(live)["db"] == "from a pipe"
    file = tmp_path / "key.pem"
    file.write_bytes(b"two\nlines\r\n")
    ran = ctl("secret", "set", "db", "--file", str(file), "--json")
    assert ran.json == {"name": "db", "version": 2}
    assert values(live)["db"] == "two\nlines"
    assert ctl("secret", "set", "db", "--file", str(file), "--exact").code == 0
    assert values(live)["db"] == "two\nlines\r\n"
    typed(monkeypatch, b"again")
    assert ctl("secret", "set", "db", "--file", "-").code == 0
    assert values(live)["db"] == "again"


def test_a_value_is_typed_twice_without_echo(live: Any) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "swarmd.cli.swarmctl", "secret", "set", "db"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "SWARMCTL_SOCKET": live.socket, "NO_COLOR": "1"},
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    for prompt in (b"value of db: ", b"again: "):
        while not shown.endswith(prompt):
            shown += os.read(ours, 100)
        os.write(ours, b"typed value\n")
    try:
        while more := os.read(ours, 1_000):
            shown += more
    except OSError:
        pass
    os.close(ours)
    assert process.wait(10) == 0, shown
    assert values(live)["db"] == "typed value"
    assert b"typed" not in shown


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "at least one character"),
        (b"a\0b", "NUL"),
        (b"\xff\xfe", "a secret is text"),
        (b"x" * 40_000, "at most 32768"),
    ],
)
def test_what_is_no_value_is_one_line(
    ctl: Run, monkeypatch: pytest.MonkeyPatch, raw: bytes, said: str
) -> None:
    typed(monkeypatch, raw)
    ran = ctl("secret", "set", "db")
    assert ran.code == 2
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert "xxxxx" not in ran.err
    typed(monkeypatch, b"some value")
    assert (
        "is not a secret name" in ctl("secret", "set", "-x").err + ctl("secret", "set", "a b").err
    )


def test_there_is_no_way_to_give_a_value_as_an_argument(ctl: Run) -> None:
    ran = ctl("secret", "set", "db", "value")
    assert (ran.code, ran.out) == (2, "")


def test_the_list_fits_and_names_who_uses_what(ctl: Run, live: Any) -> None:
    client = live.services
    spec = {"name": "echo", "version": "1", "entry": "a:b", "env": {"A": "secret:db"}}
    from swarmd.client import Client

    with Client(live.socket) as api:
        api.set_secret("db", "some value")
        api.set_secret("other", "some value")
        body = {"spec": spec, "bundle": b"x"}
        api._call("POST", "/agents", body, kind=dict[str, Any])
    client.secrets.unreadable.add("other")
    ran = ctl("secret", "list")
    assert ran.code == 0
    assert all(len(line) <= 80 for line in ran.out.splitlines())
    assert [line.split()[0] for line in ran.out.splitlines()] == ["NAME", "db", "other"]
    assert "echo" in ran.out.splitlines()[1]
    assert "other cannot be read" in ran.err
    found = json.loads(ctl("secret", "list", "--json").out)
    assert [(one["name"], one["used_by"], one["readable"]) for one in found] == [
        ("db", ["echo"], True),
        ("other", [], False),
    ]
    assert "some value" not in ran.out + json.dumps(found)


def test_what_is_used_is_deleted_by_force_alone(ctl: Run, live: Any) -> None:
    from swarmd.client import Client

    with Client(live.socket) as api:
        api.set_secret("db", "some value")
        spec = {"name": "echo", "version": "1", "entry": "a:b", "env": {"A": "secret:db"}}
        api._call("POST", "/agents", {"spec": spec, "bundle": b"x"}, kind=dict[str, Any])
    ran = ctl("secret", "delete", "db")
    assert ran.code == 1
    assert "is used by echo" in ran.err
    assert ctl("secret", "delete", "db", "--force").out == "the secret db is deleted\n"
    assert ctl("secret", "delete", "db").code == 1


@pytest.mark.parametrize(
    "words", [("secret", "set"), ("secret", "delete"), ("key", "revoke"), ("agent", "show")]
)
def test_a_name_that_is_a_path_is_told_so(
    ctl: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """And not that the API has no such place."""
    for name in ("a/b", ""):
        typed(monkeypatch, b"value")
        ran = ctl(*words, name)
        assert ran.code != 0
        assert "no name is empty or has a '/'" in ran.err

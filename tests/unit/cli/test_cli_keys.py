"""swarmctl kv txn, kv watch and lease: what is printed, and with which exit code."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_cli_commands import Run, ctl, live

from swarmd.base.errors import UnknownOperation
from swarmd.cli.common import BadInput
from swarmd.cli.tables import printable
from swarmd.cli.txn_file import parse_txn, read_txn
from swarmd.client import Client

__all__ = ["ctl", "live"]

SWAP = {
    "compares": [{"key": "a", "text": "1"}],
    "then": [{"op": "put", "key": "a", "text": "2"}, {"op": "delete", "key": "b"}],
    "else": [{"op": "put", "key": "b", "text": "1"}],
}


# ---- transactions ---------------------------------------------------------------------


def test_txn_says_which_branch_and_exits_so(ctl: Run, tmp_path: Path) -> None:
    file = tmp_path / "swap.json"
    file.write_text(json.dumps(SWAP))
    ctl("kv", "put", "a", "1")
    ran = ctl("kv", "txn", str(file))
    assert (ran.code, ran.out) == (0, "then was applied: revision 2\n")
    ran = ctl("kv", "txn", str(file))
    assert ran.code == 1
    assert ran.out == "else was applied: revision 3 (key 'a' holds another value)\n"
    ran = ctl("kv", "txn", str(file), "--json")
    assert ran.code == 1
    assert ran.json == {"branch": "else", "revision": 4, "unmet": "key 'a' holds another value"}


def test_txn_reads_standard_input(ctl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = b'{"then": [{"op": "put", "key": "a", "value": "AP8="}]}'
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
    assert ctl("kv", "txn", "-").code == 0
    assert ctl("kv", "get", "a", "--json").json["value"] == "AP8="


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "f is empty"),
        ("  \n", "f is empty"),
        ('{\n  "then": [\n    {"op": "put" "key": "a"}\n  ]\n}', "f:3:18: not JSON: Expecting ','"),
        ("{", "f:1:2: not JSON"),
        ("[]", "f: expected `object`, got `array`"),
        ("{}", "f: nothing to do"),
        ('{"the": []}', "f: object contains unknown field `the`"),
        ('{"then": {}}', "f: then: expected `array`, got `object`"),
        ('{"then": [{"key": "a"}]}', "f: then[0]: object missing required field `op`"),
        ('{"then": [{"op": "put", "key": "a"}]}', "f: then[0]: a put has either text or value"),
        ('{"compares": [{"key": "a"}]}', "f: compares[0]: expected one of revision, text"),
        ('{"compares": [{"key": "a", "revision": "1"}]}', "f: compares[0].revision: expected"),
        ('{"else": [{"op": "put", "key": "a", "value": "%"}]}', "f: else[0].value: invalid base64"),
        ("[" * 100_000, "f: "),
    ],
)
def test_a_malformed_transaction_is_told_with_its_place(text: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_txn(text.encode(), "f")
    assert caught.value.message.startswith(said)


def test_an_operation_that_does_not_exist_is_told_with_its_place() -> None:
    text = b'{"then": [{"op": "delete", "key": "a"}, {"op": "putt", "key": "a"}]}'
    with pytest.raises(UnknownOperation, match=r"f: then\[1\]: .*did you mean 'put'"):
        parse_txn(text, "f")
    with pytest.raises(BadInput, match="UTF-8"):
        parse_txn(b"\xff\xfe", "f")


def test_a_transaction_file_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b" " * (5 * 1024 * 1024))
    with file.open("rb") as source, pytest.raises(BadInput, match="at most"):
        read_txn(source)


def test_mistakes_of_transactions_keep_their_code(ctl: Run, tmp_path: Path) -> None:
    file = tmp_path / "f"
    for branch, code, exits in (
        ([{"op": "swap", "key": "a"}], "unknown_operation", 2),
        ([{"op": "put", "key": "a", "text": "1"}] * 257, "too_large", 2),
        ([{"op": "put", "key": "a", "text": "1", "lease": 9}], "lease_expired", 1),
        ([{"op": "put", "key": "a", "text": "1", "expect": 9}], "conflict", 1),
    ):
        file.write_text(json.dumps({"then": branch}))
        ran = ctl("kv", "txn", str(file), "--json")
        assert (ran.code, ran.json["error"]["code"]) == (exits, code)
    assert ctl("kv", "list", "--json").json == []


# ---- watching -------------------------------------------------------------------------


def test_watch_prints_changes_from_a_revision_until_the_count(ctl: Run) -> None:
    ctl("kv", "put", "a", "1")
    ctl("kv", "put", "b", "a\tb\x1b[31m")
    ctl("kv", "delete", "a")
    ran = ctl("kv", "watch", "--from", "1", "--count", "3")
    assert ran.code == 0
    assert ran.out.splitlines() == [
        "1         put     a  1",
        "2         put     b  a b\\x1b[31m",
        "3         delete  a",
    ]
    ran = ctl("kv", "watch", "b", "--from", "1", "--count", "1", "--json")
    assert ran.json == {"key": "b", "value": "YQliG1szMW0=", "revision": 2}


def test_watch_names_what_is_wrong(ctl: Run) -> None:
    assert ctl("kv", "watch", "--from", "0").code == 2
    assert ctl("kv", "watch", "--count", "0").code == 2
    assert ctl("kv", "watch", "--socket", "/nonesuch").code == 3


def test_watch_on_a_terminal(live: Any, ctl: Run) -> None:
    """It says from where it watches, keeps to 80 columns, and ends with Ctrl-C."""
    command = [sys.executable, "-m", "swarmd.cli.swarmctl", "--socket", live.socket]
    master, slave = pty.openpty()
    process = subprocess.Popen([*command, "kv", "watch"], stdout=slave, stderr=slave)
    os.close(slave)
    shown = _read_until(master, "ends it")
    assert "watching from revision 1 on; Ctrl-C ends it" in shown
    Client(live.socket).kv_put("long", b"x" * 200)
    [line] = [one for one in _read_until(master, "…").splitlines() if "put" in one]
    assert len(line) == 80
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert "swarmctl: interrupted" in _read_until(master, "interrupted")
    os.close(master)


def _read_until(master: int, text: str) -> str:
    shown = b""
    while text.encode() not in shown:
        shown += os.read(master, 4096)
    return shown.decode().replace("\r\n", "\n")


# ---- leases ---------------------------------------------------------------------------


def test_leases(ctl: Run) -> None:
    granted = ctl("lease", "grant", "--ttl", "90s")
    assert (granted.out, granted.err) == ("1\n", "good for 2 min: swarmctl lease renew 1\n")
    assert ctl("kv", "put", "a", "1", "--lease", "1").code == 0
    assert "a    2         1      1" in ctl("kv", "list").out
    assert ctl("lease", "list").out.splitlines() == [
        "ID  TTL    LEFT   KEYS",
        "1   2 min  2 min  1",
    ]
    assert ctl("lease", "show", "1").out.splitlines()[-2:] == ["keys   1", "  a"]
    assert ctl("lease", "renew", "1").out == "lease 1 has 2 min again\n"
    assert ctl("lease", "revoke", "1").out == "lease 1 is revoked\n"
    assert ctl("kv", "list", "--json").json == []


def test_leases_in_json(ctl: Run) -> None:
    assert ctl("lease", "grant", "--ttl", "90s", "--json").json["id"] == 1
    assert ctl("lease", "renew", "1", "--json").json["ttl_s"] == 90.0
    assert [one["id"] for one in ctl("lease", "list", "--json").json] == [1]
    assert ctl("lease", "show", "1", "--json").json["count"] == 0
    assert ctl("lease", "revoke", "1", "--json").json["ok"]


def test_a_dead_lease_is_exit_code_1_and_a_bad_ttl_2(ctl: Run) -> None:
    calls: list[tuple[str, ...]] = [("renew", "7"), ("revoke", "7"), ("show", "7")]
    for words in calls:
        ran = ctl("lease", *words)
        assert ran.code == 1
        assert ran.err == "swarmctl: lease 7 has ended or never was: grant another one\n"
    assert ctl("kv", "put", "a", "1", "--lease", "7").code == 1
    for ttl in ("0.5s", "2d", "soon", "0"):
        assert ctl("lease", "grant", "--ttl", ttl).code == 2


def test_many_keys_of_a_lease_are_counted(ctl: Run, live: Any) -> None:
    with Client(live.socket) as client:
        lease = client.lease_grant(60).id
        for number in range(25):
            client.kv_put(f"k{number:02}", b"", lease=lease)
    shown = ctl("lease", "show", str(lease)).out.splitlines()
    assert shown[-2:] == ["  k19", "  and 5 more"]


# ---- help and text ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [["kv", "watch"], ["kv", "txn"], ["kv", "put"], ["lease"]]
    + [["lease", verb] for verb in ("grant", "renew", "revoke", "list", "show")],
)
def test_help_has_examples_within_80_columns(ctl: Run, words: list[str]) -> None:
    ran = ctl(*words, "--help")
    assert "Examples:" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain ü", "plain ü"), ("a\nb\t", "a b "), ("\x1b[0m", "\\x1b[0m"), ("\u202e", "\\u202e")],
)
def test_a_terminal_is_not_made_to_obey(text: str, shown: str) -> None:
    assert printable(text) == shown

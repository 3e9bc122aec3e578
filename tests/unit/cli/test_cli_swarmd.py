"""The daemon's command line: modes, tokens, flags; the daemon itself is a stand-in."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swarmd.base.errors import DataFolderRefused, DiskFault
from swarmd.cli.common import run_program
from swarmd.cli.swarmd import swarmd
from swarmd.config import Config, Init, Join, Resume

Start = Callable[..., tuple[int, str, str]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, Any]]:
    """What the daemon was started with."""
    calls: list[tuple[Config, Any]] = []

    def run(config: Config, start: Any) -> int:
        calls.append((config, start))
        return 0

    monkeypatch.setattr("swarmd.app.run", run)
    # The collector that it would calm is that of the tests.
    monkeypatch.setattr("swarmd.app.memory.calm_collector", lambda: None)
    return calls


@pytest.fixture
def start(
    started: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Start:
    for name in ("SWARMD_JOIN_TOKEN", "SWARMD_CONFIG"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_program(swarmd, "swarmd", list(arguments))
        captured = capsys.readouterr()
        code = ended.value.code
        return (code if isinstance(code, int) else 0), captured.out, captured.err

    return call


def test_the_three_ways_to_start(start: Start, started: list[tuple[Config, Any]]) -> None:
    assert start()[0] == 0
    assert start("--init", "lab")[0] == 0
    assert start("--join", "-", stdin=" abc\n")[0] == 0
    assert [mode for _, mode in started] == [Resume(), Init("lab"), Join("abc")]


def test_a_token_comes_from_a_file_or_the_environment(
    start: Start, started: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("abc\n")
    assert start("--join", f"@{tmp_path / 'token'}")[2] == ""
    monkeypatch.setenv("SWARMD_JOIN_TOKEN", "def")
    start()
    assert [mode for _, mode in started] == [Join("abc"), Join("def")]


def test_a_token_typed_bare_works_with_a_warning(start: Start, started: list[Any]) -> None:
    code, _, err = start("--join", "abc")
    assert code == 0
    assert "process list" in err
    assert started[0][1] == Join("abc")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--join", "-"], "no join token in standard input"),
        (["--join", "@/nonesuch"], "cannot read the join token from /nonesuch"),
        (["--init", "a", "--join", "b"], "one of the two"),
        (["--init", "a", "config", "show"], "give no command"),
        (["--prot", "1"], "Did you mean"),
        (["--port", "x"], "is not a valid integer"),
        (["--set", "port"], "expected SECTION.KEY=VALUE"),
        (["--set", "mesh.prot=1"], "did you mean port?"),
        (["--config", "/nonesuch.toml"], "cannot read configuration /nonesuch.toml"),
        (["confg"], "did you mean 'config'?"),
        (["--port", "99999"], "mesh.port is 99999"),
    ],
)
def test_every_mistake_is_one_line_and_starts_nothing(
    start: Start, started: list[Any], arguments: list[str], says: str
) -> None:
    code, _, err = start(*arguments)
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
    assert started == []


def test_flags_become_settings(start: Start, started: list[tuple[Config, Any]]) -> None:
    start(
        "--node-name", "n9", "--port", "7600", "--bind", "127.0.0.1", "--bind", "::1",
        "--seed", "host1", "--no-mdns", "--interface", "lo", "--socket", "/tmp/s",
        "--data-folder", "/tmp/d", "--set", "swim.profile=local",
    )  # fmt: skip
    config, _ = started[0]
    assert config.node_name == "n9"
    assert tuple(config.mesh.bind) == ("127.0.0.1", "::1")
    assert (config.mesh.port, config.mesh.mdns, tuple(config.mesh.seeds)) == (
        7600,
        False,
        ("host1",),
    )
    assert str(config.socket_path) == "/tmp/s"
    assert str(config.data_folder) == "/tmp/d"
    assert config.swim.profile == "local"


@pytest.mark.parametrize(
    ("error", "code"), [(DataFolderRefused("it is in use"), 2), (DiskFault("it is broken"), 1)]
)
def test_errors_at_start_are_one_line(
    start: Start, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def run(config: Config, mode: Any) -> int:
        raise error

    monkeypatch.setattr("swarmd.app.run", run)
    assert start() == (code, "", f"swarmd: {error}\n")


def test_config_show_tells_sources(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARMD_NODE_NAME", "n7")
    code, out, _ = start("--port", "7600", "config", "show")
    assert code == 0
    lines = {line.split(" = ")[0].strip(): line for line in out.splitlines()}
    assert lines["mesh.port"].endswith("= 7600  # flag")
    assert lines["node.name"].endswith('= "n7"  # environment SWARMD_NODE_NAME')
    assert lines["mesh.mdns"].endswith("= true  # default")
    changed = json.loads(start("config", "show", "--changed", "--json")[1])
    assert changed == [
        {"key": "node.name", "value": "n7", "source": "environment SWARMD_NODE_NAME"}
    ]


def test_config_example_can_be_loaded(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "swarmd.toml"
    path.write_text(start("config", "example")[1])
    assert start("--config", str(path), "config", "show")[0] == 0


def test_version(start: Start) -> None:
    assert start("--version")[1].startswith("swarmd 0.")

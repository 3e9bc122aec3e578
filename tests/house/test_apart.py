"""`scripts/apart` gives a command a network and processes of its own, which end with it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from nethosts import missing_tools

APART = str(Path(__file__).resolve().parents[2] / "scripts" / "apart")

pytestmark = pytest.mark.skipif(missing_tools() != "", reason=missing_tools())


def said_by(*command: str) -> list[str]:
    done = subprocess.run([APART, *command], capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.splitlines()


def test_two_at_once_have_the_same_addresses_and_nobody_else_s() -> None:
    listens = "import socket; s = socket.create_server(('127.0.0.1', 7575)); print(1, flush=True)"
    command = [APART, "python3", "-c", f"{listens}; input()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as other:
        for process in (one, other):
            assert process.stdout is not None
            assert process.stdout.readline() == b"1\n"
        one.communicate(b"\n", timeout=30)
        other.communicate(b"\n", timeout=30)
    assert (one.returncode, other.returncode) == (0, 0)
    addresses = said_by("ip", "-4", "-brief", "address")
    assert sorted(line.split()[0].partition("@")[0] for line in addresses) == ["apart0", "lo"]


def test_the_exit_code_is_the_command_s() -> None:
    assert subprocess.run([APART, "sh", "-c", "exit 7"], check=False).returncode == 7


def test_what_needs_the_network_outside_finds_it() -> None:
    here = Path("/proc/self/ns/net").readlink().name
    [found] = said_by(
        "sh", "-c", "nsenter --net=/proc/self/fd/$APART_FROM readlink /proc/self/ns/net"
    )
    assert found == here
    assert said_by("readlink", "/proc/self/ns/net") != [here]


@pytest.mark.parametrize("is_killed", [False, True])
def test_nothing_that_it_started_outlives_it(is_killed: bool) -> None:
    """What it has started holds the pipe, which ends with the last of them."""
    script = "setsid sleep 600 & setsid sh -c 'trap \"\" TERM INT HUP; sleep 600' & echo; read line"
    with subprocess.Popen(
        [APART, "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        if is_killed:
            process.kill()
        assert process.communicate(b"\n", timeout=30)[0] == b""
    assert process.returncode == (-9 if is_killed else 0)


def test_who_lost_its_parent_is_reaped() -> None:
    script = "sh -c 'sleep 0.1 & echo $!'; sleep 1; ls -d /proc/[0-9]*"
    orphan, *left = said_by("sh", "-c", script)
    assert f"/proc/{orphan}" not in left

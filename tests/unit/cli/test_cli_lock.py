"""`swarmctl lock` as a process of its own, also at a terminal, over a store in memory."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "gateway"))

from gateway_fakes import make_services
from recipe_gateway import RecipeGateway

from swarmd.client import Client

SWARMCTL = Path(sys.executable).parent / "swarmctl"


@pytest.fixture
def live(tmp_path: Path) -> Iterator[RecipeGateway]:
    with RecipeGateway(make_services(tmp_path)) as gateway:
        yield gateway


@pytest.fixture
def client(live: RecipeGateway) -> Iterator[Client]:
    with Client(live.socket, timeout_s=10) as client:
        yield client


def environ_of(live: RecipeGateway) -> dict[str, str]:
    return {**os.environ, "SWARMCTL_SOCKET": live.socket, "NO_COLOR": "1"}


def run(live: RecipeGateway, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SWARMCTL, *arguments], capture_output=True, text=True, timeout=60, env=environ_of(live)
    )


def start(live: RecipeGateway, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [SWARMCTL, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ_of(live),
        start_new_session=True,
    )


def until(holds: Callable[[], object], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)  # What processes do sets no event.


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("lock", "a/b", "--", "true"), 2, "has a '/'"),
        (("lock", "door"), 2, "Missing argument 'COMMAND...'"),
        (("lock", "door", "--ttl", "1s", "--", "true"), 2, "a lease lasts from 2 s to 24 h"),
        (("lock", "door", "--wait", "soon", "--", "true"), 2, "is not a duration"),
        (("lock", "door", "--tll", "5s", "--", "true"), 2, "--ttl"),
        (("elect", "x" * 201, "--", "true"), 2, "1 to 200 bytes"),
        (("barrier", "gate"), 2, "--count"),
        (("barrier", "gate", "--count", "0"), 2, "0 is not in the range"),
        (("counter", "add", "hits", "many"), 2, "'many' is not a valid integer"),
        (("locks", "lst"), 2, "did you mean 'list'?"),
        (("lokc", "door"), 2, "did you mean 'lock'?"),
        (("elections", "wach", "x"), 2, "did you mean 'watch'?"),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_do(
    live: RecipeGateway, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = run(live, *arguments)
    assert done.returncode == code
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_json_is_ours_and_not_the_commands(live: RecipeGateway, client: Client) -> None:
    """An option after `--` is the command's; errors with --json are JSON."""
    assert run(live, "lock", "door", "--", "echo", "--json").stdout == "--json\n"
    client.acquire_lock("door", owner="ann", wait_s=0)
    refused = run(live, "lock", "door", "--wait", "0", "--", "echo", "--json")
    assert (refused.returncode, refused.stdout) == (4, "")
    refused = run(live, "lock", "door", "--wait", "0", "--json", "--", "true")
    assert json.loads(refused.stdout)["error"]["code"] == "lock_held"


def test_tables_fit_80_columns(live: RecipeGateway, client: Client) -> None:
    client.acquire_lock("n" * 60, owner="o" * 60, wait_s=0)
    client.campaign("n" * 60, owner="o" * 60, value=b"v" * 60, wait_s=0)
    for arguments in (
        ("locks", "list"), ("locks", "show", "n" * 60), ("elections", "show", "n" * 60),
    ):  # fmt: skip
        lines = run(live, *arguments).stdout.splitlines()
        assert len(lines) == 2
        assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_lock_is_had_leaves_nothing(
    live: RecipeGateway, client: Client, number: signal.Signals
) -> None:
    client.acquire_lock("door", owner="ann", ttl_s=600, wait_s=0)
    waiting = start(live, "lock", "door", "--ttl", "10m", "--", "true")
    until(lambda: client.lock("door").waiting == 1)
    waiting.send_signal(number)
    waiting.communicate(timeout=20)
    assert waiting.returncode == (130 if number == signal.SIGINT else 128 + number)
    until(lambda: client.lock("door").waiting == 0)


def test_signals_are_passed_on_and_the_lock_is_given_back(
    live: RecipeGateway, client: Client, tmp_path: Path
) -> None:
    script = "trap 'echo got it; exit 5' USR1; touch up; while :; do sleep 0.01; done"
    held = start(live, "lock", "door", "--", "sh", "-c", f"cd {tmp_path}; {script}")
    until(lambda: (tmp_path / "up").exists())
    held.send_signal(signal.SIGUSR1)
    out, _ = held.communicate(timeout=20)
    assert (held.returncode, out) == (5, "got it\n")
    assert client.lock("door").holder is None


def test_a_lock_without_a_majority_ends_the_command(live: RecipeGateway, tmp_path: Path) -> None:
    script = f"trap 'echo told; exit 0' TERM; touch {tmp_path}/up; while :; do sleep 0.01; done"
    held = start(live, "lock", "door", "--ttl", "2s", "--", "sh", "-c", script)
    until(lambda: (tmp_path / "up").exists())
    live.store.no_quorum = True
    out, err = held.communicate(timeout=30)
    assert (held.returncode, out) == (4, "told\n")
    assert "door was lost, so the command was ended: no majority" in err


# ---- at a terminal --------------------------------------------------------------------


class Terminal:
    """A program at a terminal of its own, as its session's leader."""

    def __init__(self, live: RecipeGateway, *command: str) -> None:
        self._terminal, theirs = pty.openpty()
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environ_of(live),
        )
        os.close(theirs)
        self.pid = self._process.pid
        self.text = ""

    def expect(self, pattern: str, within_s: float = 20.0) -> None:
        deadline = time.monotonic() + within_s
        os.set_blocking(self._terminal, False)
        while not re.search(pattern, self.text):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.text!r}"
            try:
                self.text += os.read(self._terminal, 4_096).decode(errors="replace")
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                break  # The other end was closed.
        assert re.search(pattern, self.text), self.text

    def type(self, text: bytes) -> None:
        os.write(self._terminal, text)

    def foreground(self) -> int:
        """The process group that has the terminal."""
        found = fcntl.ioctl(self._terminal, termios.TIOCGPGRP, b"\0" * 4)
        return int.from_bytes(found, sys.byteorder)

    def ended(self) -> int:
        code = self._process.wait(20)
        os.close(self._terminal)
        return code


def test_a_command_reads_from_the_terminal(live: RecipeGateway) -> None:
    at = Terminal(
        live, str(SWARMCTL), "lock", "door", "--", "sh", "-c", "echo up; read line; echo got $line"
    )
    at.expect("up\r\n")
    at.type(b"hello\n")
    at.expect("got hello\r\n")
    assert at.ended() == 0


def test_control_c_at_the_terminal_ends_the_command(live: RecipeGateway, client: Client) -> None:
    at = Terminal(live, str(SWARMCTL), "lock", "door", "--", "sh", "-c", "echo up; exec sleep 600")
    at.expect("up\r\n")
    at.type(b"\x03")
    assert at.ended() == 130
    until(lambda: client.lock("door").holder is None)


def test_control_z_at_the_terminal_does_not_suspend(live: RecipeGateway) -> None:
    at = Terminal(
        live, str(SWARMCTL), "lock", "door", "--", "sh", "-c", "echo up; read line; echo got $line"
    )
    at.expect("up\r\n")
    at.type(b"\x1a")
    at.type(b"on\n")
    at.expect("got on\r\n")
    assert at.ended() == 0


def test_the_terminal_is_taken_back(live: RecipeGateway) -> None:
    """The command has it while it runs; afterwards who started swarmctl has it again."""
    command = f"{SWARMCTL} lock door -- sh -c 'echo up; read line'"
    shell = f"{command}; echo code $?; read line; echo got $line"
    at = Terminal(live, "sh", "-c", shell)
    at.expect("up\r\n")
    assert at.foreground() != at.pid
    at.type(b"one\n")
    at.expect("code 0\r\n")
    assert at.foreground() == at.pid
    at.type(b"two\n")
    at.expect("got two\r\n")
    assert at.ended() == 0

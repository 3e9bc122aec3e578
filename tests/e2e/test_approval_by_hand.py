"""Joining without a token, by hand on real daemons: asked, compared, approved or denied."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from localswarm import BIN, Daemon, LocalSwarm, wait_until


@pytest.fixture(scope="module")
def swarm() -> Iterator[LocalSwarm]:
    root = Path(tempfile.mkdtemp(prefix="swarmd-"))
    with LocalSwarm(root, 3) as three:
        three.form(voters=3)
        yield three
    shutil.rmtree(root, ignore_errors=True)


def says(daemon: Daemon, *arguments: str, code: int = 0) -> str:
    done = daemon.ctl(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def stranger(swarm: LocalSwarm, folder: Path, number: int, *seeds: int) -> Daemon:
    """A daemon in no swarm, that knows the addresses of some members."""
    port = swarm[0].port
    daemon = Daemon(f"n{number}", folder / f"n{number}", f"127.0.0.{number}", port)
    named = [f"{swarm[at].address}:{port}" for at in seeds]
    daemon.write_config(mesh={"seeds": named, "mdns": False})
    return daemon


def waits(member: Daemon, name: str) -> dict[str, object] | None:
    listed = member.try_json("node", "pending") or {"pending": []}
    return next((one for one in listed["pending"] if one["name"] == name), None)


@pytest.mark.long
def test_a_node_without_a_token_waits_until_it_is_approved(
    trio_swarm: LocalSwarm, folder: Path
) -> None:
    swarm = trio_swarm
    first, last = swarm[0], swarm[2]
    shown = first.json("node", "pending")
    fingerprint = shown["swarm"]["fingerprint"]
    assert shown["pending"] == []
    assert first.json("status")["swarm_fingerprint"] == fingerprint
    joiner = stranger(swarm, folder, 4, 1, 2)
    try:
        joiner.start("--join", "--swarm", fingerprint)
        # It is seen at any member, as one line, with the same fingerprint on both sides.
        asked = wait_until("it is seen", lambda: waits(first, "n4"))
        text = joiner.log.read_text()
        assert str(asked["words"]) in " ".join(text.split())
        assert max(map(len, [x for x in text.splitlines() if "[info" not in x])) <= 100
        assert f"swarmctl node approve {asked['fingerprint']}" in text
        assert "waits until an admin of lab approves it" in says(joiner, "status")
        assert not (joiner.folder / "data" / "mesh" / "authority").exists()
        # One that was asked dies; the other is asked, and is the one that lists it.
        swarm[1].kill()
        wait_until("asked at n3", lambda: (waits(last, "n4") or {"asked": []})["asked"] == ["n3"])
        table = says(last, "node", "pending")
        assert max(map(len, table.splitlines())) <= 80
        assert table.count("n4") == 1

        # Only who holds an admin key lets it in, and only by what was compared.
        digits = str(asked["fingerprint"])
        assert "give the whole fingerprint" in says(
            first, "node", "approve", digits[:10], "--yes", code=2
        )
        assert "no node with this fingerprint" in says(
            first, "node", "approve", "0" * 20, "--yes", code=2
        )
        other = folder / "other.admin.key"
        first.json("admin", "new", str(other))
        refused = says(first, "node", "approve", digits, "--yes", "--admin-key", str(other), code=2)
        assert "is not an admin key of the swarm lab" in refused
        assert waits(last, "n4") is not None
        assert "n4 is let in as worker" in says(
            first, "node", "approve", *str(asked["words"]).split(), "--yes", "--role", "worker"
        )
        wait_until("it is a member", lambda: "n4" in {x["name"] for x in last.json("members")})
        wait_until("it is ready", lambda: (joiner.try_json("status") or {}).get("ready"))
        assert waits(last, "n4") is None
        assert "n4 approved as worker" in says(last, "authority", "list", "--last", "1")
        assert "verify, from the genesis" in says(joiner, "authority", "verify")
        assert "30 d" in says(joiner, "members")
        # From then on it is a member as any other, without being told again.
        joiner.terminate()
        joiner.start()
        wait_until("it is back", lambda: (joiner.try_json("status") or {}).get("ready"))
    finally:
        joiner.kill()


def test_who_is_denied_is_told(swarm: LocalSwarm, folder: Path) -> None:
    first = swarm[0]
    joiner = stranger(swarm, folder, 4, 2)
    try:
        joiner.start("--join", "--swarm", first.json("status")["swarm_fingerprint"])
        asked = wait_until("it is seen", lambda: waits(first, "n4"))
        assert "is denied for an hour" in says(
            swarm[1], "node", "deny", str(asked["fingerprint"])[:12]
        )
        assert joiner.process is not None
        assert joiner.process.wait(20) == 2
        assert "an admin of the swarm denied this node" in joiner.log.read_text().splitlines()[-1]
        assert waits(first, "n4") is None
    finally:
        joiner.kill()


def test_who_gives_up_or_errs_leaves_nothing(swarm: LocalSwarm, folder: Path) -> None:
    first = swarm[0]
    joiner = stranger(swarm, folder, 5, 1)
    try:
        joiner.start("--join", "--swarm", first.json("status")["swarm_fingerprint"])
        wait_until("it is seen", lambda: waits(first, "n5"))
        assert joiner.process is not None
        joiner.process.send_signal(signal.SIGINT)
        assert joiner.process.wait(5) == 0
        assert not (joiner.folder / "data" / "mesh" / "authority").exists()
        # The swarm must be the one that was meant, and without a terminal it must be named.
        joiner.start("--join", "--swarm", "00" * 10)
        assert joiner.process.wait(20) == 1
        assert "of another swarm" in joiner.log.read_text().splitlines()[-1]
        joiner.start("--join")
        assert joiner.process.wait(20) == 2
        assert "--swarm FINGERPRINT" in joiner.log.read_text().splitlines()[-1]
        assert "n5" not in {x["name"] for x in first.json("members")}
    finally:
        joiner.kill()


def test_on_a_terminal_both_sides_are_asked_to_compare(swarm: LocalSwarm, folder: Path) -> None:
    first = swarm[0]
    joiner = stranger(swarm, folder, 6, 0)
    words = first.ctl("node", "pending").stdout.splitlines()[-2].strip()  # The second half.
    command = [str(BIN / "swarmd"), "--config", str(joiner.folder / "swarmd.toml"), "--join"]
    with Terminal(command) as joining:
        joining.until("[y/N]")
        assert words in joining.text
        joining.type("y\n")
        joining.until("waiting to be approved")
        asked = wait_until("it is seen", lambda: waits(first, "n6"))
        environ = {"SWARMCTL_SOCKET": str(first.socket)}
        approve = [str(BIN / "swarmctl"), "node", "approve", str(asked["fingerprint"])[:10]]
        with Terminal(approve, environ) as approving:
            approving.until("[y/N]")
            assert str(asked["words"]).split()[-1] in approving.text
            approving.type("n\n")
            approving.until("nothing is changed")
        with Terminal(approve, environ) as approving:
            approving.until("[y/N]")
            approving.type("y\n")
            approving.until("n6 is let in")
        joining.until("joined the swarm lab")


class Terminal:
    """A program on a terminal of its own, ended with the block."""

    def __init__(self, command: list[str], environ: dict[str, str] | None = None) -> None:
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, **(environ or {})},
            start_new_session=True,
        )
        os.close(theirs)
        os.set_blocking(self._ours, False)
        self.text = ""

    def until(self, wanted: str, timeout_s: float = 30.0) -> None:
        deadline = time.monotonic() + timeout_s
        while wanted not in " ".join(self.text.split()):
            assert time.monotonic() < deadline, self.text
            try:
                self.text += os.read(self._ours, 65_536).decode()
            except BlockingIOError:
                time.sleep(0.02)
            except OSError:  # It ended; what it said is all there is.
                assert wanted in " ".join(self.text.split()), self.text

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._ours)

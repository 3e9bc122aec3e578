"""Blobs between real daemons, as somebody types them: copies, kills, damage, mistakes."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from localswarm import BIN, Daemon, LocalSwarm, wait_until

from swarmd.base.limits import BLOB_CHUNK_BYTES, BLOB_PIECE_BYTES, MIB

pytestmark = pytest.mark.long

SIZE = 40 * MIB + 5
SETTINGS = {"blobs": {"bytes_max": 800 * MIB, "scrub_bytes_per_s": 0}}


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSwarm]:
    with LocalSwarm(tmp_path_factory.mktemp("blobs"), 3, settings=SETTINGS) as one:
        one.form()
        yield one


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE))
    return path


def put(daemon: Daemon, file: Path, *options: str) -> Any:
    return daemon.json("blob", "put", str(file), *options)


def path_of(daemon: Daemon, blob_hash: str, folder: str = "") -> Path:
    return daemon.folder / "data" / "blobs" / (folder or blob_hash[:2]) / blob_hash


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_a_file_comes_back_on_every_node(swarm: LocalSwarm, file: Path, tmp_path: Path) -> None:
    n1, n2, n3 = swarm.daemons
    done = n1.ctl("blob", "put", str(file))
    assert done.returncode == 0, done.stderr
    blob_hash = done.stdout.strip()
    assert f"{SIZE / MIB:.1f} MiB, held by " in done.stderr
    shown = n2.json("blob", "show", blob_hash)
    assert (shown["size"], len(shown["holders"])) == (SIZE, 2)
    assert [one["copies"] for one in shown["pins"]] == [2]
    for daemon in (n1, n2, n3):
        out = tmp_path / daemon.name
        got = daemon.ctl("blob", "get", blob_hash, "-o", str(out))
        assert got.returncode == 0, got.stderr
        assert digest(out) == digest(file)
    listed = n3.ctl("blob", "list").stdout
    assert blob_hash in listed
    assert all(len(line) <= 80 for line in listed.splitlines())


def test_standard_input_and_output(swarm: LocalSwarm) -> None:
    data = os.urandom(700_000)
    environ = {**os.environ, "SWARMCTL_SOCKET": str(swarm[0].socket)}
    ctl = str(BIN / "swarmctl")
    piped = subprocess.run(
        [ctl, "blob", "put", "-", "--copies", "3"], input=data, capture_output=True, env=environ
    )
    assert piped.returncode == 0, piped.stderr
    name = piped.stdout.decode().strip()
    got = subprocess.run([ctl, "blob", "get", name], capture_output=True, env=environ)
    assert got.stdout == data
    pinned = swarm[1].ctl("blob", "unpin", name)
    assert pinned.stdout == "not pinned by you any more; by nobody\n"
    assert swarm[1].ctl("blob", "unpin", name).returncode == 1
    assert swarm[1].ctl("blob", "pin", name, "--ttl", "1h").returncode == 0
    assert swarm[2].json("blob", "show", name)["pins"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["get", "nonsense", "-o", "x"], 2, "'nonsense' is no hash of a blob"),
        (["show", "a" * 52], 1, "no node holds a blob"),
        (["put", "/nowhere/at/all"], 2, "cannot read /nowhere/at/all: No such file"),
        (["put", "/etc/hostname", "--copies", "4"], 4, "4 copies need as many nodes"),
        (["put", "/etc/hostname", "--copies", "0"], 2, "0 is not in the range"),
        (["put", "/etc/hostname", "--ttl", "100000d"], 2, "ttl_s must be a whole number"),
    ],
)
def test_mistakes_are_named(swarm: LocalSwarm, arguments: list[str], code: int, said: str) -> None:
    done = swarm[0].ctl("blob", *arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr


def test_a_node_without_room_says_so(swarm: LocalSwarm, tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as opened:
        opened.truncate(900 * MIB)
    done = swarm[0].ctl("blob", "put", str(large))
    assert done.returncode == 4
    assert "blobs.bytes_max" in done.stderr


def test_an_interrupted_get_leaves_nothing(swarm: LocalSwarm, file: Path, tmp_path: Path) -> None:
    blob_hash = put(swarm[0], file)["hash"]
    folder = tmp_path / "out"
    folder.mkdir()
    getting = subprocess.Popen(
        [str(BIN / "swarmctl"), "blob", "get", blob_hash, "-o", str(folder / "file")],
        env={**os.environ, "SWARMCTL_SOCKET": str(swarm[0].socket)},
        stderr=subprocess.PIPE,
    )
    wait_until("it has begun", lambda: list(folder.iterdir()), every_s=0.001)
    getting.send_signal(signal.SIGINT)
    code = getting.wait(10)
    assert (code, list(folder.iterdir())) in ((130, []), (0, [folder / "file"]))


def test_a_flipped_byte_is_never_handed_out(swarm: LocalSwarm, file: Path, tmp_path: Path) -> None:
    n1, _n2, _n3 = swarm.daemons
    blob_hash = put(n1, file, "--copies", "2")["hash"]
    holders = n1.json("blob", "show", blob_hash)["holders"]
    bad = swarm.by_name(holders[0])
    path = path_of(bad, blob_hash)
    with path.open("r+b") as opened:
        opened.seek(100 * BLOB_CHUNK_BYTES + 3)
        byte = opened.read(1)
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte[0] ^ 1]))
    out = tmp_path / "out"
    got = bad.ctl("blob", "get", blob_hash, "-o", str(out))
    assert got.returncode == 0, got.stderr
    assert digest(out) == digest(file)
    began = time.monotonic()
    wait_until("it is mended", lambda: path.exists() and digest(path) == digest(file))
    print(f"mended {time.monotonic() - began:.1f} s after it was read")
    assert blob_hash in bad.log.read_text(), "the log names what was damaged"


@pytest.fixture
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSwarm]:
    """With no blob but one's own, of which copies would be made while somebody is dead."""
    with LocalSwarm(tmp_path_factory.mktemp("two"), 2, settings=SETTINGS) as one:
        one.form()
        yield one


def test_a_killed_node_goes_on_where_it_was(two: LocalSwarm, tmp_path: Path) -> None:
    """Goal: after a kill in the middle only what was on its way is sent again."""
    n1, n2 = two.daemons
    file = tmp_path / "file"
    file.write_bytes(os.urandom(3 * SIZE))
    blob_hash = put(n1, file, "--copies", "1")["hash"]
    partial = path_of(n2, blob_hash, "partial")
    getting = subprocess.Popen(
        [str(BIN / "swarmctl"), "blob", "get", blob_hash, "-o", str(tmp_path / "out")],
        env={**os.environ, "SWARMCTL_SOCKET": str(n2.socket)},
        stderr=subprocess.PIPE,
    )
    wait_until(
        "some has come",
        lambda: partial.exists() and partial.stat().st_size > SIZE,
        every_s=0.002,
    )
    n2.kill()
    assert getting.wait(20) != 0
    assert not (tmp_path / "out").exists()
    there = partial.stat().st_size
    assert SIZE < there < 3 * SIZE
    before = n1.sent_blob_bytes()
    two.restart(n2)
    two.wait_whole()
    got = n2.ctl("blob", "get", blob_hash, "-o", str(tmp_path / "out"))
    assert got.returncode == 0, got.stderr
    assert digest(tmp_path / "out") == digest(file)
    # What was written is not sent again, but for a piece that was half written.
    assert n1.sent_blob_bytes() - before <= 3 * SIZE - there + BLOB_PIECE_BYTES


def test_copies_are_full_again_after_a_death(swarm: LocalSwarm, file: Path) -> None:
    n1 = swarm[0]
    blob_hash = put(n1, file, "--copies", "2")["hash"]
    holders = n1.json("blob", "show", blob_hash)["holders"]
    victim = swarm.by_name(next(one for one in holders if one != "n1"))
    spare = next(one for one in swarm.daemons if one.name not in holders)
    victim.kill()
    began = time.monotonic()
    wait_until("there is another copy", path_of(spare, blob_hash).exists, timeout_s=30)
    took_s = time.monotonic() - began
    print(f"full copies again {took_s:.1f} s after the kill")
    assert took_s < 30
    assert digest(path_of(spare, blob_hash)) == digest(file)
    swarm.restart(victim)
    swarm.wait_whole()

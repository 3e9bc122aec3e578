"""Bytes from strangers are counted and change nothing: memory, members and status stay.

A second swarm on the same machine takes ours for its seed, and one seed of our second member
is a relay in this test, which sees real packets: it drops, cuts, spoils and repeats them.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from localswarm import Daemon, LocalSwarm, wait_until
from mistakes import QUICK, pid_of, short_folder

from swarmd.client import Client
from swarmd.identity.keys import SigningKey

_RELAY = ("127.0.0.9", 0)
_GROWTH_BYTES_MAX = 24 * 1024 * 1024


@dataclass
class Scene:
    swarm: LocalSwarm
    other: LocalSwarm
    relay: socket.socket

    @property
    def target(self) -> Daemon:
        return self.swarm[0]

    @property
    def address(self) -> tuple[str, int]:
        return self.target.address, self.target.port


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with contextlib.ExitStack() as opened:
        root = opened.enter_context(short_folder())
        relay = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        relay.bind(_RELAY)
        relay.settimeout(10)
        swarm = opened.enter_context(LocalSwarm(root / "a", 2, settings=QUICK))
        first, second = swarm.daemons
        seeds = [f"{first.address}:{first.port}"]
        host, port = relay.getsockname()
        mesh = {"mdns": False, "seeds": [*seeds, f"{host}:{port}"], "seed_retry_s": 0.5}
        second.write_config(mesh=mesh, **QUICK)
        swarm.form()
        other = opened.enter_context(LocalSwarm(root / "b", 1))
        other[0].write_config(
            mesh={"mdns": False, "seeds": [f"{first.address}:{first.port}"], "seed_retry_s": 0.5}
        )
        other.form()
        yield Scene(swarm, other, relay)


def dropped(daemon: Daemon) -> dict[tuple[str, str], float]:
    """What the daemon counted as refused, by where and why."""
    text = Client(daemon.socket).metrics()
    found = re.findall(r'swarmd_dropped_total\{reason="(\w+)",where="(\w+)"\} (\S+)', text)
    return {(where, reason): float(count) for reason, where, count in found}


def resident_bytes(daemon: Daemon) -> int:
    text = Path(f"/proc/{pid_of(daemon)}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert match is not None
    return int(match[1]) * 1024


def view(daemon: Daemon) -> Any:
    """What must not change.

    Of the incarnation only its upper half, the life: where this machine stands still for a
    moment one member may doubt the other, which says that it is alive by the lower half.
    """
    client = Client(daemon.socket)
    members = sorted((m.node_id, m.name, m.state, m.incarnation >> 32) for m in client.members())
    status = client.status()
    assert status.store is not None
    return members, status.store.voters, status.coordinator, status.store.term, status.swarm_id


@contextlib.contextmanager
def no_effect(scene: Scene, *counted: tuple[str, str]) -> Iterator[None]:
    """What is sent inside is counted as `counted`, and changes nothing."""
    client = Client(scene.target.socket)
    client.kv_put("witness", b"here")
    before, seen, memory = view(scene.target), dropped(scene.target), resident_bytes(scene.target)
    yield
    for name in counted:
        wait_until(
            f"{name} counted",
            lambda one=name: dropped(scene.target).get(one, 0) > seen.get(one, 0),
            timeout_s=10,
        )
    assert view(scene.target) == before
    assert client.kv_get("witness").value == b"here"
    assert resident_bytes(scene.target) - memory < _GROWTH_BYTES_MAX
    assert "Traceback" not in scene.target.log.read_text()


# ---- datagrams ------------------------------------------------------------------------


def test_junk_datagrams_are_counted(scene: Scene) -> None:
    """Any bytes of any length, thousands of them."""
    rng = random.Random(7)
    with (
        no_effect(
            scene,
            ("udp", "length"),
            ("udp", "kind"),
            ("udp", "other_swarm"),
            ("udp", "unknown_session"),
        ),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        for turn in range(6_000):
            length = rng.choice([0, 1, 16, 17, 33, 100, 512, 1_200, 1_201, 9_000])
            kind = bytes([rng.choice([0, 1, 2, 3, 4, 255])])
            sender.sendto((kind + rng.randbytes(length))[: max(length, 0)], scene.address)
            if turn % 500 == 0:
                time.sleep(0.02)  # The kernel drops what the daemon cannot read in time.


def test_packets_of_another_swarm_are_counted(scene: Scene) -> None:
    """Its daemon says hello to ours every half second."""
    with no_effect(scene, ("udp", "other_swarm")):
        pass
    assert [m.name for m in Client(scene.other[0].socket).members()] == ["n1"]
    assert Client(scene.other[0].socket).status().total == 1


def real_packets(scene: Scene, count: int) -> list[bytes]:
    """Hellos of our second member, which takes the relay for a seed."""
    return [scene.relay.recv(2_000) for _ in range(count)]


def test_real_packets_cut_spoilt_and_repeated_change_nothing(scene: Scene) -> None:
    first, *_ = real_packets(scene, 1)
    assert len(first) == 512
    with no_effect(scene, ("udp", "length"), ("udp", "other_swarm")):
        for length in (1, 16, 17, 40, 200, 511):
            scene.relay.sendto(first[:length], scene.address)
        for place in (1, 20, 60, 300):
            spoilt = bytearray(first)
            spoilt[place] ^= 1
            scene.relay.sendto(bytes(spoilt), scene.address)
        for _ in range(50):
            scene.relay.sendto(first, scene.address)
        _drain(scene.relay)


def _drain(sock: socket.socket) -> list[bytes]:
    """What arrives until nothing does for a quarter of a second."""
    found = []
    sock.settimeout(0.25)
    with contextlib.suppress(TimeoutError):
        while len(found) < 1_000:
            found.append(sock.recv(2_000))
    sock.settimeout(10)
    return found


# ---- connections ----------------------------------------------------------------------


def tls(scene: Scene, alpn: str, folder: Path | None = None) -> ssl.SSLSocket:
    """A TLS connection that verifies nothing, with a stranger's certificate if `folder`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    if folder is not None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            NoEncryption,
            PrivateFormat,
        )

        seed = os.urandom(32)
        pem = Ed25519PrivateKey.from_private_bytes(seed).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
        certificate = ssl.DER_cert_to_PEM_cert(SigningKey.from_seed(seed).certificate)
        (folder / "stranger.pem").write_bytes(pem + certificate.encode())
        context.load_cert_chain(folder / "stranger.pem")
    return context.wrap_socket(socket.create_connection(scene.address, 5))


def ends(connection: socket.socket) -> bool:
    """Whether the daemon closes the connection, whatever it says first."""
    with contextlib.suppress(OSError):
        connection.settimeout(8)
        while connection.recv(4_096):
            continue
        return True
    return True


def test_junk_on_tcp_is_counted(scene: Scene) -> None:
    rng = random.Random(8)
    hello = bytes.fromhex("1603010200010001fc0303")
    with no_effect(scene, ("stream", "handshake")):
        for junk in (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            hello,
            hello + rng.randbytes(500),
            rng.randbytes(20_000),
        ):
            with socket.create_connection(scene.address, 5) as connection:
                with contextlib.suppress(OSError):
                    connection.sendall(junk)
                    connection.shutdown(socket.SHUT_WR)
                assert ends(connection)
        for _ in range(100):
            socket.create_connection(scene.address, 5).close()


@pytest.mark.parametrize("alpn", ["swarmd/1", "swarmd-raft/1", "http/1.1"])
@pytest.mark.parametrize("with_certificate", [False, True])
def test_strangers_over_tls_are_counted(
    scene: Scene, alpn: str, with_certificate: bool, tmp_path: Path
) -> None:
    """Without a certificate, with one of no member, or for no plane of ours."""
    before = sum(dropped(scene.target).values())
    with no_effect(scene):
        try:
            with tls(scene, alpn, tmp_path if with_certificate else None) as connection:
                connection.sendall(b"\x00\x00\x00\x10" + b"x" * 16)
                assert ends(connection)
        except OSError:
            pass  # Refused while shaking hands: as good.
        wait_until("counted", lambda: sum(dropped(scene.target).values()) > before, timeout_s=5)
        found = dropped(scene.target)
        assert ("stream", "handshake") in found or ("stream", "untrusted") in found


def test_junk_from_joiners_is_counted(scene: Scene) -> None:
    with no_effect(scene, ("join", "malformed")):
        for junk in (
            b"\x00\x00\x00\x08notmsgpk",
            b"\xff\xff\xff\xff",
            b"\x00\x00\x00\x00",
            b"\x00\x00\x00\x03\x93\x01\x02",
        ):
            with tls(scene, "swarmd-join/1") as connection:
                connection.sendall(junk)
                assert ends(connection)


def test_silent_connections_are_closed(scene: Scene) -> None:
    """Whoever says nothing for 5 s does not keep a place."""
    with no_effect(scene, ("stream", "unproven_timeout")), contextlib.ExitStack() as opened:
        held = [opened.enter_context(socket.create_connection(scene.address, 5)) for _ in range(20)]
        assert all(ends(connection) for connection in held)


# ---- somebody in between, which comes last: afterwards packets may go the relay's way -----


def test_a_session_through_a_relay_survives_repeats(scene: Scene) -> None:
    """Hello to the first member, its reply back, and then each datagram three times."""
    second = (scene.swarm[1].address, scene.swarm[1].port)
    with no_effect(scene):
        _drain(scene.relay)
        hello = real_packets(scene, 1)[0]
        scene.relay.sendto(hello, scene.address)
        deadline = time.monotonic() + 5
        replayed = 0
        seen = dropped(scene.target)
        while time.monotonic() < deadline and replayed < 5:
            raw, source = scene.relay.recvfrom(2_000)
            to = second if source == scene.address else scene.address
            for _ in range(3):
                scene.relay.sendto(raw, to)
            replayed += raw[:1] == b"\x03" and to == scene.address
        assert replayed, "no datagram came through the relay"
        wait_until(
            "repeats are counted",
            lambda: (
                dropped(scene.target).get(("udp", "replay"), 0) > seen.get(("udp", "replay"), 0)
            ),
            timeout_s=5,
        )

"""Who asks the API with what they should not: on real daemons, over every way in."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import shutil
import socket
import ssl
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from localswarm import Daemon, LocalSwarm, wait_until

from swarmd.base.errors import Forbidden, RateLimited, Unauthenticated
from swarmd.base.ids import digest, to_text
from swarmd.client import Client
from swarmd.identity.api_keys import new_api_key
from swarmd.identity.keys import SigningKey

REVOKED_S = 2.0


@pytest.fixture(scope="module")
def swarm() -> Iterator[LocalSwarm]:
    """Three daemons, each with a TLS port besides its socket."""
    root = Path(tempfile.mkdtemp(prefix="swarmd-"))
    with LocalSwarm(root, 3) as three:
        for daemon in three.daemons:
            with socket.socket() as probe:
                probe.bind((daemon.address, 0))
                tls = probe.getsockname()[1]
            daemon.write_config(
                gateway={
                    "socket": str(daemon.socket),
                    "listen": [f"{daemon.address}:{tls}"],
                    "stranger_requests_per_min": 1_000,
                }
            )
        three.form()
        yield three
    shutil.rmtree(root, ignore_errors=True)


def make_key(daemon: Daemon, name: str, **given: Any) -> str:
    text, key_hash = new_api_key()
    with Client(str(daemon.socket)) as admin:
        admin.create_api_key(name, key_hash, **given)
    return text


def remote(daemon: Daemon, credential: str = "") -> Client:
    with Client(str(daemon.socket)) as local:
        status = local.status()
    return Client(status.api[0], api_key=credential, fingerprint=status.api_fingerprint)


def status_of(daemon: Daemon, credential: str, path: str = "/api/v1/status") -> int:
    """What the TLS port answers to this credential."""
    with Client(str(daemon.socket)) as local:
        [url] = local.status().api
    host, _, port = url.removeprefix("https://").rpartition(":")
    context = ssl._create_unverified_context()
    connection = http.client.HTTPSConnection(host, int(port), timeout=10, context=context)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {credential}"})
        return connection.getresponse().status
    finally:
        connection.close()


def token(header: dict[str, Any], claims: dict[str, Any], signature: bytes | SigningKey) -> str:
    def part(raw: bytes) -> str:
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    covered = part(json.dumps(header).encode()) + "." + part(json.dumps(claims).encode())
    if isinstance(signature, SigningKey):
        signature = signature.sign(covered.encode())
    return f"{covered}.{part(signature)}"


def test_jwt_tricks(swarm: LocalSwarm) -> None:
    """`none`, HS256 with the public key, a wrong audience, a node that may not, an old one: 401."""
    with Client(str(swarm[0].socket)) as local:
        found = local.status()
        good = local.open_session(60).token
    assert status_of(swarm[1], good) == 200
    node = SigningKey.load(swarm[0].folder / "data" / "node.key")
    now = int(time.time())
    header = {"alg": "Ed25519", "typ": "JWT", "kid": found.node_id}
    claims = {
        "iss": found.node_id,
        "aud": found.swarm_id,
        "sub": "root",
        "iat": now,
        "exp": now + 600,
        "key": "",
        "rules": ["*"],
    }
    # The same, made by hand with the node's own key, is let in: what follows is refused for
    # what is wrong with it, not for how it was made.
    assert status_of(swarm[1], token(header, claims, node)) == 200
    stranger = SigningKey.generate()
    hs256 = {**header, "alg": "HS256"}
    unsigned = token(hs256, claims, b"")
    covered = unsigned.rpartition(".")[0].encode()
    attempts = {
        "none": token({**header, "alg": "none"}, claims, b""),
        "none, signed": token({**header, "alg": "none"}, claims, node),
        "HS256 with the public key": token(
            hs256, claims, hmac.new(node.public, covered, hashlib.sha256).digest()
        ),
        "wrong audience": token(header, {**claims, "aud": to_text(digest(b"other"))}, node),
        "for an hour": token(header, {**claims, "exp": now + 3_600}, node),
        "over": token(header, {**claims, "iat": now - 600, "exp": now - 1}, node),
        "another's signature": token(header, claims, stranger),
        "a stranger's": token(
            {**header, "kid": to_text(stranger.key_id)},
            {**claims, "iss": to_text(stranger.key_id)},
            stranger,
        ),
        "its own key in the header": token(
            {
                **header,
                "jwk": {
                    "kty": "OKP",
                    "crv": "Ed25519",
                    "x": base64.urlsafe_b64encode(stranger.public).decode().rstrip("="),
                },
            },
            claims,
            stranger,
        ),
        "more rules than were signed": good.split(".")[0]
        + "."
        + token(header, claims, b"").split(".")[1]
        + "."
        + good.split(".")[2],
    }
    for what, text in attempts.items():
        for daemon in swarm.daemons:
            assert status_of(daemon, text) == 401, what


@pytest.mark.alone
def test_a_revoked_key_counts_nowhere_within_two_seconds(swarm: LocalSwarm) -> None:
    text = make_key(swarm[0], "shortlived", role="viewer")
    for daemon in swarm.daemons:
        wait_until("the key is known", lambda d=daemon: status_of(d, text) == 200, timeout_s=5)
    with remote(swarm[1], text) as client:
        session = client.open_session(600).token
        assert client.caller().name == "key shortlived"
    with Client(str(swarm[2].socket)) as admin:
        admin.revoke_api_key("shortlived")
    began = time.monotonic()
    for daemon in swarm.daemons:
        for credential in (text, session):
            wait_until(
                "refused",
                lambda d=daemon, c=credential: status_of(d, c) == 401,
                timeout_s=REVOKED_S,
            )
    assert time.monotonic() - began < REVOKED_S


def test_a_caller_stays_the_same_over_another_node(swarm: LocalSwarm) -> None:
    """Forwarding is no way round: the node that carries out holds it against the same rules."""
    text = make_key(swarm[0], "looker", role="viewer")
    wait_until("the key is known", lambda: status_of(swarm[0], text) == 200, timeout_s=5)
    with Client(str(swarm[0].socket), api_key=text, node=swarm[1].name) as client:
        assert client.status().node == swarm[1].name
        assert client.caller().name == "key looker"
        with pytest.raises(Forbidden, match="key looker may not"):
            client.stop()
        with pytest.raises(Forbidden):
            client.kv_put("a", b"1")
    with (
        Client(str(swarm[0].socket), api_key="swk_none", node=swarm[1].name) as nobody,
        pytest.raises(Unauthenticated),
    ):
        nobody.status()
    assert status_of(swarm[0], "", f"/api/v1/status?{swarm[1].name}") == 401
    assert swarm[1].json("status")["ready"]


@pytest.mark.alone
def test_guessing_is_slow_and_locks_nobody_else_out(swarm: LocalSwarm) -> None:
    text = make_key(swarm[0], "busy", role="viewer")
    wait_until("the key is known", lambda: status_of(swarm[2], text) == 200, timeout_s=5)
    codes: set[str] = set()
    with remote(swarm[2], "swk_" + "a" * 64) as guesser:
        for _ in range(1_300):
            try:
                guesser.status()
            except (Unauthenticated, RateLimited) as error:
                codes.add(error.code)
            if RateLimited.code in codes:
                break
    assert codes == {"unauthenticated", "rate_limited"}
    assert status_of(swarm[2], text) == 200
    assert swarm[2].json("status")["ready"]


def test_no_key_or_session_is_in_a_log_or_on_a_disk(swarm: LocalSwarm) -> None:
    """Nor in what the daemons measure, nor in what the kernel shows of processes."""
    text = make_key(swarm[0], "canary", role="admin")
    wait_until("the key is known", lambda: status_of(swarm[1], text) == 200, timeout_s=5)
    with remote(swarm[1], text) as client:
        session = client.open_session(600).token
        client.kv_put("canary", b"1")
    assert status_of(swarm[0], text + "x") == 401
    assert status_of(swarm[0], session[:-3] + "AAA") == 401
    planted = [text[8:40].encode(), session.split(".")[2][:40].encode()]
    for daemon in swarm.daemons:
        with Client(str(daemon.socket)) as local:
            metrics = local._open("GET", "/metrics", None, prefix="").read()
            local.close()
        seen = [path.read_bytes() for path in daemon.folder.rglob("*") if path.is_file()]
        assert daemon.process is not None
        for name in ("cmdline", "environ"):
            seen.append(Path(f"/proc/{daemon.process.pid}/{name}").read_bytes())
        assert len(seen) > 5
        for raw in [*seen, metrics]:
            assert not any(one in raw for one in planted)

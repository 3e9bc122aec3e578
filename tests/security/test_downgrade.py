"""A build of before, or somebody in between, would bring a swarm back to an old protocol."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
from insiders import greet, is_heard, is_met, key_of, log_of
from localswarm import Daemon, LocalSwarm, wait_until

from swarmd.base.errors import Outdated
from swarmd.identity.authority import AuthorityState
from swarmd.identity.keys import SigningKey
from swarmd.identity.tls import MESH_ALPN, RAFT_ALPN
from swarmd.identity.tokens import Token, decode_token
from swarmd.mesh.join import join_swarm
from swarmd.mesh.transports.carriers import Carrier, Ended, open_carrier
from swarmd.mesh.transports.hello import HELLO
from swarmd.wire.envelope import decode_envelope
from swarmd.wire.version import PROTOCOL_VERSION

CUT_OFF_S = 2.0
PLANES = (MESH_ALPN, RAFT_ALPN)
OLD = PROTOCOL_VERSION - 1
SOURCE = "127.0.0.9"
NEW = SigningKey.from_seed(b"n" * 32)


def rewritten(version: int) -> Callable[[bytes], bytes]:
    """Writes another version into a signed hello."""

    def alter(raw: bytes) -> bytes:
        payload = decode_envelope(raw[1:], domain="stream-hello").payload
        said = HELLO.decode(payload)
        assert said.version != version
        return raw.replace(payload, HELLO.encode(msgspec.structs.replace(said, version=version)))

    return alter


async def cut_off_after_s(
    daemon: Daemon, key: SigningKey, log: AuthorityState, happens: Callable[[], object]
) -> float:
    """For how long an old build's connections are still open once `happens` has returned."""

    async def listen(carrier: Carrier) -> None:
        while True:
            await carrier.receive()

    async with trio.open_nursery() as nursery:
        carriers = []
        for plane in PLANES:
            stream = await greet(daemon, key, log, plane, version=OLD)
            carriers.append(await open_carrier(plane, nursery, stream, client=True))
        for carrier in carriers:
            with trio.move_on_after(0.3):
                await listen(carrier)
        await trio.to_thread.run_sync(happens)
        began = time.monotonic()
        for carrier in carriers:
            with trio.fail_after(10), pytest.raises((Ended, trio.BrokenResourceError)):
                await listen(carrier)
        nursery.cancel_scope.cancel()
    return time.monotonic() - began


def lowest(daemon: Daemon, version: int, *, code: int = 0) -> str:
    done = daemon.ctl("authority", "min-version", str(version))
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def refuses_the_old(
    daemon: Daemon,
    key: SigningKey,
    log: AuthorityState,
    token: Token,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On every plane; what this build says by the same key is answered."""
    for plane in PLANES:
        assert not is_heard(daemon, key, log, plane, version=OLD)
        assert is_heard(daemon, key, log, plane)
    assert is_met(daemon, key, log, SOURCE)
    with monkeypatch.context() as old:
        old.setattr("swarmd.mesh.transports.sessions.PROTOCOL_VERSION", OLD)
        old.setattr("swarmd.mesh.join.PROTOCOL_VERSION", OLD)
        assert not is_met(daemon, key, log, SOURCE)
        with pytest.raises(Outdated, match="upgrade it"):
            trio.run(join_swarm, [(daemon.address, daemon.port)], token, NEW, "late")


@pytest.mark.alone
def test_downgrade(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the key of a member, over every plane: before the lowest version rises, and after."""
    with LocalSwarm(folder, 4) as swarm:
        swarm.form(voters=3)
        first, *_ = swarm.daemons
        seated = {one["node"] for one in first.json("voter", "list") if one["seat"]}
        [spare] = [d for d in swarm.daemons if d.name not in seated]
        voters = [d for d in swarm.daemons if d is not spare]
        key, log = key_of(spare), log_of(first)
        token = decode_token(first.json("token", "create")["token"])
        spare.terminate()
        for plane in PLANES:
            assert is_heard(first, key, log, plane, version=OLD), "nothing is asked so far"
            assert not is_heard(first, key, log, plane, alter=rewritten(OLD)), "lowered"
            assert not is_heard(
                first, key, log, plane, version=OLD, alter=rewritten(PROTOCOL_VERSION)
            ), "raised"

        raised = partial(lowest, first, PROTOCOL_VERSION)
        assert trio.run(cut_off_after_s, first, key, log, raised) < CUT_OFF_S
        for daemon in voters:
            wait_until(
                "the record is everywhere",
                lambda d=daemon: log_of(d).min_version == PROTOCOL_VERSION,
                timeout_s=CUT_OFF_S,
            )
            refuses_the_old(daemon, key, log, token, monkeypatch)
        assert first.json("status")["ready"]

        # What nobody speaks yet is refused; who insists ends daemons, which say why.
        told = lowest(first, PROTOCOL_VERSION + 1, code=2)
        assert f"n1 speaks version {PROTOCOL_VERSION}" in told
        # The daemon that is asked may end before it answers.
        first.ctl("authority", "min-version", str(PROTOCOL_VERSION + 1), "--force")
        for daemon in voters:
            process = daemon.process
            assert process is not None
            assert process.wait(10) == 1
            assert "upgrade it" in daemon.log.read_text().splitlines()[-1]
        first.start()
        assert first.process is not None
        assert first.process.wait(10) == 1
        assert "upgrade it" in first.log.read_text().splitlines()[-1]

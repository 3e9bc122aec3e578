"""Root on one host of three, with all that is there: it admits nobody, say or write what it may."""

from __future__ import annotations

import re
import time

import pytest
from insiders import key_of
from localswarm import Daemon, LocalSwarm, wait_until

from swarmd.base.errors import BadSignature, TokenRefused
from swarmd.base.files import FileDisk
from swarmd.cli.authority_log import read_history
from swarmd.client import Client
from swarmd.identity.authority import AuthorityState
from swarmd.identity.entries import AddAdmin, Admit, Policy, fresh_nonce, issue_token, sign_entry
from swarmd.identity.heads import Head, sign_head
from swarmd.identity.keys import SigningKey
from swarmd.identity.tokens import Token, decode_token, moment_of
from swarmd.mesh import trust as trust_module

MOLE = SigningKey.generate()


def head_at(daemon: Daemon) -> int:
    with Client(daemon.socket) as client:
        height: int = client.authority_head()["height"]
        return height


def admission_by(token: Token) -> bytes:
    """The mole's admission, signed by a token's key and its own, as they have to be."""
    entry = Admit(
        token.token_id, MOLE.public, "mole", MOLE.certificate, token.roles, b"j" * 16, b"s" * 16
    )
    return sign_entry(entry, token.swarm_id, token.key, MOLE)


def refusals(daemon: Daemon) -> float:
    """How many certificates of others this daemon refused."""
    with Client(daemon.socket) as client:
        text = client.metrics()
    found = re.findall(r'swarmd_dropped_total\{reason="bad_signature",where="trust"\} (\S+)', text)
    return sum(map(float, found))


def test_root_on_one_of_three_hosts_admits_a_node(trio_swarm: LocalSwarm) -> None:
    first, taken, third = trio_swarm.daemons
    honest = (first, third)

    # `token create` there has no admin key to sign with, and a key of its own is none.
    made = taken.ctl("token", "create")
    assert made.returncode == 2
    assert "there is no admin key" in made.stderr
    own = SigningKey.generate()
    with Client(taken.socket) as client:
        log, chain = read_history(client, client.authority_head()["swarm_id"])
        now = moment_of(log.head, chain.head)
        token, entry = issue_token(log.swarm_id, now, own, uses=1, expires_ms=10**12)
        for forged in (
            entry,
            issue_token(log.swarm_id, now, key_of(taken), uses=1, expires_ms=10**12)[1],
            sign_entry(AddAdmin(own.public, fresh_nonce()), log.swarm_id, own),
            sign_entry(Policy(1, fresh_nonce()), log.swarm_id, key_of(taken)),
        ):
            with pytest.raises(BadSignature):
                client.authority_propose(forged)
        with pytest.raises(TokenRefused):
            client.authority_propose(admission_by(token))

    # A token that has expired, in a record from before that, which only its own log holds.
    expired = decode_token(first.json("token", "create", "--ttl", "1s")["token"])
    wait_until("it is known everywhere", lambda: len({head_at(d) for d in trio_swarm.daemons}) == 1)
    time.sleep(1.1)  # What expires sets no event.
    with Client(taken.socket) as client, pytest.raises(TokenRefused, match="expired"):
        client.authority_propose(admission_by(expired))
    height = head_at(first)
    taken.kill()
    plant(taken, admission_by(expired))
    before = [refusals(daemon) for daemon in honest]
    trio_swarm.restart(taken)
    wait_until(
        "it was refused", lambda: all(refusals(d) > n for d, n in zip(honest, before, strict=True))
    )
    for daemon in honest:
        assert head_at(daemon) == height
        assert "mole" not in daemon.ctl("authority", "list", "--json").stdout

    # The place of the forged record is free still.
    assert first.ctl("token", "create").returncode == 0
    wait_until("the log goes on", lambda: all(head_at(d) == height + 1 for d in honest))


def plant(daemon: Daemon, entry: bytes) -> None:
    """Write a record into the daemon's own log, signed by its own key."""
    disk = FileDisk(daemon.folder / "data" / "mesh")
    trust = trust_module.open_trust(disk)
    state: AuthorityState = trust._noted.copy()
    state.apply(entry, state.store_time_ms)
    epoch = trust.certified_by
    assert epoch is not None
    certificate = sign_head(Head(epoch, *state.head), state.swarm_id, key_of(daemon))
    trust_module._write(disk, state, state.head[0], certificate)

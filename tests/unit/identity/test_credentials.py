"""Approvals and renewals in the authority log: what is accepted, and that nothing else moves."""

from __future__ import annotations

from typing import Any

import pytest
from founding import ADMIN, lab

from swarmd.base.errors import (
    AlreadyExists,
    BadRequest,
    BadSignature,
    Conflict,
    MalformedMessage,
    NotFound,
    SwarmError,
    TooLarge,
    Untrusted,
)
from swarmd.identity import authority
from swarmd.identity.authority import CREDENTIAL_MS, AuthorityState
from swarmd.identity.entries import (
    AddAdmin,
    Approve,
    Evict,
    Renew,
    RevokeAdmin,
    fresh_nonce,
    sign_entry,
)
from swarmd.identity.fingerprints import door_of
from swarmd.identity.keys import SigningKey
from swarmd.identity.requests import (
    JOIN_REQUEST_BYTES_MAX,
    REQUEST_DOMAIN,
    REQUESTS,
    JoinRequest,
    open_request,
    sign_request,
)
from swarmd.identity.signing import sign_envelope
from swarmd.wire.envelope import encode_envelope

FIRST = SigningKey.from_seed(b"f" * 32)
OTHER_ADMIN = SigningKey.from_seed(b"A" * 32)
NODE = SigningKey.from_seed(b"n" * 32)
GENESIS = lab(FIRST, "alpha")
SWARM = GENESIS.swarm_id
DOOR = door_of(SWARM)
REQUEST = sign_request(DOOR, NODE, "beta")
HALF_MS = CREDENTIAL_MS // 2
DAY_MS = 86_400_000


def approval(
    request: bytes = REQUEST, *signers: SigningKey, roles: tuple[str, ...] = ("worker",)
) -> bytes:
    entry = Approve(request, roles, fresh_nonce())
    return sign_entry(entry, SWARM, *(signers or (ADMIN,)))


def renewal(state: AuthorityState, key: SigningKey = NODE, **changes: Any) -> bytes:
    fields = {"node_id": key.key_id, "expires_ms": state.admissions[key.key_id].expires_ms}
    return sign_entry(Renew(**(fields | changes)), SWARM, key)  # type: ignore[arg-type]


def refused(state: AuthorityState, entry: bytes, error: type[SwarmError], now_ms: int) -> str:
    """The sentence it was refused with; nothing moved."""
    before = (state.head, dict(state.admissions), state.store_time_ms)
    with pytest.raises(error) as caught:
        state.apply(entry, now_ms)
    assert (state.head, dict(state.admissions), state.store_time_ms) == before
    return caught.value.message


def approved() -> AuthorityState:
    state = AuthorityState(GENESIS)
    state.apply(approval(), 1_000)
    return state


# ---- requests ------------------------------------------------------------------------------


def test_a_request_says_the_same_whenever_it_is_made() -> None:
    assert sign_request(DOOR, NODE, "beta") == REQUEST
    found = open_request(REQUEST, DOOR)
    assert (found.public, found.name, found.certificate_der) == (
        NODE.public,
        "beta",
        NODE.certificate,
    )
    with pytest.raises(BadRequest, match="not a node name"):
        sign_request(DOOR, NODE, "../beta")


def request_of(signer: SigningKey = NODE, *, door: bytes = DOOR, **changes: Any) -> bytes:
    fields = {"public": NODE.public, "name": "beta", "certificate_der": NODE.certificate}
    payload = REQUESTS.encode(JoinRequest(**(fields | changes)))
    return encode_envelope(sign_envelope(REQUEST_DOMAIN, door, payload, signer))


BAD_REQUESTS = [
    (request_of(FIRST), BadSignature),
    (request_of(door=door_of(b"t" * 32)), BadSignature),
    (request_of(door=SWARM), BadSignature),
    (request_of(certificate_der=FIRST.certificate), BadSignature),
    (request_of(public=b"k" * 31), MalformedMessage),
    (request_of(name="two words"), BadRequest),
    (b"\x00" * (JOIN_REQUEST_BYTES_MAX + 1), MalformedMessage),
    (b"", MalformedMessage),
    (REQUEST[:-1], MalformedMessage),
]


@pytest.mark.parametrize(("raw", "error"), BAD_REQUESTS)
def test_a_request_that_its_own_key_did_not_make_for_this_swarm_is_refused(
    raw: bytes, error: type[SwarmError]
) -> None:
    with pytest.raises(error):
        open_request(raw, DOOR)
    if len(raw) <= JOIN_REQUEST_BYTES_MAX:
        refused(AuthorityState(GENESIS), approval(raw), error, 1_000)


# ---- approvals -----------------------------------------------------------------------------


def test_an_admin_admits_by_the_nodes_own_request() -> None:
    state = AuthorityState(GENESIS)
    record = state.apply(approval(roles=("voter", "worker")), 5_000)
    found = state.admissions[NODE.key_id]
    assert (found.name, found.public, found.roles) == ("beta", NODE.public, ("voter", "worker"))
    assert (found.height, found.not_before_ms) == (1, 5_000)
    assert found.expires_ms == 5_000 + CREDENTIAL_MS
    # Approved twice, by whomever, it is admitted once.
    assert state.apply(approval(roles=("observer",)), 9_000) == record
    assert AuthorityState.load(GENESIS, state.dump()).admissions == state.admissions


def test_nobody_but_an_admin_approves() -> None:
    state = AuthorityState(GENESIS)
    for signers in ((NODE,), (FIRST,), (OTHER_ADMIN,), (ADMIN, NODE), (ADMIN, FIRST)):
        refused(state, approval(REQUEST, *signers), BadSignature, 1_000)
    state.apply(sign_entry(AddAdmin(OTHER_ADMIN.public, fresh_nonce()), SWARM, ADMIN), 1_000)
    state.apply(sign_entry(RevokeAdmin(ADMIN.key_id, fresh_nonce()), SWARM, OTHER_ADMIN), 1_000)
    refused(state, approval(), BadSignature, 1_000)
    state.apply(approval(REQUEST, OTHER_ADMIN), 1_000)


def test_an_approval_serves_once_and_not_after_an_eviction() -> None:
    state = approved()
    entry = approval()
    state.apply(sign_entry(Evict(NODE.key_id, fresh_nonce()), SWARM, ADMIN), 2_000)
    assert "evicted" in refused(state, entry, Untrusted, 3_000)
    assert state.admissions[NODE.key_id].evicted


def test_an_approval_with_an_unsound_field_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    state = AuthorityState(GENESIS)
    refused(state, approval(roles=("king",)), MalformedMessage, 1_000)
    refused(state, approval(roles=()), MalformedMessage, 1_000)
    refused(state, approval(roles=("worker", "worker")), MalformedMessage, 1_000)
    refused(state, approval(sign_request(DOOR, FIRST, "alpha")), AlreadyExists, 1_000)
    monkeypatch.setattr(authority, "MEMBERS_MAX", 1)
    refused(state, approval(), TooLarge, 1_000)


# ---- renewals ------------------------------------------------------------------------------


def test_a_node_renews_at_half_of_its_life_and_no_earlier() -> None:
    state = approved()
    end_ms = state.admissions[NODE.key_id].expires_ms
    assert "half of its life" in refused(state, renewal(state), Conflict, 999 + HALF_MS)
    record = state.apply(renewal(state), 1_000 + HALF_MS)
    found = state.admissions[NODE.key_id]
    assert (found.not_before_ms, found.expires_ms) == (1_000 + HALF_MS, 1_000 + HALF_MS * 3)
    assert (found.height, found.roles) == (1, ("worker",))
    # Asked again it is the same record; what was signed for the old end serves for no other.
    again = renewal(state, expires_ms=end_ms)
    assert state.apply(again, end_ms) == record
    assert state.admissions[NODE.key_id] == found


def test_the_founder_renews_and_an_expired_node_may_still() -> None:
    state = approved()
    late_ms = 10 * CREDENTIAL_MS
    state.apply(renewal(state, FIRST), late_ms)
    assert state.admissions[FIRST.key_id].expires_ms == late_ms + CREDENTIAL_MS
    assert state.is_expired(state.admissions[NODE.key_id], late_ms)
    state.apply(renewal(state), late_ms)
    assert not state.is_expired(state.admissions[NODE.key_id], late_ms)
    assert AuthorityState.load(GENESIS, state.dump()).admissions == state.admissions


def test_who_may_not_renew() -> None:
    state = approved()
    late_ms = CREDENTIAL_MS
    mine = Renew(NODE.key_id, state.admissions[NODE.key_id].expires_ms)
    for key in (FIRST, ADMIN, OTHER_ADMIN):
        refused(state, sign_entry(mine, SWARM, key), BadSignature, late_ms)
    refused(state, sign_entry(mine, SWARM, NODE, FIRST), BadSignature, late_ms)
    refused(state, sign_entry(mine, b"t" * 32, NODE), BadSignature, late_ms)
    refused(state, renewal(state, expires_ms=mine.expires_ms + 1), Conflict, late_ms)
    stranger = Renew(OTHER_ADMIN.key_id, mine.expires_ms)
    refused(state, sign_entry(stranger, SWARM, OTHER_ADMIN), NotFound, late_ms)
    kept = renewal(state)
    state.apply(sign_entry(Evict(NODE.key_id, fresh_nonce()), SWARM, ADMIN), late_ms)
    assert "evicted" in refused(state, kept, Conflict, late_ms)


def test_a_log_without_room_for_renewals_lets_nobody_expire(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = approved()
    late_ms = 2 * CREDENTIAL_MS
    assert state.is_expired(state.admissions[NODE.key_id], late_ms)
    monkeypatch.setattr(authority, "RENEWALS_UP_TO", 1)
    assert "no room" in refused(state, renewal(state), TooLarge, late_ms)
    assert not state.is_expired(state.admissions[NODE.key_id], late_ms)


def test_a_thousand_days_of_twenty_nodes_fit_the_log_many_times() -> None:
    """Goal: renewals neither stop nor fill the log.

    Method: twenty nodes that look every six hours of store time, each renewing when it may.
    """
    state = AuthorityState(GENESIS)
    keys = [SigningKey.from_seed(bytes([number]) * 32) for number in range(1, 20)]
    for number, key in enumerate(keys):
        state.apply(approval(sign_request(DOOR, key, f"n{number}")), 1_000)
    keys.append(FIRST)
    before = state.head[0]
    for now_ms in range(0, 1_000 * DAY_MS, DAY_MS // 4):
        for key in keys:
            mine = state.admissions[key.key_id]
            assert not state.is_expired(mine, now_ms)
            if now_ms >= mine.renewable_ms:
                state.apply(renewal(state, key), now_ms)
    made = state.head[0] - before
    assert 20 * 65 <= made <= 20 * 67, "one in fifteen days each"
    assert made < authority.RENEWALS_UP_TO // 50

"""The authority log: what is admitted, what is refused, and that refusals change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from certifying import now_of
from founding import ADMIN, lab
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.base.errors import (
    AlreadyExists,
    BadRequest,
    BadSignature,
    Conflict,
    MalformedMessage,
    NotFound,
    SwarmError,
    TokenRefused,
    TooLarge,
    Untrusted,
)
from swarmd.base.ids import node_id_of
from swarmd.identity import authority
from swarmd.identity.authority import CREDENTIAL_MS, AuthorityState, record_hash
from swarmd.identity.entries import (
    AddAdmin,
    AddToken,
    Admit,
    Evict,
    Policy,
    Record,
    RevokeAdmin,
    RevokeToken,
    SetRoles,
    decode_record,
    encode_record,
    fresh_nonce,
    issue_token,
    open_entry,
    sign_entry,
)
from swarmd.identity.keys import SigningKey
from swarmd.identity.tokens import Token
from swarmd.wire.envelope import Envelope, decode_envelope, encode_envelope

FIRST = SigningKey.from_seed(b"f" * 32)
ADMIN_2 = SigningKey.from_seed(b"A" * 32)
NODE = SigningKey.from_seed(b"n" * 32)
NODE_2 = SigningKey.from_seed(b"m" * 32)
GENESIS = lab(FIRST, "alpha")
SWARM = GENESIS.swarm_id
HOUR_MS = 3_600_000


def state_with_token(uses: int = 2, role: str = "member") -> tuple[AuthorityState, Token]:
    state = AuthorityState(GENESIS)
    token, entry = issue_token(
        SWARM, now_of(state), ADMIN, role=role, uses=uses, expires_ms=HOUR_MS
    )
    state.apply(entry, 1_000)
    return state, token


def admit(
    token: Token,
    key: SigningKey = NODE,
    *,
    nonce: bytes = b"j" * 16,
    signers: tuple[SigningKey, ...] | None = None,
    **changes: Any,
) -> bytes:
    fields: dict[str, Any] = {
        "token_id": token.token_id,
        "public": key.public,
        "name": "beta",
        "certificate_der": key.certificate,
        "roles": token.roles,
        "joiner_nonce": nonce,
        "server_nonce": b"s" * 16,
    }
    entry = Admit(**(fields | changes))
    return sign_entry(entry, SWARM, *((token.key, key) if signers is None else signers))


def refused(
    state: AuthorityState, entry: bytes, error: type[SwarmError], now_ms: int = 2_000
) -> str:
    """Check that `entry` is refused and that nothing moved; the sentence it was refused with."""
    before = fingerprint(state)
    with pytest.raises(error) as caught:
        state.apply(entry, now_ms)
    assert fingerprint(state) == before
    with pytest.raises(error):
        state.check(entry, now_ms)
    return caught.value.message


def fingerprint(state: AuthorityState) -> tuple[object, ...]:
    return (
        state.head,
        dict(state.admissions),
        dict(state.tokens),
        dict(state.admins),
        state.min_version,
        state.store_time_ms,
    )


def test_the_first_node_belongs_from_the_start() -> None:
    state = AuthorityState(GENESIS)
    assert state.head == (0, SWARM)
    admission = state.admissions[FIRST.key_id]
    assert (admission.name, admission.height, admission.roles) == ("alpha", 0, ("voter", "worker"))


def test_a_token_admits_a_node_once_per_use() -> None:
    state, token = state_with_token(uses=2)
    record = state.apply(admit(token), 2_000)
    admission = state.admissions[NODE.key_id]
    assert (admission.name, admission.public, admission.height) == ("beta", NODE.public, 2)
    assert admission.expires_ms - admission.not_before_ms == CREDENTIAL_MS
    assert record.height == 2
    assert state.tokens[token.token_id].uses_left == 1
    state.apply(admit(token, NODE_2), 3_000)
    third = SigningKey.from_seed(b"3" * 32)
    assert "used up" in refused(state, admit(token, third), TokenRefused)


def test_asking_again_returns_the_same_admission_and_costs_no_use() -> None:
    state, token = state_with_token(uses=1)
    record = state.apply(admit(token), 2_000)
    assert state.apply(admit(token), 9_000) == record  # The very same bytes.
    assert state.apply(admit(token, nonce=b"k" * 16), 9_000) == record  # A new attempt.
    late = state.apply(admit(token, nonce=b"l" * 16), 2 * HOUR_MS)
    assert late == record
    assert state.head[0] == 2
    assert state.store_time_ms == 2_000


def test_expired_revoked_unknown_and_foreign_tokens_are_refused() -> None:
    state, token = state_with_token()
    assert "expired" in refused(state, admit(token), TokenRefused, now_ms=HOUR_MS)
    stranger = Token(SWARM, 0, 1, SWARM, b"?" * 32, "member", HOUR_MS)
    assert "not known" in refused(state, admit(stranger), TokenRefused)
    other_swarm = sign_entry(open_entry(admit(token))[1], b"x" * 32, token.key, NODE)
    refused(state, other_swarm, BadSignature)
    state.apply(sign_entry(RevokeToken(token.token_id, fresh_nonce()), SWARM, ADMIN), 2_000)
    assert "revoked" in refused(state, admit(token), TokenRefused)


def test_an_admission_needs_both_signatures() -> None:
    state, token = state_with_token()
    refused(state, admit(token, signers=(token.key,)), BadSignature)
    refused(state, admit(token, signers=(NODE,)), BadSignature)
    refused(state, admit(token, signers=(token.key, NODE_2)), BadSignature)
    refused(state, admit(token, signers=(token.key, NODE, NODE_2)), BadSignature)
    refused(state, admit(token, signers=(ADMIN, NODE)), BadSignature)


def test_an_admission_with_an_unsound_field_is_refused() -> None:
    state, token = state_with_token(role="worker")
    cases: list[tuple[dict[str, Any], type[SwarmError]]] = [
        ({"roles": ("voter",)}, TokenRefused),
        ({"roles": ("emperor",)}, TokenRefused),
        ({"roles": ()}, MalformedMessage),
        ({"roles": ("worker", "worker")}, MalformedMessage),
        ({"name": "../etc"}, BadRequest),
        ({"certificate_der": NODE_2.certificate}, BadSignature),
        ({"certificate_der": b""}, BadSignature),
        ({"joiner_nonce": b"short"}, MalformedMessage),
        ({"public": b"short"}, MalformedMessage),
    ]
    for changes, error in cases:
        refused(state, admit(token, **changes), error)


def test_the_founder_needs_no_token() -> None:
    state, token = state_with_token()
    assert "founded" in refused(state, admit(token, FIRST), AlreadyExists)


def test_only_an_admin_key_adds_tokens() -> None:
    state = AuthorityState(GENESIS)
    for key in (FIRST, NODE, ADMIN_2):
        refused(
            state,
            issue_token(SWARM, now_of(state), key, uses=1, expires_ms=HOUR_MS)[1],
            BadSignature,
        )


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"uses": 0}, MalformedMessage),
        ({"uses": 10_001}, MalformedMessage),
        ({"role": "emperor"}, MalformedMessage),
        ({"expires_ms": 2_000}, TokenRefused),
        ({"expires_ms": -1}, MalformedMessage),
        ({"token_public": b"x"}, MalformedMessage),
        ({"nonce": b""}, MalformedMessage),
    ],
)
def test_an_unsound_token_entry_is_refused(
    changes: dict[str, Any], error: type[SwarmError]
) -> None:
    fields: dict[str, Any] = {
        "token_public": NODE.public,
        "role": "member",
        "uses": 1,
        "expires_ms": HOUR_MS,
        "nonce": fresh_nonce(),
    }
    entry = sign_entry(AddToken(**(fields | changes)), SWARM, ADMIN)
    refused(AuthorityState(GENESIS), entry, error)


def test_a_token_is_logged_once() -> None:
    state, token = state_with_token()
    again = AddToken(token.key.public, "member", 9, HOUR_MS, fresh_nonce())
    refused(state, sign_entry(again, SWARM, ADMIN), AlreadyExists)


def test_an_entry_played_again_changes_nothing_even_with_its_envelope_rewritten() -> None:
    state, _ = state_with_token()
    state.apply(sign_entry(AddAdmin(ADMIN_2.public, fresh_nonce()), SWARM, ADMIN), 1_000)
    roles = SetRoles(FIRST.key_id, ("observer",), fresh_nonce())
    entry = sign_entry(roles, SWARM, ADMIN, ADMIN_2)
    first = state.apply(entry, 2_000)
    state.apply(sign_entry(SetRoles(FIRST.key_id, ("voter",), fresh_nonce()), SWARM, ADMIN), 2_000)
    before = fingerprint(state)
    envelope = decode_envelope(entry, domain="authority")
    turned = encode_envelope(
        type(envelope)(envelope.domain, envelope.payload, envelope.signatures[::-1])
    )
    assert state.apply(entry, 3_000) == state.apply(turned, 3_000) == first
    assert fingerprint(state) == before


def test_an_evicted_node_is_out_for_ever() -> None:
    state, token = state_with_token()
    state.apply(admit(token), 2_000)
    state.apply(sign_entry(Evict(NODE.key_id, fresh_nonce()), SWARM, ADMIN), 2_000)
    assert state.admissions[NODE.key_id].evicted
    assert "evicted" in refused(state, admit(token, nonce=b"k" * 16), Untrusted)
    refused(state, sign_entry(Evict(NODE.key_id, fresh_nonce()), SWARM, ADMIN), Conflict)
    refused(
        state, sign_entry(SetRoles(NODE.key_id, ("voter",), fresh_nonce()), SWARM, ADMIN), Conflict
    )


def test_admin_keys_come_and_go_but_the_last_stays() -> None:
    state = AuthorityState(GENESIS)
    refused(state, sign_entry(RevokeAdmin(ADMIN.key_id, fresh_nonce()), SWARM, ADMIN), Conflict)
    state.apply(sign_entry(AddAdmin(ADMIN_2.public, fresh_nonce()), SWARM, ADMIN), 0)
    refused(state, sign_entry(AddAdmin(ADMIN_2.public, fresh_nonce()), SWARM, ADMIN), AlreadyExists)
    state.apply(sign_entry(RevokeAdmin(ADMIN.key_id, fresh_nonce()), SWARM, ADMIN_2), 0)
    assert list(state.admins) == [ADMIN_2.key_id]
    refused(state, sign_entry(Policy(1, fresh_nonce()), SWARM, ADMIN), BadSignature)


def test_roles_and_policy() -> None:
    state = AuthorityState(GENESIS)
    state.apply(sign_entry(SetRoles(FIRST.key_id, ("worker",), fresh_nonce()), SWARM, ADMIN), 0)
    assert state.admissions[FIRST.key_id].roles == ("worker",)
    unknown = SetRoles(FIRST.key_id, ("emperor",), fresh_nonce())
    refused(state, sign_entry(unknown, SWARM, ADMIN), MalformedMessage)
    state.apply(sign_entry(Policy(3, fresh_nonce()), SWARM, ADMIN), 0)
    assert state.min_version == 3
    refused(state, sign_entry(Policy(2, fresh_nonce()), SWARM, ADMIN), Conflict)


@pytest.mark.parametrize(
    "entry",
    [
        RevokeToken(b"?" * 32, b"n" * 16),
        SetRoles(b"?" * 32, ("voter",), b"n" * 16),
        Evict(b"?" * 32, b"n" * 16),
        RevokeAdmin(b"?" * 32, b"n" * 16),
    ],
)
def test_what_names_nothing_is_refused(entry: Any) -> None:
    refused(AuthorityState(GENESIS), sign_entry(entry, SWARM, ADMIN), NotFound)


@pytest.mark.parametrize("limit", ["RECORDS_MAX", "TOKENS_MAX"])
def test_the_log_is_bounded(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    state, _ = state_with_token()
    monkeypatch.setattr(authority, limit, 1)
    entry = issue_token(SWARM, now_of(state), ADMIN, uses=1, expires_ms=HOUR_MS)[1]
    refused(state, entry, TooLarge)


def test_members_and_admins_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    state, token = state_with_token()
    monkeypatch.setattr(authority, "MEMBERS_MAX", 1)
    monkeypatch.setattr(authority, "ADMINS_MAX", 1)
    refused(state, admit(token), TooLarge)
    refused(state, sign_entry(AddAdmin(ADMIN_2.public, b"n" * 16), SWARM, ADMIN), TooLarge)


def test_store_time_never_falls() -> None:
    state, token = state_with_token()
    state.apply(admit(token), 5_000)
    record = state.apply(admit(token, NODE_2), 4_000)
    assert record.store_time_ms == 5_000


def test_a_chain_replays_to_the_same_state() -> None:
    state, token = state_with_token()
    state.apply(admit(token), 2_000)
    state.apply(sign_entry(Evict(NODE.key_id, fresh_nonce()), SWARM, ADMIN), 3_000)
    other = AuthorityState.load(GENESIS, state.dump())
    assert fingerprint(other) == fingerprint(state)
    assert other.dump() == state.dump()
    assert other.records_from(1, 1) == state.dump()[1:2]
    assert [state.hash_at(h) for h in (0, 3, 4, -1)] == [SWARM, state.head[1], None, None]


def _bend(field: str, value: Any) -> Callable[[bytes], bytes]:
    def change(raw: bytes) -> bytes:
        record = decode_record(raw)
        fields = {name: getattr(record, name) for name in record.__struct_fields__}
        return encode_record(type(record)(**(fields | {field: value})))

    return change


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (_bend("height", 1), Untrusted),
        (_bend("height", 3), Untrusted),
        (_bend("previous_hash", b"x" * 32), Untrusted),
        (_bend("store_time_ms", 999), Untrusted),
        (_bend("store_time_ms", HOUR_MS), TokenRefused),
        (_bend("entry", b"junk"), MalformedMessage),
        (lambda raw: raw + b"\0", MalformedMessage),
        (lambda raw: raw[:-1], MalformedMessage),
        (lambda raw: raw[:1] + b"\xcc" + raw[1:], MalformedMessage),
        (lambda raw: raw + bytes(9_000), MalformedMessage),
    ],
)
def test_a_record_that_was_altered_is_refused(
    change: Callable[[bytes], bytes], error: type[SwarmError]
) -> None:
    state, token = state_with_token()
    learner = AuthorityState.load(GENESIS, state.dump())
    raw = encode_record(state.apply(admit(token), 2_000))
    before = fingerprint(learner)
    with pytest.raises(error):
        learner.replay(change(raw))
    assert fingerprint(learner) == before
    learner.replay(raw)
    assert learner.head == state.head


def test_a_record_that_repeats_an_entry_is_refused() -> None:
    state, token = state_with_token()
    first = state.apply(admit(token), 2_000)
    height, head_hash = state.head
    repeat = type(first)(height + 1, head_hash, 2_000, first.entry)
    with pytest.raises(Untrusted, match="repeats"):
        state.replay(encode_record(repeat))
    assert state.head == (height, head_hash)


def test_entries_and_records_are_bounded_before_they_are_decoded() -> None:
    state, _ = state_with_token()
    large = encode_envelope(Envelope("authority", bytes(5_000), ()))
    with pytest.raises(MalformedMessage, match="authority entry of 5"):
        open_entry(large)
    with pytest.raises(MalformedMessage, match="authority record of 5"):
        decode_record(encode_record(Record(2, state.head[1], 1_000, bytes(5_000))))


def test_a_copy_is_independent() -> None:
    state, token = state_with_token()
    other = state.copy()
    other.apply(admit(token), 2_000)
    assert NODE.key_id not in state.admissions
    assert state.tokens[token.token_id].uses_left == 2
    assert state.head[0] == 1
    state.apply(admit(token, NODE_2), 2_000)
    assert node_id_of(NODE_2.public) not in other.admissions


def test_the_head_covers_the_record() -> None:
    state, _ = state_with_token()
    assert state.head == (1, record_hash(state.dump()[0]))


@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_any_order_of_entries_replays_to_the_same_state(data: st.DataObject) -> None:
    """Goal: apply and replay agree, whatever was refused in between."""
    state = AuthorityState(GENESIS)
    keys = [SigningKey.from_seed(bytes([number]) * 32) for number in range(1, 6)]
    tokens: list[Token] = []
    for step in range(data.draw(st.integers(min_value=1, max_value=12))):
        kind = data.draw(st.sampled_from(["token", "admit", "evict", "revoke"]))
        key = data.draw(st.sampled_from(keys))
        if kind == "token" or not tokens:
            token, entry = issue_token(
                SWARM, now_of(state), ADMIN, uses=data.draw(st.integers(1, 2)), expires_ms=500
            )
            tokens.append(token)
        elif kind == "admit":
            entry = admit(data.draw(st.sampled_from(tokens)), key, nonce=bytes([step]) * 16)
        elif kind == "evict":
            entry = sign_entry(Evict(key.key_id, fresh_nonce()), SWARM, ADMIN)
        else:
            token_id = data.draw(st.sampled_from(tokens)).token_id
            entry = sign_entry(RevokeToken(token_id, fresh_nonce()), SWARM, ADMIN)
        before = fingerprint(state)
        try:
            state.apply(entry, data.draw(st.integers(0, 600)))
        except SwarmError:
            assert fingerprint(state) == before
    assert fingerprint(AuthorityState.load(GENESIS, state.dump())) == fingerprint(state)

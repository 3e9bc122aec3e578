"""The replicated state: revisions, conditions, sessions, seal, whole-state copies."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from states import restore, whole
from store_applier import ADMIN_KEY, GENESIS, NODE_KEY, SESSION, VOTER, Applier

from swarmd.base.errors import BadRequest, Conflict, CorruptFile, TooLarge
from swarmd.base.ids import short
from swarmd.base.limits import SESSIONS_MAX, VALUE_BYTES_MAX
from swarmd.identity.entries import AddToken, Evict, SetRoles, decode_record, sign_entry
from swarmd.identity.keys import SigningKey
from swarmd.identity.voter import Voter
from swarmd.state.raft import sessions
from swarmd.state.raft import statemachine as sm
from swarmd.state.raft.messages import (
    RAN_OTHERWISE,
    USER_PREFIX,
    Add,
    AuthorityEntry,
    Compare,
    Delete,
    GrantLease,
    Group,
    OpenSession,
    Operation,
    OpResult,
    Put,
    RenewLease,
    RevokeLease,
    Seal,
    TakeOffice,
    Txn,
)
from swarmd.state.raft.statemachine import Change, StateMachine


@pytest.fixture
def applier() -> Applier:
    return Applier()


def test_each_change_takes_one_revision(applier: Applier) -> None:
    results = applier.do(Put(b"a", b"1"), Put(b"b", b"2"), Put(b"a", b"3"))
    assert [r.revision for r in results] == [1, 2, 3]
    entry = applier.state.get(b"a")
    assert entry is not None
    assert (entry.value, entry.create_revision, entry.mod_revision) == (b"3", 1, 3)


def test_put_expects_a_revision(applier: Applier) -> None:
    assert applier.do(Put(b"a", b"1", expect=0))[0].ok
    refused = applier.do(Put(b"a", b"2", expect=0))[0]
    assert (refused.ok, refused.code, refused.revision) == (False, "conflict", 1)
    with pytest.raises(Conflict, match="is at revision 1; expected no such key"):
        refused.raise_for_error()
    assert applier.do(Put(b"a", b"2", expect=1))[0].revision == 2


def test_delete(applier: Applier) -> None:
    applier.do(Put(b"a", b"1"))
    assert applier.do(Delete(b"a", expect=7))[0].code == "conflict"
    assert applier.do(Delete(b"a", expect=1))[0].revision == 2
    assert applier.state.get(b"a") is None
    assert applier.do(Delete(b"a"))[0] == OpResult(True, 2), "an absent key changes nothing"


def test_txn_takes_one_revision_and_one_branch(applier: Applier) -> None:
    create = Txn((Compare(b"a", 0),), (Put(b"a", b"1"), Put(b"b", b"1")), (Put(b"c", b"1"),))
    first, second = applier.do(create, create)
    assert (first.ok, first.revision) == (True, 1)
    assert (second.ok, second.code) == (False, "conflict")
    assert applier.state.get(b"b").mod_revision == 1  # type: ignore[union-attr]
    assert applier.state.get(b"c").mod_revision == 2  # type: ignore[union-attr]


def test_txn_with_a_failed_expect_changes_nothing(applier: Applier) -> None:
    result = applier.do(Txn((), (Put(b"a", b"1"), Put(b"b", b"1", expect=9))))[0]
    assert (result.code, result.value) == ("conflict", None)
    assert len(applier.state) == 0
    assert applier.state.revision == 0


def test_a_txn_tells_which_branch_ran(applier: Applier) -> None:
    then = applier.do(Txn((), (Put(b"a", b"1"),)))[0]
    otherwise = applier.do(Txn((Compare(b"a", 0),), (), (Put(b"b", b"1"),)))[0]
    neither = applier.do(Txn((Compare(b"a", 0),), (), (Put(b"b", b"1", expect=0),)))[0]
    assert [(r.ok, r.revision, r.value) for r in (then, otherwise, neither)] == [
        (True, 1, None),
        (False, 2, RAN_OTHERWISE),
        (False, 2, None),
    ]
    assert otherwise.message == "key 'a' is at revision 1; expected no such key"


@pytest.mark.parametrize(
    ("compare", "unmet"),
    [
        (Compare(b"a"), ""),
        (Compare(b"a", value=b"1"), ""),
        (Compare(b"a", 1, b"1"), ""),
        (Compare(b"none", 0), ""),
        (Compare(b"none"), "key 'none' does not exist"),
        (Compare(b"a", value=b"2"), "key 'a' holds another value"),
        (Compare(b"none", value=b""), "key 'none' does not exist"),
        (Compare(b"a", 2, b"1"), "key 'a' is at revision 1; expected revision 2"),
        (Compare(b"a", 1, b"2"), "key 'a' holds another value"),
        (Compare(b"none", 0, b""), "key 'none' does not exist"),
    ],
)
def test_compares_by_existence_value_and_revision(
    applier: Applier, compare: Compare, unmet: str
) -> None:
    applier.do(Put(b"a", b"1"))
    result = applier.do(Txn((compare,), (Put(b"b", b"1"),)))[0]
    assert (result.ok, result.message) == (not unmet, unmet)


# ---- counters --------------------------------------------------------------------------


def test_a_counter_counts(applier: Applier) -> None:
    results = applier.do(Add(b"n", 5), Add(b"n", -7), Add(b"n", 0))
    assert [(r.value, r.revision) for r in results] == [(b"5", 1), (b"-2", 2), (b"-2", 3)]
    assert applier.state.get(b"n").value == b"-2"  # type: ignore[union-attr]


@pytest.mark.parametrize("value", [b"", b"-", b"1.0", b" 1", b"+1", b"1" * 20, "٣".encode()])
def test_only_a_decimal_integer_counts(applier: Applier, value: bytes) -> None:
    applier.do(Put(b"n", value))
    assert applier.do(Add(b"n", 1))[0].code == "conflict"
    assert applier.state.revision == 1


def test_a_counter_stays_within_64_bits(applier: Applier) -> None:
    applier.do(Add(b"n", 2**63 - 1))
    assert applier.do(Add(b"n", 1))[0].code == TooLarge.code
    assert applier.do(Add(b"n", -1))[0].value == b"%d" % (2**63 - 2)


def test_range_is_sorted_bounded_and_resumes(applier: Applier) -> None:
    applier.do(*(Put(b"t/%02d" % i, b"x") for i in (3, 1, 2)), Put(b"s/1", b"x"), Put(b"u", b"x"))
    assert [e.key for e in applier.state.range(b"t/")] == [b"t/01", b"t/02", b"t/03"]
    assert [e.key for e in applier.state.range(b"t/", limit=2)] == [b"t/01", b"t/02"]
    assert [e.key for e in applier.state.range(b"t/", after=b"t/02")] == [b"t/03"]
    assert [e.key for e in applier.state.range(b"", after=b"t/03")] == [b"u"]
    assert len(applier.state.range(b"t/", after=b"a")) == 3


@pytest.mark.parametrize(
    ("op", "code"),
    [
        (Put(b"", b"x"), "empty_key"),
        (Put(b"k" * 1025, b"x"), "key_too_long"),
        (Put(b"k", b"x" * (VALUE_BYTES_MAX + 1)), "value_too_large"),
        (Put(b"k", b"x", expect=-1), BadRequest.code),
        (Put(b"k", b"x", lease=7), "lease_expired"),
        (Delete(b""), "empty_key"),
        (Txn((), (Put(b"", b""),)), "empty_key"),
        (Txn((Compare(b"k" * 1025),), ()), "key_too_long"),
        (Txn((Compare(b"k", value=b"x" * (VALUE_BYTES_MAX + 1)),), ()), "value_too_large"),
        (Txn((Compare(b"k", 0),), (Put(b"k", b""), Put(b"l", b"", lease=7))), "lease_expired"),
        (Txn((), (Put(b"k", b"x" * 600_000), Put(b"l", b"x" * 600_000))), TooLarge.code),
        (Txn((), tuple(Put(b"%d" % i, b"") for i in range(300))), TooLarge.code),
        (OpenSession(b"short"), BadRequest.code),
        (Add(b"", 1), "empty_key"),
        (Add(b"n", 2**63), TooLarge.code),
        (GrantLease(999), "bad_ttl"),
        (GrantLease(24 * 3_600_000 + 1), "bad_ttl"),
        (RenewLease(1), "lease_expired"),
        (RevokeLease(1), "lease_expired"),
        (Seal(2, ()), BadRequest.code),
        (Seal(2, (VOTER, VOTER)), BadRequest.code),
        (Seal(3, (VOTER,)), Conflict.code),
        (AuthorityEntry(b"junk"), "malformed"),
    ],
)
def test_what_is_wrong_is_a_result(applier: Applier, op: Operation, code: str) -> None:
    before = whole(applier.state.snapshot())
    assert applier.do(op)[0].code == code
    assert whole(applier.state.snapshot()) == before


def test_no_epoch_begins_with_who_may_not_vote(applier: Applier) -> None:
    """The choice was made before the entry that takes the right away, and is proposed after it."""
    swarm_id, nonce = applier.state.genesis.swarm_id, b"o" * 16
    other = Voter(SigningKey.generate().public, b"v" * 16)
    applier.do(Seal(2, (other,)))
    following = Applier()  # The founder has no seat there, so that it may lose its vote.
    restore(following.state, whole(applier.state.sealed_snapshot()))
    for entry in (
        SetRoles(NODE_KEY.key_id, ("worker",), nonce),
        SetRoles(NODE_KEY.key_id, ("worker", "voter"), b"p" * 16),
        Evict(NODE_KEY.key_id, b"q" * 16),
    ):
        [result] = following.do(AuthorityEntry(sign_entry(entry, swarm_id, ADMIN_KEY)))
        assert result.ok
        if entry.nonce == b"p" * 16:
            continue
        before = whole(following.state.snapshot())
        [refused] = following.do(Seal(3, (VOTER,)))
        assert (refused.code, following.state.sealed) == (Conflict.code, None)
        assert short(NODE_KEY.key_id) in refused.message
        assert whole(following.state.snapshot()) == before
    assert following.do(Seal(3, (other,)))[0].ok


def test_junk_is_a_result(applier: Applier) -> None:
    assert applier.state.apply(b"\xc1junk", 1, 1)[0][0].code == "malformed"


# ---- sessions ------------------------------------------------------------------------


def test_a_repeat_is_answered_and_not_applied(applier: Applier) -> None:
    applier.do(OpenSession(SESSION))
    first = applier.in_session(0, Put(b"a", b"1", expect=0), Put(b"b", b"1"))
    assert applier.in_session(0, Put(b"a", b"1", expect=0), Put(b"b", b"1")) == first
    assert applier.state.revision == 2


def test_a_late_repeat_below_low_is_never_applied(applier: Applier) -> None:
    applier.do(OpenSession(SESSION))
    applier.in_session(5, Put(b"a", b"1"), low=5)
    assert applier.in_session(3, Put(b"a", b"late"), low=3)[0].code == "session_expired"
    assert applier.state.get(b"a").value == b"1"  # type: ignore[union-attr]


def test_sequences_may_arrive_out_of_order(applier: Applier) -> None:
    applier.do(OpenSession(SESSION))
    assert applier.in_session(4, Put(b"b", b"1"))[0].ok
    assert applier.in_session(2, Put(b"a", b"1"))[0].ok
    assert applier.in_session(4, Put(b"b", b"1"))[0].revision == 1


def test_a_group_is_repeated_as_a_whole(applier: Applier) -> None:
    """Groups on both sides of one are known: it is neither mistaken for theirs nor lost."""
    applier.do(OpenSession(SESSION))
    groups = {n: (Put(b"%d" % n, b"1"), Put(b"%d" % (n + 1), b"1")) for n in (0, 4, 2)}
    results = {first: applier.in_session(first, *ops) for first, ops in groups.items()}
    assert [result.revision for result in results[2]] == [5, 6]
    for first, ops in groups.items():
        assert applier.in_session(first, *ops) == results[first]
    assert applier.in_session(6, Put(b"z", b"1"), low=4)[0].ok
    assert applier.in_session(0, *groups[0], low=4)[0].code == "session_expired"
    assert applier.in_session(4, *groups[4], low=4) == results[4]
    assert applier.state.revision == 7


def test_an_unknown_session_is_refused(applier: Applier) -> None:
    assert applier.in_session(0, Put(b"a", b"1"))[0].code == "session_expired"
    assert applier.state.revision == 0


def test_sessions_end_by_store_time_of_disuse(applier: Applier) -> None:
    other = b"o" * 16
    applier.do(OpenSession(SESSION), OpenSession(other), stamp_ms=1)
    applier.batch(Group(SESSION, 0, 0, (Put(b"a", b"1"),)), stamp_ms=sm.SESSION_TTL_MS)
    applier.do(stamp_ms=sm.SESSION_TTL_MS + 2)
    assert applier.in_session(1, Put(b"a", b"2"))[0].ok
    assert applier.batch(Group(other, 0, 0, (Put(b"a", b"3"),)))[0][0].code == "session_expired"


def test_sessions_are_bounded(applier: Applier) -> None:
    names = [i.to_bytes(16, "big") for i in range(SESSIONS_MAX + 1)]
    for start in range(0, len(names), 250):
        applier.do(*(OpenSession(n) for n in names[start : start + 250]))
    refused = applier.batch(Group(names[0], 0, 0, (Put(b"a", b""),)))[0][0]
    assert refused.code == "session_expired"
    assert applier.batch(Group(names[-1], 0, 0, (Put(b"a", b""),)))[0][0].ok


def test_results_kept_are_bounded(applier: Applier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SESSION_RESULTS_MAX", 3)
    applier.do(OpenSession(SESSION))
    applier.in_session(0, *(Put(b"k%d" % i, b"") for i in range(5)))
    assert applier.in_session(0, Put(b"k0", b""))[0].code == "session_expired"
    assert applier.in_session(4, Put(b"k4", b""))[0].revision == 5


def test_store_time_never_falls(applier: Applier) -> None:
    applier.do(stamp_ms=100)
    applier.do(stamp_ms=50)
    assert applier.state.time_ms == 100


# ---- authority -----------------------------------------------------------------------


def test_authority_entries_return_their_record(applier: Applier) -> None:
    token = SigningKey.from_seed(b"t" * 32)
    entry = AddToken(token.public, "member", 3, 1_000_000, b"n" * 16)
    raw = sign_entry(entry, GENESIS.swarm_id, ADMIN_KEY)
    result = applier.do(AuthorityEntry(raw), stamp_ms=5)[0]
    assert result.ok
    assert result.value is not None
    assert decode_record(result.value).height == 1
    assert applier.state.authority.head[0] == 1
    copy = StateMachine(GENESIS)
    restore(copy, whole(applier.state.snapshot()))
    assert copy.authority.head == applier.state.authority.head


# ---- office, changes, seal -------------------------------------------------------------


def test_taking_office_takes_a_revision(applier: Applier) -> None:
    applier.do(Put(b"a", b""))
    assert applier.do(TakeOffice(b"n" * 32))[0].revision == 2
    assert applier.state.office == (b"n" * 32, 2)


def test_changes_come_in_order_of_revisions(applier: Applier) -> None:
    applier.do(Put(b"a", b"1"), Txn((), (Put(b"b", b"2"), Delete(b"a"))))
    assert applier.state.drain_changes() == [
        Change(1, b"a", b"1"),
        Change(2, b"b", b"2"),
        Change(2, b"a", None),
    ]
    assert applier.state.drain_changes() == []


def test_changes_are_bounded_and_say_that_some_were_lost(
    applier: Applier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sm, "CHANGES_MAX", 2)
    applier.do(*(Put(b"%d" % i, b"") for i in range(5)))
    assert applier.state.drain_changes() is None
    applier.do(Put(b"x", b""))
    assert applier.state.drain_changes() == [Change(6, b"x", b"")]


def test_a_restored_state_says_that_changes_were_lost(applier: Applier) -> None:
    other = StateMachine(GENESIS)
    restore(other, whole(applier.state.snapshot()))
    assert other.drain_changes() is None


def test_after_a_seal_nothing_changes(applier: Applier) -> None:
    applier.do(OpenSession(SESSION), Put(b"a", b"1"), stamp_ms=10)
    sealed, after = applier.do(Seal(2, (VOTER,)), Put(b"a", b"2"))
    assert sealed.ok
    assert after.code == "moved"
    body = whole(applier.state.sealed_snapshot())
    assert applier.in_session(0, Put(b"a", b"2"))[0].code == "moved"
    assert applier.do(Seal(2, (VOTER,)), TakeOffice(b"n"), stamp_ms=99)[0].code == "moved"
    assert whole(applier.state.sealed_snapshot()) == body


def test_a_session_goes_on_in_the_next_epoch(applier: Applier) -> None:
    applier.do(OpenSession(SESSION), stamp_ms=10)
    done = applier.in_session(0, Put(b"a", b"1"))
    applier.do(Seal(2, (VOTER,)))
    assert applier.in_session(1, Put(b"a", b"2"))[0].code == "moved"
    following = Applier()
    restore(following.state, whole(applier.state.sealed_snapshot()))
    assert (following.state.epoch, following.state.sealed) == (2, None)
    assert following.in_session(0, Put(b"a", b"1")) == done, "a repeat across the seal"
    assert following.in_session(1, Put(b"a", b"2"))[0].revision == 2
    assert following.do(Seal(2, (VOTER,)))[0].code == "conflict", "that epoch has begun"


# ---- whole states ------------------------------------------------------------------------


def test_a_snapshot_is_frozen_when_taken(applier: Applier) -> None:
    applier.do(OpenSession(SESSION), Put(b"a", b"1"))
    applier.in_session(0, Put(b"b", b"1"))
    before = whole(applier.state.snapshot())
    frozen = applier.state.snapshot()
    applier.in_session(1, Put(b"a", b"2"), Delete(b"b"), Put(b"aa", b"3"))
    assert whole(frozen) == before
    assert applier.state.frozen == []


@pytest.mark.parametrize("raw", [b"", b"junk", b"\x92\x01\x02", b"\x91" * 5000])
def test_a_bad_state_is_refused_and_changes_nothing(applier: Applier, raw: bytes) -> None:
    applier.do(Put(b"a", b"1"))
    with pytest.raises(CorruptFile):
        restore(applier.state, raw)
    assert applier.state.get(b"a") is not None


_keys = st.sampled_from([b"a", b"ab", b"b", b"c"])
_expects = st.none() | st.integers(0, 8)
_simple = st.builds(Put, _keys, st.binary(max_size=3), _expects) | st.builds(
    Delete, _keys, _expects
)
_compares = st.builds(
    Compare, _keys, st.none() | st.integers(0, 8), st.none() | st.binary(max_size=1)
)
_txns = st.builds(
    Txn,
    st.lists(_compares, max_size=2).map(tuple),
    st.lists(_simple, max_size=3).map(tuple),
    st.lists(_simple, max_size=2).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_simple | _txns, max_size=30), st.integers(0, 30))
def test_a_restored_state_goes_on_as_the_original(ops: list[Operation], cut: int) -> None:
    original, copy = Applier(), Applier()
    original.do(OpenSession(SESSION))
    for sequence, op in enumerate(ops[:cut]):
        original.in_session(sequence, op)
    restore(copy.state, whole(original.state.snapshot()))
    for sequence, op in enumerate(ops[cut:], start=cut):
        assert copy.in_session(sequence, op) == original.in_session(sequence, op)
    assert whole(copy.state.snapshot()) == whole(original.state.snapshot())


@settings(max_examples=60, deadline=None)
@given(st.lists(_simple | _txns, max_size=30))
def test_the_state_agrees_with_a_plain_model(ops: list[Operation]) -> None:
    applier = Applier()
    model: dict[bytes, tuple[bytes, int]] = {}
    revision = 0

    def at(key: bytes, expect: int | None) -> bool:
        return expect is None or model.get(key, (b"", 0))[1] == expect

    def holds(compare: Compare) -> bool:
        if compare.revision is None or compare.value is not None:
            if compare.key not in model:
                return False
            if compare.value is not None and model[compare.key][0] != compare.value:
                return False
        return at(compare.key, compare.revision)

    for op in ops:
        branch: tuple[Put | Delete, ...]
        if isinstance(op, Txn):
            held = all(map(holds, op.compares))
            branch = op.then if held else op.otherwise
        else:
            assert isinstance(op, Put | Delete)
            branch = (op,)
        if all(at(i.key, i.expect) for i in branch):
            if any(isinstance(i, Put) or i.key in model for i in branch):
                revision += 1
            for inner in branch:
                if isinstance(inner, Put):
                    model[inner.key] = (inner.value, revision)
                else:
                    model.pop(inner.key, None)
        applier.do(op)
    found = {e.key: (e.value, e.mod_revision) for e in applier.state.range(b"")}
    assert found == model
    assert [e.key for e in applier.state.range(b"")] == sorted(model)
    assert applier.state.revision == revision


@pytest.mark.parametrize("first", [2**64 - 1, -1])
def test_no_number_of_a_client_can_spoil_the_snapshot(applier: Applier, first: int) -> None:
    applier.do(OpenSession(SESSION))
    [refused] = applier.in_session(first, Put(b"a", b"1"), Put(b"b", b"2"))
    assert refused.code == "malformed"
    assert len(applier.state) == 0
    restore(StateMachine(GENESIS), whole(applier.state.snapshot()))


# ---- many puts at once ---------------------------------------------------------------

_few_keys = st.integers(0, 4).map(lambda n: USER_PREFIX + b"%d" % n)
_leased = st.builds(Put, _few_keys, st.binary(max_size=3), st.none(), st.just(1))
_puts = st.builds(Put, _few_keys, st.binary(max_size=3))


@settings(max_examples=150, deadline=None)
@given(st.lists(_leased | st.builds(Delete, _few_keys), max_size=6), st.lists(_puts, max_size=12))
def test_puts_that_come_together_do_what_they_do_one_by_one(
    before: list[Operation], puts: list[Operation]
) -> None:
    """Same results, state, leases, history, changes and digest."""
    together, apart = Applier(), Applier()
    frozen = []
    for one in (together, apart):
        one.do(GrantLease(60_000), *before)
        frozen.append(one.state.snapshot())
    results = together.do(*puts)
    assert results == [apart.do(put)[0] for put in puts]
    states = [one.state for one in (together, apart)]
    assert len({tuple(state.snapshot()) for state in states}) == 1
    assert len({tuple(frames) for frames in frozen}) == 1
    assert len({state.digest() for state in states}) == 1
    assert states[0].drain_changes() == states[1].drain_changes()
    assert [lease.keys for lease in states[0].leases.all()] == [
        lease.keys for lease in states[1].leases.all()
    ]
    assert states[0].history.runs() == states[1].history.runs()

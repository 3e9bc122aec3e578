"""Leases of the replicated state: they end by store time, on every voter alike."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from states import restore, whole
from store_applier import SESSION, VOTER, Applier

from swarmd.base.errors import CorruptFile, LeaseExpired
from swarmd.state.raft import statemachine as sm
from swarmd.state.raft.messages import (
    Add,
    Compare,
    Delete,
    GrantLease,
    OpenSession,
    Operation,
    Put,
    RenewLease,
    RevokeLease,
    Seal,
    TakeOffice,
    Txn,
)
from swarmd.state.raft.statemachine import Change


@pytest.fixture
def applier() -> Applier:
    return Applier()


def granted(applier: Applier, ttl_ms: int = 1_000, stamp_ms: int = 0) -> int:
    return applier.do(GrantLease(ttl_ms), stamp_ms=stamp_ms)[0].revision


def keys(applier: Applier) -> list[bytes]:
    return [entry.key for entry in applier.state.range(b"")]


def test_a_lease_is_named_by_the_revision_that_granted_it(applier: Applier) -> None:
    applier.do(Put(b"a", b""))
    assert granted(applier) == 2
    assert granted(applier) == 3
    assert applier.state.revision == 3


def test_its_keys_go_under_one_revision_when_store_time_reaches_the_deadline(
    applier: Applier,
) -> None:
    lease = granted(applier)
    applier.do(Put(b"b", b"", lease=lease), Put(b"a", b"", lease=lease), Put(b"c", b""))
    applier.state.drain_changes()
    applier.do(stamp_ms=999)
    assert keys(applier) == [b"a", b"b", b"c"]
    applier.do(stamp_ms=1_000)
    assert keys(applier) == [b"c"]
    assert applier.state.drain_changes() == [Change(5, b"a", None), Change(5, b"b", None)]
    assert len(applier.state.leases) == 0
    assert applier.state.revision == 5


def test_a_lease_without_keys_ends_without_a_revision(applier: Applier) -> None:
    granted(applier)
    applier.do(stamp_ms=5_000)
    assert (len(applier.state.leases), applier.state.revision) == (0, 1)


def test_renewal_gives_the_whole_time_again(applier: Applier) -> None:
    lease = granted(applier)
    renewed = applier.do(RenewLease(lease), stamp_ms=900)[0]
    assert (renewed.ok, renewed.revision, renewed.value) == (True, lease, b"1000")
    applier.do(stamp_ms=1_899)
    assert applier.state.leases.get(lease) is not None
    refused = applier.do(RenewLease(lease), stamp_ms=1_900)[0]
    with pytest.raises(LeaseExpired, match="lease 1 has ended or never was"):
        refused.raise_for_error()


def test_a_put_says_anew_to_which_lease_its_key_belongs(applier: Applier) -> None:
    first, second = granted(applier), granted(applier, 2_000)
    for name in (b"moved", b"freed", b"held", b"counted", b"deleted"):
        applier.do(Put(name, b"1", lease=first))
    applier.do(Put(b"moved", b"", lease=second), Put(b"freed", b""), Add(b"counted", 1))
    applier.do(Delete(b"deleted"), Put(b"deleted", b""))
    entry = applier.state.get(b"moved")
    assert entry is not None
    assert entry.lease == second
    applier.do(stamp_ms=1_000)
    assert keys(applier) == [b"deleted", b"freed", b"moved"]
    applier.do(stamp_ms=2_000)
    assert keys(applier) == [b"deleted", b"freed"]


def test_revoking_takes_one_revision(applier: Applier) -> None:
    lease = granted(applier)
    applier.do(Put(b"a", b"", lease=lease), Put(b"b", b"", lease=lease))
    assert applier.do(RevokeLease(lease))[0].revision == 4
    assert keys(applier) == []
    assert applier.do(RevokeLease(lease))[0].code == "lease_expired"


def test_a_txn_attaches_all_or_nothing(applier: Applier) -> None:
    lease = granted(applier)
    good = Txn((Compare(b"a", 0),), (Put(b"a", b"", lease=lease), Put(b"b", b"", lease=lease)))
    bad = Txn((), (Put(b"c", b"", lease=lease), Put(b"d", b"", lease=99)))
    assert [r.code for r in applier.do(good, bad)] == [None, "lease_expired"]
    assert keys(applier) == [b"a", b"b"]


# ---- bounds ----------------------------------------------------------------------------


def test_there_are_only_so_many_leases(applier: Applier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sm, "LEASES_MAX", 2)
    results = applier.do(*[GrantLease(1_000)] * 3)
    assert [r.code for r in results] == [None, None, "too_many_leases"]
    applier.do(RevokeLease(1))
    assert applier.do(GrantLease(1_000))[0].ok


def test_a_lease_has_only_so_many_keys(applier: Applier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sm, "LEASE_KEYS_MAX", 2)
    lease = granted(applier)
    puts = [Put(b"%d" % i, b"", lease=lease) for i in range(4)]
    whole = Txn((), tuple(puts[:3]))
    assert applier.do(whole)[0].code == "lease_full"
    assert len(applier.state) == 0
    again = Txn((), (puts[0], puts[0], puts[1]))
    assert [r.code for r in applier.do(again, puts[1], puts[2])] == [None, None, "lease_full"]
    assert applier.do(Delete(b"0"), puts[2])[1].ok


def test_many_ended_leases_are_swept_over_several_batches(
    applier: Applier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sm, "SWEEP_KEYS_MAX", 3)
    leases = [granted(applier) for _ in range(4)]
    applier.do(*(Put(b"%d" % i, b"", lease=lease) for i, lease in enumerate(leases)))
    applier.do(stamp_ms=1_000)
    assert keys(applier) == [b"2", b"3"]
    refused = applier.do(RenewLease(leases[2]), Put(b"2", b"", lease=leases[3]))
    assert [r.code for r in refused] == ["lease_expired"] * 2
    assert keys(applier) == []


# ---- coordinators, snapshots, epochs -----------------------------------------------------


def test_a_new_coordinator_extends_what_lived_before_its_own_stamp_can_end_it(
    applier: Applier,
) -> None:
    short, long = granted(applier), granted(applier, 60_000)
    applier.do(Put(b"a", b"", lease=short))
    applier.do(TakeOffice(b"n" * 32), stamp_ms=1_500)
    for lease, deadline_ms in ((short, 2_500), (long, 61_500)):
        found = applier.state.leases.get(lease)
        assert found is not None
        assert found.deadline_ms == deadline_ms
    applier.do(stamp_ms=2_500)
    assert keys(applier) == []


def test_what_was_called_dead_stays_dead(applier: Applier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sm, "SWEEP_KEYS_MAX", 1)
    first, second = granted(applier), granted(applier)
    refused = applier.do(RenewLease(second), stamp_ms=1_000)[0]
    assert refused.code == "lease_expired"
    applier.do(TakeOffice(b"n" * 32), stamp_ms=1_100)
    assert applier.state.leases.get(first) is applier.state.leases.get(second) is None


def test_leases_cross_snapshots_and_epochs(applier: Applier) -> None:
    applier.do(OpenSession(SESSION))
    lease = applier.in_session(0, GrantLease(1_000))[0].revision
    applier.do(Put(b"a", b"", lease=lease), stamp_ms=100)
    applier.do(RenewLease(lease), Seal(2, (VOTER,)), stamp_ms=200)
    assert applier.do(RenewLease(lease), stamp_ms=9_000)[0].code == "moved"
    following = Applier()
    restore(following.state, whole(applier.state.sealed_snapshot()))
    assert following.in_session(0, GrantLease(1_000))[0].revision == lease, "granted once"
    following.do(stamp_ms=1_199)
    assert keys(following) == [b"a"]
    following.do(stamp_ms=1_200)
    assert keys(following) == []


def test_a_state_with_a_key_of_no_lease_is_refused(applier: Applier) -> None:
    lease = granted(applier)
    applier.do(Put(b"a", b"", lease=lease))
    del applier.state.leases._leases[lease]
    with pytest.raises(CorruptFile, match="a lease that it does not hold"):
        restore(Applier().state, whole(applier.state.snapshot()))


# ---- against a model -----------------------------------------------------------------------

_keys = st.sampled_from([b"a", b"b", b"u/c"])
_leases = st.integers(0, 6)
_puts = st.builds(Put, _keys, st.just(b""), st.none(), _leases)
_deletes = st.builds(Delete, _keys)
_ops = st.one_of(
    _puts,
    _deletes,
    st.builds(GrantLease, st.integers(1_000, 3_000)),
    st.builds(RenewLease, _leases),
    st.builds(RevokeLease, _leases),
    st.builds(TakeOffice, st.just(b"n")),
    st.builds(Txn, st.just(()), st.lists(_puts | _deletes, max_size=3).map(tuple)),
)
_steps = st.lists(st.tuples(_ops, st.integers(0, 700)), max_size=40)


class Model:
    """Leases as a dictionary of deadlines, keys as a dictionary of leases."""

    def __init__(self) -> None:
        self.now = 0
        self.ttl: dict[int, int] = {}
        self.deadline: dict[int, int] = {}
        self.keys: dict[bytes, int] = {}

    def step(self, op: Operation, now: int, revision: int) -> bool:
        if isinstance(op, TakeOffice):
            self.deadline = {lease: now + self.ttl[lease] for lease in self.deadline}
        self.now = now
        for lease in [one for one, deadline in self.deadline.items() if deadline <= now]:
            self.end(lease)
        return self.apply(op, revision)

    def end(self, lease: int) -> None:
        del self.deadline[lease]
        self.keys = {key: held for key, held in self.keys.items() if held != lease}

    def apply(self, op: Operation, revision: int) -> bool:
        if isinstance(op, Txn):
            if any(isinstance(i, Put) and not self.may(i.lease) for i in op.then):
                return False
            return all(self.apply(inner, revision) for inner in op.then)
        if isinstance(op, Put):
            if not self.may(op.lease):
                return False
            self.keys[op.key] = op.lease
        elif isinstance(op, Delete):
            self.keys.pop(op.key, None)
        elif isinstance(op, GrantLease):
            self.ttl[revision], self.deadline[revision] = op.ttl_ms, self.now + op.ttl_ms
        elif isinstance(op, RenewLease | RevokeLease):
            if op.lease not in self.deadline:
                return False
            if isinstance(op, RenewLease):
                self.deadline[op.lease] = self.now + self.ttl[op.lease]
            else:
                self.end(op.lease)
        return True

    def may(self, lease: int) -> bool:
        return not lease or lease in self.deadline


@settings(max_examples=150, deadline=None)
@given(_steps, st.integers(0, 40))
def test_leases_agree_with_a_plain_model_also_after_a_restore(
    steps: list[tuple[Operation, int]], cut: int
) -> None:
    applier, model, now = Applier(), Model(), 0
    for index, (op, passed) in enumerate(steps):
        if index == cut:
            restored = Applier()
            restore(restored.state, whole(applier.state.snapshot()))
            assert whole(restored.state.snapshot()) == whole(applier.state.snapshot())
            applier = restored
        now += passed
        result = applier.do(op, stamp_ms=now)[0]
        assert result.ok == model.step(op, now, result.revision)
        entries = applier.state.range(b"")
        assert {entry.key: entry.lease for entry in entries} == model.keys
        assert {one.id: one.deadline_ms for one in applier.state.leases.all()} == model.deadline
        assert applier.state.leases.next_deadline_ms == min(model.deadline.values(), default=None)

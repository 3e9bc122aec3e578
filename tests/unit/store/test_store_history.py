"""The changes that watches can go back to: bounded, whole by revision, part of the state."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from states import restore, whole
from store_applier import VOTER, Applier

from swarmd.base.errors import Compacted
from swarmd.state.raft import history as h
from swarmd.state.raft.history import History
from swarmd.state.raft.messages import Delete, Put, Seal, Txn
from swarmd.state.raft.statemachine import Change


@pytest.fixture
def applier() -> Applier:
    return Applier()


def kept_by(history: History) -> list[Change]:
    return [change for run in history.runs() for change in run.changes]


def revisions(history: History, since: int, prefix: bytes = b"u/") -> list[int]:
    return [change.revision for change in history.since(since, prefix)]


def test_only_watched_keys_are_kept(applier: Applier) -> None:
    applier.do(Put(b"t/task", b""), Put(b"u/a", b"1"), Put(b"c/lock", b"2"), Delete(b"t/task"))
    assert kept_by(applier.state.history) == [Change(2, b"u/a", b"1"), Change(3, b"c/lock", b"2")]


def test_changes_since_a_revision_under_a_prefix(applier: Applier) -> None:
    applier.do(Put(b"u/a", b"1"), Put(b"u/b", b"2"), Txn((), (Delete(b"u/a"), Put(b"u/c", b""))))
    history = applier.state.history
    assert history.since(2, b"u/") == [
        Change(2, b"u/b", b"2"),
        Change(3, b"u/a", None),
        Change(3, b"u/c", b""),
    ]
    assert history.since(1, b"u/a") == [Change(1, b"u/a", b"1"), Change(3, b"u/a", None)]
    assert history.since(4, b"u/") == []


def test_it_is_bounded_and_says_what_can_be_had(
    applier: Applier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(h, "HISTORY_CHANGES_MAX", 3)
    history = applier.state.history
    assert revisions(history, 1) == []
    applier.do(Txn((), (Put(b"u/a", b""), Put(b"u/b", b""))))
    applier.do(*(Put(b"u/c", b"%d" % i) for i in range(2)))
    assert history.compacted == 1
    assert [change.revision for change in kept_by(history)] == [2, 3], "a revision goes as a whole"
    assert revisions(history, 2) == [2, 3]
    with pytest.raises(Compacted, match="the oldest that can be had is 2"):
        history.since(1, b"u/")


def test_its_bytes_are_bounded(applier: Applier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h, "HISTORY_BYTES_MAX", 100)
    applier.do(*(Put(b"u/%d" % i, b"x" * 37) for i in range(5)))
    assert revisions(applier.state.history, 4) == [4, 5]
    assert applier.state.history.compacted == 3


def test_the_newest_revision_is_kept_whole(
    applier: Applier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(h, "HISTORY_CHANGES_MAX", 2)
    applier.do(Put(b"u/a", b""), Txn((), tuple(Put(b"u/%d" % i, b"") for i in range(5))))
    assert revisions(applier.state.history, 2) == [2] * 5
    applier.do(Put(b"u/a", b""))
    assert applier.state.history.compacted == 2


def test_one_change_is_found(applier: Applier) -> None:
    applier.do(Put(b"u/a", b"1"), Put(b"u/a", b"2"), Delete(b"u/a"))
    history = applier.state.history
    assert history.at(2, b"u/a") == Change(2, b"u/a", b"2")
    assert history.at(2, b"u/b") is None
    assert history.at(9, b"u/a") is None


def test_it_crosses_snapshots_and_epochs(applier: Applier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h, "HISTORY_CHANGES_MAX", 2)
    applier.do(*(Put(b"u/a", b"%d" % i) for i in range(3)), Seal(2, (VOTER,)))
    following = Applier()
    restore(following.state, whole(applier.state.sealed_snapshot()))
    assert kept_by(following.state.history) == kept_by(applier.state.history)
    assert following.state.history.compacted == 1
    following.do(Put(b"u/b", b""))
    assert revisions(following.state.history, 3) == [3, 4]
    assert following.state.history.newest == 4


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_what_is_kept_depends_on_nothing_but_what_was_noted(data: st.DataObject) -> None:
    """Goal: voters keep the same changes, whoever started from a snapshot, and when.

    Method: small bounds and runs; changes in groups of any size, some of one revision. After
    each group a history made anew from what is kept goes on beside the others, and all agree;
    what is kept is the end of all that was noted, whole revisions, and within the bounds.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(h, "RUN_REVISIONS", 4)
        patch.setattr(h, "_PART", 1 / 4)
        patch.setattr(h, "HISTORY_CHANGES_MAX", 24)
        patch.setattr(h, "HISTORY_BYTES_MAX", 200)
        histories = [History()]
        noted: list[Change] = []
        revision = 0
        for sizes in data.draw(st.lists(st.lists(st.integers(0, 60), max_size=9), max_size=12)):
            group = []
            for size in sizes:
                revision += data.draw(st.integers(0, 2)) if noted or group else 1
                group.append(Change(revision, b"u/a", b"x" * size))
            noted += group
            for history in histories:
                history.note(group)
            first = histories[0]
            kept = kept_by(first)
            assert kept == [change for change in noted if change.revision > first.compacted]
            bounded = len(kept) <= 24 and sum(len(c.key) + len(c.value or b"") for c in kept) <= 200
            assert bounded or len({change.revision for change in kept}) == 1
            assert [run.size for run in first.runs()] == [
                sum(len(c.key) + len(c.value or b"") for c in run.changes) for run in first.runs()
            ]
            for history in histories[1:]:
                assert (kept_by(history), history.compacted) == (kept, first.compacted)
            histories.append(History(first.compacted, kept))

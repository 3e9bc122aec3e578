"""Handing the leader's office to a chosen voter (Ongaro's thesis, section 3.10).

The leader takes no proposals while it hands over; they are answered `handing_over` and were
not appended. Once the target holds the whole log, and all of it is committed, so that nobody
is left waiting, the target is told to stand: it asks for votes at once, and they are given
although a leader is heard, since that leader asked for it. What does not come about within the
longest election time is given up, and the leader serves on.

Any message of a transfer may be lost, repeated or late. One of an older term is ignored, and
`TimeoutNow` is repeated with the heartbeats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarmd.state.raft.guards import Guard
from swarmd.state.raft.wire import HandedVoteRequest, TimeoutNow

if TYPE_CHECKING:
    from swarmd.state.raft.hardened import HardenedRaft


@dataclass(slots=True)
class _UnderWay:
    tag: int
    target: str
    until: float
    tell_at: float


class Transfers:
    """Both sides of a transfer; at most one is under way."""

    def __init__(self, core: HardenedRaft) -> None:
        self._core = core
        self._now: _UnderWay | None = None
        self.done: list[tuple[int, str | None]] = []

    @property
    def blocks_proposals(self) -> bool:
        return self._now is not None and self._core.on(Guard.T1_HAND_OVER_ALL)

    def ask(self, target: str, tag: int) -> None:
        """Hand over to `target`; (tag, code) comes out of `done`, code None if it was told."""
        core = self._core
        if not core.is_leader:
            self.done.append((tag, "not_leader"))
        elif target == core.me:
            self.done.append((tag, None))
        elif target not in core.peers:
            self.done.append((tag, "not_a_voter"))
        elif self._now is not None:
            self.done.append((tag, "busy"))
        else:
            self._now = _UnderWay(tag, target, core.now + core.config.election_max_s, core.now)

    def next_wake(self) -> float:
        return self._now.until if self._now is not None else float("inf")

    def run(self, now: float) -> None:
        """On the leader, at the end of a step: tell the target as soon as it may stand."""
        under_way = self._now
        if under_way is None:
            return
        if now >= under_way.until:
            self._end("timeout")
        elif now >= under_way.tell_at and self._target_holds_all(under_way.target):
            core = self._core
            under_way.tell_at = now + core.config.heartbeat_s
            core.put(under_way.target, TimeoutNow(core.term, core.journal.last_index))

    def _target_holds_all(self, target: str) -> bool:
        core = self._core
        if not core.on(Guard.T1_HAND_OVER_ALL):
            return True
        last = core.journal.last_index
        return core.sender.match[target] >= last and core.applied_index >= last

    def resigned(self) -> None:
        """This node leads no more: the transfer has done its part, whoever was elected."""
        self._end(None)

    def _end(self, code: str | None) -> None:
        if self._now is not None:
            self.done.append((self._now.tag, code))
            self._now = None

    def on_timeout_now(self, peer: str, message: TimeoutNow) -> None:
        """Stand at once, if the leader of this very term asks for it."""
        core = self._core
        late = message.term != core.term or core.leader != peer or core.is_leader
        if late and core.on(Guard.T2_OF_THIS_TERM):
            return
        if core.journal.last_index >= message.last_index:
            core.elections.campaign(HandedVoteRequest)

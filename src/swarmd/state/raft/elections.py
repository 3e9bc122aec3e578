"""Who stands for the leader's office, and who is voted for.

The library counts votes and gives its own; here is decided what it gets to see. A voter asks
first whether it would win (pre-vote), so that one that cannot win does not raise the term; and
nobody votes while a leader is heard, but for a voter whom that leader asked to stand.

Membership may know sooner that a leader is gone: one that it doubts is waited for as long as
one and a half heartbeats instead of an election time. A leader that is doubted wrongly is heard
within that time, and nothing happens. The voters then stand one after the other in the order of
their names, a heartbeat apart, so that they do not take each other's votes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from swarmd.state.raft.guards import Guard
from swarmd.state.raft.wire import (
    HandedVoteRequest,
    PreVoteGranted,
    PreVoteRequest,
    StaleTerm,
    VoteGranted,
    VoteRequest,
)

if TYPE_CHECKING:
    from swarmd.state.raft.hardened import HardenedRaft

# How long a doubted leader is followed, and when the first voter stands in its stead: counted
# in heartbeats from the last sign of life. Whoever stands must not meet one that still follows.
DOUBTED_FOLLOWED_BEATS: Final = 1.25
DOUBTED_STAND_BEATS: Final = 1.5
# Who is eager asks again before the next in the order stands: voters learn of a doubt some
# milliseconds apart, and the first to learn of it is refused by those who do not know yet.
EAGER_AGAIN_BEATS: Final = 0.5


class Elections:
    """One voter's part in elections."""

    def __init__(self, core: HardenedRaft) -> None:
        self._core = core
        self._votes_seen: set[str] = set()  # Only asked for membership, never walked.
        self._pre_votes: set[str] | None = None
        self._eager_until = float("-inf")
        self._leader_heard_at = float("-inf")
        self._leader_heard: str | None = None
        self._doubted: set[str] = set()  # Only asked for membership, never walked.

    def new_term(self) -> None:
        self._votes_seen.clear()

    def leader_heard(self, peer: str) -> None:
        """A leader of this term is there: stay calm."""
        self._leader_heard_at = self._core.now
        self._leader_heard = peer
        self._eager_until = float("-inf")
        self._pre_votes = None

    def doubt(self, peer: str, doubted: bool) -> None:
        """Membership holds `peer` for suspect or gone, or does no more."""
        if not doubted:
            self._doubted.discard(peer)
            return
        self._doubted.add(peer)
        core = self._core
        if peer == core.leader and peer == self._leader_heard:
            others = sorted(name for name in core.voters if name != peer)
            beat_s = core.config.heartbeat_s
            first = max(core.now, self._leader_heard_at + DOUBTED_STAND_BEATS * beat_s)
            core.stand_by(first + others.index(core.me) * beat_s)
            self._eager_until = core.now + core.config.election_max_s

    def _is_leader_heard(self) -> bool:
        core = self._core
        followed_s = core.config.election_min_s
        if self._leader_heard in self._doubted:
            followed_s = DOUBTED_FOLLOWED_BEATS * core.config.heartbeat_s
        recent = core.now - self._leader_heard_at < followed_s
        return recent and core.on(Guard.V2_STICKY_LEADER)

    # ---- standing ------------------------------------------------------------------------

    def stand_at_once(self) -> None:
        """Ask for office now, and again until the longest election time is over: the others
        may only be starting. For one who held the office before, so that it does not move.
        """
        core = self._core
        if core.leader is None:
            self._eager_until = core.now + core.config.election_max_s
            core.stand_again_in(0.0)

    def stand(self) -> None:
        """Ask first whether standing would succeed (V1), then stand."""
        core = self._core
        if not core.peers or not core.on(Guard.V1_PRE_VOTE):
            self.campaign()
            return
        eager = core.now < self._eager_until
        again_s = EAGER_AGAIN_BEATS * core.config.heartbeat_s
        core.stand_again_in(again_s if eager else core.election_time_s())
        core.forget_leader()
        if self._pre_votes is None or not eager:
            self._pre_votes = {core.me}
        for name in core.peers:
            core.put(name, PreVoteRequest(core.term + 1, *self._last()))

    def campaign(self, request: type[VoteRequest | HandedVoteRequest] = VoteRequest) -> None:
        """Raise the term and ask for votes in it."""
        core = self._core
        self._pre_votes = None
        self._eager_until = float("-inf")
        core.become_candidate()
        for name in core.peers:
            core.put(name, request(core.term, *self._last()))
        if core.majority == 1:
            core.become_leader()

    def _last(self) -> tuple[int, int]:
        return self._core.journal.last_index, self._core.journal.last_term

    # ---- messages ------------------------------------------------------------------------

    def on_pre_vote_request(self, peer: str, message: PreVoteRequest) -> None:
        core = self._core
        if message.term <= core.term:
            # It would stand in a term that is there: its own is older. Untold, it would ask for
            # the same for ever, and if the later term's voter lacks entries nobody could win.
            core.put(peer, StaleTerm(core.term))
            return
        mine = (core.journal.last_term, core.journal.last_index)
        up_to_date = (message.last_term, message.last_index) >= mine
        busy = core.is_leader or self._is_leader_heard()
        if up_to_date and not busy:
            core.put(peer, PreVoteGranted(message.term))

    def on_pre_vote_granted(self, peer: str, message: PreVoteGranted) -> None:
        core = self._core
        if self._pre_votes is None or message.term != core.term + 1 or core.is_leader:
            return
        self._pre_votes.add(peer)
        if len(self._pre_votes) >= core.majority:
            self.campaign()

    def on_vote_request(self, peer: str, message: VoteRequest | HandedVoteRequest) -> None:
        core = self._core
        if message.term < core.term:
            core.put(peer, StaleTerm(core.term))
            return
        handed = isinstance(message, HandedVoteRequest)
        if message.term > core.term and self._is_leader_heard() and not handed:
            return
        request = {"last_log_index": message.last_index, "last_log_term": message.last_term}
        core.hand_to_library(peer, {"type": "request_vote", "term": message.term, **request})

    def on_vote_granted(self, peer: str, message: VoteGranted) -> None:
        core = self._core
        if message.term != core.term or not core.is_candidate:
            return
        if peer in self._votes_seen and core.on(Guard.H1_ONE_VOTE_EACH):
            return
        self._votes_seen.add(peer)
        core.hand_to_library(peer, {"type": "response_vote", "term": message.term})

    def on_stale_term(self, _: str, message: StaleTerm) -> None:
        if message.term > self._core.term:
            self._core.follow_term(message.term)

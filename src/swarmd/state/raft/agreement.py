"""Do the voters' states agree? Their digests at the same entries of the log are compared.

Every voter takes the digest of its state after each entry whose index is a multiple of one
number. The leader tells its own; who holds another one at the same entry has applied the log
otherwise, or its memory is at fault, and stops loudly rather than go on with a state of its own.
Whoever lags compares once it has got there.

A follower also answers, so that the leader knows who agrees: the voters are changed only while
the living ones do. Answers are about the last digest that the leader knows, in whatever term it
was taken; it is told again with the heartbeats until it is answered. So a log in which nobody
writes holds nothing up, nor does one that is shorter than a digest: an epoch begins with a state
that a majority signed. Who knows no digest of its own there, because it was started since,
answers as well; it is compared at the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from swarmd.base.errors import Diverged
from swarmd.state.raft.digests import first_difference
from swarmd.state.raft.guards import Guard
from swarmd.state.raft.wire import DigestPassed, StateDigest

if TYPE_CHECKING:
    from swarmd.state.raft.hardened import HardenedRaft

# Digests that are kept, one's own and the leader's each, until the other one is known.
_KEPT_MAX: Final = 64
# Who passed within so many entries, and what lies between two digests, agrees. Twice what a
# voter may lack that keeps up (`seat_machine`), so that nobody holds a change up by being slow.
_LATELY_ENTRIES: Final = 2_000

T = TypeVar("T")


class Agreement:
    """One voter's digests, and what the leader said of its own."""

    def __init__(self, core: HardenedRaft) -> None:
        self._core = core
        self._own: dict[int, bytes] = {}
        self._told: dict[int, tuple[str, StateDigest]] = {}
        # A leader's knowledge: the last entry at which each peer passed, and when it was told.
        # What a peer once passed stays true when the term ends.
        self._passed: dict[str, int] = {}
        self._told_at: dict[str, float] = {}
        self._latest = 0  # The entry of the last digest of one's own.

    def agrees(self, peer: str) -> bool:
        """On the leader: has `peer` passed lately, if there was anything to pass?"""
        passed = self._passed.get(peer, 0)
        lately = self._latest - _LATELY_ENTRIES - self._core.config.digest_entries
        return passed >= lately and (passed > 0 or self._latest == 0)

    def applied(self, index: int) -> None:
        """Entry `index` was just applied. Raises Diverged; then the node must stop."""
        core = self._core
        if index % core.config.digest_entries:
            return
        try:
            own = core.state.digest()
        except Diverged:
            if core.on(Guard.D2_SCRUB_STATE):
                raise
            return
        _keep(self._own, index, own)
        self._latest = index
        if not core.is_leader:
            self._compare(index)
            return
        for peer in core.peers:
            self._tell(peer)

    def heard(self, peer: str) -> None:
        """`peer` answers this leader: tell it again what it has not passed although it could."""
        if self._passed.get(peer, 0) >= self._latest:
            return
        core = self._core
        due = self._told_at.get(peer, float("-inf")) + core.config.heartbeat_s
        if core.now >= due and core.sender.match[peer] >= self._latest:
            self._tell(peer)

    def _tell(self, peer: str) -> None:
        core = self._core
        self._told_at[peer] = core.now
        core.put(peer, StateDigest(core.term, self._latest, self._own[self._latest]))

    def on_digest_passed(self, peer: str, message: DigestPassed) -> None:
        core = self._core
        if message.term == core.term and core.is_leader and message.index <= self._latest:
            self._passed[peer] = max(message.index, self._passed.get(peer, 0))

    def on_state_digest(self, peer: str, message: StateDigest) -> None:
        """Raises Diverged; then the node must stop."""
        core = self._core
        if message.term == core.term and core.leader == peer:
            _keep(self._told, message.index, (peer, message))
            self._compare(message.index)

    def _compare(self, index: int) -> None:
        core, told = self._core, self._told.get(index)
        if told is None or index > core.applied_index:
            return
        del self._told[index]
        peer, message = told
        own, theirs = self._own.get(index), message.digest
        if own is not None and own != theirs and core.on(Guard.D1_COMPARE_DIGESTS):
            raise Diverged(
                f"{first_difference(own, theirs)} after entry {index} of the log is not what the"
                f" leader {peer} holds: stop, compare the voters, and start this one anew"
            )
        core.put(peer, DigestPassed(message.term, index))


def _keep(digests: dict[int, T], index: int, digest: T) -> None:
    digests[index] = digest
    while len(digests) > _KEPT_MAX:
        del digests[next(iter(digests))]

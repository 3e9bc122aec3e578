"""Do the voters' states agree? Their digests at the same entries of the log are compared.

Every voter takes the digest of its state after each entry whose index is a multiple of one
number. The leader tells its own; who holds another one at the same entry has applied the log
otherwise, or its memory is at fault, and stops loudly rather than go on with a state of its own.
Whoever lags compares once it has got there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from swarmd.base.errors import Diverged
from swarmd.state.raft.digests import first_difference
from swarmd.state.raft.guards import Guard
from swarmd.state.raft.wire import StateDigest

if TYPE_CHECKING:
    from swarmd.state.raft.hardened import HardenedRaft

# Digests that are kept, one's own and the leader's each, until the other one is known.
_KEPT_MAX: Final = 64

T = TypeVar("T")


class Agreement:
    """One voter's digests, and what the leader said of its own."""

    def __init__(self, core: HardenedRaft) -> None:
        self._core = core
        self._own: dict[int, bytes] = {}
        self._told: dict[int, tuple[str, bytes]] = {}

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
        if own is None:
            return
        _keep(self._own, index, own)
        if core.is_leader:
            for peer in core.peers:
                core.put(peer, StateDigest(core.term, index, own))
        else:
            self._compare(index)

    def on_state_digest(self, peer: str, message: StateDigest) -> None:
        """Raises Diverged; then the node must stop."""
        core = self._core
        if message.term == core.term and core.leader == peer:
            _keep(self._told, message.index, (peer, message.digest))
            self._compare(message.index)

    def _compare(self, index: int) -> None:
        own, told = self._own.get(index), self._told.get(index)
        if own is None or told is None:
            return
        del self._told[index]
        peer, theirs = told
        if own != theirs and self._core.on(Guard.D1_COMPARE_DIGESTS):
            raise Diverged(
                f"{first_difference(own, theirs)} after entry {index} of the log is not what the"
                f" leader {peer} holds: stop, compare the voters, and start this one anew"
            )


def _keep(digests: dict[int, T], index: int, digest: T) -> None:
    digests[index] = digest
    while len(digests) > _KEPT_MAX:
        del digests[next(iter(digests))]

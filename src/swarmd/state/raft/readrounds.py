"""Linearizable reads at a leader (Ongaro, *Consensus*, section 6.4): rounds that prove its office.

A read waits for a round of acknowledgements begun after it, for the first entry of the leader's
term, and until the state holds all that was committed when it was asked. Reads of one step share
a round, which the `tick` that ends the step sends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarmd.state.raft.guards import Guard

if TYPE_CHECKING:
    from swarmd.state.raft.hardened import HardenedRaft


@dataclass(frozen=True, slots=True)
class _Read:
    tag: int
    round: int
    index: int


class ReadRounds:
    """Those of one leader. `done` collects (tag, ok)."""

    def __init__(self, core: HardenedRaft) -> None:
        self._core = core
        self.done: list[tuple[int, bool]] = []
        self._reads: list[_Read] = []
        self._asked = False

    def ask(self, tag: int) -> None:
        """Ask to read linearizably; (tag, ok) comes out of `done`."""
        core = self._core
        if not core.is_leader or len(self._reads) >= core.config.proposals_max:
            self.done.append((tag, False))
            return
        index = core.commit_index
        if core.on(Guard.R2_READ_OWN_TERM):
            index = max(index, core.noop_index)
        if not self._asked:
            self._asked = True
            core.sender.round += 1
        self._reads.append(_Read(tag, core.sender.round, index))

    def answer(self) -> None:
        """Answer those whose round is proven; whoever asks from now on needs another round."""
        self._asked = False
        if not self._reads:
            return
        core = self._core
        acked = [*core.sender.acked_round.values(), core.sender.round]
        acked.sort(reverse=True)
        proven = acked[core.majority - 1]
        kept: list[_Read] = []
        for read in self._reads:
            confirmed = read.round <= proven or not core.on(Guard.R1_READ_ROUND)
            if confirmed and core.applied_index >= read.index:
                self.done.append((read.tag, True))
            else:
                kept.append(read)
        self._reads = kept

    def resigned(self) -> None:
        self.done += [(read.tag, False) for read in self._reads]
        self._reads.clear()

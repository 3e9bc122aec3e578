"""What callers propose to a leader: appended in rounds, and answered once it is applied.

A round costs a sync, messages and their answers whatever it carries. So while as many rounds as
may be are under way, what is proposed waits and goes together with the next, as a sync serves
all that arrived during the last. And since callers who wait for an answer come back soon after
it, the next round waits a little for as many proposals as there were callers: those that the last
one carried, and those that were waiting when it ended. It waits from the commit on, for up to
`WAIT_SHARE` times as long as the last one took and no longer than `raft.gather_s`. Callers that
pause between two writes do not come: each time that too many are missing in the end, twice as
many rounds go by that wait for a little only, until it is tried again. A lone caller never
waits, for it is the only one there; nor does who comes later than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Final

from swarmd.base.limits import ENTRY_BYTES_MAX
from swarmd.state.raft.replication import REGULAR

if TYPE_CHECKING:
    from swarmd.state.raft.hardened import HardenedRaft

# A round waits for so many times as long as the last one took; or little, where nobody comes.
WAIT_SHARE: Final = 2.5
LITTLE_SHARE: Final = 0.5
# What part of the callers must have come for a wait to have been worth it.
_MOST: Final = 0.75
# Each wait in vain doubles how many rounds are spared one after it, up to two to this power.
_IN_VAIN_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a proposal. `code` is None exactly when it was applied here."""

    tag: int
    result: Any
    code: str | None


class Proposals:
    """Those of one leader. `answers` collects what became of them."""

    def __init__(self, core: HardenedRaft) -> None:
        self._core = core
        self.answers: list[Answer] = []
        self._held: list[tuple[bytes, int]] = []  # Command and tag; not appended yet.
        self._waiting: dict[int, int] = {}  # Log index -> tag.
        self._rounds: list[int] = []  # The last index of each round under way.
        self._last_count = 0  # Proposals that the last round carried.
        self._expected = 0  # With those that waited when it ended: how many callers there are.
        self._last_began = 0.0
        self._gather_until = 0.0
        self._gathers = False  # What is held waits for others.
        self._in_vain = 0  # Waits in a row that were.
        self._spared = 0  # Rounds left that wait for little only.

    @property
    def next_wake(self) -> float:
        """When what waits for others to join it goes without them."""
        gathers = self._held and not self._rounds
        return self._gather_until if gathers else inf

    def propose(self, command: bytes, tag: int) -> None:
        """Take a command as leader for the next round; an `Answer` with `tag` follows."""
        core = self._core
        if not core.is_leader:
            self.answers.append(Answer(tag, None, "not_leader"))
        elif core.transfers.blocks_proposals:
            self.answers.append(Answer(tag, None, "handing_over"))
        elif len(command) > ENTRY_BYTES_MAX:
            self.answers.append(Answer(tag, None, "too_large"))
        elif len(self._waiting) + len(self._held) >= core.config.proposals_max:
            self.answers.append(Answer(tag, None, "busy"))
        else:
            self._held.append((command, tag))

    def begin_round(self) -> None:
        """Append all that was proposed, if it is time; see the module.

        Before the office is handed over what was taken still goes.
        """
        self._end_rounds()
        if not self._held or (self._must_wait() and not self._core.transfers.blocks_proposals):
            return
        if self._gathers and not self._core.transfers.blocks_proposals:
            self._learn()
        self._gathers = False
        core, journal = self._core, self._core.journal
        for command, tag in self._held:
            index = journal.last_index + 1
            journal.add(REGULAR + command, index, core.term)
            self._waiting[index] = tag
        self._rounds.append(journal.last_index)
        self._last_count, self._last_began = len(self._held), core.now
        self._held.clear()

    def _end_rounds(self) -> None:
        """Forget the rounds that are committed."""
        core, config = self._core, self._core.config
        if not self._rounds or self._rounds[0] > core.commit_index:
            return
        self._rounds = [last for last in self._rounds if last > core.commit_index]
        self._expected = self._last_count + len(self._held)
        took_s = core.now - self._last_began
        share = WAIT_SHARE if self._spared == 0 else LITTLE_SHARE
        self._gather_until = core.now + min(config.gather_s, share * took_s)

    def _learn(self) -> None:
        """A round that waited for others is about to go: did they come?"""
        if self._spared:
            self._spared -= 1
        elif len(self._held) >= _MOST * self._expected:
            self._in_vain = 0
        else:
            self._in_vain = min(self._in_vain + 1, _IN_VAIN_MAX)
            self._spared = 2**self._in_vain

    def _must_wait(self) -> bool:
        """For a round under way to end, or for others to join."""
        if self._rounds:
            return len(self._rounds) >= self._core.config.rounds_max
        missing = len(self._held) < self._expected and self._core.now < self._gather_until
        self._gathers = self._gathers or missing
        return missing

    def applied(self, index: int, result: Any) -> None:
        """The entry at `index` was applied; maybe it was proposed here."""
        tag = self._waiting.pop(index, None)
        if tag is not None:
            self.answers.append(Answer(tag, result, None))

    def resigned(self) -> None:
        """Out of office: what was appended may or may not commit under the next leader."""
        self.answers += [Answer(tag, None, "leader_changed") for tag in self._waiting.values()]
        self.answers += [Answer(tag, None, "not_leader") for _, tag in self._held]
        self._held.clear()
        self._waiting.clear()
        self._rounds.clear()
        self._gathers = False
        self._last_count = self._expected = self._in_vain = self._spared = 0

"""What callers propose to a leader: appended in rounds, and answered once it is applied.

A round costs a sync, messages and their answers whatever it carries. So while as many rounds as
may be are under way, what is proposed waits and goes together with the next, as a sync serves
all that arrived during the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swarmd.base.limits import ENTRY_BYTES_MAX
from swarmd.state.raft.replication import REGULAR

if TYPE_CHECKING:
    from swarmd.state.raft.hardened import HardenedRaft


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
        """Append all that was proposed, if fewer than `rounds_max` rounds are under way.

        Before the office is handed over what was taken still goes.
        """
        core = self._core
        self._rounds = [last for last in self._rounds if last > core.commit_index]
        full = len(self._rounds) >= core.config.rounds_max and not core.transfers.blocks_proposals
        if full or not self._held:
            return
        journal = core.journal
        for command, tag in self._held:
            index = journal.last_index + 1
            journal.add(REGULAR + command, index, core.term)
            self._waiting[index] = tag
        self._held.clear()
        self._rounds.append(journal.last_index)

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

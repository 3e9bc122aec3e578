"""Watches: the changes of keys under a prefix, from a revision on, for ever, on any node.

Rules:
- A watch knows one number: the revision up to which everything was told. What follows is read
  from the history in the replicated state, which is the same on every voter, so a watch goes
  on where it was after any change of voter, coordinator or epoch, with nothing lost or twice.
- A voter reads its own copy. Any other node asks a voter, which answers as soon as there is
  something, or after a while with a mark: nothing happened up to here.
- Changes are told by whole revisions. An answer may end within one; the asker then asks for
  the rest, from whichever voter, and tells nothing of it before it is whole.
- A voter that has no leader may be cut off: it ends what it was asked, so that the asker turns
  to another one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

import msgspec
import trio

from swarmd.base.errors import BadRequest, Busy, Conflict, Moved, RemoteError, Unavailable
from swarmd.base.ids import NodeId
from swarmd.base.limits import KIB, LEASE_KEYS_MAX
from swarmd.base.pace import pause_ends
from swarmd.base.rng import Rng
from swarmd.state.raft import messages as m
from swarmd.state.raft.caller import Caller
from swarmd.state.raft.keeper import Keeper
from swarmd.state.raft.messages import Change
from swarmd.state.raft.pipe import RETRY_MIN_S
from swarmd.state.raft.reads import Reads
from swarmd.state.raft.replica import Replica

WATCHES_MAX: Final = 1_000
POLLS_MAX: Final = 1_000
# A mark follows after this time without changes.
MARK_S: Final = 3.0
# About what is told at a time; a revision larger than that is told whole.
TURN_CHANGES: Final = 1_000
TURN_BYTES: Final = 64 * KIB
_START_TIMEOUT_S: Final = 5.0
_ANSWER_TIMEOUT_S: Final = 2.0
_RETRY_MAX_S: Final = 1.0
_CHANGE_BYTES: Final = 32
# No revision has more changes than a lease has keys.
_PENDING_MAX: Final = LEASE_KEYS_MAX + TURN_CHANGES


class _Place:
    """How far one watch has come."""

    __slots__ = ("pending", "prefix", "revision", "voter")

    def __init__(self, prefix: bytes, revision: int) -> None:
        self.prefix = prefix
        self.revision = revision  # The first that was not told.
        self.pending: list[Change] = []  # What is known of it, if an answer ended within.
        self.voter: NodeId | None = None


class Watches:
    """The watches of this node, and its answers to those of others."""

    def __init__(self, keeper: Keeper, caller: Caller, reads: Reads, rng: Rng) -> None:
        self._keeper = keeper
        self._caller = caller
        self._reads = reads
        self._rng = rng
        self._news = {root: trio.Event() for root in m.WATCHED_PREFIXES}
        self._newest = 0
        self._watches = 0
        self._polls = 0

    def state_moved(self) -> None:
        """The state took up more of the log: wake those who wait for what has changed.

        Not those who wait for other keys: what nodes follow all the time, such as who may ask,
        would cost a turn of the loop with every write.
        """
        replica = self._keeper.replica
        history = replica.state.history if replica is not None else None
        newest = history.newest if history is not None else 0
        if newest == self._newest:
            return
        if history is None or newest < self._newest or history.compacted > self._newest:
            self.wake()  # It is another one, or some of the news is not kept any more.
        else:
            for root in history.roots_since(self._newest + 1):
                self._wake(root)
        self._newest = newest

    def wake(self) -> None:
        """Have everybody look again."""
        for root in m.WATCHED_PREFIXES:
            self._wake(root)

    def _wake(self, root: bytes) -> None:
        self._news[root].set()
        self._news[root] = trio.Event()

    # ---- watching ------------------------------------------------------------------------

    async def watch(
        self, prefix: bytes, from_revision: int | None
    ) -> AsyncGenerator[tuple[list[Change], int], None]:
        """Pairs (changes, revision): everything up to `revision` is told with this pair.

        Go on elsewhere from `revision + 1`. A pair without changes is a mark; there is one
        every few seconds while the store's revision moves. Without `from_revision` the watch
        begins after everything acknowledged before, with a mark that says where that is.

        It waits while no voter can be reached, for ever; close it to end it.

        Raises:
            BadRequest: keys under `prefix` cannot be watched.
            Compacted: `from_revision` is no longer kept, or the reader was too slow.
            Busy: there are 1,000 watches already.
            NoQuorum: without `from_revision`, no majority answered in time.
        """
        if not prefix.startswith(m.WATCHED_PREFIXES):
            names = " or ".join(one.decode() for one in m.WATCHED_PREFIXES)
            raise BadRequest(f"only keys that begin with {names} can be watched")
        if self._watches >= WATCHES_MAX:
            raise Busy(f"this node has {WATCHES_MAX} watches already: ask another one")
        self._watches += 1
        try:
            if from_revision is None:
                from_revision = await self._reads.read_index(_START_TIMEOUT_S) + 1
                yield [], from_revision - 1
            place = _Place(prefix, from_revision)
            while True:
                changes, revision = await self._next(place)
                if revision >= place.revision:
                    place.revision = revision + 1
                    yield changes, revision
        finally:
            self._watches -= 1

    async def _next(self, place: _Place) -> tuple[list[Change], int]:
        delay_s = RETRY_MIN_S
        while True:
            await trio.lowlevel.checkpoint()
            replica = self._keeper.replica
            try:
                if replica is not None:
                    place.pending = []
                    until = pause_ends(MARK_S)
                    found = await self._news_here(replica, place.revision, place.prefix, until)
                    return _one_turn(*found)
                return await self._ask(place)
            except (Unavailable, RemoteError, Conflict):
                place.voter = self._caller.other_voter(place.voter)
            await trio.sleep(delay_s * self._rng.uniform(0.5, 1.0))
            delay_s = min(delay_s * 1.6, _RETRY_MAX_S)

    async def _news_here(
        self, replica: Replica, revision: int, prefix: bytes, until: float, *, led: bool = False
    ) -> tuple[list[Change], int]:
        """Changes from `revision` on as soon as there are any; at the time `until` there are none.

        Raises:
            Compacted: some of them are no longer kept.
            Moved: the epoch has ended here.
            Unavailable: with `led`, the voter has no leader.
        """
        root = prefix[: m.ROOT_BYTES]
        while True:
            if replica is not self._keeper.replica:
                raise Moved("the epoch has ended on this node")
            if led and replica.leader is None:
                raise Unavailable("this voter has no leader now")
            news, state = self._news[root], replica.state
            if state.revision >= revision:
                changes = state.history.since(revision, prefix)
                if changes:
                    return changes, state.revision
                revision = state.revision + 1  # The next look need not go through these again.
            left_s = until - trio.current_time()
            if left_s <= 0:
                return [], state.revision
            with trio.move_on_after(left_s):
                await news.wait()

    # ---- asking a voter ------------------------------------------------------------------

    async def _ask(self, place: _Place) -> tuple[list[Change], int]:
        voter = place.voter = place.voter or self._caller.other_voter(None)
        if voter is None:
            raise Unavailable("this node knows of no voter")
        ask = m.WatchAsk(place.prefix, place.revision, len(place.pending), int(MARK_S * 1_000))
        answer = await self._caller.ask_voter(voter, ask, MARK_S + _ANSWER_TIMEOUT_S)
        if not isinstance(answer, m.Watched) or not _follows(answer, place):
            raise RemoteError("not the changes that were asked for")
        changes = list(answer.changes)
        for position, size in answer.large:
            if not 0 <= position < len(changes):
                raise RemoteError("a large value of no change")
            one = changes[position]
            value = await self._caller.fetch_value(voter, one.key, one.revision, size)
            changes[position] = msgspec.structs.replace(one, value=value)
        known = place.pending + changes
        if len(known) > _PENDING_MAX:
            raise RemoteError("a revision with more changes than there can be")
        whole = [one for one in known if one.revision <= answer.revision]
        place.pending = known[len(whole) :]
        return whole, answer.revision

    # ---- answering -----------------------------------------------------------------------

    async def answer(self, peer: NodeId, ask: m.WatchAsk) -> m.Watched | None:
        """What a node without a copy asked for; None if this one has none either.

        Where nothing changes all that a peer asked is answered at one moment, so that the answers
        share frames and wake-ups; of different peers at different ones.

        Raises what `_news_here` does, and Busy, BadRequest.
        """
        replica = self._keeper.replica
        if replica is None:
            return None
        if self._polls >= POLLS_MAX:
            raise Busy(f"this voter serves {POLLS_MAX} watches already: ask another one")
        if not ask.prefix.startswith(m.WATCHED_PREFIXES):
            raise BadRequest("keys under this prefix cannot be watched")
        wait_s = min(max(ask.wait_ms, 0) / 1_000, MARK_S)
        shift_s = int.from_bytes(peer[:2], "big") / 2**16 * MARK_S
        until = pause_ends(wait_s, MARK_S, shift_s)
        self._polls += 1
        try:
            changes, revision = await self._news_here(
                replica, ask.revision, ask.prefix, until, led=True
            )
        finally:
            self._polls -= 1
        begun = sum(one.revision == ask.revision for one in changes[: max(ask.skip, 0)])
        return _fitting(changes[begun:], revision)


def _one_turn(changes: list[Change], revision: int) -> tuple[list[Change], int]:
    """The first of `changes`, by whole revisions, and how far they reach."""
    size = 0
    for position, change in enumerate(changes):
        enough = position >= TURN_CHANGES or size >= TURN_BYTES
        if enough and change.revision != changes[position - 1].revision:
            return changes[:position], change.revision - 1
        size += _bytes_of(change)
    return changes, revision


def _fitting(changes: Sequence[Change], revision: int) -> m.Watched:
    """As many of `changes` as fit one answer; a large value comes alone, and later."""
    fitting: list[Change] = []
    size = 0
    for position, change in enumerate(changes):
        size += _bytes_of(change)
        if size > m.WHOLE_BYTES_MAX and not fitting:
            following = changes[position + 1 : position + 2]
            reached = following[0].revision - 1 if following else revision
            bare = msgspec.structs.replace(change, value=b"")
            return m.Watched((bare,), reached, ((0, len(change.value or b"")),))
        if size > m.WHOLE_BYTES_MAX or position >= TURN_CHANGES:
            return m.Watched(tuple(fitting), change.revision - 1)
        fitting.append(change)
    return m.Watched(tuple(fitting), revision)


def _follows(answer: m.Watched, place: _Place) -> bool:
    """Do the changes told belong where the watch is, in order?"""
    last: Any = place.revision
    for change in answer.changes:
        if change.revision < last or not change.key.startswith(place.prefix):
            return False
        last = change.revision
    # An answer reaches up to its last change, or up to the revision before that one.
    return not answer.changes or answer.revision >= last - 1


def _bytes_of(change: Change) -> int:
    return len(change.key) + len(change.value or b"") + _CHANGE_BYTES

"""Who must hold what the records name: voters, also after the voters have changed.

A blob was placed on a majority of those who voted then. So whoever votes now looks through all
references whenever the voters have changed, fetches what is missing here, and looks again a
little later, for records that were on their way during the change, and from then on now and
then. A node that leaves first gives the voters whatever they lack and it has: until a majority
of them lacks nothing that this node could give, it is not free to go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence, Set
from typing import Any, Final, Protocol

import trio

from swarmd.base.errors import RemoteError, SwarmError, Unavailable, WouldLoseData
from swarmd.base.ids import NodeId, short
from swarmd.base.pace import pause
from swarmd.observe.log import get_logger
from swarmd.state.blobs.messages import MISSING_MAX, Missing, MissingAsk

_log = get_logger("blobs")
_LOOK_S: Final = 1.0
# A record that names a blob placed before the change of voters is committed well within this.
_AFTERWARDS_S: Final = 60.0
_REPAIR_S: Final = 600.0
_ROUND_PAUSE_S: Final = 0.5

# Every blob that a record names, as of now; None if this node holds no copy of the records.
Referenced = Callable[[], Awaitable[Set[bytes] | None]]


class Held(Protocol):
    """What custody asks of the blobs of this node."""

    @property
    def count(self) -> int: ...

    def has(self, blob_hash: bytes) -> bool: ...

    async def repair(self, hashes: Set[bytes]) -> int: ...

    async def give(self, peer: NodeId, blob_hash: bytes) -> None: ...

    async def ask(self, peer: NodeId, message: Any) -> Any: ...


class Custody:
    """One node's share. Made by `open_blobs`."""

    def __init__(
        self,
        me: NodeId,
        blobs: Held,
        *,
        voters: Callable[[], Sequence[NodeId]],
        referenced: Referenced,
    ) -> None:
        self._me = me
        self._blobs = blobs
        self._voters = voters
        self._referenced = referenced
        self._walking = trio.Lock()

    async def run(self) -> None:
        """On a voter: repair after each change of the voters and now and then; never ends."""
        settled: tuple[NodeId, ...] = ()
        due_at = 0.0
        while True:
            await pause(_LOOK_S)
            voters = tuple(self._voters())
            if self._me not in voters:
                settled = ()
                continue
            if voters == settled and trio.current_time() < due_at:
                continue
            try:
                missing = await self._blobs.repair(await self._known())
            except SwarmError as error:
                _log.debug("references are not known now", error=error.message)
                continue
            soon = missing > 0 or voters != settled
            due_at = trio.current_time() + (_AFTERWARDS_S if soon else _REPAIR_S)
            settled = voters

    async def missing(self, after: bytes) -> Missing:
        """A page of what this voter lacks, by hash. Raises Unavailable: it cannot know now."""
        lacking = sorted(
            blob_hash
            for blob_hash in await self._known()
            if blob_hash > after and not self._blobs.has(blob_hash)
        )
        return Missing(tuple(lacking[:MISSING_MAX]), len(lacking) > MISSING_MAX)

    async def _known(self) -> Set[bytes]:
        async with self._walking:
            hashes = await self._referenced()
        if hashes is None:
            raise Unavailable("this node holds no copy of the strong store")
        return hashes

    async def hand_over(self, timeout_s: float) -> None:
        """Return once a majority of the other voters needs nothing that is held here.

        Raises:
            WouldLoseData: not within `timeout_s`; what was copied by then stays copied.
        """
        if not self._blobs.count:
            return
        heirs: list[NodeId] = []
        content: list[NodeId] = []
        with trio.move_on_after(timeout_s):
            while True:
                heirs = [voter for voter in self._voters() if voter != self._me]
                content = await self._give_all(heirs)
                if heirs and len(content) > len(heirs) // 2:
                    return
                await trio.sleep(_ROUND_PAUSE_S)
        raise WouldLoseData(
            f"{len(content)} of {len(heirs)} other voters were seen to hold the large values that "
            f"this node holds, within {timeout_s:g} s; try again when more of them are up"
        )

    async def _give_all(self, heirs: Sequence[NodeId]) -> list[NodeId]:
        """Bring everybody what they lack; those who lack nothing now that is held here."""
        content: list[NodeId] = []

        async def give(heir: NodeId) -> None:
            try:
                await self._give_missing(heir)
                content.append(heir)
            except SwarmError as error:
                _log.info("blobs not handed over", peer=short(heir), error=error.message)

        async with trio.open_nursery() as nursery:
            for heir in heirs:
                nursery.start_soon(give, heir)
        return content

    async def _give_missing(self, heir: NodeId) -> None:
        after, more = b"", True
        while more:
            answer = await self._blobs.ask(heir, MissingAsk(after))
            if not isinstance(answer, Missing) or (answer.more and not answer.hashes):
                raise RemoteError("not what a voter lacks")
            for blob_hash in answer.hashes:
                if self._blobs.has(blob_hash):
                    await self._blobs.give(heir, blob_hash)
            more = answer.more
            after = max(answer.hashes) if answer.hashes else after

"""Care for users' blobs: full copies, undamaged files. What to do is decided by `placing.py`.

Every holder looks, whenever the members or the pins have changed and now and then, who else holds
what is pinned here; pins are told to each other on the way. Of the living holders of a blob with
too few copies one acts. What is pinned here and is not here, because it was damaged, is fetched.
And slowly, in a round without end, every blob on the disk is read and held against its hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Final

import trio

from swarmd.base.errors import SwarmError, WouldLoseData
from swarmd.base.ids import NodeId, short
from swarmd.base.pace import pause, pause_ends
from swarmd.observe.log import get_logger
from swarmd.state.blobs.bulk import Bulk
from swarmd.state.blobs.messages import ASKED_MAX, PinnedBlob
from swarmd.state.blobs.placing import Repair, due_for_scrub, handover_of, repair_of

_log = get_logger("blobs")
_LOOK_S: Final = 2.0
_ANYWAY_S: Final = 60.0
# After a round in which something could not be done, doubled each time.
_AGAIN_S: Final = 2.5
_PAUSE_S: Final = 0.2
_PARTIALS_S: Final = 3_600.0
_IDLE_S: Final = 60.0
_HAND_OVER_PAUSE_S: Final = 0.5


class Mending:
    """One node's share. Made by `service.open_blobs`."""

    def __init__(
        self, bulk: Bulk, alive: Callable[[], Sequence[NodeId]], scrub_bytes_per_s: int
    ) -> None:
        self._bulk = bulk
        self._holding = bulk.holding
        self._alive = alive
        self._scrub_bytes_per_s = scrub_bytes_per_s

    async def run(self) -> None:
        """Keep copies full; never ends."""
        seen: frozenset[NodeId] = frozenset()
        due_at, failures = 0.0, 0
        while True:
            with trio.move_on_at(pause_ends(_LOOK_S)):
                await self._holding.changed.wait()
            alive = frozenset(self._alive())
            changed = self._holding.changed.is_set() or alive != seen
            if not changed and trio.current_time() < due_at:
                continue
            self._holding.changed = trio.Event()
            done = await self._round()
            failures = 0 if done else failures + 1
            pause_s = _ANYWAY_S if done else min(_ANYWAY_S, _AGAIN_S * 2**failures)
            seen, due_at = alive, trio.current_time() + pause_s
            await trio.sleep(_PAUSE_S)

    async def _round(self) -> bool:
        """Look at all that is pinned here; False: not all is as it should be."""
        fine = True
        hashes = self._holding.shelf.hashes
        for start in range(0, len(hashes), ASKED_MAX):
            page = hashes[start : start + ASKED_MAX]
            told, heard = await self._bulk.ask_held(page)
            fine = fine and heard.issuperset(self._alive())
            for blob_hash in page:
                try:
                    fine = await self._mend(blob_hash, told.get(blob_hash, {})) and fine
                except SwarmError as error:
                    fine = False
                    _log.warning("blob not mended", blob=short(blob_hash), why=error.message)
        return fine

    async def _mend(self, blob_hash: bytes, told: dict[NodeId, PinnedBlob]) -> bool:
        """One blob; False: copies of it are missing still."""
        mine = self._holding.shelf.blob(blob_hash)
        if mine is None:
            return True  # Evicted meanwhile.
        pins = [pin for blob in told.values() for pin in blob.pins]
        await self._holding.note(PinnedBlob(blob_hash, mine.size, tuple(pins)))
        copies = self._holding.copies(blob_hash)
        if not copies:
            return True
        if self._holding.folder.size_of(blob_hash) is None:
            await self._holding.ensure(blob_hash, mine.size)
            _log.info("blob mended", blob=short(blob_hash))
            return False  # Look again, as one that holds it.
        alive = sorted({*self._alive(), self._bulk.me})
        repair = repair_of(
            blob_hash, copies, me=self._bulk.me, holders={*told, self._bulk.me}, alive=alive
        )
        return repair is None or await self._do(repair, mine.size)

    async def _do(self, repair: Repair, size: int) -> bool:
        """Have nodes take copies until none is missing; False: one is."""
        blob = PinnedBlob(repair.hash, size, self._holding.shelf.pins(repair.hash))
        missing = repair.missing
        for taker in repair.takers:
            if missing and await self._give(taker, blob):
                missing -= 1
        return not missing

    async def _give(self, taker: NodeId, blob: PinnedBlob) -> bool:
        try:
            async with aclosing(self._bulk.have_taken(taker, blob)) as steps:
                async for _ in steps:
                    pass
        except SwarmError as error:
            _log.info("copy not made", blob=short(blob.hash), at=short(taker), why=error.message)
            return False
        _log.info("copy made", blob=short(blob.hash), at=short(taker))
        return True

    async def hand_over(self, timeout_s: float) -> None:
        """Have the others hold what is pinned here without this node.

        Raises:
            WouldLoseData: not within `timeout_s`; what was copied by then stays copied.
        """
        left = [one for one in self._holding.shelf.hashes if self._is_wanted(one)]
        with trio.move_on_after(timeout_s):
            while left:
                left = await self._hand_over(left)
                if left:
                    await trio.sleep(_HAND_OVER_PAUSE_S)
        if left:
            raise WouldLoseData(
                f"{len(left)} pinned blobs of this node have too few copies on other nodes, and "
                f"could not be copied within {timeout_s:g} s; try again: what was copied is there"
            )

    def _is_wanted(self, blob_hash: bytes) -> bool:
        held = self._holding.folder.size_of(blob_hash) is not None
        return held and self._holding.is_pinned(blob_hash)

    async def _hand_over(self, hashes: Sequence[bytes]) -> list[bytes]:
        """One round: which of these still lack copies elsewhere."""
        left: list[bytes] = []
        for start in range(0, len(hashes), ASKED_MAX):
            page = hashes[start : start + ASKED_MAX]
            told, _ = await self._bulk.ask_held(page)
            for blob_hash in page:
                size = self._holding.folder.size_of(blob_hash)
                task = handover_of(
                    blob_hash,
                    self._holding.copies(blob_hash),
                    me=self._bulk.me,
                    holders=set(told.get(blob_hash, ())),
                    alive=sorted({*self._alive(), self._bulk.me}),
                )
                if size is not None and task is not None and not await self._do(task, size):
                    left.append(blob_hash)
        return left

    # ---- scrubbing -----------------------------------------------------------------------

    async def scrub(self) -> None:
        """Look through all blobs, one after the other, slowly; never ends."""
        after = b""
        while self._scrub_bytes_per_s:
            hashes = [blob_hash for blob_hash, _, _ in self._holding.folder.by_use()]
            chosen = due_for_scrub(hashes, after)
            if chosen is None or chosen <= after:
                await pause(_IDLE_S)  # A round is over, or there is nothing.
            if chosen is None:
                continue
            after = chosen
            try:
                await self._holding.check(chosen, self._pause)
            except SwarmError as error:
                _log.debug("scrubbed", blob=short(chosen), why=error.message)

    async def _pause(self, count: int) -> None:
        await trio.sleep(max(count, 1) / self._scrub_bytes_per_s)

    async def sweep(self) -> None:
        """Delete what nobody goes on with; never ends."""
        while True:
            await trio.sleep(_PARTIALS_S)
            await self._holding.drop_old_partials()

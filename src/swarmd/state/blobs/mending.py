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

from swarmd.base.errors import SwarmError
from swarmd.base.ids import NodeId, short
from swarmd.observe.log import get_logger
from swarmd.state.blobs.bulk import Bulk
from swarmd.state.blobs.messages import ASKED_MAX, PinnedBlob
from swarmd.state.blobs.placing import due_for_scrub, repair_of

_log = get_logger("blobs")
_LOOK_S: Final = 2.0
_ANYWAY_S: Final = 60.0
_AGAIN_S: Final = 5.0
_PARTIALS_S: Final = 3_600.0
_IDLE_S: Final = 60.0


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
        due_at = 0.0
        while True:
            with trio.move_on_after(_LOOK_S):
                await self._holding.changed.wait()
            alive = frozenset(self._alive())
            changed = self._holding.changed.is_set() or alive != seen
            if not changed and trio.current_time() < due_at:
                continue
            self._holding.changed = trio.Event()
            done = await self._round()
            seen = alive if done else frozenset()
            due_at = trio.current_time() + (_ANYWAY_S if done else _AGAIN_S)
            await trio.sleep(0 if done else _AGAIN_S)

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
        if repair is None:
            return True
        blob = PinnedBlob(blob_hash, mine.size, self._holding.shelf.pins(blob_hash))
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

    # ---- scrubbing -----------------------------------------------------------------------

    async def scrub(self) -> None:
        """Look through all blobs, one after the other, slowly; never ends."""
        after = b""
        while self._scrub_bytes_per_s:
            hashes = [blob_hash for blob_hash, _, _ in self._holding.folder.by_use()]
            chosen = due_for_scrub(hashes, after)
            if chosen is None or chosen <= after:
                await trio.sleep(_IDLE_S)  # A round is over, or there is nothing.
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

"""Events on their way to the disk: one stream of this node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from swarmd.audit.chain import Note, Sealed, Writer
from swarmd.audit.shelf import Shelf
from swarmd.base.clock import Clock
from swarmd.base.errors import DiskFault
from swarmd.observe.log import get_logger
from swarmd.observe.metrics import AUDIT_LOST, AUDIT_RECORDS

LOST_KIND: Final = "audit.lost"
_RETRY_S: Final = 1.0
# As many as the thread seals before it lets others have the interpreter.
_TAKEN_MAX: Final = 1_024

_log = get_logger("audit")


class Lane:
    """Takes events at once, and writes them a little later, many with one sync.

    Args:
        newest: the batch that the life goes on from, as far as it is known.
        linger_s: how long an event may wait for others to come with it.
        waiting_max: events beyond this many that wait are lost, and counted.
        written: told what is on the disk now.
    """

    def __init__(
        self,
        writer: Writer,
        newest: Sealed | None,
        shelf: Shelf,
        clock: Clock,
        store_ms: Callable[[], int],
        written: Callable[[list[Sealed]], None],
        *,
        linger_s: float,
        waiting_max: int,
    ) -> None:
        self.chain = writer.chain
        self.newest = newest
        self._writer = writer
        self._shelf = shelf
        self._clock = clock
        self._store_ms = store_ms
        self._written = written
        self._linger_s = linger_s
        self._waiting_max = waiting_max
        self._waiting: list[Note] = []
        self._sealed: list[Sealed] = []
        self._lost = 0
        self._wake = trio.Event()
        self._writing = trio.Lock()

    def add(self, note: Note) -> None:
        """Never waits; beyond the bound the event is lost."""
        waiting = self._waiting
        if len(waiting) >= self._waiting_max:
            self._lost += 1
            AUDIT_LOST.labels(self.chain.stream).inc()
            return
        waiting.append(note)
        if len(waiting) == 1:
            self._wake.set()

    async def run(self) -> None:
        """Write what comes, until cancelled. What comes during a write waits for others, too."""
        while True:
            await self._wake.wait()
            await trio.sleep(self._linger_s)
            self._wake = trio.Event()
            for _ in range(len(self._waiting) // _TAKEN_MAX + 1):
                await self._write_in_the_end()
            if self._waiting or self._lost:
                self._wake.set()

    async def _write_in_the_end(self) -> None:
        """One write, however often the disk refuses it."""
        trouble = False
        while True:
            try:
                await self.write_some()
            except DiskFault as error:
                if not trouble:
                    _log.error("audit records wait for the disk", why=error.message)
                trouble = True
                await trio.sleep(_RETRY_S)
                continue
            if trouble:
                _log.info("audit records are written again", stream=self.chain.stream)
            return

    async def write_some(self) -> None:
        """One write. Raises DiskFault: what was sealed stays, and is tried again as it is.

        Cancellation: nothing is lost; what a thread has begun is awaited.
        """
        async with self._writing:
            taken, lost = self._waiting[:_TAKEN_MAX], self._lost
            notes = [*taken, *self._note_of(lost)]
            if self._sealed:
                taken, lost, notes = [], 0, []  # First what was sealed before.
            elif not notes:
                return
            try:
                await self._shelf.run(self._write_file, notes, self._store_ms())
            finally:
                if self._sealed:  # Else the thread has not begun.
                    del self._waiting[: len(taken)]
                    self._lost -= lost
            batches, self._sealed = self._sealed, []
            self.newest = batches[-1]
            count = batches[-1].seal.last - batches[0].seal.first + 1
            AUDIT_RECORDS.labels(self.chain.stream).inc(count)
            self._written(batches)

    def _write_file(self, notes: list[Note], store_ms: int) -> None:
        """Seal and write. What was sealed is kept until it is written: no number comes twice."""
        if not self._sealed:
            self._sealed = self._writer.seal(notes, store_ms)
        self._shelf.append_file(self.chain, self._sealed)

    def _note_of(self, lost: int) -> list[Note]:
        if not lost:
            return []
        details = f"{lost} events are in no record: too many waited for the disk"
        return [Note(self._clock.wall_ms(), LOST_KIND, "", "", "lost", details)]

    async def flush(self) -> None:
        """Write what waits. Raises DiskFault."""
        while self._waiting or self._sealed or self._lost:
            await self.write_some()

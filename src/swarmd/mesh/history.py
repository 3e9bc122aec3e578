"""Showing the swarm's history over the join plane, and believing what is shown.

History is epochs, whose voters certify, and records of authority, which they certified. It proves
itself to whoever knows its beginning, whoever shows it: the genesis, or any later part of it.
Epochs come first, then records, both in pages; how many there will be, and the certificate of the
last record, was said before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from swarmd.base.errors import Busy, MalformedMessage, SwarmError, Untrusted
from swarmd.identity.authority import RECORDS_MAX, AuthorityState
from swarmd.identity.entries import RECORD_BYTES_MAX
from swarmd.identity.epochs import CHAIN_EPOCHS_MAX, Chain
from swarmd.identity.heads import verify_head
from swarmd.mesh.join_frames import FRAME_BYTES_MAX, STEP_TIMEOUT_S, Epochs, Frames, Records
from swarmd.mesh.trust import Trust
from swarmd.mesh.trust_spread import PAGE_BYTES_MAX, page

SETTLE_TIMEOUT_S: Final = STEP_TIMEOUT_S / 2
_PART_BYTES_EXTRA: Final = 8  # What msgpack adds to each.
assert PAGE_BYTES_MAX + RECORD_BYTES_MAX < FRAME_BYTES_MAX


class History:
    """What was verified of the swarm's history so far; `read` goes on with it.

    Args:
        state, chain: what is known and believed already. They are changed.
    """

    def __init__(self, frames: Frames, state: AuthorityState, chain: Chain) -> None:
        self.state = state
        self.chain = chain
        self._frames = frames

    async def read(self, epochs: int, height: int, certificate: bytes) -> None:
        """Read so many epochs, and records up to `height`.

        Raises:
            Untrusted: they do not verify, or the newest epoch's voters did not certify them.
            MalformedMessage: not what was announced.
        """
        await self._read_epochs(epochs)
        await self._read_records(height)
        if not height:
            return
        try:
            head = verify_head(certificate, self.chain)
        except SwarmError as error:
            raise Untrusted(f"its records are not certified: {error.message}") from error
        if (head.height, head.hash) != self.state.head:
            raise Untrusted("its records are not those that the voters certified")

    async def _read_records(self, height: int) -> None:
        state = self.state
        if not state.head[0] <= height <= RECORDS_MAX:
            raise MalformedMessage(f"it claims a history of {height} records")
        while state.head[0] < height:
            records = (await self._frames.expect(Records)).records
            if not records or len(records) > height - state.head[0]:
                raise MalformedMessage("its records do not add up")
            for raw in records:
                try:
                    state.replay(raw)
                except SwarmError as error:
                    raise Untrusted(f"its records do not verify: {error.message}") from error
            await trio.lowlevel.checkpoint()

    async def _read_epochs(self, count: int) -> None:
        if not 0 <= count <= CHAIN_EPOCHS_MAX:
            raise MalformedMessage(f"it claims {count} epochs")
        while count > 0:
            certificates = (await self._frames.expect(Epochs)).certificates
            if not certificates or len(certificates) > count:
                raise MalformedMessage("its epochs do not add up")
            count -= len(certificates)
            for certificate in certificates:
                try:
                    self.chain.extend(certificate)
                except SwarmError as error:
                    raise Untrusted(f"its epochs do not verify: {error.message}") from error
            await trio.lowlevel.checkpoint()


@dataclass(frozen=True, slots=True)
class News:
    """What somebody has not been shown: so many epochs, and the records up to `height`."""

    certificates: tuple[bytes, ...]
    height: int
    certificate: bytes

    @property
    def epochs(self) -> int:
        return len(self.certificates)


class Shower:
    """Shows one reader what it has not been shown.

    Args:
        height, epoch: what it knows: records up to a height, epochs up to a number.
    """

    def __init__(self, frames: Frames, trust: Trust, height: int = 0, epoch: int = 1) -> None:
        self._frames = frames
        self._trust = trust
        self._height = height
        self._epoch = epoch

    async def what_is_new(self) -> News:
        """To be announced, then shown. Raises Busy: the voters are changing."""
        trust = self._trust
        with trio.move_on_after(SETTLE_TIMEOUT_S):
            epochs = await trust.settled()
            certificates = epochs.certificates_from(self._epoch)
            self._epoch = epochs.head.number
            return News(certificates, trust.head[0], trust.certificate)
        raise Busy("the voters are changing just now")

    async def show(self, news: News) -> None:
        """Raises Unreachable: the reader is gone."""
        for some in _paged(news.certificates):
            await self._frames.send(Epochs(some))
        while self._height < news.height:
            records = page(self._trust, self._height).records[: news.height - self._height]
            await self._frames.send(Records(records))
            self._height += len(records)


def _paged(parts: Sequence[bytes]) -> Iterator[tuple[bytes, ...]]:
    """`parts` in order, in groups that each fit a frame."""
    group: list[bytes] = []
    size = 0
    for part in parts:
        if group and size + len(part) > PAGE_BYTES_MAX:
            yield tuple(group)
            group, size = [], 0
        group.append(part)
        size += len(part) + _PART_BYTES_EXTRA
    if group:
        yield tuple(group)

"""The audit folder as the tasks of a daemon use it: one thread at a time, records checked first."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final, Protocol, TypeVar

import trio

from swarmd.audit.chain import Broken, Place, Sealed, Writer, open_sealed, sign_floor
from swarmd.audit.config import AuditConfig
from swarmd.audit.machine import LIVES_MAX, Kept
from swarmd.audit.messages import HELD_MAX, PAGE_BYTES, SUM_BYTES, HeldLife
from swarmd.audit.records import (
    LIFE_BYTES,
    STREAMS,
    ChainId,
    Floor,
    Seal,
    Stream,
    decode_batch,
    decode_seal,
)
from swarmd.audit.store import GAPS_MAX, SEGMENT_BYTES, SEGMENTS_MAX, AuditFolder, Life, Segment
from swarmd.base.clock import Clock
from swarmd.base.errors import BadSignature, SwarmError
from swarmd.base.ids import NodeId, short
from swarmd.base.limits import MIB
from swarmd.identity.authority import Admission
from swarmd.identity.keys import SigningKey
from swarmd.observe.log import get_logger

_DAY_MS: Final = 86_400_000
# Whole lives go, too, before no more are copied.
assert SEGMENTS_MAX <= LIVES_MAX * 3 // 4
_log = get_logger("audit")
T = TypeVar("T")


class Trust(Protocol):
    """What this room asks of the authority log."""

    @property
    def swarm_id(self) -> bytes: ...
    def admission(self, node_id: NodeId) -> Admission | None: ...
    def admissions_by_id(self) -> dict[NodeId, Admission]: ...


class Shelf:
    """What this node holds. All that touches the disk waits for its turn."""

    def __init__(
        self, folder: AuditFolder, trust: Trust, key: SigningKey, config: AuditConfig, clock: Clock
    ) -> None:
        self.folder = folder
        self.me = NodeId(key.key_id)
        self.own_keys = {bytes(key.key_id): key.public}
        """This node's public key by its id."""
        self.trust = trust
        self._key = key
        self._config = config
        self._clock = clock
        self._turn = trio.CapacityLimiter(1)
        self._summed: tuple[int, bytes] = (-1, b"")  # The folder's version, and the sum then.

    async def run(self, call: Callable[..., T], *args: object) -> T:
        """`call` in a thread, when its turn comes. Cancelled or not, one that began is awaited."""
        return await trio.to_thread.run_sync(call, *args, limiter=self._turn)

    # ---- own records -------------------------------------------------------------------

    def new_writer(self, stream: Stream) -> Writer:
        """A new life of a stream, after the one on this disk that nothing goes on from yet.

        Only on a disk that was restored there are several; then it is the newest.
        """
        lives = [one for one in self.folder.lives_of(self.me, stream) if not one.unreadable]
        parents = {life.parent for life in lives}
        ends = [life for life in lives if life.chain.life not in parents]
        newest = max(ends, key=lambda one: (one.wall_ms, one.last), default=None)
        parent = Place(newest.chain.life, newest.last, newest.hash) if newest is not None else None
        return Writer(self._key, self.trust.swarm_id, stream, os.urandom(LIFE_BYTES), parent)

    async def newest_before(self, writer: Writer) -> Sealed | None:
        """The batch that a new life goes on from; None: there is none, or it cannot be read."""
        return await self.run(self._newest_before_file, writer)

    def _newest_before_file(self, writer: Writer) -> Sealed | None:
        if writer.parent is None:
            return None
        for raw in self.folder.read_file(writer.parent, writer.last - 1, 1):
            with contextlib.suppress(SwarmError):
                return open_sealed(raw, self.trust.swarm_id, self.own_keys)
        return None

    def append_file(self, chain: ChainId, batches: Sequence[Sealed]) -> None:
        """Raises DiskFault: nothing is kept of them."""
        self.folder.append_file(chain, batches, self._clock.wall_ms())

    async def goes_on(self, chain: ChainId, seal: Seal) -> bool:
        """Do the records of the life `chain` go on from what `seal` is for, as this disk tells?"""
        return await self.run(self._goes_on_file, chain, seal)

    def _goes_on_file(self, chain: ChainId, seal: Seal) -> bool:
        folder, end = self.folder, 0
        for _ in range(LIVES_MAX):
            life = folder.lives.get(chain)
            if chain == seal.chain:
                if seal.last > (end or (life.last if life is not None else 0)):
                    return False
                floor = folder.floors.get(chain)
                if floor is not None and floor[0].number >= seal.last:
                    return True
                return folder.hash_of_file(chain, seal.last) == seal.hash
            if life is None or not life.parent:
                return False
            end = life.begin - 1
            chain = ChainId(chain.node, chain.stream, life.parent)
        return False

    # ---- copies ------------------------------------------------------------------------

    async def held(
        self, after: ChainId | None = None, known_sum: bytes = b""
    ) -> tuple[tuple[HeldLife, ...], bool]:
        """A page of the lives that are held, in their order, and whether there are more.

        None, if `known_sum` is `sum` of them; where that is known already no thread is asked.
        """
        if known_sum and self._summed == (self.folder.version, known_sum):
            return (), False
        return await self.run(self._held_file, after, known_sum)

    async def sum(self) -> bytes:
        """The same where the same lives are held up to the same records; 16 bytes."""
        version, known = self._summed
        return known if version == self.folder.version else await self.run(self._sum_file)

    def _sum_file(self) -> bytes:
        version, known = self._summed
        if version == self.folder.version:
            return known
        state = blake2b(digest_size=SUM_BYTES)
        for life in self._shown():
            chain = life.chain
            state.update(chain.node + chain.stream.encode() + chain.life)
            state.update(life.last.to_bytes(8, "big") + life.hash)
        self._summed = (self.folder.version, state.digest())
        return self._summed[1]

    def _shown(self) -> list[Life]:
        """What can be copied from here, in order."""
        lives = [one for one in self.folder.lives.values() if one.segments and not one.unreadable]
        return sorted(lives, key=lambda one: one.chain)

    def _held_file(
        self, after: ChainId | None, known_sum: bytes
    ) -> tuple[tuple[HeldLife, ...], bool]:
        if known_sum and known_sum == self._sum_file():
            return (), False
        lives = [one for one in self._shown() if after is None or one.chain > after]
        found = tuple(
            HeldLife(
                one.chain,
                one.parent,
                one.begin,
                one.first,
                one.last,
                one.hash,
                max(0, one.segments[-1].written_ms),
            )
            for one in lives[:HELD_MAX]
        )
        return found, len(lives) > HELD_MAX

    def kept(self) -> dict[ChainId, Kept]:
        """Where each life ends here."""
        return {
            chain: Kept(life.last, life.hash) for chain, life in list(self.folder.lives.items())
        }

    def goes_on_here(self, raw: bytes) -> bool:
        """Is a batch the first of a life that goes on from the end of one that is held here?

        Its signature is not looked at.
        """
        try:
            seal = decode_seal(decode_batch(raw).seal)[1]
        except SwarmError:
            return False
        if seal.first != seal.begin:
            return False
        parent = ChainId(seal.chain.node, seal.chain.stream, seal.parent or seal.chain.life)
        return not seal.parent or self._end_of(parent)[0] >= seal.begin - 1

    async def page(self, chain: ChainId, after: int) -> tuple[bytes, ...]:
        return tuple(await self.run(self.folder.read_file, chain, after, PAGE_BYTES))

    async def take(
        self, chain: ChainId, raws: Sequence[bytes], *, skips: bool = False
    ) -> list[Sealed]:
        """Keep what another node holds of a life, as far as it follows what is kept; what is new.

        Args:
            skips: nobody has what comes before it: keep it all the same, and say what is missing.

        Raises:
            SwarmError: what was sent is not what the node wrote; nothing of it is kept.
        """
        return await self.run(self._take_file, chain, raws, skips)

    def _take_file(self, chain: ChainId, raws: Sequence[bytes], skips: bool) -> list[Sealed]:
        fresh: list[Sealed] = []
        life = self.folder.lives.get(chain)
        last, before = self._end_of(chain)
        for raw in raws:
            sealed = self._open(chain, raw)
            seal = sealed.seal
            if last and seal.last <= last:
                continue
            follows = seal.first == (last + 1 if last else seal.begin)
            if not follows and (not skips or fresh or not self._gap_file(seal)):
                break  # What lies between is missing there.
            if last and follows and seal.previous != before:
                self.folder.put_fork_file(chain, raw)
                raise Broken(seal.first, f"two different records {last} are signed")
            fresh.append(sealed)
            last, before = seal.last, seal.hash
        if fresh:
            if life is None:
                self._begin_file(fresh[0].seal)
            self.folder.append_file(chain, fresh, self._clock.wall_ms())
        return fresh

    def _end_of(self, chain: ChainId) -> tuple[int, bytes]:
        """Number and hash of the last record of a life that is, or was, here; 0: none was."""
        life, floor = self.folder.lives.get(chain), self.folder.floors.get(chain)
        if life is not None:
            return life.last, life.hash
        return (floor[0].number, floor[0].hash) if floor is not None else (0, b"")

    def _open(self, chain: ChainId, raw: bytes) -> Sealed:
        admission = self.trust.admissions_by_id().get(NodeId(chain.node))
        if admission is None:
            raise BadSignature(f"audit records of {short(chain.node)}, which was never admitted")
        sealed = open_sealed(raw, self.trust.swarm_id, {chain.node: admission.public})
        if sealed.seal.chain != chain:
            raise BadSignature("audit records of another life than was asked for")
        return sealed

    def _begin_file(self, seal: Seal) -> None:
        """Say so if the life that this one goes on from is not there to be copied."""
        parent = ChainId(seal.chain.node, seal.chain.stream, seal.parent or seal.chain.life)
        known = parent in self.folder.lives or parent in self.folder.floors
        if seal.parent and seal.first == seal.begin and not known:
            self.folder.put_floor_file(
                self._floor(parent, seal.begin - 1, seal.previous, 0, dropped=False)
            )

    def _gap_file(self, seal: Seal) -> bool:
        """Say that what comes before `seal` never was here. False: too much of it was not."""
        if len(self.folder.gaps.get(seal.chain, ())) >= GAPS_MAX:
            return False
        self.folder.put_floor_file(
            self._floor(seal.chain, seal.first - 1, seal.previous, 0, dropped=False)
        )
        return True

    def _floor(
        self, chain: ChainId, number: int, digest: bytes, wall_ms: int, *, dropped: bool
    ) -> bytes:
        floor = Floor(bytes(self.me), chain, number, digest, max(0, wall_ms), dropped)
        return sign_floor(floor, self.trust.swarm_id, self._key)

    async def keep_evidence(self, chain: ChainId, number: int, raws: Sequence[bytes]) -> bool:
        """Keep a signed batch that ends with another record `number` than ours. Is it news?"""

        def keep_file() -> bool:
            life = self.folder.lives.get(chain)
            for raw in raws:
                seal = self._open(chain, raw).seal
                if life is None or not seal.last == number == life.last:
                    continue
                return seal.hash != life.hash and self.folder.put_fork_file(chain, raw)
            return False

        return await self.run(keep_file)

    # ---- what is too old ---------------------------------------------------------------

    def before_ms(self) -> int:
        """Wall time before which records are too old."""
        return max(0, self._clock.wall_ms() - int(self._config.keep_days * _DAY_MS))

    async def prune(self) -> int:
        """Drop the oldest segments until what is left is within the bounds; how many went."""
        return await self.run(self._prune_file)

    def _prune_file(self) -> int:
        folder, count = self.folder, 0
        nodes = dict.fromkeys(chain.node for chain in list(folder.lives))
        share = self._config.keep_mib * MIB // max(1, len(nodes)) // len(STREAMS)
        share = max(share, 2 * SEGMENT_BYTES)
        before_ms = self.before_ms()
        for node in nodes:
            for stream in STREAMS:
                lives = folder.lives_of(node, stream)
                size = sum(one.size_bytes for one in lives)
                segments = sum(len(one.segments) for one in lives)
                while (oldest := folder.oldest(node, stream)) is not None:
                    too_old = oldest[1].written_ms < before_ms
                    if size <= share and segments <= SEGMENTS_MAX and not too_old:
                        break
                    self._drop_file(*oldest)
                    size -= oldest[1].size_bytes
                    segments -= 1
                    count += 1
        folder.drop_floors_file()
        return count

    def _drop_file(self, life: Life, segment: Segment) -> None:
        end = self.folder.end_of_file(life, segment)
        if end is None:  # The floor goes by what follows, which names its hash.
            after = (
                self.folder.first_seal_file(life.chain, life.segments[1])
                if len(life.segments) > 1
                else None
            )
            end = (after.first - 1, after.previous) if after is not None else None
        floor = None
        if end is not None:
            floor = self._floor(life.chain, *end, segment.written_ms, dropped=True)
        self.folder.drop_file(life, segment, floor)


def may_hold(trust: Trust, node_id: NodeId) -> bool:
    """Does the node keep copies of what others write? Those do who may vote."""
    admission = trust.admission(node_id)
    return admission is not None and not admission.evicted and "voter" in admission.roles

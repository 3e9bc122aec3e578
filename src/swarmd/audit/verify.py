"""Is what is kept of the audit log what was written? Pure; whoever asks runs it for themselves.

What is checked, with the keys of the authority log and nobody's word:
- in each copy of a life: every record by the hashes, every batch by its seal, that each follows
  the one before, that the copy goes as far as its holder says, and that what is missing was
  dropped for its age or size, which its holder signed; or never came there, and others have it or
  dropped it;
- that each life goes on from another one where that one ended;
- between copies: that nobody signed two records of one number;
- that what the strong store names is there, or was dropped by all who had it; and that it names
  something of each stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from swarmd.audit.chain import Broken, check_records, open_floor, open_seal
from swarmd.audit.records import ChainId, Floor, Seal, Stream, decode_batch, hashes_of
from swarmd.base.errors import SwarmError

_GONE_BACK: Final = (
    "gone from the disk of their node when it began anew: it was restored, or they were removed"
)
_UNNAMED: Final = "the strong store names nothing of it: what it named was deleted there"
# A node names its records within 5 minutes (`audit.anchor_s`), and copies come within seconds.
_GRACE_MS: Final = 15 * 60_000
_LOST: Final = "the node began anew from record 1: its audit log was gone from its disk"
_HASH_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Finding:
    """The record `number` of `chain` is the first that is wrong, in the copy of `holder`.

    An empty `holder`: in all of them.
    """

    holder: bytes
    chain: ChainId
    number: int
    what: str


@dataclass(slots=True)
class Verdict:
    """What was found of one stream of one node. `anchored` 0: the store names nothing of it."""

    node: bytes
    stream: Stream
    records: int = 0
    first: int = 0
    last: int = 0
    anchored: int = 0
    copies: int = 0
    behind: int = 0
    """Copies that lack what the strong store names, or another one has; perhaps for now."""
    alone: int = 0
    """Lives that only their own node keeps, though others keep copies."""
    findings: list[Finding] = field(default_factory=list)


class CopyCheck:
    """One holder's copy of one life, taken batch by batch.

    Args:
        keys: public key by node id of all who were ever admitted.
        claimed: the last record that the holder says it has.
        gaps: hash by number of where the holder says it never had what comes before.
    """

    def __init__(
        self,
        holder: bytes,
        chain: ChainId,
        swarm_id: bytes,
        keys: Mapping[bytes, bytes],
        claimed: int,
        gaps: Mapping[int, bytes] | None = None,
    ) -> None:
        self.holder = holder
        self.chain = chain
        self.first = 0
        self.last = 0
        self.oldest: Seal | None = None
        self.newest: Seal | None = None
        self.ends: set[int] = set()
        """The numbers that batches end with."""
        self.gaps: list[tuple[int, Seal]] = []
        """First number of what the holder says it never had, and what comes after it."""
        self.findings: list[Finding] = []
        self._known_gaps = gaps or {}
        self._runs: list[tuple[int, bytearray]] = []
        self._hash = b""
        self._swarm_id = swarm_id
        self._keys = keys
        self._claimed = claimed
        self._unreadable = ""

    def find(self, number: int, what: str) -> None:
        self.findings.append(Finding(self.holder, self.chain, number, what))

    def take(self, raw: bytes) -> None:
        """The next batch as it lies there."""
        try:
            batch = decode_batch(raw)
            seal = open_seal(batch.seal, self._swarm_id, self._keys)
        except SwarmError as error:
            self._unreadable = self._unreadable or error.message
            return
        if seal.chain != self.chain or (self.last and seal.first <= self.last):
            self.find(seal.first, _were(seal.first, seal.last, "inserted"))
            return
        self._follow(seal)
        try:
            check_records(batch, seal)
        except Broken as broken:
            self.find(broken.number, broken.message)
        else:
            self._remember(seal, b"".join(hashes_of(seal.previous, batch.records)))
            self.ends.add(seal.last)
        self.last, self._hash, self.newest = seal.last, seal.hash, seal

    def _remember(self, seal: Seal, hashes: bytes) -> None:
        first, run = self._runs[-1] if self._runs else (0, bytearray())
        if not run or first + len(run) // _HASH_BYTES != seal.first:
            run = bytearray()
            self._runs.append((seal.first, run))
        run += hashes

    def hash_at(self, number: int) -> bytes | None:
        """The hash of a record that is there, sound and signed."""
        for first, run in reversed(self._runs):
            start = (number - first) * _HASH_BYTES
            if 0 <= start < len(run):
                return bytes(run[start : start + _HASH_BYTES])
        return None

    def _follow(self, seal: Seal) -> None:
        if self.oldest is None:
            self.oldest, self.first = seal, seal.first
            if self._unreadable:
                self._find_missing(seal.begin, seal.first - 1)
        elif seal.first != self.last + 1:
            if not self._unreadable and self._known_gaps.get(seal.first - 1) == seal.previous:
                self.gaps.append((self.last + 1, seal))
            else:
                self._find_missing(self.last + 1, seal.first - 1)
        elif seal.previous != self._hash:
            self.find(self.last, f"record {self.last} is not the one that {seal.first} follows")
        elif self._unreadable:
            self.find(seal.first, f"something was inserted before record {seal.first}")
        self._unreadable = ""

    def _find_missing(self, first: int, last: int) -> None:
        if self._unreadable and last >= first:
            self.find(first, _were(first, last, f"changed: {self._unreadable}"))
        elif last >= first:
            self.find(first, _were(first, last, "removed"))

    def finish(self) -> None:
        """That was all."""
        if self.last < self._claimed:
            self._find_missing(self.last + 1, self._claimed)
        elif self._unreadable:
            self.find(self.last + 1, f"something was inserted after record {self.last}")
        self._unreadable = ""


class Verification:
    """All copies together.

    Args:
        swarm_id, keys: as the authority log has them, verified.
        anchors: what the strong store named before the copies were read.
        now_ms: the time, to tell what had long been to be named and copied; 0: not judged.
    """

    def __init__(
        self,
        swarm_id: bytes,
        keys: Mapping[bytes, bytes],
        anchors: Iterable[bytes],
        now_ms: int = 0,
    ) -> None:
        self._swarm_id = swarm_id
        self._keys = keys
        self._copies: dict[tuple[bytes, ChainId], CopyCheck] = {}
        self._now_ms = now_ms
        self._holders: set[bytes] = set()
        self._floors: dict[tuple[bytes, ChainId], Floor] = {}
        self._gaps: dict[tuple[bytes, ChainId], dict[int, bytes]] = {}
        self._behind: Counter[tuple[bytes, Stream]] = Counter()
        self._forks: list[tuple[bytes, Seal]] = []
        self._findings: list[Finding] = []
        self._anchors: list[Seal] = []
        self.unsigned_anchors = 0
        for raw in anchors:
            try:
                self._anchors.append(open_seal(raw, swarm_id, keys))
            except SwarmError:
                self.unsigned_anchors += 1

    def add_holder(self, holder: bytes, floors: Iterable[bytes], forks: Iterable[bytes]) -> None:
        """What a holder says besides its copies; what is not signed as it should is nothing."""
        self._holders.add(holder)
        for raw in floors:
            try:
                floor = open_floor(raw, self._swarm_id, self._keys)
            except SwarmError:
                continue
            if floor.holder != holder:
                continue
            if floor.dropped:
                self._floors[holder, floor.chain] = floor
            else:
                self._gaps.setdefault((holder, floor.chain), {})[floor.number] = floor.hash
        for raw in forks:
            try:
                seal = open_seal(decode_batch(raw).seal, self._swarm_id, self._keys)
            except SwarmError:
                continue
            self._forks.append((holder, seal))

    def add_copy(self, holder: bytes, chain: ChainId, claimed: int) -> CopyCheck:
        """A copy that is to be read; `take` and `finish` it before `judge`."""
        gaps = self._gaps.get((holder, chain))
        copy = CopyCheck(holder, chain, self._swarm_id, self._keys, claimed, gaps)
        self._copies[holder, chain] = copy
        return copy

    def forget(self, holder: bytes) -> None:
        """Leave a holder out that did not show all that it keeps."""
        self._holders.discard(holder)
        self._copies = {key: copy for key, copy in self._copies.items() if key[0] != holder}
        self._floors = {key: floor for key, floor in self._floors.items() if key[0] != holder}
        self._forks = [one for one in self._forks if one[0] != holder]

    # ---- judging -----------------------------------------------------------------------

    def judge(self) -> list[Verdict]:
        """What was found, by node and stream; findings in the order of their numbers."""
        self._findings = [one for copy in self._copies.values() for one in copy.findings]
        for copy in self._copies.values():
            self._judge_missing(copy)
            self._judge_parent(copy)
        self._judge_forks()
        self._judge_pasts()
        verdicts = self._verdicts()
        for anchor in self._anchors:
            verdict = verdicts.setdefault(
                (anchor.chain.node, anchor.chain.stream),
                Verdict(anchor.chain.node, anchor.chain.stream),
            )
            verdict.anchored = max(verdict.anchored, anchor.last)
            self._judge_anchor(anchor, verdict)
        for (node, stream), verdict in verdicts.items():
            verdict.behind += self._behind[node, stream]
            self._judge_unnamed(verdict)
        for one in self._findings:
            verdicts[one.chain.node, one.chain.stream].findings.append(one)
        for verdict in verdicts.values():
            verdict.findings.sort(key=lambda one: (one.number, one.chain, one.holder))
        return [verdicts[key] for key in sorted(verdicts)]

    def _find(self, holder: bytes, chain: ChainId, number: int, what: str) -> None:
        self._findings.append(Finding(holder, chain, number, what))

    def _dropped(self, holder: bytes, chain: ChainId, number: int, digest: bytes) -> bool:
        """Did the holder drop the record `number`, whose hash is `digest`, for its age or size?"""
        floor = self._floors.get((holder, chain))
        if floor is None or floor.number < number:
            return False
        if floor.number == number:
            return floor.hash == digest
        own = self._copies.get((holder, chain))
        if own is not None and own.last < floor.number:
            return False  # It still shows what came before.
        known = (copy.hash_at(floor.number) for copy in self._copies_of(chain))
        return all(one in (None, floor.hash) for one in known)

    def _excused(self, holder: bytes, chain: ChainId, number: int, digest: bytes) -> bool:
        """May the holder lack what goes up to the record `number`, whose hash is `digest`?"""
        if self._dropped(holder, chain, number, digest):
            return True
        if self._gaps.get((holder, chain), {}).get(number) != digest:
            return False
        if any(copy.hash_at(number) == digest for copy in self._copies_of(chain)):
            self._behind[chain.node, chain.stream] += 1
            return True
        return any(self._dropped(one, chain, number, digest) for one in self._holders)

    def _copies_of(self, chain: ChainId) -> list[CopyCheck]:
        return [copy for (_, of), copy in self._copies.items() if of == chain]

    def _judge_missing(self, copy: CopyCheck) -> None:
        """What a copy lacks at its beginning and amid, as its holder says, may be missing."""
        missing = list(copy.gaps)
        oldest = copy.oldest
        if oldest is not None and oldest.first != oldest.begin and not copy.findings:
            missing.insert(0, (oldest.begin, oldest))
        for first, after in missing:
            before = after.first - 1
            if not self._excused(copy.holder, copy.chain, before, after.previous):
                self._find(copy.holder, copy.chain, first, _were(first, before, "removed"))

    def _judge_parent(self, copy: CopyCheck) -> None:
        """The life that this one goes on from is there, up to where it goes on."""
        oldest = copy.oldest
        if oldest is None or not oldest.parent or oldest.first != oldest.begin:
            return
        chain = ChainId(copy.chain.node, copy.chain.stream, oldest.parent)
        end = oldest.begin - 1
        parent = self._copies.get((copy.holder, chain))
        if parent is None:
            if self._excused(copy.holder, chain, end, oldest.previous):
                return
            self._find(copy.holder, chain, end, f"all records up to {end} of a life were removed")
        elif parent.hash_at(end) == oldest.previous or parent.findings:
            return
        elif parent.last < end:
            if self._excused(copy.holder, chain, end, oldest.previous):
                return
            self._find(copy.holder, chain, parent.last + 1,
                       _were(parent.last + 1, end, "removed"))  # fmt: skip
        else:
            self._find(
                copy.holder, chain, end, f"record {end} is not the one that {end + 1} follows"
            )

    def _judge_forks(self) -> None:
        """Copies of a life have the same records, and what contradicts them is nowhere."""
        agreed: dict[ChainId, dict[int, bytes]] = {}
        for copy in self._copies.values():
            ends = agreed.setdefault(copy.chain, {})
            for number in sorted(copy.ends):
                ends.setdefault(number, copy.hash_at(number) or b"")
        for copy in self._copies.values():
            for number, digest in sorted(agreed[copy.chain].items()):
                if copy.hash_at(number) not in (None, digest):
                    self._find(copy.holder, copy.chain, number,
                               f"two different records {number} are signed")  # fmt: skip
                    break
            if not copy.findings:
                self._judge_seals(copy, agreed[copy.chain])
        for holder, seal in self._forks:
            if any(
                copy.hash_at(seal.last) not in (None, seal.hash)
                or copy.hash_at(seal.first - 1) not in (None, seal.previous)
                for copy in self._copies_of(seal.chain)
            ):
                self._find(holder, seal.chain, seal.first,
                           f"two different records up to {seal.last} are signed")  # fmt: skip

    def _judge_seals(self, copy: CopyCheck, agreed: Mapping[int, bytes]) -> None:
        """Nobody seals a record with other ones anew: where one copy ends a batch, all do."""
        for number in sorted(agreed):
            if copy.hash_at(number) is not None and number not in copy.ends:
                self._find(copy.holder, copy.chain, number, f"record {number} was sealed twice")
                return

    def _judge_pasts(self) -> None:
        """Each node went on from where it had ended, and never began from nothing again."""
        lasts: dict[ChainId, int] = {}
        begins: dict[ChainId, Seal] = {}
        for copy in self._copies.values():
            lasts[copy.chain] = max(lasts.get(copy.chain, 0), copy.last)
            if copy.oldest is not None:
                begins.setdefault(copy.chain, copy.oldest)
        roots: set[tuple[bytes, str]] = set()
        children: dict[ChainId, ChainId] = {}
        for chain, seal in sorted(begins.items(), key=lambda one: one[1].wall_ms):
            if not seal.parent:
                if (chain.node, chain.stream) in roots:
                    self._find(chain.node, chain, 1, _LOST)
                roots.add((chain.node, chain.stream))
                continue
            parent = ChainId(chain.node, chain.stream, seal.parent)
            before = children.setdefault(parent, chain)
            gone = parent if before == chain else before
            if lasts.get(gone, 0) >= seal.begin:
                gone_first = max(seal.begin, begins[gone].first)
                self._find(chain.node, gone, gone_first, _were(gone_first, lasts[gone], _GONE_BACK))

    def _judge_anchor(self, anchor: Seal, verdict: Verdict) -> None:
        chain, last = anchor.chain, anchor.last
        copies = self._copies_of(chain)
        hashes = {copy.holder: copy.hash_at(last) for copy in copies}
        if not any(hashes.values()):
            self._judge_gone(anchor, copies)
            return
        for holder, digest in hashes.items():
            if digest not in (None, anchor.hash):
                self._find(holder, chain, last,
                           f"record {last} is not the one that the store names")  # fmt: skip
        for one in copies:
            if one.last >= last:
                continue
            if one.holder == chain.node and not one.findings:
                self._find(one.holder, chain, one.last + 1,
                           _were(one.last + 1, last, "removed"))  # fmt: skip
            else:
                verdict.behind += 1

    def _judge_gone(self, anchor: Seal, copies: Sequence[CopyCheck]) -> None:
        """Nobody has what the store names: all who had it must have dropped it."""
        chain, last = anchor.chain, anchor.last
        droppers = {one for one in self._holders if self._dropped(one, chain, last, anchor.hash)}
        had = {one.holder for one in copies} | ({chain.node} & self._holders)
        later = {one.holder for one in copies if one.first > last}
        if droppers and had <= droppers | later:
            return
        newest = max((one.last for one in copies), default=anchor.begin - 1)
        first = newest + 1 if newest < last else last
        if newest < last or not any(one.chain == chain for one in self._findings):
            self._find(b"", chain, first, _were(first, last, "removed, which the store names"))

    def _judge_unnamed(self, verdict: Verdict) -> None:
        """A stream that was there for long enough to be named is named.

        A node that is gone may have ended before it could: its time counts from what it wrote.
        """
        mine = [
            copy
            for (_, chain), copy in self._copies.items()
            if (chain.node, chain.stream) == (verdict.node, verdict.stream)
        ]
        seals = [(copy.chain, copy.oldest, copy.newest) for copy in mine]
        begun = [(one.wall_ms, chain) for chain, one, _ in seals if one is not None]
        if verdict.anchored or not begun or not self._now_ms:
            return
        ended = max(one.wall_ms for _, _, one in seals if one is not None)
        until_ms = self._now_ms if verdict.node in self._holders else ended
        begun_ms, chain = min(begun)
        if until_ms - begun_ms > _GRACE_MS:
            self._find(b"", chain, verdict.first, _UNNAMED)

    def _alone(self, chain: ChainId, begun_ms: int) -> bool:
        """Does its own node alone keep a life, though others keep copies and had the time?"""
        copiers = {holder for holder, of in self._copies if holder != of.node}
        holders = {holder for holder, of in self._copies if of == chain}
        is_new = self._now_ms - begun_ms <= _GRACE_MS
        return not is_new and holders == {chain.node} and bool(copiers - {chain.node})

    def _verdicts(self) -> dict[tuple[bytes, Stream], Verdict]:
        found: dict[tuple[bytes, Stream], Verdict] = {}
        holders: dict[tuple[bytes, Stream], set[bytes]] = {}
        spans: dict[ChainId, tuple[int, int]] = {}
        begun: dict[ChainId, int] = {}
        for copy in self._copies.values():
            key = (copy.chain.node, copy.chain.stream)
            found.setdefault(key, Verdict(*key))
            if copy.oldest is None:
                continue
            holders.setdefault(key, set()).add(copy.holder)
            first, last = spans.get(copy.chain, (copy.first, copy.last))
            spans[copy.chain] = min(first, copy.first), max(last, copy.last)
            begun[copy.chain] = copy.oldest.wall_ms
        for chain, (first, last) in spans.items():
            verdict = found[chain.node, chain.stream]
            verdict.records += last - first + 1
            verdict.first = min(verdict.first or first, first)
            verdict.last = max(verdict.last, last)
            verdict.copies = len(holders[chain.node, chain.stream])
            verdict.alone += self._alone(chain, begun[chain])
        for one in self._findings:
            found.setdefault(
                (one.chain.node, one.chain.stream), Verdict(one.chain.node, one.chain.stream)
            )
        return found


def _were(first: int, last: int, what: str) -> str:
    return (
        f"record {first} was {what}" if first == last else f"records {first} to {last} were {what}"
    )

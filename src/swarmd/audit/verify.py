"""Is what is kept of the audit log what was written? Pure; whoever asks runs it for themselves.

What is checked, with the keys of the authority log and nobody's word:
- in each copy of a life: every record by the hashes, every batch by its seal, that each follows
  the one before, that the copy goes as far as its holder says, and that what is missing at its
  beginning was dropped for its age, which its holder signed;
- that each life goes on from another one where that one ended;
- between copies: that nobody signed two records of one number;
- that what the strong store names is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from swarmd.audit.chain import Broken, check_records, open_floor, open_seal
from swarmd.audit.records import ChainId, Floor, Seal, Stream, decode_batch
from swarmd.base.errors import SwarmError

_GONE_BACK: Final = (
    "gone from the disk of their node when it began anew: it was restored, or they were removed"
)
_LOST: Final = "the node began anew from record 1: its audit log was gone from its disk"


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
    """Copies that lack what the strong store names; they may be on their way to it."""
    findings: list[Finding] = field(default_factory=list)


class CopyCheck:
    """One holder's copy of one life, taken batch by batch.

    Args:
        keys: public key by node id of all who were ever admitted.
        claimed: the last record that the holder says it has.
    """

    def __init__(
        self,
        holder: bytes,
        chain: ChainId,
        swarm_id: bytes,
        keys: Mapping[bytes, bytes],
        claimed: int,
    ) -> None:
        self.holder = holder
        self.chain = chain
        self.first = 0
        self.last = 0
        self.oldest: Seal | None = None
        self.ends: dict[int, bytes] = {}
        self.findings: list[Finding] = []
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
        self.last, self._hash = seal.last, seal.hash
        self.ends[seal.last] = seal.hash

    def _follow(self, seal: Seal) -> None:
        if self.oldest is None:
            self.oldest, self.first = seal, seal.first
            if self._unreadable:
                self._find_missing(seal.begin, seal.first - 1)
        elif seal.first != self.last + 1:
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
    """

    def __init__(
        self, swarm_id: bytes, keys: Mapping[bytes, bytes], anchors: Iterable[bytes]
    ) -> None:
        self._swarm_id = swarm_id
        self._keys = keys
        self._copies: dict[tuple[bytes, ChainId], CopyCheck] = {}
        self._floors: dict[tuple[bytes, ChainId], Floor] = {}
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
        for raw in floors:
            try:
                floor = open_floor(raw, self._swarm_id, self._keys)
            except SwarmError:
                continue
            if floor.holder == holder:
                self._floors[holder, floor.chain] = floor
        for raw in forks:
            try:
                seal = open_seal(decode_batch(raw).seal, self._swarm_id, self._keys)
            except SwarmError:
                continue
            self._forks.append((holder, seal))

    def add_copy(self, holder: bytes, chain: ChainId, claimed: int) -> CopyCheck:
        """A copy that is to be read; `take` and `finish` it before `judge`."""
        copy = CopyCheck(holder, chain, self._swarm_id, self._keys, claimed)
        self._copies[holder, chain] = copy
        return copy

    def forget(self, holder: bytes) -> None:
        """Leave a holder out that did not show all that it keeps."""
        self._copies = {key: copy for key, copy in self._copies.items() if key[0] != holder}

    # ---- judging -----------------------------------------------------------------------

    def judge(self) -> list[Verdict]:
        """What was found, by node and stream; findings in the order of their numbers."""
        self._findings = [one for copy in self._copies.values() for one in copy.findings]
        for copy in self._copies.values():
            self._judge_beginning(copy)
            self._judge_parent(copy)
        ends = self._judge_forks()
        self._judge_pasts()
        verdicts = self._verdicts()
        for anchor in self._anchors:
            verdict = verdicts.setdefault(
                (anchor.chain.node, anchor.chain.stream),
                Verdict(anchor.chain.node, anchor.chain.stream),
            )
            verdict.anchored = anchor.last
            self._judge_anchor(anchor, ends, verdict)
        for one in self._findings:
            verdicts[one.chain.node, one.chain.stream].findings.append(one)
        for verdict in verdicts.values():
            verdict.findings.sort(key=lambda one: (one.number, one.chain, one.holder))
        return [verdicts[key] for key in sorted(verdicts)]

    def _find(self, holder: bytes, chain: ChainId, number: int, what: str) -> None:
        self._findings.append(Finding(holder, chain, number, what))

    def _floor(self, holder: bytes, chain: ChainId) -> int:
        floor = self._floors.get((holder, chain))
        return floor.number if floor is not None else 0

    def _judge_beginning(self, copy: CopyCheck) -> None:
        oldest = copy.oldest
        if oldest is None or oldest.first == oldest.begin:
            return
        before = oldest.first - 1
        if self._floor(copy.holder, copy.chain) < before and not copy.findings:
            self._find(copy.holder, copy.chain, oldest.begin,
                       _were(oldest.begin, before, "removed"))  # fmt: skip

    def _judge_parent(self, copy: CopyCheck) -> None:
        """The life that this one goes on from is there, up to where it goes on."""
        oldest = copy.oldest
        if oldest is None or not oldest.parent or oldest.first != oldest.begin:
            return
        chain = ChainId(copy.chain.node, copy.chain.stream, oldest.parent)
        end = oldest.begin - 1
        if self._floor(copy.holder, chain) >= end:
            return
        parent = self._copies.get((copy.holder, chain))
        if parent is None:
            self._find(copy.holder, chain, end, f"all records up to {end} of a life were removed")
        elif parent.ends.get(end) == oldest.previous or parent.findings:
            return
        elif parent.last < end:
            self._find(copy.holder, chain, parent.last + 1,
                       _were(parent.last + 1, end, "removed"))  # fmt: skip
        else:
            self._find(
                copy.holder, chain, end, f"record {end} is not the one that {end + 1} follows"
            )

    def _judge_forks(self) -> dict[ChainId, dict[int, bytes]]:
        """The hashes of each life that copies agree on, by number."""
        ends: dict[ChainId, dict[int, bytes]] = {}
        for copy in self._copies.values():
            agreed = ends.setdefault(copy.chain, {})
            for number, digest in copy.ends.items():
                if agreed.setdefault(number, digest) != digest:
                    self._find(copy.holder, copy.chain, number,
                               f"two different records {number} are signed")  # fmt: skip
                    break
        for copy in self._copies.values():
            if not copy.findings:
                self._judge_seals(copy, ends[copy.chain])
        for holder, seal in self._forks:
            agreed = ends.get(seal.chain, {})
            contradicts = agreed.get(seal.last, seal.hash) != seal.hash or (
                agreed.get(seal.first - 1, seal.previous) != seal.previous
            )
            if contradicts:
                self._find(holder, seal.chain, seal.first,
                           f"two different records up to {seal.last} are signed")  # fmt: skip
        return ends

    def _judge_seals(self, copy: CopyCheck, agreed: Mapping[int, bytes]) -> None:
        """Nobody seals a record with other ones anew: where one copy ends a batch, all do."""
        for number in sorted(agreed):
            if copy.first <= number <= copy.last and number not in copy.ends:
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

    def _judge_anchor(
        self, anchor: Seal, ends: Mapping[ChainId, Mapping[int, bytes]], verdict: Verdict
    ) -> None:
        chain, last = anchor.chain, anchor.last
        agreed = ends.get(chain, {})
        copies = {holder: one for (holder, of), one in self._copies.items() if of == chain}
        if any(self._floor(holder, chain) >= last for holder, _ in self._floors):
            return
        if last in agreed:
            if agreed[last] != anchor.hash:
                self._find(b"", chain, last, f"record {last} is not the one that the store names")
            lacking = [one for one in copies.values() if one.last < last]
            for one in lacking:
                if one.holder == chain.node and not one.findings:
                    self._find(one.holder, chain, one.last + 1,
                               _were(one.last + 1, last, "removed"))  # fmt: skip
                else:
                    verdict.behind += 1
            return
        newest = max((one.last for one in copies.values()), default=anchor.begin - 1)
        if newest < last:
            self._find(b"", chain, newest + 1,
                       _were(newest + 1, last, "removed, which the store names"))  # fmt: skip

    def _verdicts(self) -> dict[tuple[bytes, Stream], Verdict]:
        found: dict[tuple[bytes, Stream], Verdict] = {}
        holders: dict[tuple[bytes, Stream], set[bytes]] = {}
        spans: dict[ChainId, tuple[int, int]] = {}
        for copy in self._copies.values():
            key = (copy.chain.node, copy.chain.stream)
            found.setdefault(key, Verdict(*key))
            if copy.oldest is None:
                continue
            holders.setdefault(key, set()).add(copy.holder)
            first, last = spans.get(copy.chain, (copy.first, copy.last))
            spans[copy.chain] = min(first, copy.first), max(last, copy.last)
        for chain, (first, last) in spans.items():
            verdict = found[chain.node, chain.stream]
            verdict.records += last - first + 1
            verdict.first = min(verdict.first or first, first)
            verdict.last = max(verdict.last, last)
            verdict.copies = len(holders[chain.node, chain.stream])
        for one in self._findings:
            found.setdefault(
                (one.chain.node, one.chain.stream), Verdict(one.chain.node, one.chain.stream)
            )
        return found


def _were(first: int, last: int, what: str) -> str:
    return (
        f"record {first} was {what}" if first == last else f"records {first} to {last} were {what}"
    )

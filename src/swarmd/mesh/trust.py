"""What this node knows of who belongs: one verified chain on disk, kept level with the peers.

Invariant: every record of the chain was verified here, and is on this disk before anything rests
on it. The chain only grows, but for one case: what an earlier epoch's voters certified gives way
to what the newest one's do. Else two different records for one height are a fork: the one held
stays, the other is refused and counted.

A record is *noted* when this node's own log applied it, and *counts* once a majority of the
epoch's voters certified it (`identity/heads.py`). Peers are only ever told what counts, with its
certificate, and only believed so far: whoever shows records without one shows nothing.

A node whose credential has expired, in store time as far as it is known here, has no admission
until it renews it, for which it is heard on the plane of joiners alone (`mesh.renewal`). Expiry
takes no seat: who is a voter of the present epoch is a member all the same, as without a
majority nothing could be renewed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final

import msgspec
import trio

from swarmd.base.disk import Disk, open_body, seal_body
from swarmd.base.errors import (
    Conflict,
    CorruptFile,
    NotFound,
    SwarmError,
    Untrusted,
)
from swarmd.base.ids import NodeId, SwarmId, node_id_of, short
from swarmd.identity.authority import (
    RECORDS_MAX,
    Admission,
    AuthorityState,
    LoggedToken,
    record_hash,
)
from swarmd.identity.entries import decode_record
from swarmd.identity.epochs import Chain
from swarmd.identity.genesis import Genesis, decode_genesis, encode_genesis
from swarmd.identity.heads import Head, UnknownEpoch, head_of, verify_head
from swarmd.observe.log import get_logger
from swarmd.wire.codec import decode_struct, encode_struct

FILE_NAME: Final = "authority"
_FILE_KIND: Final = "trust"
_FILE_FORMAT: Final = 2
SETTLED_POLL_S: Final = 0.1
PAGE_RECORDS_MAX: Final = 256

_log = get_logger("trust")


class _Stored(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Records up to `height` count; those above are noted."""

    genesis: bytes
    records: tuple[bytes, ...]
    height: int
    certificate: bytes


class Trust:
    """One node's verified chain. Make it with `open_trust`.

    `epochs` tells whose certificates count. Until it is there nothing is learned from peers.
    """

    def __init__(
        self, disk: Disk, state: AuthorityState, noted: AuthorityState, certificate: bytes
    ) -> None:
        self.epochs: Chain | None = None
        self._disk = disk
        self._state = state
        self._noted = noted  # The same object while all that is noted counts.
        self._certificate = certificate
        self._version = 1
        self._wake = trio.Event()
        self.made_here = False  # Had this node a part in certifying what counts now?
        self._told_ms = 0
        self._lasting: Callable[[], Collection[NodeId]] | None = None
        self._expired: frozenset[NodeId] = frozenset()

    @property
    def swarm_id(self) -> SwarmId:
        return self._state.swarm_id

    @property
    def genesis(self) -> Genesis:
        return self._state.genesis

    @property
    def head(self) -> tuple[int, bytes]:
        """Height and hash of the newest record that counts."""
        return self._state.head

    @property
    def noted(self) -> tuple[int, bytes]:
        """Height and hash of the newest record on this disk."""
        return self._noted.head

    @property
    def certificate(self) -> bytes:
        """The voters' signatures on `head`; empty at the genesis."""
        return self._certificate

    @property
    def version(self) -> int:
        """Rises whenever records came to count, or were certified anew; starts at 1."""
        return self._version

    @property
    def min_version(self) -> int:
        """The lowest protocol version that members may speak."""
        return self._state.min_version

    @property
    def signing_keys(self) -> dict[bytes, bytes]:
        """Public key by key id of every node whose signature counts: admitted, not evicted."""
        return {
            bytes(x.node_id): x.public for x in self._state.admissions.values() if self._counts(x)
        }

    def admission(self, node_id: NodeId) -> Admission | None:
        """The node's admission, None if it has none, was evicted, or lets it expire."""
        found = self._state.admissions.get(node_id)
        return found if found is not None and self._counts(found) else None

    def known(self, node_id: NodeId) -> Admission | None:
        """The node's admission, expired or not; None if it has none or was evicted."""
        found = self._state.admissions.get(node_id)
        return None if found is None or found.evicted else found

    def ever_admitted(self, node_id: NodeId) -> Admission | None:
        """The node's admission, evicted or not; None if it never had one."""
        return self._state.admissions.get(node_id)

    def is_known(self, public: bytes) -> bool:
        """Whether the node with this key was ever admitted, evicted or not."""
        return node_id_of(public) in self._state.admissions

    def evicted(self) -> frozenset[NodeId]:
        """Everybody who was shut out."""
        return frozenset(x.node_id for x in self._state.admissions.values() if x.evicted)

    def admissions(self) -> list[Admission]:
        """Admissions of all nodes that `admission` tells of, in the order of the log."""
        return [x for x in self._state.admissions.values() if self._counts(x)]

    def admissions_by_id(self) -> dict[NodeId, Admission]:
        """All admissions, the evicted ones with their mark."""
        return dict(self._state.admissions)

    def token(self, token_id: NodeId) -> LoggedToken | None:
        """What the log knows of a join token, None if it has none of that id."""
        return self._state.tokens.get(token_id)

    @property
    def store_time_ms(self) -> int:
        """Store time of the newest record: the present is that or later."""
        return self._state.store_time_ms

    @property
    def now_ms(self) -> int:
        """Store time, as late as it is known to be here."""
        return max(self._told_ms, self._state.store_time_ms)

    def enforce_expiry(self, lasting: Callable[[], Collection[NodeId]]) -> None:
        """Let credentials expire from now on, but for those of the nodes that `lasting` names."""
        self._lasting = lasting
        if self._settle():
            self._changed()

    def tell_time(self, store_time_ms: int) -> None:
        """Take note that it is this late, in store time; who has expired counts no more.

        Whoever told a wrong time is corrected by the next who tells it.
        """
        self._told_ms = store_time_ms
        if self._settle():
            self._changed()

    def _settle(self) -> bool:
        """Find anew who has expired; whether that is news."""
        lasting = None if self._lasting is None else self._lasting()
        expired = frozenset(
            x.node_id
            for x in self._state.admissions.values()
            if lasting is not None
            and x.node_id not in lasting
            and self._state.is_expired(x, self.now_ms)
        )
        news, self._expired = expired != self._expired, expired
        return news

    def _counts(self, admission: Admission) -> bool:
        return not admission.evicted and admission.node_id not in self._expired

    def _changed(self) -> None:
        self._version += 1
        self._wake.set()
        self._wake = trio.Event()

    def records_from(self, height: int, limit: int = PAGE_RECORDS_MAX) -> list[bytes]:
        """Up to `limit` records above `height`, in order."""
        return self._state.records_from(height, limit)

    def hash_at(self, height: int) -> bytes | None:
        """The hash of the record at `height`, None beyond the head."""
        return self._state.hash_at(height)

    def check(self, raw_entry: bytes) -> None:
        """Raise what the log would raise for this entry now, as far as this node can see.

        Store time moves on between records, so an expiry may be noticed only by the log.
        """
        self._state.check(raw_entry, self.store_time_ms)

    def noted_from(self, height: int, limit: int = RECORDS_MAX) -> list[bytes]:
        """Up to `limit` of the records on this disk above `height`; they may not count yet."""
        return self._noted.records_from(height, limit)

    def noted_hash_at(self, height: int) -> bytes | None:
        """The hash of the record on this disk at `height`, None beyond the last."""
        return self._noted.hash_at(height)

    def note(self, records: Sequence[bytes]) -> int:
        """Verify records that this node's own log applied, and write them down. All or none.

        Args:
            records: consecutive records; those that are held already are skipped.

        Returns:
            How many were new.

        Raises:
            Untrusted: they contradict the chain, or leave a gap.
            SwarmError: one of them is invalid in itself.
            DiskFault: they could not be written.
        """
        noted = self._extended(records)
        new = noted.head[0] - self._noted.head[0]
        if new:
            _write(self._disk, noted, self._state.head[0], self._certificate)
            self._noted = noted
        return new

    def learn(
        self, records: Sequence[bytes], certificate: bytes, *, from_peer: bool = False
    ) -> int:
        """Let records count that the voters certified, once they are written down. All or none.

        Args:
            records: consecutive records; those that are held already are skipped, and those
                above the certificate's head, too. Records that were noted need not be given.
            certificate: for a head among them.
            from_peer: they came from another node, and this one had no part in certifying them.

        Returns:
            How many count that did not.

        Raises:
            UnknownEpoch: the certificate's epoch is not known here yet.
            Untrusted: they contradict the chain, leave a gap, or do not lead to the certified
                head; or the certificate is by voters of an epoch that has ended.
            BadSignature, MalformedMessage: it is no certificate.
            SwarmError: one of the records is invalid in itself.
            DiskFault: they could not be written.
        """
        head = self.verify(certificate)
        noted = self._extended([raw for raw in records if decode_record(raw).height <= head.height])
        if noted.hash_at(head.height) != head.hash:
            raise Untrusted(f"the records do not lead to the certified head at {head.height}")
        return self._count(noted, head, certificate, made_here=not from_peer)

    def adopt(self, state: AuthorityState, certificate: bytes) -> int:
        """Let a whole log count that a peer showed, each record of which was verified.

        What the newest epoch's voters certify takes the place of what earlier ones did, should
        the two differ: after a recovery, or where replaced voters lied to a node that slept.

        Raises: as `learn`.
        """
        head = self.verify(certificate)
        if state.head != (head.height, head.hash):
            raise Untrusted("the records do not lead to the certified head")
        return self._count(state, head, certificate, made_here=False)

    def verify(self, certificate: bytes) -> Head:
        """The head that the voters of the newest epoch certified. Raises: as `learn`."""
        if self.epochs is None:
            raise UnknownEpoch("who certifies records is not known here yet")
        mine = self.certified_by
        if mine is not None and self.epochs.number_of(mine) is None:
            raise UnknownEpoch("the epochs that are known here end before what counts")
        return verify_head(certificate, self.epochs)

    def what_counts(self) -> AuthorityState:
        """A copy to go on from."""
        return self._state.copy()

    @property
    def certified_by(self) -> bytes | None:
        """The key of the epoch whose voters certified `head`; None at the genesis."""
        return head_of(self._certificate).epoch if self._certificate else None

    def certifies(self, epoch: bytes) -> bool:
        """Did the voters of the epoch with this key certify all that is on this disk?"""
        height = self._noted.head[0]
        return height == 0 or (self._state.head[0] == height and self.certified_by == epoch)

    async def settled(self) -> Chain:
        """The epochs, once the voters of the newest one known certify what counts.

        Waits as long as that takes: a moment after the voters changed, for ever without a
        majority of them.
        """
        while self.epochs is None or self.certified_by not in (None, self.epochs.head.key):
            with trio.move_on_after(SETTLED_POLL_S):  # A new epoch wakes nobody here.
                await self.changed(self._version)
        return self.epochs

    async def changed(self, version: int) -> int:
        """Wait until `version` is no longer the present one; the present one."""
        while self._version == version:
            await self._wake.wait()
        return self._version

    def _count(
        self, noted: AuthorityState, head: Head, certificate: bytes, *, made_here: bool
    ) -> int:
        height, held = self._state.head
        if self.certified_by == head.epoch:
            if head.height <= height and self._state.hash_at(head.height) == head.hash:
                return 0  # As good as the one that is held, or older.
            if noted.hash_at(height) != held:
                raise Untrusted(f"one epoch's voters certified two histories after {height}")
        elif noted.hash_at(height) != held or head.height < height:
            _log.warning(
                "records that earlier voters certified are void", height=height, now=head.height
            )
        state = self._state_at(noted, head.height)
        if self._noted.hash_at(head.height) == head.hash:
            noted = self._noted  # What was noted beyond it stays.
        _write(self._disk, noted, head.height, certificate)
        self._state, self._noted, self._certificate = state, noted, certificate
        self.made_here = made_here
        self._settle()
        self._changed()
        return head.height - height

    def _state_at(self, noted: AuthorityState, height: int) -> AuthorityState:
        if noted.head[0] == height:
            return noted
        state = self._state.copy()
        if state.head[0] > height or noted.hash_at(state.head[0]) != state.head[1]:
            state = AuthorityState(self.genesis)
        for raw in noted.records_from(state.head[0], height - state.head[0]):
            state.replay(raw)
        return state

    def _extended(self, records: Sequence[bytes]) -> AuthorityState:
        """What is noted, and `records` after it; raises, and nothing has changed."""
        fresh = [raw for raw in records if not self._holds(raw)]
        if not fresh:
            return self._noted
        noted = self._noted.copy()
        for raw in fresh:
            noted.replay(raw)
        return noted

    def _holds(self, raw: bytes) -> bool:
        height = decode_record(raw).height
        held = self._noted.hash_at(height)
        if held is None or height < 1:
            return False
        if held != record_hash(raw):
            raise Untrusted(f"two different authority records for height {height}")
        return True


def has_trust(disk: Disk) -> bool:
    """Whether this node belongs to a swarm already."""
    return disk.read(FILE_NAME) is not None


def open_trust(
    disk: Disk,
    genesis: Genesis | None = None,
    records: Sequence[bytes] = (),
    certificate: bytes = b"",
) -> Trust:
    """The chain on this disk; with `genesis`, a new one if there is none.

    Args:
        disk: the node's data folder.
        genesis: the swarm that the caller means to be in.
        records: what was learned while joining, where it was verified that they count.
        certificate: of the last of them.

    Raises:
        NotFound: nothing is stored and no genesis was given.
        Conflict: the disk belongs to another swarm than `genesis`.
        CorruptFile: the file is damaged, or its chain does not verify.
        DiskFault: it could not be written.
    """
    raw = disk.read(FILE_NAME)
    if raw is None:
        if genesis is None:
            raise NotFound("this node belongs to no swarm yet: start it with --init or --join")
        state = AuthorityState.load(genesis, records)
        _write(disk, state, state.head[0], certificate)
        return Trust(disk, state, state, certificate)
    trust = _read(disk, raw)
    if genesis is not None and genesis.swarm_id != trust.swarm_id:
        raise Conflict(
            f"the data folder belongs to the swarm {trust.genesis.name} "
            f"({short(trust.swarm_id)}), not to {genesis.name} ({short(genesis.swarm_id)})"
        )
    return trust


def _write(disk: Disk, noted: AuthorityState, height: int, certificate: bytes) -> None:
    stored = _Stored(encode_genesis(noted.genesis), tuple(noted.dump()), height, certificate)
    disk.replace(FILE_NAME, seal_body(_FILE_KIND, _FILE_FORMAT, encode_struct(stored)))


def _read(disk: Disk, raw: bytes) -> Trust:
    body = open_body(_FILE_KIND, _FILE_FORMAT, raw, source=FILE_NAME)
    try:
        stored: _Stored = decode_struct(_Stored, body)
        if not 0 <= stored.height <= len(stored.records):
            raise CorruptFile(f"{FILE_NAME} holds fewer records than it says that count")
        genesis = decode_genesis(stored.genesis)
        state = AuthorityState.load(genesis, stored.records[: stored.height])
        noted = state
        if stored.height < len(stored.records):
            noted = state.copy()
            for record in stored.records[stored.height :]:
                noted.replay(record)
        if stored.certificate:
            head_of(stored.certificate)
        return Trust(disk, state, noted, stored.certificate)
    except CorruptFile:
        raise
    except SwarmError as error:
        raise CorruptFile(f"{FILE_NAME} does not verify: {error.message}") from error

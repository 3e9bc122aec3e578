"""What a node does next about the ring of keys. Pure.

- Who may vote holds every key of the ring; who may not holds none.
- The coordinator makes keys. It makes another one when somebody was shut out since the newest was
  made, for who was shut out may have taken the old ones along. Then it seals everything anew, and
  drops keys that nothing is sealed under any more, after a while: an attempt that is on its way
  may carry what was sealed before.
- A key that nobody holds any more stays in the ring while something is sealed under it: who has
  it may come back. While there is a record that cannot be read no key is dropped.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from swarmd.state.secrets.messages import HeldKey
from swarmd.state.secrets.records import RING_KEYS_MAX, RingKey, RingRecord

RETIRE_AFTER_MS: Final = 3_600_000


class Step(Enum):
    FORGET = auto()
    """Delete the keys held here: this node may not vote any more."""
    FETCH = auto()
    """Ask others for keys of the ring."""
    ROTATE = auto()
    """Make another key."""
    RESEAL = auto()
    """Look through what is sealed, and seal anew what is not sealed under the newest key."""
    RETIRE = auto()
    """Drop keys that nothing is sealed under."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known when it is decided. `sealed_under` are the ids that a walk through all that
    is sealed found, since the newest key was there; None if there was no such walk yet."""

    may_hold: bool
    in_office: bool
    ring: RingRecord | None
    held: frozenset[bytes]
    evicted: int
    now_ms: int
    sealed_under: frozenset[bytes] | None = None


def steps(facts: Facts) -> list[Step]:
    """What to do, in this order. Nothing while there is no ring: it is made when it is needed."""
    if not facts.may_hold:
        return [Step.FORGET] if facts.held else []
    ring = facts.ring
    if ring is None:
        return []
    found = []
    if ring.ids - facts.held:
        found.append(Step.FETCH)
    if not facts.in_office:
        return found
    if facts.evicted > ring.evicted:
        return [*found, Step.ROTATE]
    if ring.newest.id not in facts.held:
        return found  # Until somebody seals something, or who has the key comes back.
    if facts.sealed_under is None:
        found.append(Step.RESEAL)
    elif retired(ring, facts.sealed_under, facts.now_ms):
        found.append(Step.RETIRE)
    return found


def retired(ring: RingRecord, sealed_under: Set[bytes], now_ms: int) -> list[RingKey]:
    """The keys of the ring that can be dropped."""
    if now_ms - ring.newest.made_ms < RETIRE_AFTER_MS:
        return []
    return [key for key in ring.keys[:-1] if key.id not in sealed_under]


def ring_with(ring: RingRecord | None, key_id: bytes, now_ms: int, evicted: int) -> RingRecord:
    """The ring with one more key; the oldest goes if there are too many."""
    before = ring.keys if ring is not None else ()
    return RingRecord((*before[1 - RING_KEYS_MAX :], RingKey(key_id, now_ms)), evicted)


def to_keep(
    held: dict[bytes, HeldKey], ring: RingRecord | None, ring_revision: int
) -> dict[bytes, HeldKey]:
    """The held keys without those that are in the ring no more, or can never get into it.

    One that is not in it yet may be on its way, over the ring of the revision that it names.
    """
    ids = ring.ids if ring is not None else frozenset()
    return {
        key_id: key for key_id, key in held.items() if key_id in ids or key.after >= ring_revision
    }

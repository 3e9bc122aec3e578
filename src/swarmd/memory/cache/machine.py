"""What somebody who misses a value does next, by what the strong store holds of it. Pure.

A value that is being computed is a record with a lease: it goes when whoever computes is gone for
longer than the lease. The revision that wrote it is the fence. At the end it is replaced by the
value, or by why there is none, which stay for a few seconds for those who wait.

    no record                        claim it
    computing                        wait for another record
    done, not ended                  take the value
    failed, of what was waited for   tell it: those who waited do not try again
    failed, of before, or ended      claim it, over this record
"""

from __future__ import annotations

from dataclasses import dataclass

from swarmd.memory.kv.records import Flight, State

# How long what became of a computation is there for those who wait, and for nodes that the value
# has not come to yet.
KEPT_MS = 10_000


@dataclass(frozen=True, slots=True)
class Found:
    """A record as it is in the store: `revision` wrote it, it ends at `ends_ms` (0: never)."""

    revision: int
    ends_ms: int
    flight: Flight


@dataclass(frozen=True, slots=True)
class Claim:
    """Claim it if the record's revision is this one; 0: if there is none."""

    revision: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Somebody computes it, under this fence."""

    fence: int


@dataclass(frozen=True, slots=True)
class Take:
    """It is there, as msgpack."""

    value: bytes


@dataclass(frozen=True, slots=True)
class Fail:
    why: str


Decision = Claim | Wait | Take | Fail


def decide(found: Found | None, waited_for: int, now_ms: int) -> Decision:
    """What to do next.

    Args:
        waited_for: the fence that this caller saw computing last; 0: none.
        now_ms: store time.
    """
    if found is None:
        return Claim(0)
    flight = found.flight
    if flight.state is State.COMPUTING:
        return Wait(found.revision)
    if found.ends_ms <= now_ms:
        return Claim(found.revision)
    if flight.state is State.DONE:
        return Take(flight.value)
    return Fail(flight.message) if flight.fence == waited_for else Claim(found.revision)

"""Leases of the replicated state: rights that end by themselves unless they are renewed.

Rules:
- A lease is named by the revision that granted it, which is its fence, too.
- Deadlines are store time, so all voters end a lease at one place of the log, whatever their
  clocks say.
- It lives while store time is below its deadline. From then on it takes neither a key nor a
  renewal, even if its keys are still there because others are swept first.
- The keys of a lease are its entries' `lease` seen from the other side; their order does not
  matter, because what goes with a lease goes sorted.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from sortedcontainers import SortedList


class Lease(msgspec.Struct):
    """`keys` are those that go with it, as the keys of a dictionary."""

    id: int
    ttl_ms: int
    deadline_ms: int
    keys: dict[bytes, None]


class LeaseDump(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A lease as snapshots hold it; its keys are named by the entries."""

    id: int
    ttl_ms: int
    deadline_ms: int


class Leases:
    """See the module. Whoever changes entries attaches and detaches their keys here."""

    def __init__(self, dumps: Iterable[LeaseDump] = ()) -> None:
        self._leases = {d.id: Lease(d.id, d.ttl_ms, d.deadline_ms, {}) for d in dumps}
        self._due: SortedList[tuple[int, int]] = SortedList(
            (lease.deadline_ms, lease.id) for lease in self._leases.values()
        )

    def __len__(self) -> int:
        return len(self._leases)

    # ---- reading ---------------------------------------------------------------------

    def get(self, lease: int) -> Lease | None:
        return self._leases.get(lease)

    def living(self, lease: int, now_ms: int) -> Lease | None:
        """The lease if its deadline is not reached."""
        found = self._leases.get(lease)
        return found if found is not None and found.deadline_ms > now_ms else None

    def all(self) -> list[Lease]:
        """Every lease, the oldest first."""
        return list(self._leases.values())

    @property
    def next_deadline_ms(self) -> int | None:
        """The earliest deadline; None if there is no lease."""
        return self._due[0][0] if self._due else None

    def first_due(self, now_ms: int) -> Lease | None:
        """The lease whose deadline passed first, if any has."""
        if not self._due or self._due[0][0] > now_ms:
            return None
        return self._leases[self._due[0][1]]

    def dump(self) -> list[LeaseDump]:
        return [LeaseDump(one.id, one.ttl_ms, one.deadline_ms) for one in self._leases.values()]

    # ---- changing --------------------------------------------------------------------

    def grant(self, lease: int, ttl_ms: int, now_ms: int) -> None:
        self._leases[lease] = Lease(lease, ttl_ms, now_ms + ttl_ms, {})
        self._due.add((now_ms + ttl_ms, lease))

    def renew(self, lease: Lease, now_ms: int) -> None:
        self._due.remove((lease.deadline_ms, lease.id))
        lease.deadline_ms = now_ms + lease.ttl_ms
        self._due.add((lease.deadline_ms, lease.id))

    def extend(self, before_ms: int, now_ms: int) -> None:
        """Renew at `now_ms` every lease that lived at `before_ms`."""
        for lease in self._leases.values():
            if lease.deadline_ms > before_ms:
                lease.deadline_ms = now_ms + lease.ttl_ms
        self._due = SortedList((one.deadline_ms, one.id) for one in self._leases.values())

    def end(self, lease: Lease) -> list[bytes]:
        """Forget a lease; the keys that go with it, sorted."""
        del self._leases[lease.id]
        self._due.remove((lease.deadline_ms, lease.id))
        return sorted(lease.keys)

    def attach(self, key: bytes, lease: int) -> None:
        self._leases[lease].keys[key] = None

    def detach(self, key: bytes, lease: int) -> None:
        """Let `key` go from a lease, which may have ended."""
        found = self._leases.get(lease)
        if found is not None:
            found.keys.pop(key, None)

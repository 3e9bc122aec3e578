"""Going through all that is sealed, and sealing anew what is not sealed under the newest key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from swarmd.base.errors import CorruptFile, SecretUnreadable
from swarmd.observe.log import get_logger
from swarmd.state.raft.messages import Compare, Entry, Put, Txn
from swarmd.state.secrets.records import Box, RingRecord
from swarmd.state.secrets.ring import Ring, Store

_log = get_logger("secrets")
# Records looked at between two turns of the loop; each may have tens of KiB.
_PAGE: Final = 16


@dataclass(frozen=True)
class Sealed:
    """Records with something sealed in them.

    `box_of` gives the box, what it is bound to and what it is, for people; None if there is none.
    """

    prefix: bytes
    box_of: Callable[[bytes], tuple[Box, bytes, str] | None]
    with_box: Callable[[bytes, Box], bytes]


async def reseal(
    store: Store, ring: Ring, record: RingRecord, kinds: Sequence[Sealed]
) -> frozenset[bytes] | None:
    """Seal everything under the newest key of `record`.

    Returns:
        The ids of the keys that something is still sealed under, because they are held nowhere;
        all of them if some record cannot be read. None if something changed meanwhile: then it
        must be done again.
    """
    while_ring = ring.while_as()  # Of `record`: nothing was awaited since it was read.
    left: set[bytes] = set()
    for kind in kinds:
        after = b""
        while page := await store.range(kind.prefix, after=after, limit=_PAGE):
            for entry in page:
                if not await _reseal_one(store, ring, record, while_ring, kind, entry, left):
                    return None
            after = page[-1].key
    return frozenset(left)


async def _reseal_one(
    store: Store,
    ring: Ring,
    record: RingRecord,
    while_ring: Compare,
    kind: Sealed,
    entry: Entry,
    left: set[bytes],
) -> bool:
    try:
        found = kind.box_of(entry.value)
        if found is None or found[0].key == record.newest.id:
            return True
        box, about, what = found
        data = await ring.open(box, about, what)
    except SecretUnreadable as error:
        _log.warning("something sealed is left as it is", why=error.message)
        left.add(box.key)
        return True
    except CorruptFile as error:
        # A newer version may read it, with whatever key it needs.
        _log.error("a record is left alone", key=repr(entry.key), error=error.message)
        left.update(record.ids)
        return True
    value = kind.with_box(entry.value, ring.seal(record, data, about))
    unchanged = Compare(entry.key, revision=entry.mod_revision)
    put = Txn((while_ring, unchanged), (Put(entry.key, value, lease=entry.lease),))
    [result] = await store.propose([put])
    return result.ok

"""Watches of keys on one node: which have changed, each once, and since when."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Final

import trio

# Keys that changed and that nobody has asked for yet; beyond it a watch is told to read them all.
_WATCHED_MAX: Final = 10_000
# Changes that a watch which comes back can be told of.
_REMEMBERED_MAX: Final = 10_000
_NUMBER_DIGITS_MAX: Final = 18


class KeyWatch:
    """Keys of a bucket as they change: each once, however often it changed since it was told.

    `lagged`: some that changed are not told: read all of them. Whoever reads this sets it to False.
    """

    def __init__(self, bucket: str, prefix: str, changes: Changes) -> None:
        self.lagged = False
        self._bucket, self._prefix, self._changes = bucket, prefix, changes
        # Which number each key's first change had that is not told yet, in this order.
        self._changed: OrderedDict[str, int] = OrderedDict()
        self._wake = trio.Event()

    @property
    def position(self) -> str:
        """All changes up to here were told; see `Eventual.watch`."""
        first = next(iter(self._changed.values()), self._changes.newest + 1)
        return f"{self._changes.life}-{first - 1}"

    async def receive(self) -> str:
        """The next key. Cancelled, it takes none."""
        await self.wait()
        return self.take(1)[0]

    def __len__(self) -> int:
        """How many keys changed that nobody has asked for yet."""
        return len(self._changed)

    async def wait(self) -> None:
        """Return once there is a key to be asked for."""
        while not self._changed:
            self._wake = trio.Event()
            await self._wake.wait()
        await trio.lowlevel.checkpoint_if_cancelled()

    def take(self, most: int) -> list[str]:
        """The next keys, at most so many, without waiting for any."""
        return [self._changed.popitem(last=False)[0] for _ in range(min(most, len(self)))]

    def drain(self) -> list[str]:
        """All keys that changed since this was asked."""
        return self.take(len(self))

    def lose(self, bucket: str) -> None:
        """Note that keys of a bucket are somewhere else now, if it is this one."""
        if bucket == self._bucket:
            self.lagged = True
            self._wake.set()

    def note(self, bucket: str, key: str, number: int) -> None:
        if bucket != self._bucket or not key.startswith(self._prefix) or key in self._changed:
            return
        if len(self._changed) >= _WATCHED_MAX:
            self.lagged = True
            return
        self._changed[key] = number
        self._wake.set()


class Changes:
    """Which keys have changed on this node since its start, the latest of them."""

    def __init__(self, life: str) -> None:
        self.life = life
        self.newest = 0
        self._keys: deque[tuple[str, str]] = deque(maxlen=_REMEMBERED_MAX)

    def add(self, bucket: str, key: str) -> int:
        self.newest += 1
        self._keys.append((bucket, key))
        return self.newest

    def after(self, position: str) -> Iterator[tuple[str, str, int]]:
        """Bucket, key and number of every change after a position.

        Raises:
            LookupError: it is of another node or another life, or too long ago.
        """
        life, _, digits = position.partition("-")
        sound = digits.isascii() and digits.isdigit() and len(digits) <= _NUMBER_DIGITS_MAX
        number = int(digits) if sound else -1
        first = self.newest - len(self._keys)
        if life != self.life or not first <= number <= self.newest:
            raise LookupError(position)
        for at in range(number - first, len(self._keys)):
            yield (*self._keys[at], first + at + 1)

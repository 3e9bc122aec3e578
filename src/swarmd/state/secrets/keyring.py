"""The keys that this node holds, in one file of mode 0600 beside the node's own key.

It is no part of what the store exports, and of nothing else that leaves the node but what
`messages` says to members that may vote.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from swarmd.base.disk import Disk, open_body, seal_body
from swarmd.base.errors import (
    BadSignature,
    CorruptFile,
    MalformedMessage,
    SecretUnreadable,
    Unavailable,
)
from swarmd.identity.sealing import SEAL_ID_BYTES, SealingKey
from swarmd.state.secrets.machine import to_keep
from swarmd.state.secrets.messages import KEYS_MAX, HeldKey
from swarmd.state.secrets.records import KEY_ID_BYTES, RING_KEYS_MAX, Box, RingRecord
from swarmd.wire.codec import decode_struct, encode_struct

FILE_NAME: Final = "keyring"
_KIND: Final = "keyring"
_FORMAT: Final = 1
assert RING_KEYS_MAX <= KEYS_MAX // 2
assert KEY_ID_BYTES == SEAL_ID_BYTES, "the ring names keys by their own ids"


class _Stored(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    keys: Annotated[tuple[HeldKey, ...], Meta(max_length=KEYS_MAX)]


class Keyring:
    """Raises CorruptFile when it is made on a file that it cannot read."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._held: dict[bytes, HeldKey] = {}
        self._keys: dict[bytes, SealingKey] = {}
        raw = disk.read(FILE_NAME)
        if raw is not None:
            self._hold(read_keyring(raw))

    @property
    def ids(self) -> frozenset[bytes]:
        return frozenset(self._held)

    def held(self) -> tuple[HeldKey, ...]:
        """All of them, to be handed on."""
        return tuple(self._held.values())

    def keep(self, keys: Iterable[HeldKey], ring: RingRecord | None) -> None:
        """Hold these too; they are on disk on return.

        Of those that are not in the ring the oldest go if there are too many: whatever gets into
        it later is held by a majority, and fetched.

        Raises:
            DiskFault: nothing changed.
        """
        held = dict(self._held)
        for key in keys:
            held.setdefault(SealingKey(key.raw).id, key)
        if len(held) == len(self._held):
            return
        listed = ring.ids if ring is not None else frozenset()
        for key_id in [one for one in held if one not in listed][: -KEYS_MAX // 2]:
            del held[key_id]
        self._write([*held.values()])

    def prune(self, ring: RingRecord | None, ring_revision: int) -> None:
        """Delete what is in the ring no more. Raises DiskFault: nothing changed."""
        kept = to_keep(self._held, ring, ring_revision)
        if len(kept) != len(self._held):
            self._write([*kept.values()])

    def forget(self) -> None:
        """Delete all. Raises DiskFault."""
        delete_keys(self._disk)
        self._held, self._keys = {}, {}

    def seal(self, key_id: bytes, data: bytes, about: bytes) -> Box:
        """`data` under a key. Raises Unavailable: it is not held here any more."""
        key = self._keys.get(key_id)
        if key is None:
            raise Unavailable("this node has no keys for secrets any more: ask another one")
        return Box(key_id, key.seal(data, about))

    def open(self, box: Box, about: bytes, what: str) -> bytes:
        """What is in a box.

        Raises:
            SecretUnreadable: its key is not held here, or it is not about that; names `what`.
        """
        key = self._keys.get(box.key)
        if key is None:
            raise SecretUnreadable(
                f"{what} cannot be read: no key for it is held here; if no member that may vote "
                "comes back with one, set it again"
            )
        try:
            return key.open(box.sealed, about)
        except BadSignature as error:
            raise SecretUnreadable(
                f"{what} cannot be read: it was sealed as something else, or for another swarm; "
                "set it again"
            ) from error

    def _write(self, keys: list[HeldKey]) -> None:
        body = encode_struct(_Stored(tuple(keys)))
        self._disk.replace(FILE_NAME, seal_body(_KIND, _FORMAT, body))
        self._held, self._keys = {}, {}
        self._hold(keys)

    def _hold(self, keys: Iterable[HeldKey]) -> None:
        for key in keys:
            made = SealingKey(key.raw)
            self._held[made.id], self._keys[made.id] = key, made


def delete_keys(disk: Disk) -> None:
    """Delete what a keyring left on a disk, readable or not. Raises DiskFault."""
    disk.remove(FILE_NAME)


def read_keyring(raw: bytes) -> tuple[HeldKey, ...]:
    """The keys in a file. Raises CorruptFile."""
    body = open_body(_KIND, _FORMAT, raw, source=FILE_NAME)
    try:
        stored: _Stored = decode_struct(_Stored, body)
    except MalformedMessage:
        # Without its cause, which may quote what it found.
        raise CorruptFile(
            f"{FILE_NAME} does not hold keys: move it away, and this node asks the others for them"
        ) from None
    return stored.keys

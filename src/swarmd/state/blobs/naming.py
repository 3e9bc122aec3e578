"""A blob's name: the hash of its bytes, by chunks. Pure.

A blob is cut into chunks of 256 KiB; the last one may be shorter. One of at most one chunk is named
by its plain BLAKE2b-256. A larger one is named by the root of BLAKE2b's tree mode, of depth two and
unlimited fanout (Aumasson, Neves, Wilcox-O'Hearn, Winnerlein, *BLAKE2: simpler, smaller, fast as
MD5*, 2013, section 2.10). Its leaves are the hashes of the chunks, which know their place and which
one is last. So the name proves the list of the chunks' hashes, the list proves each chunk, in any
order, and every byte is hashed once.
"""

from __future__ import annotations

import hashlib
from typing import Final

from swarmd.base.limits import BLOB_CHUNK_BYTES

HASH_BYTES: Final = 32


def chunks_in(size: int) -> int:
    """How many chunks a blob of `size` bytes has."""
    return -(-size // BLOB_CHUNK_BYTES)


def chunk_size(size: int, index: int) -> int:
    """How many bytes chunk `index` of a blob of `size` bytes has."""
    return min(BLOB_CHUNK_BYTES, size - index * BLOB_CHUNK_BYTES)


def chunk_hasher(index: int, count: int) -> hashlib.blake2b:
    """What hashes chunk `index` of a blob of `count` chunks."""
    if count <= 1:
        return hashlib.blake2b(digest_size=HASH_BYTES)
    return _node(b"", depth=0, offset=index, last=index == count - 1)


def name_of(hashes: bytes) -> bytes:
    """The name of the blob whose chunks have these hashes, joined, in order."""
    if len(hashes) <= HASH_BYTES:
        return hashes or hashlib.blake2b(digest_size=HASH_BYTES).digest()
    return _node(hashes, depth=1, offset=0, last=True).digest()


def hash_of(data: bytes) -> bytes:
    """The name of the blob `data`."""
    hasher = Hasher()
    hasher.update(data)
    return hasher.digest()


class Hasher:
    """Names a blob that comes in pieces of any size; it holds back one chunk at most."""

    def __init__(self) -> None:
        self._hashes: list[bytes] = []
        # Whether a chunk is the last one, which its hash tells, shows when more comes.
        self._rest = bytearray()

    def update(self, data: bytes | memoryview) -> None:
        """The next bytes of the blob."""
        view = memoryview(data)
        if self._rest:
            missing = BLOB_CHUNK_BYTES - len(self._rest)
            self._rest += view[:missing]
            view = view[missing:]
            if view:
                self._add(self._rest)
                self._rest = bytearray()
        while len(view) > BLOB_CHUNK_BYTES:
            self._add(view[:BLOB_CHUNK_BYTES])
            view = view[BLOB_CHUNK_BYTES:]
        self._rest += view

    def hashes(self) -> bytes:
        """The hashes of the chunks, joined, if this was all."""
        if not self._rest:
            return b""
        last = chunk_hasher(len(self._hashes), len(self._hashes) + 1)
        last.update(self._rest)
        return b"".join((*self._hashes, last.digest()))

    def digest(self) -> bytes:
        """The name, if this was all."""
        return name_of(self.hashes())

    def _add(self, chunk: bytearray | memoryview) -> None:
        state = _node(chunk, depth=0, offset=len(self._hashes), last=False)
        self._hashes.append(state.digest())


def _node(
    data: bytes | bytearray | memoryview, *, depth: int, offset: int, last: bool
) -> hashlib.blake2b:
    return hashlib.blake2b(
        data,
        digest_size=HASH_BYTES,
        fanout=0,
        depth=2,
        leaf_size=BLOB_CHUNK_BYTES,
        node_offset=offset,
        node_depth=depth,
        inner_size=HASH_BYTES,
        last_node=last,
    )

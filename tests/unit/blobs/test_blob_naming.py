"""Names of blobs: BLAKE2b of the specification, computed here by its text, and hashlib agree."""

from __future__ import annotations

import hashlib
import random
import struct

import pytest

from swarmd.base.limits import BLOB_CHUNK_BYTES
from swarmd.state.blobs.naming import Hasher, chunk_hasher, chunk_size, chunks_in, hash_of, name_of

CHUNK = BLOB_CHUNK_BYTES
SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 17]

# ---- BLAKE2b by RFC 7693 and section 2.10 of the paper, slow and plain ---------------

IV = [
    0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1,
    0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179,
]  # fmt: skip
SIGMA = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
    [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
    [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
    [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
    [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
    [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
    [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
    [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
    [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
]
LANES = [
    (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14),
]  # fmt: skip
M64 = 2**64 - 1


def compress(h: list[int], block: bytes, count: int, last: bool, last_node: bool) -> None:
    m = struct.unpack("<16Q", block)
    v = h + IV
    v[12] ^= count & M64
    v[13] ^= count >> 64
    v[14] ^= M64 if last else 0
    v[15] ^= M64 if last and last_node else 0
    for number in range(12):
        s = SIGMA[number % 10]
        for lane, (a, b, c, d) in enumerate(LANES):
            va, vb, vc, vd = v[a], v[b], v[c], v[d]
            va = (va + vb + m[s[2 * lane]]) & M64
            vd ^= va
            vd = (vd >> 32) | (vd << 32) & M64
            vc = (vc + vd) & M64
            vb ^= vc
            vb = (vb >> 24) | (vb << 40) & M64
            va = (va + vb + m[s[2 * lane + 1]]) & M64
            vd ^= va
            vd = (vd >> 16) | (vd << 48) & M64
            vc = (vc + vd) & M64
            vb ^= vc
            vb = (vb >> 63) | (vb << 1) & M64
            v[a], v[b], v[c], v[d] = va, vb, vc, vd
    for place in range(8):
        h[place] ^= v[place] ^ v[place + 8]


def blake2b(data: bytes, parameters: bytes, *, last_node: bool) -> bytes:
    assert len(parameters) == 64
    h = [iv ^ word for iv, word in zip(IV, struct.unpack("<8Q", parameters), strict=True)]
    starts = range(0, max(len(data), 1), 128)
    for start in starts:
        block = data[start : start + 128]
        end = start + len(block)
        compress(h, block.ljust(128, b"\0"), end, start == starts[-1], last_node)
    return struct.pack("<8Q", *h)[: parameters[0]]


def node(data: bytes, *, offset: int, depth: int, last: bool) -> bytes:
    """Table 2.2: digest, key, fanout, depth; leaf length, node offset, node depth, inner length."""
    parameters = struct.pack("<BBBBIQBB14x32x", 32, 0, 0, 2, CHUNK, offset, depth, 32)
    return blake2b(data, parameters, last_node=last)


def plain(data: bytes) -> bytes:
    return blake2b(data, struct.pack("<BBBB60x", 32, 0, 1, 1), last_node=False)


# ---------------------------------------------------------------------------------------


def data_of(size: int) -> bytes:
    """Bytes that anybody can make again: SHAKE-128 of a name."""
    return hashlib.shake_128(b"swarmd blob").digest(size)


def cut(data: bytes) -> list[bytes]:
    return [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]


def test_the_slow_one_is_blake2b() -> None:
    """RFC 7693, appendix A: of `abc`, 64 bytes."""
    found = blake2b(b"abc", struct.pack("<BBBB60x", 64, 0, 1, 1), last_node=False)
    assert found.hex().startswith(
        "ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d1"
    )
    assert plain(b"") == hashlib.blake2b(digest_size=32).digest()


def test_the_tree_is_that_of_the_specification() -> None:
    data = data_of(2 * CHUNK + 17)
    leaves = [
        node(chunk, offset=index, depth=0, last=index == 2) for index, chunk in enumerate(cut(data))
    ]
    hasher = Hasher()
    hasher.update(data)
    assert hasher.hashes() == b"".join(leaves)
    assert hasher.digest() == node(b"".join(leaves), offset=0, depth=1, last=True)


@pytest.mark.parametrize(
    ("size", "name"),
    [
        (0, "0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8"),
        (1, "220823288f31bdd951e37a80da8586f6e90c68de9ab062322788a77dddb041bf"),
        (CHUNK, "fa7d81e302dbb0b81dc7a6a9d0874ce91f6bf9882a0e0deec7a54cda5abcde93"),
        (CHUNK + 1, "fdd7bdc9df5638aef6be1548a252045b74fb973efac4093a6946e45078c6d65a"),
        (2 * CHUNK, "d84c6fba4bba6eea1a5cf7acc93dab4b163e7ccc1a420f45046b99551b6a065a"),
        (3 * CHUNK + 17, "0230ecb97c54870777c0c358b204f8271b5f798c3686d1ae107e4435b795d392"),
    ],
)
def test_names_stay_what_they_are(size: int, name: str) -> None:
    """Computed once by the slow one above; a change would make every blob another one."""
    assert hash_of(data_of(size)).hex() == name


@pytest.mark.parametrize("size", [0, 1, CHUNK])
def test_one_chunk_has_the_name_that_b2sum_shows(size: int) -> None:
    data = data_of(size)
    assert hash_of(data) == hashlib.blake2b(data, digest_size=32).digest()


@pytest.mark.parametrize("size", SIZES)
def test_pieces_of_any_size_give_the_name_of_the_whole(size: int) -> None:
    data, rng = data_of(size), random.Random(size)
    name = hash_of(data)
    for piece_max in (1_000, CHUNK, 3 * CHUNK):
        hasher, at = Hasher(), 0
        while at < size:
            step = rng.randrange(1, piece_max + 1)
            hasher.update(data[at : at + step])
            assert len(hasher._rest) <= CHUNK
            at += step
        assert hasher.digest() == name
        assert name_of(hasher.hashes()) == name


@pytest.mark.parametrize("size", SIZES)
def test_each_chunk_is_hashed_by_itself(size: int) -> None:
    data = data_of(size)
    hashes = []
    for index, chunk in enumerate(cut(data)):
        assert len(chunk) == chunk_size(size, index)
        state = chunk_hasher(index, chunks_in(size))
        state.update(chunk)
        hashes.append(state.digest())
    assert name_of(b"".join(hashes)) == hash_of(data)


def test_names_tell_sizes_places_and_ends_apart() -> None:
    same = bytes(CHUNK)
    names = {hash_of(same * count + rest) for count in range(4) for rest in (b"", b"\0")}
    assert len(names) == 8
    hasher = Hasher()
    hasher.update(3 * same)
    assert len({hasher.hashes()[at : at + 32] for at in (0, 32, 64)}) == 3

"""Streams of frames: what goes in comes out, in any pieces; damage is named where it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raft_hands import sim_disk

from swarmd.base.disk import Disk
from swarmd.base.errors import CorruptFile
from swarmd.base.files import FileDisk
from swarmd.state.raft.frames import (
    FRAME_BODY_BYTES_MAX,
    READ_BYTES,
    FrameReader,
    FrameWriter,
    pack,
    read_frames,
    stream_digest,
    unpack,
)

_bodies = st.lists(st.binary(min_size=1, max_size=50), max_size=8)


@given(bodies=_bodies, piece=st.integers(1, 60))
@settings(deadline=None, max_examples=100)
def test_frames_come_out_as_they_went_in_whatever_the_pieces(
    bodies: list[bytes], piece: int
) -> None:
    raw = pack("thing", 3, bodies)
    reader = FrameReader("thing", 3, source="test")
    found: list[bytes] = []
    for at in range(0, len(raw), piece):
        found += reader.feed(raw[at : at + piece])
    assert found == bodies
    writer = FrameWriter("thing", 3)
    for body in (writer.head(), *map(writer.frame, bodies), writer.end()):
        assert body
    assert reader.finish() == writer.digest


@given(bodies=_bodies, at=st.integers(0, 10**6), flip=st.integers(1, 255))
@settings(deadline=None, max_examples=150)
def test_a_flipped_byte_anywhere_is_refused(bodies: list[bytes], at: int, flip: int) -> None:
    raw = bytearray(pack("thing", 1, bodies))
    raw[at % len(raw)] ^= flip
    with pytest.raises(CorruptFile, match="test"):
        unpack("thing", 1, bytes(raw), source="test")


@given(bodies=_bodies, cut=st.integers(0, 10**6), tail=st.binary(min_size=1, max_size=20))
@settings(deadline=None, max_examples=100)
def test_what_lacks_its_end_or_goes_on_behind_it_is_refused(
    bodies: list[bytes], cut: int, tail: bytes
) -> None:
    raw = pack("thing", 1, bodies)
    with pytest.raises(CorruptFile):
        unpack("thing", 1, raw[: cut % len(raw)], source="test")
    with pytest.raises(CorruptFile, match="behind its end"):
        unpack("thing", 1, raw + tail, source="test")


@given(raw=st.binary(max_size=200))
@settings(deadline=None, max_examples=200)
def test_any_bytes_are_refused_by_name(raw: bytes) -> None:
    with pytest.raises(CorruptFile, match="junk"):
        unpack("thing", 1, raw, source="junk")


def test_a_frame_is_not_believed_to_be_larger_than_allowed() -> None:
    raw = bytearray(pack("thing", 1, [b"x" * 10]))
    raw[14:18] = (FRAME_BODY_BYTES_MAX + 1).to_bytes(4, "big")
    with pytest.raises(CorruptFile, match="frame at byte 14"):
        unpack("thing", 1, bytes(raw), source="test")


def test_another_kind_or_format_is_named() -> None:
    with pytest.raises(CorruptFile, match="not a thing file"):
        unpack("thing", 1, pack("other", 1, []), source="test")
    with pytest.raises(CorruptFile, match="format 2; this version reads 1"):
        unpack("thing", 1, pack("thing", 2, []), source="test")


def _large(disk: Disk) -> list[bytes]:
    bodies = [bytes([n]) * (READ_BYTES // 3) for n in range(1, 12)]
    disk.replace("file", pack("thing", 1, bodies))
    return bodies


@pytest.mark.parametrize("real", [True, False])
def test_a_file_is_read_in_pieces(tmp_path: Path, real: bool) -> None:
    disk: Disk = FileDisk(tmp_path / "d") if real else sim_disk()
    bodies = _large(disk)
    assert list(read_frames(disk, "file", "thing", 1)) == bodies
    assert stream_digest(disk, "file", "thing", 1) != stream_digest_of(disk, [b"other"])
    with pytest.raises(CorruptFile, match="vanished"):
        next(read_frames(disk, "absent", "thing", 1))


def stream_digest_of(disk: Disk, bodies: list[bytes]) -> bytes:
    disk.replace("small", pack("thing", 1, bodies))
    return stream_digest(disk, "small", "thing", 1)


@pytest.mark.parametrize("real", [True, False])
def test_a_reader_keeps_the_file_that_it_opened(tmp_path: Path, real: bool) -> None:
    disk: Disk = FileDisk(tmp_path / "d") if real else sim_disk()
    disk.replace("file", b"old content")
    reader = disk.reader("file")
    assert reader is not None
    disk.append("aside", b"new")
    disk.sync("aside")
    disk.rename("aside", "file")
    assert (reader.size, reader.read(4, 100)) == (11, b"content")
    reader.close()
    assert disk.read("file") == b"new"
    assert disk.names() == ["file"]
    disk.rename("aside", "file")  # A repeat of one that failed late.
    assert disk.read("file") == b"new"
    assert disk.reader("absent") is None

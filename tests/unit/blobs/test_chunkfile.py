"""A blob's file by chunks, in clear and sealed: any order, resumed, damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from swarmd.base.errors import CorruptFile, DiskFault
from swarmd.base.limits import BLOB_CHUNK_BYTES
from swarmd.base.sealed_file import Sealer
from swarmd.identity.sealing import SealingKey
from swarmd.state.blobs.chunkfile import ChunkReader, ChunkWriter
from swarmd.state.blobs.naming import chunk_size, chunks_in, hash_of
from swarmd.state.blobs.store import BlobFolder

DATA = os.urandom(3 * BLOB_CHUNK_BYTES + 17)


@pytest.fixture(params=["clear", "sealed"])
def sealer(request: pytest.FixtureRequest) -> Sealer | None:
    return SealingKey(b"k" * 32) if request.param == "sealed" else None


def chunk(index: int, data: bytes = DATA) -> bytes:
    return data[index * BLOB_CHUNK_BYTES : (index + 1) * BLOB_CHUNK_BYTES]


def read_all(path: Path, sealer: Sealer | None) -> bytes:
    reader = ChunkReader(path, sealer)
    try:
        return b"".join(reader.read(index) for index in range(chunks_in(reader.size)))
    finally:
        reader.close()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("size", [0, 1, BLOB_CHUNK_BYTES, len(DATA)])
def test_chunks_written_in_any_order_are_a_blob_that_older_code_reads(
    tmp_path: Path, sealer: Sealer | None, size: int, known: bool
) -> None:
    data = DATA[:size]
    folder = BlobFolder(tmp_path, bytes_max=10**9, sealer=sealer)
    folder.open_file(0.0)
    writer = ChunkWriter(tmp_path / "part", size if known else None, sealer)
    for index in reversed(range(chunks_in(size))):
        writer.write(index, chunk(index, data))
    writer.finish(size)
    writer.close()
    assert read_all(tmp_path / "part", sealer) == data
    folder.place_file(tmp_path / "part", folder.path(hash_of(data)))
    assert folder.read_file(hash_of(data)) == data
    again = BlobFolder(tmp_path, bytes_max=10**9, sealer=sealer)
    again.open_file(0.0)
    assert again.size_of(hash_of(data)) == size


def test_what_was_written_is_there_for_the_next_try(tmp_path: Path, sealer: Sealer | None) -> None:
    path = tmp_path / "part"
    first = ChunkWriter(path, len(DATA), sealer)
    first.write(2, chunk(2))
    first.write(0, chunk(0))
    first.close()
    assert first.read(0, BLOB_CHUNK_BYTES) == b"", "it is closed"
    second = ChunkWriter(path, len(DATA), sealer, resume=True)
    found = [second.read(i, chunk_size(len(DATA), i)) == chunk(i) for i in range(4)]
    assert found == [True, False, True, False]
    for index in (1, 3):
        second.write(index, chunk(index))
    second.finish(len(DATA))
    second.close()
    assert read_all(path, sealer) == DATA


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
def test_only_what_a_failed_sync_lost_is_not_there_for_the_next_try(
    tmp_path: Path, sealer: Sealer | None, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(fd: int) -> None:
        raise OSError(5, "Input/output error")

    path = tmp_path / "part"
    first = ChunkWriter(path, len(DATA), sealer)
    first.write(0, chunk(0))
    first.close()
    second = ChunkWriter(path, len(DATA), sealer, resume=True)
    second.write(1, chunk(1))
    second.sync()
    for index in (2, 3):
        second.write(index, chunk(index))
    with monkeypatch.context() as patch:
        patch.setattr(f"os.{call}", refuse)
        with pytest.raises(DiskFault, match="Input/output error"):
            second.sync() if call == "fdatasync" else second.finish(len(DATA))
    second.close()
    third = ChunkWriter(path, len(DATA), sealer, resume=True)
    found = [third.read(i, chunk_size(len(DATA), i)) == chunk(i) for i in range(4)]
    assert found == [True, True, False, False]
    for index in (2, 3):
        third.write(index, chunk(index))
    third.finish(len(DATA))
    third.close()
    assert read_all(path, sealer) == DATA


def test_a_file_begun_anew_goes_with_the_sync_that_failed(
    tmp_path: Path, sealer: Sealer | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int) -> None:
        raise OSError(28, "No space left on device")

    writer = ChunkWriter(tmp_path / "part", None, sealer)
    writer.write(0, chunk(0))
    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(DiskFault, match="No space left on device"):
        writer.finish(BLOB_CHUNK_BYTES)
    writer.close()
    assert not (tmp_path / "part").exists()


def test_a_damaged_chunk_is_the_only_one(tmp_path: Path, sealer: Sealer | None) -> None:
    path = tmp_path / "part"
    writer = ChunkWriter(path, len(DATA), sealer)
    for index in range(4):
        writer.write(index, chunk(index))
    writer.finish(len(DATA))
    writer.close()
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    reader = ChunkReader(path, sealer)
    good = []
    for index in range(4):
        try:
            good.append(reader.read(index) == chunk(index))
        except CorruptFile:
            good.append(False)
    reader.close()
    assert good.count(False) == 1
    again = ChunkWriter(path, len(DATA), sealer, resume=True)
    sizes = [chunk_size(len(DATA), index) for index in range(4)]
    assert [again.read(index, sizes[index]) == chunk(index) for index in range(4)] == good
    again.close()


def test_a_partial_file_under_another_key_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "part"
    old = ChunkWriter(path, len(DATA), SealingKey(b"o" * 32))
    old.write(0, chunk(0))
    old.close()
    new = ChunkWriter(path, len(DATA), SealingKey(b"n" * 32), resume=True)
    assert new.read(0, BLOB_CHUNK_BYTES) == b""
    new.close()


def test_no_file_and_no_blobs_length_are_named(tmp_path: Path) -> None:
    with pytest.raises(DiskFault, match="No such file"):
        ChunkReader(tmp_path / "none", None)
    (tmp_path / "odd").write_bytes(b"x" * 100)
    with pytest.raises(CorruptFile, match="no blob is as long"):
        ChunkReader(tmp_path / "odd", SealingKey(b"k" * 32))

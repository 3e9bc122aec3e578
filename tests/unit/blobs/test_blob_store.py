"""Blobs on one disk: whole or absent, bounded, and never deleted while they may be named."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmd.base.errors import BadRequest, Busy, DiskFault, MalformedMessage
from swarmd.base.sealed_file import FRAME_BODY_BYTES_MAX
from swarmd.identity.sealing import SealingKey
from swarmd.state.blobs.naming import hash_of
from swarmd.state.blobs.store import BlobFolder

DATA = b"a blob" * 1_000
KEY = SealingKey(b"k" * 32)
_sealer: SealingKey | None = None


@pytest.fixture(params=[None, KEY], ids=["in clear", "sealed"], autouse=True)
def sealer(request: pytest.FixtureRequest) -> SealingKey | None:
    """All of this holds in a sealed data folder, too."""
    global _sealer
    _sealer = request.param
    return _sealer


def opened(folder: Path, *, bytes_max: int = 1_000_000, now: float = 0.0) -> BlobFolder:
    store = BlobFolder(folder, bytes_max=bytes_max, sealer=_sealer)
    store.open_file(now)
    return store


def filled(folder: Path) -> BlobFolder:
    store = opened(folder)
    store.write_file(hash_of(DATA), DATA)
    store.added(hash_of(DATA), len(DATA), 0.0)
    return store


def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    filled(tmp_path)
    store = opened(tmp_path)
    assert store.size_of(hash_of(DATA)) == len(DATA)
    assert store.read_file(hash_of(DATA)) == DATA
    assert (store.count, store.total_bytes) == (1, len(DATA))


def test_what_was_half_written_is_gone_after_a_restart(tmp_path: Path) -> None:
    store = opened(tmp_path)
    upload = store.begin_upload(hash_of(DATA), len(DATA), 0.0)
    upload.append_file(0, DATA[:100])
    store = opened(tmp_path)
    assert store.count == 0
    assert list((tmp_path / "uploads").iterdir()) == []


@pytest.mark.parametrize("name", ["notes.txt", "aaaa", "a" * 52 + ".tmp"])
def test_a_file_of_another_name_is_not_a_blob(tmp_path: Path, name: str) -> None:
    opened(tmp_path)
    shard = tmp_path / "aa"
    shard.mkdir()
    (shard / name).write_bytes(b"?")
    assert opened(tmp_path).count == 0
    assert not (shard / name).exists()


@pytest.mark.parametrize("damage", [DATA[:-1], b"", DATA[:10] + b"?" + DATA[11:]])
def test_a_damaged_blob_is_not_read(tmp_path: Path, damage: bytes) -> None:
    store = filled(tmp_path)
    store.path(hash_of(DATA)).write_bytes(damage)
    assert store.read_file(hash_of(DATA)) is None


def test_room_is_bounded_with_uploads_counted(tmp_path: Path) -> None:
    store = opened(tmp_path, bytes_max=1_000)
    store.reserve(600)
    with pytest.raises(Busy):
        store.reserve(600)
    store.unreserve(600)
    store.reserve(600)


def test_an_upload_is_checked_piece_by_piece_and_as_a_whole(tmp_path: Path) -> None:
    store = opened(tmp_path)
    upload = store.begin_upload(hash_of(DATA), len(DATA), 0.0)
    with pytest.raises(BadRequest):
        upload.append_file(5, b"not the first")
    with pytest.raises(BadRequest):
        upload.append_file(0, DATA + b"!")
    with pytest.raises(BadRequest):
        upload.append_file(0, b"")
    upload.append_file(0, b"x" * len(DATA))
    with pytest.raises(MalformedMessage):
        upload.finish_file(store.path(hash_of(DATA)), store.place_file)
    upload.close()
    upload.close()
    assert opened(tmp_path).count == 0


def test_a_disk_that_refuses_is_named(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.path(hash_of(DATA)).parent.write_bytes(b"a file where a folder should be")
    with pytest.raises(DiskFault, match="cannot write"):
        store.write_file(hash_of(DATA), DATA)
    assert list((tmp_path / "uploads").iterdir()) == []


def test_only_what_is_unnamed_and_untouched_counts_as_unused(tmp_path: Path) -> None:
    store = filled(tmp_path)
    name = hash_of(DATA)
    assert list(store.unused(set(), before=0.0)) == []
    assert list(store.unused(set(), before=1.0)) == [name]
    assert list(store.unused({name}, before=1.0)) == []
    assert store.touch(name, 5.0)
    assert list(store.unused(set(), before=1.0)) == []
    store.drop(name)
    store.drop(name)
    assert (store.count, store.total_bytes) == (0, 0)
    assert not store.touch(name, 6.0)


LARGE = bytes(range(256)) * 3_000
FRAME = FRAME_BODY_BYTES_MAX


@pytest.mark.parametrize("size", [0, 1, FRAME - 1, FRAME, FRAME + 1, 2 * FRAME, len(LARGE)])
def test_pieces_of_any_size_make_a_blob_any_part_of_which_is_read(
    tmp_path: Path, size: int
) -> None:
    blob = LARGE[:size]
    for piece in (7_000, FRAME, 2 * FRAME):
        store = opened(tmp_path / str(piece))
        upload = store.begin_upload(hash_of(blob), size, 0.0)
        for offset in range(0, max(size, 1), piece):
            upload.append_file(offset, blob[offset : offset + piece])
        upload.finish_file(store.path(hash_of(blob)), store.place_file)
        upload.close()
        again = opened(tmp_path / str(piece))
        assert (again.size_of(hash_of(blob)), again.total_bytes) == (size, size)
        assert again.read_file(hash_of(blob)) == blob
        for offset in (0, 1, FRAME - 1, FRAME, FRAME + 5_000, size):
            part = again.read_part_file(hash_of(blob), offset, FRAME + 500)
            assert part == blob[offset : offset + FRAME + 500]


def test_a_sealed_blob_shows_nothing_and_opens_under_its_key_alone(
    tmp_path: Path, sealer: SealingKey | None
) -> None:
    store = filled(tmp_path)
    raw = store.path(hash_of(DATA)).read_bytes()
    assert (b"a blob" in raw) == (sealer is None)
    other = BlobFolder(tmp_path, bytes_max=10**6, sealer=SealingKey(b"o" * 32))
    assert other.read_file(hash_of(DATA)) is None
    assert other.read_part_file(hash_of(DATA), 0, 10) is None

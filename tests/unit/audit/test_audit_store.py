"""Segments: crashes cut nothing that was kept, damage is shown, the oldest goes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from audit_swarm import KEY, judged, opened, writer, written

from swarmd.audit import segments, store
from swarmd.audit.chain import Place, Sealed
from swarmd.audit.index import INDEX
from swarmd.audit.records import ChainId
from swarmd.audit.segments import Frame, frames_in, name_of, parse_name
from swarmd.audit.store import AuditFolder
from swarmd.base.errors import DiskFault

NODE = bytes(KEY.key_id)
CHAIN = writer().chain


def kept(path: Path, sealed: list[Sealed], *, each: bool = False) -> AuditFolder:
    folder = opened(path)
    for batches in [[one] for one in sealed] if each else [sealed]:
        folder.append_file(batches[0].seal.chain, batches, 5_000)
    return folder


def file_of(path: Path) -> Path:
    [file] = path.glob("*.log")
    return file


def raws(folder: AuditFolder, chain: ChainId = CHAIN) -> list[bytes]:
    found: list[bytes] = []
    place = (0, 0)
    while True:
        page, place = folder.read_raw_file(chain, place, 1)
        found += page
        if place == (0, 0):
            return found


def test_what_was_kept_is_there_after_a_restart(tmp_path: Path) -> None:
    sealed = written([3, 2, 4])
    kept(tmp_path, sealed, each=True)
    again = opened(tmp_path)
    life = again.lives[CHAIN]
    assert (life.first, life.last, life.hash) == (1, 9, sealed[-1].seal.hash)
    assert raws(again) == [one.raw for one in sealed]
    assert again.read_file(CHAIN, 3, 1_000_000) == [one.raw for one in sealed[1:]]
    assert again.read_file(CHAIN, 3, 1) == [sealed[1].raw]
    assert again.read_file(CHAIN, 9, 1) == []
    assert (tmp_path.stat().st_mode & 0o077, file_of(tmp_path).stat().st_mode & 0o077) == (0, 0)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[ChainId]:
    """Of which lives files were read."""
    found: list[ChainId] = []
    read = AuditFolder._read

    def counted(self: AuditFolder, chain: ChainId, segment: store.Segment) -> bytes:
        found.append(chain)
        return read(self, chain, segment)

    monkeypatch.setattr(AuditFolder, "_read", counted)
    return found


def test_what_did_not_change_is_read_at_one_start_and_no_more(
    tmp_path: Path, reads: list[ChainId]
) -> None:
    lives = [written([2, 1], writer(life=bytes([number]) * 8)) for number in range(5)]
    for life in lives:
        kept(tmp_path, life)
    first = opened(tmp_path)
    reads.clear()
    again = opened(tmp_path)
    assert not reads
    assert again.lives == first.lives
    other = written([4], writer(life=b"other   "))
    again.append_file(other[0].seal.chain, other, 6_000)
    assert other[0].seal.chain in opened(tmp_path).lives
    assert set(reads) == {other[0].seal.chain}


def test_a_life_that_was_gone_on_with_or_lost_a_file_is_read_again(
    tmp_path: Path, reads: list[ChainId]
) -> None:
    first, second, third = written([2, 3, 4])
    kept(tmp_path, [first])
    kept(tmp_path, [second])
    kept(tmp_path, [third])
    opened(tmp_path)
    reads.clear()
    more = tmp_path / name_of(CHAIN, third.seal.first)
    more.unlink()
    life = opened(tmp_path).lives[CHAIN]
    assert (life.first, life.last, life.hash) == (1, 5, second.seal.hash)
    assert reads
    kept(tmp_path, [third])
    life = opened(tmp_path).lives[CHAIN]
    assert (life.first, life.last, len(life.segments)) == (1, 9, 3)


def test_an_index_that_is_damaged_or_of_another_folder_costs_time_alone(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    kept(one, written([2, 1]))
    kept(other, written([3, 3], writer(life=b"other   ")))
    lives = opened(one).lives
    opened(other)
    (one / INDEX).write_bytes((other / INDEX).read_bytes())
    assert opened(one).lives == lives
    for damage in (b"", b"x" * 100, (one / INDEX).read_bytes()[:-1]):
        (one / INDEX).write_bytes(damage)
        assert opened(one).lives == lives


def test_what_was_torn_after_it_was_indexed_is_cut_off(tmp_path: Path) -> None:
    sealed = written([3, 2])
    kept(tmp_path, sealed[:1])
    folder = opened(tmp_path)
    with file_of(tmp_path).open("ab") as file:
        file.write(b"torn")
    assert opened(tmp_path).lives[CHAIN].last == 3
    folder = opened(tmp_path)
    folder.append_file(CHAIN, sealed[1:], 6_000)
    assert opened(tmp_path).lives[CHAIN].last == 5


def test_a_crash_within_a_write_costs_that_write_alone(tmp_path: Path) -> None:
    sealed = written([3, 2, 4])
    kept(tmp_path / "whole", sealed, each=True)
    whole = file_of(tmp_path / "whole").read_bytes()
    ends = [0, *(frame.end for frame in frames_in(whole))]
    name = name_of(CHAIN, 1)
    for size in range(0, len(whole), 7):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / name).write_bytes(whole[:size])
        count = max(index for index, end in enumerate(ends) if end <= size)
        found = opened(folder)
        if count == 0:
            assert CHAIN not in found.lives
            assert not list(folder.iterdir())
            continue
        assert found.lives[CHAIN].last == sealed[count - 1].seal.last
        assert raws(found) == [one.raw for one in sealed[:count]]
        # What goes on in a new segment is not lost behind what was cut.
        if count < len(sealed):
            found.append_file(CHAIN, sealed[count:], 6_000)
            assert raws(opened(folder)) == [one.raw for one in sealed]


@pytest.mark.parametrize(
    ("at", "pieces", "found"),
    [
        pytest.param(0, 3, "undecodable", id="head"),
        # The batch itself is as it was, and says which records it holds.
        pytest.param(11, 3, "", id="number"),
        pytest.param(22, 4, "truncated", id="length"),
        pytest.param(90, 3, "signature", id="body"),
    ],
)
def test_damage_amid_is_shown_and_cuts_nothing_off(
    tmp_path: Path, at: int, pieces: int, found: str
) -> None:
    """A bit of the second of three frames turns over, `at` bytes behind its beginning."""
    sealed = written([3, 2, 4])
    kept(tmp_path, sealed)
    file = file_of(tmp_path)
    raw = bytearray(file.read_bytes())
    start = next(iter(frames_in(bytes(raw)))).end
    raw[start + at] ^= 1
    file.write_bytes(raw)
    folder = opened(tmp_path)
    assert folder.lives[CHAIN].last == 9
    shown = raws(folder)
    assert (shown[0], shown[-1], len(shown)) == (sealed[0].raw, sealed[2].raw, pieces)
    [verdict] = judged({NODE: [shown]}, {0: 9}, chains=[CHAIN])
    assert [one.number for one in verdict.findings] == [4] * bool(found)
    for one in verdict.findings:
        assert one.what.startswith("records 4 to 5 were changed")
        assert found in one.what
    # Peers are given only what is sound.
    assert folder.read_file(CHAIN, 0, 1_000_000) == [sealed[0].raw, sealed[2].raw]


def test_segments_that_are_gone_or_unreadable_are_no_reason_to_end(tmp_path: Path) -> None:
    kept(tmp_path, written([3]))
    file_of(tmp_path).write_bytes(b"SWAF" * 5_000)
    assert opened(tmp_path).lives == {}
    folder = kept(tmp_path, written([3]))
    file_of(tmp_path).unlink()
    assert raws(folder) == []
    (tmp_path / "something else").write_text("x")
    (tmp_path / "x.floor").write_text("x")
    assert opened(tmp_path).lives == {}


def test_a_disk_that_refuses_a_write_keeps_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = written([3, 2, 4])
    folder = kept(tmp_path, sealed[:1])
    real = os.fdatasync

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(DiskFault, match="No space left"):
        folder.append_file(CHAIN, sealed[1:2], 6_000)
    assert folder.lives[CHAIN].last == 3
    monkeypatch.setattr(os, "fdatasync", real)
    folder.append_file(CHAIN, sealed[1:], 6_000)
    assert raws(opened(tmp_path)) == [one.raw for one in sealed]


def test_segments_are_bounded_and_the_oldest_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SEGMENT_BYTES", 500)
    sealed = written([3] * 8)
    folder = opened(tmp_path)
    for number, one in enumerate(sealed):
        folder.append_file(CHAIN, [one], 5_000 + number)
    life = folder.lives[CHAIN]
    assert len(life.segments) > 3
    assert raws(folder) == [one.raw for one in sealed]
    oldest = folder.oldest(NODE, "security")
    assert oldest is not None
    assert oldest[1].first == 1
    last, digest = folder.end_of_file(*oldest) or (0, b"")
    before = folder.version
    folder.drop_file(*oldest, None)
    assert folder.version > before, "else who told the sum of what it held would tell it again"
    assert (life.first, digest) == (last + 1, sealed[last // 3 - 1].seal.hash)
    assert opened(tmp_path).lives[CHAIN].first == last + 1


def test_a_later_life_is_kept_in_files_of_its_own(tmp_path: Path) -> None:
    first = written([3])
    kept(tmp_path, first)
    seal = first[0].seal
    after = writer(life=b"m" * 8, parent=Place(seal.chain.life, seal.last, seal.hash))
    kept(tmp_path, written([2], after))
    found = opened(tmp_path)
    assert [(one.begin, one.last, one.parent) for one in found.lives.values()] == [
        (1, 3, b""),
        (4, 5, b"l" * 8),
    ]


def test_a_file_under_anothers_name_is_held_as_that_one(tmp_path: Path) -> None:
    """What a file says of itself proves nothing here; whoever checks that chain finds it."""
    kept(tmp_path, written([3]))
    other = writer(life=b"m" * 8).chain
    file_of(tmp_path).rename(tmp_path / name_of(other, 1))
    found = opened(tmp_path)
    assert {chain: life.chain for chain, life in found.lives.items()} == {other: other}
    [verdict] = judged({NODE: [raws(found, other)]}, {0: 3}, chains=[other])
    assert "inserted" in verdict.findings[0].what


def test_names_are_read_as_they_are_written() -> None:
    assert parse_name(name_of(CHAIN, 17)) == (CHAIN, 17)
    good = name_of(CHAIN, 17)
    bad: list[Any] = [good[:-1], good.upper(), good.replace(".s.", ".x."), "a.s.b.1.log", ""]
    bad += [good.replace("0000000000000000017", each) for each in ("0" * 19, "17", "²" * 19)]
    assert [parse_name(one) for one in bad] == [None] * len(bad)


def test_a_file_full_of_beginnings_is_read_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be a batch is looked for once, not once for each damaged one."""
    real, looks = segments._frame_at, 0

    def counted(raw: bytes, position: int) -> Frame | None:
        nonlocal looks
        looks += 1
        return real(raw, position)

    monkeypatch.setattr(segments, "_frame_at", counted)
    raw = (b"SWAF" + bytes(range(1, 17)) + bytes(4) + b"crc!") * 3_000
    assert sum(1 for _ in frames_in(raw)) == 3_000
    assert looks <= 2 * 3_000

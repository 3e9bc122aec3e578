"""Segments in a sealed data folder: nothing shows, damage is still evidence."""

from __future__ import annotations

from pathlib import Path

import pytest
from audit_swarm import writer, written

from swarmd.audit.resealing import reseal_segment
from swarmd.audit.segments import frame_of, frames_in
from swarmd.audit.store import AuditFolder
from swarmd.identity.sealing import SealingKey

ONE, OTHER = SealingKey(b"1" * 32), SealingKey(b"2" * 32)
CHAIN = writer().chain


def opened(path: Path, key: SealingKey | None = ONE) -> AuditFolder:
    folder = AuditFolder(path, key)
    folder.open_file()
    return folder


def shown(path: Path, key: SealingKey | None = ONE) -> list[bytes]:
    return opened(path, key).read_raw_file(CHAIN, (0, 0), 10**6)[0]


def file_of(path: Path) -> Path:
    [file] = path.glob("*.log")
    return file


def test_records_are_found_again_and_show_in_no_file(tmp_path: Path) -> None:
    batches = written([3, 2, 4])
    opened(tmp_path).append_file(CHAIN, batches, 5_000)
    raw = file_of(tmp_path).read_bytes()
    assert not [one for one in batches if one.raw[:40] in raw or one.raw[-40:] in raw]
    assert shown(tmp_path) == [one.raw for one in batches]
    assert opened(tmp_path).read_file(CHAIN, 3, 10**6) == [one.raw for one in batches[1:]]
    # Under another key nothing can be read, and nothing is cut off or written over.
    assert opened(tmp_path, OTHER).lives[CHAIN].unreadable
    assert file_of(tmp_path).read_bytes() == raw


def test_a_torn_end_is_cut_off(tmp_path: Path) -> None:
    batches = written([3, 2, 4])
    opened(tmp_path).append_file(CHAIN, batches, 5_000)
    whole = file_of(tmp_path).read_bytes()
    ends = [frame.end for frame in frames_in(whole)]
    file_of(tmp_path).write_bytes(whole[: ends[1] + 70])
    assert shown(tmp_path) == [one.raw for one in batches[:2]]
    assert file_of(tmp_path).read_bytes() == whole[: ends[1]]


@pytest.mark.parametrize("how", ["bit", "clear", "swapped"])
def test_a_frame_that_does_not_open_is_shown_as_it_lies_there(tmp_path: Path, how: str) -> None:
    batches = written([3, 2, 4])
    opened(tmp_path).append_file(CHAIN, batches, 5_000)
    file = file_of(tmp_path)
    raw = file.read_bytes()
    frames = list(frames_in(raw))
    start, end = frames[0].end, frames[1].end
    bent = {
        "bit": raw[start : end - 9] + bytes([raw[end - 9] ^ 1]) + raw[end - 8 : end],
        "clear": frame_of(batches[1]),  # Sound, but by nobody who has the key.
        "swapped": raw[frames[1].end : frames[2].end],
    }[how]
    file.write_bytes(raw[:start] + bent + raw[end:])
    found = shown(tmp_path)
    assert (found[0], found[-1], len(found)) == (batches[0].raw, batches[2].raw, 3)
    evidence = {"bit": frames[1].raw[:30], "clear": batches[1].raw[:30], "swapped": b""}[how]
    assert evidence in found[1]
    sound = opened(tmp_path).read_file(CHAIN, 0, 10**6)
    # The third is where the second was, too: what its numbers say is what it is.
    assert sound == [batches[0].raw, *[batches[2].raw] * (2 if how == "swapped" else 1)]


def test_what_is_damaged_stays_so_from_key_to_key(tmp_path: Path) -> None:
    batches = written([3, 2, 4])
    clear = b"".join(map(frame_of, batches))
    bent = bytearray(clear)
    for at in (len(clear) // 2, len(clear) // 2 + 7):
        bent[at] ^= 1
    raw, name = bytes(bent), "segment"
    for before, after in ((None, ONE), (ONE, OTHER), (OTHER, OTHER), (OTHER, ONE)):
        raw = reseal_segment(raw, name, [one for one in (before, after) if one], after)
        assert clear[len(clear) // 2 + 20 :][:40] not in raw, "what was damaged is sealed, too"
    assert reseal_segment(raw, name, [ONE], None) == bytes(bent)
    # Without its key a sealed segment stays as it is.
    assert reseal_segment(raw, name, [OTHER], None) == raw

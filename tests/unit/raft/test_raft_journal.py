"""The journal: what survives, what is dropped, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raft_hands import sim_disk

from swarmd.base.errors import CorruptFile, DiskFault
from swarmd.base.files import FileDisk
from swarmd.base.rng import make_rng
from swarmd.sim.disk import SimDisk
from swarmd.state.raft.journal import (
    JOURNAL_FILE,
    PLAIN_MAX,
    SQUEEZE_BYTES_MAX,
    Journal,
    Owner,
    Squeezed,
    _record,
)


def journal(disk: SimDisk | FileDisk, seed: int = 1) -> Journal:
    return Journal(disk, make_rng(seed))


def filled(disk: SimDisk, count: int = 6) -> Journal:
    """`count` groups of one entry each, all synced, the last one unmarked."""
    made = journal(disk)
    made.setCurrentTerm(3, "b")
    for index in range(1, count + 1):
        made.add(b"entry-%d" % index, index, 3)
        made.sync()
    return made


def test_what_was_synced_comes_back() -> None:
    disk = sim_disk()
    made = filled(disk)
    made.truncate(5)
    made.add(b"other", 5, 4)
    made.sync()
    disk.crash()
    again = journal(disk)
    assert again[:] == made[:]
    assert (again.getCurrentTerm(), again.getVotedForNodeId()) == (3, "b")
    assert again.synced_index == 5
    assert again.entry_bytes == made.entry_bytes


def test_older_entries_are_held_in_less_memory_and_are_told_as_they_came() -> None:
    disk = sim_disk()
    made = journal(disk)
    came = [(b"%d " % index * 1_000, index, 1) for index in range(1, 3 * PLAIN_MAX)]
    for entry in came:
        made.add(*entry)
    made.sync()
    held = [isinstance(one, Squeezed) for one in made._entries]
    assert held == [False] + [True] * (len(came) - 1 - PLAIN_MAX) + [False] * PLAIN_MAX
    plain = journal(disk)
    assert plain._entries == came, "what was read at a start is as it was"
    for one in (made, plain):
        assert one[:] == came
        assert [one[at] for at in (0, 5, -1)] == [came[at] for at in (0, 5, -1)]
        assert one.entry(7) == came[6]
        assert one.term_at(7) == 1
    assert made.entry_bytes == plain.entry_bytes
    assert made.between(3, 20_000) == plain.between(3, 20_000)
    for one in (made, plain):
        one.truncate(2 * PLAIN_MAX)
        one.compact(9)
    assert made[:] == plain[:] == came[8 : 2 * PLAIN_MAX - 1]
    assert made.entry_bytes == plain.entry_bytes
    assert made._entries[0] == came[8], "the foothold is asked for all the time"
    made.sync()
    disk.crash()
    assert journal(disk)[:] == made[:]


def test_what_is_small_or_large_or_cannot_be_made_smaller_is_held_as_it_came() -> None:
    made = journal(sim_disk())
    rng = make_rng(1)
    for index in range(1, 3 * PLAIN_MAX):
        commands = rng.randbytes(5_000), b"small", bytes(SQUEEZE_BYTES_MAX + 1)
        made.add(commands[index % 3], index, 1)
    assert not any(isinstance(one, Squeezed) for one in made._entries)


def test_the_commit_index_is_the_foothold_after_a_restart() -> None:
    disk = sim_disk()
    made = filled(disk)
    made.setRaftCommitIndex(6)
    made.compact(4)
    made.sync()
    again = journal(disk)
    assert again.first_index == 4
    assert again.getRaftCommitIndex() == 4


def test_what_was_not_synced_is_lost_whole_or_torn_but_never_refused() -> None:
    for seed in range(40):
        disk = sim_disk(f"torn-{seed}")
        made = filled(disk)
        for index in range(7, 12):
            made.add(b"unsynced" * 10, index, 3)
        disk.crash()
        again = journal(disk)
        assert 6 <= again.last_index <= 11
        assert again[:6] == made[:6]


def test_every_byte_before_the_last_mark_is_guarded() -> None:
    """Damage to any byte that a mark covers is fatal and names the file."""
    disk = sim_disk()
    filled(disk, count=3)
    raw = disk.read(JOURNAL_FILE) or b""
    last_mark = raw.rindex(b"entry-3") - 8 - 17  # The third group: [mark][entry-3].
    for at in range(last_mark - 25):
        broken = bytearray(raw)
        broken[at] ^= 0x40
        copy = sim_disk("copy")
        copy.replace(JOURNAL_FILE, bytes(broken))
        with pytest.raises(CorruptFile, match=JOURNAL_FILE):
            journal(copy)


def test_a_zeroed_page_before_a_mark_is_named_with_its_byte() -> None:
    disk = sim_disk()
    filled(disk, count=20)
    raw = bytearray(disk.read(JOURNAL_FILE) or b"")
    raw[100:200] = bytes(100)
    disk.replace(JOURNAL_FILE, bytes(raw))
    with pytest.raises(CorruptFile, match=r"damaged at byte \d+"):
        journal(disk)


def test_a_clients_bytes_cannot_imitate_a_mark() -> None:
    """A torn tail stays a torn tail when a command in it looks like another file's mark."""
    other = sim_disk("other")
    filled(other)
    forged = other.read(JOURNAL_FILE) or b""
    disk = sim_disk()
    made = Journal(disk, make_rng(99))
    made.add(b"x", 1, 1)
    made.sync()
    good = disk.read(JOURNAL_FILE) or b""
    made.add(forged, 2, 1)
    raw = disk.read(JOURNAL_FILE) or b""
    torn = bytearray(raw)
    torn[len(good) + 30] ^= 1
    disk.replace(JOURNAL_FILE, bytes(torn))
    assert journal(disk).last_index == 1


@pytest.mark.parametrize("raw", [b"", b"SWRJ", b"x" * 100])
def test_what_is_no_journal_is_refused(raw: bytes) -> None:
    disk = sim_disk()
    disk.replace(JOURNAL_FILE, raw)
    with pytest.raises(CorruptFile):
        journal(disk)


def test_another_format_is_refused_by_its_number() -> None:
    import struct
    import zlib

    disk = sim_disk()
    filled(disk)
    raw = disk.read(JOURNAL_FILE) or b""
    head = raw[:4] + struct.pack(">I", 3) + raw[8:80]
    disk.replace(JOURNAL_FILE, head + struct.pack(">I", zlib.crc32(head)) + raw[84:])
    with pytest.raises(CorruptFile, match="format 3"):
        journal(disk)


def test_a_journal_that_does_not_say_whose_it_is_is_taken_over() -> None:
    import struct
    import zlib

    disk = sim_disk()
    filled(disk)
    raw = disk.read(JOURNAL_FILE) or b""
    head = raw[:4] + struct.pack(">I", 1) + raw[8:16]
    disk.replace(JOURNAL_FILE, head + struct.pack(">I", zlib.crc32(head)) + raw[84:])
    again = Journal(disk, make_rng(1), owner=Owner(b"s" * 32, b"n" * 32))
    assert again.last_index == 6
    written = disk.read(JOURNAL_FILE) or b""
    assert written[16:80] == b"s" * 32 + b"n" * 32


def test_the_journal_of_another_is_named_with_whose_it_is() -> None:
    disk = sim_disk()
    Journal(disk, make_rng(1), owner=Owner(b"s" * 32, b"n" * 32))
    Journal(disk, make_rng(1), owner=Owner(b"s" * 32, b"n" * 32))
    for owner, what in ((Owner(b"s" * 32, b"m" * 32), "node"), (Owner(b"t" * 32, b""), "swarm")):
        with pytest.raises(CorruptFile, match=f"journal of another {what}"):
            Journal(disk, make_rng(1), owner=owner)


def test_sound_records_that_make_no_sense_are_not_followed() -> None:
    """A truncation of nothing, an entry out of order: as good as a torn tail."""
    for payload in (b"d" + bytes(7) + b"\x03", b"e" + bytes(7) + b"\x09" + bytes(8)):
        disk = sim_disk()
        made = journal(disk)
        if payload[:1] == b"e":
            made.add(b"x", 1, 1)
            made.sync()
        disk.append(JOURNAL_FILE, _record(payload))
        assert len(journal(disk)) == len(made)


def test_a_full_disk_heals_by_itself() -> None:
    disk = sim_disk()
    made = filled(disk)
    disk.full = True
    made.add(b"seven", 7, 3)
    for _ in range(3):
        with pytest.raises(DiskFault):
            made.sync()
        assert made.synced_index == 6
    made.add(b"eight", 8, 3)
    disk.full = False
    made.sync()
    assert made.synced_index == 8
    disk.crash()
    assert journal(disk).last_index == 8


def test_truncation_takes_back_what_counted_as_synced() -> None:
    made = filled(sim_disk())
    made.truncate(4)
    made.add(b"new", 4, 4)
    assert made.synced_index == 3


def test_on_the_real_file_system(tmp_path: Path) -> None:
    disk = FileDisk(tmp_path / "raft")
    made = journal(disk)
    for index in range(1, 101):
        made.add(b"entry", index, 1)
    made.sync()
    made.compact(50)
    made.sync()
    made.add(b"last", 101, 1)
    made.sync()
    disk.close()
    again = journal(FileDisk(tmp_path / "raft"))
    assert (again.first_index, again.last_index) == (50, 101)


Steps = list[tuple[str, Any]]
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.binary(max_size=40)),
        st.tuples(st.just("truncate"), st.integers(0, 30)),
        st.tuples(st.just("term"), st.integers(0, 99)),
        st.tuples(st.just("compact"), st.integers(0, 30)),
        st.tuples(st.just("sync"), st.none()),
    ),
    max_size=30,
)


@given(steps=_steps, seed=st.integers(0, 99))
@settings(deadline=None, max_examples=150)
def test_a_crash_anywhere_leaves_what_was_synced(
    steps: list[tuple[str, object]], seed: int
) -> None:
    """Whatever was done, a crash leaves the synced log, then maybe a part of what followed."""
    disk = sim_disk(f"any-{seed}")
    made = journal(disk)
    made.add(b"foothold", 1, 0)
    made.sync()
    synced, touched = made[:], made.last_index
    for kind, value in steps:
        if kind == "add":
            made.add(value, made.last_index + 1, 1)
        elif kind == "truncate":
            at = made.first_index + 1 + value
            if at <= made.last_index:
                made.truncate(at)
                touched = min(touched, at - 1)
        elif kind == "term":
            made.setCurrentTerm(value, "b")
        elif kind == "compact":
            made.compact(min(made.first_index + value, made.last_index))
        else:
            made.sync()
            synced, touched = made[:], made.last_index
    disk.crash()
    again = journal(disk)
    kept = [e for e in list(synced) if e[1] <= touched]
    assert again[: len(kept)] == kept

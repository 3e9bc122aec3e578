"""One contract for every `base.disk.Disk`, and what only a sealed one must do besides."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swarmd.base.disk import Disk
from swarmd.base.errors import CorruptFile, DiskFault
from swarmd.base.files import FileDisk
from swarmd.base.rng import make_rng
from swarmd.base.sealed_disk import SealedDisk
from swarmd.base.sealed_file import (
    FRAME_BODY_BYTES_MAX,
    FRAME_BYTES_EXTRA,
    HEADER_BYTES,
    SEALED_MAGIC,
    open_file,
    seal_file,
    sealed_size,
)
from swarmd.identity.sealing import SealingKey
from swarmd.sim.disk import PowerLost, SimDisk
from swarmd.sim.world import World
from swarmd.state.raft.journal import Journal

KEY = SealingKey(bytes(range(32)))
LARGE = bytes(range(256)) * (FRAME_BODY_BYTES_MAX // 128)
Reopen = Callable[[], Disk]


@pytest.fixture(params=["file", "sealed file", "sim", "sealed sim"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reopen]:
    """Gives the disk as a process that begins finds it."""
    sim = SimDisk(World(1), "d")
    opened: list[FileDisk] = []

    def bare() -> Disk:
        if request.param.endswith("sim"):
            return sim
        opened.append(FileDisk(tmp_path / "d"))
        return opened[-1]

    sealed = request.param.startswith("sealed")
    yield lambda: SealedDisk(bare(), KEY, "room") if sealed else bare()
    for disk in opened:
        disk.close()


def test_appends_are_read_back_and_what_was_synced_stays(reopen: Reopen) -> None:
    disk = reopen()
    assert disk.read("log") is None
    disk.append("log", b"one")
    assert disk.read("log") == b"one"
    disk.sync("log")
    disk.append("log", b"two")
    disk.sync("log")
    assert disk.read("log") == b"onetwo"
    assert reopen().read("log") == b"onetwo"


def test_another_process_goes_on_where_one_has_ended(reopen: Reopen) -> None:
    for number in range(4):
        disk = reopen()
        disk.append("log", b"%d" % number)
        disk.sync("log")
        disk.append("log", b"+")
        disk.sync("log")
    assert reopen().read("log") == b"0+1+2+3+"


def test_replace_gives_other_content_and_appends_go_behind_it(reopen: Reopen) -> None:
    disk = reopen()
    disk.append("log", b"old")
    disk.sync("log")
    disk.append("log", b"never synced")
    disk.replace("log", LARGE)
    disk.append("log", b"tail")
    disk.sync("log")
    assert reopen().read("log") == LARGE + b"tail"


def test_a_file_takes_the_place_of_another(reopen: Reopen) -> None:
    disk = reopen()
    disk.replace("log", b"old")
    disk.append("log.new", b"new")
    disk.sync("log.new")
    disk.rename("log.new", "log")
    disk.rename("log.new", "log")  # Called again, as after a fault.
    disk.append("log", b"er")
    disk.sync("log")
    assert (disk.names(), reopen().read("log")) == (["log"], b"newer")


def test_a_file_is_read_in_pieces_as_it_was(reopen: Reopen) -> None:
    disk = reopen()
    assert disk.reader("state") is None
    disk.append("state", LARGE[:100])
    disk.sync("state")
    disk.append("state", LARGE[100:])
    disk.sync("state")
    reader = disk.reader("state")
    assert reader is not None
    disk.replace("state", b"other")
    assert reader.size == len(LARGE)
    edge = FRAME_BODY_BYTES_MAX
    for offset in (
        0,
        1,
        99,
        100,
        edge - 1,
        edge,
        edge + 99,
        edge + 100,
        len(LARGE) - 1,
        len(LARGE),
    ):
        for size in (0, 1, 5, edge + 7, 2 * len(LARGE)):
            assert reader.read(offset, size) == LARGE[offset : offset + size]
    reader.close()


def test_removed_files_and_names(reopen: Reopen) -> None:
    disk = reopen()
    for name in ("b", "a"):
        disk.replace(name, b"")
    assert disk.names() == ["a", "b"]
    assert disk.read("a") == b""
    disk.remove("a")
    disk.remove("a")
    assert (disk.read("a"), reopen().names()) == (None, ["b"])


# ---- what was not synced, and disks that fail -----------------------------------------------


def test_only_what_was_synced_survives_a_loss_of_power() -> None:
    sim = SimDisk(World(1), "d")
    disk = SealedDisk(sim, KEY, "room")
    disk.append("log", b"one")
    disk.sync("log")
    disk.append("log", b"two")
    sim.crash()
    assert SealedDisk(sim, KEY, "room").read("log") == b"one"


@pytest.mark.parametrize("sealed", [False, True])
def test_a_file_whose_sync_failed_takes_no_more_until_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sealed: bool
) -> None:
    disk: Disk = FileDisk(tmp_path)
    if sealed:
        disk = SealedDisk(disk, KEY, "room")
    disk.replace("log", b"one")
    disk.append("log", b"two")

    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("os.fdatasync", fail)
        with pytest.raises(DiskFault, match="cannot write"):
            disk.sync("log")
    with pytest.raises(DiskFault, match="must be rewritten"):
        disk.append("log", b"three")
    disk.replace("log", b"one")
    disk.append("log", b"three")
    disk.sync("log")
    assert disk.read("log") == b"onethree"


# ---- what lies on the disk ------------------------------------------------------------------


def sealed(sim: SimDisk) -> SealedDisk:
    return SealedDisk(sim, KEY, "room")


def read(raw: bytes, key: SealingKey = KEY, room: str = "room") -> bytes:
    return open_file(key, room, raw, source="log")


def three_groups() -> tuple[bytes, int, int]:
    """A file begun with `replace`, and two groups behind it; where these begin."""
    sim = SimDisk(World(1), "d")
    disk = sealed(sim)
    disk.replace("log", b"first")
    for group in (b"second", b"third"):
        disk.append("log", group)
        disk.sync("log")
    raw = sim.read("log")
    assert raw is not None
    third = len(raw) - FRAME_BYTES_EXTRA - len(b"third")
    return raw, sealed_size(len(b"first")), third


def test_nothing_is_in_clear_and_sizes_are_as_said() -> None:
    raw = seal_file(KEY, "room", LARGE)
    assert len(raw) == sealed_size(len(LARGE))
    assert raw.startswith(SEALED_MAGIC)
    assert not any(LARGE[at : at + 8] in raw for at in range(0, 512, 8))
    assert read(raw) == LARGE
    assert read(seal_file(KEY, "room", b"")) == b""


def test_every_flipped_bit_is_found_or_lies_in_what_nobody_vouches_for() -> None:
    raw, _, third = three_groups()
    for at in range(len(raw)):
        for bit in (0, 3, 7):
            bent = bytearray(raw)
            bent[at] ^= 1 << bit
            if at < third:
                with pytest.raises(CorruptFile, match=r"^log is"):
                    read(bytes(bent))
            else:
                assert read(bytes(bent)) == b"firstsecond", at


def test_damage_is_named_by_its_byte() -> None:
    raw, second, _ = three_groups()
    with pytest.raises(CorruptFile, match=f"log is damaged at byte {second} of what was durable"):
        read(raw[:second] + bytes(len(raw) - second)[:30] + raw[second + 30 :])


def test_every_flipped_bit_of_a_file_that_came_at_once_is_found() -> None:
    raw = seal_file(KEY, "room", b"a key, say")
    for at in range(len(raw)):
        bent = bytearray(raw)
        bent[at] ^= 4
        with pytest.raises(CorruptFile):
            read(bytes(bent))


@pytest.mark.parametrize("fill", [b"", bytes(1), b"\xff", b"SWSF", b"SWRS"])
def test_every_torn_end_is_dropped_and_every_cut_into_what_was_durable_found(fill: bytes) -> None:
    raw, second, third = three_groups()
    ends = {third: b"firstsecond", len(raw): b"firstsecondthird"}
    for cut in range(len(raw)):
        torn = raw[:cut]
        if fill:  # Garbage of full length.
            torn += (fill * len(raw))[: len(raw) - cut]
        # Of the garbage some bytes may be right: what is random in the file is so by chance.
        right = next(
            (at for at in range(len(raw)) if torn[at : at + 1] != raw[at : at + 1]), len(raw)
        )
        if right == len(raw):
            continue
        if right < second and (cut >= HEADER_BYTES or (cut == 0 and fill)):
            with pytest.raises(CorruptFile):
                read(torn)
        elif cut < HEADER_BYTES:
            # Of less than a header, only what uses the file can say that it is too little.
            try:
                assert read(torn) == b""
            except CorruptFile:
                assert fill
        else:
            held = max([end for end in ends if end <= right], default=0)
            assert read(torn) == ends.get(held, b"first")


def test_what_was_torn_is_gone_before_anything_is_added() -> None:
    raw, _, third = three_groups()
    sim = SimDisk(World(1), "d")
    sim.replace("log", raw[:-3])
    disk = sealed(sim)
    disk.append("log", b"fourth")
    disk.sync("log")
    assert sealed(sim).read("log") == b"firstsecondfourth"
    assert len(sim.read("log") or b"") < third + 2 * FRAME_BYTES_EXTRA


def test_of_a_torn_group_the_frames_that_reached_the_disk_prove_nothing_of_those_before() -> None:
    sim = SimDisk(World(1), "d")
    disk = sealed(sim)
    disk.replace("log", b"first")
    start = len(sim.read("log") or b"")
    disk.append("log", LARGE)
    disk.sync("log")
    raw = sim.read("log") or b""
    frame = FRAME_BYTES_EXTRA + FRAME_BODY_BYTES_MAX
    assert len(raw) == start + 2 * frame
    lost = raw[:start] + bytes(frame) + raw[start + frame :]
    assert read(lost) == b"first"  # As after a crash in the middle of the sync.
    disk.append("log", b"behind")
    disk.sync("log")
    whole = sim.read("log") or b""
    with pytest.raises(CorruptFile, match=f"byte {start} "):
        read(lost + whole[len(raw) :])


class TearingDisk(SimDisk):
    """The power goes in every sync, which leaves `fill` at the full length of what was to be."""

    fill = b""

    def sync(self, name: str) -> None:
        if self.fill:
            size = len(self._pending.pop(name))
            self._durable[name] = self._durable.get(name, b"") + (self.fill * size)[:size]
            raise PowerLost
        super().sync(name)


@pytest.mark.parametrize("fill", [bytes(1), b"\xff", b"SWSF", b"SWRS"])
def test_a_file_that_is_begun_is_whole_or_not_there_when_the_power_goes(fill: bytes) -> None:
    sim = TearingDisk(World(1), "d")
    sim.fill = fill
    disk = sealed(sim)
    disk.append("log", b"first")
    with contextlib.suppress(PowerLost):
        disk.sync("log")
    assert sealed(sim).read("log") in (None, b"first")
    sim.remove("log")
    disk = sealed(sim)
    disk.append("log", b"first")
    disk.sync("log")  # It returns, so that it is durable.
    assert sealed(sim).read("log") == b"first"
    disk.append("log", b"second")
    with pytest.raises(PowerLost):
        disk.sync("log")
    assert sealed(sim).read("log") == b"first"


def test_a_reader_finds_damage_where_it_is_met() -> None:
    sim = SimDisk(World(1), "d")
    disk = sealed(sim)
    disk.replace("state", LARGE)
    sim.flip_bit("state", len(sim.read("state") or b"") - 10)
    reader = disk.reader("state")
    assert reader is not None
    assert reader.read(0, FRAME_BODY_BYTES_MAX) == LARGE[:FRAME_BODY_BYTES_MAX]
    with pytest.raises(CorruptFile, match="state is damaged at byte"):
        reader.read(FRAME_BODY_BYTES_MAX, 1)


def test_no_frame_can_be_moved_repeated_dropped_or_brought_from_elsewhere() -> None:
    raw, second, third = three_groups()
    other, _, _ = three_groups()
    frames = raw[second:third], raw[third:]
    for bent in (
        raw[:second] + frames[1] + frames[0],
        raw[:second] + frames[1],
        raw[:third] + frames[0] + frames[1],
        raw[:second] + other[second:third] + frames[1],
        other[:second] + raw[second:],
        other[:HEADER_BYTES] + raw[HEADER_BYTES:],
    ):
        if bent == other[:second] + raw[second:]:
            assert read(bent) == b"first"  # Frames of another file are garbage behind its end.
            continue
        with pytest.raises(CorruptFile):
            read(bent)


def test_another_key_another_room_and_clear_files_are_refused() -> None:
    raw = seal_file(KEY, "room", b"x")
    with pytest.raises(CorruptFile, match="log is sealed under another key"):
        read(raw, SealingKey(bytes(32)))
    with pytest.raises(CorruptFile, match="does not open"):
        read(raw, room="another")
    with pytest.raises(CorruptFile, match="log is not sealed"):
        read(b"SWRJ and so on")
    bent = SEALED_MAGIC + (9).to_bytes(2, "big") + raw[6:]
    with pytest.raises(CorruptFile, match="format 9"):
        read(bent)


# ---- the journal within ---------------------------------------------------------------------


def test_a_journal_loses_no_more_than_in_clear() -> None:
    """Goal: whatever one byte or cut does to its file, what was proven durable is there or missed.

    Method: five groups of entries, each synced; every byte bent, every length. In clear the mark
    of a group comes with the next one, so that damage to the last alone passes for a torn tail.
    """
    sim = SimDisk(World(1), "d")
    journal = Journal(sealed(sim), make_rng(1))
    ends = []
    for index in range(1, 11):
        journal.add(b"entry %d" % index, index, 1)
        if index % 2 == 0:
            journal.sync()
            ends.append(len(sim.read("journal") or b""))
    raw = sim.read("journal") or b""
    bent = [raw[:at] + bytes([raw[at] ^ 16]) + raw[at + 1 :] for at in range(len(raw))]
    torn = [raw[:at] for at in range(len(raw))]
    for number, content in enumerate(bent + torn):
        place = SimDisk(World(1), "d")
        place.replace("journal", content)
        at = number % len(raw)
        try:
            found = len(Journal(sealed(place), make_rng(2)))
        except CorruptFile:
            found = -1
        if found < 0:
            assert number < len(raw) or at < ends[0], "a torn tail is no damage"
            continue
        whole = [2 * (group + 1) for group, end in enumerate(ends) if end <= at]
        assert found == max(whole, default=0)
        assert number >= len(raw) or found == 8

"""Nodes that keep each other's audit logs: copies, restarts, lost disks, what people read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import trio
from audit_swarm import Lab, lab, note, writer, written
from certifying import let_count
from small_swarm import ADMIN, KEYS, until

from swarmd.audit import copying, following, lane, machine, service, store
from swarmd.audit.chain import Writer
from swarmd.audit.config import AuditConfig
from swarmd.audit.messages import AUDIT, Page, PullAsk
from swarmd.audit.records import ACCESS, SECURITY, WORK
from swarmd.audit.service import Query
from swarmd.audit.shelf import Shelf
from swarmd.base.errors import Busy, NoQuorum, SwarmError
from swarmd.identity.entries import SetRoles, fresh_nonce, sign_entry
from swarmd.observe.metrics import AUDIT_LOST
from swarmd.state.raft.messages import Delete, Put


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disks are worker threads, which no mock clock waits for: so shorten the real waits."""
    monkeypatch.setattr(copying, "COMPARE_S", 0.05)
    monkeypatch.setattr(copying, "_PAUSE_S", 0.01)
    monkeypatch.setattr(service, "LINGER_S", {SECURITY: 0.005, ACCESS: 0.01, WORK: 0.01})
    monkeypatch.setattr(lane, "_RETRY_S", 0.02)


def sound(verdicts: list[Any]) -> bool:
    return not [one for verdict in verdicts for one in verdict.findings]


async def held_by_all(swarm: Lab, of: int, last: int) -> None:
    await until(lambda: all(swarm.holds(number, of, last) for number in swarm.audits))


async def test_every_node_has_what_every_node_recorded(tmp_path: Path) -> None:
    async with lab(tmp_path, 3) as swarm:
        for number in range(3):
            for index in range(5):
                swarm.audits[number].note("key.created", f"admin {number}", f"k{index}")
        for number in range(3):
            await held_by_all(swarm, number, 5)
        for number in range(3):
            assert len(await swarm.kinds(number)) == 15
        await swarm.audits[0].settle()
        verdicts = await swarm.verdicts()
        assert sound(verdicts)
        assert [(one.records, one.first, one.last, one.copies) for one in verdicts] == [
            (5, 1, 5, 3)
        ] * 3


async def test_a_node_that_is_gone_is_read_from_the_others(tmp_path: Path) -> None:
    async with lab(tmp_path, 3) as swarm:
        swarm.audits[2].note("node.started", "n2")
        await held_by_all(swarm, 2, 1)
        await swarm.stop(2)
        assert await swarm.kinds(0) == ["node.started"]
        assert sound(await swarm.verdicts())


async def test_who_may_not_vote_keeps_its_own_alone(tmp_path: Path) -> None:
    async with lab(tmp_path, 3) as swarm:
        entry = SetRoles(bytes(swarm.node(2)), ("worker",), fresh_nonce())
        swarm.state.apply(sign_entry(entry, swarm.state.swarm_id, ADMIN), 9_000)
        for trust in swarm.trusts:
            let_count(trust, swarm.state.records_from(trust.head[0]), KEYS[0])
        swarm.audits[0].note("a.b")
        swarm.audits[2].note("c.d")
        await until(lambda: swarm.holds(1, 0, 1) and swarm.holds(1, 2, 1))
        await trio.sleep(0.2)
        assert await swarm.kinds(2) == ["c.d"]


async def test_a_restart_goes_on_where_it_ended(tmp_path: Path) -> None:
    async with lab(tmp_path, 2) as swarm:
        for _ in range(3):
            swarm.audits[0].note("a.b")
            await swarm.audits[0].flush()
            await swarm.stop(0)
            await swarm.start(0)
        swarm.audits[0].note("a.b")
        await held_by_all(swarm, 0, 4)
        [verdict] = await swarm.verdicts()
        assert (verdict.records, verdict.first, verdict.last, verdict.findings) == (4, 1, 4, [])


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Whom nodes had tell all that they hold; none does of itself."""
    found: list[Any] = []
    monkeypatch.setattr(copying, "COMPARE_S", 1_000.0)
    level = copying.Copying._level

    async def counted(self: copying.Copying, peer: Any) -> None:
        found.append(peer)
        await level(self, peer)

    monkeypatch.setattr(copying.Copying, "_level", counted)
    return found


async def test_to_copy_a_new_life_whose_past_is_here_takes_no_look_at_all_lives(
    tmp_path: Path, compared: list[Any]
) -> None:
    async with lab(tmp_path, 2) as swarm:
        for number in range(1, 4):
            swarm.audits[0].note("a.b")
            await held_by_all(swarm, 0, number)
            await swarm.stop(0)
            await swarm.start(0)
        assert not compared
        assert sound(await swarm.verdicts())


async def test_of_a_new_life_whose_past_is_not_here_the_past_comes_first(
    tmp_path: Path, compared: list[Any]
) -> None:
    async with lab(tmp_path, 2) as swarm:
        await swarm.stop(1)
        for _ in range(3):
            swarm.audits[0].note("a.b")
            await swarm.audits[0].flush()
            await swarm.stop(0)
            await swarm.start(0)
        await swarm.start(1)
        swarm.audits[0].note("a.b")
        await held_by_all(swarm, 0, 4)
        assert swarm.node(0) in compared
        assert len(await swarm.kinds(1)) == 4
        assert sound(await swarm.verdicts())


async def test_who_holds_the_same_tells_nothing(tmp_path: Path) -> None:
    async with lab(tmp_path, 2) as swarm:
        for number in range(2):
            swarm.audits[number].note("a.b")
            await held_by_all(swarm, number, 1)
        one, other = (swarm.audits[number]._shelf for number in range(2))
        assert await one.held(None, await other.sum()) == ((), False)
        swarm.audits[0].note("a.b")
        await swarm.audits[0].flush()
        assert len((await one.held(None, bytes(16)))[0]) == 2


async def test_to_find_that_all_hold_the_same_takes_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: an idle swarm compares its records without waking anything but the loop."""
    asked = 0
    run = Shelf.run

    async def counted(self: Shelf, call: Any, *arguments: object) -> Any:
        nonlocal asked
        asked += 1
        return await run(self, call, *arguments)

    async with lab(tmp_path, 2) as swarm:
        for number in range(2):
            swarm.audits[number].note("node.started", f"n{number}")
            await held_by_all(swarm, number, 1)
        shelves = [one._shelf for one in swarm.audits.values()]
        with trio.fail_after(20):
            while any(one._summed[0] != one.folder.version for one in shelves):  # noqa: ASYNC110
                await trio.sleep(0.02)
        monkeypatch.setattr(Shelf, "run", counted)
        await trio.sleep(0.5)
        assert asked == 0
        swarm.audits[1].note("key.created", "n1")
        await held_by_all(swarm, 1, 2)
        assert asked > 0


async def test_what_was_noted_at_the_end_is_written(tmp_path: Path) -> None:
    async with lab(tmp_path, 1) as swarm:
        for _ in range(2_000):
            swarm.audits[0].note("a.b")
        await swarm.stop(0)
        await swarm.start(0)
        assert swarm.holds(0, 0, 2_000)


async def test_a_restored_disk_and_a_lost_one_are_told_and_nothing_is_signed_twice(
    tmp_path: Path,
) -> None:
    async with lab(tmp_path, 2) as swarm:
        swarm.audits[0].note("a.b")
        await held_by_all(swarm, 0, 1)
        await swarm.stop(0)
        shutil.copytree(swarm.path(0), tmp_path / "backup")
        await swarm.start(0)
        swarm.audits[0].note("c.d")
        await held_by_all(swarm, 0, 2)
        await swarm.stop(0)
        shutil.rmtree(swarm.path(0))
        shutil.copytree(tmp_path / "backup", swarm.path(0))
        await swarm.start(0)
        swarm.audits[0].note("e.f")
        await until(lambda: len(swarm.audits[1]._shelf.folder.lives) == 3)
        await until(lambda: len(swarm.audits[0]._shelf.folder.lives) == 3)
        # Two lives go on from record 1.
        [verdict] = await swarm.verdicts()
        assert [(one.holder, one.number) for one in verdict.findings] == [(swarm.node(0), 2)]
        assert "record 2 was gone from the disk" in verdict.findings[0].what
        assert await swarm.kinds(1) == ["a.b", "c.d", "e.f"]
        await swarm.stop(0)
        shutil.rmtree(swarm.path(0))
        await swarm.start(0)
        swarm.audits[0].note("g.h")
        await until(lambda: len(swarm.audits[1]._shelf.folder.lives) == 4)
        [verdict] = await swarm.verdicts()
        assert any("began anew from record 1" in one.what for one in verdict.findings)


async def test_two_records_of_one_number_are_kept_as_evidence(tmp_path: Path) -> None:
    """A node that signs twice is shown up, whichever of the two one holds."""
    async with lab(tmp_path, 3) as swarm:
        swarm_id = swarm.state.swarm_id
        one, other = (
            Writer(KEYS[2], swarm_id, SECURITY, b"l" * 8).seal([note(number)], 0)
            for number in (1, 2)
        )
        await swarm.audits[0]._shelf.take(one[0].seal.chain, [one[0].raw])
        await swarm.audits[1]._shelf.take(one[0].seal.chain, [other[0].raw])
        await until(lambda: all(swarm.audits[n]._shelf.folder.forks_file() for n in (0, 1)), 5.0)
        [verdict] = [one for one in await swarm.verdicts() if one.node == swarm.node(2)]
        assert any("two different records" in one.what for one in verdict.findings)


async def test_a_peer_that_gives_what_nobody_signed_is_not_believed(tmp_path: Path) -> None:
    async with lab(tmp_path, 2) as swarm:
        await swarm.stop(1)
        forged = Writer(KEYS[3], swarm.state.swarm_id, SECURITY, b"l" * 8).seal([note(1)], 0)
        shelf = swarm.audits[0]._shelf
        for raw in (
            forged[0].raw,
            forged[0].raw[:-1],
            b"",
            written([1], writer(key=KEYS[1]))[0].raw,
        ):
            with pytest.raises(SwarmError):
                await shelf.take(forged[0].seal.chain, [raw])
        assert shelf.folder.lives == {}


# ---- the disk ------------------------------------------------------------------------------


async def test_a_full_disk_holds_nobody_up_and_the_loss_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lost = os.fdatasync, AUDIT_LOST.labels("security")._value.get
    before = lost()
    async with lab(tmp_path, 1, AuditConfig(waiting_max=100)) as swarm:
        swarm.audits[0].note("first")
        await swarm.audits[0].flush()

        def full(fd: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fdatasync", full)
        for number in range(250):
            swarm.audits[0].note(f"k{number}")
            if number == 20:
                await trio.sleep(0.1)
        assert lost() > before
        await trio.sleep(0.1)
        monkeypatch.setattr(os, "fdatasync", real)
        await until(lambda: "audit.lost" in str(swarm.audits[0]._lanes[SECURITY].newest))
        kinds = await swarm.kinds(0)
        assert kinds[:2] == ["first", "k0"]
        assert kinds[-1] == "audit.lost"
        entry = (await swarm.audits[0].newest(Query(kind="audit.lost")))[0][0]
        count = int(entry.record.details.split()[0])
        assert count == lost() - before == 252 - len(kinds)
        assert sound(await swarm.verdicts())


async def test_who_makes_too_many_records_pushes_out_nobody(tmp_path: Path) -> None:
    """A flood is counted, by who made it; what is secure and others' records stand beside it."""
    async with lab(tmp_path, 1) as swarm:
        audit = swarm.audits[0]
        for number in range(3_000):
            audit.note("access.refused", f"address 10.0.{number % 250}.1", "x" * 9_000, "forbidden")
            audit.note("access.refused", "key ci", "y" * 9_000, "forbidden")
            audit.note("agent.call", f"greedy/{number}/1/1", "lock a")
        assert all(len(one.subject) <= 200 for one in audit._lanes["access"]._waiting)
        audit.note("access.refused", "key other", "GET /", "forbidden")
        audit.note("agent.call", "modest/1/1/1", "lock a")
        audit.note("key.created", "ann")
        await audit.flush()
        told = (await audit.newest(Query(), None, 100_000))[0]

        def of(kind: str, actor: str) -> list[Any]:
            return [one for one in told if one.record.kind == kind and one.record.actor == actor]

        assert len(of("access.refused", "key other")) == 1
        assert len(of("agent.call", "modest/1/1/1")) == 1
        assert [one.chain.stream for one in of("key.created", "ann")] == ["security"]
        ci = of("access.refused", "key ci")
        assert {one.chain.stream for one in ci} == {"access"}
        assert (len(ci), ci[0].record.details) == (51, "and 2950 times more")
        [counted] = of("agent.call", "greedy")
        assert counted.record.details == "and 2500 times more"
        assert len(told) < 3_700


async def test_what_was_counted_is_told_though_nothing_more_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "COUNTED_S", 0.05)
    async with lab(tmp_path, 1) as swarm:
        for _ in range(60):
            swarm.audits[0].note("access.refused", "key ci", "GET /", "forbidden")
        await until(lambda: swarm.holds(0, 0, 51, ACCESS))
        [newest] = (await swarm.audits[0].newest(Query(), None, 1))[0]
        assert newest.record.details == "and 10 times more"


async def test_old_records_go_and_a_signed_floor_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SEGMENT_BYTES", 2_000)
    monkeypatch.setattr("swarmd.audit.shelf.SEGMENT_BYTES", 2_000)
    monkeypatch.setattr("swarmd.audit.shelf.MIB", 400)
    async with lab(tmp_path, 2, AuditConfig(keep_mib=16)) as swarm:
        for _ in range(20):
            for number in range(20):
                swarm.audits[0].note("k", f"actor {number}")
            await swarm.audits[0].flush()
        await held_by_all(swarm, 0, 400)
        for number in range(2):
            assert await swarm.audits[number]._shelf.prune() > 0
        for number in range(2):
            assert swarm.audits[number].floors()
        [verdict] = await swarm.verdicts()
        assert sound([verdict])
        assert 1 < verdict.first < verdict.last == 400
        # It does not come back, and a restart changes nothing of it.
        await trio.sleep(0.3)
        await swarm.stop(0)
        await swarm.start(0)
        swarm.audits[0].note("k")
        await held_by_all(swarm, 0, 401)
        [after] = await swarm.verdicts()
        assert sound([after])
        assert after.first == verdict.first
        # Without the floor it is a hole.
        for file in swarm.path(1).glob("*.floor"):
            file.unlink()
        swarm.audits[1]._shelf.folder.floors.clear()
        [broken] = await swarm.verdicts()
        assert {one.holder for one in broken.findings} == {swarm.node(1)}
        assert all("removed" in one.what for one in broken.findings)


async def test_whole_lives_go_too(tmp_path: Path) -> None:
    async with lab(tmp_path, 2, AuditConfig(keep_days=1.0)) as swarm:
        for _ in range(3):
            swarm.audits[0].note("k")
            await swarm.audits[0].flush()
            await held_by_all(swarm, 0, len(await swarm.kinds(0)))
            await swarm.stop(0)
            await swarm.start(0)
        swarm.clock.ms += 2 * 24 * 3_600_000
        swarm.audits[0].note("k")
        await held_by_all(swarm, 0, 4)
        for number in range(2):
            await swarm.audits[number]._shelf.prune()
            assert len(list(swarm.path(number).glob("*.log"))) == 1
        await trio.sleep(0.3)
        [verdict] = await swarm.verdicts()
        assert sound([verdict])
        assert (verdict.records, verdict.first, verdict.last) == (1, 4, 4)


async def test_a_node_whose_clock_is_wrong_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedClock:
        def wall_ms(self) -> int:
            return 1_000

    async with lab(tmp_path, 2) as swarm:
        monkeypatch.setattr(swarm.audits[0]._notebook, "_clock", StoppedClock())
        swarm.audits[0].note("a.b")
        await held_by_all(swarm, 0, 1)
        # Who was away then gets it, too.
        await swarm.stop(1)
        shutil.rmtree(swarm.path(1))
        await swarm.start(1)
        await held_by_all(swarm, 0, 1)


async def test_what_everybody_dropped_is_skipped_and_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node was away for long: meanwhile the others dropped what it had not got yet."""
    monkeypatch.setattr(copying, "SKIP_LOOKS", 2)
    monkeypatch.setattr(store, "SEGMENT_BYTES", 500)
    async with lab(tmp_path, 2) as swarm:
        swarm.audits[0].note("a.b")
        await held_by_all(swarm, 0, 1)
        await swarm.stop(1)
        for kind in ("c.d", "c.d", "c.d", "e.f"):
            swarm.audits[0].note(kind)
            await swarm.audits[0].flush()
        shelf = swarm.audits[0]._shelf
        for _ in range(4):
            oldest = shelf.folder.oldest(bytes(swarm.node(0)), "security")
            assert oldest is not None
            if oldest[1].first < 5:
                shelf._drop_file(*oldest)
        await swarm.start(1)
        await held_by_all(swarm, 0, 5)
        assert await swarm.kinds(1) == ["a.b", "e.f"]
        assert sound(await swarm.verdicts())
        swarm.audits[0].note("g.h")
        await held_by_all(swarm, 0, 6)
        # A restart forgets nothing of it.
        await swarm.stop(1)
        await swarm.start(1)
        assert sound(await swarm.verdicts())
        assert len(list(swarm.path(1).glob("*.gap"))) == 1
        for file in swarm.path(1).glob("*.gap"):
            file.unlink()
        swarm.audits[1]._shelf.folder.gaps.clear()
        assert not sound(await swarm.verdicts())


async def test_a_life_that_was_dropped_goes_on_where_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SEGMENT_BYTES", 500)
    async with lab(tmp_path, 2, AuditConfig(keep_days=1.0)) as swarm:
        swarm.audits[0].note("a.b")
        await held_by_all(swarm, 0, 1)
        swarm.clock.ms += 2 * 24 * 3_600_000
        await swarm.audits[1]._shelf.prune()
        assert await swarm.kinds(1) == []
        swarm.audits[0].note("c.d")
        await swarm.audits[0].settle()
        await held_by_all(swarm, 0, 2)
        assert await swarm.kinds(1) == ["c.d"]
        assert sound(await swarm.verdicts())


async def test_a_node_that_started_very_often_is_copied_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.SEGMENTS_MAX < machine.LIVES_MAX
    monkeypatch.setattr(machine, "LIVES_MAX", 8)
    monkeypatch.setattr("swarmd.audit.shelf.SEGMENTS_MAX", 6)
    async with lab(tmp_path, 2) as swarm:
        for number in range(10):
            swarm.audits[0].note("a.b")
            await swarm.audits[0].flush()
            await swarm.stop(0)
            await swarm.start(0)
            if number % 4 == 3:
                for one in swarm.audits.values():
                    await one._shelf.prune()
        swarm.audits[0].note("c.d")
        with trio.fail_after(10.0):
            while not swarm.holds(1, 0, 11):
                # As it goes on: what is held of old lives leaves no room for new ones until then.
                for one in swarm.audits.values():
                    await one._shelf.prune()
                await trio.sleep(0.02)
        assert sound(await swarm.verdicts())


# ---- what people read ----------------------------------------------------------------------


async def test_pages_come_newest_first_and_miss_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SEGMENT_BYTES", 1_500)
    async with lab(tmp_path, 2) as swarm:
        for index in range(60):
            for number in range(2):
                kind = "attempt.ended" if index % 3 else "key.created"
                swarm.audits[number].note(kind, f"a{number}", str(index))
            if index % 5 == 0:
                for one in swarm.audits.values():
                    await one.flush()
        for number in range(2):
            await swarm.audits[number].flush()
            await held_by_all(swarm, number, 20)
        await until(lambda: all(swarm.holds(n, 1 - n, 40, WORK) for n in range(2)))
        audit, found, before = swarm.audits[0], [], None
        for _ in range(200):
            page, before = await audit.newest(Query(), before, 7)
            found += page
            if before is None:
                break
        positions = [entry.position for entry in found]
        assert positions == sorted(set(positions), reverse=True)
        assert len(positions) == 120
        some = (await audit.newest(Query(kind="key.", actor="a1"), None, 1_000))[0]
        assert [one.record.subject for one in some] == [str(n) for n in range(57, -1, -3)]
        since = found[10].record.wall_ms
        assert len((await audit.newest(Query(since_ms=since), None, 1_000))[0]) == 11
        mine = Query(node=bytes(swarm.node(1)), stream="work")
        assert len((await audit.newest(mine, None, 1_000))[0]) == 40


async def test_who_follows_is_told_of_all_nodes_once(tmp_path: Path) -> None:
    async with lab(tmp_path, 2) as swarm:
        for index in range(5):
            swarm.audits[0].note("old", subject=str(index))
        await swarm.audits[0].flush()
        seen: list[str] = []

        async def follow() -> None:
            async for entry in swarm.audits[0].follow(Query(), 3):
                seen.append(f"{entry.record.kind} {entry.record.subject}")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await until(lambda: len(seen) == 3)
            swarm.audits[1].note("there")
            swarm.audits[0].note("here")
            await until(lambda: len(seen) == 5)
            nursery.cancel_scope.cancel()
        assert seen[:3] == ["old 2", "old 3", "old 4"]
        assert sorted(seen[3:]) == ["here ", "there "]
        assert not swarm.audits[0]._followers


async def test_a_reader_that_is_too_slow_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "BATCHES_MAX", 2)
    async with lab(tmp_path, 1) as swarm:
        entries = swarm.audits[0].follow(Query(), 0)
        async with trio.open_nursery() as nursery:
            got: list[str] = []

            async def read() -> None:
                try:
                    async for entry in entries:
                        got.append(entry.record.kind)
                        await trio.sleep(0.1)
                except Busy as error:
                    got.append(error.message)

            nursery.start_soon(read)
            await trio.sleep(0.01)
            for index in range(8):
                swarm.audits[0].note(f"k{index}")
                await swarm.audits[0].flush()
        assert got[0] == "k0"
        assert "too slow" in got[-1]


# ---- anchors -------------------------------------------------------------------------------


async def test_a_tail_that_is_gone_everywhere_is_found_by_its_anchor(tmp_path: Path) -> None:
    async with lab(tmp_path, 2, AuditConfig(anchor_s=3_600.0)) as swarm:
        swarm.audits[0].note("a.b")
        await swarm.audits[0].flush()
        await held_by_all(swarm, 0, 1)
        saved = [shutil.copytree(swarm.path(n), tmp_path / f"copy{n}") for n in range(2)]
        swarm.audits[0].note("c.d")
        await swarm.audits[0].settle()
        await held_by_all(swarm, 0, 2)
        assert (await swarm.verdicts())[0].anchored == 2
        for number in range(2):
            await swarm.stop(number)
            shutil.rmtree(swarm.path(number))
            shutil.copytree(saved[number], swarm.path(number))
        for number in range(2):
            await swarm.start(number)
        [verdict] = await swarm.verdicts()
        assert [one.what for one in verdict.findings] == [
            "record 2 was removed, which the store names"
        ]


async def test_a_restart_erases_no_anchor_of_what_is_gone(tmp_path: Path) -> None:
    """The tail is cut off everywhere, and its node goes on beyond what was named."""
    async with lab(tmp_path, 2, AuditConfig(anchor_s=3_600.0)) as swarm:
        swarm.audits[0].note("a.b")
        await swarm.audits[0].flush()
        await held_by_all(swarm, 0, 1)
        saved = [shutil.copytree(swarm.path(n), tmp_path / f"copy{n}") for n in range(2)]
        for _ in range(3):
            swarm.audits[0].note("c.d")
        await swarm.audits[0].settle()
        await held_by_all(swarm, 0, 4)
        for number in range(2):
            await swarm.stop(number)
            shutil.rmtree(swarm.path(number))
            shutil.copytree(saved[number], swarm.path(number))
        for number in range(2):
            await swarm.start(number)
        for count in (1, 8):
            for _ in range(count):
                swarm.audits[0].note("e.f")
            await swarm.audits[0].settle()
            [verdict] = await swarm.verdicts()
            told = [one.what for one in verdict.findings]
            assert "records 2 to 4 were removed, which the store names" in told
        assert "audit.gone_back" in await swarm.kinds(0)
        # The new life is named as well, and what is set aside goes with the records' time.
        await swarm.audits[0].settle()
        assert (await swarm.verdicts())[0].anchored == verdict.last
        assert len(swarm.store.keys) == 2
        swarm.clock.ms += 401 * 24 * 3_600_000
        swarm.audits[0].note("g.h")
        await swarm.audits[0].settle()
        assert len(swarm.store.keys) == 1


async def test_an_anchor_that_somebody_deletes_or_turns_back_is_put_right(tmp_path: Path) -> None:
    async with lab(tmp_path, 2, AuditConfig(anchor_s=3_600.0)) as swarm:
        swarm.audits[0].note("a.b")
        await swarm.audits[0].settle()
        [(key, old)] = swarm.store.keys.items()
        swarm.audits[0].note("c.d")
        await swarm.audits[0].settle()
        await held_by_all(swarm, 0, 2)
        swarm.later_ms = 3_600_000
        assert sound(await swarm.verdicts())
        swarm.store._apply(Delete(key))
        [verdict] = await swarm.verdicts()
        assert "names nothing of it" in verdict.findings[0].what
        # Also after a restart, though nothing more happened.
        await swarm.stop(0)
        await swarm.start(0)
        for raw in (None, old, b"made up"):
            if raw is not None:
                swarm.store._apply(Put(key, raw))
            await swarm.audits[0].settle()
            [verdict] = await swarm.verdicts()
            assert (verdict.anchored, verdict.findings) == (2, [])
        assert len(swarm.store.keys) == 1


async def test_without_a_quorum_records_are_written_all_the_same(tmp_path: Path) -> None:
    async with lab(tmp_path, 1) as swarm:
        swarm.store.down = True
        swarm.audits[0].note("a.b")
        with pytest.raises(NoQuorum):
            await swarm.audits[0].settle()
        assert await swarm.kinds(0) == ["a.b"]


async def test_peers_answer_only_questions(tmp_path: Path) -> None:
    async with lab(tmp_path, 2) as swarm:
        link = swarm.network.link(KEYS[5].key_id)
        chain = writer().chain
        answer = await link.request(AUDIT, swarm.node(0), PullAsk(chain, 0), timeout_s=2.0)
        assert answer == Page(())
        with pytest.raises(SwarmError):
            await link.request(AUDIT, swarm.node(0), Page(()), timeout_s=2.0)

"""Who may have the coordinator write what: the whole table, and the coordinator that goes by it."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest
import trio
from store_swarm import Swarm, running_swarm

import swarmd
from swarmd.base.errors import Forbidden
from swarmd.base.ids import NodeId
from swarmd.identity.entries import Evict, SetRoles, fresh_nonce, sign_entry
from swarmd.state.raft import answers
from swarmd.state.raft import messages as m
from swarmd.state.raft.rights import (
    JUDGED,
    RIGHTS,
    Sender,
    Standing,
    overstep_in,
    right_for,
    sender_of,
)

ME, OTHER = NodeId(b"m" * 32), NodeId(b"o" * 32)
OUTCAST, MEMBER, CANDIDATE, VOTER = (
    Standing.OUTCAST,
    Standing.MEMBER,
    Standing.CANDIDATE,
    Standing.VOTER,
)
# What it takes, by a key of each kind: to put, to delete, to add to.
TAKES = {
    b"u/notes/1": (MEMBER, MEMBER, MEMBER),
    b"c/lock/build/0000000000000001": (MEMBER, VOTER, VOTER),
    b"c/ask/00": (MEMBER, VOTER, VOTER),
    b"k/ci": (MEMBER, MEMBER, VOTER),
    b"g/resize": (MEMBER, MEMBER, VOTER),
    b"m/v/ledger/k": (MEMBER, MEMBER, VOTER),
    b"m/c/built/k": (MEMBER, MEMBER, VOTER),
    b"m/n/ledger": (MEMBER, VOTER, VOTER),
    b"m/t": (MEMBER, VOTER, VOTER),
    b"m/other": (VOTER, VOTER, VOTER),
    b"v/pin/" + OTHER: (MEMBER, MEMBER, VOTER),
    b"s/v/db-password": (CANDIDATE, MEMBER, VOTER),
    b"s/uses": (CANDIDATE, VOTER, VOTER),
    b"s/ring": (VOTER, VOTER, VOTER),
    b"h/" + ME + b"/security": (MEMBER, MEMBER, VOTER),
    b"h/" + ME + b"/work/12345678": (MEMBER, MEMBER, VOTER),
    b"h/" + OTHER + b"/security": (VOTER, VOTER, VOTER),
    b"h/" + ME: (VOTER, VOTER, VOTER),
    b"t/abc": (VOTER, VOTER, VOTER),
    b"a/abc": (VOTER, VOTER, VOTER),
    b"j/abc": (VOTER, VOTER, VOTER),
    b"o/tasks": (VOTER, VOTER, VOTER),
    # Of no known kind: what a later version brings is nobody's here who has no seat.
    b"o/other": (VOTER, VOTER, VOTER),
    b"s/other": (VOTER, VOTER, VOTER),
    b"v/other": (VOTER, VOTER, VOTER),
    b"x/abc": (VOTER, VOTER, VOTER),
    b"u": (VOTER, VOTER, VOTER),
    b"U/abc": (VOTER, VOTER, VOTER),
    b"": (VOTER, VOTER, VOTER),
}
OTHERS = {
    m.AuthorityEntry(b""): MEMBER,
    m.OpenSession(b""): MEMBER,
    m.GrantLease(1_000): MEMBER,
    m.RenewLease(1): MEMBER,
    m.RevokeLease(1): MEMBER,
    m.TakeOffice(ME): Standing.COORDINATOR,
    m.Seal(2, ()): Standing.COORDINATOR,
}
INNOCENT = m.Put(b"u/a", b"")


def forms(key: bytes) -> Iterator[tuple[m.Operation, Standing]]:
    """Every way to write a key, and what it takes."""
    put, delete, add = TAKES[key]
    for op, takes in (
        (m.Put(key, b""), put),
        (m.Put(key, b"", 7, 9), put),
        (m.Delete(key), delete),
    ):
        yield op, takes
        yield m.Txn((), (op,)), takes
        yield m.Txn((), (INNOCENT, op)), takes
        yield m.Txn((m.Compare(b"u/a"),), (INNOCENT,), (INNOCENT, op)), takes
    yield m.Add(key, 1), add


def group(*ops: m.Operation) -> m.Group:
    return m.Group(b"", 0, 0, ops)


@pytest.mark.parametrize("key", TAKES, ids=lambda key: repr(key[:8]))
@pytest.mark.parametrize("standing", [OUTCAST, MEMBER, CANDIDATE, VOTER])
def test_who_may_write_a_key(key: bytes, standing: Standing) -> None:
    sender = Sender(ME, standing)
    for op, takes in forms(key):
        found = overstep_in(group(INNOCENT, op), sender)
        assert (found is None) == (standing >= takes), op


@pytest.mark.parametrize("op", OTHERS, ids=lambda op: type(op).__name__)
@pytest.mark.parametrize("standing", [OUTCAST, MEMBER, CANDIDATE, VOTER])
def test_who_may_bring_what_has_no_key(op: m.Operation, standing: Standing) -> None:
    found = overstep_in(group(op), Sender(ME, standing))
    assert (found is None) == (standing >= OTHERS[op])


def test_every_operation_is_decided_on_and_tested() -> None:
    every = set(get_args(m.Operation))
    tested = {type(op) for op in OTHERS} | {type(op) for key in TAKES for op, _ in forms(key)}
    assert every == JUDGED == tested
    for branch in ("then", "otherwise"):
        inner, _ = get_args(get_type_hints(m.Txn)[branch])
        assert set(get_args(inner)) == {m.Put, m.Delete}


def test_an_operation_that_nobody_decided_on_is_nobodys() -> None:
    class Later(m.Message, frozen=True, tag=99):
        key: bytes

    later: Any = Later(b"u/a")
    for standing in (OUTCAST, MEMBER, CANDIDATE, VOTER):
        assert overstep_in(group(later), Sender(ME, standing)) is not None


def test_every_kind_of_key_has_a_row_and_is_tested() -> None:
    """A kind of key begins with a letter and a slash, and is named in `messages.py` alone."""
    found: dict[bytes, str] = {}
    root = Path(swarmd.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if path.is_relative_to(root / "sim"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            raw = node.value if isinstance(node, ast.Constant) else None
            if isinstance(raw, bytes) and re.match(rb"[a-z]/", raw):
                found[raw] = str(path.relative_to(root))
    assert set(found.values()) == {"state/raft/messages.py"}
    assert len(found) >= len(RIGHTS)
    rows = {right.prefix for right in RIGHTS}
    assert len(rows) == len(RIGHTS)
    # Secrets and shared memory have rows by what comes below.
    assert set(found) - rows == {m.SECRET_PREFIX, m.MEMORY_PREFIX}
    assert rows == {right_for(key).prefix for key in TAKES} - {b""}


def test_no_row_hides_another() -> None:
    for one, other in itertools.permutations(RIGHTS, 2):
        assert not one.prefix.startswith(other.prefix)


def test_what_is_refused_names_the_kind_of_key_and_nothing_else() -> None:
    secret = b"a/" + b"hunter2" * 100
    found = overstep_in(group(m.Put(secret, b"hunter2")), Sender(ME, MEMBER))
    assert found == ("put a/", "that takes a seat among the voters")
    unknown = overstep_in(group(m.Delete(b"hunter2")), Sender(ME, MEMBER))
    assert unknown == ("delete a key of no known kind", "that takes a seat among the voters")
    outcast = overstep_in(group(INNOCENT), Sender(ME, OUTCAST))
    assert outcast == ("put u/", "it was evicted")


# ---- who a sender is ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("evicted", "roles", "seated", "standing"),
    [
        (False, ("voter", "worker"), True, VOTER),
        (False, ("voter", "worker"), False, CANDIDATE),
        (False, ("voter",), False, CANDIDATE),
        (False, ("worker",), False, MEMBER),
        (False, ("observer",), False, MEMBER),
        # It keeps the seat until the next seal, and nothing that comes with it.
        (False, ("worker",), True, MEMBER),
        (True, ("voter", "worker"), True, OUTCAST),
        (True, ("worker",), False, OUTCAST),
    ],
)
def test_a_senders_standing(
    evicted: bool, roles: tuple[str, ...], seated: bool, standing: Standing
) -> None:
    admission = SimpleNamespace(evicted=evicted, roles=roles)
    authority = SimpleNamespace(
        admissions={ME: admission},
        may_not_vote=lambda _: evicted or "voter" not in roles,
    )
    state: Any = SimpleNamespace(voters=(ME,) if seated else (OTHER,), authority=authority)
    assert sender_of(ME, state) == Sender(ME, standing)


# ---- at a coordinator --------------------------------------------------------------------


async def ask(swarm: Swarm, asker: int, message: Any) -> Any:
    coordinator = swarm.id(await swarm.coordinator())
    link = swarm.store(asker)._link
    return await link.request(m.STORE, coordinator, message, timeout_s=2.0)


def codes_of(answer: m.Results) -> list[list[str | None]]:
    return [[result.code for result in results] for results in answer.groups]


async def set_roles(swarm: Swarm, number: int, *roles: str) -> None:
    entry = SetRoles(swarm.id(number), roles, fresh_nonce())
    raw = sign_entry(entry, swarm.genesis.swarm_id, swarm.admin)
    assert (await swarm.store(0).propose([m.AuthorityEntry(raw)]))[0].ok


async def with_a_worker(swarm: Swarm) -> None:
    """Three voters, and node 3, which may only work."""
    await swarm.start_with_logged_records()
    await swarm.start(3)
    await set_roles(swarm, 3, "worker")


async def test_what_one_call_may_not_do_keeps_no_other_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await with_a_worker(swarm)
        forward = m.Forward(
            (
                group(m.Put(b"u/a", b"1"), m.Put(b"u/b", b"1")),
                group(m.Put(b"u/c", b"1"), m.Put(b"a/task", b"mine")),
                group(m.Txn((m.Compare(b"x"),), (), (m.Delete(b"s/ring"),))),
                group(m.Add(b"u/n", 1)),
            )
        )
        found = codes_of(await ask(swarm, 3, forward))
        assert found == [[None, None], ["forbidden", "forbidden"], ["forbidden"], [None]]
        keys = [entry.key for entry in await swarm.store(0).range(b"")]
        assert keys == [b"u/a", b"u/b", b"u/n"]


async def test_what_comes_in_pieces_is_judged_as_well(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await with_a_worker(swarm)
        raw = m.encode_forward(m.Forward((group(m.Put(b"a/task", b"mine")),)))
        assert await ask(swarm, 3, m.Upload(1, 0, len(raw), raw)) == m.Done()
        assert codes_of(await ask(swarm, 3, m.ForwardUpload(1))) == [["forbidden"]]
        with pytest.raises(Forbidden, match="may not put t/"):
            await swarm.store(3).propose([m.Put(b"t/task", bytes(600_000))])
        assert await swarm.store(0).range(b"") == []


async def test_callers_of_a_node_are_told_apart(autojump_clock: trio.testing.MockClock) -> None:
    """Their calls travel together; one is refused, the others are done."""
    async with running_swarm() as swarm:
        await with_a_worker(swarm)
        store, found = swarm.store(3), {}

        async def call(number: int) -> None:
            key = b"t/%d" % number if number % 5 == 0 else b"u/%d" % number
            try:
                [result] = await store.propose([m.Put(key, b"")])
                found[number] = result.code
            except Forbidden as error:
                found[number] = error.code

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(call, number)
        assert found == {n: "forbidden" if n % 5 == 0 else None for n in range(50)}
        assert len(await swarm.store(0).range(b"")) == 40


async def test_rights_go_with_the_role_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """Also where the seat is there still, and before the coordinator's mesh knows of it."""
    async with running_swarm() as swarm:
        await swarm.start_with_logged_records()
        await swarm.start(3)
        office = await swarm.coordinator()
        voter = next(number for number in (1, 2) if number != office)
        put = m.Forward((group(m.Put(b"t/task", b"")),))
        secret = m.Forward((group(m.Put(b"s/v/name", b"")),))
        assert codes_of(await ask(swarm, voter, put)) == [[None]]
        assert codes_of(await ask(swarm, 3, put)) == [["forbidden"]]
        assert codes_of(await ask(swarm, 3, secret)) == [[None]]
        await set_roles(swarm, voter, "worker")
        await set_roles(swarm, 3, "worker")
        assert codes_of(await ask(swarm, voter, put)) == [["forbidden"]]
        assert codes_of(await ask(swarm, 3, secret)) == [["forbidden"]]
        entry = Evict(swarm.id(3), fresh_nonce())
        raw = sign_entry(entry, swarm.genesis.swarm_id, swarm.admin)
        assert (await swarm.store(0).propose([m.AuthorityEntry(raw)]))[0].ok
        mine = m.Forward((group(m.Put(b"u/a", b"")), group(m.AuthorityEntry(b"junk"))))
        assert codes_of(await ask(swarm, 3, mine)) == [["forbidden"], ["forbidden"]]


async def test_whose_forwards_were_refused_is_told_once_and_bounded(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_swarm() as swarm:
        await with_a_worker(swarm)
        await swarm.start(4)
        store = swarm.store(await swarm.coordinator())
        for key in (b"a/1", b"a/2", b"o/tasks"):
            await ask(swarm, 3, m.Forward((group(m.Put(key, b"")),)))
        [told] = store.take_overstepping()
        assert (told.node_id, told.what, told.times) == (swarm.id(3), "put o/tasks", 3)
        assert store.take_overstepping() == []
        monkeypatch.setattr(answers, "OVERSTEPPING_MAX", 1)
        for number in (3, 4, 3):
            await ask(swarm, number, m.Forward((group(m.Delete(b"a/1")),)))
        [told] = store.take_overstepping()
        assert (told.node_id, told.times) == (swarm.id(3), 2)


async def test_who_has_left_office_may_still_hand_in_its_last_writes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await swarm.start_with_logged_records()
        before = await swarm.coordinator()
        await swarm.store(before).transfer(None)
        assert await swarm.coordinator() != before
        [result] = await swarm.store(before).propose([m.Put(b"t/task", b"")])
        assert result.ok

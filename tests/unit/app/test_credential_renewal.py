"""A node's care for its credential: when it renews, and that it comes back after its end.

The nodes here are real down to the sockets: meshes, stores, TLS. Store time alone is driven by
hand, at the coordinator, so that days pass in moments.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from founding import lab
from small_swarm import ADMIN, KEYS, until

from swarmd.app import renewal as renewal_module
from swarmd.app.node import _serve_joins
from swarmd.app.renewal import Renewal, renew_at_ms
from swarmd.base.clock import BootClock, Clock
from swarmd.base.errors import NoQuorum, TooLarge
from swarmd.base.files import FileDisk
from swarmd.base.ids import NodeId
from swarmd.base.rng import make_rng
from swarmd.identity.authority import CREDENTIAL_MS, Admission
from swarmd.identity.entries import Approve, Evict, fresh_nonce, sign_entry
from swarmd.identity.fingerprints import door_of
from swarmd.identity.keys import SigningKey
from swarmd.identity.requests import sign_request
from swarmd.mesh.config import MeshConfig
from swarmd.mesh.service import Mesh, open_mesh
from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.trust import Trust, open_trust
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.messages import AuthorityEntry
from swarmd.state.raft.service import Store, open_store

DAY_MS = 86_400_000
GENESIS = lab(KEYS[0], "n0")
SWARM = GENESIS.swarm_id


@pytest.fixture(autouse=True)
def days_pass_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a clock that leaps is taken for that of a host that slept."""
    monkeypatch.setattr("swarmd.state.raft.storetime.PAUSE_MAX_S", math.inf)


class Calendar:
    """The coordinator's clock for store time."""

    def __init__(self) -> None:
        self.days = 0.0

    def now(self) -> float:
        return BootClock().now() + self.days * 86_400

    def wall_ms(self) -> int:
        return 0


@dataclass
class Node:
    trust: Trust
    mesh: Mesh
    store: Store
    scope: trio.CancelScope

    def has(self, number: int) -> bool:
        return self.trust.admission(NodeId(KEYS[number].key_id)) is not None

    def sees(self, number: int) -> bool:
        return KEYS[number].key_id in self.mesh.membership.alive()

    def end_ms(self, number: int) -> int:
        found = self.trust.known(NodeId(KEYS[number].key_id))
        assert found is not None
        return found.expires_ms


async def run_node(
    folder: Path,
    number: int,
    shown: Trust | None,
    seeds: tuple[str, ...],
    clock: Clock | None = None,
    *,
    task_status: trio.TaskStatus[Node],
) -> None:
    disk = FileDisk(folder / f"n{number}" / "mesh")
    records = [] if shown is None else shown.records_from(0)
    certificate = b"" if shown is None else shown.certificate
    trust = open_trust(disk, GENESIS, records, certificate)
    config = MeshConfig(port=0, bind=(f"127.0.0.{number + 1}",), mdns=False, seeds=seeds)
    rng, key = make_rng(number), KEYS[number]
    with trio.CancelScope() as scope:
        async with (
            open_mesh(
                config,
                SwimConfig(profile="local"),
                key=key,
                trust=trust,
                disk=disk,
                clock=BootClock(),
                rng=rng,
                name=f"n{number}",
            ) as mesh,
            open_store(
                mesh.link,
                mesh.membership,
                trust,
                FileDisk(folder / f"n{number}" / "raft"),
                key,
                RaftConfig(),
                clock or BootClock(),
                rng,
            ) as store,
            trio.open_nursery() as nursery,
        ):
            _serve_joins(mesh, store)
            trust.enforce_expiry(lambda: {*store.voters, key.key_id})
            nursery.start_soon(Renewal(mesh, store, trust, key, rng).run)
            task_status.started(Node(trust, mesh, store, scope))
            await trio.sleep_forever()


@asynccontextmanager
async def two_nodes(folder: Path) -> AsyncIterator[tuple[Node, Node, Calendar, Any]]:
    """n0, the voter, whose store time the calendar drives, and n1; and how to start n1 anew."""
    async with trio.open_nursery() as nursery:
        first = await nursery.start(run_node, folder, 0, None, ())
        calendar = Calendar()
        await until(lambda: first.store.office is not None)
        first.store._time._clock = calendar
        request = sign_request(door_of(SWARM), KEYS[1], "n1")
        await propose(first.store, Approve(request, ("voter", "worker"), fresh_nonce()))
        await until(lambda: first.has(1))
        host, port = first.mesh.local_addresses[0]
        seeds = (f"{host}:{port}",)

        async def start() -> Node:
            return await nursery.start(run_node, folder, 1, first.trust, seeds)

        second = await start()
        await until(lambda: first.sees(1) and second.sees(0))
        yield first, second, calendar, start
        nursery.cancel_scope.cancel()


async def propose(store: Store, entry: Any) -> None:
    [result] = await store.propose([AuthorityEntry(sign_entry(entry, SWARM, ADMIN))])
    result.raise_for_error()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewal_module, "CHECK_EVERY_S", 0.05)
    monkeypatch.setattr(renewal_module, "RETRY_FIRST_S", 0.05)


async def test_nodes_renew_while_they_run_and_traffic_goes_on(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (first, second, calendar, _):
        ends = [first.end_ms(1)]
        for _ in range(8):  # 80 days.
            calendar.days += 10
            await until(lambda: second.trust.now_ms >= calendar.days * DAY_MS)
            await until(
                lambda: all(first.end_ms(n) > (calendar.days + 12) * DAY_MS for n in (0, 1))
            )
            assert first.has(1)
            assert second.has(0)
            ends.append(first.end_ms(1))
            # Asked over the very streams that hang on the credential.
            assert await second.store.read_time_ms() >= calendar.days * DAY_MS
        assert len(set(ends)) in (4, 5, 6), "renewed now and then, and not at every look"
        assert first.sees(1)
        assert second.sees(0)


async def test_a_node_that_was_off_for_longer_than_its_life_comes_back(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (first, second, calendar, start):
        second.scope.cancel()
        await until(lambda: not first.sees(1))
        for _ in range(4):
            calendar.days += 10
            await until(lambda: first.trust.now_ms >= calendar.days * DAY_MS)
        await until(lambda: not first.has(1))
        assert first.has(0), "who ran meanwhile renewed"
        again = await start()
        await until(lambda: first.has(1) and first.sees(1) and again.sees(0))
        await until(lambda: again.trust.head == first.trust.head)
        assert again.end_ms(1) == first.end_ms(1) > 65 * DAY_MS

        # Evicted, it gets nothing, however it asks.
        again.scope.cancel()
        await propose(first.store, Evict(KEYS[1].key_id, fresh_nonce()))
        height = first.trust.head[0]
        last = await start()
        with trio.move_on_after(0.5):
            while True:
                assert not first.sees(1)
                await trio.sleep(0.02)
        assert first.trust.head[0] == height
        last.scope.cancel()


async def test_a_swarm_that_was_off_for_forty_days_starts_by_itself(tmp_path: Path) -> None:
    """Store time stands still while no coordinator is in office, so nothing expires."""
    async with two_nodes(tmp_path) as (first, _, _, _):
        before_ms = first.store.store_time_ms()
    async with trio.open_nursery() as nursery:
        later = Calendar()
        later.days = 40.0
        alone = await nursery.start(run_node, tmp_path, 0, None, (), later)
        await until(lambda: alone.store.office is not None)
        await until(lambda: alone.trust.now_ms > 0)
        assert alone.store.store_time_ms() < before_ms + DAY_MS
        assert alone.has(0)
        assert alone.has(1)
        nursery.cancel_scope.cancel()


# ---- decisions -----------------------------------------------------------------------------


def admission(key: SigningKey = KEYS[0]) -> Admission:
    return Admission(key.key_id, key.public, "n", b"", (), 1, 1_000, 1_000 + CREDENTIAL_MS)


def test_nodes_renew_at_times_of_their_own_soon_after_half_of_their_life() -> None:
    due = {renew_at_ms(admission(key)) for key in KEYS}
    assert len(due) == len(KEYS)
    half_ms = admission().renewable_ms
    assert all(half_ms <= one < half_ms + CREDENTIAL_MS // 20 for one in due)


class Falling:
    """A store whose log refuses renewals."""

    def __init__(self, now_ms: int, error: Exception | None = None) -> None:
        self.now_ms, self.error = now_ms, error
        self.proposed = 0

    async def read_time_ms(self, timeout_s: float = 5.0) -> int:
        if self.now_ms < 0:
            raise NoQuorum("no majority of the voters answers")
        return self.now_ms

    async def propose(self, ops: Any, *, timeout_s: float = 5.0) -> Any:
        self.proposed += 1
        if self.error is not None:
            raise self.error
        raise TooLarge("the log is full")


@pytest.mark.parametrize(
    ("left", "level"), [(CREDENTIAL_MS // 3, "warning"), (CREDENTIAL_MS // 5, "error")]
)
async def test_a_renewal_that_fails_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int, level: str
) -> None:
    trust = open_trust(FileDisk(tmp_path), GENESIS)
    said: list[tuple[str, dict[str, Any]]] = []
    log = SimpleNamespace(
        **{
            name: lambda text, _name=name, **more: said.append((_name, more))
            for name in ("debug", "info", "warning", "error")
        }
    )
    monkeypatch.setattr(renewal_module, "_log", log)
    store = Falling(CREDENTIAL_MS - left)
    mesh: Any = SimpleNamespace(membership=SimpleNamespace(alive=lambda: [KEYS[0].key_id]))
    noted: list[tuple[str, ...]] = []
    notes = SimpleNamespace(note=lambda *one: noted.append(one))
    assert not await Renewal(mesh, store, trust, KEYS[0], make_rng(1), notes).check()
    assert noted == [("node.renewed", "n0", "n0", "too_large", "")]
    [(told, more)] = said
    assert told == level
    assert more["why"] == "the log is full"
    assert more["days_left"] == round(left / DAY_MS, 1)
    assert "swarmctl doctor" in more["todo"]


async def test_nothing_is_asked_before_it_is_time_and_from_outside_once_nobody_tells_it(
    tmp_path: Path,
) -> None:
    trust = open_trust(FileDisk(tmp_path), GENESIS)
    asked: list[str] = []
    mesh: Any = SimpleNamespace(
        membership=SimpleNamespace(alive=lambda: [KEYS[0].key_id, KEYS[1].key_id]),
        possible_addresses=lambda: asked.append("x") or ([], []),
    )
    early = Falling(CREDENTIAL_MS // 2 - 1)
    assert await Renewal(mesh, early, trust, KEYS[0], make_rng(1)).check()
    assert early.proposed == 0
    assert trust.now_ms == early.now_ms
    late = Renewal(mesh, Falling(-1), trust, KEYS[0], make_rng(1))
    for _ in range(3):
        assert not await late.check()
        assert not asked, "members talk to it: perhaps they only lack a majority"
    assert not await late.check()
    assert asked, "they may have expired like this node, and tell it nothing"


def test_a_wrong_time_is_corrected_by_the_next_who_tells_it(tmp_path: Path) -> None:
    trust = open_trust(FileDisk(tmp_path), GENESIS)
    trust.enforce_expiry(tuple)
    trust.tell_time(2**62)
    assert trust.admission(KEYS[0].key_id) is None
    trust.tell_time(1_000)
    assert trust.now_ms == 1_000
    assert trust.admission(KEYS[0].key_id) is not None

"""The experiments of the Lifeguard paper, small: what each part of a failure detector changes."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from swarmd.base.ids import NodeId
from swarmd.base.machine import SetTimer
from swarmd.base.rng import make_rng
from swarmd.mesh.swim.events import PacketIn, ProbeTick, ProbeTimeout, RelayTimeout, Started
from swarmd.mesh.swim.machine import SwimMachine
from swarmd.mesh.swim.members import Record
from swarmd.mesh.swim.messages import (
    PACKETS,
    Gossip,
    MemberState,
    Meta,
    Nack,
    Ping,
    PingFor,
    Rumour,
    decode_rumour,
    encode_meta,
    encode_statement,
    make_rumour,
)
from swarmd.sim.swim import SimSigner, node_id
from swarmd.sim.swim_paper import (
    LIFEGUARD,
    OURS,
    PARTS,
    SWIM,
    SWIM_4,
    Anomalies,
    percentile,
    run_interval,
    run_threshold,
)
from swarmd.sim.swim_paper_tables import (
    Plan,
    Results,
    measure,
    plan_of,
    tables,
    text,
    tuned,
    verdict,
)
from swarmd.sim.swim_paper_variants import Variant
from swarmd.sim.swim_paper_world import Cluster, Model

SMALL = 24
LONG = Anomalies(3, 16_384, 1)
PROBE, SUSPICION, BUDDY = PARTS[1:4]
ALIVE, SUSPECT, DEAD, LEFT = MemberState


def rumour(kind: MemberState, subject: str, by: str, incarnation: int = 1 << 32) -> Rumour:
    body = encode_meta(Meta(subject)) if kind is ALIVE else b""
    said = encode_statement(kind, node_id(subject), incarnation, author=node_id(by), body=body)
    return make_rumour(said, SimSigner(node_id(by)).sign_rumour(said))


class Node:
    """One machine of a variant, which knows some others."""

    def __init__(self, variant: Variant, others: int = 9) -> None:
        me = node_id("me")
        self.now = 1.0
        self.machine: SwimMachine = variant.machine()(
            me, variant.config(), make_rng(1), SimSigner(me), Meta("me"), 1, 0.0
        )
        for number in range(others):
            name = f"n{number}"
            self.machine._ledger.members.add(Record(rumour(ALIVE, name, name), 0.0))
        for waiting in self.machine.queued():
            self.machine._ledger.queue.drop(waiting.subject)
        self.effects: list[Any] = []

    def handle(self, event: Any) -> list[Any]:
        self.effects = list(self.machine.handle(event, self.now))
        return self.effects

    def hear(self, *rumours: Rumour, peer: str = "n8") -> list[Any]:
        packet = Gossip([one.raw for one in rumours])
        return self.handle(PacketIn(node_id(peer), PACKETS.encode(packet)))

    def delays(self, kind: type) -> list[float]:
        return [
            e.delay_s for e in self.effects if isinstance(e, SetTimer) and isinstance(e.event, kind)
        ]

    def fire(self, kind: type) -> list[Any]:
        [timer] = [e for e in self.effects if isinstance(e, SetTimer) and type(e.event) is kind]
        self.now += timer.delay_s
        return self.handle(timer.event)

    def suspicion_s(self, *accusers: str) -> float:
        """How long a suspicion of n0 lasts with these accusers."""
        for accuser in accusers:
            self.hear(rumour(SUSPECT, "n0", accuser))
        record = self.machine._ledger.members.get(node_id("n0"))
        assert record is not None
        assert record.suspicion is not None
        return record.suspicion.due_at() - record.suspicion.started_at


# ---- the variants ---------------------------------------------------------------------------


def test_a_suspicion_of_plain_swim_is_fixed_and_of_lifeguard_shrinks() -> None:
    assert Node(SWIM).suspicion_s("n1") == Node(SWIM).suspicion_s("n1", "n2", "n3", "n4") == 5.0
    assert Node(SUSPICION).suspicion_s("n1") == 30.0
    assert 5.0 < Node(SUSPICION).suspicion_s("n1", "n2") < 30.0
    assert Node(SUSPICION).suspicion_s("n1", "n2", "n3", "n4") == 5.0
    assert Node(tuned(2, 4)).suspicion_s("n1") == 8.0


@pytest.mark.parametrize(("variant", "scale"), [(SWIM, 1), (PROBE, 4), (SUSPICION, 1)])
def test_health_slows_down_only_with_lha_probe(variant: Variant, scale: int) -> None:
    node = Node(variant)
    node.handle(Started())
    node.fire(ProbeTick)
    [turn] = [e for e in node.effects if isinstance(e, SetTimer) and type(e.event) is ProbeTick]
    asking = [e for e in node.effects if isinstance(e, SetTimer) and type(e.event) is ProbeTimeout]
    node.now += 0.5
    node.handle(asking[0].event)  # Three helpers are asked, and not one of them refuses.
    node.now += 0.5
    node.handle(turn.event)
    assert node.delays(ProbeTick) == [float(scale)]
    assert node.delays(ProbeTimeout) == [0.5 * scale]


@pytest.mark.parametrize(("variant", "refuses"), [(SWIM, False), (BUDDY, False), (PROBE, True)])
def test_helpers_refuse_only_with_lha_probe(variant: Variant, refuses: bool) -> None:
    node = Node(variant)
    asked = PingFor(7, node_id("n0"), [])
    node.handle(PacketIn(node_id("n1"), PACKETS.encode(asked)))
    sent = node.fire(RelayTimeout)
    assert [PACKETS.decode(effect.message) for effect in sent] == ([Nack(7)] if refuses else [])


@pytest.mark.parametrize(("variant", "told"), [(SWIM, False), (PROBE, False), (BUDDY, True)])
def test_a_suspect_is_told_by_whoever_pings_it_only_with_the_buddy_system(
    variant: Variant, told: bool
) -> None:
    node = Node(variant, others=2)
    node.hear(rumour(SUSPECT, "n0", "n1"))
    node.machine._ledger.queue.drop(node_id("n0"))  # Gossip has said it often enough.
    sent: dict[NodeId, Ping] = {}
    node.handle(Started())
    for _ in range(2):
        for effect in node.fire(ProbeTick):
            if hasattr(effect, "message"):
                packet = PACKETS.decode(effect.message)
                if isinstance(packet, Ping):
                    sent[effect.peer] = packet
    kinds = [decode_rumour(raw).kind for raw in sent[node_id("n0")].rumours]
    assert (SUSPECT in kinds) is told


def test_ours_is_the_production_machine() -> None:
    assert OURS.machine() is SwimMachine
    assert OURS.config().suspicion_mult == 4


# ---- the experiments ------------------------------------------------------------------------


def test_members_that_stand_still_make_plain_swim_accuse_others_and_ours_hardly_any() -> None:
    """Goal: what the paper is about. The same members stand still, and detection takes as long;
    whoever of the others is declared dead is well.
    """
    theirs = run_interval(SWIM_4, LONG, 0, size=SMALL, lasts_s=40.0)
    ours = run_interval(OURS, LONG, 0, size=SMALL, lasts_s=40.0)
    assert theirs.fp_healthy > 100
    assert ours.fp_healthy == 0
    assert 50 * ours.fp < theirs.fp


@pytest.mark.parametrize("variant", [SWIM_4, LIFEGUARD, OURS])
def test_a_member_that_stands_still_for_good_is_found_by_all(variant: Variant) -> None:
    found = run_threshold(variant, 2, 0, size=SMALL)
    shortest_s = variant.alpha * 1.38  # The logarithm of 24.
    assert len(found.first_s) == len(found.all_s) == 2
    for first_s, all_s in zip(found.first_s, found.all_s, strict=True):
        assert shortest_s < first_s <= all_s < shortest_s + 6.0


@pytest.mark.parametrize("model", ["messages", "senders", "process"])
def test_what_is_held_is_taken_up_when_a_member_wakes(model: Model) -> None:
    cluster = Cluster(0, OURS, size=6, model=model)
    cluster.stall([0])
    cluster.run_for(5.0)
    assert cluster.deaths == []
    cluster.wake([0])
    cluster.run_for(10.0)
    assert cluster.deaths == []  # It heard that it was doubted, and objected.


def test_a_stall_of_the_process_holds_its_timers_too() -> None:
    """One that goes on probing while it hears nothing gets unwell; one that stands still not."""
    health: dict[str, int] = {}
    for model in ("messages", "process"):
        cluster = Cluster(0, LIFEGUARD, size=6, model=model)  # type: ignore[arg-type]
        cluster.stall([0])
        cluster.run_for(5.0)
        health[model] = cluster.health(0)
    assert health["messages"] > health["process"] == 0


def test_where_senders_wait_suspicions_run_out_all_the_same() -> None:
    """The process that stands still declares nobody dead before it goes on."""
    dead_while_stalled: dict[str, set[int]] = {}
    for model in ("messages", "senders", "process"):
        cluster = Cluster(0, SWIM_4, size=6, model=model)  # type: ignore[arg-type]
        cluster.stall([1])
        cluster.run_for(2.8)
        cluster.stall([0])  # It has heard that member 1 is suspect, and hears nothing more.
        cluster.run_for(9.0)
        dead_while_stalled[model] = {death.about for death in cluster.deaths if death.at == 0}
    assert dead_while_stalled["messages"] >= dead_while_stalled["senders"] == {1}
    assert dead_while_stalled["process"] == set()


def test_a_run_is_a_function_of_its_seed() -> None:
    point = Anomalies(2, 8_192, 64)
    one, again, other = (
        run_interval(SWIM, point, seed, size=12, lasts_s=20.0) for seed in (0, 0, 1)
    )
    assert one == again != other


# ---- the tables -----------------------------------------------------------------------------


class Here(Executor):
    """Runs at once what it is given, small."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        small = {"lasts_s": 3.0} if fn is run_interval else {}
        future.set_result(fn(*args, size=18, **kwargs, **small))
        return future


def test_tables_have_a_row_for_each_variant() -> None:
    point = Anomalies(1, 1_024, 64)
    plan = Plan(points=(point,), tuning=(point,), threshold_seeds=(), seeds=(0,))
    results = measure(plan, Here())
    for variant in results.latencies:
        results.latencies[variant].first_s = results.latencies[variant].all_s = [10.0]
    found = tables(results)
    names = [variant.name for variant in (*PARTS, SWIM_4, OURS)]
    assert [row[0] for row in found["Message load (Table VI)"][1:]] == names
    assert len(found["Alpha and beta of Lifeguard, in % of SWIM (Table VII)"]) == 1 + 4 * 3
    assert all(len({len(row) for row in rows}) == 1 for rows in found.values())
    assert "| swarmd |" in text(found)


@pytest.mark.parametrize(
    ("fp_healthy", "first_s", "says"),
    [(2, 10.0, "reached"), (3, 10.0, "missed"), (0, 10.6, "missed"), (0, 9.4, "missed")],
)
def test_the_goal_wants_few_mistakes_at_equal_detection_time(
    fp_healthy: int, first_s: float, says: str
) -> None:
    results = _results(fp_healthy, first_s)
    assert verdict(results)[1][-1] == says


def test_where_swim_makes_no_mistake_nothing_is_proven() -> None:
    results = _results(0, 10.0)
    for tallies in results.tallies.values():
        for tally in tallies.values():
            tally.fp_healthy = 0
    assert verdict(results)[1][-1] == "nothing to compare with"


def _results(fp_healthy: int, first_s: float) -> Results:
    point = Anomalies(1, 1_024, 64)
    results = measure(Plan(points=(), tuning=(), threshold_seeds=()), Here())
    for variant in results.latencies:
        tally = dataclasses.replace(results.sum(variant, ()), fp_healthy=100)
        results.tallies[variant] = {point: tally}
        results.latencies[variant].first_s = [10.0]
    results.tallies[OURS][point].fp_healthy = fp_healthy
    results.latencies[OURS].first_s = [first_s]
    results.plan = dataclasses.replace(results.plan, points=(point,))
    return results


def test_a_plan_is_named_or_made_of_points() -> None:
    assert plan_of("some") == Plan()
    assert len(plan_of("full").points) == 9 * 6 * 8
    points = (Anomalies(4, 16_384, 1), Anomalies(8, 32_768, 1_024))
    assert plan_of("4,16384,1:8,32768,1024").points == points
    assert plan_of("4,16384,1:8,32768,1024").tuning == points[:1]
    for wrong in ("", "4,16384", "4,x,1", "128,1,1", "0,1,1", "4,16384,0"):
        with pytest.raises(ValueError, match=r"."):
            plan_of(wrong)


def test_percentiles_are_values_that_occur() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, part) for part in (0.5, 0.99, 0.999)] == [50.0, 99.0, 100.0]
    assert percentile([3.0], 0.5) == 3.0

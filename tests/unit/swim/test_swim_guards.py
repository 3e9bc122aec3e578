"""Guards of membership that no seed of the sweep misses: what each holds, and that it is missed.

For each there is a test of this folder that holds with the guard and fails without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import swim_bench
import test_coordinates as coordinates
import test_ported_belief as belief
import test_swim_machine as machine
import test_swim_probing as probing
from swim_bench import ALIVE, Bench, node, rumour

from swarmd.mesh.swim.events import NameConflict
from swarmd.mesh.swim.messages import Meta, encode_meta, encode_statement, make_rumour
from swarmd.sim.swim_mutants import BY_TEST

Check = Callable[[Bench], Any]


def two_living_members_of_one_name_are_told(bench: Bench) -> None:
    for name in ("x", "y"):
        body = encode_meta(Meta("web"))
        said = encode_statement(ALIVE, node(name), 1, author=node(name), body=body)
        bench.tell(make_rumour(said, bytes(64)))
    conflict = NameConflict("web", tuple(sorted((node("x"), node("y")))))
    assert conflict in bench.effects


def one_accuser_confirms_nothing(bench: Bench) -> None:
    bench.know("x", "y", "z", "w")
    bench.tell(rumour(swim_bench.SUSPECT, "x", 1, by="y"))
    bench.clear()
    for incarnation in (1, 1, 2, 3):
        bench.tell(rumour(swim_bench.SUSPECT, "x", incarnation, by="y"))
    record = bench.machine._ledger.members.get(node("x"))
    assert record is not None
    assert record.suspicion is not None
    assert record.suspicion.confirmed == 0
    assert bench.queued == []


def _a_restart_takes_nine_seconds(bench: Bench) -> None:
    machine.test_a_restart_may_take_as_long_as_was_said_and_no_longer(bench, 9.0, 8.9, True)


CHECKS: Mapping[str, Check] = {
    "swim.hearsay_is_doubt": machine.test_a_view_that_calls_a_live_member_dead_is_only_doubt,
    "swim.signatures": machine.test_a_wrong_signature_has_no_effect,
    "swim.step_bound": machine.test_an_accusation_far_ahead_of_its_subject_is_absurd,
    "swim.evicted_are_out": machine.test_who_is_evicted_is_forgotten_and_stays_so,
    "swim.distinct_accusers": one_accuser_confirms_nothing,
    "swim.late_suspicion": lambda b: probing.test_who_stood_still_lets_the_suspect_object(b, True),
    "swim.holds_end": probing.test_a_suspicion_and_a_check_end_where_all_timers_are_late,
    "swim.one_excuse_a_life": machine.test_an_excuse_counts_for_one_life_and_is_given_once,
    "swim.no_excuse_when_back": machine.test_who_is_back_is_excused_no_more,
    "swim.late_timers": probing.test_who_stood_still_hears_what_waited_before_it_accuses,
    "swim.nacks_in_time": (
        lambda _: probing.test_a_helper_refuses_while_its_asker_still_waits("lan")
    ),
    "swim.stream_probe": probing.test_a_stream_is_tried_where_datagrams_stay_unanswered,
    "swim.version_of_messages": (
        probing.test_who_does_not_speak_that_version_is_not_asked_over_a_stream
    ),
    "swim.checks_out_of_turn": (
        probing.test_who_hears_of_a_suspicion_looks_for_itself_and_confirms_it
    ),
    "swim.deaf_checks_prove_nothing": (
        lambda b: probing.test_a_check_that_nobody_at_all_answers_proves_nothing(b, 0, 0)
    ),
    "swim.new_lives": machine.test_who_spoke_up_since_it_was_asked_is_not_accused,
    "swim.who_answers": machine.test_an_answer_from_a_stranger_does_not_count,
    "swim.turn_bound": probing.test_turns_are_followed_but_not_far_beyond_reason,
    "swim.measured_trips": coordinates.test_what_waited_or_took_another_way_is_not_measured,
    "swim.watched_streams": (
        machine.test_a_reset_is_followed_by_three_quick_pings_and_ordinary_suspicion
    ),
    "swim.resets_are_hints": machine.test_an_answer_after_a_reset_ends_the_doubt,
    "swim.refused_connections": (
        lambda b: machine.test_a_refused_connection_shortens_the_suspicion(b, False)
    ),
    "swim.excuses": machine.test_who_restarts_is_excused_for_as_long_as_it_said,
    "swim.quiet_time": _a_restart_takes_nine_seconds,
    "swim.buddy": lambda b: machine.test_who_is_doubted_is_told_so_first(b, swim_bench.DEAD),
    "swim.name_conflict": two_living_members_of_one_name_are_told,
}
# What a check that looks for something finds missing.
MISSED = (AssertionError, ValueError)


def test_there_is_a_check_for_every_guard_and_no_other() -> None:
    assert CHECKS.keys() == BY_TEST.keys()


@pytest.mark.parametrize("name", BY_TEST)
def test_without_its_guard_a_test_fails(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    CHECKS[name](Bench())
    for module in (swim_bench, machine, probing, belief, coordinates):
        if hasattr(module, "SwimMachine"):
            monkeypatch.setattr(module, "SwimMachine", BY_TEST[name])
    with pytest.raises(MISSED):
        CHECKS[name](Bench())

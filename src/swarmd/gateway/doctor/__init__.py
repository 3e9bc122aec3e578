"""The doctor: facts in, findings and advice out. Pure.

Each check says what it found in one sentence and, unless all is well, what to do. `warn` is
what may be meant so or may hurt later; `fail` is what keeps the node from its work. Where one
cause shows in several places, the check that it belongs to names it, and the others point there.

`facts` holds what is asked for, `local` the checks of this machine, `discovery` those of finding
each other, and `peers` those of what gets through to the others.
"""

from __future__ import annotations

from swarmd.gateway.doctor.discovery import discovery_checks
from swarmd.gateway.doctor.facts import NodeFacts
from swarmd.gateway.doctor.local import (
    check_daemon,
    clock_of_kernel,
    credential_checks,
    firewall_lines,
    folder_and_port,
    index_checks,
    standing_checks,
)
from swarmd.gateway.doctor.peers import clock_check, peer_checks
from swarmd.gateway.doctor.verdicts import fail, ok, warn
from swarmd.gateway.local_facts import LocalFacts
from swarmd.gateway.shapes import Check


def examine(facts: NodeFacts) -> list[Check]:
    """All checks of a running daemon."""
    if not facts.swarm or facts.mesh is None:  # Nothing was asked of anybody yet.
        return [check_daemon(facts), *examine_local(facts.local)]
    return [
        check_daemon(facts),
        *folder_and_port(facts.local),
        clock_check(facts),
        *discovery_checks(facts, facts.mesh),
        *peer_checks(facts),
        _quorum(facts),
        *credential_checks(facts.credential_left_ms),
        *index_checks(facts.index),
    ]


def examine_local(facts: LocalFacts) -> list[Check]:
    """The checks that need no daemon."""
    return [
        *standing_checks(facts),
        *folder_and_port(facts),
        clock_of_kernel(facts),
        firewall_lines(facts),
    ]


def check_daemon_down(problem: str) -> Check:
    return fail(
        "daemon",
        problem,
        "start it with `swarmd` (first host: `swarmd --init NAME`; other hosts: "
        "`swarmd --join -`); if it runs, name its socket with --socket",
    )


def check_config_wrong(problem: str) -> Check:
    return fail("config", problem, "correct it, then start `swarmd`")


def _quorum(facts: NodeFacts) -> Check:
    voters = ", ".join(facts.voters) or "unknown"
    if facts.store_state == "no_quorum" or not facts.coordinator:
        return fail(
            "quorum",
            f"no majority of the voters ({voters}) answers",
            "start the voters that are away; nothing acknowledged is lost meanwhile",
        )
    finding = f"voters {voters}, coordinator {facts.coordinator}; {facts.next_loss}"
    if facts.may_lose < 1:
        return warn("quorum", finding, "from three nodes on, any one may be lost")
    return ok("quorum", finding)

"""`swarmctl lock` and `elect` with real daemons: whatever dies, two commands never overlap."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from localswarm import Daemon, LocalSwarm, file_for_agents, wait_until
from locks_ledger import Holder, check_ledger, nothing_runs, read_ledger, wait_runs, worker

from swarmd.client import Client

AGENTS = Path(__file__).parent / "agents"


@pytest.fixture
def ledger(folder: Path) -> Path:
    return file_for_agents(folder / "ledger")


def others_than(swarm: LocalSwarm, *daemons: Daemon | None) -> list[Daemon]:
    return [one for one in swarm.daemons if one not in daemons]


def owners(daemon: Daemon, name: str) -> list[str]:
    """Who holds and who waits, in order."""
    return [place["owner"] for place in daemon.json("locks", "show", name)["line"]]


def test_a_lock_as_a_person_uses_it(trio_swarm: LocalSwarm, ledger: Path) -> None:
    """Exit codes, environment, one after the other, Ctrl-C, what is said, nothing left behind."""
    first, second, third = trio_swarm.daemons
    done = first.ctl("lock", "door", "--", "sh", "-c", "echo $SWARM_LOCK $SWARM_FENCE; exit 7")
    assert done.returncode == 7
    name, fence = done.stdout.split()
    assert (name, int(fence) > 0) == ("door", True)
    assert first.ctl("lock", "door", "--", "no-such-program").returncode == 127

    with Holder([second], "door", "--owner", "ann", "--", *worker(ledger, 600)) as holder:
        wait_runs(ledger, 1)
        assert owners(third, "door") == ["ann"]
        refused = third.ctl("lock", "door", "--wait", "0", "--", "true")
        assert refused.returncode == 4
        assert "is held by ann, who asked at 20" in refused.stderr
        assert owners(third, "door") == ["ann"]
        listed = first.ctl("locks", "list").stdout
        assert listed.splitlines()[1].split()[:2] == ["door", "ann"]
        with Holder([first], "door", "--owner", "bob", "--", *worker(ledger, 0)) as waiter:
            wait_until("bob waits", lambda: owners(first, "door") == ["ann", "bob"])
            waiter.send(signal.SIGINT)
            assert waiter.ended()[0] == 130
            wait_until("bob has left", lambda: owners(first, "door") == ["ann"])
        with Holder([third], "door", "--", *worker(ledger, 0.1)) as waiter:
            wait_until("one waits", lambda: len(owners(first, "door")) == 2)
            holder.send(signal.SIGINT)
            assert holder.ended()[0] == 130
            assert waiter.ended()[0] == 0
    assert len(check_ledger(ledger)) == 2
    assert first.ctl("locks", "list").stdout == "no lock is held\n"
    told = json.loads(first.ctl("lock", "door", "--json", "--", "true").stdout)
    assert told["name"] == "door"
    assert (told["exit_code"], told["lost"]) == (0, False)


def test_counters_barriers_and_elections_from_the_shell(trio_swarm: LocalSwarm) -> None:
    first, second, third = trio_swarm.daemons
    assert first.ctl("counter", "add", "builds").stdout == "1\n"
    assert second.ctl("counter", "add", "builds", "-3").stdout == "-2\n"
    assert third.json("counter", "get", "builds") == {"name": "builds", "value": -2}
    assert first.ctl("barrier", "gate", "--count", "2", "--wait", "200ms").returncode == 2
    late = first.ctl("barrier", "gate", "--count", "2", "--wait", "0.2s")
    assert late.returncode == 4
    assert "1 of 2 came in time" in late.stderr
    with Holder([first], "gate", "--count", "2", verb="barrier") as waiting:
        code = second.ctl("barrier", "gate", "--count", "2").returncode
        assert (code, waiting.ended()[0]) == (0, 0)
    assert second.ctl("elections", "show", "boss").stdout == "nobody leads boss\n"
    with Holder(
        [first], "boss", "--value", "host1:80", "--", "sleep", "600", verb="elect"
    ) as leader:
        shown = wait_until(
            "somebody leads", lambda: second.json("elections", "show", "boss")["holder"]
        )
        assert shown["revision"] > 0
        assert "host1:80" in second.ctl("elections", "show", "boss").stdout
        leader.send(signal.SIGTERM)
        assert leader.ended()[0] == 143
    wait_until("nobody leads", lambda: not second.json("elections", "show", "boss")["holder"])


@pytest.mark.long
def test_the_coordinator_is_killed_while_a_lock_is_held(
    trio_swarm: LocalSwarm, ledger: Path
) -> None:
    """The holder goes on under its lease; who waits goes on waiting, at another daemon."""
    coordinator = trio_swarm.coordinator()
    assert coordinator is not None
    others = others_than(trio_swarm, coordinator)
    with (
        Holder(
            [coordinator, *others], "door", "--ttl", "6s", "--owner", "ann", "--",
            *worker(ledger, 12),
        ) as holder,
    ):  # fmt: skip
        wait_runs(ledger, 1)
        with Holder(
            [coordinator, *others], "door", "--ttl", "6s", "--owner", "bob", "--",
            *worker(ledger, 0.5),
        ) as waiter:  # fmt: skip
            wait_until("bob waits", lambda: owners(others[0], "door") == ["ann", "bob"])
            coordinator.kill()
            code, _, err = holder.ended()
            assert (code, err) == (0, "")
            assert waiter.ended()[0] == 0
    runs = check_ledger(ledger)
    assert len(runs) == 2
    assert runs[0].end - runs[0].begin > 11 * 10**9, "the command did not run to its end"
    wait_until("nobody holds it", lambda: owners(others[0], "door") == [])


@pytest.mark.long
def test_the_local_daemon_restarts_while_a_lock_is_held(
    trio_swarm: LocalSwarm, ledger: Path
) -> None:
    """With one socket only: it goes on within its lease."""
    local = trio_swarm[1]
    with Holder([local], "door", "--ttl", "15s", "--", *worker(ledger, 10)) as holder:
        wait_runs(ledger, 1)
        local.kill()
        trio_swarm.restart(local)
        code, _, err = holder.ended()
    assert (code, err) == (0, "")
    [run] = check_ledger(ledger)
    assert run.end - run.begin > 9 * 10**9


@pytest.mark.long
def test_a_lock_that_cannot_be_kept_costs_the_command(trio_swarm: LocalSwarm, ledger: Path) -> None:
    """All daemons the holder may ask are gone: the command is dead before another one begins."""
    gone = next(d for d in trio_swarm.daemons if d is not trio_swarm.coordinator())
    [other, third] = others_than(trio_swarm, gone)
    with Holder([gone], "door", "--ttl", "4s", "--", *worker(ledger, 600)) as holder:
        wait_runs(ledger, 1)
        with Holder([other, third], "door", "--", *worker(ledger, 0.2)) as waiter:
            wait_until("two are in the line", lambda: len(owners(other, "door")) == 2)
            gone.kill()
            code, _, err = holder.ended()
            assert code == 4
            assert "was lost, so the command was ended" in err
            assert waiter.ended()[0] == 0
    assert len(check_ledger(ledger)) == 2


@pytest.mark.long
def test_a_stopped_swarmctl_cannot_hold_its_command_past_the_lease(
    trio_swarm: LocalSwarm, ledger: Path
) -> None:
    """SIGSTOP of the holder's swarmctl for longer than its TTL, then SIGCONT."""
    first, second, _ = trio_swarm.daemons
    with Holder([first], "door", "--ttl", "3s", "--", *worker(ledger, 600)) as holder:
        wait_runs(ledger, 1)
        holder.send(signal.SIGSTOP)
        with Holder([second], "door", "--", *worker(ledger, 3)) as following:
            wait_runs(ledger, 2)
            before, after = read_ledger(ledger)
            assert before.end < after.begin
            holder.send(signal.SIGCONT)
            code, _, err = holder.ended()
            assert code == 4
            assert "was lost" in err
            assert following.ended()[0] == 0
    assert len(check_ledger(ledger)) == 2


@pytest.mark.long
def test_a_killed_swarmctl_takes_its_command_with_it(trio_swarm: LocalSwarm, ledger: Path) -> None:
    first, second, _ = trio_swarm.daemons
    with Holder([first], "door", "--ttl", "3s", "--", *worker(ledger, 600)) as holder:
        wait_runs(ledger, 1)
        holder.process.kill()
        with Holder([second], "door", "--", *worker(ledger, 0.2)) as following:
            assert following.ended()[0] == 0
    assert len(check_ledger(ledger)) == 2
    assert nothing_runs(ledger)


@pytest.mark.long
def test_a_leader_that_loses_its_office_stands_again(trio_swarm: LocalSwarm, ledger: Path) -> None:
    """Its daemon is stopped for longer than the TTL: another leads meanwhile, then it may again."""
    coordinator = trio_swarm.coordinator()
    local, *_ = others_than(trio_swarm, coordinator)
    [other] = others_than(trio_swarm, coordinator, local)
    with Holder(
        [local], "boss", "--ttl", "3s", "--owner", "ann", "--", *worker(ledger, 600), verb="elect"
    ) as ann:
        wait_runs(ledger, 1)
        with Holder(
            [other], "boss", "--ttl", "3s", "--owner", "bob", "--", *worker(ledger, 600),
            verb="elect",
        ) as bob:  # fmt: skip
            local.pause()
            wait_runs(ledger, 2)
            local.resume()
            leads = lambda: other.json("elections", "show", "boss")["line"]  # noqa: E731
            wait_until("ann stands again", lambda: [p["owner"] for p in leads()] == ["bob", "ann"])
            bob.send(signal.SIGTERM)
            assert bob.ended()[0] == 143
            wait_runs(ledger, 3)
            ann.send(signal.SIGTERM)
            assert ann.ended()[0] == 143
    assert len(check_ledger(ledger)) == 3


@pytest.mark.long
def test_contenders_never_overlap_while_daemons_die(trio_swarm: LocalSwarm, ledger: Path) -> None:
    """Six contenders at three daemons take turns; each daemon is killed and restarted once."""
    stop_at = time.monotonic() + 30
    contenders: list[Holder] = []

    def contender(number: int) -> Holder:
        daemons = [trio_swarm.daemons[(number + n) % 3] for n in range(3)]
        arguments = ["door", "--ttl", "3s", "--wait", "90s", "--", *worker(ledger, 0.4)]
        return Holder(daemons, *arguments)

    try:
        contenders = [contender(number) for number in range(6)]
        victims = iter(trio_swarm.daemons)
        kill_at = time.monotonic() + 3
        started = len(contenders)
        while time.monotonic() < stop_at:
            for index, one in enumerate(contenders):
                if one.process.poll() is not None:
                    contenders[index] = contender(started)
                    started += 1
            if time.monotonic() > kill_at and (victim := next(victims, None)) is not None:
                victim.kill()
                time.sleep(1)
                trio_swarm.restart(victim)
                kill_at = time.monotonic() + 7
            time.sleep(0.05)
        for one in contenders:
            assert one.ended(120)[0] in (0, 4)
    finally:
        for one in contenders:
            one.__exit__()
    runs = check_ledger(ledger)
    assert len(runs) > 10
    trio_swarm.wait_whole()
    assert trio_swarm[0].ctl("locks", "list").stdout == "no lock is held\n"


@pytest.mark.long
def test_attempts_under_one_lock_never_overlap_while_a_daemon_dies(
    trio_swarm: LocalSwarm, ledger: Path
) -> None:
    """60 tasks on three nodes take turns at a lock; the coordinator is killed midway."""
    trio_swarm[0].json("agent", "deploy", str(AGENTS / "locker.toml"))
    tasks = [
        {"agent": "locker", "input": {"ledger": str(ledger), "hold_s": 0.1}, "key": f"k{n}"}
        for n in range(60)
    ]
    sockets = [daemon.socket for daemon in trio_swarm.daemons]
    with Client(sockets) as client:
        ids = [one.id for one in client.submit(tasks)]
        wait_runs(ledger, 10)
        coordinator = trio_swarm.coordinator()
        assert coordinator is not None
        coordinator.kill()
        results = list(client.results(ids))
    assert {task.state for task in results} == {"succeeded"}
    runs = check_ledger(ledger)
    assert {task.result["fence"] for task in results} <= {run.fence for run in runs}
    living = others_than(trio_swarm, coordinator)[0]
    assert living.json("counter", "get", "locker")["value"] >= 60
    wait_until("nobody holds it", lambda: owners(living, "door") == [])

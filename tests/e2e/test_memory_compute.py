"""Values that are computed once, over real daemons that are killed."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from localswarm import Daemon, LocalSwarm, wait_until

from swarmd.base.errors import ComputeFailed, ComputeReplaced
from swarmd.client import Client

pytestmark = pytest.mark.long

MISSES = 100
# A program that takes its turn, says so, and computes for long.
SLOW = """
import sys, time
from pathlib import Path
from swarmd.client import Client

def compute():
    Path(sys.argv[2]).write_text("mine")
    time.sleep(100)

Client(sys.argv[1]).memory_get_or_compute("built", sys.argv[3], compute)
"""


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSwarm]:
    with LocalSwarm(tmp_path_factory.mktemp("compute"), 5) as one:
        one.form()
        yield one


class Callers:
    """Threads that ask different daemons for one value at once, and count who computed it."""

    def __init__(self, daemons: list[Daemon], key: str, takes_s: float = 0.5) -> None:
        self._daemons, self._key, self._takes_s = daemons, key, takes_s
        self._lock = threading.Lock()
        self.computed: list[int] = []

    def start(self, pool: ThreadPoolExecutor, count: int) -> list[Future[Any]]:
        return [pool.submit(self._ask, number) for number in range(count)]

    def _ask(self, number: int) -> Any:
        def compute() -> str:
            with self._lock:
                self.computed.append(number)
            time.sleep(self._takes_s)
            return f"by {number}"

        daemon = self._daemons[number % len(self._daemons)]
        with Client(str(daemon.socket)) as client:
            return client.memory_get_or_compute("built", self._key, compute, wait_s=40)


def test_a_hundred_misses_over_five_daemons_are_computed_once(swarm: LocalSwarm) -> None:
    callers = Callers(swarm.daemons, "once")
    began = time.monotonic()
    with ThreadPoolExecutor(MISSES) as pool:
        got = [one.result() for one in callers.start(pool, MISSES)]
    print(f"{MISSES} misses in {time.monotonic() - began:.2f} s")
    assert len(callers.computed) == 1
    assert set(got) == {f"by {callers.computed[0]}"}
    with ThreadPoolExecutor(MISSES) as pool:
        again = [one.result() for one in callers.start(pool, MISSES)]
    assert (len(callers.computed), set(again)) == (1, set(got))


def test_who_computes_is_killed_with_its_node_and_it_is_computed_once_more(
    swarm: LocalSwarm, tmp_path: Path
) -> None:
    victim, others = swarm[1], [one for one in swarm.daemons if one is not swarm[1]]
    said = tmp_path / "said"
    command = [sys.executable, "-c", SLOW, str(victim.socket), str(said), "killed"]
    callers = Callers(others, "killed")
    with subprocess.Popen(command) as slow, ThreadPoolExecutor(40) as pool:
        wait_until("its turn", said.exists)
        asked = callers.start(pool, 40)
        time.sleep(1.0)
        assert callers.computed == []
        slow.kill()
        victim.kill()
        began = time.monotonic()
        got = [one.result() for one in asked]
        print(f"replaced and computed in {time.monotonic() - began:.2f} s")
    assert len(callers.computed) == 1, "once more, and no more than that"
    assert set(got) == {f"by {callers.computed[0]}"}
    victim.start()
    swarm.wait_whole()
    with Client(str(victim.socket)) as client:
        assert client.memory_get_or_compute("built", "killed", _never) == got[0]


@pytest.mark.alone
def test_who_is_killed_alone_is_replaced_at_once(swarm: LocalSwarm, tmp_path: Path) -> None:
    said = tmp_path / "said"
    command = [sys.executable, "-c", SLOW, str(swarm[1].socket), str(said), "alone"]
    callers = Callers(swarm.daemons, "alone", takes_s=0.0)
    with subprocess.Popen(command) as slow, ThreadPoolExecutor(5) as pool:
        wait_until("its turn", said.exists)
        asked = callers.start(pool, 5)
        time.sleep(0.5)
        slow.kill()
        began = time.monotonic()
        assert len({one.result() for one in asked}) == 1
        assert time.monotonic() - began < 4.0, "no lease had to lapse"
    assert len(callers.computed) == 1


def test_a_late_result_is_refused_and_its_caller_gets_what_counts(swarm: LocalSwarm) -> None:
    """Its node goes while it computes, so that another one is to compute; then it comes with its
    result to a third node.
    """
    victim, other, third = swarm[2], swarm[3], swarm[4]
    began, may = threading.Event(), threading.Event()

    def slow() -> str:
        began.set()
        assert may.wait(30)
        return "late"

    late = Client([str(victim.socket), str(third.socket)])
    with ThreadPoolExecutor(1) as pool, late:
        asked = pool.submit(late.memory_get_or_compute, "built", "late", slow)
        assert began.wait(10)
        victim.kill()
        with Client(str(other.socket)) as client:
            assert client.memory_get_or_compute("built", "late", lambda: "good") == "good"
        may.set()
        assert asked.result(timeout=20) == "good"
    with Client(str(third.socket)) as client:
        assert client.memory_get("built", "late").value == "good"
    victim.start()
    swarm.wait_whole()


def test_one_that_takes_longer_than_it_may_is_replaced(swarm: LocalSwarm) -> None:
    with Client(str(swarm[0].socket)) as client:

        def slow() -> str:
            time.sleep(2.0)
            with Client(str(swarm[3].socket)) as other:
                return str(other.memory_get_or_compute("built", "slow", lambda: "quick"))

        calls: list[Callable[[], str]] = [slow]
        found = client.memory_get_or_compute(
            "built", "slow", lambda: calls.pop()(), compute_s=0.5, wait_s=20
        )
        assert found == "quick"
        with pytest.raises(ComputeReplaced):
            client.memory_get_or_compute(
                "built", "slower", lambda: time.sleep(1.0), compute_s=0.2, wait_s=0
            )


def test_what_fails_is_told_to_who_waits_and_tried_by_who_comes_later(swarm: LocalSwarm) -> None:
    began = threading.Event()

    def fails() -> str:
        began.set()
        time.sleep(1.0)
        raise ValueError("no such report")

    with ThreadPoolExecutor(1) as pool, Client(str(swarm[0].socket)) as client:
        asked = pool.submit(client.memory_get_or_compute, "built", "fails", fails)
        assert began.wait(10)
        with (
            Client(str(swarm[1].socket)) as other,
            pytest.raises(ComputeFailed, match="ValueError: no such report"),
        ):
            other.memory_get_or_compute("built", "fails", _never)
        with pytest.raises(ValueError, match="no such report"):
            asked.result()
        assert client.memory_get_or_compute("built", "fails", lambda: "fine") == "fine"


def test_as_somebody_types_it(swarm: LocalSwarm, tmp_path: Path) -> None:
    count = tmp_path / "count"
    program = f"echo x >> {count}; sleep 0.5; echo made"

    def typed(daemon: Daemon) -> str:
        done = daemon.ctl("mem", "compute", "report", "--ttl", "1h", "--", "sh", "-c", program)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(typed, swarm.daemons)) == ["made\n"] * 5
    assert count.read_text() == "x\n"
    n1 = swarm[0]
    shown = n1.ctl("mem", "namespace", "list")
    assert "cache" in shown.stdout
    assert "10000" in shown.stdout
    assert all(len(line) <= 80 for line in shown.stdout.splitlines()), shown.stdout
    made = n1.ctl("mem", "namespace", "create", "typed", "--consistency", "strong")
    assert made.stdout == "typed is strong; every node knows\n", made.stderr
    for arguments, code, text in (
        (("mem", "namespace", "create", "typed"), 1, "strong already"),
        (("mem", "namespace", "create", "a/b"), 2, "not a namespace name"),
        (("mem", "compute", "k", "-n", "typed", "--", "true"), 1, "is no cache"),
        (("mem", "compute", "broken", "--", "false"), 1, "false ended with 1"),
        (("mem", "compute", "broken", "--", "/no/such"), 1, "No such file"),
    ):
        done = n1.ctl(*arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert text in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert n1.ctl("mem", "set", "k", "1", "-n", "typed").returncode == 0
    assert swarm[1].ctl("mem", "get", "k", "-n", "typed").stdout == "1\n"
    assert "typed is strong" in swarm[2].ctl("mem", "namespace", "show", "typed").stdout


def _never() -> str:
    raise AssertionError("it is there")

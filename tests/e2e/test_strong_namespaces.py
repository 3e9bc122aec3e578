"""Strong namespaces over real daemons: no get returns an older value than was acknowledged."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from localswarm import Daemon, LocalSwarm, wait_until

from swarmd.base.errors import NoQuorum, NotFound, SwarmError
from swarmd.client import Client

pytestmark = pytest.mark.long

# Those that a kill leaves unknown do not count.
PAIRS = 10_500
WRITERS = 10


class Ledger:
    """What was acknowledged of each key, and every get that came back with less.

    A key has one writer, whose values rise. A write of which nobody knows what became of it may
    still count later, so its key is written no more.
    """

    def __init__(self) -> None:
        self._acknowledged: dict[str, int] = {}
        self._lock = threading.Lock()
        self.stale: list[str] = []
        self.pairs = self.reads = 0

    def acknowledge(self, key: str, value: int) -> None:
        with self._lock:
            self._acknowledged[key] = value

    def floor(self, key: str) -> int:
        """To be asked before a get begins."""
        with self._lock:
            return self._acknowledged.get(key, 0)

    def saw(self, key: str, floor: int, value: int, where: str) -> None:
        with self._lock:
            self.reads += 1
            if value < floor:
                self.stale.append(f"{where}: {key} was {value} after {floor} was acknowledged")

    def some_key(self, rng: random.Random) -> str | None:
        with self._lock:
            return rng.choice(list(self._acknowledged)) if self._acknowledged else None


class Crew:
    """Writers that set at one node and get at another, and readers that get anywhere."""

    def __init__(self, swarm: LocalSwarm, namespace: str, pairs: int) -> None:
        self.swarm, self.namespace = swarm, namespace
        self.ledger = Ledger()
        self.troubles = 0
        self._left = itertools.count(pairs, -1)
        self._done = threading.Event()

    def run(self, readers: int = 2) -> None:
        with ThreadPoolExecutor(WRITERS + readers) as pool:
            reading = [pool.submit(self._read, number) for number in range(readers)]
            writing = [pool.submit(self._write, number) for number in range(WRITERS)]
            for one in writing:
                one.result()
            self._done.set()
            for one in reading:
                one.result()

    def _clients(self) -> list[tuple[Daemon, Client]]:
        return [(one, Client(str(one.socket), timeout_s=10)) for one in self.swarm.daemons]

    def _write(self, number: int) -> None:
        rng, clients = random.Random(number), self._clients()
        generation, value = 0, 0
        while next(self._left) > 0:
            key = f"k{number}.{generation}"
            (_, a), (there, b) = rng.sample(clients, 2)
            value += 1
            try:
                a.memory_set(self.namespace, key, value)
                self.ledger.acknowledge(key, value)
                self._get(b, there, key)
                self.ledger.pairs += 1
            except SwarmError:
                self.troubles += 1
                generation, value = generation + 1, 0
                clients = [one for one in clients if _runs(one[0])]
                time.sleep(0.05)

    def _read(self, number: int) -> None:
        rng, clients = random.Random(1_000 + number), self._clients()
        while not self._done.is_set():
            key, (there, client) = self.ledger.some_key(rng), rng.choice(clients)
            if key is None:
                continue
            try:
                self._get(client, there, key)
                time.sleep(0.01)
            except SwarmError:
                time.sleep(0.05)

    def _get(self, client: Client, there: Daemon, key: str) -> None:
        floor = self.ledger.floor(key)
        try:
            value = client.memory_get(self.namespace, key).value
        except NotFound:
            value = 0
        self.ledger.saw(key, floor, value, there.name)


def _runs(daemon: Daemon) -> bool:
    return daemon.process is not None and daemon.process.poll() is None


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSwarm]:
    with LocalSwarm(tmp_path_factory.mktemp("strong"), 5) as one:
        one.form()
        yield one


def test_the_ledger_finds_what_is_older_than_was_acknowledged() -> None:
    ledger = Ledger()
    ledger.acknowledge("k", 5)
    floor = ledger.floor("k")
    ledger.acknowledge("k", 6)
    for value in (5, 6, 7):
        ledger.saw("k", floor, value, "n1")
    assert ledger.stale == []
    ledger.saw("k", ledger.floor("k"), 5, "n2")
    ledger.saw("k", floor, 0, "n3")
    assert [one[:2] for one in ledger.stale] == ["n2", "n3"]


def test_an_eventual_namespace_is_found_to_be_one(swarm: LocalSwarm) -> None:
    """That what finds stale reads finds them between these daemons: eventual ones are some."""
    crew = Crew(swarm, "eventual", 1_000)
    crew.run()
    assert crew.ledger.pairs > 900
    assert crew.ledger.stale


def test_no_get_is_stale_though_the_coordinator_is_killed(swarm: LocalSwarm) -> None:
    with Client(str(swarm[0].socket)) as client:
        made = client.memory_namespace_create("ledger", "strong")
    assert (made.consistency, made.left_over) == ("strong", 0)
    crew = Crew(swarm, "ledger", PAIRS)
    killed: list[Daemon] = []

    def kill() -> None:
        wait_until("half of it", lambda: crew.ledger.pairs >= PAIRS // 2, timeout_s=300)
        victim = swarm.coordinator()
        assert victim is not None
        victim.kill()
        killed.append(victim)

    killer = threading.Thread(target=kill)
    killer.start()
    began = time.monotonic()
    crew.run()
    took_s = time.monotonic() - began
    killer.join()
    ledger = crew.ledger
    print(
        f"{ledger.pairs} pairs and {ledger.reads} gets in {took_s:.1f} s, {crew.troubles} troubles"
    )
    assert ledger.stale == []
    assert killed
    assert ledger.pairs >= 10_000
    assert ledger.reads > ledger.pairs
    killed[0].start()
    swarm.wait_whole()


def test_without_a_majority_it_says_so_and_eventual_values_go_on(swarm: LocalSwarm) -> None:
    with Client(str(swarm[0].socket)) as client:
        client.memory_namespace_create("careful", "strong")
        client.memory_set("careful", "k", 1)
        voters = [swarm.by_name(one.node) for one in client.voters() if one.seat]
    last = next(one for one in swarm.daemons if one not in voters)
    for one in voters:
        one.kill()
    try:
        with Client(str(last.socket)) as client:
            for call in (
                lambda: client.memory_get("careful", "k"),
                lambda: client.memory_set("careful", "k", 2),
                lambda: client.memory_list("careful"),
            ):
                with pytest.raises(NoQuorum):
                    call()
            client.memory_set("plain", "k", 1)
            assert client.memory_get("plain", "k").value == 1
        last.kill()
        last.start()
        wait_until("it runs", lambda: last.try_json("mem", "get", "k", "-n", "plain"))
        done = last.ctl("mem", "get", "k", "-n", "careful")
        assert (done.returncode, "majority" in done.stderr) == (4, True), done.stderr
    finally:
        for one in voters:
            one.start()
    swarm.wait_whole(timeout_s=60)
    with Client(str(last.socket)) as client:
        assert client.memory_get("careful", "k").value == 1

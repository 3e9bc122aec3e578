"""User events and questions to all, between real daemons, as somebody types them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import pytest
from localswarm import Daemon, LocalSwarm, wait_until

from swarmd.base.errors import SwarmError
from swarmd.client import Client
from swarmd.gateway.shapes_events import EventNews

pytestmark = pytest.mark.long


class Listener:
    """A watch by the client, read in a thread, so that a test that waits in vain ends."""

    def __init__(self, daemon: Daemon, *names: str) -> None:
        self._came: SimpleQueue[EventNews] = SimpleQueue()
        Thread(target=self._read, args=(daemon, names), daemon=True).start()
        assert self._came.get(timeout=30).names == list(names)

    def _read(self, daemon: Daemon, names: tuple[str, ...]) -> None:
        with suppress(SwarmError):
            for one in Client(str(daemon.socket)).event_watch(names):
                self._came.put(one)

    def take(self, timeout_s: float = 10.0) -> tuple[str, str, str]:
        event = self._came.get(timeout=timeout_s).event
        assert event is not None
        return event.name, event.payload, event.node

    def is_silent(self, for_s: float) -> bool:
        with suppress(Empty):
            self._came.get(timeout=for_s)
            return False
        return True


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSwarm]:
    with LocalSwarm(tmp_path_factory.mktemp("events"), 3) as one:
        one.form()
        yield one


def listed(daemon: Daemon) -> list[tuple[str, str, str]]:
    found = daemon.try_json("event", "list") or []
    return [(one["name"], one["payload"], one["node"]) for one in found]


def test_an_event_of_one_node_is_heard_once_on_all(swarm: LocalSwarm) -> None:
    n1, _, n3 = swarm.daemons
    every = [Listener(one) for one in swarm.daemons]
    some = Listener(n3, "deploy")
    wait_until("n2 knows the time", lambda: n1.ctl("event", "send", "ready").returncode == 0)
    assert [one.take() for one in every] == [("ready", "", "n1")] * 3
    sent = n3.json("event", "send", "deploy", "v2 ä")
    assert (sent["name"], sent["payload"], sent["node"]) == ("deploy", "v2 ä", "n3")
    for one in (*every, some):
        assert one.take() == ("deploy", "v2 ä", "n3")
    assert all(one.is_silent(1.0) for one in (*every, some))
    for daemon in swarm.daemons:
        assert listed(daemon)[-2:] == [("ready", "", "n1"), ("deploy", "v2 ä", "n3")]
    shown = n1.ctl("event", "list").stdout
    assert "PAYLOAD" in shown
    assert "v2 ä" in shown


def test_mistakes_say_what_is_wrong(swarm: LocalSwarm) -> None:
    n1 = swarm[0]
    done = n1.ctl("event", "send", "a b")
    assert (done.returncode, "not a user event name" in done.stderr) == (2, True)
    done = n1.ctl("event", "send", "deploy", "x" * 513)
    assert done.returncode != 0
    assert "513 bytes" in done.stderr
    assert "at most 512" in done.stderr
    assert listed(n1)[-1] != ("deploy", "x" * 513, "n1")


def test_who_was_away_is_told_what_it_missed_and_nothing_twice(swarm: LocalSwarm) -> None:
    n1, _, n3 = swarm.daemons
    n3.terminate()
    n1.json("event", "send", "missed", "while away")
    before = listed(n1)
    n3.start()
    wait_until("n3 is told", lambda: listed(n3) == before)
    told = [
        line for line in n3.log.read_text().splitlines() if "missed" in line and "event" in line
    ]
    assert len(told) == 1, told


def test_all_are_asked_and_who_does_not_answer_is_named(swarm: LocalSwarm) -> None:
    n1, _, n3 = swarm.daemons
    swarm.wait_whole()
    for name in ("disk", "load", "ping", "uptime", "version"):
        found = n1.json("node", "query", name)
        assert (found["asked"], found["acks"], found["answers"]) == (3, 3, 3), found
    shown = n1.ctl("node", "query", "ping", "hello")
    assert shown.returncode == 0
    assert shown.stdout.count("payload=hello") == 3
    assert "3 asked, 3 heard from, 3 answered" in shown.stdout
    assert n1.json("node", "query", "ping", "--member", "n2")["asked"] == 1
    unknown = n1.ctl("node", "query", "weather")
    assert unknown.returncode == 1
    assert "3 asked, 3 heard from, 0 answered" in unknown.stdout
    n3.pause()
    try:
        late = n1.ctl("node", "query", "uptime", "--timeout", "1s")
    finally:
        n3.resume()
    assert late.returncode == 1
    assert "not heard from: n3" in late.stderr
    assert "3 asked, 2 heard from, 2 answered" in late.stdout


def test_json_goes_out_of_a_watch_line_by_line(swarm: LocalSwarm) -> None:
    n1, n2, _ = swarm.daemons
    got: SimpleQueue[Any] = SimpleQueue()
    wanted = ("event", "watch", "last", "--count", "1")
    Thread(target=lambda: got.put(n2.json(*wanted)), daemon=True).start()

    def sent() -> bool:
        n1.json("event", "send", "last", "one")
        with suppress(Empty):
            assert got.get(timeout=1.0)["payload"] == "one"
            return True
        return False

    wait_until("the watch ends", sent)

"""The bus by the API, over a bus of one node."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from access_gateway import guarded_gateway
from fixed_membership import FixedMembership
from gateway_fakes import LiveGateway, make_services

from swarmd.base.clock import BootClock
from swarmd.base.errors import BadName, BadRequest, Forbidden, InboxFull, NotFound, TooLarge
from swarmd.base.ids import node_id_of
from swarmd.base.rng import make_rng
from swarmd.base.unix_http import UnixConnection
from swarmd.client import Client
from swarmd.gateway.access.rules import Caller
from swarmd.gateway.routes.bus import _require_read
from swarmd.gateway.shapes_bus import BusMessage
from swarmd.mesh.bus.config import BusConfig
from swarmd.mesh.bus.service import open_bus
from swarmd.mesh.transports.memory import MemoryNetwork

ME = node_id_of(bytes(32))


class BusGateway(LiveGateway):
    async def _run(self) -> None:
        network = MemoryNetwork()
        config = BusConfig(inbox_max=3)
        membership = FixedMembership([ME])
        async with (
            network.running(),
            open_bus(network.link(ME), membership, config, BootClock(), make_rng(1)) as bus,
        ):
            self.services.bus = bus
            await super()._run()


@pytest.fixture
def live(tmp_path: Path) -> Iterator[BusGateway]:
    with BusGateway(make_services(tmp_path)) as one:
        yield one


class Watch:
    """Reads a watch in a thread until so many messages came."""

    def __init__(self, live: LiveGateway, *topics: str, count: int = 1) -> None:
        self._came: SimpleQueue[BusMessage | Exception] = SimpleQueue()
        self._thread = threading.Thread(target=self._read, args=(live, topics, count))
        self._thread.start()
        first = self._came.get(timeout=10)
        assert isinstance(first, BusMessage), first
        assert first == BusMessage(topics=list(topics))

    def _read(self, live: LiveGateway, topics: tuple[str, ...], count: int) -> None:
        try:
            for number, one in enumerate(Client(live.socket).bus_watch(topics)):
                self._came.put(one)
                if number == count:
                    return
        except Exception as error:  # noqa: BLE001 - told to the test
            self._came.put(error)

    def take(self) -> BusMessage:
        found = self._came.get(timeout=10)
        assert isinstance(found, BusMessage), found
        return found

    def join(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.mark.parametrize("data", ["text", b"bytes", None, 7, {"a": [1, 2.5, None]}])
def test_what_is_published_comes_to_who_watches(live: BusGateway, data: Any) -> None:
    client = Client(live.socket)
    assert client.bus_publish("orders/paid", data) == 0
    watch = Watch(live, "orders/*", "news", count=2)
    assert client.bus_publish("orders/paid", data, sender="@me") == 1
    assert client.bus_publish("news", data) == 1
    assert client.bus_publish("other", data) == 0
    assert watch.take() == BusMessage(topic="orders/paid", sender="@me", data=data)
    assert watch.take() == BusMessage(topic="news", data=data)
    watch.join()
    assert client.bus_publish("news", data) == 0


def test_json_in_and_json_out(live: BusGateway) -> None:
    reading, asking = UnixConnection(live.socket, 10.0), UnixConnection(live.socket, 10.0)
    reading.request("GET", "/api/v1/bus?topic=a/*")
    lines = reading.getresponse()
    assert json.loads(lines.readline()) == {"topics": ["a/*"]}
    headers = {"Content-Type": "application/json"}
    asking.request("POST", "/api/v1/bus/a/b", json.dumps({"data": {"x": "y"}}), headers)
    assert json.loads(asking.getresponse().read()) == {"topic": "a/b", "reached": 1}
    line = lines.readline()
    while not line.strip():
        line = lines.readline()
    assert json.loads(line) == {"topic": "a/b", "data": {"x": "y"}}
    reading.close()
    asking.close()


def test_mistakes_are_named(live: BusGateway) -> None:
    client = Client(live.socket)
    with pytest.raises(NotFound, match="no subscriber is named @nobody"):
        client.bus_publish("@nobody", 1)
    with pytest.raises(BadName, match="publish to one of them"):
        client.bus_publish("a/*", 1)
    with pytest.raises(BadName, match="name of a subscriber"):
        client.bus_publish("a", 1, sender="me")
    with pytest.raises(TooLarge, match="a blob or a key"):
        client.bus_publish("a", bytes(70_000))
    with pytest.raises(BadRequest, match="name 1 to 64 topics"):
        next(iter(client.bus_watch([])))
    with pytest.raises(BadName):
        next(iter(client.bus_watch(["a*b"])))


def test_who_does_not_read_is_named_and_holds_up_nobody_else(live: BusGateway) -> None:
    client = Client(live.socket)
    slow = Client(live.socket).bus_watch(["big"])
    next(slow)
    data = bytes(60_000)

    def flood() -> None:
        for _ in range(400):
            client.bus_publish("big", data, timeout_s=0.2)

    with pytest.raises(InboxFull, match=r"a watch by .* had no room for what was published to big"):
        flood()
    watch = Watch(live, "small")
    assert client.bus_publish("small", 1) == 1
    watch.join()
    slow.close()  # type: ignore[attr-defined]


def test_rules_allow_some_topics_and_not_others(tmp_path: Path) -> None:
    with guarded_gateway(tmp_path) as guarded:
        key = guarded.new_key("app", rules=["bus:publish:app/*", "bus:read:@app"])

        def status(method: str, path: str, body: Any = None) -> int:
            return guarded.ask(method, path, key, body)[0]

        allowed = 503  # There is no bus behind this gateway.
        assert status("POST", "/api/v1/bus/app/x", {}) == allowed
        assert status("POST", "/api/v1/bus/app/x", {"sender": "@app"}) == allowed
        assert status("POST", "/api/v1/bus/app/x", {"sender": "@other"}) == 403
        assert status("POST", "/api/v1/bus/other", {}) == 403
        assert status("POST", "/api/v1/bus/*", {}) == 403
        assert status("GET", "/api/v1/bus?topic=@app") == allowed
        assert status("GET", "/api/v1/bus?topic=@app&topic=app/x") == 403
        assert status("GET", "/api/v1/bus?topic=*") == 403


def test_a_filter_is_read_only_by_who_may_read_all_that_fits() -> None:
    caller = Caller("c", ("bus:read:a/*", "bus:read:b"))
    for topic in ("a/*", "a/b/*", "a/x", "b"):
        _require_read(caller, topic)
    for topic in ("*", "a*", "b*", "c"):
        with pytest.raises(Forbidden):
            _require_read(caller, topic)

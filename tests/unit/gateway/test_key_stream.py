"""Operations by the stream: each answered by itself, bounded, and ended with a reason."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from gateway_fakes import FakeStore, LiveGateway, make_services, wait_until

from swarmd.base.errors import BadRequest, Busy, ShuttingDown, TimedOut, TooLarge, Unreachable
from swarmd.base.limits import MIB
from swarmd.client import Client, DaemonDown
from swarmd.client.keystream import KeyStream
from swarmd.gateway.config import GatewayConfig
from swarmd.gateway.duplex import ITEM_BYTES_MAX, ITEMS_MAX, Splitter
from swarmd.gateway.services import Services

FRAMES = "application/vnd.swarmd.frames"


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return make_services(tmp_path)


@pytest.fixture
def live(services: Services) -> Iterator[LiveGateway]:
    with LiveGateway(services) as gateway:
        yield gateway


@pytest.fixture
def store(services: Services) -> FakeStore:
    assert isinstance(services.store, FakeStore)
    return services.store


@pytest.fixture
def keys(live: LiveGateway) -> Iterator[KeyStream]:
    with Client(live.socket, timeout_s=5).key_stream() as stream:
        yield stream


def ndjson(path: str, *lines: str) -> list[Any]:
    """Send lines by hand, as curl would; the answers."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(10)
    connection.sock.connect(path)
    connection.request("POST", "/api/v1/kv-stream", "\n".join(lines))
    response = connection.getresponse()
    answers = [json.loads(line) for line in response.read().splitlines() if line]
    connection.close()
    return [response.status, *answers]


def test_each_operation_has_its_own_answer(keys: KeyStream) -> None:
    first, second = keys.put("a", b"1"), keys.put("b", b"2", expect=9)
    done = {one.id: one for one in keys.take_all()}
    assert (done[first].revision, done[first].error) == (1, None)
    conflict = done[second].error
    assert conflict is not None
    assert conflict.code == "conflict"
    read, absent = keys.get("a"), keys.get("nowhere")
    done = {one.id: one for one in keys.take_all()}
    assert (done[read].value, done[read].revision) == (b"1", 1)
    missing = done[absent].error
    assert missing is not None
    assert missing.code == "not_found"
    keys.delete("a")
    assert [one.error for one in keys.take_all()] == [None]
    assert keys.take() == []


def test_operations_that_arrive_together_travel_together(keys: KeyStream, store: FakeStore) -> None:
    for number in range(200):
        keys.put(f"k{number}", b"v" * 100)
    assert len(list(keys.take_all())) == 200
    assert sum(store.batches) == 200
    assert len(store.batches) < 20


def test_one_bad_operation_fails_alone(keys: KeyStream) -> None:
    codes = {
        keys.put("", b"x"): "empty_key",
        keys.put("long" * 500, b"x"): "key_too_long",
        keys.put("large", b"x" * (MIB + 1)): "value_too_large",
        keys.put("good", b"x"): None,
    }
    found = {one.id: one.error and one.error.code for one in keys.take_all()}
    assert found == codes


def test_more_than_may_be_under_way_only_takes_longer(keys: KeyStream, store: FakeStore) -> None:
    count = 3 * ITEMS_MAX
    for number in range(count):
        keys.put(f"k{number}", b"v")
    assert sorted(one.id for one in keys.take_all()) == list(range(1, count + 1))
    assert len(store.state) == count


def test_large_values_flow_both_ways(keys: KeyStream) -> None:
    value = bytes(MIB)
    for number in range(12):
        keys.put(f"large{number}", value)
    assert all(one.error is None for one in keys.take_all())
    for number in range(12):
        keys.get(f"large{number}")
    assert [one.value for one in keys.take_all()] == [value] * 12


def test_without_a_quorum_every_operation_says_so(keys: KeyStream, store: FakeStore) -> None:
    store.no_quorum = True
    keys.put("a", b"1")
    keys.get("a")
    errors = [one.error for one in keys.take_all()]
    assert [error and (error.code, error.retryable) for error in errors] == [
        ("no_quorum", True)
    ] * 2


def test_a_node_that_is_no_voter_asks_for_each_key(keys: KeyStream, store: FakeStore) -> None:
    store.is_voter = False
    keys.put("a", b"1")
    list(keys.take_all())
    keys.get("a")
    assert [one.value for one in keys.take_all()] == [b"1"]


def test_lines_of_json_work_by_hand(live: LiveGateway) -> None:
    status, *answers = ndjson(
        live.socket,
        '{"id": 1, "op": "put", "key": "a", "text": "hello"}',
        "",
        '{"id": 2, "op": "put", "key": "b", "value": "aGk="}',
        '{"id": 3, "op": "put", "key": "c"}',
    )
    assert status == 200
    by_id = {one["id"]: one for one in answers}
    assert by_id[1] == {"id": 1, "revision": 1}
    assert by_id[2] == {"id": 2, "revision": 2}
    assert by_id[3]["error"]["code"] == "bad_request"


def test_what_cannot_be_read_ends_the_stream_after_what_could(live: LiveGateway) -> None:
    good = '{"id": 1, "op": "put", "key": "a", "text": "1"}'
    status, first, last = ndjson(live.socket, good, '{"id": 2, "op": 7, "key": "a"}', good)
    assert (status, first) == (200, {"id": 1, "revision": 1})
    assert last["error"]["code"] == "bad_request"
    assert "op" in last["error"]["message"]
    assert ndjson(live.socket, "nonsense")[0] == 400
    assert ndjson(live.socket) == [200]


def test_an_operation_that_does_not_exist_fails_alone(live: LiveGateway) -> None:
    put = '{"id": %d, "op": "put", "key": "a", "text": "1"}'
    status, *answers = ndjson(live.socket, put % 1, '{"id": 2, "op": "fly", "key": "a"}', put % 3)
    assert status == 200
    by_id = {one["id"]: one for one in answers}
    assert [by_id[n].get("revision") for n in (1, 2, 3)] == [1, None, 2]
    assert by_id[2]["error"]["code"] == "unknown_operation"
    assert "one of put, get, delete" in by_id[2]["error"]["message"]


def test_a_put_belongs_to_its_lease(live: LiveGateway, keys: KeyStream) -> None:
    with Client(live.socket) as client:
        lease = client.lease_grant(30).id
        attached, dead = keys.put("a", b"1", lease=lease), keys.put("b", b"2", lease=lease + 1)
        done = {one.id: one.error and one.error.code for one in keys.take_all()}
        assert done == {attached: None, dead: "lease_expired"}
        assert client.kv_get("a").lease == lease
        client.lease_revoke(lease)
    keys.get("a")
    assert [one.error and one.error.code for one in keys.take_all()] == ["not_found"]


@pytest.mark.parametrize("op", ["get", "delete"])
def test_only_a_put_takes_a_lease(live: LiveGateway, op: str) -> None:
    _, answer = ndjson(live.socket, json.dumps({"id": 1, "op": op, "key": "a", "lease": 5}))
    assert answer["error"]["code"] == "bad_request"
    assert "takes no lease" in answer["error"]["message"]


def put_for_ever(keys: KeyStream) -> None:
    while True:
        keys.put("b", b"2")
        keys.take()


def put_and_take(keys: KeyStream, timeout_s: float) -> None:
    keys._timeout_s = timeout_s
    keys.put("a", b"x" * 200)
    keys.take()


def test_the_end_of_the_gateway_is_told(live: LiveGateway, keys: KeyStream) -> None:
    keys.put("a", b"1")
    list(keys.take_all())
    with Client(live.socket) as other:
        other.stop()
    with pytest.raises((ShuttingDown, Unreachable)):
        put_for_ever(keys)


def test_a_client_that_goes_costs_nothing(
    live: LiveGateway, store: FakeStore, services: Services
) -> None:
    """Operations under way are carried out; what they held is given back."""
    store.gate = trio.Event()
    keys = Client(live.socket).key_stream()
    with pytest.raises(TimedOut):
        put_and_take(keys, 0.1)
    keys.close()
    assert live.gateway is not None
    budget = live.gateway._context.budget
    wait_until(lambda: budget._bytes_left == live.config.bodies_bytes_max)
    wait_until(lambda: budget._requests_left == live.config.requests_max)


def test_a_broken_stream_says_that_outcomes_are_unknown(
    live: LiveGateway, store: FakeStore
) -> None:
    store.gate = trio.Event()
    keys = Client(live.socket).key_stream()
    with pytest.raises(TimedOut, match="1 operations were carried out is unknown"):
        put_and_take(keys, 0.05)
    keys._timeout_s = 5
    live.stop()
    with pytest.raises((Unreachable, ShuttingDown)):
        keys.take()
    with pytest.raises(DaemonDown):
        Client(live.socket).key_stream()


def test_an_idle_stream_gets_signs_of_life(live: LiveGateway) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(5)
        one.connect(live.socket)
        head = f"POST /api/v1/kv-stream HTTP/1.1\r\nHost: localhost\r\nAccept: {FRAMES}\r\n"
        one.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        raw = b""
        deadline = time.monotonic() + 5
        while raw.count(b"\x00\x00\x00\x01\xc0") < 2:
            assert time.monotonic() < deadline
            raw += one.recv(4096)
    assert raw.startswith(b"HTTP/1.1 200")


def test_bodies_that_find_no_memory_are_told_so(tmp_path: Path) -> None:
    config = GatewayConfig(keepalive_s=0.05, body_bytes_max=MIB, bodies_bytes_max=MIB)
    with LiveGateway(make_services(tmp_path), config) as live:
        assert live.gateway is not None
        live.gateway._context.budget.take(MIB - 100)
        with Client(live.socket).key_stream() as keys, pytest.raises(Busy):
            put_and_take(keys, 5)


def test_requests_count_while_their_stream_runs(tmp_path: Path) -> None:
    config = GatewayConfig(keepalive_s=0.05, requests_max=1)
    with (
        LiveGateway(make_services(tmp_path), config) as live,
        Client(live.socket).key_stream() as keys,
    ):
        keys.put("a", b"1")
        assert len(keys.take()) == 1
        with pytest.raises(Busy), Client(live.socket) as other:
            other.kv_get("a")


# ---- cutting a body into items ----------------------------------------------------------


def test_items_may_arrive_in_any_pieces() -> None:
    items = [b"one", b"two" * 100, b"3" * 2]
    framed = b"".join(len(item).to_bytes(4, "big") + item for item in items)
    lines = b"\n".join(items) + b"\n"
    for raw, frames in ((framed, True), (lines, False)):
        for step in (1, 2, 7, 1_000):
            splitter = Splitter(frames=frames)
            found = []
            for start in range(0, len(raw), step):
                found += splitter.feed(raw[start : start + step])
            assert found + splitter.end() == items


def test_items_are_bounded_and_whole() -> None:
    with pytest.raises(TooLarge):
        Splitter(frames=True).feed((ITEM_BYTES_MAX + 1).to_bytes(4, "big"))
    with pytest.raises(TooLarge):
        Splitter(frames=False).feed(b"x" * (ITEM_BYTES_MAX + 5))
    half = Splitter(frames=True)
    half.feed(b"\x00\x00\x00\x09abc")
    with pytest.raises(BadRequest, match="within a frame"):
        half.end()

"""Shared memory and caches by the API and the client, over stores in memory."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from gateway_fakes import make_services
from memory_gateway import MemoryGateway

from swarmd.base.errors import (
    BadRequest,
    ComputeFailed,
    ComputePending,
    ComputeReplaced,
    Conflict,
    NamespaceExists,
    NamespaceInUse,
    NoQuorum,
    NotFound,
    SwarmError,
    ValueTooLarge,
)
from swarmd.base.limits import CRDT_VALUE_BYTES_MAX
from swarmd.base.unix_http import UnixConnection
from swarmd.client import Client
from swarmd.gateway.shapes import Done
from swarmd.gateway.shapes_memory import MemoryTurn
from swarmd.memory.kv import namespaces


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryGateway]:
    # One node alone has nobody to wait for.
    monkeypatch.setattr(namespaces, "_SPARE_S", 0.01 - namespaces.AGE_MAX_S)
    with MemoryGateway(make_services(tmp_path)) as gateway:
        yield gateway


@pytest.fixture
def client(live: MemoryGateway) -> Iterator[Client]:
    with Client(live.socket, timeout_s=10) as client:
        yield client


PATH = "/memory-compute/built/k"


def ask(client: Client, wait_s: float = 5.0) -> tuple[MemoryTurn, Any]:
    stream = client._another()._stream("POST", PATH, {"wait_s": wait_s}, MemoryTurn)
    return next(stream), stream


def bring(client: Client, fence: int, **more: Any) -> Done:
    return client._call("PUT", PATH, {"fence": fence, **more}, kind=Done)


def test_a_strong_namespace_is_made_and_used_as_any_other(client: Client) -> None:
    made = client.memory_namespace_create("ledger", "strong")
    assert (made.name, made.consistency, made.entries_max) == ("ledger", "strong", 0)
    assert client.memory_namespace_create("ledger", "strong") == made
    assert client.memory_namespace("ledger") == made
    assert client.memory_namespaces() == [made]
    assert client.memory_namespace("other").consistency == "eventual"
    first = client.memory_set("ledger", "a/b", {"n": 1}, ttl_s=100, if_version="0")
    found = client.memory_get("ledger", "a/b")
    # Its end is by store time, which this node reckons anew each time.
    assert abs(found.expires_at_ms - first.expires_at_ms) < 1_000
    assert msgspec.structs.replace(found, expires_at_ms=first.expires_at_ms) == first
    assert 98_000 < first.expires_at_ms - first.created_at_ms < 102_000
    with pytest.raises(Conflict):
        client.memory_set("ledger", "a/b", 2, if_version="0")
    news = client._another().memory_watch("ledger", "a/")
    assert next(news).namespace == "ledger"
    client.memory_set("ledger", "other", 0)
    second = client.memory_set("ledger", "a/b", 2, if_version=first.version)
    assert next(news).entry == second
    assert [one.key for one in client.memory_list("ledger").entries] == ["a/b", "other"]
    began = time.monotonic()
    client.memory_delete("ledger", "a/b", if_version=second.version)
    assert time.monotonic() - began < 2, "no body was waited for"
    told = next(news)
    assert (told.key, told.entry) == ("a/b", None)
    with pytest.raises(NotFound):
        client.memory_get("ledger", "a/b")


def test_a_watch_that_comes_back_goes_on_or_says_that_it_cannot(client: Client) -> None:
    client.memory_namespace_create("ledger", "strong")
    first = next(client._another().memory_watch("ledger"))
    client.memory_set("ledger", "k", 1)
    news = client._another().memory_watch("ledger", since=first.position)
    assert [(one.key, one.lagged) for one in (next(news), next(news))] == [
        (None, False),
        ("k", False),
    ]
    assert next(client._another().memory_watch("ledger", since="9" * 18)).lagged
    for number in range(8):
        client.memory_set("ledger", f"large{number}", "x" * 1_000_000)
    news = client._another().memory_watch("ledger", since=first.position)
    told = next(news), next(news)
    assert [(one.namespace, one.key, one.lagged) for one in told] == [
        ("ledger", None, False),
        (None, None, True),
    ]
    client.memory_set("ledger", "k", 2)
    assert next(client._another().memory_watch("ledger", since=told[1].position)).lagged is False
    assert next(news).key == "k"


def test_mistakes_about_namespaces_are_told(client: Client, live: MemoryGateway) -> None:
    client.memory_namespace_create("ledger", "strong")
    with pytest.raises(NamespaceExists):
        client.memory_namespace_create("ledger", "eventual")
    client.memory_set("used", "k", 1)
    with pytest.raises(NamespaceInUse):
        client.memory_namespace_create("used", "strong")
    for name, consistency, bounds in (
        ("odd", "sequential", {}),
        ("odd", "strong", {"entries_max": 5, "bytes_max": 5}),
        ("odd", "eventual", {"entries_max": 5}),
        ("-odd", "strong", {}),
    ):
        with pytest.raises(BadRequest):
            client.memory_namespace_create(name, consistency, **bounds)
    live.store.no_quorum = True
    for call in (
        lambda: client.memory_namespaces(),
        lambda: client.memory_get("ledger", "k"),
        lambda: client.memory_namespace_create("new", "strong"),
    ):
        with pytest.raises(NoQuorum):
            call()


def test_a_value_is_computed_once_and_then_had(client: Client) -> None:
    computed: list[int] = []

    def compute() -> Any:
        computed.append(1)
        return {"n": [1, None, b"\x00"]}

    for _ in range(3):
        found = client.memory_get_or_compute("built", "k/ä", compute, ttl_s=60)
        assert found == {"n": [1, None, b"\x00"]}
    assert computed == [1]
    assert client.memory_get("built", "k/ä").value == {"n": [1, None, b"\x00"]}
    assert client.memory_get_or_compute("built", "none", lambda: None) is None
    assert client.memory_get_or_compute("built", "none", lambda: 1) is None


def test_a_turn_lasts_while_its_stream_is_open(client: Client) -> None:
    mine, stream = ask(client)
    assert (mine.state, mine.fence > 0) == ("compute", True)
    began = time.monotonic()
    with pytest.raises(ComputePending, match="local user"):
        ask(client, wait_s=0.2)
    stream.close()
    other, _ = ask(client)
    assert (other.state, other.fence > mine.fence) == ("compute", True)
    assert time.monotonic() - began < 3
    with pytest.raises(ComputeReplaced):
        bring(client, mine.fence, value=1)
    bring(client, other.fence, value=2)
    bring(client, other.fence, value=2)
    assert ask(client)[0] == MemoryTurn(state="hit", value=2)


def test_who_waits_gets_the_value_or_why_there_is_none(client: Client, live: MemoryGateway) -> None:
    for outcome in ({"value": 7}, {"error": "it broke"}):
        turn, _ = ask(client)
        got: list[Any] = []

        def wait(got: list[Any] = got) -> None:
            with Client(live.socket) as other:
                try:
                    got.append(ask(other)[0].value)
                except SwarmError as error:
                    got.append(error)

        waiter = threading.Thread(target=wait)
        waiter.start()
        time.sleep(0.2)
        assert got == []
        bring(client, turn.fence, **outcome)
        waiter.join(10)
        if "value" in outcome:
            assert got == [7]
            client.memory_delete("built", "k")
        else:
            assert isinstance(got[0], ComputeFailed)
            assert "it broke" in str(got[0])


def test_what_compute_raises_comes_as_it_is_and_is_not_tried_again(client: Client) -> None:
    calls: list[int] = []

    def breaks() -> None:
        calls.append(1)
        raise ComputeReplaced("of another cache")

    with pytest.raises(ComputeReplaced, match="of another cache"):
        client.memory_get_or_compute("built", "k", breaks)
    with pytest.raises(TypeError):
        client.memory_get_or_compute("built", "k", lambda: object())
    with pytest.raises(ValueTooLarge, match="blob"):
        client.memory_get_or_compute("built", "k", lambda: "x" * CRDT_VALUE_BYTES_MAX)
    assert calls == [1]
    assert client.memory_get_or_compute("built", "k", lambda: 1) == 1


@pytest.mark.parametrize(
    "body",
    [{"fence": 0}, {"fence": -1}, {"fence": 2**63}, {"fence": "1"}, {}, {"fence": 1, "odd": 1}, 7],
)
def test_a_result_that_is_none_is_refused(client: Client, body: object) -> None:
    with pytest.raises(BadRequest):
        client._call("PUT", PATH, body, kind=Done)


def test_json_does_as_well(live: MemoryGateway) -> None:
    connection = UnixConnection(live.socket, 10)
    other = UnixConnection(live.socket, 10)
    connection.request("POST", "/api/v1" + PATH, b'{"wait_s": 1}')
    turn = json.loads(connection.getresponse().readline())
    assert turn["state"] == "compute"
    body = json.dumps({"fence": turn["fence"], "value": {"a": 1}, "ttl_s": 5}).encode()
    other.request("PUT", "/api/v1" + PATH, body)
    assert json.loads(other.getresponse().read())["message"] == "k is kept"
    connection.close()
    other.request("POST", "/api/v1" + PATH)
    answered = other.getresponse()
    assert json.loads(answered.readline()) == {"state": "hit", "value": {"a": 1}, "fence": 0}
    other.close()

"""Locks, elections, barriers and counters by the API and the client, over a state in memory."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_fakes import make_services, wait_until
from recipe_gateway import RecipeGateway

from swarmd.base.errors import (
    BadName,
    BadTtl,
    BarrierMismatch,
    BarrierWaits,
    LockHeld,
    LockLost,
    NotACounter,
    SwarmError,
)
from swarmd.base.unix_http import UnixConnection
from swarmd.client import Client
from swarmd.gateway.services import Services
from swarmd.state.raft.messages import Put


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return make_services(tmp_path)


@pytest.fixture
def live(services: Services) -> Iterator[RecipeGateway]:
    with RecipeGateway(services) as gateway:
        yield gateway


@pytest.fixture
def client(live: RecipeGateway) -> Iterator[Client]:
    with Client(live.socket, timeout_s=10) as client:
        yield client


class Background(threading.Thread):
    """A blocking call in a thread of its own, and what became of it."""

    def __init__(self, live: RecipeGateway, call: Callable[[Client], Any]) -> None:
        super().__init__(daemon=True)
        self.live, self.call = live, call
        self.result: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            with Client(self.live.socket, timeout_s=10) as client:
                self.result = self.call(client)
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.error = error

    def ended(self) -> Background:
        self.join(10)
        assert not self.is_alive()
        return self


def ask(live: RecipeGateway, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = UnixConnection(live.socket, 10)
    raw = None if body is None else json.dumps(body).encode()
    connection.request(method, "/api/v1" + path, raw, {"Content-Type": "application/json"})
    response = connection.getresponse()
    found = json.loads(response.read())
    connection.close()
    return response.status, found


def test_a_lock_is_taken_renewed_shown_and_given_back(client: Client) -> None:
    held = client.acquire_lock("door", owner="ann", ttl_s=5, wait_s=0)
    assert (held.state, held.fence > 0, held.ttl_ms) == ("held", True, 5_000)
    assert held.key == f"c/lock/door/{held.lease:016x}"
    assert "5 s" in client.renew_lock("door", held.lease).message
    line = client.lock("door")
    assert line.holder is not None
    assert (line.holder.owner, line.holder.revision, line.waiting) == ("ann", held.fence, 0)
    assert abs(line.holder.asked_ms - time.time() * 1_000) < 10_000
    assert [one.name for one in client.locks()] == ["door"]
    client.release_lock("door", held.lease)
    assert client.lock("door").holder is None
    assert client.locks() == []
    for call in (client.renew_lock, client.release_lock):
        with pytest.raises(LockLost):
            call("door", held.lease)


def test_a_held_lock_is_refused_by_name_and_then_had(live: RecipeGateway, client: Client) -> None:
    held = client.acquire_lock("door", owner="ann", wait_s=0)
    with pytest.raises(LockHeld, match="held by ann, who asked at 20"):
        client.acquire_lock("door", owner="bob", wait_s=0.1)
    assert len(client.lock("door").line) == 1
    waiter = Background(live, lambda c: c.acquire_lock("door", owner="bob", wait_s=9))
    wait_until(lambda: client.lock("door").waiting == 1)
    assert [one.owner for one in client.lock("door").line] == ["ann", "bob"]
    client.release_lock("door", held.lease)
    assert waiter.ended().result.fence > held.fence


def test_the_api_in_json_says_409_and_who(live: RecipeGateway) -> None:
    status, held = ask(live, "POST", "/locks/door", {"owner": "ann"})
    assert (status, held["state"]) == (200, "held")
    status, refused = ask(live, "POST", "/locks/door", {"owner": "bob"})
    assert (status, refused["error"]["code"]) == (409, "lock_held")
    assert refused["error"]["retryable"]
    status, waiting = ask(live, "POST", "/locks/door", {"owner": "bob", "keep": True})
    assert (status, waiting["state"], waiting["ahead"]) == (200, "waiting", 1)
    assert waiting["holder"]["owner"] == "ann"
    ask(live, "POST", "/locks/door/release", {"lease": held["lease"]})
    status, on = ask(live, "POST", "/locks/door", {"lease": waiting["lease"], "wait_ms": 1_000})
    assert (status, on["state"], on["lease"]) == (200, "held", waiting["lease"])
    status, lost = ask(live, "POST", "/locks/door/renew", {"lease": held["lease"]})
    assert (status, lost["error"]["code"]) == (409, "lock_lost")


def test_a_client_that_goes_away_leaves_the_line(live: RecipeGateway, client: Client) -> None:
    client.acquire_lock("door", wait_s=0)
    gone = UnixConnection(live.socket, 5)
    body = json.dumps({"owner": "bob", "wait_ms": 30_000})
    gone.request("POST", "/api/v1/locks/door", body, {"Content-Type": "application/json"})
    wait_until(lambda: client.lock("door").waiting == 1)
    gone.close()
    wait_until(lambda: client.lock("door").waiting == 0)


def test_a_place_that_is_kept_outlives_its_connection(live: RecipeGateway, client: Client) -> None:
    held = client.acquire_lock("door", wait_s=0)
    gone = UnixConnection(live.socket, 5)
    asked = {"owner": "bob", "wait_ms": 30_000, "keep": True, "request": "b25jZQ=="}
    headers = {"Content-Type": "application/json"}
    gone.request("POST", "/api/v1/locks/door", json.dumps(asked), headers)
    wait_until(lambda: client.lock("door").waiting == 1)
    gone.close()
    place = client.lock("door").line[1]
    client.release_lock("door", held.lease)
    _, on = ask(live, "POST", "/locks/door", {**asked, "wait_ms": 1_000})
    assert (on["state"], on["lease"]) == ("held", place.lease)


def test_a_stopping_gateway_sends_waiters_elsewhere(live: RecipeGateway, client: Client) -> None:
    client.acquire_lock("door", wait_s=0)
    waiter = Background(
        live, lambda c: c._call("POST", "/locks/door", {"owner": "b", "wait_ms": 9_000}, kind=Any)
    )
    wait_until(lambda: client.lock("door").waiting == 1)
    assert live.gateway is not None
    live.call(live.gateway.end_streams)
    assert isinstance(waiter.ended().error, SwarmError)
    assert waiter.error.code == "shutting_down"  # type: ignore[union-attr]


def test_a_waiter_that_is_interrupted_leaves_nothing(live: RecipeGateway, client: Client) -> None:
    """In the middle of its wait, and with an answer that never came."""
    client.acquire_lock("door", owner="ann", wait_s=0)

    class Interrupted(Client):
        def _call(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
            answer = super()._call(method, path, body, **more)
            if body.get("keep"):
                raise KeyboardInterrupt
            return answer

    with Interrupted(live.socket, timeout_s=1) as impatient, pytest.raises(KeyboardInterrupt):
        # The first answer says "waiting", after which more is asked; it is as good as lost.
        impatient.acquire_lock("door", owner="bob", wait_s=9)
    wait_until(lambda: client.lock("door").waiting == 0)


def test_an_election_is_campaigned_for_and_observed(live: RecipeGateway, client: Client) -> None:
    seen: list[tuple[str, bytes]] = []

    def observe(observer: Client) -> None:
        for line in observer.observe("boss"):
            holder = line.holder
            seen.append((holder.owner, holder.value) if holder else ("", b""))
            if len(seen) == 3:
                return

    observer = Background(live, observe)
    wait_until(lambda: seen == [("", b"")])
    first = client.campaign("boss", owner="ann", value=b"host1:80", wait_s=0)
    wait_until(lambda: len(seen) == 2)
    with pytest.raises(LockHeld, match="election 'boss' is led by ann"):
        client.campaign("boss", owner="bob", wait_s=0)
    client.renew_election("boss", first.lease)
    assert [one.name for one in client.elections()] == ["boss"]
    assert client.election("boss").holder is not None
    client.resign("boss", first.lease)
    observer.ended()
    assert seen == [("", b""), ("ann", b"host1:80"), ("", b"")]


def test_a_barrier_opens_for_all(live: RecipeGateway, client: Client) -> None:
    with pytest.raises(BarrierWaits, match="1 of 3 came"):
        client.barrier("gate", 3, wait_s=0.05)
    first = Background(live, lambda c: c.barrier("gate", 3, owner="ann", wait_s=9))
    wait_until(lambda: client.barrier_state("gate").holder is not None)
    second = Background(live, lambda c: c.barrier("gate", 3, owner="bob", wait_s=9))
    wait_until(lambda: client.barrier_state("gate").waiting == 1)
    assert client.barrier_state("gate").count == 3
    with pytest.raises(BarrierMismatch):
        client.barrier("gate", 2, wait_s=0)
    third = client.barrier("gate", 3, wait_s=5)
    assert third.state == "open"
    assert {first.ended().result.fence, second.ended().result.fence} == {third.fence}
    wait_until(lambda: not live.store.applier.state.range(b"c/"))


def test_counters(live: RecipeGateway, client: Client) -> None:
    assert client.counter("hits").value == 0
    assert client.counter_add("hits").value == 1
    assert client.counter_add("hits", -5).value == -4
    assert client.counter("hits").value == -4
    live.store.applier.do(Put(b"u/text", b"hello"))
    for call in (client.counter, client.counter_add):
        with pytest.raises(NotACounter):
            call("text")


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "\udcff", "x" * 201])
def test_bad_names_never_leave_the_client(client: Client, name: str) -> None:
    with pytest.raises(BadName):
        client.acquire_lock(name, wait_s=0)
    with pytest.raises(BadName):
        client.counter(name)


def test_names_are_taken_as_they_are(client: Client) -> None:
    for name in ("a b", "50%25", "Grüße?#&", "..", "x" * 200):
        assert client.acquire_lock(name, wait_s=0).name == name
        assert client.lock(name).holder is not None


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"owner": ""}, "bad_request"),
        ({"owner": "a", "ttl_ms": 10}, "bad_ttl"),
        ({"owner": "a", "ttl_ms": -1}, "bad_request"),
        ({"owner": "a", "ttl_ms": 10**12}, "bad_ttl"),
        ({"owner": "a", "wait_ms": 30_001}, "bad_request"),
        ({"owner": "a", "request": "eA" * 60}, "bad_request"),
        ({"owner": "a", "value": "AAAA" * 2_000}, "bad_request"),
        ({"lease": 5}, "lock_lost"),
        ({"lease": 2**70}, "bad_request"),
        ({"owner": "a", "nonsense": 1}, "bad_request"),
        ([], "bad_request"),
    ],
)
def test_bad_input_has_its_code_and_leaves_nothing(
    live: RecipeGateway, body: Any, code: str
) -> None:
    status, refused = ask(live, "POST", "/locks/door", body)
    assert 400 <= status < 500
    assert refused["error"]["code"] == code
    assert not live.store.applier.state.range(b"c/")


def test_bad_counts_and_deltas_have_their_codes(live: RecipeGateway) -> None:
    for count in (0, -1, 257):
        _, refused = ask(live, "POST", "/barriers/gate", {"owner": "a", "count": count})
        assert refused["error"]["code"] == "bad_request"
    _, refused = ask(live, "POST", "/counters/c", {"delta": 2**63})
    assert refused["error"]["code"] in ("too_large", "bad_request")
    _, refused = ask(live, "POST", "/locks/a%0Ab", {"owner": "a"})
    assert refused["error"]["code"] == "bad_name"


def test_a_short_ttl_is_refused_before_anything_happens(client: Client) -> None:
    with pytest.raises(BadTtl):
        client.acquire_lock("door", ttl_s=0.2, wait_s=0)

"""Transactions, watches and leases over the API: what is answered, and what each mistake is."""

from __future__ import annotations

import http.client
import itertools
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_fakes import FakeStore, LiveGateway, make_services, wait_until
from test_gateway_api import raw_request

from swarmd.base.errors import (
    BadTtl,
    Busy,
    Compacted,
    Conflict,
    LeaseExpired,
    NoQuorum,
    SwarmError,
    TooLarge,
    UnknownOperation,
    ValueTooLarge,
)
from swarmd.client import Client, DaemonDown, KvCompare, KvOperation
from swarmd.gateway.config import GatewayConfig
from swarmd.gateway.shapes import KvChanges
from swarmd.state.raft import history


@pytest.fixture
def store(live: LiveGateway) -> FakeStore:
    assert isinstance(live.services.store, FakeStore)
    return live.services.store


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveGateway]:
    with LiveGateway(make_services(tmp_path)) as gateway:
        yield gateway


@pytest.fixture
def client(live: LiveGateway) -> Iterator[Client]:
    with Client(live.socket) as one:
        yield one


def put(key: str, text: str = "", **more: int) -> KvOperation:
    return KvOperation(op="put", key=key, text=text, **more)  # type: ignore[arg-type]


# ---- transactions ---------------------------------------------------------------------


def test_a_transaction_tells_which_branch_ran(client: Client) -> None:
    absent = KvCompare(key="a", exists=False)
    first = client.kv_txn([absent], [put("a", "1"), put("b", "1")], [put("c", "1")])
    assert (first.branch, first.revision, first.unmet) == ("then", 1, "")
    second = client.kv_txn([absent], [put("a", "2")], [put("c", "1")])
    assert (second.branch, second.revision) == ("else", 2)
    assert second.unmet == "key 'a' is at revision 1; expected no such key"
    assert [one.key for one in client.kv_list()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("compare", "branch"),
    [
        (KvCompare(key="a", revision=1), "then"),
        (KvCompare(key="a", revision=2), "else"),
        (KvCompare(key="a", text="1"), "then"),
        (KvCompare(key="a", value=b"2"), "else"),
        (KvCompare(key="a", revision=1, value=b"1"), "then"),
        (KvCompare(key="a", exists=True), "then"),
        (KvCompare(key="z", exists=True), "else"),
        (KvCompare(key="z", revision=0), "then"),
    ],
)
def test_compares(client: Client, compare: KvCompare, branch: str) -> None:
    client.kv_put("a", b"1")
    assert client.kv_txn([compare], []).branch == branch


def test_an_expect_in_the_branch_undoes_it_all(client: Client) -> None:
    with pytest.raises(Conflict, match="expected revision 9"):
        client.kv_txn([], [put("a", "1"), put("b", "1", expect=9)])
    assert client.kv_list() == []


BAD_TXNS = [
    ({"then": [{"op": "putt", "key": "a"}]}, 400, "unknown_operation", "one of put, delete"),
    ({"then": [{"op": "put", "key": "a"}]}, 400, "bad_request", "either value or text"),
    ({"then": [{"op": "put", "key": "", "text": ""}]}, 400, "empty_key", "at least one"),
    ({"then": [{"op": "put", "key": "k" * 1023, "text": ""}]}, 413, "key_too_long", "1022 bytes"),
    ({"then": [{"op": "delete", "key": "a", "text": ""}]}, 400, "bad_request", "neither a value"),
    ({"then": [{"op": "put", "key": "a", "text": "", "lease": 9}]}, 409, "lease_expired", "9"),
    ({"compares": [{"key": "a"}]}, 400, "bad_request", "needs revision, value, text or exists"),
    ({"compares": [{"key": "a", "exists": True, "revision": 1}]}, 400, "bad_request", "nothing"),
    ({"compares": [{"key": "a", "revision": -1}]}, 400, "bad_request", "negative"),
    ({"the": []}, 400, "bad_request", "unknown field `the`"),
    ({"then": [{"op": "put", "key": "a", "txt": ""}]}, 400, "bad_request", "$.then[0]"),
    ({"then": [{"op": "put", "key": "a", "text": ""}] * 257}, 413, "too_large", "at most 256"),
    ({"then": [{"op": "put", "key": "a", "text": "x" * 1_048_577}]}, 413, "value_too_large", ""),
    (
        {"then": [{"op": "put", "key": k, "text": "x" * 600_000} for k in "ab"]},
        413,
        "too_large",
        "",
    ),
]


@pytest.mark.parametrize(("body", "status", "code", "says"), BAD_TXNS)
def test_each_mistake_has_its_code(
    live: LiveGateway, store: FakeStore, body: object, status: int, code: str, says: str
) -> None:
    found, answer = raw_request(live.socket, "POST", "/api/v1/txn", json.dumps(body).encode())
    assert (found, answer["error"]["code"]) == (status, code)
    assert says in answer["error"]["message"]
    assert store.revision == 0


def test_the_client_raises_by_code(client: Client) -> None:
    with pytest.raises(UnknownOperation):
        client.kv_txn([], [KvOperation(op="swap", key="a")])
    with pytest.raises(ValueTooLarge):
        client.kv_put("a", b"x" * 1_048_577)
    with pytest.raises(TooLarge):
        client.kv_txn([], [put("a")] * 257)


# ---- watching -------------------------------------------------------------------------


def changes_of(stream: Iterator[KvChanges], count: int) -> list[tuple[int, str, bytes | None]]:
    found: list[tuple[int, str, bytes | None]] = []
    while len(found) < count:
        found += [(one.revision, one.key, one.value) for one in next(stream).changes]
    return found


def test_a_watch_tells_changes_as_they_come(client: Client, live: LiveGateway) -> None:
    client.kv_put("old", b"")
    with Client(live.socket) as watching:
        stream = watching.kv_watch("a")
        assert next(stream) == KvChanges(revision=1, changes=[])
        client.kv_put("a/1", b"\xff")
        client.kv_put("b", b"")
        client.kv_delete("a/1")
        assert changes_of(stream, 2) == [(2, "a/1", b"\xff"), (4, "a/1", None)]


def test_a_watch_from_a_revision(client: Client) -> None:
    for text in (b"1", b"2", b"3"):
        client.kv_put("a", text)
    assert changes_of(client.kv_watch(from_revision=2), 2) == [(2, "a", b"2"), (3, "a", b"3")]


def test_a_watch_over_json(live: LiveGateway, client: Client) -> None:
    client.kv_put("a", b"blue")
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(10)
    connection.sock.connect(live.socket)
    connection.request("GET", "/api/v1/watch?from=1")
    response = connection.getresponse()
    assert json.loads(response.readline()) == {
        "revision": 1,
        "changes": [{"key": "a", "value": "Ymx1ZQ==", "revision": 1}],
    }
    live.stop()
    last = response.read().splitlines()[-1]
    assert json.loads(last)["error"]["code"] == "shutting_down"


def test_a_watch_below_what_is_kept(
    live: LiveGateway, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "HISTORY_CHANGES_MAX", 2)
    for _ in range(4):
        client.kv_put("a", b"")
    with pytest.raises(Compacted, match="the oldest that can be had is 3"):
        next(client.kv_watch(from_revision=2))
    status, answer = raw_request(live.socket, "GET", "/api/v1/watch?from=1")
    assert (status, answer["error"]["code"]) == (410, "compacted")


@pytest.mark.parametrize("text", ["0", "-1", "x", "9" * 30])
def test_a_watch_from_no_revision(live: LiveGateway, text: str) -> None:
    status, answer = raw_request(live.socket, "GET", f"/api/v1/watch?from={text}")
    assert (status, answer["error"]["code"]) == (400, "bad_request")
    assert "from must be a whole number from 1" in answer["error"]["message"]


def test_a_watch_is_taken_up_by_the_next_daemon(tmp_path: Path) -> None:
    """The first daemon ends; the second has the same state and goes on with what follows."""
    folders = [tmp_path / "1", tmp_path / "2"]
    for folder in folders:
        folder.mkdir()
    with LiveGateway(make_services(folders[1])) as second:
        store = second.services.store
        services = make_services(folders[0])
        services.store = store
        with LiveGateway(services) as first, Client([first.socket, second.socket]) as watching:
            writer = Client(second.socket)
            writer.kv_put("a", b"1")
            stream = watching.kv_watch(from_revision=1)
            assert changes_of(stream, 1) == [(1, "a", b"1")]
            first.stop()
            writer.kv_put("a", b"2")
            assert changes_of(stream, 1) == [(2, "a", b"2")]


def test_a_watch_that_never_began_says_so_at_once(tmp_path: Path, client: Client) -> None:
    with pytest.raises(DaemonDown):
        next(Client(tmp_path / "none").kv_watch())


def test_a_watch_from_now_on_without_a_majority(client: Client, store: FakeStore) -> None:
    store.no_quorum = True
    with pytest.raises(NoQuorum):
        next(client.kv_watch())


def test_watches_leave_room_for_other_requests(tmp_path: Path) -> None:
    with LiveGateway(make_services(tmp_path), GatewayConfig(requests_max=4)) as live:
        clients = [Client(live.socket) for _ in range(3)]
        streams = [one.kv_watch() for one in clients]
        for stream in streams[:2]:
            next(stream)
        with pytest.raises(Busy, match="2 watches already"):
            next(streams[2])
        clients[2].kv_put("a", b"")
        streams[0].close()
        wait_until(lambda: _begins(clients[2]))


def _begins(client: Client) -> bool:
    try:
        next(client.kv_watch())
    except Busy:
        return False
    return True


# ---- leases ---------------------------------------------------------------------------


def test_leases_are_granted_renewed_shown_and_revoked(client: Client, store: FakeStore) -> None:
    granted = client.lease_grant(30.5)
    assert (granted.id, granted.ttl_s, granted.left_s) == (1, 30.5, 30.5)
    client.kv_put("a", b"1", lease=granted.id)
    client.kv_txn([], [put("b", "1", lease=granted.id)])
    assert client.kv_get("a").lease == granted.id
    store.now_ms += 10_000
    shown = client.lease(granted.id)
    assert (shown.left_s, shown.count, shown.keys, shown.others) == (20.5, 2, ["a", "b"], [])
    assert client.lease_renew(granted.id).left_s == 30.5
    assert [(one.id, one.left_s, one.count) for one in client.leases()] == [(1, 30.5, 2)]
    assert client.lease_revoke(granted.id).message == "lease 1 is revoked"
    assert client.kv_list() == client.leases() == []


def test_a_dead_lease_has_its_code_everywhere(client: Client, store: FakeStore) -> None:
    lease = client.lease_grant(1).id
    store.now_ms += 1_000
    for call in (client.lease_renew, client.lease_revoke, client.lease):
        with pytest.raises(LeaseExpired, match=f"lease {lease} has ended"):
            call(lease)
    with pytest.raises(LeaseExpired):
        client.kv_put("a", b"", lease=lease)


@pytest.mark.parametrize("ttl_s", [0.0, 0.999, -1.0, 86_401.0, 1e30, float("inf"), float("nan")])
def test_a_lease_is_neither_too_short_nor_too_long(client: Client, ttl_s: float) -> None:
    with pytest.raises(BadTtl, match="allowed are 1 s to 24 h"):
        client.lease_grant(ttl_s)


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("GET", "/api/v1/leases/x", b""),
        ("GET", "/api/v1/leases/" + "9" * 5_000, b""),
        ("POST", "/api/v1/leases/-1/renew", b"{}"),
        ("POST", "/api/v1/leases", b"{}"),
        ("POST", "/api/v1/leases", b'{"ttl_s": "x"}'),
        ("PUT", "/api/v1/kv/a?lease=x", b""),
    ],
)
def test_what_names_no_lease(live: LiveGateway, method: str, target: str, body: bytes) -> None:
    status, answer = raw_request(
        live.socket, method, target, body, Content_Type="application/octet-stream"
    )
    assert (status, answer["error"]["code"]) == (400, "bad_request")


def test_codes_of_mistakes_differ() -> None:
    """Each of them is told apart by its code alone."""
    names = "value_too_large empty_key key_too_long unknown_operation too_large compacted"
    names += " lease_expired lease_full too_many_leases bad_ttl no_quorum conflict bad_request"
    classes = [SwarmError.by_code[name] for name in names.split()]
    assert all(a is not b for a, b in itertools.combinations(classes, 2))

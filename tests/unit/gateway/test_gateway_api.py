"""The API over a real unix socket, with the rooms in memory."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from fuzz_inputs import Inputs
from gateway_fakes import (
    FakeControl,
    FakeStore,
    FakeTasks,
    LiveGateway,
    bare_services,
    make_services,
    node_id,
    replace_keepalive,
    wait_until,
)

from swarmd.base.errors import (
    BadRequest,
    Busy,
    ConfigError,
    Conflict,
    DataFolderRefused,
    NoQuorum,
    NotFound,
    PortTaken,
    SwarmError,
    TooLarge,
    Unreachable,
)
from swarmd.base.limits import INLINE_BYTES_MAX, MIB
from swarmd.base.rng import make_rng
from swarmd.client import Client, ItemInput, TaskInput
from swarmd.gateway import service as gateway_service
from swarmd.gateway.app import Api
from swarmd.gateway.config import GatewayConfig
from swarmd.gateway.service import open_gateway, open_loopback, open_socket
from swarmd.gateway.services import Services
from swarmd.identity.entries import AddAdmin, fresh_nonce, sign_entry
from swarmd.identity.keys import SigningKey
from swarmd.mesh.discovery.adverts import InterfaceFacts


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return make_services(tmp_path)


@pytest.fixture
def live(services: Services) -> Iterator[LiveGateway]:
    with LiveGateway(services) as gateway:
        yield gateway


@pytest.fixture
def client(live: LiveGateway) -> Iterator[Client]:
    with Client(live.socket) as one:
        yield one


def raw_request(
    path: str, method: str, target: str, body: bytes = b"", **headers: str
) -> tuple[int, Any]:
    """A JSON request by hand, as any program would make it."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(10)
    connection.sock.connect(path)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, target, body or None, sent)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, json.loads(text) if text.startswith((b"{", b"[")) else text


# ---- node and swarm -------------------------------------------------------------------


def test_status_tells_the_swarm_and_what_the_next_loss_costs(client: Client) -> None:
    found = client.status()
    assert (found.swarm, found.node, found.ready) == ("lab", "n1", True)
    assert (found.alive, found.total, found.coordinator) == (3, 3, "n1")
    assert found.store is not None
    assert found.store.voters == ["n1", "n2", "n3"]
    assert found.store.may_lose == 1
    assert found.next_loss.startswith("any one node may be lost")


def test_status_answers_without_a_quorum(client: Client, services: Services) -> None:
    assert isinstance(services.store, FakeStore)
    services.store.no_quorum = True
    found = client.status()
    assert found.store is not None
    assert found.store.state == "no_quorum"
    assert found.coordinator == ""
    assert "nothing is accepted" in found.next_loss


def test_members_name_roles_and_addresses(client: Client) -> None:
    first, *others = client.members()
    assert first.name == "n1"
    assert first.itself
    assert first.coordinator
    assert first.voter
    assert first.addresses == ["127.0.0.1:7575"]
    assert first.state == "alive"
    assert not any(one.coordinator or one.itself for one in others)


def test_metrics_are_prometheus_text(client: Client) -> None:
    assert client.metrics() == "swarmd_members 3\n"


def test_ready_and_health(client: Client, live: LiveGateway, services: Services) -> None:
    assert client.ready()
    assert raw_request(live.socket, "GET", "/health")[0] == 200
    assert isinstance(services.control, FakeControl)
    services.control.reason = "it waits for a quorum"
    assert not client.ready()
    status, body = raw_request(live.socket, "GET", "/ready")
    assert status == 503
    assert body["error"] == {
        "code": "not_ready",
        "message": "it waits for a quorum",
        "retryable": True,
    }


def test_a_node_without_a_swarm_answers_status_and_says_both_ways_in(tmp_path: Path) -> None:
    with LiveGateway(bare_services(tmp_path)) as live, Client(live.socket) as client:
        found = client.status()
        assert not found.ready
        assert found.swarm == ""
        assert "--init" in found.reason
        with pytest.raises(SwarmError, match="--join") as caught:
            client.kv_get("a")
        assert caught.value.code == "not_ready"
        names = {check.name: check.verdict for check in client.doctor().checks}
        assert names["daemon"] == "fail"


def test_doctor_reports_every_part(client: Client, services: Services) -> None:
    services.mesh.report = [  # type: ignore[union-attr]
        InterfaceFacts("lo", ("127.0.0.1",), ("127.0.0.1:7575",), heard=2)
    ]
    services.mesh.link = _NoLink()  # type: ignore[union-attr]
    names = [check.name for check in client.doctor().checks]
    wanted = (
        "daemon,data folder,port,clock,addresses,mDNS lo,members,version,firewall,quorum,credential"
    )
    assert names == wanted.split(",")


class _NoLink:
    def request_stream(self, *_: Any, **__: Any) -> Any:
        raise Unreachable("no way")


def test_config_tells_sources(client: Client) -> None:
    assert [(one.key, one.value, one.source) for one in client.config()] == [
        ("mesh.port", 7575, "default")
    ]


def test_authority_head_and_proposal(client: Client, services: Services) -> None:
    head = client.authority_head()
    assert head["swarm"] == "lab"
    assert head["height"] == 4
    assert len(head["hash"]) == len(head["swarm_id"]) == 32
    key = SigningKey.generate()
    signed = sign_entry(AddAdmin(key.public, fresh_nonce()), head["swarm_id"], key)
    client.authority_propose(signed)
    assert isinstance(services.store, FakeStore)
    assert services.store.authority == [signed]


def test_stop_is_answered_before_the_daemon_ends(live: LiveGateway, client: Client) -> None:
    assert client.stop().message == "n1 stops"
    wait_until(lambda: not os.path.exists(live.socket))


def test_leave_is_refused_by_name_and_forced_with_a_warning(
    client: Client, services: Services
) -> None:
    assert isinstance(services.control, FakeControl)
    services.control.refuse = True
    with pytest.raises(Conflict, match="acknowledged data"):
        client.leave()
    assert client.leave(force=True).warnings == ["some data is lost"]
    assert services.control.left == [True]


# ---- keys -----------------------------------------------------------------------------


def test_keys_are_written_read_listed_and_deleted(client: Client) -> None:
    first = client.kv_put("a/b c", b"\x00blue")
    assert client.kv_get("a/b c").value == b"\x00blue"
    client.kv_put("a/d", b"2")
    client.kv_put("z", b"3")
    assert [one.key for one in client.kv_list("a/")] == ["a/b c", "a/d"]
    assert [one.key for one in client.kv_list("", after="a/b c", limit=1)] == ["a/d"]
    second = client.kv_put("a/b c", b"red", expect=first.mod_revision)
    assert client.kv_get("a/b c").create_revision == first.mod_revision
    with pytest.raises(Conflict):
        client.kv_put("a/b c", b"green", expect=first.mod_revision)
    client.kv_delete("a/b c", expect=second.mod_revision)
    with pytest.raises(NotFound, match="a/b c"):
        client.kv_get("a/b c")
    with pytest.raises(NotFound):
        client.kv_delete("a/b c")


def test_users_keys_cannot_touch_the_swarms_own(client: Client, services: Services) -> None:
    client.kv_put("t/task", b"x")
    assert isinstance(services.store, FakeStore)
    assert [one.key for one in services.store.state.range(b"")] == [b"u/t/task"]


def test_keys_over_json_take_text_base64_and_octets(live: LiveGateway) -> None:
    kind = {"Content_Type": "application/json"}
    target = "/api/v1/kv/a"
    assert raw_request(live.socket, "PUT", target, b'{"text":"blue"}', **kind)[0] == 200
    status, body = raw_request(live.socket, "GET", target)
    assert (status, body["value"]) == (200, "Ymx1ZQ==")
    octets = {"Content_Type": "application/octet-stream"}
    assert raw_request(live.socket, "PUT", target + "?expect=99", b"\xff", **octets)[0] == 409
    assert raw_request(live.socket, "PUT", target, b"\xff", **octets)[0] == 200
    assert raw_request(live.socket, "GET", target)[1]["value"] == "/w=="


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "says"),
    [
        ("GET", "/api/v1/kv?limit=0", b"", 400, "limit must be a whole number"),
        pytest.param(
            "GET", f"/api/v1/kv?limit={'9' * 5_000}", b"", 400, "limit must be", id="many digits"
        ),
        ("GET", "/api/v1/kv/" + "k" * 1023, b"", 413, "at most 1022 bytes"),
        ("GET", "/api/v1/kv/x?stale=maybe", b"", 400, "stale must be 1 or 0"),
        ("PUT", "/api/v1/kv/x", b"{}", 400, "either value or text"),
        ("PUT", "/api/v1/kv/x", b'{"valu": "eA=="}', 400, "unknown field `valu`"),
        ("PUT", "/api/v1/kv/x", b"{", 400, "body is wrong"),
        ("GET", "/api/v1/statsu", b"", 404, "did you mean /api/v1/status?"),
        ("DELETE", "/api/v1/status", b"", 400, "takes GET"),
        ("POST", "/api/v1/tasks", b'{"tasks": []}', 400, "length >= 1"),
        ("POST", "/api/v1/tasks", b'{"tasks": [{"agent": "a"}]}', 400, "field `key`"),
        ("GET", "/api/v1/tasks?state=done", b"", 400, "one of pending, assigned"),
        ("GET", "/api/v1/tasks/none", b"", 404, "no task none"),
        ("GET", "/api/v1/agents/none", b"", 404, "no agent"),
        ("GET", "/api/v1/agents/none/logs", b"", 404, "no agent"),
        ("GET", "/api/v1/jobs/none/events", b"", 404, "no job none"),
    ],
)
def test_mistakes_get_a_status_a_code_and_a_sentence(
    live: LiveGateway, method: str, target: str, body: bytes, status: int, says: str
) -> None:
    found, answer = raw_request(live.socket, method, target, body)
    assert found == status, answer
    assert says in answer["error"]["message"]
    assert answer["error"]["code"]


def test_no_quorum_keeps_its_code(client: Client, services: Services) -> None:
    assert isinstance(services.store, FakeStore)
    services.store.no_quorum = True
    with pytest.raises(NoQuorum):
        client.kv_put("a", b"1")


# ---- agents ---------------------------------------------------------------------------

SPEC = {"name": "adder", "version": "1", "entry": "adder:run"}


def test_agents_are_deployed_shown_and_removed(client: Client, services: Services) -> None:
    deployed = client.deploy(SPEC, b"bundle")
    assert (deployed.name, deployed.version, deployed.bundle_bytes) == ("adder", "1", 6)
    assert client.agent("adder").spec["concurrency"] == 4
    assert [one.name for one in client.agents()] == ["adder"]
    services.agents.missing = [node_id("n3")]  # type: ignore[union-attr]
    live = client.instances()
    assert (live.instances[0].node, live.missing) == ("n1", ["n3"])
    client.remove_agent("adder")
    assert client.agents() == []


def test_a_wrong_spec_names_its_key(client: Client) -> None:
    with pytest.raises(BadRequest, match="entry"):
        client.deploy({**SPEC, "entry": "adder"}, b"bundle")


def test_logs_stream_lines_and_name_the_silent(client: Client, services: Services) -> None:
    client.deploy(SPEC, b"bundle")
    services.agents.lines = [  # type: ignore[union-attr]
        (node_id("n2"), SimpleNamespace(wall_ms=5, task_id="t", text="hello")),
        (node_id("n3"), None),
    ]
    first, second = list(client.logs("adder"))
    assert (first.node, first.text, first.task) == ("n2", "hello", "t")
    assert (second.node, second.stream) == ("n3", "missing")
    following = client.logs("adder", follow=True)
    assert next(following).text == "hello"
    following.close()  # type: ignore[attr-defined]


# ---- tasks ----------------------------------------------------------------------------


def test_tasks_are_submitted_once_per_key_and_stream_their_results(client: Client) -> None:
    tasks = [TaskInput(agent="echo", input={"n": n, "raw": b"\x00"}, key=f"k{n}") for n in (1, 2)]
    first = client.submit(tasks)
    again = client.submit(tasks)
    assert [one.id for one in first] == [one.id for one in again]
    assert [one.created for one in first + again] == [True, True, False, False]
    ended = {one.id: one for one in client.results([one.id for one in first])}
    assert ended[first[0].id].result == {"n": 1, "raw": b"\x00"}
    assert ended[first[0].id].node == "n1"
    assert client.task(first[1].id).result == {"n": 2, "raw": b"\x00"}


def test_one_refused_task_does_not_hold_up_the_others(client: Client) -> None:
    refused, taken = client.submit([{"agent": "nobody"}, {"agent": "echo", "input": 1}])
    assert refused.error is not None
    assert refused.error.code == "not_found"
    assert taken.error is None


def test_a_failed_task_tells_its_cause(client: Client) -> None:
    [one] = client.submit([{"agent": "broken", "input": None}])
    [ended] = client.results([one.id])
    assert (ended.state, ended.attempts, ended.node) == ("dead", 4, "n2")
    assert ended.error is not None
    assert (ended.error.code, ended.error.message) == ("agent_raised", "ValueError: no")


def test_large_inputs_go_to_blobs_and_come_back(client: Client, services: Services) -> None:
    big = b"x" * (INLINE_BYTES_MAX + 1)
    [one] = client.submit([{"agent": "echo", "input": big}])
    assert len(services.blobs.kept) == 1  # type: ignore[union-attr]
    [ended] = client.results([one.id])
    assert ended.result == big


def test_tasks_are_listed_in_pages_and_by_state(client: Client) -> None:
    client.submit([{"agent": "echo", "input": n} for n in range(5)])
    client.submit([{"agent": "slow"}])
    page = client.tasks(limit=4)
    assert len(page.tasks) == 4
    assert len(client.tasks(limit=4, after=page.after).tasks) == 2
    assert [one.agent for one in client.tasks(state="pending").tasks] == ["slow"]


def test_times_of_the_store_are_told_as_wall_time(client: Client) -> None:
    """The fakes' store is at 1,000 s; what it took at 1 s and 2 s was 999 s and 998 s ago."""
    [one] = client.submit([{"agent": "echo", "input": 1}])
    shown = client.task(one.id)
    assert abs(shown.created_ms - (time.time() * 1000 - 999_000)) < 5_000
    assert abs(shown.ended_ms - shown.created_ms - 1_000) < 50
    [slow] = client.submit([{"agent": "slow"}])
    assert client.task(slow.id).ended_ms == 0


def test_tasks_are_cancelled(client: Client) -> None:
    ids = [one.id for one in client.submit([{"agent": "slow"}, {"agent": "echo", "input": 1}])]
    assert [one.state for one in client.cancel(ids)] == ["cancelled", "succeeded"]


def test_results_name_unknown_tasks(client: Client) -> None:
    [ended] = client.results(["nonesuch"])
    assert ended.state == "missing"
    assert ended.error is not None
    assert ended.error.code == "not_found"


def test_a_silent_stream_is_kept_alive(live: LiveGateway, client: Client) -> None:
    """With a keep-alive of 50 ms a client that waits 1 s for any byte never times out."""
    [one] = client.submit([{"agent": "slow"}])
    patient = Client(live.socket, timeout_s=1.0)
    began = time.monotonic()
    results = patient.results([one.id])
    tasks = live.services.tasks
    assert isinstance(tasks, FakeTasks)

    def cancel_later() -> None:
        token = trio.lowlevel.current_trio_token()
        token.run_sync_soon(lambda: None)
        trio.lowlevel.spawn_system_task(_cancel_after, tasks, one.id)

    live.call(cancel_later)
    [ended] = results
    assert ended.state == "cancelled"
    assert time.monotonic() - began > 1.2


async def _cancel_after(tasks: FakeTasks, task_id: str) -> None:
    await trio.sleep(1.3)
    await tasks.cancel([task_id])


def test_json_clients_get_ndjson_with_plain_values(live: LiveGateway) -> None:
    body = b'{"tasks": [{"agent": "echo", "key": "j", "input": {"f": 1.5, "l": [null, true]}}]}'
    status, [submitted] = raw_request(live.socket, "POST", "/api/v1/tasks", body)
    assert status == 200
    ask = json.dumps({"ids": [submitted["id"]]}).encode()
    status, text = raw_request(live.socket, "POST", "/api/v1/tasks/results", ask)
    assert status == 200
    ended = text if isinstance(text, dict) else json.loads(text)
    assert ended["result"] == {"f": 1.5, "l": [None, True]}


def test_results_that_json_cannot_hold_are_told_in_json(live: LiveGateway, client: Client) -> None:
    value = {"nan": float("nan"), "raw": b"\xff", 7: "seven"}
    [one] = client.submit([{"agent": "echo", "input": value}])
    status, body = raw_request(live.socket, "GET", f"/api/v1/tasks/{one.id}")
    assert status == 200
    assert body["result"] == {"nan": None, "raw": "/w==", "7": "seven"}


def test_stopping_ends_streams_at_once(live: LiveGateway, client: Client) -> None:
    [one] = client.submit([{"agent": "slow"}])
    results = Client(live.socket).results([one.id], retry_s=0.0)
    live.call(lambda: trio.lowlevel.spawn_system_task(_stop_after, live))
    with pytest.raises(SwarmError) as caught:
        list(results)
    assert caught.value.code in ("shutting_down", "daemon_down", "unreachable")


# ---- jobs -----------------------------------------------------------------------------

JOB = {
    "name": "documents",
    "stages": [
        {"name": "parse", "agent": "parser", "kind": "map"},
        {"name": "sum", "agent": "adder", "kind": "reduce"},
    ],
}
ITEMS = [ItemInput(name="a", input=1), ItemInput(name="b", input=b"x" * (INLINE_BYTES_MAX + 9))]


def test_a_job_is_taken_with_its_items_and_ends_with_a_result(
    client: Client, services: Services
) -> None:
    started = client.submit_job(JOB, ITEMS, key="k")
    assert client.submit_job(JOB, ITEMS, key="k").id == started.id
    assert isinstance(services.tasks, FakeTasks)
    spec = services.tasks.job_specs[0]
    assert (spec.name, spec.item_count, len(spec.blobs)) == ("documents", 2, 1)
    *_, last = client.job_events(started.id)
    assert last.state == "succeeded"
    assert last.stages[1]["kind"] == "reduce"
    assert client.job_result(started.id) == {"items": 2}
    assert [one.id for one in client.jobs()] == [started.id]


def test_a_job_without_a_result_says_why(client: Client) -> None:
    slow = {"name": "slow", "stages": [{"name": "s", "agent": "slow"}]}
    started = client.submit_job(slow, ITEMS)
    with pytest.raises(Conflict, match="running"):
        client.job_result(started.id)
    assert client.cancel_job(started.id).state == "cancelled"
    broken = {"name": "broken", "stages": [{"name": "s", "agent": "broken"}]}
    with pytest.raises(Conflict, match="it broke"):
        client.job_result(client.submit_job(broken, ITEMS).id)


def test_many_inputs_are_stored_ahead_of_the_job(
    client: Client, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit one request travels as blobs, the largest first."""
    monkeypatch.setattr("swarmd.client.calls.REQUEST_BYTES", 2_000)
    items = [ItemInput(name=str(n), input="x" * 100 * n) for n in range(1, 10)]
    client.submit_job(JOB, items)
    assert isinstance(services.tasks, FakeTasks)
    assert 3 <= len(services.tasks.job_specs[0].blobs) <= 6


def test_a_job_with_two_stages_of_one_name_is_refused(client: Client) -> None:
    twice = {"name": "x", "stages": [{"name": "s", "agent": "a"}, {"name": "s", "agent": "b"}]}
    with pytest.raises(BadRequest, match="two stages"):
        client.submit_job(twice, ITEMS)


# ---- guards ---------------------------------------------------------------------------


def test_web_pages_are_refused(live: LiveGateway) -> None:
    assert raw_request(live.socket, "GET", "/health", Origin="http://evil")[0] == 403
    assert raw_request(live.socket, "GET", "/health", Host="evil.example")[0] == 403
    assert raw_request(live.socket, "GET", "/health", Host="localhost:80")[0] == 200


_UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
)
_REQUESTS = [
    raw.encode()
    for raw in (
        f"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\n{_UPGRADE}\r\n\r\n",
        f"GET /health HTTP/1.1\r\nHost: localhost\r\n{_UPGRADE}\r\nContent-Length: 2\r\n\r\n{{}}",
        "GET /health HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQC"
        "\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
        "POST /api/v1/tasks/get HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        "2\r\n{}\r\n0\r\n\r\n",
        "POST /api/v1/kv/a HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
        "Content-Length: 2\r\n\r\n{}",
        "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3,
        "CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /health HTTP/0.9\r\n\r\n",
    )
]


def test_no_connection_ends_more_than_itself(live: LiveGateway, client: Client) -> None:
    """Requests that Hypercorn's parser takes and its states do not, and three thousand more."""
    inputs = Inputs(make_rng(11), _REQUESTS)
    for number in range(3_000 + len(_REQUESTS)):
        raw = _REQUESTS[number] if number < len(_REQUESTS) else inputs.next()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
            one.settimeout(0.2)  # Some wait for more, as they may.
            one.connect(live.socket)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
                one.sendall(raw[:20_000])
                one.shutdown(socket.SHUT_WR)
                while one.recv(65_536):
                    pass
        if number < 100 or number % 100 == 0:
            client.status()
    assert client.status().node == "n1"


def test_an_answer_that_comes_before_the_body_is_not_lost(live: LiveGateway) -> None:
    """Refused, or of no interest: the rest of the body is read and dropped first."""
    for target in ("/api/v1/jobs/x/cancel", "/api/v1/nonesuch", "/health"):
        one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        one.settimeout(10)
        one.connect(live.socket)
        head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n"
        one.sendall(head.encode() + b"x" * 1_000)
        time.sleep(0.05)
        one.sendall(b"x" * 199_000)
        assert one.recv(12).startswith(b"HTTP/1.1 4")
        one.close()


def test_a_bug_costs_its_request_only(client: Client, services: Services) -> None:
    assert isinstance(services.tasks, FakeTasks)
    services.tasks.explode = True
    with pytest.raises(SwarmError) as caught:
        client.submit([{"agent": "echo"}])
    assert caught.value.code == "internal"
    assert client.status().ready


def test_bodies_and_requests_are_bounded(tmp_path: Path) -> None:
    config = GatewayConfig(
        body_bytes_max=MIB, bodies_bytes_max=MIB, requests_max=1, keepalive_s=0.05
    )
    with LiveGateway(make_services(tmp_path), config) as live, Client(live.socket) as client:
        with pytest.raises(TooLarge, match="at most 1048576 bytes"):
            client.put_blob(b"x" * (MIB + 1))
        [one] = client.submit([{"agent": "slow"}])
        client.put_blob(b"x" * (MIB - 100))  # What the refused one took was given back.
        streaming = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        streaming.connect(live.socket)
        ask = json.dumps({"ids": [one.id]}).encode()
        streaming.sendall(
            b"POST /api/v1/tasks/results HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: %d\r\n\r\n" % len(ask) + ask
        )
        streaming.recv(1)
        with pytest.raises(Busy, match="as many requests"):
            client.status()
        streaming.close()
        wait_until(client.ready)


def test_a_client_that_does_not_read_cannot_hold_up_the_end(tmp_path: Path) -> None:
    """The server's writes are shielded; the end closes the connection under them."""
    services = make_services(tmp_path)
    live = LiveGateway(services, replace_keepalive(0.05))
    with live, Client(live.socket) as client:
        [one] = client.submit([{"agent": "echo", "input": b"x" * (8 * MIB)}])
        stuck = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stuck.connect(live.socket)
        target = f"GET /api/v1/tasks/{one.id} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        stuck.sendall(target.encode())
        stuck.recv(1)
        began = time.monotonic()
        live.stop()
        assert time.monotonic() - began < 5
        stuck.close()


def test_head_and_body_of_an_answer_come_in_one_piece(live: LiveGateway) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.settimeout(10)
        one.connect(live.socket)
        for _ in range(3):
            one.sendall(b"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head, _, body = one.recv(65_536).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert json.loads(body)


def test_a_connection_serves_any_number_of_requests(live: LiveGateway) -> None:
    """The server beneath closes after a thousand by default, without a word."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.settimeout(10)
        one.connect(live.socket)
        for number in range(1_100):
            one.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert one.recv(65_536).startswith(b"HTTP/1.1 200"), f"closed at request {number}"


def test_a_connection_that_pauses_too_long_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle_s = 0.3
    monkeypatch.setattr(gateway_service, "_IDLE_CLOSE_S", idle_s)
    with LiveGateway(make_services(tmp_path), replace_keepalive(0.05)) as live:
        for _ in range(10):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
                one.settimeout(10)
                one.connect(live.socket)
                longest_s, closed = _keep_asking(one, 2 * idle_s)
                if closed and longest_s > idle_s / 2:
                    continue  # This machine stood still, and so it was a pause.
                assert not closed, "closed between two requests"
                assert one.recv(1) == b""
                return
    raise AssertionError("this machine stands still all the time")


def _keep_asking(one: socket.socket, for_s: float) -> tuple[float, bool]:
    """Ask again and again; the longest time that one request took, and whether it was closed."""
    began = last = time.monotonic()
    longest_s = 0.0
    while last - began < for_s:
        try:
            one.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = one.recv(65_536)
        except OSError:
            answer = b""
        now = time.monotonic()
        longest_s, last = max(longest_s, now - last), now
        if not answer:
            return longest_s, True
        assert answer.startswith(b"HTTP/1.1 200")
    return longest_s, False


# ---- sockets --------------------------------------------------------------------------


def test_the_socket_is_for_owner_and_group_only(live: LiveGateway) -> None:
    assert stat.S_IMODE(os.stat(live.socket).st_mode) == 0o660


def test_what_a_dead_daemon_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    left.bind(str(path))
    left.close()
    open_socket(path).close()


async def test_a_living_daemon_is_not_pushed_aside(tmp_path: Path) -> None:
    services = make_services(tmp_path)
    async with open_gateway(GatewayConfig(), services):
        with pytest.raises(DataFolderRefused, match="another swarmd is running"):
            open_socket(services.config.socket_path)
    assert not services.config.socket_path.exists()


def test_other_files_and_unknown_groups_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"):
        open_socket(tmp_path / "file")
    with pytest.raises(ConfigError, match="no such group"):
        open_socket(tmp_path / "s.sock", "nonesuch-group")
    with pytest.raises(ConfigError, match=r"gateway\.socket"):
        open_socket(tmp_path / "file" / "s.sock")


def test_a_taken_port_names_its_setting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(PortTaken, match=r"gateway\.tcp_port"):
            open_loopback(taken.getsockname()[1])


async def _stop_after(live: LiveGateway) -> None:
    await trio.sleep(0.2)
    live.stop_soon()


def test_every_route_is_documented(live: LiveGateway) -> None:
    """docs/api.md names each path and each is there."""
    text = (Path(__file__).resolve().parents[3] / "docs" / "api.md").read_text()
    assert live.gateway is not None
    api = live.gateway.app
    assert isinstance(api, Api)
    paths = {re.sub(r"\{(\w+)(:\w+)?\}", lambda m: m[1].upper(), r.path) for r in api.routes}
    missing = [path for path in sorted(paths) if path not in text]
    assert missing == []

"""Who may ask what: the gate before every endpoint, over real sockets."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from access_gateway import (
    EVICTED_KEY,
    OTHER_NODE_KEY,
    WORKER_KEY,
    Guarded,
    guarded_gateway,
)
from gateway_fakes import SWARM_ID, FakeControl, LiveGateway, make_services, wait_until
from msgspec import structs

from swarmd.base.clock import BootClock
from swarmd.base.errors import (
    AlreadyExists,
    BadRequest,
    ConfigError,
    Forbidden,
    NotFound,
    Unauthenticated,
    Unreachable,
    Untrusted,
)
from swarmd.base.ids import NodeId, to_text
from swarmd.client import Client, TaskInput
from swarmd.client.keystream import KeyStream
from swarmd.client.requests import DaemonDown
from swarmd.gateway.access.gate import ANY_CALLER, ANYBODY
from swarmd.gateway.access.records import KeyRecord, encode_key, record_key
from swarmd.gateway.access.rules import PERMISSIONS, ROLES
from swarmd.gateway.app import Api
from swarmd.gateway.config import GatewayConfig
from swarmd.gateway.forward import Ask, _scope_of
from swarmd.identity.api_keys import new_api_key
from swarmd.identity.sessions import Session, issue_session
from swarmd.state.raft.messages import ACCESS_PREFIX, Put


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    with guarded_gateway(tmp_path, stranger_requests_per_min=100_000) as one:
        yield one


# ---- every route with every credential --------------------------------------------------

V, S, O, A = "viewer", "submitter", "operator", "admin"  # noqa: E741
LOOK, SEE, DO, ALL = {V, O, A}, {V, S, O, A}, {O, A}, {A}
# Who may come in, written down beside the routes themselves; a route that is not here fails.
WHO: dict[str, set[str]] = {
    "GET /health": {"anybody"},
    "GET /ready": {"anybody"},
    "GET /metrics": LOOK,
    "GET /api/v1/status": SEE,
    "GET /api/v1/members": SEE,
    "GET /api/v1/members/watch": SEE,
    "GET /api/v1/links": SEE,
    "GET /api/v1/topology": SEE,
    "GET /api/v1/coordinate": SEE,
    "GET /api/v1/rtt": SEE,
    "POST /api/v1/tags": DO,
    "GET /api/v1/doctor": SEE,
    "GET /api/v1/config": DO,
    "POST /api/v1/stop": DO,
    "POST /api/v1/leave": DO,
    "GET /api/v1/authority": SEE,
    "POST /api/v1/authority": DO,
    "GET /api/v1/authority/head": SEE,
    "GET /api/v1/join-requests": SEE,
    "POST /api/v1/join-requests/deny": DO,
    "GET /api/v1/raft": SEE,
    "GET /api/v1/raft/own": SEE,
    "GET /api/v1/coordinator": SEE,
    "POST /api/v1/coordinator/transfer": DO,
    "GET /api/v1/snapshot": ALL,
    "GET /api/v1/voters": SEE,
    "GET /api/v1/recovery": ALL,
    "POST /api/v1/recovery": ALL,
    "PUT /api/v1/voters/{node}/pin": DO,
    "DELETE /api/v1/voters/{node}/pin": DO,
    "GET /api/v1/kv": LOOK,
    "GET /api/v1/watch": LOOK,
    "GET /api/v1/kv/{key:path}": LOOK,
    "PUT /api/v1/kv/{key:path}": DO,
    "DELETE /api/v1/kv/{key:path}": DO,
    "POST /api/v1/txn": SEE,
    "POST /api/v1/kv-stream": SEE,
    "GET /api/v1/bus": LOOK,
    "POST /api/v1/bus/{topic:path}": DO,
    "GET /api/v1/crdt/{namespace}/{key:path}": LOOK,
    "GET /api/v1/memory-watch/{namespace}": LOOK,
    "GET /api/v1/memory-namespaces": LOOK,
    "GET /api/v1/memory-namespaces/{namespace}": LOOK,
    "PUT /api/v1/memory-namespaces/{namespace}": DO,
    "PATCH /api/v1/memory-namespaces/{namespace}": DO,
    "POST /api/v1/memory-compute/{namespace}/{key:path}": DO,
    "PUT /api/v1/memory-compute/{namespace}/{key:path}": DO,
    "GET /api/v1/memory/{namespace}": LOOK,
    "GET /api/v1/memory/{namespace}/{key:path}": LOOK,
    "PUT /api/v1/memory/{namespace}/{key:path}": DO,
    "DELETE /api/v1/memory/{namespace}/{key:path}": DO,
    "GET /api/v1/vectors": LOOK,
    "GET /api/v1/vectors/{collection}": LOOK,
    "PUT /api/v1/vectors/{collection}": DO,
    "DELETE /api/v1/vectors/{collection}": DO,
    "POST /api/v1/vectors/{collection}/search": LOOK,
    "POST /api/v1/vectors/{collection}/entries": DO,
    "GET /api/v1/vectors/{collection}/entries/{id:path}": LOOK,
    "DELETE /api/v1/vectors/{collection}/entries/{id:path}": DO,
    "GET /api/v1/events": LOOK,
    "GET /api/v1/events/watch": LOOK,
    "POST /api/v1/events/{name}": DO,
    "GET /api/v1/answers/{name}": DO,
    "POST /api/v1/queries/{name}": DO,
    "GET /api/v1/leases": LOOK,
    "POST /api/v1/leases": DO,
    "GET /api/v1/leases/{id}": LOOK,
    "DELETE /api/v1/leases/{id}": DO,
    "POST /api/v1/leases/{id}/renew": DO,
    "GET /api/v1/counters/{name}": LOOK,
    "POST /api/v1/counters/{name}": DO,
    **{
        f"{verb} /api/v1/{line}{rest}": who
        for line in ("locks", "elections", "barriers")
        for verb, rest, who in (
            ("GET", "", LOOK),
            ("GET", "/{name}", LOOK),
            ("POST", "/{name}", DO),
            ("POST", "/{name}/renew", DO),
            ("POST", "/{name}/release", DO),
        )
    },
    "GET /api/v1/agents": SEE,
    "POST /api/v1/agents": DO,
    "GET /api/v1/agents/{name}": SEE,
    "DELETE /api/v1/agents/{name}": DO,
    "GET /api/v1/agents/{name}/logs": LOOK,
    "GET /api/v1/instances": SEE,
    "POST /api/v1/blobs": {S, O, A},
    "GET /api/v1/blobs": SEE,
    "PUT /api/v1/blobs": {S, O, A},
    "GET /api/v1/blobs/{hash}": SEE,
    "GET /api/v1/blobs/{hash}/data": SEE,
    "POST /api/v1/blobs/{hash}/pin": {S, O, A},
    "DELETE /api/v1/blobs/{hash}/pin": {S, O, A},
    "GET /api/v1/tasks": SEE,
    "POST /api/v1/tasks": {S, O, A},
    "POST /api/v1/tasks/results": SEE,
    "POST /api/v1/tasks/cancel": {S, O, A},
    "GET /api/v1/tasks/{id}": SEE,
    "POST /api/v1/tasks/{id}/cancel": {S, O, A},
    "GET /api/v1/jobs": SEE,
    "POST /api/v1/jobs": {S, O, A},
    "GET /api/v1/jobs/{id}": SEE,
    "GET /api/v1/jobs/{id}/events": SEE,
    "GET /api/v1/jobs/{id}/result": SEE,
    "POST /api/v1/jobs/{id}/cancel": {S, O, A},
    "GET /api/v1/keys": ALL,
    "POST /api/v1/keys": ALL,
    "DELETE /api/v1/keys/{name}": ALL,
    "GET /api/v1/secrets": DO,
    "PUT /api/v1/secrets/{name}": DO,
    "DELETE /api/v1/secrets/{name}": DO,
    "GET /api/v1/audit": ALL,
    "GET /api/v1/audit/follow": ALL,
    "GET /api/v1/audit/held": ALL,
    "GET /api/v1/audit/raw": ALL,
    "GET /api/v1/audit/anchors": ALL,
    "POST /api/v1/sessions": SEE,
    "GET /api/v1/caller": SEE,
}  # fmt: skip


def test_every_route_lets_in_whom_it_should_and_nobody_else(tmp_path: Path) -> None:
    services = make_services(tmp_path)
    with guarded_gateway(
        tmp_path, services, stranger_requests_per_min=100_000, key_requests_per_min=100_000
    ) as one:
        credentials = {role: one.new_key(role, role=role) for role in ROLES}
        session = Client(one.live.socket, api_key=credentials[V]).open_session().token
        one.new_key("gone", role="admin")
        gone, gone_hash = new_api_key()
        one.admin.create_api_key("gone2", gone_hash, role="admin")
        one.admin.revoke_api_key("gone2")
        expired = one.new_key("expired", role="admin", ttl_s=0.001)
        one.store.now_ms += 10
        # Nothing behind the gate shall happen; what is asked is only who gets there.
        services.store = services.tasks = services.agents = services.blobs = None
        services.recipes = services.mesh = services.trust = services.secrets = None
        control = services.control
        assert isinstance(control, FakeControl)
        control.on_stop = lambda: None
        assert one.live.gateway is not None
        api = one.live.gateway.app
        assert isinstance(api, Api)
        seen = set()
        for route in api.routes:
            for method in (route.methods or set()) - {"HEAD"}:
                name = f"{method} {route.path}"
                seen.add(name)
                path = re.sub(r"\{[^}]*\}", "x", route.path)
                who = WHO[name]
                for role, credential in credentials.items():
                    status, answer, _ = one.ask(method, path, credential, {})
                    if "anybody" in who or role in who:
                        assert status not in (401, 403, 429), (name, role, answer)
                    else:
                        assert (status, answer["error"]["code"]) == (403, "forbidden"), name
                status, answer, _ = one.ask(method, path, session, {})
                allowed = V in who or "anybody" in who
                if name != "POST /api/v1/sessions":
                    assert (status not in (401, 403)) == allowed, (name, answer)
                for nobody in ("", gone, expired, "swk_none", "e30.e30.e30"):
                    status, answer, headers = one.ask(method, path, nobody, {})
                    if nobody == "" and "anybody" in who:
                        assert status not in (401, 403, 429)
                        continue
                    assert (status, answer["error"]["code"]) == (401, "unauthenticated"), name
                    assert headers["WWW-Authenticate"].startswith("Bearer")
        assert seen == set(WHO)


def test_what_routes_need_can_be_allowed(guarded: Guarded) -> None:
    assert guarded.live.gateway is not None
    api = guarded.live.gateway.app
    assert isinstance(api, Api)
    needed = {route.needs for route in api.routes} - {ANYBODY, ANY_CALLER}
    assert needed <= set(PERMISSIONS)
    unused = set(PERMISSIONS) - needed
    # Asked of who deploys an agent, about each secret that it refers to.
    assert unused == {"secret:use"}, "a permission that no route asks for"


def test_an_unknown_path_tells_nothing_to_strangers(guarded: Guarded) -> None:
    assert guarded.ask("GET", "/api/v1/taskz")[0] == 401
    status, answer, _ = guarded.ask("GET", "/api/v1/taskz", guarded.new_key("v", role="viewer"))
    assert (status, answer["error"]["code"]) == (404, "not_found")


# ---- rules on some, not on all ----------------------------------------------------------


def test_keys_below_a_prefix(guarded: Guarded) -> None:
    credential = guarded.new_key("app", rules=["kv:read:app/*", "kv:write:app/own"])
    for key in ("app/own", "app/other", "else"):
        guarded.admin.kv_put(key, b"1")

    def status(method: str, path: str, body: Any = None) -> int:
        return guarded.ask(method, path, credential, body)[0]

    assert status("GET", "/api/v1/kv/app/other") == 200
    assert status("GET", "/api/v1/kv/else") == 403
    assert status("GET", "/api/v1/kv?prefix=app/o") == 200
    assert status("GET", "/api/v1/kv?prefix=app") == 403
    assert status("GET", "/api/v1/kv") == 403
    assert status("GET", "/api/v1/watch") == 403
    assert status("PUT", "/api/v1/kv/app/own", {"text": "2"}) == 200
    assert status("PUT", "/api/v1/kv/app/other", {"text": "2"}) == 403
    assert status("DELETE", "/api/v1/kv/app/other") == 403
    put = {"op": "put", "key": "app/own", "text": "3"}
    seen = {"key": "app/other", "exists": True}
    assert status("POST", "/api/v1/txn", {"compares": [seen], "then": [put]}) == 200
    assert status("POST", "/api/v1/txn", {"compares": [{**seen, "key": "else"}]}) == 403
    assert status("POST", "/api/v1/txn", {"else": [{**put, "key": "else"}]}) == 403
    assert guarded.admin.kv_get("else").value == b"1"


def test_a_stream_of_operations_is_judged_one_by_one(guarded: Guarded) -> None:
    credential = guarded.new_key("app", rules=["kv:write:app/*", "kv:read:app/*"])
    with Client(guarded.live.socket, api_key=credential).key_stream() as stream:
        stream.put("app/a", b"1")
        stream.put("else", b"1")
        stream.get("app/a")
        stream.get("other")
        found = {done.id: done.error.code if done.error else "" for done in stream.take_all()}
    assert found[1] == ""
    assert (found[2], found[4]) == ("forbidden", "forbidden")
    with pytest.raises(NotFound):
        guarded.admin.kv_get("else")


def test_tasks_of_one_agent(guarded: Guarded) -> None:
    credential = guarded.new_key(
        "one", rules=["task:submit:echo", "task:read:echo", "task:cancel:echo"]
    )
    with Client(guarded.live.socket, api_key=credential) as client:
        [mine] = client.submit([TaskInput(agent="echo", input=1)])
        with pytest.raises(Forbidden, match="task:submit:slow"):
            client.submit([TaskInput(agent="echo", input=1), TaskInput(agent="slow", input=1)])
        [theirs] = guarded.admin.submit([TaskInput(agent="slow", input=1)])
        assert client.task(mine.id).result == 1
        with pytest.raises(Forbidden):
            client.task(theirs.id)
        with pytest.raises(Forbidden):
            client.cancel([theirs.id])
        with pytest.raises(Forbidden):
            client.cancel([mine.id, theirs.id])
        with pytest.raises(Forbidden):
            client.tasks()
        assert [one.id for one in client.tasks(agent="echo").tasks] == [mine.id]
        [result] = client.results([mine.id])
        assert result.result == 1
    assert guarded.admin.task(theirs.id).state == "pending"


def test_lists_show_what_may_be_seen(guarded: Guarded) -> None:
    for name in ("echo", "other"):
        spec = {"name": name, "version": "1", "runtime": "python", "entry": "a:b"}
        guarded.admin._call("POST", "/agents", {"spec": spec, "bundle": b"x"}, kind=dict[str, Any])
    credential = guarded.new_key("one", rules=["agent:read:echo"])
    with Client(guarded.live.socket, api_key=credential) as client:
        assert [one.name for one in client.agents()] == ["echo"]
        with pytest.raises(Forbidden):
            client.agent("other")


def test_secrets_by_name(guarded: Guarded) -> None:
    for name in ("mine", "theirs"):
        guarded.admin.set_secret(name, f"value of {name}")
    rules = ["secret:list:mine", "secret:set:mine", "agent:deploy", "secret:use:mine"]
    spec = {"name": "echo", "version": "1", "runtime": "python", "entry": "a:b"}

    def deploy(client: Client, name: str) -> None:
        body = {"spec": {**spec, "env": {"A": f"secret:{name}"}}, "bundle": b"x"}
        client._call("POST", "/agents", body, kind=dict[str, Any])

    with Client(guarded.live.socket, api_key=guarded.new_key("one", rules=rules)) as client:
        assert [one.name for one in client.secrets()] == ["mine"]
        assert client.set_secret("mine", "another").version == 2
        for refused in (
            lambda: client.set_secret("theirs", "another"),
            lambda: client.delete_secret("mine"),
            lambda: deploy(client, "theirs"),
        ):
            with pytest.raises(Forbidden):
                refused()
        deploy(client, "mine")
    assert guarded.admin.agent("echo").spec["env"] == {"A": "secret:mine"}
    [mine, _] = guarded.admin.secrets()
    assert (mine.used_by, mine.set_by, mine.version) == (["echo"], "key one", 2)


# ---- where a request comes in -----------------------------------------------------------


def test_a_local_user_is_who_the_kernel_says(guarded: Guarded) -> None:
    caller = guarded.admin.caller()
    assert caller.name == f"local user {os.getuid()}"
    assert caller.rules == ["*"]


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
def test_another_user_of_the_socket_has_the_role_that_is_set(tmp_path: Path) -> None:
    services = make_services(tmp_path)
    config = GatewayConfig(socket_group_role="viewer")
    with LiveGateway(services, config) as live:
        for part in (tmp_path, *tmp_path.parents):
            if part.stat().st_uid == os.getuid() and part != Path("/"):
                part.chmod(part.stat().st_mode | 0o055)
        os.chmod(live.socket, 0o666)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.setgid(65_534)
                os.setuid(65_534)
                with Client(live.socket) as client:
                    assert client.caller().name == "local user 65534"
                    client.status()
                    try:
                        client.stop()
                    except Forbidden:
                        code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_key_that_is_shown_counts_over_the_socket_too(guarded: Guarded) -> None:
    with Client(guarded.live.socket, api_key=guarded.new_key("v", role="viewer")) as client:
        assert client.caller().name == "key v"
        with pytest.raises(Forbidden, match="key v may not do this"):
            client.kv_put("a", b"1")


def test_tls_with_a_fingerprint(guarded: Guarded) -> None:
    status = guarded.admin.status()
    assert status.api == [f"https://127.0.0.1:{guarded.tls_port}"]
    key = guarded.new_key("op", role="operator")
    [url] = status.api
    with Client(url, api_key=key, fingerprint=status.api_fingerprint) as client:
        assert client.caller().name == "key op"
        client.kv_put("a", b"1")
        with client.key_stream() as stream:
            for number in range(2_000):
                stream.put(f"many/{number}", b"v" * 200)
            assert not [done for done in stream.take_all() if done.error]
        assert len(client.kv_list("many/", limit=10_000)) == 2_000
    with (
        Client(url, api_key=key, fingerprint="ab" * 32) as other,
        pytest.raises(Untrusted, match="not the one that was named"),
    ):
        other.status()
    with Client(url, api_key=key) as unnamed, pytest.raises(Untrusted, match="--fingerprint"):
        unnamed.status()
    with pytest.raises(BadRequest, match="64 hex digits"):
        Client(url, fingerprint="abc")


def test_the_tls_port_takes_nothing_in_clear(guarded: Guarded) -> None:
    with socket.create_connection(("127.0.0.1", guarded.tls_port), 5) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        plain.settimeout(5)
        got = b""
        try:
            while more := plain.recv(4_096):
                got += more
        except ConnectionError:
            pass
    assert b"HTTP" not in got
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", guarded.tls_port), 5) as one,
        pytest.raises(ssl.SSLError),
    ):
        old.wrap_socket(one)
    assert guarded.admin.caller().rules == ["*"]


def test_a_certificate_that_is_replaced_is_shown_at_once(guarded: Guarded, tmp_path: Path) -> None:
    from swarmd.identity.certificates import fingerprint_of, make_api_certificate

    folder = tmp_path / "data" / "gateway"
    before = guarded.admin.status().api_fingerprint
    assert (folder / "tls.key").stat().st_mode & 0o777 == 0o600
    assert fingerprint_of(folder / "tls.crt") == before
    key = guarded.new_key("v", role="viewer")
    url = f"https://127.0.0.1:{guarded.tls_port}"
    with Client(url, api_key=key, fingerprint=before) as client:
        client.status()
        certificate, private = make_api_certificate(["localhost"], ["127.0.0.1"])
        (folder / "tls.key").write_bytes(b"broken")
        with Client(url, api_key=key, fingerprint=before) as still:
            still.status()
        (folder / "tls.key").write_bytes(private)
        (folder / "tls.crt").write_bytes(certificate)
        now = fingerprint_of(folder / "tls.crt")
        with Client(url, api_key=key, fingerprint=now) as other:
            assert other.status().api_fingerprint == now
        client.status()  # Its connection goes on.


def test_a_remote_host_may_name_the_node_but_pages_may_not_ask(guarded: Guarded) -> None:
    key = guarded.new_key("v", role="viewer")
    assert guarded.ask_tls("GET", "/api/v1/status", key, Host="host2.lan:7580")[0] == 200
    assert guarded.ask_tls("GET", "/api/v1/status", key, Origin="https://evil")[0] == 403
    assert guarded.ask("GET", "/api/v1/status", key, Host="host2.lan")[0] == 403


class StillClock(BootClock):
    """Stands still until it is moved."""

    at = 1_000.0

    def now(self) -> float:
        return self.at


# ---- limits -----------------------------------------------------------------------------


def test_strangers_ask_so_often_and_no_more(tmp_path: Path) -> None:
    """A hundred times a minute by default, whatever for; who is known is not held up by them."""
    services = make_services(tmp_path)
    services.clock = clock = StillClock()
    with guarded_gateway(tmp_path, services) as one:
        key = one.new_key("v", role="viewer")
        ways = (("/health", ""), ("/api/v1/status", "swk_guess"), ("/api/v1/nothing", ""))
        codes = [one.ask("GET", *ways[number % 3])[0] for number in range(100)]
        assert [codes.count(code) for code in (200, 401, 429)] == [34, 66, 0]
        for path, credential in ways:
            status, answer, headers = one.ask("GET", path, credential)
            assert (status, answer["error"]["code"]) == (429, "rate_limited")
            assert answer["error"]["retryable"]
            assert headers["Retry-After"] == "1"
        assert one.ask("GET", "/api/v1/status", key)[0] == 200
        assert one.admin.status().node == "n1"
        clock.at += 0.6
        assert one.ask("GET", "/health")[0] == 200
        assert one.ask("GET", "/health")[0] == 429


def test_a_key_has_its_own_limit(guarded: Guarded) -> None:
    key = guarded.new_key("slow", role="viewer", requests_per_min=5)
    codes = [guarded.ask("GET", "/api/v1/caller", key)[0] for _ in range(7)]
    assert codes[:5] == [200] * 5
    assert codes[-1] == 429


def test_one_address_does_not_hold_every_connection(tmp_path: Path) -> None:
    with guarded_gateway(tmp_path, requests_max=8) as one:
        held = [socket.create_connection(("127.0.0.1", one.port), 5) for _ in range(4)]
        wait_until(lambda: one.connections("loopback") == 4)
        with socket.create_connection(("127.0.0.1", one.port), 5) as more:
            more.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                assert more.recv(1) == b""
        assert one.admin.status().node == "n1"
        for each in held:
            each.close()

        def is_served() -> bool:
            with contextlib.suppress(ConnectionError):
                return one.ask("GET", "/health")[0] == 200
            return False

        wait_until(is_served)


# ---- keys and sessions ------------------------------------------------------------------


def test_the_swarm_never_holds_a_key(guarded: Guarded) -> None:
    text = guarded.new_key("ci", role="submitter", rules=["kv:read:ci/*"], ttl_s=60)
    [stored] = guarded.store.state.range(ACCESS_PREFIX, b"", 10)
    assert text.encode()[4:20] not in stored.value
    [shown] = guarded.admin.api_keys()
    assert (shown.name, shown.role, shown.rules) == ("ci", "submitter", ["kv:read:ci/*"])
    assert set(shown.allows) == {*ROLES["submitter"], "kv:read:ci/*"}
    assert shown.created_by.startswith("local user")
    with pytest.raises(AlreadyExists, match="there is a key ci"):
        guarded.new_key("ci", role="viewer")


def test_a_key_has_as_long_a_name_as_may_be(guarded: Guarded) -> None:
    name = "k" * 128
    guarded.new_key(name, role="viewer")
    assert [one.name for one in guarded.admin.api_keys()] == [name]
    with pytest.raises(BadRequest, match="at most 128"):
        guarded.new_key(name + "k", role="viewer")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "allowed nothing"),
        ({"role": "king"}, "does not exist: one of admin"),
        ({"rules": ["task:submitt"]}, "did you mean task:submit"),
        ({"rules": ["cluster:read:n1"]}, "allowed as a whole"),
        ({"rules": ["kv:read:"]}, "ends without naming"),
        ({"rules": ["*"]}, "give that"),
        ({"role": "viewer", "ttl_s": -1}, "ttl_s"),
        ({"role": "viewer", "requests_per_min": -1}, "requests_per_min"),
        ({"role": "viewer", "rules": ["kv:read"] * 65}, "length"),
    ],
)
def test_a_key_that_makes_no_sense(guarded: Guarded, given: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        guarded.admin.create_api_key("x", new_api_key()[1], **given)
    assert guarded.admin.api_keys() == []


def test_a_revoked_key_and_its_sessions_end_at_once(guarded: Guarded) -> None:
    key = guarded.new_key("ci", role="viewer")
    with Client(guarded.live.socket, api_key=key) as client:
        session = client.open_session(60).token
    assert guarded.ask("GET", "/api/v1/status", session)[0] == 200
    guarded.admin.revoke_api_key("ci")
    wait_until(lambda: guarded.ask("GET", "/api/v1/status", key)[0] == 401, 1.0)
    assert guarded.ask("GET", "/api/v1/status", session)[0] == 401
    with pytest.raises(NotFound, match="no API key ci"):
        guarded.admin.revoke_api_key("ci")


def test_a_session_makes_no_other_and_lasts_15_minutes_at_most(guarded: Guarded) -> None:
    session = guarded.admin.open_session(900)
    assert 0 < session.expires_s - time.time() <= 900
    with Client(guarded.live.socket, api_key=session.token) as client:
        assert client.caller().session
        with pytest.raises(BadRequest, match="makes no other"):
            client.open_session(60)
    with pytest.raises(BadRequest, match="from 1 to 900"):
        guarded.admin.open_session(901)


def test_only_nodes_that_may_vote_make_sessions(guarded: Guarded) -> None:
    """Who merely works must make nobody an admin, nor who was shut out."""
    now = int(time.time())
    for key, status in ((OTHER_NODE_KEY, 200), (WORKER_KEY, 401), (EVICTED_KEY, 401)):
        session = Session(to_text(key.key_id), to_text(SWARM_ID), "root", now, now + 60, "", ("*",))
        assert guarded.ask("GET", "/api/v1/status", issue_session(key, session))[0] == status


def test_a_node_that_has_not_read_the_keys_says_so(tmp_path: Path) -> None:
    services = make_services(tmp_path)
    store = services.store
    with guarded_gateway(tmp_path, services) as one:
        assert services.access is not None
        access = services.access
        key = one.new_key("v", role="viewer")
        access._by_hash = None
        status, answer, _ = one.ask("GET", "/api/v1/status", key)
        assert (status, answer["error"]["code"]) == (503, "not_ready")
    assert store is not None


def test_no_daemon_at_a_url_is_said_in_one_line() -> None:
    with (
        Client("https://127.0.0.1:1", fingerprint="ab" * 32) as client,
        pytest.raises(DaemonDown, match="nothing listens there"),
    ):
        client.status()
    with pytest.raises(BadRequest, match="a socket's path, or https://HOST:PORT"):
        Client("http://127.0.0.1:7580")
    with Client("https://nowhere") as client, pytest.raises(BadRequest, match="host:7580"):
        client.status()


def test_settings_of_listeners_that_cannot_be(tmp_path: Path) -> None:
    services = make_services(tmp_path)
    (tmp_path / "data").mkdir()
    for wrong, why in (
        ({"listen": ("192.0.2.1:7580",)}, "cannot listen at 192.0.2.1:7580"),
        ({"listen": ("127.0.0.1:99999",)}, "cannot listen"),
        ({"listen": ("127.0.0.1:0",), "tls_certificate": "x"}, "give both"),
        ({"listen": ("127.0.0.1:0",), "tls_certificate": "x", "tls_key": "y"}, "cannot use"),
    ):
        config = GatewayConfig(**wrong)  # type: ignore[arg-type]
        with pytest.raises(BaseException) as caught, LiveGateway(services, config):
            pass
        found = caught.value
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        assert isinstance(found, ConfigError)
        assert why in found.message
    assert replace(services).listening.addresses == ()


# ---- no way round -----------------------------------------------------------------------


def write_for_ever(stream: KeyStream) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        stream.put("a", b"2")
        stream.take()


def test_a_stream_ends_when_what_its_caller_showed_counts_no_more(guarded: Guarded) -> None:
    credential = guarded.new_key("app", role="operator")
    with Client(guarded.live.socket, api_key=credential) as client:
        session = client.open_session(600).token
    for shown in (credential, session):
        stream = Client(guarded.live.socket, api_key=shown, timeout_s=10).key_stream()
        stream.put("a", b"1")
        assert not stream.take()[0].error
        if shown == session:
            guarded.admin.revoke_api_key("app")
            with pytest.raises((Unreachable, Unauthenticated)):
                write_for_ever(stream)
            value = guarded.admin.kv_get("a").value
            time.sleep(0.1)
            assert guarded.admin.kv_get("a").value == value
        stream.close()


def test_a_watch_ends_with_the_session_that_opened_it(guarded: Guarded) -> None:
    session = guarded.admin.open_session(1).token
    began = time.monotonic()
    with (
        Client(guarded.live.socket, api_key=session, timeout_s=10) as client,
        pytest.raises((Unreachable, Unauthenticated)),
    ):
        for _ in client._stream("GET", "/watch", None, dict[str, Any]):
            pass
    assert time.monotonic() - began < 5


def test_a_forwarded_caller_keeps_its_key_and_its_end(guarded: Guarded) -> None:
    """A session made over another node names the key, and none is made with a session."""
    assert guarded.live.gateway is not None
    app = guarded.live.gateway.app
    made = Ask("POST", "/api/v1/sessions", b"", (), b"", b"", "key x", ("*",), b"h" * 32, False, 0)
    other = structs.replace(made, session=True, ends_s=1)
    answers: list[tuple[int, Any]] = []

    async def ask(one: Ask) -> None:
        status = 0

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"{}", "more_body": False}

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            if message.get("body"):
                answers.append((status, json.loads(message["body"])))

        await app(_scope_of(one, NodeId(b"p" * 32)), receive, send)

    for one in (made, other):
        trio.from_thread.run(ask, one, trio_token=guarded.live._token)
    (status, session), (refused, error) = answers
    assert status == 200
    claims = json.loads(base64.urlsafe_b64decode(session["token"].split(".")[1] + "=="))
    assert claims["key"] == to_text(b"h" * 32)
    assert claims["rules"] == []
    assert guarded.ask("GET", "/api/v1/status", session["token"])[0] == 401
    assert (refused, error["error"]["code"]) == (400, "bad_request")


def test_strangers_learn_no_names_by_asking_for_another_node(guarded: Guarded) -> None:
    status, answer, _ = guarded.ask("GET", "/api/v1/status", X_Swarmd_Node="zz")
    assert status == 401
    assert "n2" not in answer["error"]["message"]


def test_connections_over_tcp_take_none_from_the_socket(tmp_path: Path) -> None:
    with guarded_gateway(tmp_path, requests_max=8) as one:
        held = []
        for last in range(1, 30):
            each = socket.socket()
            each.bind((f"127.0.0.{last}", 0))
            each.connect(("127.0.0.1", one.port))
            held.append(each)
        wait_until(lambda: one.connections("loopback") == 4)
        with Client(one.live.socket) as other:
            assert other.status().node == "n1"
        for each in held:
            each.close()


def test_nobody_hands_on_more_than_they_have(guarded: Guarded) -> None:
    credential = guarded.new_key("sub", rules=["key:manage", "kv:read:app/*", "task:submit"])
    with Client(guarded.live.socket, api_key=credential) as client:
        for given in (
            {"role": "admin"},
            {"role": "viewer"},
            {"rules": ["kv:read"]},
            {"rules": ["kv:read:ap*"]},
            {"rules": ["kv:write:app/x"]},
        ):
            with pytest.raises(Forbidden, match="may not allow"):
                client.create_api_key("more", new_api_key()[1], **given)  # type: ignore[arg-type]
        client.create_api_key(
            "less", new_api_key()[1], rules=["kv:read:app/x/*", "task:submit:a", "kv:read:app/y"]
        )
    assert [one.name for one in guarded.admin.api_keys()] == ["less", "sub"]


@pytest.mark.parametrize(
    "head",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    ],
)
def test_nobody_is_taken_over_to_http_2(guarded: Guarded, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", guarded.port), 5) as one:
        one.settimeout(2)
        one.sendall(head)
        got = one.recv(4_096)
    assert b"101" not in got.split(b"\r\n")[0]
    assert not got or got.startswith(b"HTTP/1.1 ")
    assert guarded.admin.status().node == "n1"


def test_a_host_that_is_none_is_refused(guarded: Guarded) -> None:
    key = guarded.new_key("v", role="viewer")
    for host in ("[", "a]b", "localhost:x"):
        assert guarded.ask("GET", "/api/v1/status", key, Host=host)[0] in (200, 403)
    assert guarded.ask("GET", "/api/v1/status", key, Host="[")[0] == 403


def test_a_body_that_does_not_come_is_not_waited_for(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarmd.gateway.http._BODY_S", 0.2)
    monkeypatch.setattr("swarmd.gateway.http._DRAIN_S", 0.1)
    key = guarded.new_key("o", role="operator")
    head = (
        f"PUT /api/v1/kv/a HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        "Content-Length: 100\r\n\r\n"
    )
    for slowly in (False, True):
        with socket.create_connection(("127.0.0.1", guarded.port), 5) as one:
            one.sendall(head.encode())
            began = time.monotonic()
            for _ in range(20 if slowly else 0):
                time.sleep(0.05)
                with contextlib.suppress(ConnectionError):
                    one.sendall(b"x")
            one.settimeout(8)
            assert b" 504 " in one.recv(200)
            assert time.monotonic() - began < 8


def test_records_of_another_version_cost_themselves_only(guarded: Guarded) -> None:
    odd = KeyRecord("odd", b"o" * 32, "emperor", ("moon:walk", "kv:read:x"), 1)
    for name, raw in (("odd", encode_key(odd)), ("broken", b"\xc1")):
        put = Put(record_key(name), raw, 0)
        trio.from_thread.run(guarded.store.propose, [put], trio_token=guarded.live._token)
    key = guarded.new_key("v", role="viewer")
    assert guarded.ask("GET", "/api/v1/status", key)[0] == 200
    assert [one.name for one in guarded.admin.api_keys()] == ["odd", "v"]
    for name in ("odd", "broken"):
        guarded.admin.revoke_api_key(name)
    assert [one.name for one in guarded.admin.api_keys()] == ["v"]


def test_a_client_goes_on_past_a_host_that_is_gone(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarmd.base.tls_http.CONNECT_S", 0.3)
    status = guarded.admin.status()
    key = guarded.new_key("v", role="viewer")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        dead = f"https://127.0.0.1:{silent.getsockname()[1]}"
        fingerprints = f"{'ab' * 32},{status.api_fingerprint}"
        with Client([dead, *status.api], api_key=key, fingerprint=fingerprints) as client:
            assert client.status().node == "n1"


def test_a_key_file_that_asks_for_a_pass_phrase_is_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    from swarmd.identity.certificates import api_context, make_api_certificate

    certificate, raw = make_api_certificate(["localhost"], ["127.0.0.1"])
    key = serialization.load_pem_private_key(raw, None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    (tmp_path / "c").write_bytes(certificate)
    (tmp_path / "k").write_bytes(locked)
    with pytest.raises(ConfigError, match="without a pass phrase"):
        api_context(tmp_path / "c", tmp_path / "k")

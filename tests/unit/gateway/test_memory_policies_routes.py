"""Policies of namespaces by the API: who may read, write and declare, by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from access_gateway import Guarded, guarded_gateway
from memory_gateway import MemoryGateway

from swarmd.base.errors import BadRequest, Forbidden, NotFound, PolicyConflict, WouldLoseData
from swarmd.gateway.access.among import READ, WRITE, check_who, require_in
from swarmd.gateway.access.rules import ROLES, Caller
from swarmd.memory.kv import namespaces
from swarmd.memory.kv.records import Namespace

PATH = "/api/v1/memory/salaries"
RULES = ["memory:read", "memory:write"]


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    monkeypatch.setattr(namespaces, "_SPARE_S", 0.01 - namespaces.AGE_MAX_S)
    with guarded_gateway(tmp_path, gateway=MemoryGateway) as one:
        yield one


# ---- who is meant --------------------------------------------------------------------------


def key(name: str, *rules: str, role: str = "") -> Caller:
    return Caller(f"key {name}", (*ROLES.get(role, ()), *rules), key=b"h" * 32)


USER = Caller("local user 1000", ROLES["operator"])
CALLERS = {
    "ci": key("ci", *RULES),
    "viewer": key("v", role="viewer"),
    "operator": key("o", role="operator"),
    "submitter": key("s", *RULES, role="submitter"),
    "admin": key("a", role="admin"),
    "user": USER,
    "impostor": key("user:1000"),
}


@pytest.mark.parametrize(
    ("names", "may"),
    [
        ((), set(CALLERS)),
        (("viewer",), {"viewer", "operator", "user", "admin"}),
        (("operator",), {"operator", "user", "admin"}),
        (("submitter",), {"submitter", "operator", "user", "admin"}),
        (("admin",), {"admin"}),
        (("key:ci",), {"ci", "admin"}),
        (("user:1000",), {"user", "admin"}),
        (("key:ci", "viewer"), {"ci", "viewer", "operator", "user", "admin"}),
        (("key:other", "of-a-later-build"), {"admin"}),
    ],
)
def test_who_is_among_readers_and_writers(names: tuple[str, ...], may: set[str]) -> None:
    for permission, record in (
        (READ, Namespace(readers=names, writers=("key:nobody",))),
        (WRITE, Namespace(writers=names, readers=("key:nobody",))),
    ):
        for name, caller in CALLERS.items():
            if name in may:
                require_in(caller, permission, "ns", record)
                continue
            with pytest.raises(Forbidden, match=f"{caller.name} may not .*{names[0]}"):
                require_in(caller, permission, "ns", record)


def test_a_local_user_is_no_key_of_that_name() -> None:
    forged = Caller("key ci", ROLES["operator"])
    with pytest.raises(Forbidden):
        require_in(forged, READ, "ns", Namespace(readers=("key:ci",)))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("opertor", "did you mean operator?"),
        ("key:payrol", "did you mean key:payroll?"),
        ("user:ann", "is nobody"),
        ("user:", "is nobody"),
        ("payroll", "is nobody"),
        ("\udcff", "one of admin, operator, submitter, viewer, key:NAME"),
    ],
)
def test_names_of_nobody_are_refused_with_a_suggestion(name: str, hint: str) -> None:
    check_who(["viewer", "key:payroll", "user:1000"], ["payroll"])
    with pytest.raises(BadRequest) as caught:
        check_who([name], ["payroll"])
    assert hint in caught.value.message


# ---- over the API --------------------------------------------------------------------------


def test_who_is_not_named_is_refused_whatever_they_ask(guarded: Guarded) -> None:
    inside, outside = (guarded.new_key(name, rules=RULES) for name in ("payroll", "other"))
    made = guarded.admin.memory_namespace_create(
        "salaries", "eventual", readers=["key:payroll"], writers=["key:payroll", "operator"]
    )
    assert (made.readers, made.writers) == (["key:payroll"], ["key:payroll", "operator"])
    assert guarded.ask("PUT", f"{PATH}/ann", inside, {"value": 7})[0] == 200
    assert guarded.ask("GET", f"{PATH}/ann", inside)[1]["value"] == 7
    asked: list[tuple[str, str, Any]] = [
        ("GET", f"{PATH}/ann", None),
        ("GET", PATH, None),
        ("GET", "/api/v1/memory-watch/salaries", None),
        ("GET", "/api/v1/crdt/salaries/ann", None),
        ("PUT", f"{PATH}/ann", {"value": 8}),
        ("DELETE", f"{PATH}/ann", None),
        ("POST", "/api/v1/memory-compute/salaries/ann", {}),
        ("PUT", "/api/v1/memory-compute/salaries/ann", {"fence": 1, "value": 1}),
    ]
    for method, path, body in asked:
        status, answer, _ = guarded.ask(method, path, outside, body)
        assert (status, answer["error"]["code"]) == (403, "forbidden"), (method, path)
        assert "key other may not" in answer["error"]["message"]
        assert "key:payroll" in answer["error"]["message"]
    operator = guarded.new_key("boss", role="operator")
    assert guarded.ask("GET", f"{PATH}/ann", operator)[0] == 403, "a writer, and no reader"
    assert guarded.ask("PUT", f"{PATH}/bob", operator, {"value": 9})[0] == 200
    assert guarded.ask("POST", "/api/v1/memory-compute/salaries/x", operator, {})[0] == 403
    assert guarded.admin.memory_get("salaries", "ann").value == 7
    assert guarded.ask("GET", "/api/v1/memory-namespaces/salaries", outside)[1]["readers"]


def test_a_policy_takes_a_rule_of_its_own(guarded: Guarded) -> None:
    writer = guarded.new_key("writer", rules=RULES)
    path = "/api/v1/memory-namespaces/mine"
    plain = {"consistency": "eventual"}
    for more in ({"ttl_s": 5}, {"type": "string"}, {"bytes_max": 4096}, {"readers": ["admin"]}):
        status, answer, _ = guarded.ask("PUT", path, writer, {**plain, **more})
        assert status == 403
        assert "memory:manage:mine" in answer["error"]["message"]
    assert guarded.ask("PUT", path, writer, plain)[0] == 200
    assert guarded.ask("PATCH", path, writer, {"ttl_s": 5})[0] == 403
    manager = guarded.new_key("manager", rules=["memory:manage:mine"])
    assert guarded.ask("PATCH", path, manager, {"ttl_s": 5})[1]["ttl_s"] == 5.0
    other = "/api/v1/memory-namespaces/other"
    assert guarded.ask("PATCH", other, manager, {"ttl_s": 5})[0] == 403


def test_a_watch_ends_when_its_reader_is_left_out(guarded: Guarded) -> None:
    import http.client

    reader = guarded.new_key("reader", rules=RULES)
    guarded.admin.memory_set("salaries", "ann", 1)
    connection = http.client.HTTPConnection("127.0.0.1", guarded.port, timeout=10)
    connection.request(
        "GET", "/api/v1/memory-watch/salaries", headers={"Authorization": f"Bearer {reader}"}
    )
    response = connection.getresponse()
    assert b"position" in response.readline()
    guarded.admin.memory_set("salaries", "ann", 2)
    guarded.admin.memory_namespace_change("salaries", readers=["operator"])
    guarded.admin.memory_set("salaries", "ann", "the secret")
    told = response.read().decode()
    connection.close()
    assert "may not read salaries" in told
    assert "the secret" not in told


def test_policies_are_declared_changed_and_shown(guarded: Guarded) -> None:
    client = guarded.admin
    made = client.memory_namespace_create("ns", "eventual", ttl_s=60, type="string")
    assert (made.ttl_s, made.type, made.bytes_max, made.readers) == (60.0, "string", 0, [])
    entry = client.memory_set("ns", "k", "x")
    assert 50_000 < entry.expires_at_ms - entry.created_at_ms <= 60_000
    operator = guarded.new_key("o", role="operator")
    status, answer, _ = guarded.ask("PUT", "/api/v1/memory/ns/k", operator, {"value": 7})
    assert (status, answer["error"]["code"]) == (409, "wrong_type")
    client.memory_set("ns", "large", "x" * 8_000)
    with pytest.raises(PolicyConflict):
        client.memory_namespace_change("ns", type="object")
    with pytest.raises(WouldLoseData):
        client.memory_namespace_change("ns", bytes_max=4_096)
    changed = client.memory_namespace_change("ns", ttl_s=0, bytes_max=16_384, writers=["operator"])
    assert (changed.ttl_s, changed.type, changed.bytes_max) == (0.0, "string", 16_384)
    assert client.memory_namespaces() == [changed] == [client.memory_namespace("ns")]
    assert client.memory_namespace_change("ns", bytes_max=4_096, evict=True).bytes_max == 4_096
    with pytest.raises(NotFound, match="did you mean ns"):
        client.memory_namespace_change("nss", ttl_s=5)
    for body in (
        {"type": "text"},
        {"ttl_s": -1},
        {"bytes_max": 5},
        {"readers": ["nobody"]},
        {"consistency": "strong"},
        {"entries_max": 5},
        [],
    ):
        path = "/api/v1/memory-namespaces/ns"
        assert guarded.ask("PATCH", path, operator, body)[0] == 400, body

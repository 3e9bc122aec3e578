"""Rules, roles and limits, by themselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.base.errors import BadRequest, Forbidden
from swarmd.gateway.access.limits import Buckets
from swarmd.gateway.access.rules import PERMISSIONS, ROLES, Caller, check_rule, rules_of

words = st.text("ab/*:", max_size=6)


def test_roles_give_what_can_be_allowed() -> None:
    for role, rules in ROLES.items():
        assert role == "admin" or set(rules) <= set(PERMISSIONS)
        assert len(set(rules)) == len(rules)
    assert not {"key:manage", "recovery:manage", "snapshot:read"} & set(ROLES["operator"])


@given(words, words)
def test_a_rule_allows_what_it_names_and_nothing_else(pattern: str, wanted: str) -> None:
    caller = Caller("me", (f"kv:read:{pattern}",))
    if pattern == "*":
        expected = True
    elif pattern.endswith("*"):
        expected = wanted.startswith(pattern[:-1])
    else:
        expected = wanted == pattern
    assert caller.may("kv:read", wanted) == expected
    assert not caller.may("kv:write", wanted)
    assert caller.may_some("kv:read")
    assert caller.may("kv:read") == (pattern == "*")


@given(words, words, words)
def test_below_a_prefix_means_every_key_below_it(pattern: str, prefix: str, rest: str) -> None:
    caller = Caller("me", (f"kv:read:{pattern}",))
    if caller.may_below("kv:read", prefix):
        assert caller.may("kv:read", prefix + rest)


@given(words, words, words)
def test_what_may_be_given_is_no_more_than_what_one_has(mine: str, given_: str, key: str) -> None:
    giver, rule = Caller("me", (f"kv:read:{mine}",)), f"kv:read:{given_}"
    if giver.may_give(rule) and Caller("you", (rule,)).may("kv:read", key):
        assert giver.may("kv:read", key)


def test_everything_and_nothing() -> None:
    admin, nobody = Caller("a", ROLES["admin"]), Caller("n", ())
    for permission in (*PERMISSIONS, "what:ever"):
        assert admin.may(permission)
        assert admin.may_give(permission)
        assert not nobody.may(permission)
        assert not nobody.may_some(permission)
        with pytest.raises(Forbidden, match="n may not do this: it takes the rule"):
            nobody.require(permission)


def test_rules_together() -> None:
    caller = Caller("me", ("task:read:a", "task:read:b", "task:submit"))
    assert caller.may("task:read", "b")
    assert not caller.may("task:read")
    assert caller.may("task:submit")
    assert Caller("me", ("task:read:a", "task:read")).may("task:read")


@pytest.mark.parametrize("text", ["", ":", "kv", "kv:", "KV:READ", "kv:read:", "cluster:read:x"])
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(BadRequest):
        check_rule(text)
    with pytest.raises(BadRequest):
        rules_of("viewer", [text])


# ---- buckets ----------------------------------------------------------------------------


def test_a_minutes_worth_at_once_and_then_at_its_rate() -> None:
    buckets = Buckets()
    assert [buckets.wait_s("a", 60, 0.0) for _ in range(60)] == [0.0] * 60
    assert buckets.wait_s("a", 60, 0.0) == pytest.approx(1.0)
    assert buckets.wait_s("a", 60, 0.5) == pytest.approx(0.5)
    assert buckets.wait_s("a", 60, 1.0) == 0.0
    assert buckets.wait_s("b", 60, 1.0) == 0.0


@given(st.lists(st.floats(0, 10), max_size=200), st.integers(1, 50))
def test_never_more_than_a_bucket_and_what_flows_in(pauses: list[float], per_min: int) -> None:
    buckets, now, taken = Buckets(), 0.0, 0
    for pause in pauses:
        now += pause
        taken += buckets.wait_s("a", per_min, now) == 0.0
    assert taken <= per_min + now * per_min / 60 + 1e-6


def test_who_asks_under_many_names_holds_bounded_memory() -> None:
    buckets = Buckets(100)
    for number in range(1_000):
        buckets.wait_s(number, 10, 0.0)
    assert len(buckets) == 100

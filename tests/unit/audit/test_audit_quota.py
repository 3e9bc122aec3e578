"""How many records somebody may have of a kind."""

from __future__ import annotations

from swarmd.audit.quota import KEYS_MAX, LIMITS, Counted, Quota

KIND = "access.refused"
BURST, PER_S = LIMITS[KIND]


def taken(quota: Quota, actor: str, times: int, now_s: float = 0.0, kind: str = KIND) -> int:
    return sum(quota.takes(kind, actor, "forbidden", now_s) for _ in range(times))


def test_beyond_the_burst_there_are_so_many_a_second_and_the_others_are_counted() -> None:
    quota = Quota()
    assert taken(quota, "key ci", 80) == BURST
    assert quota.counted(0.0) == [Counted(KIND, "key ci", "forbidden", 30)]
    assert quota.counted(0.0) == []
    assert taken(quota, "key ci", 80, now_s=4 / PER_S) == 4


def test_nobody_has_anothers_account() -> None:
    quota = Quota()
    taken(quota, "address 10.0.0.1", 1_000)
    assert taken(quota, "key ci", 1) == taken(quota, "address 10.0.0.2", 1) == 1
    assert taken(quota, "anybody", 9_999, kind="key.created") == 9_999


def test_attempts_of_one_agent_share_its_account() -> None:
    quota = Quota()
    burst = int(LIMITS["agent.call"].burst)
    for number in range(burst):
        assert taken(quota, f"greedy/{number}/1/1", 1, kind="agent.call") == 1
    assert taken(quota, "greedy/x/1/1", 1, kind="agent.call") == 0
    assert taken(quota, "modest/x/1/1", 1, kind="agent.call") == 1


def test_strangers_from_many_addresses_hide_no_insider_and_take_no_more_memory() -> None:
    quota = Quota()
    told = sum(taken(quota, f"address {number}", 1) for number in range(5 * KEYS_MAX))
    assert told == KEYS_MAX + BURST
    assert sum(map(len, quota._accounts.values())) == KEYS_MAX + 1
    assert taken(quota, "key ci", 1) == 1
    [several] = quota.counted(1.0)
    assert several.actor == "several"
    # Accounts that are full again are forgotten.
    assert quota.counted(10 * BURST / PER_S) == []
    assert not any(quota._accounts.values())

"""Who may have how many records of a kind, so that nobody pushes out what others did. Pure.

Rules:
- Kinds that anybody can make come at will are limited, by whoever makes them come: some at once,
  then so many a second. What is beyond is counted, and the counts become records now and then.
- Strangers are limited apart from callers that are known, and whoever comes when the table is full
  shares one account with the others of that kind, so that many addresses hide no insider.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple


class Limit(NamedTuple):
    burst: float
    per_s: float


LIMITS: Final = {
    "access.refused": Limit(50.0, 0.2),
    "session.opened": Limit(20.0, 0.1),
    # By agent, whichever of its attempts.
    "agent.call": Limit(500.0, 1.0),
    "secret.read": Limit(100.0, 0.1),
    "member.overstepped": Limit(20.0, 0.01),
}
KEYS_MAX: Final = 1_000
# How `gateway.access.refusals` names who showed nothing that is known.
STRANGER: Final = "address "


class Counted(NamedTuple):
    """So many events of a kind that are in no record of their own."""

    kind: str
    actor: str
    outcome: str
    times: int


@dataclass(slots=True)
class _Account:
    room: float
    since_s: float
    skipped: int = 0
    actor: str = ""
    outcome: str = ""


class Quota:
    """See the module."""

    def __init__(self) -> None:
        self._accounts: dict[tuple[str, bool], dict[str, _Account]] = {}

    def takes(self, kind: str, actor: str, outcome: str, now_s: float) -> bool:
        """May this event have a record of its own? Else it is counted."""
        limit = LIMITS.get(kind)
        if limit is None:
            return True
        accounts = self._accounts.setdefault((kind, actor.startswith(STRANGER)), {})
        whose = actor.partition("/")[0] if kind == "agent.call" else actor
        if whose not in accounts and len(accounts) >= KEYS_MAX:
            whose = ""
        account = accounts.setdefault(whose, _Account(limit.burst, now_s))
        account.room = min(limit.burst, account.room + (now_s - account.since_s) * limit.per_s)
        account.since_s = now_s
        if account.room >= 1.0:
            account.room -= 1.0
            return True
        account.skipped += 1
        account.actor = whose or "several"
        account.outcome = outcome
        return False

    def counted(self, now_s: float) -> list[Counted]:
        """What was counted since the last time; accounts that are full again are forgotten."""
        found = []
        for (kind, _), accounts in self._accounts.items():
            limit = LIMITS[kind]
            for whose, one in list(accounts.items()):
                if one.skipped:
                    found.append(Counted(kind, one.actor, one.outcome, one.skipped))
                    one.skipped = 0
                elif one.room + (now_s - one.since_s) * limit.per_s >= limit.burst:
                    del accounts[whose]
        return found

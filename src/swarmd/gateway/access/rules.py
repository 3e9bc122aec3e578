"""What can be allowed, to whom, and how a rule is read. Pure.

A permission is `AREA:ACTION`. A rule allows one, on everything or on some: `task:submit`,
`task:submit:resize`, `kv:read:app/*`. A role is a list of rules with a name. Nothing is allowed
but what some rule allows, so a permission that this table does not name is nobody's but an
admin's.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from swarmd.base.errors import BadRequest, Forbidden

RULES_MAX: Final = 64
RULE_CHARS_MAX: Final = 512

# What each permission is for, and what its resource names; without a name it has none.
PERMISSIONS: Final[dict[str, tuple[str, str]]] = {
    "cluster:read": ("how the swarm is, and who", ""),
    "cluster:manage": ("seats, office, roles", ""),
    "node:approve": ("deny nodes that ask to join", ""),
    "node:manage": ("end a daemon; leave; tags", ""),
    "node:query": ("ask nodes how they are", ""),
    "config:read": ("a node's settings", ""),
    "metrics:read": ("what nodes measure", ""),
    "agent:read": ("agents and their copies", "AGENT"),
    "agent:logs": ("what agents print", "AGENT"),
    "agent:deploy": ("run code of yours on hosts", "AGENT"),
    "agent:remove": ("remove agents", "AGENT"),
    "task:read": ("tasks, jobs, their results", "AGENT"),
    "task:submit": ("submit tasks and jobs", "AGENT"),
    "task:cancel": ("cancel tasks and jobs", "AGENT"),
    "blob:read": ("get and list blobs", ""),
    "blob:write": ("put, pin and unpin blobs", ""),
    "kv:read": ("read keys and counters", "KEY"),
    "kv:write": ("change keys and counters", "KEY"),
    "memory:read": ("read shared memory", "NAMESPACE"),
    "memory:write": ("change it", "NAMESPACE"),
    "memory:manage": ("policies of namespaces", "NAMESPACE"),
    "vector:read": ("search vectors", "COLLECTION"),
    "vector:write": ("add and delete them", "COLLECTION"),
    "bus:read": ("watch topics of the bus", "TOPIC"),
    "bus:publish": ("publish to them", "TOPIC"),
    "event:read": ("hear user events", "NAME"),
    "event:send": ("send them to all nodes", "NAME"),
    "lease:read": ("leases, and keys on them", ""),
    "lease:write": ("grant leases, end any", ""),
    "lock:read": ("who holds a lock", "NAME"),
    "lock:write": ("hold a lock", "NAME"),
    "election:read": ("who leads", "NAME"),
    "election:write": ("stand for election", "NAME"),
    "barrier:read": ("who waits at a barrier", "NAME"),
    "barrier:write": ("wait at a barrier", "NAME"),
    "snapshot:read": ("the store in one file", ""),
    "recovery:manage": ("go on without a majority", ""),
    "secret:list": ("names of secrets, no values", "NAME"),
    "secret:set": ("give a secret a value", "NAME"),
    "secret:delete": ("delete secrets", "NAME"),
    "secret:use": ("agents that refer to it", "NAME"),
    "audit:read": ("who did what, and proofs", ""),
    "key:read": ("API keys, not their secrets", ""),
    "key:manage": ("make and revoke keys", ""),
}

_LOOK: Final = (
    "cluster:read",
    "metrics:read",
    "agent:read",
    "agent:logs",
    "task:read",
    "blob:read",
    "kv:read",
    "memory:read",
    "vector:read",
    "bus:read",
    "event:read",
    "lease:read",
    "lock:read",
    "election:read",
    "barrier:read",
)
_SUBMIT: Final = ("cluster:read", "agent:read", "task:read", "task:submit", "task:cancel")
_OPERATE: Final = (
    "cluster:manage",
    "node:approve",
    "node:manage",
    "node:query",
    "config:read",
    "agent:deploy",
    "agent:remove",
    "task:submit",
    "task:cancel",
    "blob:write",
    "kv:write",
    "memory:write",
    "memory:manage",
    "vector:write",
    "bus:publish",
    "event:send",
    "lease:write",
    "lock:write",
    "election:write",
    "barrier:write",
    "secret:list",
    "secret:set",
    "secret:delete",
    "secret:use",
)

EVERYTHING: Final = "*"
ROLES: Final[dict[str, tuple[str, ...]]] = {
    "admin": (EVERYTHING,),
    "operator": (*_LOOK, *_OPERATE),
    "submitter": (*_SUBMIT, "blob:read", "blob:write"),
    "viewer": _LOOK,
}


def check_rule(text: str) -> str:
    """`text`, if it is a rule. Raises BadRequest with what is wrong, and a suggestion."""
    if len(text) > RULE_CHARS_MAX:
        raise BadRequest(f"a rule has at most {RULE_CHARS_MAX} characters")
    if text == EVERYTHING:
        raise BadRequest("the rule * is the role admin: give that")
    permission, resource = _split(text)
    if permission not in PERMISSIONS:
        close = difflib.get_close_matches(permission, PERMISSIONS, n=1)
        hint = f"did you mean {close[0]}?" if close else "one of " + ", ".join(PERMISSIONS)
        raise BadRequest(f"{permission!r} is nothing that can be allowed; {hint}")
    if resource is not None and not PERMISSIONS[permission][1]:
        raise BadRequest(f"{permission} is allowed as a whole: leave {':' + resource!r} out")
    if resource == "":
        raise BadRequest(f"the rule {text!r} ends without naming what it is about")
    return text


def rules_of(role: str, extra: Sequence[str]) -> tuple[str, ...]:
    """The rules of a role ("" is none), and those that were given besides.

    Raises BadRequest: an unknown role, a rule that is none, or nothing is allowed at all.
    """
    if role and role not in ROLES:
        raise BadRequest(f"the role {role!r} does not exist: one of {', '.join(ROLES)}")
    if len(extra) > RULES_MAX:
        raise BadRequest(f"at most {RULES_MAX} rules go with one key")
    found = (*ROLES.get(role, ()), *map(check_rule, extra))
    if not found:
        raise BadRequest("it would be allowed nothing: give a role, a rule, or both")
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Caller:
    """Who asks, and the rules that say what for.

    `key` is the API key's hash, empty for a local user; `session` means that a token stood in
    for either, until `ends_s` (Unix time).
    """

    name: str
    rules: tuple[str, ...]
    key: bytes = b""
    session: bool = False
    ends_s: int = 0
    requests_per_min: int = 0

    @cached_property
    def _on(self) -> dict[str, tuple[str, ...] | None]:
        return _by_permission(self.rules)

    @property
    def may_everything(self) -> bool:
        return EVERYTHING in self.rules

    def may(self, permission: str, resource: str | None = None) -> bool:
        """On `resource`; None asks for all there are."""
        if self.may_everything:
            return True
        if permission not in self._on:
            return False
        allowed = self._on[permission]
        if allowed is None:
            return True
        return resource is not None and any(_fits(one, resource) for one in allowed)

    def may_some(self, permission: str) -> bool:
        """On something at least; what on is asked when it is known."""
        return self.may_everything or permission in self._on

    def may_below(self, permission: str, prefix: str) -> bool:
        """On everything whose name begins with `prefix`."""
        if self.may(permission):
            return True
        allowed = self._on.get(permission) or ()
        return any(one.endswith("*") and prefix.startswith(one[:-1]) for one in allowed)

    def may_give(self, rule: str) -> bool:
        """Nobody hands on more than they have."""
        if rule == EVERYTHING:
            return self.may_everything
        permission, resource = _split(rule)
        if resource is not None and resource.endswith("*"):
            return self.may_below(permission, resource[:-1])
        return self.may(permission, resource)

    def require(self, permission: str, resource: str | None = None) -> None:
        """Raises Forbidden."""
        if not self.may(permission, resource):
            raise self.refusal(permission, resource or "")

    def require_below(self, permission: str, prefix: str) -> None:
        """Raises Forbidden."""
        if not self.may_below(permission, prefix):
            raise self.refusal(permission, prefix + "*")

    def refusal(self, permission: str, resource: str = "") -> Forbidden:
        """What to raise when it may not."""
        rule = permission + (f":{resource}" if resource else "")
        return Forbidden(
            f"{self.name} may not do this: it takes the rule {rule[:200]}; an admin makes a key "
            f"with it: `swarmctl key create NAME --allow {rule[:200]}`"
        )


def _by_permission(rules: Sequence[str]) -> dict[str, tuple[str, ...] | None]:
    """The resources each permission is given on; None is all."""
    found: dict[str, tuple[str, ...] | None] = {}
    for rule in rules:
        permission, resource = _split(rule)
        before = found.get(permission, ())
        if resource in (None, EVERYTHING) or before is None:
            found[permission] = None
        else:
            assert resource is not None
            found[permission] = (*before, resource)
    return found


def _split(rule: str) -> tuple[str, str | None]:
    """The permission, and the resource; None is all. A resource may itself hold colons."""
    area, _, rest = rule.partition(":")
    action, colon, resource = rest.partition(":")
    return f"{area}:{action}", resource if colon else None


def _fits(pattern: str, resource: str) -> bool:
    if pattern.endswith("*"):
        return resource.startswith(pattern[:-1])
    return resource == pattern

"""Who is meant by the readers and writers that a namespace of shared memory names. Pure.

    viewer, submitter, operator, admin    whoever may all that this role may
    key:NAME                              who shows this API key, or a session in its place
    user:UID                              this user of the node's own host, by the socket

They narrow down what rules allow, and allow nothing themselves. Who may everything is never left
out: who changes policies could let itself in anyway.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Final

from swarmd.base.errors import BadRequest, Forbidden
from swarmd.gateway.access.rules import ROLES, Caller
from swarmd.memory.kv.records import Namespace

READ: Final = "memory:read"
WRITE: Final = "memory:write"
_KEY: Final = "key:"
_USER: Final = "user:"


def check_who(names: Iterable[str], keys: Collection[str]) -> None:
    """Whether these are names of somebody.

    Args:
        keys: names of the API keys that there are.

    Raises:
        BadRequest: one is not; with a suggestion.
    """
    known = [*ROLES, *(_KEY + name for name in keys)]
    for name in names:
        user = name.removeprefix(_USER)
        if name in known or (user != name and user.isascii() and user.isdigit()):
            continue
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(ROLES)}, key:NAME"
        raise BadRequest(f"{name[:200]!r} is nobody who reads or writes: nothing changed; {hint}")


def require_in(caller: Caller, permission: str, namespace: str, record: Namespace) -> None:
    """Raises Forbidden: the namespace names others alone. What rules say is asked before."""
    names = record.readers if permission == READ else record.writers
    if names and not any(_is(caller, name) for name in names):
        does, who = ("read", "reader") if permission == READ else ("write to", "writer")
        raise Forbidden(
            f"{caller.name} may not {does} {namespace}, for its {who}s are {', '.join(names)}; an "
            f"operator lets others in: `swarmctl mem namespace set {namespace} --{who} WHO`"
        )


def _is(caller: Caller, name: str) -> bool:
    if caller.may_everything:
        return True
    if name.startswith(_KEY):
        return bool(caller.key) and caller.name == f"key {name.removeprefix(_KEY)}"
    if name.startswith(_USER):
        return not caller.key and caller.name == f"local user {name.removeprefix(_USER)}"
    return all(map(caller.may_give, ROLES.get(name, ("*",))))

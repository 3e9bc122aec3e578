"""The gate before every endpoint: who asks, may they, and do they ask too often.

Where a request came in decides what it must show:
- the unix socket: nothing; the kernel tells the user. The daemon's own user and root are admins,
  anybody else whom the socket's mode lets in has the role `gateway.socket_group_role`.
- a TCP port: an API key or a session, in `Authorization: Bearer`. Any local user can connect to
  a loopback port, so that is no exception.
- another member: nothing; it names the caller that it let in itself, and that caller's rules.

A credential that is shown counts wherever it is shown: whoever asks over the socket with a key
may do what the key may.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.types import Scope

from swarmd.base.clock import Clock
from swarmd.base.errors import NotReady, RateLimited, Unauthenticated
from swarmd.gateway.access.limits import Buckets
from swarmd.gateway.access.rules import ROLES, Caller
from swarmd.gateway.access.service import Access
from swarmd.gateway.config import GatewayConfig
from swarmd.observe.metrics import DROPPED

# What a route needs: a permission, or one of these.
ANYBODY: Final = "anybody"
ANY_CALLER: Final = "any caller"

_CREDENTIAL_CHARS_MAX: Final = 8_192
_CALLER: Final = "caller"
_ORIGIN: Final = "origin"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came in: over the socket (`uid`), TCP (`address`), or a member (`via`), which
    says who the `caller` is.

    `remote`: over a listener that other hosts reach.
    """

    uid: int = -1
    address: str = ""
    remote: bool = False
    caller: Caller | None = None
    via: bytes = b""


def mark(scope: Scope, origin: Origin) -> None:
    """Say where the request of `scope` came in."""
    scope.setdefault("swarmd", {})[_ORIGIN] = origin


def origin_of(scope: Scope) -> Origin:
    """What `mark` said; a request that nobody marked came from nowhere that is trusted."""
    found: Origin = scope.get("swarmd", {}).get(_ORIGIN, Origin())
    return found


def caller_of(request: Request) -> Caller:
    """Who asks. To be called by endpoints, which are behind the gate."""
    caller: Caller = request.scope["swarmd"][_CALLER]
    return caller


class Gate:
    """See the module. `access` is the swarm's part: None while the node is in none."""

    def __init__(self, config: GatewayConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._buckets = Buckets()
        self._own_uid = os.geteuid()

    def admit(self, request: Request, needs: str, access: Access | None) -> None:
        """Let a request pass that may, and remember who asks.

        Raises:
            Unauthenticated: nothing was shown, or nobody is known by it.
            Forbidden: the caller's rules do not allow it.
            RateLimited: too many requests from there.
            NotReady: a credential cannot be judged yet.
        """
        caller = self.identify(request, access, anybody=needs == ANYBODY)
        if needs not in (ANYBODY, ANY_CALLER) and not caller.may_some(needs):
            DROPPED.labels("gateway", "forbidden").inc()
            raise caller.refusal(needs)

    def identify(self, request: Request, access: Access | None, *, anybody: bool = False) -> Caller:
        """Who asks, whatever for. Raises as `admit`, Forbidden aside."""
        origin = origin_of(request.scope)
        state: dict[str, Any] = request.scope.setdefault("swarmd", {})
        if _CALLER in state:  # It came by on its way to this very node.
            return caller_of(request)
        credential = request.headers.get("authorization", "")
        caller = origin.caller
        if caller is None and credential:
            caller = self._by_credential(origin, credential, access)
        elif caller is None and origin.uid >= 0:
            caller = self._local(origin.uid)
        elif caller is None:
            self._count_stranger(origin)
            if not anybody:
                raise Unauthenticated(
                    "this takes an API key or a session, as `Authorization: Bearer ...`; an admin "
                    "makes one with `swarmctl key create`"
                )
            caller = Caller("anybody", ())
        state[_CALLER] = caller
        return caller

    def _by_credential(self, origin: Origin, header: str, access: Access | None) -> Caller:
        scheme, _, credential = header.partition(" ")
        try:
            if scheme.lower() != "bearer" or len(credential) > _CREDENTIAL_CHARS_MAX:
                raise Unauthenticated("credentials are shown as `Authorization: Bearer ...`")
            if access is None:
                raise NotReady("this node is in no swarm yet, so it knows no API keys")
            caller = access.caller_of(credential.strip())
        except Unauthenticated:
            DROPPED.labels("gateway", "unauthenticated").inc()
            self._count_stranger(origin)
            raise
        limit = caller.requests_per_min or self._config.key_requests_per_min
        self._count(("caller", caller.key or caller.name), limit, caller.name)
        return caller

    def _local(self, uid: int) -> Caller:
        if uid in (0, self._own_uid):
            return Caller(f"local user {uid}", ROLES["admin"])
        return Caller(f"local user {uid}", ROLES[self._config.socket_group_role])

    def _count_stranger(self, origin: Origin) -> None:
        if origin.uid < 0:
            whose, limit = origin.address or "unknown", self._config.stranger_requests_per_min
            self._count(("address", whose), limit, whose)

    def _count(self, whose: tuple[str, object], per_min: int, name: str) -> None:
        wait_s = self._buckets.wait_s(whose, per_min, self._clock.now())
        if wait_s:
            DROPPED.labels("gateway", "rate_limited").inc()
            raise RateLimited(
                f"{name} may ask {per_min} times a minute: try again in {wait_s:.1f} s", wait_s
            )

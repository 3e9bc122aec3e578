"""Refused requests in the audit log: each by itself, unless somebody makes very many."""

from __future__ import annotations

from typing import Final

import trio
from starlette.requests import Request

from swarmd.base.errors import Forbidden, RateLimited, SwarmError, Unauthenticated
from swarmd.base.notes import Notes
from swarmd.gateway.access.gate import origin_of
from swarmd.gateway.access.rules import Caller

KIND: Final = "access.refused"
# A guesser must not push out what matters: beyond so many at once, then by the second, refusals
# are counted in the next record.
BURST: Final = 50.0
PER_S: Final = 5.0


class Refusals:
    """How many were told of late."""

    def __init__(self) -> None:
        self._room = BURST
        self._since = 0.0
        self._skipped = 0

    def note(self, notes: Notes | None, request: Request, error: SwarmError) -> None:
        """Take note, if `error` refuses the caller; other errors are no matter of access."""
        if notes is None or not isinstance(error, Forbidden | RateLimited | Unauthenticated):
            return
        now = trio.current_time()
        self._room = min(BURST, self._room + (now - self._since) * PER_S)
        self._since = now
        if self._room < 1.0:
            self._skipped += 1
            return
        self._room -= 1.0
        details = f"and {self._skipped} more before it" if self._skipped else ""
        self._skipped = 0
        subject = f"{request.method} {request.scope.get('path', '')}"
        notes.note(KIND, _who(request), subject, error.code, details)


def _who(request: Request) -> str:
    """The caller, if it is known, and where the request came in."""
    origin = origin_of(request.scope)
    caller: Caller | None = request.scope.get("swarmd", {}).get("caller")
    place = f"address {origin.address}" if origin.address else ""
    if caller is not None:
        return f"{caller.name}, {place}" if place else caller.name
    if origin.caller is not None:
        return origin.caller.name
    return place or f"local user {origin.uid}"

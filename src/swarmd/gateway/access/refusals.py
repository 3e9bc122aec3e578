"""Refused requests in the audit log, which counts those of whoever makes very many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from starlette.requests import Request

from swarmd.base.errors import Forbidden, RateLimited, SwarmError, Unauthenticated
from swarmd.base.notes import Notes
from swarmd.gateway.access.gate import origin_of
from swarmd.gateway.access.rules import Caller

KIND: Final = "access.refused"
# Paths are what a stranger likes.
SUBJECT_CHARS_MAX: Final = 80


def note_refusal(
    notes: Notes | None, name_of: Callable[[bytes], str], request: Request, error: SwarmError
) -> None:
    """Take note, if `error` refuses the caller; other errors are no matter of access."""
    if notes is None or not isinstance(error, Forbidden | RateLimited | Unauthenticated):
        return
    subject = f"{request.method[:8]} {request.scope.get('path', '')}"
    if len(subject) > SUBJECT_CHARS_MAX:
        subject = subject[: SUBJECT_CHARS_MAX - 1] + "…"
    notes.note(KIND, _who(request, name_of), subject, error.code)


def _who(request: Request, name_of: Callable[[bytes], str]) -> str:
    """The caller, if it is known, and where the request came in."""
    origin = origin_of(request.scope)
    caller: Caller | None = request.scope.get("swarmd", {}).get("caller") or origin.caller
    place = f"address {origin.address}" if origin.address else ""
    if caller is None:
        return place or f"local user {origin.uid}"
    if origin.via:
        return f"{caller.name} via {name_of(origin.via)}"
    return f"{caller.name}, {place}" if place else caller.name

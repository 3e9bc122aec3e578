"""How a room says what happened to whoever keeps a record of it, without knowing who that is."""

from __future__ import annotations

from typing import Final, Protocol


class Notes(Protocol):
    """Takes note of events. See `audit.service.Audit`, which keeps them."""

    def note(
        self, kind: str, actor: str = "", subject: str = "", outcome: str = "ok", details: str = ""
    ) -> None:
        """Say that something happened. Returns at once and never raises.

        Args:
            kind: what, as `AREA.EVENT`.
            actor: who did it.
            subject: what it was done to.
            outcome: `ok`, or the code of an error.
            details: a few words. Never a secret, nor what users' data hold.
        """
        ...


class _Nobody:
    def note(
        self, kind: str, actor: str = "", subject: str = "", outcome: str = "ok", details: str = ""
    ) -> None:
        return


NOBODY: Final[Notes] = _Nobody()
"""Keeps nothing."""

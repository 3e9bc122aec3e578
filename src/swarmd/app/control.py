"""What the API may ask of the node itself: is it ready, stop, leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio

from swarmd.base.errors import SwarmError
from swarmd.observe.log import get_logger

if TYPE_CHECKING:
    from swarmd.state.raft.service import Store

HAND_OVER_TIMEOUT_S: Final = 10.0
WAYS_IN: Final = (
    "this node is in no swarm yet: make one with `swarmd --init NAME`, or join one with "
    "`swarmd --join -` and a token from `swarmctl token create` on a member"
)

_log = get_logger("app")


class NodeControl:
    """One node's life: starting, in no swarm, ready, stopping."""

    def __init__(self) -> None:
        self._reason = "it is still starting"
        self._stopping = trio.Event()
        self.store: Store | None = None

    # ---- for the API ------------------------------------------------------------------

    def not_ready(self) -> str:
        """Why the node takes no work now; empty if it does."""
        return self._reason

    def stop(self) -> None:
        """Begin to drain and end; returns at once."""
        self._reason = "it is stopping"
        self._stopping.set()

    async def leave(self, *, force: bool) -> Sequence[str]:
        """Hand the voter's seat on, then begin to end. Returns warnings.

        Raises:
            SwarmError: the seat could not be handed on and not `force`. The node stays.
        """
        warnings: list[str] = []
        if self.store is not None:
            try:
                await self.store.hand_over_seat(HAND_OVER_TIMEOUT_S)
            except SwarmError as error:
                if not force:
                    raise
                warnings.append(f"left by force, with its seat: {error.message}")
                _log.warning("leaving by force", why=error.message)
        self.stop()
        return warnings

    # ---- for the app ------------------------------------------------------------------

    def now_ready(self) -> None:
        if not self._stopping.is_set():
            self._reason = ""

    def now_without_swarm(self) -> None:
        self._reason = WAYS_IN

    async def wait_stop(self) -> None:
        await self._stopping.wait()

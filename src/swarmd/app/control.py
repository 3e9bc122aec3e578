"""What the API may ask of the node itself: is it ready, stop, leave."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from swarmd.base.errors import SwarmError
from swarmd.observe.log import get_logger

if TYPE_CHECKING:
    from swarmd.state.blobs.service import Blobs
    from swarmd.state.crdt.service import Eventual
    from swarmd.state.raft.service import Store

HAND_OVER_TIMEOUT_S: Final = 10.0
BLOBS_TIMEOUT_S: Final = 15.0
# Without progress, and altogether; `LEAVE_TIMEOUT_S` is above the sum.
SHARDS_TIMEOUT_S: Final = 15.0
SHARDS_MAX_S: Final = 300.0
WAYS_IN: Final = (
    "this node is in no swarm yet: make one with `swarmd --init NAME`, or join one with "
    "`swarmd --join -` and a token from `swarmctl token create` on a member, or with "
    "`swarmd --join` alone, and have an admin approve it"
)

_log = get_logger("app")


class NodeControl:
    """One node's life: starting, in no swarm, ready, stopping."""

    def __init__(self) -> None:
        self._reason = "it is still starting"
        self._stopping = trio.Event()
        self.leaves = False
        """True if the node gives its seat up and is not expected back."""
        self.store: Store | None = None
        self.blobs: Blobs | None = None
        self.eventual: Eventual | None = None

    # ---- for the API ------------------------------------------------------------------

    def not_ready(self) -> str:
        """Why the node takes no work now; empty if it does."""
        return self._reason

    def stop(self) -> None:
        """Begin to drain and end; returns at once."""
        self._reason = "it is stopping"
        self._stopping.set()

    async def leave(self, *, force: bool) -> Sequence[str]:
        """Hand on what only this node has or does, then begin to end.

        That is the voter's seat, what others lack of the blobs, and the shards of namespaces that
        live on a few nodes; these last, for this node serves them no more from then on.

        Args:
            force: leave also with what could not be handed on; the rest is handed on all the same.

        Returns warnings.

        Raises:
            SwarmError: something could not be handed on and not `force`. The node stays.
        """
        warnings: list[str] = []
        try:
            for hand_over in self._duties():
                try:
                    await hand_over()
                except SwarmError as error:
                    if not force:
                        raise
                    warnings.append(f"left by force, with what it held: {error.message}")
                    _log.warning("leaving by force", why=error.message)
            self.leaves = True
        finally:
            if not self.leaves:
                self._stay()
        self.stop()
        return warnings

    def _duties(self) -> Iterator[Callable[[], Awaitable[None]]]:
        """What has to be handed on before the node may go, in this order."""
        if self.store is not None:
            yield partial(self.store.hand_over_seat, HAND_OVER_TIMEOUT_S)
        if self.blobs is not None:
            yield partial(self.blobs.hand_over, BLOBS_TIMEOUT_S)
        if self.eventual is not None:
            yield partial(self.eventual.hand_over, SHARDS_TIMEOUT_S, SHARDS_MAX_S)

    def _stay(self) -> None:
        if self.store is not None:
            self.store.stay()
        if self.eventual is not None:
            self.eventual.stay()

    # ---- for the app ------------------------------------------------------------------

    def now_ready(self) -> None:
        if not self._stopping.is_set():
            self._reason = ""

    def now_waiting(self, reason: str) -> None:
        """It waits for somebody; those who ask are told for whom."""
        if not self._stopping.is_set():
            self._reason = reason

    def now_without_swarm(self) -> None:
        self._reason = WAYS_IN

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    async def wait_stop(self) -> None:
        await self._stopping.wait()

"""The second argument of every agent: what it may know and say while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable

_PROGRESS_EVERY_S = 0.05


class Context:
    """One attempt as its agent sees it. Usable from any thread of the agent.

    Attributes:
        task_id: id of the task.
        attempt: 1 for the first attempt, then 2 and so on.
        fence: number that rises with every attempt at any task. Pass it to outside systems
            that can refuse a smaller one: it shuts out attempts that were replaced.
        idempotency_key: equal for all attempts at one task. Pass it to outside systems that
            do a thing once per key.
    """

    __slots__ = (
        "_cancel_came",
        "_cancelled",
        "_last_progress_s",
        "_send_log",
        "_send_progress",
        "attempt",
        "fence",
        "task_id",
    )

    def __init__(
        self,
        task_id: str,
        attempt: int,
        fence: int,
        send_log: Callable[[str], None],
        send_progress: Callable[[float, float], None],
        cancel_came: Callable[[], bool],
    ) -> None:
        self.task_id = task_id
        self.attempt = attempt
        self.fence = fence
        self._cancelled = False
        self._last_progress_s = 0.0
        self._send_log = send_log
        self._send_progress = send_progress
        self._cancel_came = cancel_came

    @property
    def idempotency_key(self) -> str:
        return self.task_id

    @property
    def cancelled(self) -> bool:
        """True once the attempt was cancelled: return soon, or the process is killed.

        Asking costs a microsecond: ask as often as you like.
        """
        if not self._cancelled:
            self._cancelled = self._cancel_came()
        return self._cancelled

    def log(self, message: object) -> None:
        """Add a line to the agent's log."""
        self._send_log(str(message))

    def progress(self, done: float, total: float) -> None:
        """Tell how far the work is; at most twenty times a second is passed on."""
        now = time.monotonic()
        if done < total and now - self._last_progress_s < _PROGRESS_EVERY_S:
            return
        self._last_progress_s = now
        self._send_progress(float(done), float(total))

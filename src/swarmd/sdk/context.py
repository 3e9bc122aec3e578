"""The second argument of every agent: what it may know and say while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from operator import index

from swarmd.sdk.protocol import ADD, BARRIER, COUNT, LOCK, UNLOCK

TYPE_CHECKING = False  # The module `typing` costs time at every start.
if TYPE_CHECKING:
    from swarmd.sdk.bus import Bus, Wire

_PROGRESS_EVERY_S = 0.05

# (what, name, first, second) -> (value, lease); raises the SwarmError that is the answer.
Ask = Callable[[int, str, int, int], tuple[int, int]]


def _no_wire() -> Wire:
    raise RuntimeError("this context has no swarm to ask")


def _nobody_to_ask(what: int, name: str, first: int, second: int) -> tuple[int, int]:
    raise RuntimeError("this context has no swarm to ask")


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
        "_ask",
        "_bus",
        "_cancel_came",
        "_cancelled",
        "_last_progress_s",
        "_send_log",
        "_send_progress",
        "_wire",
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
        ask: Ask = _nobody_to_ask,
        wire: Callable[[], Wire] = _no_wire,
    ) -> None:
        self.task_id = task_id
        self.attempt = attempt
        self.fence = fence
        self._cancelled = False
        self._last_progress_s = 0.0
        self._send_log = send_log
        self._send_progress = send_progress
        self._cancel_came = cancel_came
        self._ask = ask
        self._wire = wire
        self._bus: Bus | None = None

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

    @property
    def bus(self) -> Bus:
        """Messages to and from other agents and programs; see `swarmd.sdk.bus`."""
        if self._bus is None:
            # Imported when an agent uses it: a worker that does not must start fast.
            from swarmd.sdk.bus import Bus

            self._bus = Bus(self._wire, self.task_id)
        return self._bus

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

    def lock(self, name: str, *, ttl_s: float = 15.0, wait_s: float = 60.0) -> Lock:
        """Hold a lock of the swarm for the length of a `with` block, which is given its fence.

            with context.lock("index") as fence:
                write(index, fence=fence)

        One holder in the whole swarm, in the order of asking. It is renewed while the block
        runs. If it cannot be, the process is killed before anybody else can have the lock, and
        the attempt fails with `lock_lost`. It ends with the attempt in any case.

        Args:
            ttl_s: how long others wait if this node dies.
            wait_s: longest wait for the turn; then the block raises `LockHeld`.
        """
        return Lock(self._ask, name, ttl_s, wait_s)

    def barrier(self, name: str, count: int, *, wait_s: float = 60.0) -> int:
        """Wait until `count` attempts or programs have come to the barrier; its fence.

        Raises `BarrierWaits` if not enough came in time.
        """
        return self._ask(BARRIER, _text(name), index(count), _ms(wait_s))[0]

    def counter(self, name: str) -> Counter:
        """A number that the whole swarm counts. A repeated attempt counts again."""
        return Counter(self._ask, name)


class Lock:
    """Made by `Context.lock`."""

    __slots__ = ("_ask", "_lease", "_name", "_ttl_s", "_wait_s")

    def __init__(self, ask: Ask, name: str, ttl_s: float, wait_s: float) -> None:
        self._ask = ask
        self._name = _text(name)
        self._ttl_s = ttl_s
        self._wait_s = wait_s
        self._lease = 0

    def __enter__(self) -> int:
        if self._lease:
            raise RuntimeError(f"the lock {self._name!r} is held by this block already")
        fence, self._lease = self._ask(LOCK, self._name, _ms(self._ttl_s), _ms(self._wait_s))
        return fence

    def __exit__(self, *_: object) -> None:
        lease, self._lease = self._lease, 0
        self._ask(UNLOCK, self._name, lease, 0)


class Counter:
    """Made by `Context.counter`."""

    __slots__ = ("_ask", "_name")

    def __init__(self, ask: Ask, name: str) -> None:
        self._ask = ask
        self._name = _text(name)

    def add(self, delta: int = 1) -> int:
        """Add; the new value."""
        return self._ask(ADD, self._name, index(delta), 0)[0]

    @property
    def value(self) -> int:
        """The value now; 0 if nothing was counted yet."""
        return self._ask(COUNT, self._name, 0, 0)[0]


def _ms(seconds: float) -> int:
    return round(seconds * 1_000)


def _text(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a name is a str, not {type(name).__name__}")
    return name

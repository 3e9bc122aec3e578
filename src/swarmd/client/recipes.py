"""Locks, elections, barriers and counters, as a program beside the daemons uses them.

Waiting goes on over any number of requests, at whichever daemon answers. A place belongs to
whoever knows its lease, not to a daemon: if one goes, the next is asked to go on with it.

What is held must be renewed, well before its TTL has passed since the *sending* of the last
renewal that succeeded. `acquire_lock` renews once it has the lock, so that the time from its
call's end is the whole TTL, less that one request. Pass the fence on to what the lock guards.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

from swarmd.base.errors import LockLost, SwarmError, Unavailable
from swarmd.base.names import checked_name
from swarmd.client.requests import RETRY_PAUSE_S, DaemonDown, Requests
from swarmd.gateway import shapes

# What one request waits for at most, and how far that stays below the timeout for any answer.
POLL_S: Final = 25.0
_POLL_SHARE: Final = 0.5
TTL_S: Final = 15.0
WAIT_S: Final = 60.0
_REQUEST_BYTES: Final = 16


def default_owner() -> str:
    """This process, for people."""
    return f"{socket.gethostname()} pid {os.getpid()}"


class RecipeCalls(Requests):
    """A part of `Client`."""

    # ---- locks -----------------------------------------------------------------------

    def acquire_lock(
        self, name: str, *, owner: str = "", ttl_s: float = TTL_S, wait_s: float = WAIT_S
    ) -> shapes.Standing:
        """Hold a lock; the answer has its `lease` and its `fence`.

        Args:
            owner: who asks, for people; this host and process if empty.
            ttl_s: how long it holds after the last renewal.
            wait_s: longest wait for the turn, which comes in the order of asking; 0: none.

        Raises:
            LockHeld: somebody else has it; the message says who. Nothing is left behind.
            SwarmError: the swarm could not be asked; what was begun ends with the TTL.
        """
        body = {"owner": owner or default_owner(), "ttl_ms": round(ttl_s * 1_000)}
        return self._take("locks", name, body, wait_s)

    def renew_lock(self, name: str, lease: int) -> shapes.Done:
        """Raises LockLost: it has ended. Other errors: it may or may not be renewed."""
        return self._renew("locks", name, lease)

    def release_lock(self, name: str, lease: int) -> shapes.Done:
        """Raises LockLost: it had ended before."""
        return self._release("locks", name, lease)

    def locks(self) -> list[shapes.LineInfo]:
        """Locks that are held, by name."""
        return self._get("/locks", list[shapes.LineInfo])

    def lock(self, name: str) -> shapes.LineInfo:
        """Who holds a lock and who waits for it."""
        return self._get(_path("locks", name), shapes.LineInfo)

    # ---- elections -------------------------------------------------------------------

    def campaign(
        self,
        name: str,
        *,
        owner: str = "",
        value: bytes = b"",
        ttl_s: float = TTL_S,
        wait_s: float = WAIT_S,
    ) -> shapes.Standing:
        """Lead; like `acquire_lock`. `value` tells others about the leader."""
        ttl_ms = round(ttl_s * 1_000)
        body = {"owner": owner or default_owner(), "ttl_ms": ttl_ms, "value": value}
        return self._take("elections", name, body, wait_s)

    def renew_election(self, name: str, lease: int) -> shapes.Done:
        return self._renew("elections", name, lease)

    def resign(self, name: str, lease: int) -> shapes.Done:
        return self._release("elections", name, lease)

    def elections(self) -> list[shapes.LineInfo]:
        return self._get("/elections", list[shapes.LineInfo])

    def election(self, name: str) -> shapes.LineInfo:
        """Who leads and who waits to."""
        return self._get(_path("elections", name), shapes.LineInfo)

    def observe(self, name: str, *, retry_s: float = 30.0) -> Iterator[shapes.LineInfo]:
        """The election now, and whenever another leads or nobody does; for ever.

        Leaders that come and go between two looks are not told. Raises SwarmError: no daemon
        could be asked for `retry_s` seconds.
        """
        path, after, wait_ms = _path("elections", name), -1, "0"
        deadline = time.monotonic() + retry_s
        while True:
            query = {"after": str(max(after, 0)), "wait_ms": wait_ms}
            try:
                line = self._get(path, shapes.LineInfo, query)
            except SwarmError as error:
                if not error.retryable or time.monotonic() >= deadline:
                    raise
                self._next_socket()
                time.sleep(RETRY_PAUSE_S)
                continue
            deadline = time.monotonic() + retry_s
            wait_ms = str(round(self.poll_s * 1_000))
            fence = line.holder.revision if line.holder is not None else 0
            if fence != after:
                after = fence
                yield line

    # ---- barriers --------------------------------------------------------------------

    def barrier(
        self,
        name: str,
        count: int,
        *,
        owner: str = "",
        ttl_s: float = TTL_S,
        wait_s: float = WAIT_S,
    ) -> shapes.Standing:
        """Wait until `count` have come; all of them get the same fence.

        Raises:
            BarrierWaits: not enough came in time; this one does not count any more.
            BarrierMismatch: those who wait there gave another count.
        """
        ttl_ms = round(ttl_s * 1_000)
        body = {"owner": owner or default_owner(), "ttl_ms": ttl_ms, "count": count}
        standing = self._take("barriers", name, body, wait_s)
        with contextlib.suppress(SwarmError):  # It ends with its TTL as well.
            self._release("barriers", name, standing.lease)
        return standing

    def barrier_state(self, name: str) -> shapes.LineInfo:
        """Who stands at a barrier."""
        return self._get(_path("barriers", name), shapes.LineInfo)

    # ---- counters --------------------------------------------------------------------

    def counter(self, name: str) -> shapes.CounterInfo:
        """A counter, which is a key that holds a number; 0 if there is none."""
        return self._get(_path("counters", name), shapes.CounterInfo)

    def counter_add(self, name: str, delta: int = 1) -> shapes.CounterInfo:
        """Add; the answer has the new value. After an error it may or may not be added."""
        path = _path("counters", name)
        return self._call("POST", path, {"delta": delta}, kind=shapes.CounterInfo)

    @property
    def poll_s(self) -> float:
        return min(POLL_S, self._timeout_s * _POLL_SHARE)

    # ---- how places are taken --------------------------------------------------------

    def _take(self, what: str, name: str, body: dict[str, Any], wait_s: float) -> shapes.Standing:
        """Ask and wait for the turn, then renew, so that the whole TTL is ahead."""
        path = _path(what, name)
        turn = _Turn(self, path, body, wait_s)
        try:
            standing = turn.wait()
            if what != "barriers":
                self._renew(what, name, standing.lease)
        except (LockLost, Unavailable):
            turn.abandon()
            raise
        except SwarmError:
            raise  # Refused: nothing was left there.
        except BaseException:
            turn.abandon()
            raise
        return standing

    def _renew(self, what: str, name: str, lease: int) -> shapes.Done:
        path = _path(what, name) + "/renew"
        return self._call("POST", path, {"lease": lease}, kind=shapes.Done, safe=True)

    def _release(self, what: str, name: str, lease: int) -> shapes.Done:
        """Safe to repeat: that it had ended before may then mean that this call ended it."""
        path = _path(what, name) + "/release"
        return self._call("POST", path, {"lease": lease}, kind=shapes.Done, safe=True)


def _path(what: str, name: str) -> str:
    """Raises BadName."""
    return f"/{what}/{quote(checked_name(name), safe='')}"


class _Turn:
    """One place on its way to its turn."""

    def __init__(self, client: RecipeCalls, path: str, body: dict[str, Any], wait_s: float) -> None:
        self._client = client
        self._path = path
        self._body = body
        self._deadline = time.monotonic() + wait_s
        self._request = secrets.token_bytes(_REQUEST_BYTES)
        self._lease = 0
        self._asked = False

    def wait(self) -> shapes.Standing:
        heard, poll_s = False, self._client.poll_s
        while True:
            left_s = self._deadline - time.monotonic()
            try:
                standing = self._ask(min(max(left_s, 0.0), poll_s), keep=left_s > poll_s)
            except LockLost:
                # The swarm was out of reach for longer than the TTL: stand in line anew.
                self._lease, self._request = 0, secrets.token_bytes(_REQUEST_BYTES)
                if left_s <= 0:
                    raise
                continue
            except Unavailable as error:
                gone = isinstance(error, DaemonDown) and not heard
                if gone or time.monotonic() >= self._deadline:
                    raise
                self._client._next_socket()
                time.sleep(RETRY_PAUSE_S)
                continue
            heard = True
            self._lease = standing.lease
            if standing.fence:
                return standing

    def _ask(self, wait_s: float, *, keep: bool) -> shapes.Standing:
        body = {
            **self._body,
            "wait_ms": round(wait_s * 1_000),
            "keep": keep,
            "lease": self._lease,
            "request": self._request,
        }
        self._asked = True
        return self._client._call("POST", self._path, body, kind=shapes.Standing, safe=True)

    def abandon(self) -> None:
        """Leave nothing behind, also when it is not known what there is."""
        self._client.close()
        if not self._asked:
            return
        with contextlib.suppress(SwarmError):
            if not self._lease:
                self._lease = self._ask(0.0, keep=False).lease
            release = f"{self._path}/release"
            self._client._call("POST", release, {"lease": self._lease}, kind=shapes.Done, safe=True)

"""Pipes: bytes both ways that worker threads carry, over a socket (`mesh.link.Pipe`).

In frames a quarter of a megabyte took each loop some twenty turns, most of them trio's, whose TLS
stream takes a lock, and with it a turn, before each read and each write. Here a thread at either
end reads, writes and waits by itself, and the loop only begins and ends it.

`tls_pipes` has what goes between hosts, `memory` what stays in one process.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar, cast

import trio

from swarmd.base.errors import SwarmError, TimedOut, Unreachable
from swarmd.base.ids import NodeId, short

# Who answers waits for so long in a call; who asks says for how long.
SILENT_S: Final = 30.0
_T = TypeVar("_T")


class SocketPipe:
    """See `mesh.link.Pipe`: over a connected socket, which it closes."""

    def __init__(self, peer: NodeId, sock: socket.socket) -> None:
        self.peer = peer
        self.answer: Any = None
        self._socket = sock
        self._timeout_s = SILENT_S
        self._give_up_at = 0.0
        self._socket.settimeout(SILENT_S)
        self._thread = trio.CapacityLimiter(1)
        self._why = "the connection ended"

    def opened(self, answer: Any, timeout_s: float) -> None:
        """What the asker was answered, and for how long its calls wait."""
        self.answer = answer
        self._timeout_s = timeout_s
        self._socket.settimeout(timeout_s)

    def read_into(self, view: memoryview) -> None:
        """See `mesh.link.Pipe`."""
        self._begin()
        while view:
            count = self._tried(self._receive_into, view)
            if not count:
                raise Unreachable(f"{short(self.peer)}: {self._why}")
            view = view[count:]

    def read(self, most: int) -> bytes:
        """See `mesh.link.Pipe`."""
        self._begin()
        buffer = bytearray(most)
        with memoryview(buffer) as view:
            count = self._tried(self._receive_into, view)
        return bytes(buffer[:count])

    def write(self, data: bytes | memoryview) -> None:
        """See `mesh.link.Pipe`."""
        self._begin()
        self._tried(self._send, data)

    async def run(self, call: Callable[..., _T], *args: Any) -> _T:
        """See `mesh.link.Pipe`."""
        is_done = False
        failure: SwarmError | None = None
        result: Any = None

        async def break_when_cancelled() -> None:
            try:
                await trio.sleep_forever()
            finally:
                if not is_done:
                    self.break_off("nobody waits for it any more")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(break_when_cancelled)
            try:
                with trio.CancelScope(shield=True):
                    result = await trio.to_thread.run_sync(call, *args, limiter=self._thread)
            except SwarmError as error:  # A nursery would wrap it.
                failure = error
            is_done = True
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return cast("_T", result)

    def break_off(self, why: str) -> None:
        """Fail what waits here, and all that comes; from any thread."""
        self._why = why
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """No thread may use it any more."""
        self._socket.close()

    def _begin(self) -> None:
        self._give_up_at = time.monotonic() + self._timeout_s

    def _receive_into(self, view: memoryview) -> int:
        return self._from_socket(view)

    def _from_socket(self, view: memoryview) -> int:
        # The socket's own time begins anew with each byte.
        if time.monotonic() > self._give_up_at:
            raise TimeoutError
        return self._socket.recv_into(view)

    def _send(self, data: bytes | memoryview) -> None:
        self._socket.sendall(data)

    def _tried(self, call: Callable[[Any], Any], argument: Any) -> Any:
        try:
            return call(argument)
        except TimeoutError as error:
            why = f"too little came or went within {self._timeout_s:g} s"
            raise TimedOut(f"{short(self.peer)}: {why}") from error
        except OSError as error:  # TLS's errors are among them.
            raise Unreachable(f"{short(self.peer)}: {self._why}") from error

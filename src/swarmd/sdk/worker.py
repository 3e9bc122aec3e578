"""The process in which an agent runs: `python -m swarmd.sdk.worker SOCKET LIFELINE`.

Both arguments are descriptors inherited from the daemon. A thread reads the socket, so that a
cancel and the daemon's end are noticed while the agent computes; the main thread runs one
attempt at a time. The process never outlives its daemon: LIFELINE is a pipe whose other end
only the daemon holds, and when it closes the kernel itself sends SIGKILL to this process
group (fcntl(2), F_SETSIG and F_SETOWN). That also reaches code that spins without ever
letting go of the interpreter, and what the agent forked, where a thread or PR_SET_PDEATHSIG
would not.

Whatever the agent does with the process, the worst it can do is end it. Only the standard
library and msgpack are imported before the agent: starting must be cheap.
"""

from __future__ import annotations

import fcntl
import os
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import CodeType

import msgpack

from swarmd.sdk.context import Context
from swarmd.sdk.protocol import (
    CANCEL,
    FAILED,
    FORMAT,
    LOG,
    PROGRESS,
    READY,
    REFUSED,
    RESULT,
    RESULT_BYTES_MAX,
    RUN,
    START,
    TEXT_CHARS_MAX,
    FrameReader,
    ProtocolError,
    encode_frame,
)

# From <fcntl.h> and <signal.h>: the modules that name them cost milliseconds of every start.
_F_SETSIG = 10
_SIGKILL = 9
_READ_BYTES = 256 * 1024


class _Channel:
    """The socket to the daemon; writing is safe from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._reader = FrameReader()

    def send(self, *fields: object) -> None:
        frame = memoryview(encode_frame(*fields))
        with self._lock:
            while frame:
                frame = frame[os.write(self._descriptor, frame) :]

    def receive(self) -> tuple[int, tuple[object, ...]] | None:
        """The next frame, or None once the daemon is gone."""
        while True:
            frame = self._reader.next()
            if frame is not None:
                return frame
            data = os.read(self._descriptor, _READ_BYTES)
            if not data:
                return None
            self._reader.feed(data)


class _Worker:
    def __init__(self, channel: _Channel) -> None:
        self._channel = channel
        self._runs: SimpleQueue[tuple[int, str, int, int, bytes]] = SimpleQueue()
        self._current: tuple[int, Context] | None = None
        self._cancelled_run = 0
        self._pid = os.getpid()

    def serve(self, entry: str) -> None:
        """Import the agent, then run what comes, for ever."""
        try:
            function, takes_context = _load(entry)
        except BaseException as error:  # noqa: BLE001 - whatever the import raises is the answer
            _flush_output()
            self._channel.send(REFUSED, _describe(error))
            return
        threading.Thread(target=self._listen, daemon=True).start()
        _flush_output()
        self._channel.send(READY)
        while True:
            run, task_id, attempt, fence, payload = self._runs.get()
            context = Context(
                task_id,
                attempt,
                fence,
                lambda text, run=run: self._log(run, text),  # type: ignore[misc]
                lambda done, total, run=run: self._channel.send(PROGRESS, run, done, total),  # type: ignore[misc]
            )
            self._current = (run, context)
            if self._cancelled_run == run:
                context._cancelled = True
            answer = _attempt(run, function, takes_context, payload, context)
            if os.getpid() != self._pid:
                # The agent forked and its child came back here: only one of them may answer.
                os._exit(0)
            self._current = None
            _flush_output()
            self._channel.send(*answer)

    def _listen(self) -> None:
        try:
            while (frame := self._channel.receive()) is not None:
                kind, fields = frame
                if kind == RUN:
                    self._runs.put(fields)  # type: ignore[arg-type]
                elif kind == CANCEL:
                    self._cancelled_run = fields[0]  # type: ignore[assignment]
                    current = self._current
                    if current is not None and current[0] == fields[0]:
                        current[1]._cancelled = True
        except (OSError, ProtocolError):
            pass
        os.killpg(0, _SIGKILL)

    def _log(self, run: int, text: str) -> None:
        self._channel.send(LOG, run, text[:TEXT_CHARS_MAX])


def _attempt(
    run: int,
    function: Callable[..., object],
    takes_context: bool,
    payload: bytes,
    context: Context,
) -> tuple[object, ...]:
    """The frame that answers one run."""
    try:
        value = msgpack.unpackb(payload, raw=False, strict_map_key=False)
        result = function(value, context) if takes_context else function(value)
    except BaseException as error:  # noqa: BLE001 - SystemExit too ends an attempt, not the process
        return FAILED, run, "agent_raised", _describe(error)
    try:
        packed = msgpack.packb(result, use_bin_type=True)
    except Exception as error:  # noqa: BLE001 - packing calls code of the agent's own types
        message = f"the result cannot be sent as msgpack: {error}"
        return FAILED, run, "result_refused", message[:TEXT_CHARS_MAX]
    if len(packed) > RESULT_BYTES_MAX:
        message = f"the result has {len(packed)} bytes; at most {RESULT_BYTES_MAX} fit"
        return FAILED, run, "result_refused", message
    return RESULT, run, packed


def _load(entry: str) -> tuple[Callable[..., object], bool]:
    """The function that `module:function` names, and whether it takes a context."""
    module_name, _, function_name = entry.partition(":")
    __import__(module_name)
    function = getattr(sys.modules[module_name], function_name)
    if not callable(function):
        raise TypeError(f"{entry} is not a function")
    code = getattr(function, "__code__", None)
    return function, not (isinstance(code, CodeType) and code.co_argcount == 1)


def _describe(error: BaseException) -> str:
    """The error in a line, then its traceback, bounded; whatever its `__str__` does."""
    import traceback

    try:
        line = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - the agent's exception cannot even be printed
        line = type(error).__name__
    try:
        story = "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001
        story = ""
    return f"{line[: TEXT_CHARS_MAX // 4]}\n{story[-TEXT_CHARS_MAX // 2 :]}".rstrip()


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue


def _tie_to_daemon(lifeline: int) -> None:
    """Have the kernel kill this process group when the daemon's end of the pipe closes."""
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, _F_SETSIG, _SIGKILL)
    flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC | os.O_NONBLOCK)
    try:
        gone = os.read(lifeline, 1) == b""
    except BlockingIOError:
        gone = False
    if gone:
        os.killpg(0, _SIGKILL)


def main() -> None:
    descriptor, lifeline = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(descriptor, False)
    os.set_inheritable(lifeline, False)
    _tie_to_daemon(lifeline)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    channel = _Channel(descriptor)
    frame = channel.receive()
    if frame is None or frame[0] != START or frame[1][0] != FORMAT:
        sys.exit("started by another version of swarmd")
    folder, entry = str(frame[1][1]), str(frame[1][2])
    sys.path.insert(0, folder)
    sys.argv[:] = [entry]
    _Worker(channel).serve(entry)


if __name__ == "__main__":
    main()

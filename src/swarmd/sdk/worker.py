"""The process in which an agent runs: `python -m swarmd.sdk.worker SOCKET LIFELINE`.

Both arguments are descriptors inherited from the daemon. One thread does everything: it reads
an attempt, runs it, answers, reads the next. While the agent runs nothing comes but a cancel,
which is looked for when the agent asks for it, and answers, which are read by whoever waits for
one; so an agent that forks does so from a process without other threads.

The process never outlives its daemon: LIFELINE is a pipe whose other end only the daemon
holds, and when it closes the kernel itself sends SIGKILL to this process group (fcntl(2),
F_SETSIG and F_SETOWN). That reaches code that spins without ever letting go of the
interpreter, and what the agent forked, where a thread or PR_SET_PDEATHSIG would not.

Whatever the agent does with the process, the worst it can do is end it. Only the standard
library and msgpack are imported before the agent: starting must be cheap.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
import os
import resource
import select
import sys
import time
from _thread import allocate_lock
from collections.abc import Callable
from types import CodeType

import msgpack

from swarmd.sdk.context import Context
from swarmd.sdk.protocol import (
    ANSWER,
    ASK,
    CANCEL,
    CREDIT_MESSAGES,
    FAILED,
    FORMAT,
    LOG,
    MESSAGE,
    PROGRESS,
    READY,
    REFUSED,
    RESULT,
    RESULT_BYTES_MAX,
    RUN,
    START,
    STORY_CHARS_MAX,
    STORY_LINE_CHARS_MAX,
    SUBSCRIBE,
    TAKEN,
    TEXT_CHARS_MAX,
    UNSUBSCRIBE,
    FrameReader,
    encode_frame,
)

# From <sys/prctl.h>, <fcntl.h> and <signal.h>: modules that name them cost time at every start.
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_F_SETSIG = 10
_SIGKILL = 9
_READ_BYTES = 256 * 1024
# Who waits for an answer that another thread has read sees it this soon.
_LOOK_AGAIN_MS = 250
# The daemon is told of messages that were taken at so many, or when none is left.
_TELL_TAKEN = CREDIT_MESSAGES // 4


class _Channel:
    """The socket to the daemon; writing is safe from any thread of the agent."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = allocate_lock()
        self._reader = FrameReader()
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def send(self, *fields: object) -> None:
        frame = memoryview(encode_frame(*fields))
        with self._lock:
            while frame:
                frame = frame[os.write(self._descriptor, frame) :]

    def receive(self) -> tuple[int, tuple[object, ...]]:
        """The next frame. Ends the process group once the daemon is gone."""
        while True:
            frame = self._reader.next()
            if frame is not None:
                return frame
            data = os.read(self._descriptor, _READ_BYTES)
            if not data:
                os.killpg(0, _SIGKILL)
            self._reader.feed(data)

    def wait(self, timeout_ms: int) -> None:
        """Return when something has come, or after the timeout."""
        poll = select.poll()  # One poll object serves one thread at a time.
        poll.register(self._descriptor, select.POLLIN)
        poll.poll(timeout_ms)

    def waiting(self) -> bool:
        """True if something came that was not received yet."""
        return self._reader.buffered_bytes > 0 or bool(self._poll.poll(0))


class _Worker:
    def __init__(self, channel: _Channel) -> None:
        self._channel = channel
        # Held to read from the channel: by the main thread between runs, else by who asks.
        self._reading = allocate_lock()
        self._run = 0
        self._cancelled = False
        self._asked = 0
        self._answers: dict[int, tuple[object, ...]] = {}
        self._inboxes: dict[int, _Inbox] = {}
        self._pid = os.getpid()

    def serve(self, entry: str) -> None:
        """Import the agent, then run what comes, for ever."""
        try:
            function, takes_context = _load(entry)
        except BaseException as error:  # noqa: BLE001 - whatever the import raises is the answer
            _flush_output()
            self._channel.send(REFUSED, *_describe(error))
            return
        _flush_output()
        self._channel.send(READY)
        while True:
            kind, fields = self._channel.receive()
            if kind == RUN:
                self._serve_one(function, takes_context, *fields)  # type: ignore[arg-type]

    def _serve_one(
        self,
        function: Callable[..., object],
        takes_context: bool,
        run: int,
        task_id: str,
        attempt: int,
        fence: int,
        payload: bytes,
    ) -> None:
        context = Context(
            task_id,
            attempt,
            fence,
            lambda text: self._channel.send(LOG, run, text[:TEXT_CHARS_MAX]),
            lambda done, total: self._channel.send(PROGRESS, run, done, total),
            lambda: self._cancel_came(run),
            lambda *what: self._ask(run, *what),
            lambda: _Wire(self, run),
        )
        self._cancelled = False
        self._answers.clear()
        self._inboxes.clear()
        self._run = run
        answer = _attempt(run, function, takes_context, payload, context)
        if os.getpid() != self._pid:
            # The agent forked and its child came back here: only one of them may answer.
            os._exit(0)
        with self._reading:
            # From here on a thread that the agent left behind reads nothing.
            self._run = 0
        _flush_output()
        self._channel.send(*answer)

    def _cancel_came(self, run: int) -> bool:
        """Look for a cancel; safe from any thread."""
        with self._reading:
            self._read(run)
            return self._run == run and self._cancelled

    def _read(self, run: int) -> None:
        """Take what has come during a run; `_reading` is held."""
        while self._run == run and self._channel.waiting():
            kind, fields = self._channel.receive()
            if kind == CANCEL and fields[0] == run:
                self._cancelled = True
            elif kind == ANSWER and fields[0] == run:
                self._answers[fields[1]] = fields  # type: ignore[index]
            elif kind == MESSAGE and fields[0] == run:
                inbox = self._inboxes.get(fields[1])  # type: ignore[call-overload]
                if inbox is not None:
                    inbox.messages.append(fields[2:])

    def _ask(self, run: int, what: int, name: str, first: int, second: int) -> tuple[int, int]:
        return self.call(run, ASK, what, name, first, second)

    def call(self, run: int, kind: int, *fields: object) -> tuple[int, int]:
        """Ask the daemon and wait for its answer; safe from any thread."""
        with self._reading:
            self._asked += 1
            ask = self._asked
            if self._run == run:
                self._channel.send(kind, run, ask, *fields)
        while True:
            with self._reading:
                self._look(run)
                answer = self._answers.pop(ask, None)
            if answer is not None:
                break
            self._channel.wait(_LOOK_AGAIN_MS)
        _, _, code, message, value, lease = answer
        if code:
            from swarmd.base.errors import from_code

            raise from_code(str(code), str(message))
        return value, lease  # type: ignore[return-value]

    def _look(self, run: int) -> None:
        """Take what has come for a run that has not ended; `_reading` is held."""
        if self._run != run:
            raise RuntimeError("the attempt that this context belongs to has ended")
        self._read(run)

    def open_inbox(self, number: int) -> None:
        with self._reading:
            self._inboxes[number] = _Inbox()

    def close_inbox(self, run: int, number: int) -> None:
        with self._reading:
            if self._inboxes.pop(number, None) is not None and self._run == run:
                self._channel.send(UNSUBSCRIBE, run, number)

    def take(
        self, run: int, number: int, deadline_s: float | None
    ) -> tuple[str, str, bytes] | None:
        """The next message of a subscription; None when it is late, or the run cancelled."""
        while True:
            with self._reading:
                self._look(run)
                inbox = self._inboxes.get(number)
                if inbox is None:
                    raise RuntimeError("the block of this subscription has ended")
                if inbox.messages:
                    found = inbox.messages.pop(0)
                    inbox.taken += 1
                    if not inbox.messages or inbox.taken >= _TELL_TAKEN:
                        self._channel.send(TAKEN, run, number, inbox.taken)
                        inbox.taken = 0
                    return found  # type: ignore[return-value]
                if self._cancelled:
                    return None
            wait_ms = _LOOK_AGAIN_MS
            if deadline_s is not None:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return None
                wait_ms = min(wait_ms, int(left_s * 1_000) + 1)
            self._channel.wait(wait_ms)


class _Inbox:
    """What has come for one subscription; `taken` is not told to the daemon yet."""

    __slots__ = ("messages", "taken")

    def __init__(self) -> None:
        self.messages: list[tuple[object, ...]] = []
        self.taken = 0


class _Wire:
    """See `swarmd.sdk.bus.Wire`."""

    __slots__ = ("_run", "_worker")

    def __init__(self, worker: _Worker, run: int) -> None:
        self._worker = worker
        self._run = run

    def call(self, kind: int, *fields: object) -> int:
        if kind == SUBSCRIBE:
            number = fields[0]
            self._worker.open_inbox(number)  # type: ignore[arg-type]
            try:
                return self._worker.call(self._run, kind, *fields)[0]
            except BaseException:
                self._worker.close_inbox(self._run, number)  # type: ignore[arg-type]
                raise
        return self._worker.call(self._run, kind, *fields)[0]

    def take(self, number: int, deadline_s: float | None) -> tuple[str, str, bytes] | None:
        return self._worker.take(self._run, number, deadline_s)

    def close(self, number: int) -> None:
        self._worker.close_inbox(self._run, number)


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
        return FAILED, run, "agent_raised", *_describe(error)
    try:
        packed = msgpack.packb(result, use_bin_type=True)
    except Exception as error:  # noqa: BLE001 - packing calls code of the agent's own types
        message = f"the result cannot be sent as msgpack: {error}"
        return FAILED, run, "result_refused", *_bounded(message, "")
    if len(packed) > RESULT_BYTES_MAX:
        message = f"the result has {len(packed)} bytes; at most {RESULT_BYTES_MAX} fit"
        return FAILED, run, "result_refused", *_bounded(message, "")
    return RESULT, run, packed


def _load(entry: str) -> tuple[Callable[..., object], bool]:
    """The function that `module:function` names, and whether it takes a context."""
    module_name, _, function_name = entry.partition(":")
    importlib.import_module(module_name)
    function = getattr(sys.modules[module_name], function_name)
    if not callable(function):
        raise TypeError(f"{entry} is not a function")
    code = getattr(function, "__code__", None)
    return function, not (isinstance(code, CodeType) and code.co_argcount == 1)


def _describe(error: BaseException) -> tuple[str, bool, str, bool]:
    """The error in a line and its traceback, bounded; whatever its `__str__` does."""
    import traceback

    try:
        line = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - the agent's exception cannot even be printed
        line = type(error).__name__
    try:
        story = "".join(traceback.format_exception(error)).rstrip()
    except Exception:  # noqa: BLE001
        story = ""
    return _bounded(line, story)


def _bounded(line: str, story: str) -> tuple[str, bool, str, bool]:
    """A line and a story as a frame has them, each with whether it was cut."""
    first, last = line[:STORY_LINE_CHARS_MAX], story[-STORY_CHARS_MAX:]
    return first, first != line, last, last != story


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


def _confine(open_files: int, memory_bytes: int, processes: int) -> None:
    """Take from this process, for good, what no agent needs.

    Nothing that it starts gets more rights than it has (setuid programs), other processes of its
    user cannot look into its memory and environment, it leaves no core dump with its memory in
    it, and the limits are hard ones.
    """
    with contextlib.suppress(OSError, AttributeError):  # Not a Linux of this century.
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    limits = {
        resource.RLIMIT_NOFILE: open_files,
        resource.RLIMIT_DATA: memory_bytes,
        resource.RLIMIT_NPROC: processes,
    }
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        if most and (hard == resource.RLIM_INFINITY or most < hard):
            resource.setrlimit(kind, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    descriptor, lifeline = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(descriptor, False)
    os.set_inheritable(lifeline, False)
    _tie_to_daemon(lifeline)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    channel = _Channel(descriptor)
    kind, fields = channel.receive()
    if kind != START or fields[0] != FORMAT:
        sys.exit("started by another version of swarmd")
    folder, entry = str(fields[1]), str(fields[2])
    _confine(*fields[3:6])  # type: ignore[arg-type]
    os.environ.update(fields[6])  # type: ignore[call-overload]
    sys.path.insert(0, folder)
    sys.argv[:] = [entry]
    try:
        _Worker(channel).serve(entry)
    except BrokenPipeError:
        # The daemon is gone.
        os.killpg(0, _SIGKILL)


if __name__ == "__main__":
    main()

"""One worker process that runs Python agents: its start, its attempts, its end.

The process is in a session of its own, so that one SIGKILL to its group reaches all that it
forked. Its end is seen through a pidfd, and the group is killed while the leader is still a
zombie: until it is reaped its number cannot name anyone else. The end of the channel proves
nothing, since a child of the agent may hold it open.

Every path out of an attempt leaves either an idle process that has answered, or none: where
the answer is in doubt the process is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio

from swarmd.agents.accounts import Account
from swarmd.agents.attempts import AttemptRun, Cause, Outcome, Progress
from swarmd.agents.environment import NOTHING, Opened
from swarmd.agents.holdings import Holdings
from swarmd.agents.logs import LineCutter, clean
from swarmd.agents.messaging import Messaging
from swarmd.agents.spec import BusRights
from swarmd.base.files import remove_tree
from swarmd.base.notes import NOBODY, Notes
from swarmd.mesh.bus.service import Bus
from swarmd.observe.redaction import Redactor
from swarmd.sdk import protocol
from swarmd.sdk.protocol import FrameReader, ProtocolError, encode_frame
from swarmd.state.recipes.service import Recipes

_READ_BYTES: Final = 64 * 1024
_UMASK: Final = 0o077
# A flood of frames or lines is read at 5,000 a second: the agent waits, not the daemon.
_FLOOD_FRAMES: Final = 50
_SECONDS_PER_FRAME: Final = 0.0002
# Between the end of the channel and the end of the process, when both are on their way.
_EXIT_GRACE_S: Final = 0.25
_OF_THE_BUS: Final = (
    protocol.PUBLISH, protocol.SUBSCRIBE, protocol.TAKEN, protocol.UNSUBSCRIBE,
)  # fmt: skip

LineSink = Callable[[str, int, str], None]


class Limits(NamedTuple):
    """What a process may take; 0 is no limit."""

    open_files: int = 0
    memory_bytes: int = 0
    processes: int = 0


NO_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class Launch:
    """What a process is started for. `folder` holds the agent's unpacked code.

    `account` is as whom it runs; None is as this process. It starts in `base_env`, and `opened`,
    the agent's own, is added before the agent is imported.
    """

    agent: str
    version: str
    folder: Path
    entry: str
    opened: Opened = NOTHING
    base_env: tuple[tuple[str, str], ...] = ()
    limits: Limits = NO_LIMITS
    account: Account | None = None


class _Gone(Exception):
    """The channel ended, or the process did."""


class PythonInstance:
    """A worker process. `watch` must run for as long as it lives.

    Args:
        scratch: an own, existing folder: the process's working directory, deleted at its end.
        redactor: takes the values of the agent's secrets out of what it prints and says.
        on_line: told (task id, attempt, text) of every line it prints or logs.
        recipes: what attempts get their locks from.
        bus: what they publish to and subscribe to.
        host: the node's name, for those who look who holds a lock.
        notes: told of what the agent asks for.
    """

    def __init__(
        self,
        launch: Launch,
        *,
        scratch: Path,
        redactor: Redactor,
        on_line: LineSink,
        line_bytes_max: int,
        tail_lines_max: int,
        recipes: Recipes | None = None,
        bus: Bus | None = None,
        host: str = "",
        notes: Notes = NOBODY,
    ) -> None:
        self.launch = launch
        self._notes = notes
        self._actor = ""
        self._recipes = recipes
        self._bus = bus
        self._rights: BusRights | None = None
        self._messaging: Messaging | None = None
        self._host = host
        self._holdings: Holdings | None = None
        self._lost = ""
        self.exited = trio.Event()
        self.ready = False
        self.attempts = 0
        self.task_id = ""
        self._attempt = 0
        self._scratch = scratch
        self._on_line = on_line
        self._line_bytes_max = line_bytes_max
        self._tail: deque[str] = deque(maxlen=tail_lines_max)
        self._redactor = redactor
        self._cutter = LineCutter(line_bytes_max, self._redactor)
        self._reader = FrameReader()
        # Those who wait for the channel; cancelled when the process has ended.
        self._channel_waits: dict[trio.CancelScope, None] = {}
        self._sending = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self._whole_request_sent = False
        self._in_use = False
        self._spawn()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _spawn(self) -> None:
        """Raises OSError; nothing is left open then."""
        account = self.launch.account
        with contextlib.ExitStack() as on_failure, contextlib.ExitStack() as childs:
            ours, theirs = socket.socketpair()
            on_failure.callback(ours.close)
            childs.callback(theirs.close)
            life_read, life_write = os.pipe()
            on_failure.callback(os.close, life_write)
            childs.callback(os.close, life_read)
            output_read, output_write = os.pipe()
            on_failure.callback(os.close, output_read)
            childs.callback(os.close, output_write)
            # The agent's own environment comes after the process was confined: in this one it
            # could have other code run first.
            command = [sys.executable, "-I", "-m", "swarmd.sdk.worker"]
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(life_read)],
                stdin=subprocess.DEVNULL,
                stdout=output_write,
                stderr=output_write,
                pass_fds=(theirs.fileno(), life_read),
                start_new_session=True,
                cwd=self._scratch,
                env=dict(self.launch.base_env),
                umask=_UMASK,
                user=account.user if account is not None else None,
                group=account.group if account is not None else None,
                extra_groups=() if account is not None else None,
            )
            self._pidfd = os.pidfd_open(self._process.pid)
            ours.setblocking(False)
            os.set_blocking(output_read, False)
            self._socket, self._lifeline, self._output = ours, life_write, output_read
            on_failure.pop_all()

    async def watch(self) -> None:
        """Read what the process prints, and reap it and its group when it ends.

        Cancellation: kills the process and returns once it is reaped.
        """
        try:
            async with trio.open_nursery() as self._nursery:
                nursery = self._nursery
                nursery.start_soon(self._pump_output)
                await trio.lowlevel.wait_readable(self._pidfd)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                self.kill()
                await trio.lowlevel.wait_readable(self._pidfd)
                self.kill()
                self._process.wait()
                self._read_output()
                self._emit(self._cutter.finish())
                self.exited.set()
                for waits in self._channel_waits:
                    waits.cancel()
                self._close()
                await trio.to_thread.run_sync(lambda: remove_tree(self._scratch))

    def kill(self) -> None:
        """Send SIGKILL to the process and its group; `exited` follows. Harmless when repeated."""
        if self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def end(self) -> None:
        """Kill, and return once it has ended; not to be cancelled."""
        with trio.CancelScope(shield=True):
            self.kill()
            await self.exited.wait()

    async def start(self, timeout_s: float) -> Outcome | None:
        """Have the process import the agent. None if it is ready, else why it is not."""
        with self._using_channel():
            return await self._start(timeout_s)

    async def _start(self, timeout_s: float) -> Outcome | None:
        try:
            with trio.move_on_after(timeout_s):
                launch = self.launch
                await self._send(
                    encode_frame(
                        protocol.START,
                        protocol.FORMAT,
                        str(launch.folder),
                        launch.entry,
                        *launch.limits,
                        dict(launch.opened.variables),
                    )
                )
                kind, fields = await self._receive()
                if kind == protocol.READY:
                    self.ready = True
                    return None
                message = (
                    f"cannot import {launch.entry}: {self._story_of(*fields)}"
                    if kind == protocol.REFUSED
                    else "the worker process wrote an unexpected frame while it started"
                )
                await self.end()
                return self._failure(Cause.SPAWN_FAILED, message)
        except _Gone:
            message = f"the worker process {await self._how_it_ended()} while it imported the agent"
            return self._failure(Cause.SPAWN_FAILED, message)
        except ProtocolError as error:
            await self.end()
            return self._failure(Cause.SPAWN_FAILED, f"the import wrote to the channel: {error}")
        except trio.Cancelled:
            await self.end()
            raise
        await self.end()
        return self._failure(Cause.SPAWN_FAILED, f"importing the agent took over {timeout_s:g} s")

    def settle(self) -> bool:
        """Take what came while idle. False if the process is unfit for another attempt."""
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        try:
            self._reader.feed(data)
            while (frame := self._reader.next()) is not None:
                if frame[0] not in (protocol.LOG, protocol.PROGRESS):
                    return False
        except ProtocolError:
            return False
        return True

    async def execute(
        self, attempt: AttemptRun, on_progress: Progress | None, *, cancel_grace_s: float
    ) -> Outcome:
        """Run one attempt. Afterwards the process is idle, or it has ended (`exited`).

        Cancellation: tells the agent, kills it after `cancel_grace_s`, then passes on.
        """
        with self._using_channel():
            try:
                return await self._execute(attempt, on_progress, cancel_grace_s)
            finally:
                if self._holdings is not None:
                    self._holdings.close()
                    self._holdings = None
                if self._messaging is not None:
                    self._messaging.close()
                    self._messaging = None

    async def _execute(
        self, attempt: AttemptRun, on_progress: Progress | None, cancel_grace_s: float
    ) -> Outcome:
        self.attempts += 1
        self.task_id, self._attempt = attempt.task_id, attempt.attempt
        self._actor = attempt.actor
        self._rights = attempt.bus
        self._tail.clear()
        self._whole_request_sent = False
        self._lost = ""
        began_s = trio.current_time()
        try:
            with trio.move_on_after(attempt.timeout_s):
                return await self._converse(attempt, on_progress, began_s)
            await self.end()
            message = f"ran longer than its {attempt.timeout_s:g} s and was killed"
            return self._failure(Cause.TIMEOUT, message, began_s)
        except _Gone:
            message = f"the worker process {await self._how_it_ended()}"
            if self._lost:
                return self._failure(Cause.LOCK_LOST, self._lost, began_s)
            return self._failure(Cause.CRASHED, message, began_s)
        except ProtocolError as error:
            await self.end()
            message = f"the agent wrote garbage to its channel: {error}"
            return self._failure(Cause.GARBAGE, message, began_s)
        except BaseException:
            await self._cancel_run(cancel_grace_s)
            raise
        finally:
            self.task_id, self._attempt = "", 0

    async def _converse(
        self, attempt: AttemptRun, on_progress: Progress | None, began_s: float
    ) -> Outcome:
        run = self.attempts
        await self._send(
            encode_frame(
                protocol.RUN,
                run,
                attempt.task_id,
                attempt.attempt,
                attempt.fence,
                attempt.payload,
            )
        )
        self._whole_request_sent = True
        kind, fields = await self._answer(run, on_progress)
        self._read_output()
        if kind == protocol.RESULT:
            ran_s = trio.current_time() - began_s
            held = self._messaging.held if self._messaging is not None else ()
            logs = tuple(self._tail)
            return Outcome(ok=True, result=fields[1], logs=logs, ran_s=ran_s, messages=held)
        cause = Cause.RESULT_REFUSED if fields[1] == Cause.RESULT_REFUSED else Cause.RAISED
        return self._failure(cause, self._story_of(*fields[2:]), began_s)

    async def _answer(self, run: int, on_progress: Progress | None) -> tuple[int, Any]:
        """The frame that ends `run`; lines and progress are passed on meanwhile."""
        frames, since = 0, trio.current_time()
        while True:
            kind, fields = await self._receive()
            if kind == protocol.LOG:
                text = fields[1][: protocol.TEXT_CHARS_MAX]
                # One of just as many characters may have been cut.
                text = self._redactor.text(text, end_cut=len(text) == protocol.TEXT_CHARS_MAX)
                self._emit([clean(text, self._line_bytes_max)])
            elif kind == protocol.PROGRESS:
                if on_progress is not None and fields[0] == run:
                    on_progress(fields[1], fields[2])
            elif kind in (protocol.RESULT, protocol.FAILED) and fields[0] == run:
                return kind, fields
            elif kind == protocol.ASK:
                if fields[0] == run:
                    await self._holding().ask(*fields[1:])
            elif kind in _OF_THE_BUS:
                if fields[0] == run:
                    await self._converse_on_the_bus(kind, fields[1:])
            else:
                raise ProtocolError(f"a frame of kind {kind} in run {run}")
            frames += 1
            if frames % _FLOOD_FRAMES == 0:
                await trio.sleep_until(since + _FLOOD_FRAMES * _SECONDS_PER_FRAME)
                since = trio.current_time()

    def _holding(self) -> Holdings:
        """What the present attempt asks for and holds."""
        if self._holdings is None:
            assert self._nursery is not None, "a process is watched before it runs anything"
            owner = f"task {self.task_id} of {self.launch.agent} on {self._host or 'this node'}"
            answer = partial(self._answer_ask, self.attempts)
            self._holdings = Holdings(
                self._recipes, owner, self._nursery, answer, self._lose,
                partial(self._notes.note, "agent.call", self._actor),
            )  # fmt: skip
        return self._holdings

    async def _converse_on_the_bus(self, kind: int, fields: Any) -> None:
        messaging = self._messages()
        if kind == protocol.PUBLISH:
            await messaging.publish(*fields)
        elif kind == protocol.SUBSCRIBE:
            await messaging.subscribe(*fields)
        elif kind == protocol.TAKEN:
            messaging.taken(*fields)
        else:
            messaging.unsubscribe(*fields)

    def _messages(self) -> Messaging:
        """What the present attempt says and is told on the bus."""
        if self._messaging is None:
            assert self._nursery is not None, "a process is watched before it runs anything"
            run = self.attempts
            self._messaging = Messaging(
                self._bus, self._rights, f"@{self.task_id}",
                f"task {self.task_id} of {self.launch.agent}", self._nursery,
                partial(self._answer_ask, run), partial(self._push, run),
                partial(self._notes.note, "agent.call", self._actor),
            )  # fmt: skip
        return self._messaging

    async def _push(self, run: int, number: int, topic: str, sender: str, data: bytes) -> None:
        with contextlib.suppress(_Gone):
            await self._send(encode_frame(protocol.MESSAGE, run, number, topic, sender, data))

    async def _answer_ask(
        self, run: int, ask: int, code: str, message: str, value: int, lease: int
    ) -> None:
        text = message[: protocol.TEXT_CHARS_MAX]
        with contextlib.suppress(_Gone):
            await self._send(encode_frame(protocol.ANSWER, run, ask, code, text, value, lease))

    def _lose(self, why: str) -> None:
        self._lost = why
        self.kill()

    async def _cancel_run(self, grace_s: float) -> None:
        """Let the agent see that it is cancelled; kill the process unless it answers in time."""
        with trio.CancelScope(shield=True):
            if self._holdings is not None:
                self._holdings.cancel()
            if self._messaging is not None:
                self._messaging.cancel()
            if self._whole_request_sent and not self.exited.is_set():
                try:
                    with trio.move_on_after(grace_s):
                        await self._send(encode_frame(protocol.CANCEL, self.attempts))
                        await self._answer(self.attempts, None)
                        return
                except (_Gone, ProtocolError):
                    self.kill()
            await self.end()

    async def _send(self, frame: bytes) -> None:
        # Free, the lock costs no turn of the loop this way.
        try:
            self._sending.acquire_nowait()
        except trio.WouldBlock:
            await self._sending.acquire()
        try:
            await self._send_now(frame)
        finally:
            self._sending.release()

    async def _send_now(self, frame: bytes) -> None:
        view = memoryview(frame)
        while view:
            if self.exited.is_set():
                raise _Gone
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                with self._until_exit():
                    await trio.lowlevel.wait_writable(self._socket)
            except OSError as error:
                raise _Gone from error

    async def _receive(self) -> tuple[int, Any]:
        """The next frame. Raises _Gone when none will come any more."""
        while (frame := self._reader.next()) is None:
            try:
                data = self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                if self.exited.is_set():
                    raise _Gone from None
                with self._until_exit():
                    await trio.lowlevel.wait_readable(self._socket)
                continue
            except OSError as error:
                raise _Gone from error
            if not data:
                raise _Gone
            self._reader.feed(data)
        return frame

    @contextlib.contextmanager
    def _until_exit(self) -> Iterator[None]:
        """Waiting for the channel ends when the process does."""
        with trio.CancelScope() as scope:
            self._channel_waits[scope] = None
            try:
                yield
            finally:
                del self._channel_waits[scope]

    async def _how_it_ended(self) -> str:
        """Wait for the end, and say it in words."""
        with trio.CancelScope(shield=True):
            with trio.move_on_after(_EXIT_GRACE_S):
                await self.exited.wait()
            if not self.exited.is_set():
                await self.end()
                return "closed its channel"
        code = self._process.returncode
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"was killed by {signal.Signals(-code).name}"
            return f"was killed by signal {-code}"
        return f"exited with status {code}"

    async def _pump_output(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._output)
            count = self._read_output()
            if count < 0:
                return
            await trio.sleep(count * _SECONDS_PER_FRAME if count > _FLOOD_FRAMES else 0)

    def _read_output(self) -> int:
        """Take what was printed so far, up to a pipe full: lines taken, or -1 at the end."""
        if self.exited.is_set():
            return -1
        try:
            data = os.read(self._output, _READ_BYTES)
        except BlockingIOError:
            return 0
        except OSError:
            return -1
        if not data:
            return -1
        lines = self._cutter.feed(data)
        self._emit(lines)
        return len(lines)

    def _emit(self, lines: list[str]) -> None:
        for line in lines:
            self._tail.append(line)
            self._on_line(self.task_id, self._attempt, line)

    def _failure(self, cause: Cause, message: str, began_s: float | None = None) -> Outcome:
        ran_s = 0.0 if began_s is None else trio.current_time() - began_s
        logs = tuple(self._tail)
        return Outcome(ok=False, code=cause.value, message=message, logs=logs, ran_s=ran_s)

    def _story_of(self, line: str, line_cut: bool, story: str, story_cut: bool) -> str:
        """A failure as it is told, without what must not be shown.

        The worker cut its line at the end, and its story at the beginning, perhaps within a
        value: what is left of one goes, too.
        """
        line_cut = line_cut or len(line) > protocol.STORY_LINE_CHARS_MAX
        story_cut = story_cut or len(story) > protocol.STORY_CHARS_MAX
        line = line[: protocol.STORY_LINE_CHARS_MAX]
        story = story[-protocol.STORY_CHARS_MAX :]
        line = self._redactor.text(line, end_cut=line_cut)
        story = self._redactor.text(story, start_cut=story_cut)
        return f"{line}\n{story}" if story else line

    def _close(self) -> None:
        os.close(self._output)
        os.close(self._lifeline)
        os.close(self._pidfd)
        if not self._in_use:
            self._socket.close()

    @contextlib.contextmanager
    def _using_channel(self) -> Iterator[None]:
        """Keep the channel open: an answer may have come just before the process ended."""
        self._in_use = True
        try:
            yield
        finally:
            self._in_use = False
            if self.exited.is_set():
                self._socket.close()

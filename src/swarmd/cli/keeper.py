"""The process that ends a command before the lease it runs under can lapse.

Rules:
- The keeper is the command's parent and the child of swarmctl. It knows two points in time, on
  CLOCK_BOOTTIME: then the command gets SIGTERM, then SIGKILL. Renewals move them; nothing else
  does. So the command ends in time when swarmctl is stopped, hangs or is killed.
- The command is a process group of its own. What it started ends with it: the keeper is their
  subreaper, so that also a process that left the group cannot get away.
- The command's process is reaped last. Until then its number cannot name another group.
- The keeper is in a group of its own and ignores signals, so that what is sent to swarmctl or
  typed at the terminal does not reach it. It ends when nothing of the command is left.
- If the keeper itself is killed, the kernel kills the command (PR_SET_PDEATHSIG).

What no process can do: a keeper that is stopped itself, or a machine that is, kills late. That is
what fences are for.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Never

_RECORD: Final = struct.Struct("!Bqq")
# swarmctl to keeper.
_DEADLINES: Final = 1  # stop at, kill at
_SIGNAL: Final = 2  # number
_KILL: Final = 3
# Keeper to swarmctl.
_STARTED: Final = 16  # process id
_REFUSED: Final = 17  # errno
_ENDED: Final = 18  # wait status, 1 if a deadline or an order to kill came before the end

# From <sys/prctl.h>.
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36

# What the command left behind, or what swarmctl left behind when it died, may end in order.
LEFTOVER_NS: Final = 1_000_000_000
ORPHAN_NS: Final = 5_000_000_000
# A machine that slept is seen to have slept this soon: poll(2) does not count that time.
_NAP_MS: Final = 250
_KILL_AGAIN_MS: Final = 10
_FAR_NS: Final = 2**62
_IGNORED: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGPIPE,
)
_RESET: Final = (*_IGNORED, signal.SIGCHLD, signal.SIGXFSZ)


def boot_ns() -> int:
    """Nanoseconds on the clock that goes on while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended. `lapsed`: it was told to, because the lease would have."""

    status: int
    lapsed: bool

    @property
    def exit_code(self) -> int:
        """As a shell tells it: 128 and the number of the signal that ended it."""
        code = os.waitstatus_to_exitcode(self.status)
        return code if code >= 0 else 128 - code


class KeeperGone(Exception):
    """The keeper was killed; the kernel has killed the command."""


class Kept:
    """A command under a keeper, as swarmctl sees it."""

    def __init__(self, channel: socket.socket, keeper: int) -> None:
        self._channel = channel
        self._keeper = keeper
        self.pid = 0

    def fileno(self) -> int:
        """Readable once there is something for `ended`."""
        return self._channel.fileno()

    def wait_started(self) -> None:
        """Raises OSError: the command could not be run."""
        kind, value, _ = self._receive()
        if kind == _REFUSED:
            raise OSError(value, os.strerror(value))
        self.pid = value

    def ended(self) -> Ended:
        """Wait for the end of the command and of all that it started. Raises KeeperGone."""
        _, status, lapsed = self._receive()
        return Ended(status, bool(lapsed))

    def set_deadlines(self, stop_at_ns: int, kill_at_ns: int) -> None:
        self._order(_DEADLINES, stop_at_ns, kill_at_ns)

    def send_signal(self, number: int) -> None:
        """To all processes of the command's group."""
        self._order(_SIGNAL, number)

    def kill(self) -> None:
        """End the command at once, as if its lease had lapsed."""
        self._order(_KILL)

    def close(self) -> None:
        """Reap the keeper; if it still runs it ends the command first."""
        self._channel.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._keeper, 0)

    def _order(self, kind: int, first: int = 0, second: int = 0) -> None:
        with contextlib.suppress(OSError):  # It has ended; `ended` tells how.
            self._channel.send(_RECORD.pack(kind, first, second))

    def _receive(self) -> tuple[int, int, int]:
        raw = b""
        # Orders that the keeper left unread when it ended make an error of the first read; what
        # it said before that stands behind the error.
        for _ in range(2):
            with contextlib.suppress(ConnectionError):
                raw = self._channel.recv(_RECORD.size)
                break
        if len(raw) < _RECORD.size:
            if self.pid:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
            raise KeeperGone
        kind, first, second = _RECORD.unpack(raw)
        return kind, first, second


def keep(
    command: Sequence[str],
    environ: Mapping[str, str],
    *,
    stop_at_ns: int,
    kill_at_ns: int,
    terminal: int | None = None,
    attach: Callable[[Kept], None] = lambda _: None,
) -> Kept:
    """Run `command` under a keeper.

    Args:
        terminal: a terminal to make the command's group the foreground of.
        attach: called before a signal that came meanwhile is handled, so that none is lost.

    To be called from a process with one thread.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
    try:
        pid = os.fork()
        if pid == 0:
            _be_keeper(theirs, ours, command, environ, (stop_at_ns, kill_at_ns), terminal, mask)
        theirs.close()
        kept = Kept(ours, pid)
        attach(kept)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return kept


# ---- the child ------------------------------------------------------------------------


def _be_keeper(
    channel: socket.socket,
    other: socket.socket,
    command: Sequence[str],
    environ: Mapping[str, str],
    deadlines: tuple[int, int],
    terminal: int | None,
    mask: set[int | signal.Signals],
) -> Never:
    try:
        other.close()
        os.setpgid(0, 0)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        try:
            pid = _spawn(command, environ, terminal)
        except OSError as error:
            channel.send(_RECORD.pack(_REFUSED, error.errno or 0, 0))
        else:
            channel.send(_RECORD.pack(_STARTED, pid, 0))
            _Keeper(channel, pid, *deadlines).run()
    finally:
        # Whatever went wrong: the command ends with this process, and swarmctl sees it end.
        os._exit(0)


def _prctl(option: int, value: int) -> None:
    """Best effort: without it, what leaves the command's group is out of reach."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def _spawn(command: Sequence[str], environ: Mapping[str, str], terminal: int | None) -> int:
    """Raises OSError: it cannot be run."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            if terminal is not None:
                os.tcsetpgrp(terminal, os.getpid())
            for number in _RESET:
                signal.signal(number, signal.SIG_DFL)
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            os.execvpe(command[0], list(command), environ)
        except OSError as error:
            os.write(tell, (error.errno or 0).to_bytes(4, "big"))
        finally:
            os._exit(127)
    os.close(tell)
    refused = os.read(told, 4)
    os.close(told)
    if refused:
        os.waitpid(pid, 0)
        code = int.from_bytes(refused, "big")
        raise OSError(code, os.strerror(code))
    return pid


class _Keeper:
    """See the module."""

    def __init__(self, channel: socket.socket, pid: int, stop_at_ns: int, kill_at_ns: int) -> None:
        self._channel = channel
        self._pid = pid
        self._stop_at_ns = stop_at_ns
        self._kill_at_ns = kill_at_ns
        self._lapsed = False
        self._leader_ended = False
        self._killing = False
        # Written to by the interpreter when a child has changed.
        self._woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while True:
            self._mind_children()
            if self._leader_ended and self._children() <= {self._pid}:
                break
            self._mind_deadlines(boot_ns())
            for descriptor, _ in poll.poll(self._pause_ms(boot_ns())):
                if descriptor == self._woken:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._woken, 4_096)
                elif not self._obey():
                    poll.unregister(self._channel)
        _, status = os.waitpid(self._pid, 0)
        with contextlib.suppress(OSError):
            self._channel.send(_RECORD.pack(_ENDED, status, int(self._lapsed)))

    def _pause_ms(self, now_ns: int) -> int:
        if self._killing:
            return _KILL_AGAIN_MS
        due_ns = min(self._kill_at_ns, _FAR_NS if self._lapsed else self._stop_at_ns)
        return int(min(max(due_ns - now_ns, 0) / 1_000_000 + 1, _NAP_MS))

    # ---- orders ----------------------------------------------------------------------

    def _obey(self) -> bool:
        """Take one order; False if there will be none any more."""
        try:
            raw = self._channel.recv(_RECORD.size)
        except OSError:
            raw = b""
        if len(raw) < _RECORD.size:
            # swarmctl has died: nobody renews, so the lease will lapse.
            self._end_within(ORPHAN_NS)
            return False
        kind, first, second = _RECORD.unpack(raw)
        if kind == _DEADLINES and not self._lapsed and not self._leader_ended:
            self._stop_at_ns, self._kill_at_ns = first, second
        elif kind == _SIGNAL:
            self._signal_group(first)
        elif kind == _KILL:
            self._lapsed = True
            self._kill_at_ns = 0
        return True

    def _mind_deadlines(self, now_ns: int) -> None:
        if now_ns >= self._stop_at_ns and not self._lapsed:
            self._lapsed = not self._leader_ended
            self._stop_at_ns = _FAR_NS
            self._signal_all(signal.SIGTERM)
        if now_ns >= self._kill_at_ns:
            self._killing = True
            self._signal_all(signal.SIGKILL)

    def _end_within(self, grace_ns: int) -> None:
        self._stop_at_ns = 0 if not self._lapsed else _FAR_NS
        self._kill_at_ns = min(self._kill_at_ns, boot_ns() + grace_ns)

    # ---- processes -------------------------------------------------------------------

    def _mind_children(self) -> None:
        """Reap what was left to us, see whether the command has ended, wake what was stopped."""
        for pid in self._children() - {self._pid}:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if self._leader_ended:
            return
        with contextlib.suppress(ChildProcessError):  # It has ended: see below.
            stopped = os.waitid(os.P_PID, self._pid, os.WSTOPPED | os.WNOHANG)
            if stopped is not None and stopped.si_status == signal.SIGTSTP:
                # Its lease goes on, so it cannot pause.
                self._signal_group(signal.SIGCONT)
        if os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            self._leader_ended = True
            if self._children() - {self._pid}:
                self._end_within(LEFTOVER_NS)

    def _children(self) -> set[int]:
        me = os.getpid()
        try:
            return set(map(int, Path(f"/proc/{me}/task/{me}/children").read_text().split()))
        except FileNotFoundError:
            return _children_of(me)  # A kernel without CONFIG_PROC_CHILDREN.

    def _signal_all(self, number: int) -> None:
        self._signal_group(number)
        for pid in self._children() - {self._pid}:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, number)


def _children_of(parent: int) -> set[int]:
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                # The name of the program stands in brackets and may hold anything.
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == parent:
                    found.add(int(name))
    return found

"""Running a command while a lock is held, or while this host leads.

Renewals are this process's work, the command's end in time is the keeper's (`cli/keeper.py`).
The lease counts from the sending of the last renewal that succeeded; each moves the keeper's
deadlines. Signals that this process gets are passed on to the command.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Final

from swarmd.base.errors import LockLost, SwarmError
from swarmd.base.lapse import kill_after_s, renew_after_s, stop_after_s
from swarmd.cli.common import EXIT_FAILED, EXIT_INTERRUPTED
from swarmd.cli.keeper import KeeperGone, Kept, boot_ns, keep

if TYPE_CHECKING:
    from swarmd.client import Client

NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
_S: Final = 1_000_000_000
_RETRY_NS: Final = _S // 5
# A request that gets no answer leaves time for two more before the command is told to end.
_TIMEOUT_SHARE: Final = 1 / 6
_TIMEOUT_MIN_S: Final = 0.3
_TIMEOUT_MAX_S: Final = 5.0
_PASSED_ON: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)

Renew = Callable[["Client"], object]


class Terminated(BaseException):
    """A signal came that ends this program, and what it has begun must be undone first."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = EXIT_INTERRUPTED if number == signal.SIGINT else 128 + number


class Signals:
    """Signals end this program, or go to the command while there is one."""

    def __init__(self) -> None:
        self.command: Kept | None = None
        self.interrupted = False

    def attach(self, command: Kept) -> None:
        """From now on signals go to `command`."""
        self.command = command

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._on_signal) for number in _PASSED_ON}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.command is not None:
            self.interrupted = self.interrupted or number == signal.SIGINT
            self.command.send_signal(number)
        elif number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            raise Terminated(number)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the command ended; `lost`: it was ended because the lease could not be kept."""

    exit_code: int
    lost: bool
    why: str = ""


class Holding:
    """One command under one lease.

    Args:
        client: asked for renewals.
        renew: renews by a client; raises LockLost if the lease has ended.
        ttl_s: of the lease.
        sent_ns: when the last renewal was sent.
    """

    def __init__(
        self, client: Client, renew: Renew, *, ttl_s: float, sent_ns: int, signals: Signals
    ) -> None:
        self._client = client
        self._renew = renew
        self._ttl_s = ttl_s
        self._sent_ns = sent_ns
        self._signals = signals
        self._trouble = ""

    def run(self, command: Sequence[str], environ: Mapping[str, str]) -> Outcome:
        """Run the command to its end; when this returns nothing of it runs any more."""
        self._client.close()  # The keeper must not inherit the connection.
        sys.stdout.flush()
        with _Terminal() as terminal:
            kept = keep(
                command,
                environ,
                stop_at_ns=self._stop_at_ns,
                kill_at_ns=self._kill_at_ns,
                terminal=terminal.descriptor,
                attach=self._signals.attach,
            )
            try:
                return self._attend(kept, command[0])
            except KeeperGone:
                return Outcome(EXIT_FAILED, False, "the command's keeper was killed")
            finally:
                self._signals.command = None
                kept.close()

    def _attend(self, kept: Kept, program: str) -> Outcome:
        try:
            kept.wait_started()
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            why = f"cannot run {program}: {error.strerror}"
            return Outcome(NOT_FOUND if missing else NOT_EXECUTABLE, False, why)
        poll = select.poll()
        poll.register(kept, select.POLLIN)
        due_ns = self._renew_at_ns
        while not poll.poll(max(due_ns - boot_ns(), 0) / 1_000_000 + 1):
            if boot_ns() >= due_ns:
                due_ns = self._renewed(kept)
        ended = kept.ended()
        if ended.lapsed:
            return Outcome(ended.exit_code, True, self._trouble)
        code = EXIT_INTERRUPTED if self._signals.interrupted else ended.exit_code
        return Outcome(code, False)

    def _renewed(self, kept: Kept) -> int:
        """Renew; when to do so next."""
        sent_ns = boot_ns()
        if sent_ns >= self._stop_at_ns:
            return self._kill_at_ns + _S  # The keeper has told the command to end.
        try:
            self._renew(self._client)
        except LockLost as error:
            self._trouble = error.message
            kept.kill()
            return boot_ns() + _S
        except SwarmError as error:
            self._trouble = error.message
            return boot_ns() + _RETRY_NS
        self._sent_ns = sent_ns
        kept.set_deadlines(self._stop_at_ns, self._kill_at_ns)
        return self._renew_at_ns

    @property
    def _renew_at_ns(self) -> int:
        return self._sent_ns + int(renew_after_s(self._ttl_s) * _S)

    @property
    def _stop_at_ns(self) -> int:
        return self._sent_ns + int(stop_after_s(self._ttl_s) * _S)

    @property
    def _kill_at_ns(self) -> int:
        return self._sent_ns + int(kill_after_s(self._ttl_s) * _S)


def request_timeout_s(ttl_s: float) -> float:
    """Longest wait for the answer to a renewal."""
    return min(max(ttl_s * _TIMEOUT_SHARE, _TIMEOUT_MIN_S), _TIMEOUT_MAX_S)


class _Terminal:
    """The terminal, if this program is in its foreground: lent to the command, then taken back."""

    def __init__(self) -> None:
        self.descriptor: int | None = None

    def __enter__(self) -> _Terminal:
        with contextlib.suppress(OSError, ValueError):
            descriptor = sys.stdin.fileno()
            if os.isatty(descriptor) and os.tcgetpgrp(descriptor) == os.getpgrp():
                self.descriptor = descriptor
        return self

    def __exit__(self, *_: object) -> None:
        if self.descriptor is None:
            return
        before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        with contextlib.suppress(OSError):
            os.tcsetpgrp(self.descriptor, os.getpgrp())
        signal.signal(signal.SIGTTOU, before)

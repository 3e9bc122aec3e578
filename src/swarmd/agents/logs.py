"""What agents printed and logged on this node: bounded rings in memory, never on disk.

Text from agents is hostile: control characters are replaced before a line is kept, so that
showing it cannot move a cursor or recolour a terminal, and lengths are cut.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from typing import Final

import trio

from swarmd.agents.attempts import LogLine
from swarmd.observe.redaction import NOTHING_HIDDEN, Redactor

_AGENTS_MAX: Final = 256
# Lines taken from one read; the rest of a flood is counted, not kept.
BATCH_LINES_MAX: Final = 200
_CONTROL: Final = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def clean(text: str, bytes_max: int) -> str:
    """`text` as one printable line of at most about `bytes_max` bytes."""
    cut = text if len(text) <= bytes_max else text[:bytes_max] + "..."
    return _CONTROL.sub("\ufffd", cut)


class LineCutter:
    """Cuts a stream of output into lines; a line without end is cut at `line_bytes_max`.

    `redactor` takes out what must not be shown, also where it came in two parts: of a line
    without end the last few bytes wait for what follows.
    """

    def __init__(self, line_bytes_max: int, redactor: Redactor = NOTHING_HIDDEN) -> None:
        self._max = line_bytes_max
        self._redactor = redactor
        # Of the line that is not complete: what is settled, and what may be a part of a value.
        self._line = b""
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes: at most BATCH_LINES_MAX and one that counts others."""
        lines: list[bytes] = []
        # No value that is looked for goes over the end of a line.
        complete, end, rest = (self._rest + data).rpartition(b"\n")
        if end:
            lines = (self._line + self._redactor.raw(complete)).split(b"\n")
            self._line = b""
        settled, self._rest = self._redactor.settled(rest)
        self._line += settled
        if len(self._line) > self._max:
            lines.append(self._line)
            self._line = b""
        lines = [line for line in lines if line.strip()]
        over = len(lines) - BATCH_LINES_MAX
        if over > 0:
            del lines[: over + 1]
            lines.insert(0, b"(%d lines left out)" % (over + 1))
        return [clean(line.decode(errors="replace"), self._max) for line in lines]

    def finish(self) -> list[str]:
        """What was printed without a newline at the end."""
        return self.feed(b"\n") if self._line or self._rest else []


class LogBook:
    """A ring of lines per agent."""

    def __init__(self, *, lines_max: int, first_sequence: int = 0) -> None:
        self._lines_max = lines_max
        self._rings: OrderedDict[str, deque[LogLine]] = OrderedDict()
        # One counter for all agents: a ring that was dropped and begun again never goes back.
        self._sequence = first_sequence
        self._news = trio.Event()

    def add(self, agent: str, wall_ms: int, task_id: str, attempt: int, text: str) -> None:
        ring = self._rings.get(agent)
        if ring is None:
            ring = self._rings[agent] = deque(maxlen=self._lines_max)
            if len(self._rings) > _AGENTS_MAX:
                self._rings.popitem(last=False)
        self._sequence += 1
        ring.append(LogLine(self._sequence, wall_ms, task_id, attempt, text))
        if self._news.statistics().tasks_waiting:
            self._news.set()
            self._news = trio.Event()

    def lines(self, agent: str, *, after: int = 0, limit: int | None = None) -> list[LogLine]:
        """The agent's lines with a sequence above `after`, oldest first; the last `limit`."""
        found: deque[LogLine] = deque(maxlen=limit)
        for line in reversed(self._rings.get(agent, ())):
            if line.sequence <= after or (limit is not None and len(found) >= limit):
                break
            found.appendleft(line)
        return list(found)

    async def news(self) -> None:
        """Return once any agent has a line more than now."""
        await self._news.wait()

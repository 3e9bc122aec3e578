"""Structured logs: one line per event, key=value for people or JSON for machines.

Every line names its event; the node is bound once, at start. Values that could hold secrets
are never logged: pass ids and sizes, not payloads. Should one slip in nevertheless, the values
that this process was told to hide do not get through.
"""

from __future__ import annotations

import logging
import sys
from collections import OrderedDict
from types import TracebackType
from typing import Any, Final, Literal, cast

from swarmd.base.spared import spared
from swarmd.observe.redaction import VALUE_CHARS_MIN, Redactor

# structlog loads rich, where it is, to draw tracebacks: 5 MB that a daemon's log has no use for.
with spared({"rich": None}):
    import structlog

Level = Literal["debug", "info", "warning", "error"]

# The latest of them; each costs a little with every line.
HIDDEN_MAX: Final = 64


class _Hidden:
    """Values that this process knows and never writes."""

    def __init__(self) -> None:
        self._names: OrderedDict[str, str] = OrderedDict()
        self._redactor: Redactor | None = Redactor()

    def add(self, name: str, value: str) -> None:
        if len(value) < VALUE_CHARS_MIN:
            return
        if self._names.get(value) != name:
            self._names[value] = name
            self._redactor = None
        self._names.move_to_end(value)
        if len(self._names) > HIDDEN_MAX:
            self._names.popitem(last=False)

    def out_of(self, text: str) -> str:
        if self._redactor is None:
            self._redactor = Redactor((name, value) for value, name in self._names.items())
        return self._redactor.text(text)


_HIDDEN: Final = _Hidden()


def hide(name: str, value: str) -> None:
    """Never write `value`, a secret of that name, in this process's log or crash."""
    _HIDDEN.add(name, value)


def _hide_values(_logger: Any, _method: str, line: Any) -> Any:
    """The last processor: what it is given is written."""
    return _HIDDEN.out_of(line) if isinstance(line, str) else line


def _hide_in_crash(
    kind: type[BaseException], error: BaseException, where: TracebackType | None
) -> None:
    import traceback

    text = "".join(traceback.format_exception(kind, error, where))
    sys.stderr.write(_HIDDEN.out_of(text))


def configure(level: Level, *, json: bool, **bound: str) -> None:
    """Set up logging for this process, on stderr, with `bound` on every line."""
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
            _hide_values,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    sys.excepthook = _hide_in_crash
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**bound)


def get_logger(room: str) -> structlog.typing.FilteringBoundLogger:
    """A logger for one room; bind the peer or the task at the call."""
    return cast(structlog.typing.FilteringBoundLogger, structlog.get_logger(room=room))

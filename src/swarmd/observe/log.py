"""Structured logs: one line per event, key=value for people or JSON for machines.

Every line names its event; the node is bound once, at start. Values that could hold secrets
are never logged: pass ids and sizes, not payloads.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal, cast

# structlog loads rich, where it is, to draw tracebacks: 5 MB that a daemon's log has no use for.
_drawn: Any = sys.modules.get("rich")
sys.modules["rich"] = cast(Any, None)
import structlog  # noqa: E402

if _drawn is None:
    del sys.modules["rich"]
else:
    sys.modules["rich"] = _drawn

Level = Literal["debug", "info", "warning", "error"]


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
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**bound)


def get_logger(room: str) -> structlog.typing.FilteringBoundLogger:
    """A logger for one room; bind the peer or the task at the call."""
    return cast(structlog.typing.FilteringBoundLogger, structlog.get_logger(room=room))

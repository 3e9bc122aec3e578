"""Tables and sizes for people: at most 80 columns on a terminal, coloured only there."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

COLUMNS_MAX: Final = 80
GAP: Final = 2
_NARROWEST: Final = 8

_COLOURS: Final = {
    "ok": 32,
    "alive": 32,
    "succeeded": 32,
    "idle": 32,
    "busy": 36,
    "running": 36,
    "assigned": 36,
    "warn": 33,
    "suspect": 33,
    "pending": 33,
    "unknown": 33,
    "starting": 33,
    "cancelled": 33,
    "fail": 31,
    "dead": 31,
    "failed": 31,
    "no_quorum": 31,
}


def colour(word: str) -> str:
    """`word` in the colour of the state it names, on a terminal without NO_COLOR."""
    code = _COLOURS.get(word.strip())
    if code is None or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return word
    return f"\x1b[{code}m{word}\x1b[0m"


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    whole: int = 0,
    columns_max: int = COLUMNS_MAX,
) -> str:
    """Left-aligned columns; the widest are cut with an ellipsis until a line fits.

    The first `whole` columns are never cut: ids are there to be copied.
    """
    cells = [[" ".join(cell.split()) for cell in row] for row in rows]
    widths = [
        max([len(head), *(len(row[index]) for row in cells)]) for index, head in enumerate(heads)
    ]
    while sum(widths) + GAP * (len(widths) - 1) > columns_max:
        widest = max(range(whole, len(widths)), key=widths.__getitem__)
        if widths[widest] <= _NARROWEST:
            break
        widths[widest] -= 1
    lines = [_line(heads, widths, plain=True)]
    lines += [_line(row, widths, plain=False) for row in cells]
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int], *, plain: bool) -> str:
    parts = []
    for cell, width in zip(cells, widths, strict=True):
        shown = cell if len(cell) <= width else cell[: width - 1] + "…"
        padded = shown.ljust(width)
        parts.append(padded if plain else padded.replace(shown, colour(shown), 1))
    return (" " * GAP).join(parts).rstrip()


def printable(text: str) -> str:
    """`text` on one line, with what a terminal would obey shown instead of sent."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else _escape(c) for c in text)


def _escape(character: str) -> str:
    return repr(character)[1:-1]


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """Names and what is so, one below the other; long values wrap under themselves."""
    import textwrap

    width = max(len(name) for name, _ in rows) + GAP
    lines: list[str] = []
    for name, value in rows:
        wrapped = textwrap.wrap(value, COLUMNS_MAX - width) or [""]
        lines.append(name.ljust(width) + wrapped[0])
        lines += [" " * width + more for more in wrapped[1:]]
    return "\n".join(lines)


def ago(seconds: float) -> str:
    """A length of time in its largest unit."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def time_left(left_ms: float) -> str:
    """How long a credential is good for."""
    return ago(left_ms / 1000) if left_ms > 0 else "expired"


def size(count: int) -> str:
    """Bytes in the unit that reads best."""
    if count < 1024:
        return f"{count} B"
    if count < 1024 * 1024:
        return f"{count / 1024:.0f} KiB"
    return f"{count / 1024 / 1024:.1f} MiB"

"""Takes what must not be shown out of text: values by name, in the forms they commonly take.

A value is found as it is, line by line if it has several, as base64 (also within something that
was encoded as a whole), as hexadecimal digits, and as URLs, JSON and Python write it. What is
shorter than 8 characters is left alone: it would be found everywhere. This is a guard against
accidents; who means to get a value past it, can.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final
from urllib.parse import quote, quote_plus

VALUE_CHARS_MIN: Final = 8
# Lines of a value are looked for in pieces of so many characters, whatever writes them: all ways
# to write one cut it at the same places, so that none takes a part of what another would find.
_LINE_CHARS: Final = 64
# So is what a value as a whole was encoded to.
_ENCODED_CHARS: Final = 256
# So many finds cost about 10 ms in as much as is read of an agent at once.
FORMS_MAX: Final = 2_048
_REMAINDERS: Final = range(3)
# So often is it looked for a place to cut; then nothing is kept.
_MOVES_MAX: Final = 16


class Redactor:
    """Replaces the forms of some values by `[secret NAME]`. Making it costs, using it little."""

    def __init__(self, values: Iterable[tuple[str, str]] = ()) -> None:
        found: dict[str, str] = {}
        # The shortest first: a long one must not take the room of others.
        for name, value in sorted(values, key=lambda one: len(one[1])):
            for form in _forms(value):
                if len(found) >= FORMS_MAX:
                    break
                found.setdefault(form, f"[secret {name}]")
        # The longest first: a form may be part of another one.
        self._forms: Sequence[tuple[str, str]] = sorted(
            found.items(), key=lambda one: (-len(one[0]), one[0])
        )
        self._raw = [(form.encode(), shown.encode()) for form, shown in self._forms]
        self.bytes_max = max((len(form) for form, _ in self._raw), default=0)
        """The longest of what is looked for; so much may be split between two reads."""
        self.chars_max = max((len(form) for form, _ in self._forms), default=0)

    def text(self, text: str, *, start_cut: bool = False, end_cut: bool = False) -> str:
        """`text` without them.

        Args:
            start_cut, end_cut: there was more before, or after: what may be a part of a value
                goes there, too.
        """
        start, end = 0, len(text)
        if self._forms and start_cut:
            start = self._outside(text, min(len(text), self.chars_max), forwards=True)
        if self._forms and end_cut:
            end = self._outside(text, max(0, len(text) - self.chars_max), forwards=False)
        kept = text[start:end]
        for form, shown in self._forms:
            if form in kept:
                kept = kept.replace(form, shown)
        return ("..." if start_cut else "") + kept + ("..." if end_cut else "")

    def _outside(self, text: str, edge: int, *, forwards: bool) -> int:
        """`edge`, moved to where it is within nothing that is looked for."""
        for _ in range(_MOVES_MAX):
            moved = edge
            for form, _shown in self._forms:
                # All that is found here begins before the edge and ends after it.
                first = max(0, moved - len(form) + 1)
                at = text.find(form, first, moved + len(form) - 1)
                if at >= 0:
                    moved = at + len(form) if forwards else at
            if moved == edge:
                return edge
            edge = moved
        return len(text) if forwards else 0

    def raw(self, data: bytes) -> bytes:
        for form, shown in self._raw:
            if form in data:
                data = data.replace(form, shown)
        return data


NOTHING_HIDDEN: Final = Redactor()


def _forms(value: str) -> Iterator[str]:
    """What to look for, each with at least `VALUE_CHARS_MIN` characters."""
    for line in value.split("\n"):
        for piece in _pieces(line.strip("\r"), _LINE_CHARS):
            yield from _spellings(piece)
    raw = value.encode("utf-8", "surrogatepass")
    for form in (*_base64_forms(raw), raw.hex(), raw.hex().upper()):
        yield from _pieces(form, _ENCODED_CHARS)


def _spellings(text: str) -> Iterator[str]:
    """`text` as it is written character by character in JSON, in Python, in a URL."""
    yield text
    yield json.dumps(text)[1:-1]
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield repr(text)[1:-1]
    yield repr('"' + text)[2:-1]  # As part of a text that has both kinds of quotes.
    for escaped in (
        quote(text, safe="", errors="replace"),
        quote(text, errors="replace"),
        quote_plus(text, errors="replace"),
    ):
        yield escaped
        yield _lower_escapes(escaped)


def _lower_escapes(text: str) -> str:
    first, *rest = text.split("%")
    return "%".join((first, *(part[:2].lower() + part[2:] for part in rest)))


def _base64_forms(raw: bytes) -> Iterator[str]:
    """For each place that the value may have within what is encoded, what is the same there."""
    if len(raw) < VALUE_CHARS_MIN:
        return
    for before in _REMAINDERS:
        whole = base64.b64encode(bytes(before) + raw).decode()
        form = whole[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]
        yield form
        yield form.replace("+", "-").replace("/", "_")


def _pieces(text: str, chars_max: int) -> Iterator[str]:
    """`text` cut alike, so that no piece is too short to be looked for."""
    if len(text) < VALUE_CHARS_MIN:
        return
    count = -(-len(text) // chars_max)
    edges = [len(text) * number // count for number in range(count + 1)]
    yield from (text[start:end] for start, end in pairwise(edges))

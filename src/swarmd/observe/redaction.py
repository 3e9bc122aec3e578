"""Takes what must not be shown out of text: values by name, in the forms they commonly take.

A value is found as it is, line by line if it has several, as base64 (also within something that
was encoded as a whole), as hexadecimal digits, and as URLs, JSON and Python write it. What is
shorter than 8 characters is left alone: it would be found everywhere. This is a guard against
accidents; who means to get a value past it, can.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import AnyStr, Final, Generic
from urllib.parse import quote, quote_plus

VALUE_CHARS_MIN: Final = 8
# Lines of a value are looked for in pieces of so many characters, whatever writes them: all ways
# to write one cut it at the same places, so that none takes a part of what another would find.
_LINE_CHARS: Final = 64
# So is what a value as a whole was encoded to.
_ENCODED_CHARS: Final = 256
# All that an agent may be given, as it is; making so many takes tens of milliseconds. Looking for
# them takes as long as for a few.
FORMS_MAX: Final = 4_096
_REMAINDERS: Final = range(3)
# A form that is there has one of its first few groups of so many characters at a multiple of
# `_STRIDE`, and only these places are looked at.
_GROUP: Final = 4
_STRIDE: Final = VALUE_CHARS_MIN - _GROUP + 1


class _Finder(Generic[AnyStr]):
    """Finds forms in a text of their kind, in a time that hardly grows with their number."""

    def __init__(self, forms: Iterable[tuple[AnyStr, AnyStr]]) -> None:
        self._heads: dict[AnyStr, list[tuple[AnyStr, AnyStr]]] = {}
        self._places: dict[AnyStr, list[int]] = {}
        self.longest = 0
        # The longest first: a form may be the beginning of another one.
        for form, shown in sorted(forms, key=lambda one: -len(one[0])):
            self.longest = max(self.longest, len(form))
            self._heads.setdefault(form[:VALUE_CHARS_MIN], []).append((form, shown))
        for head in self._heads:
            for place in range(_STRIDE):
                places = self._places.setdefault(head[place : place + _GROUP], [])
                if place not in places:
                    places.append(place)
        for places in self._places.values():
            places.sort(reverse=True)

    def spans(self, text: AnyStr) -> list[tuple[int, int, AnyStr]]:
        """Where something is and what is shown for it, in order; what overlaps is one span."""
        found: list[tuple[int, int, AnyStr]] = []
        if not self._heads:
            return found
        for at in range(0, len(text), _STRIDE):
            for place in self._places.get(text[at : at + _GROUP], ()):
                start = at - place
                if start < 0:
                    continue
                for form, shown in self._heads.get(text[start : start + VALUE_CHARS_MIN], ()):
                    if text.startswith(form, start):
                        self._add(found, start, start + len(form), shown)
                        break
        return found

    @staticmethod
    def _add(found: list[tuple[int, int, AnyStr]], start: int, end: int, shown: AnyStr) -> None:
        if found and start < found[-1][1]:
            before = found[-1]
            found[-1] = (before[0], max(before[1], end), before[2])
        else:
            found.append((start, end, shown))

    def shown(self, text: AnyStr, start: int, end: int) -> tuple[list[AnyStr], int]:
        """The parts of what is shown of `text` from `start` to `end`, and where that ends.

        What begins before `start` is not shown, what begins before `end` is as a whole.
        """
        parts: list[AnyStr] = []
        for first, after, instead in self.spans(text):
            if first >= end:
                break
            if first >= start:
                parts += (text[start:first], instead)
            start = max(start, after)
        if start < end:
            parts.append(text[start:end])
        return parts, max(start, end)


class Redactor:
    """Replaces the forms of some values by `[secret NAME]`. Making it costs, using it little."""

    def __init__(self, values: Iterable[tuple[str, str]] = ()) -> None:
        self.forms = _forms_of(values)
        self._text = _Finder(self.forms.items())
        self._raw = _Finder(
            (form.encode(), shown.encode()) for form, shown in self.forms.items() if _is_utf8(form)
        )

    def text(self, text: str, *, start_cut: bool = False, end_cut: bool = False) -> str:
        """`text` without them.

        Args:
            start_cut, end_cut: there was more before, or after: what may be a part of a value
                goes there, too.
        """
        start = self._text.longest if start_cut else 0
        end = len(text) - (self._text.longest if end_cut else 0)
        parts, _ = self._text.shown(text, start, max(start, end))
        return ("..." if start_cut else "") + "".join(parts) + ("..." if end_cut else "")

    def raw(self, data: bytes) -> bytes:
        return b"".join(self._raw.shown(data, 0, len(data))[0])

    def settled(self, data: bytes) -> tuple[bytes, bytes]:
        """The beginning of `data`, without them, as far as what follows cannot change it; and the
        rest as it is, shorter than the longest of what is looked for."""
        end = max(0, len(data) - max(0, self._raw.longest - 1))
        parts, end = self._raw.shown(data, 0, end)
        return b"".join(parts), data[end:]


def _forms_of(values: Iterable[tuple[str, str]]) -> dict[str, str]:
    """What to look for and what to show for it, at most `FORMS_MAX`: all values as they are
    before any as it is written in another way, and the shortest first, as a long one must not
    take the room of others."""
    found: dict[str, str] = {}
    ordered = sorted(values, key=lambda one: len(one[1]))
    for forms in (_plain, _written, _encoded):
        for name, value in ordered:
            for form in forms(value):
                if len(found) >= FORMS_MAX:
                    return found
                found.setdefault(form, f"[secret {name}]")
    return found


def _plain(value: str) -> Iterator[str]:
    """A value as it is, each piece with at least `VALUE_CHARS_MIN` characters; so are others."""
    for line in value.split("\n"):
        yield from _pieces(line.strip("\r"), _LINE_CHARS)


def _written(value: str) -> Iterator[str]:
    for piece in _plain(value):
        yield from _spellings(piece)


def _encoded(value: str) -> Iterator[str]:
    raw = value.encode("utf-8", "surrogatepass")
    for form in (*_base64_forms(raw), raw.hex(), raw.hex().upper()):
        yield from _pieces(form, _ENCODED_CHARS)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _spellings(text: str) -> Iterator[str]:
    """`text` as it is written character by character in JSON, in Python, in a URL."""
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


NOTHING_HIDDEN: Final = Redactor()

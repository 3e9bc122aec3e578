"""What a topic is, and what a subscriber asks for. Pure.

A topic is a text such as `orders/paid`. A *filter* is a topic, or the beginning of some: `orders/*`
fits all that begin with `orders/`, and `*` fits every topic but those of single subscribers. A
topic that begins with `@` is one subscriber's name: what is published there is for it alone, so
only the name itself, or a filter that begins with `@`, fits it. What is published to `*` is for
everybody: it fits every filter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from swarmd.base.errors import BadName
from swarmd.base.limits import TOPIC_BYTES_MAX

EVERYBODY: Final = "*"
DIRECT: Final = "@"


def check_topic(topic: str) -> str:
    """`topic`, if one may publish to it. Raises BadName."""
    check_filter(topic)
    if topic != EVERYBODY and topic.endswith("*"):
        raise BadName(f"{topic!r} fits many topics: publish to one of them, or to * for everybody")
    return topic


def check_filter(text: str) -> str:
    """`text`, if one may subscribe to it. Raises BadName."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise BadName("a topic is valid Unicode text") from error
    if not 0 < size <= TOPIC_BYTES_MAX:
        raise BadName(f"a topic has 1 to {TOPIC_BYTES_MAX} bytes, not {size}")
    if "*" in text[:-1]:
        raise BadName(f"the topic {text!r} has a '*' that is not its end")
    if text == DIRECT:
        raise BadName("after the @ comes the name of a subscriber")
    if not text.isprintable() or " " in text:
        raise BadName(f"the topic {text!r} has spaces or control characters")
    return text


class Filters:
    """Some filters, to be held against many topics."""

    __slots__ = ("_exact", "_prefixes")

    def __init__(self, filters: Iterable[str] = ()) -> None:
        found = list(filters)
        self._exact = frozenset(found)
        self._prefixes = tuple(one[:-1] for one in found if one.endswith("*"))

    def __bool__(self) -> bool:
        return bool(self._exact)

    def fit(self, topic: str) -> bool:
        if topic == EVERYBODY:
            return bool(self._exact)
        if topic in self._exact:
            return True
        direct = topic.startswith(DIRECT)
        return any(
            topic.startswith(prefix) and (prefix.startswith(DIRECT) or not direct)
            for prefix in self._prefixes
        )

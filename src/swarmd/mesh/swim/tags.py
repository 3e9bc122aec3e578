"""Tags: what a node's operator says of it, such as rack=a. They tell; nothing is decided by them.

They travel with everything that a node says about itself, so they are small: with the longest name
and addresses all of it must fit META_BYTES_MAX, or a change of addresses could not be told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from swarmd.base.errors import BadRequest, TooLarge
from swarmd.mesh.swim.messages import TAGS_MAX

Tags = tuple[tuple[str, str], ...]

TAG_CHARS_MAX: Final = 64
TAGS_BYTES_MAX: Final = 144
# The heads of a pair and of its two strings, encoded.
_PAIR_BYTES: Final = 5
_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


def checked_tags(tags: Mapping[str, str]) -> Tags:
    """`tags` as they are told, sorted by key.

    Raises:
        BadRequest: there are more than TAGS_MAX, or one has a form that is not allowed.
        TooLarge: together they exceed TAGS_BYTES_MAX.
    """
    if len(tags) > TAGS_MAX:
        raise BadRequest(f"a node has at most {TAGS_MAX} tags, and these are {len(tags)}")
    for key, value in tags.items():
        _check(key, value)
    size = sum(len(key) + len(value.encode()) + _PAIR_BYTES for key, value in tags.items())
    if size > TAGS_BYTES_MAX:
        raise TooLarge(
            f"the tags take {size} bytes, {_PAIR_BYTES} more for each than its key and value, and "
            f"at most {TAGS_BYTES_MAX} fit: use fewer or shorter ones"
        )
    return tuple(sorted(tags.items()))


def _check(key: str, value: str) -> None:
    if len(key) > TAG_CHARS_MAX or not _KEY.fullmatch(key):
        raise BadRequest(
            f"{key[:TAG_CHARS_MAX]!r} is no key of a tag: use letters, digits, dashes and "
            f"underscores, at most {TAG_CHARS_MAX}"
        )
    if len(value) > TAG_CHARS_MAX or not value.isprintable():
        raise BadRequest(
            f"the tag {key} must have a value of at most {TAG_CHARS_MAX} printable characters"
        )

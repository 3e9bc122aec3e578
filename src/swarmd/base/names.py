"""Names, checked before anything is made or asked of them."""

from __future__ import annotations

import re
from typing import Final

from swarmd.base.errors import BadName, BadRequest
from swarmd.base.limits import NAME_BYTES_MAX, RECIPE_NAME_BYTES_MAX

_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)


def check_name(name: str, what: str) -> None:
    """Refuse, with BadRequest, a name that could confuse a table, a path or a shell."""
    if len(name) > NAME_BYTES_MAX:
        raise BadRequest(f"a {what} name has at most {NAME_BYTES_MAX} characters")
    if not _NAME.fullmatch(name):
        raise BadRequest(
            f"{name!r} is not a {what} name: use letters, digits, dots, dashes and underscores, "
            "beginning and ending with a letter or digit"
        )


def checked_name(name: str) -> bytes:
    """The name of a lock, an election, a barrier or a counter as it stands in keys.

    Raises:
        BadName: it is empty, too long, or has characters that a key must not have.
    """
    try:
        raw = name.encode()
    except UnicodeEncodeError as error:
        raise BadName("a name is valid Unicode text") from error
    if not 0 < len(raw) <= RECIPE_NAME_BYTES_MAX:
        raise BadName(f"a name has 1 to {RECIPE_NAME_BYTES_MAX} bytes, not {len(raw)}")
    if "/" in name:
        raise BadName(f"the name {name!r} has a '/': use another character, such as '.'")
    if not all(map(_is_visible, name)):
        raise BadName(f"the name {name!r} has control characters")
    return raw


def _is_visible(character: str) -> bool:
    return character == " " or (character.isprintable() and not character.isspace())

"""Names of locks, elections, barriers and counters: checked before anything is asked of them."""

from __future__ import annotations

from swarmd.base.errors import BadName
from swarmd.base.limits import RECIPE_NAME_BYTES_MAX


def checked_name(name: str) -> bytes:
    """The name as it stands in keys.

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

"""What names, keys, times to live and values of shared memory may be, in any namespace."""

from __future__ import annotations

from typing import Any, Final

from swarmd.base.errors import BadRequest, EmptyKey, KeyTooLong
from swarmd.base.limits import MEMORY_KEY_BYTES_MAX
from swarmd.base.names import check_name
from swarmd.wire.codec import pack

TTL_MAX_S: Final = 10 * 365 * 24 * 3_600
_AUTHOR_CHARS_MAX: Final = 200


def check_namespace(namespace: str) -> None:
    """Raises BadRequest."""
    check_name(namespace, "namespace")


def name_of(namespace: str, key: str) -> str:
    """The key with its namespace. Raises BadRequest, EmptyKey, KeyTooLong."""
    check_namespace(namespace)
    if not key:
        raise EmptyKey("a key is not empty: nothing changed")
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise BadRequest("a key is valid Unicode text: nothing changed") from error
    if size > MEMORY_KEY_BYTES_MAX:
        raise KeyTooLong(f"a key has at most {MEMORY_KEY_BYTES_MAX} bytes: nothing changed")
    return f"{namespace}/{key}"


def key_of(name: str) -> str:
    """A key without its namespace."""
    return name.partition("/")[2]


def ttl_ms(ttl_s: float) -> int:
    """Raises BadRequest."""
    if not 0 < ttl_s <= TTL_MAX_S:
        raise BadRequest(f"a time to live is above 0 and at most {TTL_MAX_S} s")
    return max(1, round(ttl_s * 1_000))


def author(by: str) -> str:
    """Who wrote, as far as it is kept."""
    return by[:_AUTHOR_CHARS_MAX]


def encoded(text: str) -> bytes:
    """Raises BadRequest."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest("a prefix is valid Unicode text") from error


def size_of(value: Any) -> int:
    """Bytes of a value as it is kept. Raises MalformedMessage: msgpack cannot carry it."""
    return len(pack(value))

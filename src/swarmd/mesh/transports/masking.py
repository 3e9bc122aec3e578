"""Masks of WebSocket frames within TLS: all zeros.

A client masks what it sends with bytes that nobody can foresee, so that a script in a browser
cannot choose what an intermediary gets to see (RFC 6455, sections 5.3 and 10.3). Between nodes
there is neither: TLS goes from one end to the other, and swarmd is at both. A mask of zeros, which
every peer understands, leaves the bytes as they are; to mask and to unmask took longer than TLS.

wsproto has no setting for it, so this reaches into the pinned library; see `docs/dependencies.md`.
What else uses it in this process, Hypercorn, is a server, and servers do not mask.
"""

from __future__ import annotations

from typing import Any, Final

from wsproto import frame_protocol as _library
from wsproto.frame_protocol import XorMaskerSimple

_ZEROS: Final = bytes(4)


class _Masker(XorMaskerSimple):
    """Masks and unmasks, unless that changes nothing."""

    def __init__(self, masking_key: bytes | bytearray) -> None:
        super().__init__(masking_key)
        self._idle = masking_key == _ZEROS

    def process(self, data: bytearray) -> bytearray:
        return data if self._idle else super().process(data)


class _NoChance:
    """Stands where the library expects the module that its masks come from."""

    @staticmethod
    def urandom(count: int) -> bytes:
        return bytes(count)


def tame() -> None:
    """Have the library mask with zeros. Raises ImportError if it is not as it was."""
    library: Any = _library
    for name in ("XorMaskerSimple", "os"):
        if not hasattr(library, name):
            raise ImportError(f"wsproto has no {name} any more: look at swarmd's masking.py")
    library.XorMaskerSimple = _Masker
    library.os = _NoChance

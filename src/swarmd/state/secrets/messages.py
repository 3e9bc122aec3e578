"""What members say to each other about secrets and their keys, over links that hide it.

Keys go to members that may vote and to nobody else; who asks is judged by the authority log.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from swarmd.base.limits import SECRET_BYTES_MAX
from swarmd.wire.codec import Family, Message

# A node keeps more keys than the ring has: some may never have got into it.
KEYS_MAX: Final = 32
_KEY_BYTES: Final = 32

Key = Annotated[bytes, Meta(min_length=_KEY_BYTES, max_length=_KEY_BYTES)]


class HeldKey(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A key. It gets into the ring over the ring of revision `after`, or never."""

    raw: Key
    after: Annotated[int, Meta(ge=0)] = 0

    def __repr__(self) -> str:
        return "HeldKey(...)"


HeldKeys = Annotated[tuple[HeldKey, ...], Meta(max_length=KEYS_MAX)]


class KeysAsk(Message, frozen=True, tag=1):
    """Which keys do you hold? Answered by `Keys`."""


class Keys(Message, frozen=True, tag=2):
    keys: HeldKeys


class Keep(Message, frozen=True, tag=3):
    """Hold these as well, on disk before you answer `Kept`."""

    keys: HeldKeys


class Kept(Message, frozen=True, tag=4):
    """They are on disk."""


class RingAsk(Message, frozen=True, tag=5):
    """To the coordinator: see to it that there is a ring with a key that is held. `Keys` answers.

    With `fresh` it shall be another key than now.
    """

    fresh: bool = False


class SetAsk(Message, frozen=True, tag=6):
    """From a member without keys: set this secret. Answered by `SetDone`."""

    name: str
    value: Annotated[str, Meta(max_length=SECRET_BYTES_MAX)]
    by: Annotated[str, Meta(max_length=128)]

    def __repr__(self) -> str:
        return f"SetAsk({self.name!r}, ...)"


class SetDone(Message, frozen=True, tag=7):
    version: int


SECRETS = Family("secrets", KeysAsk, Keys, Keep, Kept, RingAsk, SetAsk, SetDone)

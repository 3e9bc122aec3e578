"""What nodes say to each other about their audit logs.

`HeldAsk` -> `Held`, page after page: what there is of each life. `PullAsk` -> `Page`: batches of
one. `News`, unasked: a node has written more of its own, which comes along if it fits.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from swarmd.audit.records import (
    BATCH_BYTES_MAX,
    BeforeNumber,
    ChainId,
    Hash,
    Ms,
    Number,
    Parent,
    Part,
)
from swarmd.base.limits import KIB, MESSAGE_BYTES_MAX
from swarmd.wire.codec import Family, Message

HELD_MAX: Final = 500
SUM_BYTES: Final = 16
PAGE_BYTES: Final = 128 * KIB
PAGE_BATCHES_MAX: Final = 1_024  # As `store.BATCHES_MAX`.
assert PAGE_BYTES + BATCH_BYTES_MAX < MESSAGE_BYTES_MAX


Batches = Annotated[
    tuple[Annotated[bytes, Meta(max_length=BATCH_BYTES_MAX)], ...],
    Meta(max_length=PAGE_BATCHES_MAX),
]


class HeldLife(Part, frozen=True):
    """One life as its holder has it: from the record `first` to `last`, whose hash this is.

    `written_ms` is when the holder wrote that one, by its own clock.
    """

    chain: ChainId
    parent: Parent
    begin: Number
    first: Number
    last: Number
    hash: Hash
    written_ms: Ms


class HeldAsk(Message, frozen=True, tag=1):
    """Which lives do you hold, above `after` in their order? None, if `sum` is that of yours."""

    after: ChainId | None = None
    sum: Annotated[bytes, Meta(max_length=SUM_BYTES)] = b""


class Held(Message, frozen=True, tag=2):
    lives: Annotated[tuple[HeldLife, ...], Meta(max_length=HELD_MAX)]
    more: bool


class PullAsk(Message, frozen=True, tag=3):
    """What do you hold of this life above the record `after`?"""

    chain: ChainId
    after: BeforeNumber


class Page(Message, frozen=True, tag=4):
    """Batches in order. None: there is nothing above `after`."""

    batches: Batches


class News(Message, frozen=True, tag=5):
    """My life `chain` goes up to the record `last`, by these batches, or by more than fit."""

    chain: ChainId
    last: Number
    batches: Batches


AUDIT: Final = Family("audit", HeldAsk, Held, PullAsk, Page, News)

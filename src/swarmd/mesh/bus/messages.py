"""What the buses of two nodes say to each other, over streams.

`life` is drawn by each node whenever its bus opens: `life` is the sender's, `to` the receiver's as
the sender knows it. What names another life than the present one is about a process that is gone.
A *lane* is a sender's place at its node; posts of one lane are numbered from 1 on towards each
other node, and in each `session`: a sender that gave up on posts begins another one.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from swarmd.base.limits import (
    BUS_DATA_BYTES_MAX,
    BUS_FILTERS_MAX,
    BUS_LANES_MAX,
    MESSAGE_BYTES_MAX,
    TOPIC_BYTES_MAX,
)
from swarmd.wire.codec import Family, Message

POSTS_MAX: Final = 256
POSTS_BYTES_MAX: Final = 256 * 1024
SLOW_NAMED_MAX: Final = 8
PATIENCE_MS_MAX: Final = 60_000

assert POSTS_BYTES_MAX + BUS_DATA_BYTES_MAX + POSTS_MAX * 1_024 < MESSAGE_BYTES_MAX
assert BUS_FILTERS_MAX * (TOPIC_BYTES_MAX + 8) < MESSAGE_BYTES_MAX

Life = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**62)]
Topic = Annotated[str, Meta(min_length=1, max_length=TOPIC_BYTES_MAX)]
Name = Annotated[str, Meta(max_length=TOPIC_BYTES_MAX)]
LaneNumber = Annotated[int, Meta(ge=0, lt=BUS_LANES_MAX)]


class _Part(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pass


class Interest(Message, frozen=True, tag=1):
    """What this node's subscribers ask for. `ask` wants the other's in return.

    Who has `begun` publishes, or has subscribers, and wants to be told of changes.
    `knows_life` and `knows_version` are what the sender holds of the receiver (0: nothing). Without
    `filters` the receiver holds this version already.
    """

    life: Life
    version: Count
    knows_life: Count
    knows_version: Count
    ask: bool
    begun: bool
    filters: Annotated[tuple[Topic, ...], Meta(max_length=BUS_FILTERS_MAX)] | None = None


class _InSession(Message, frozen=True):
    """From one life to another, in a session that the sender of its posts began."""

    life: Life
    to: Life
    session: Count


class Post(_Part, frozen=True):
    """`done`: every post of the lane up to it has been settled with the sender."""

    lane: LaneNumber
    number: Count
    done: Count
    topic: Topic
    sender: Name
    data: Annotated[bytes, Meta(max_length=BUS_DATA_BYTES_MAX)]
    patience_ms: Annotated[int, Meta(ge=0, le=PATIENCE_MS_MAX)]


class Posts(_InSession, frozen=True, tag=2):
    posts: Annotated[tuple[Post, ...], Meta(max_length=POSTS_MAX)]


class Result(_Part, frozen=True):
    """A post is settled: so many inboxes have it; `missed` had no room in time, as `slow` has."""

    lane: LaneNumber
    number: Count
    reached: Count
    missed: Count = 0
    slow: Annotated[tuple[Name, ...], Meta(max_length=SLOW_NAMED_MAX)] = ()


class Results(_InSession, frozen=True, tag=3):
    results: Annotated[tuple[Result, ...], Meta(max_length=POSTS_MAX)]


class Held(_Part, frozen=True):
    """Posts of the lane have come up to `got`."""

    lane: LaneNumber
    got: Count


class Standing(_InSession, frozen=True, tag=4):
    """How far these lanes have come: what is beyond is not here."""

    lanes: Annotated[tuple[Held, ...], Meta(max_length=BUS_LANES_MAX)]


class Asked(_Part, frozen=True):
    lane: LaneNumber
    first: Count
    last: Count


class Probe(_InSession, frozen=True, tag=5):
    """What has become of the posts from `first` to `last` of these lanes?"""

    lanes: Annotated[tuple[Asked, ...], Meta(max_length=BUS_LANES_MAX)]


# A plane of its own: a flood of messages holds up nothing that runs the swarm. It is the name in
# `identity.tls`, which nothing pure may import.
BUS_PLANE: Final = "swarmd-bus/1"
BUS: Final = Family("bus", Interest, Posts, Results, Standing, Probe, alpn=BUS_PLANE)

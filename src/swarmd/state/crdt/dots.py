"""Dots and causal contexts.

A dot names one change for ever: who made it, and its number among theirs. A context is the
set of dots that a replica has seen. What a context covers and a state does not hold was removed:
so removal needs no tombstone (Almeida, Shoker and Baquero, "Delta state replicated data types",
2018; Bieniusa et al., "An optimized conflict-free replicated set", 2012).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NewType

from swarmd.base.ids import ID_BYTES, NodeId, digest

Actor = NewType("Actor", bytes)
"""A node's id and 64 bits by chance, drawn at each start: a life that writes."""

Dot = tuple[Actor, int]

ACTOR_BYTES: Final = ID_BYTES + 8
MARK_BYTES: Final = 16
NUMBER_MAX: Final = 2**62


def actor_of(node: NodeId, life: bytes) -> Actor:
    """`life`: 8 bytes that no other start of this node had."""
    assert len(life) == ACTOR_BYTES - ID_BYTES
    return Actor(node + life)


def mark_of(actor: Actor) -> bytes:
    """What is kept of an actor whose life is over. Nobody finds another actor with the same."""
    return digest(actor)[:MARK_BYTES]


def node_of(actor: Actor) -> NodeId:
    return NodeId(actor[:ID_BYTES])


class Context:
    """Which dots were seen: per actor all up to a number, and single ones beyond.

    `beyond` holds dots whose removal came before they did, each with the key that it was removed
    of: what they put there is nothing any more when it comes.

    `over` has the marks of lives that wrote here, of which everything that counts was seen, and the
    number of each one's last change: they need no place in the vector any more, which else grows
    with every start of every node.
    """

    __slots__ = ("beyond", "over", "vector")

    def __init__(
        self,
        vector: dict[Actor, int] | None = None,
        beyond: dict[Dot, str] | None = None,
        over: Mapping[bytes, int] = MappingProxyType({}),
    ) -> None:
        self.vector = dict(vector or {})
        self.over = dict(over)
        self.beyond = {dot: key for dot, key in (beyond or {}).items() if not self.has_seen(dot)}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Context):
            return NotImplemented
        mine, theirs = (self.vector, self.beyond), (other.vector, other.beyond)
        return mine == theirs and self.over == other.over

    __hash__ = None  # type: ignore[assignment]

    def seen_of(self, actor: Actor) -> int:
        """The number of the actor's latest change that was seen, and all before it."""
        number = self.vector.get(actor, 0)
        return number or (NUMBER_MAX if self.is_over(actor) else 0)

    def has_seen(self, dot: Dot) -> bool:
        return dot[1] <= self.seen_of(dot[0])

    def is_over(self, actor: Actor) -> bool:
        """Whether there is nothing to come of an actor."""
        return bool(self.over) and mark_of(actor) in self.over

    def removed(self, dot: Dot, key: str) -> bool:
        """Whether a dot that is not held at `key` was there, or will not be."""
        return self.has_seen(dot) or self.beyond.get(dot) == key

    def see(self, dot: Dot) -> None:
        """Note an actor's next change."""
        actor, number = dot
        assert number == self.seen_of(actor) + 1, "a gap"
        self.vector[actor] = number
        self.beyond.pop(dot, None)

    def remove_early(self, dot: Dot, key: str) -> None:
        """Note a removal of what has not come yet.

        Two removals of one dot at two keys, of which one is wrong, count as one at the lesser key:
        the same on every replica.
        """
        self.beyond[dot] = min(key, self.beyond.get(dot, key))

    def has_all_of(self, last: Dot) -> bool:
        """Whether everything of a life was seen that ends with a dot, and nothing behind that."""
        return self.is_over(last[0]) or self.vector.get(last[0]) == last[1]

    def end(self, last: Dot) -> None:
        """Note that everything of a life was seen, which ends with a dot."""
        actor, number = last
        self.over[mark_of(actor)] = number
        self.vector.pop(actor, None)
        if self.beyond:  # Of what was lost with a disk: it does not come any more.
            self.beyond = {d: key for d, key in self.beyond.items() if d[0] != actor}

    def goes_past(self, other: Context) -> bool:
        """Whether changes were seen here that come after a life's end there.

        So it is on a disk that was lost with them, and found after that life was ended without.
        """
        return bool(other.over) and any(
            number > other.over.get(mark_of(actor), number) for actor, number in self.vector.items()
        )

    def join(self, other: Context) -> None:
        """See what either has seen."""
        if not other.over.keys() <= self.over.keys():
            self.over |= other.over
            self.vector = {a: n for a, n in self.vector.items() if not self.is_over(a)}
        for actor, number in other.vector.items():
            if number > self.seen_of(actor):
                self.vector[actor] = number
        for dot, key in other.beyond.items():
            self.remove_early(dot, key)
        if self.beyond:
            self.beyond = {d: key for d, key in self.beyond.items() if not self.has_seen(d)}

"""Dots and causal contexts.

A dot names one change for ever: who made it, and its how-manieth it was there. A context is the
set of dots that a replica has seen. What a context covers and a state does not hold was removed:
so removal needs no tombstone (Almeida, Shoker and Baquero, "Delta state replicated data types",
2018; Bieniusa et al., "An optimized conflict-free replicated set", 2012).
"""

from __future__ import annotations

from typing import Final, NewType

from swarmd.base.ids import ID_BYTES, NodeId

Actor = NewType("Actor", bytes)
"""A node's id and 64 bits by chance, drawn at each start: a life that writes."""

Dot = tuple[Actor, int]

ACTOR_BYTES: Final = ID_BYTES + 8
NUMBER_MAX: Final = 2**62


def actor_of(node: NodeId, life: bytes) -> Actor:
    """`life`: 8 bytes that no other start of this node had."""
    assert len(life) == ACTOR_BYTES - ID_BYTES
    return Actor(node + life)


def node_of(actor: Actor) -> NodeId:
    return NodeId(actor[:ID_BYTES])


class Context:
    """Which dots were seen: per actor all up to a number, and single ones beyond.

    `beyond` holds dots whose removal came before they did, each with the key that it was removed
    of: what they put there is nothing any more when it comes.
    """

    __slots__ = ("beyond", "vector")

    def __init__(
        self, vector: dict[Actor, int] | None = None, beyond: dict[Dot, str] | None = None
    ) -> None:
        self.vector = dict(vector or {})
        self.beyond = {dot: key for dot, key in (beyond or {}).items() if not self.has_seen(dot)}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Context):
            return NotImplemented
        return self.vector == other.vector and self.beyond == other.beyond

    __hash__ = None  # type: ignore[assignment]

    def seen_of(self, actor: Actor) -> int:
        """The number of the actor's latest change that was seen, and all before it."""
        return self.vector.get(actor, 0)

    def has_seen(self, dot: Dot) -> bool:
        return dot[1] <= self.vector.get(dot[0], 0)

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

    def join(self, other: Context) -> None:
        """See what either has seen."""
        for actor, number in other.vector.items():
            if number > self.vector.get(actor, 0):
                self.vector[actor] = number
        for dot, key in other.beyond.items():
            self.remove_early(dot, key)
        if self.beyond:
            self.beyond = {d: key for d, key in self.beyond.items() if not self.has_seen(d)}

"""Replicas that know each other and hold values on two of them, for tests of nodes that leave."""

from __future__ import annotations

from crdt_nodes import TWO, Node, node_id, talk, turns

from swarmd.state.crdt.events import Leave
from swarmd.state.crdt.messages import Shard, shard_of

NAMES = ("n00", "n01", "n02", "n03")
A, B, C, D = map(node_id, NAMES)


def members(*names: str) -> list[Node]:
    """Nodes that know each other and serve what they hold."""
    nodes = [Node(name, bucket=TWO) for name in names]
    for node in nodes:
        node.see([one.id for one in nodes])
    turns(*nodes)
    return nodes


def named(key: str) -> Shard:
    return TWO, shard_of(key)


def ask_again(node: Node, *others: Node, count: int = 4) -> None:
    """What its shell does while a node leaves."""
    for _ in range(count):
        node.now += 1.0
        node.step(Leave())
        talk(node, *others)

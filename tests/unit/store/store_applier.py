"""A replicated state and what feeds it, without a log."""

from __future__ import annotations

from swarmd.identity.genesis import init_swarm
from swarmd.identity.keys import SigningKey
from swarmd.identity.voter import Voter
from swarmd.state.raft.messages import Batch, Group, Operation, OpResult, encode_batch
from swarmd.state.raft.statemachine import StateMachine

GENESIS, NODE_KEY, ADMIN_KEY, _ = init_swarm("lab", "one", node_key=SigningKey.from_seed(b"n" * 32))
SESSION = b"s" * 16
VOTER = Voter(NODE_KEY.public, b"v" * 16)


class Applier:
    """Applies batches with rising indices."""

    def __init__(self) -> None:
        self.state = StateMachine(GENESIS)
        self.index = 0

    def batch(self, *groups: Group, stamp_ms: int = 0) -> list[list[OpResult]]:
        self.index += 1
        return self.state.apply(encode_batch(Batch(stamp_ms, groups)), self.index, 1)

    def do(self, *ops: Operation, stamp_ms: int = 0) -> list[OpResult]:
        return self.batch(Group(b"", 0, 0, ops), stamp_ms=stamp_ms)[0]

    def in_session(self, first: int, *ops: Operation, low: int = 0) -> list[OpResult]:
        return self.batch(Group(SESSION, low, first, ops))[0]

"""pysyncobj, tamed: what it reaches for by name is replaced here, once, at import.

The library pickles, reads a global clock, opens pipes and pollers, and walks sets in hash
order. None of that may happen in this process, where only `hardened` uses it. The private
names that `hardened` relies on are checked first, so that another version of the library
fails at once and says what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from zlib import crc32

import pysyncobj.syncobj as _library
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from swarmd.state.raft import wire
from swarmd.wire.codec import Message

SyncObj: Final[Any] = _library.SyncObj


class PickleRefused(RuntimeError):
    """The library tried to pickle or unpickle; a guard should have kept it from that."""


class _NoPickle:
    """Stands where the library expects its pickle module."""

    def __getattr__(self, name: str) -> Any:
        raise PickleRefused(f"pickle.{name} is not to be used")


class _SteppedClock:
    """The library's clock is one global; it shows the time of the machine being stepped."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class _NoPoller:
    """The library polls sockets; there are none."""

    def subscribe(self, *_: object) -> None: ...

    def unsubscribe(self, *_: object) -> None: ...

    def poll(self, _: float) -> None: ...


CLOCK: Final = _SteppedClock()


def _check_library() -> None:
    """Raise ImportError naming each private name that the installed library lacks."""
    methods = (
        "setCurrentTerm setState onBecomeLeader onMessageReceived sendAppendEntries doApplyCommand"
        " parseChangeClusterRequest generateRaftTimeout"
    ).split()
    attributes = (
        "raftState raftCurrentTerm raftLeader raftElectionDeadline raftLog raftCommitIndex"
        " raftLastApplied raftNextIndex raftMatchIndex lastResponseTime votesCount noopIDx"
        " votedForNodeId serializer transport otherNodes"
    ).split()
    made = _library.SyncObj.__init__.__code__.co_names
    missing = [n for n in methods if not hasattr(_library.SyncObj, f"_SyncObj__{n}")]
    missing += [n for n in attributes if f"_SyncObj__{n}" not in made]
    names = ("pickle", "monotonicTime", "createJournal", "createPoller", "PIPE_NOTIFIER_ENABLED")
    missing += [n for n in names if not hasattr(_library, n)]
    if missing:
        raise ImportError(f"this pysyncobj lacks what swarmd relies on: {', '.join(missing)}")


def _tame_library() -> None:
    """Replace what the library reaches for by name: pickle, clock, journal, sockets."""
    _library.pickle = _NoPickle()
    _library.monotonicTime = CLOCK
    _library.createJournal = lambda journal: journal
    _library.createPoller = lambda _: _NoPoller()
    _library.PIPE_NOTIFIER_ENABLED = False


_check_library()
_tame_library()


class Peer(Node):  # type: ignore[misc]
    """A node whose hash does not depend on PYTHONHASHSEED: the library keeps sets of them."""

    def __hash__(self) -> int:
        return crc32(self._id.encode())


class Outbox(Transport):  # type: ignore[misc]
    """What the library wants sent, as typed messages that wait for the sync."""

    def __init__(self, core: Any, me: Node, others: list[Node]) -> None:
        super().__init__(core, me, others)
        self.messages: list[tuple[str, Message]] = []

    def send(self, node: Node, message: Mapping[str, Any]) -> bool:
        """Called by the library, which itself sends only votes here."""
        assert message["type"] == "response_vote", message["type"]
        self.put(node.id, wire.VoteGranted(message["term"]))
        return True

    def put(self, peer: str, message: Message) -> None:
        self.messages.append((peer, message))

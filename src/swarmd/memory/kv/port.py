"""What a namespace of shared memory can do, whichever store keeps it.

`eventual.py` keeps values that all nodes have within a second, also without a majority; `strong.py`
keeps values that a majority agreed upon. `service.py` asks the one that the namespace is for.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from swarmd.base.ids import NodeId
from swarmd.base.limits import MIB

LIST_MAX: Final = 1_000
LIST_BYTES_MAX: Final = 8 * MIB
# A version that no value has: only where there is none.
ABSENT: Final = "0"


@dataclass(frozen=True, slots=True)
class Entry:
    """A value. `version` is another one after each write; `expires_at_ms` is 0 for never.

    Times are wall time in ms: when it was written by the clock of `node`, which took the write,
    and when it ends as this node reckons it.
    """

    namespace: str
    key: str
    value: Any
    version: str
    created_by: str
    created_at_ms: int
    expires_at_ms: int
    node: NodeId
    size: int
    """Bytes, packed."""


class Watch(Protocol):
    """Keys as they change: each once, however often it changed since it was told.

    `lagged`: some that changed are not told: read all of them. Whoever reads this sets it to False.
    """

    lagged: bool

    @property
    def position(self) -> str:
        """All changes up to here were told: another watch may go on from here."""
        ...

    async def receive(self) -> str | None:
        """The next key, without its namespace; None: `lagged` is set, and that is all there is."""
        ...


class Memory(Protocol):
    """Values by key in namespaces of one kind. Errors that both kinds know are told here.

    BadName, EmptyKey, KeyTooLong, ValueTooLarge, BadRequest: nothing changed. A strong namespace
    raises NoQuorum, too: from reads with nothing changed, from writes with the outcome unknown.
    """

    async def set(
        self,
        namespace: str,
        key: str,
        value: Any,
        *,
        by: str,
        ttl_s: float | None = None,
        if_version: str | None = None,
    ) -> Entry:
        """Write a value.

        Args:
            by: who writes, for people.
            ttl_s: when it expires, in seconds from now.
            if_version: write only where this is the version; ABSENT: only where there is no value.

        Raises:
            Conflict: the version is another one; nothing changed.
        """
        ...

    async def get(self, namespace: str, key: str) -> Entry:
        """The value. Raises NotFound: there is none, or it has expired."""
        ...

    async def list(
        self, namespace: str, prefix: str = "", *, after: str = "", limit: int = LIST_MAX
    ) -> tuple[list[Entry], bool]:
        """Values of keys that begin with `prefix` and come after `after`; are there more?

        There may be more, too, where they were many bytes; then there is one at least.
        """
        ...

    async def delete(self, namespace: str, key: str, *, if_version: str | None = None) -> None:
        """Delete a value. Raises NotFound, and Conflict as `set` does; nothing changed then."""
        ...

    def watch(
        self, namespace: str, prefix: str = "", since: str = ""
    ) -> AbstractAsyncContextManager[Watch]:
        """Be told of keys that change for as long as the block runs.

        Args:
            since: a position that a watch of the same keys had: from there on, and not from now.
                Where it is not known any more what changed since, `lagged` is set. Of an eventual
                namespace only the same node knows it, while it runs.

        Raises Busy.
        """
        ...

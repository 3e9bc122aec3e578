"""Which protocol this build speaks.

Every hello - of a stream, of a datagram session, of a joiner - says it under its signature, and
every member tells it of itself. The authority log may name a lowest one (`Policy` in
`identity.entries`): who speaks less is refused by every member from then on, so that an old build,
or one who alters what is sent, cannot bring a swarm back to what it has left behind.

Layouts have numbers of their own (`codec.Family`). This one is for what no layout shows: what a
build checks, signs, or no longer accepts, and for messages that an older build does not know.
Raise it with a change that a swarm may want to insist on.

Builds whose versions differ by one work together, so that a swarm is upgraded node by node: each
speaks to a peer in the highest version that both speak (`common_version`).
"""

from __future__ import annotations

from typing import Final

PROTOCOL_VERSION: Final = 1
# The lowest version that this build still speaks: one below the other, once there is one.
PROTOCOL_LOWEST: Final = 1


def common_version(mine: tuple[int, int], theirs: tuple[int, int]) -> int | None:
    """The highest version that both speak, of ranges (lowest, highest); None if there is none."""
    highest = min(mine[1], theirs[1])
    return highest if highest >= max(mine[0], theirs[0]) else None

"""Which protocol this build speaks.

Every hello - of a stream, of a datagram session, of a joiner - says it under its signature, and
every member tells it of itself. The authority log may name a lowest one (`Policy` in
`identity.entries`): who speaks less is refused by every member from then on, so that an old build,
or one who alters what is sent, cannot bring a swarm back to what it has left behind.

Layouts have numbers of their own (`codec.Family`). This one is for what no layout shows: what a
build checks, signs, or no longer accepts. Raise it with a change that a swarm may want to insist
on.
"""

from __future__ import annotations

from typing import Final

PROTOCOL_VERSION: Final = 1

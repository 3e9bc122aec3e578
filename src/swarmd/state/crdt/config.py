"""Settings of the eventual store."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class CrdtConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[crdt]"""

    # A member that is dead for longer is replaced as a holder of what not all nodes hold, and takes
    # its place again when it is back. Sooner has values on all their nodes again earlier; later
    # spares copying them when a host only restarts. It should be the same on all nodes.
    replace_after_s: Annotated[float, Meta(ge=10, le=86_400)] = 600.0

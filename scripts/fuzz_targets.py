"""Every decoder of swarmd as something to throw bytes at.

A target names the functions that it stands for, has sound samples to start from, and says which
errors a refusal may be: anything else that comes out is a finding. Where a decoder keeps state
between inputs (a session table, a machine), the target keeps it as well, so that what hostile
bytes leave behind shows as memory that grows; it is made anew only where sound input is meant
to add to it.
"""

from __future__ import annotations

import functools

from fuzz_audit import audits
from fuzz_crdt import eventual
from fuzz_events import user_events
from fuzz_lower import identity, membership, mesh, messages, sealed
from fuzz_target import Target
from fuzz_upper import edges, epochs, store, work
from fuzz_vectors import vectors

__all__ = ["Target", "targets"]


@functools.cache
def targets() -> dict[str, Target]:
    """All of them, by name."""
    makers = (
        messages, identity, sealed, mesh, membership, user_events, store, epochs, eventual, audits,
        vectors, work, edges,
    )  # fmt: skip
    found = [target for make in makers for target in make()]
    assert len({one.name for one in found}) == len(found)
    return {one.name: one for one in found}

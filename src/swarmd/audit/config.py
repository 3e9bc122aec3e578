"""Settings of the audit log."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class AuditConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[audit]"""

    # Disk for the records of all nodes that this one keeps, in MiB. Each node has an equal share
    # of it, a third each for security, for requests that were refused and sessions, and for work,
    # so that neither a stranger nor a busy agent pushes out who was let in; the oldest of a share
    # goes first. A thousand tasks take about 200 KiB.
    keep_mib: Annotated[int, Meta(ge=16, le=1_048_576)] = 2_048
    # Records that a node wrote down before this go there, too.
    keep_days: Annotated[float, Meta(gt=0, le=36_500)] = 400.0
    # Records that may wait for the disk, of each of the three. Beyond it they are lost,
    # and counted in a record of their own; nobody is kept from working.
    waiting_max: Annotated[int, Meta(ge=100, le=1_000_000)] = 20_000
    # A node's newest record is named in the strong store this often, so that a tail that was cut
    # off everywhere is noticed. What came since is not covered by that.
    anchor_s: Annotated[float, Meta(ge=1, le=300)] = 60.0

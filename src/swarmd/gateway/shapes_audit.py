"""Shapes of the audit log, as the API gives it to people and to who verifies it."""

from __future__ import annotations

from msgspec import Struct


class AuditRecord(Struct, frozen=True, kw_only=True):
    """One event, by the node that wrote it; its number is unique within stream and life."""

    node: str
    node_id: str
    stream: str
    life: str
    number: int
    wall_ms: int
    """The clock of the node."""
    store_ms: int
    """The time of the strong store as the node knew it; 0 where there is no copy."""
    kind: str
    actor: str = ""
    subject: str = ""
    outcome: str = ""
    details: str = ""


class AuditPage(Struct, frozen=True, kw_only=True):
    records: list[AuditRecord]
    before: str = ""
    """Where older ones go on; empty: there are none."""


class AuditLife(Struct, frozen=True, kw_only=True):
    """What a node keeps of one life of a chain: NODE.STREAM.LIFE."""

    chain: str
    first: int
    last: int


class AuditHeld(Struct, frozen=True, kw_only=True):
    node_id: str
    lives: list[AuditLife]
    floors: list[bytes] = []
    """What the node dropped for its age, each signed by it."""
    forks: list[bytes] = []
    """Batches that it was shown and that contradict what it keeps."""
    after: str = ""


class AuditRaw(Struct, frozen=True, kw_only=True):
    """What lies on the disk: batches, to be verified by whoever reads them."""

    batches: list[bytes]
    place: str = ""
    """Where it goes on; empty: at the end."""

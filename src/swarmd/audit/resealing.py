"""Seals a segment under another key, or opens it, while the daemon is down."""

from __future__ import annotations

from collections.abc import Sequence

from swarmd.audit.sealed import open_any, seal_batch
from swarmd.audit.segments import FILE_HEAD, frame_with, frames_in
from swarmd.base.sealed_file import Sealer


def reseal_segment(
    raw: bytes, name: str, sealers: Sequence[Sealer], target: Sealer | None
) -> bytes:
    """A segment as it is to be: under `target`, or in clear.

    Args:
        sealers: under which a frame may be; one that is under none of them is in clear.

    What is damaged is kept, and stays so: it is sealed as it lies there.
    """
    position = len(FILE_HEAD) if raw.startswith(FILE_HEAD) else 0
    parts = [raw[:position]]
    for frame in frames_in(raw):
        lies = raw[position : frame.end]
        position = frame.end
        held = open_any(sealers, name, frame.first, frame.last, frame.raw)
        if not frame.last:
            parts.append(_damaged(lies if held is None else held, name, target))
            continue
        body = frame.raw if held is None else held
        if target is not None:
            body = seal_batch(target, name, frame.first, frame.last, body)
        parts.append(frame_with(frame.first, frame.last, body))
    return b"".join(parts)


def _damaged(lies: bytes, name: str, target: Sealer | None) -> bytes:
    return lies if target is None else frame_with(0, 0, seal_batch(target, name, 0, 0, lies))

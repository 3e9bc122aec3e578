"""Where this node was when it ended, for its next start: the checked file `place`.

It only spares a node that is started anew a minute of probes. So it is written once, at an orderly
end, and whatever is wrong with it means the origin. Who was carried elsewhere meanwhile finds out
as everybody does that is at the wrong place.
"""

from __future__ import annotations

from typing import Final

from swarmd.base.disk import Disk, open_body, seal_body
from swarmd.base.errors import CorruptFile, DiskFault
from swarmd.mesh.swim.coordinates import Coordinate, decode_coordinate, encode_coordinate
from swarmd.observe.log import get_logger

FILE_NAME: Final = "place"
_FORMAT: Final = 1

_log = get_logger("swim")


def last_place(disk: Disk) -> Coordinate | None:
    """Where this node was; None if nobody knows."""
    try:
        raw = disk.read(FILE_NAME)
        body = b"" if raw is None else open_body(FILE_NAME, _FORMAT, raw, source=FILE_NAME)
    except (CorruptFile, DiskFault) as error:
        _log.warning("coordinate not read", error=error.message)
        return None
    return decode_coordinate(body)


def keep_place(disk: Disk, place: Coordinate | None) -> None:
    """Keep it for the next start, if there is any; a disk that refuses costs nothing else."""
    if place is None:
        return
    try:
        disk.replace(FILE_NAME, seal_body(FILE_NAME, _FORMAT, encode_coordinate(place)))
    except DiskFault as error:
        _log.warning("coordinate not saved", error=error.message)

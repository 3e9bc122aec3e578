"""Does an index hold what was written to it? All of it is read, and held against its checksums."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from zlib import crc32

import msgspec
import numpy as np
from numpy.typing import NDArray

from swarmd.base.errors import CorruptFile
from swarmd.memory.vector.database import Database, Held, fault_of, key_of, summed
from swarmd.memory.vector.slots import SlotFile


def verify(
    database: Database, path: Path, collections: Mapping[int, tuple[Held, SlotFile]]
) -> dict[int, NDArray[np.bool_]]:
    """Which slots hold something, by collection.

    Args:
        collections: those of the state, by number.

    Raises:
        CorruptFile: names the file that is not what was written.
        DiskFault: the disk refused something else than to read.
    """
    try:
        wrong = database.integrity()
        if wrong:
            raise CorruptFile(f"{path} is damaged: {wrong}")
        return _verify_entries(database, path, collections)
    except sqlite3.Error as error:
        raise fault_of(error, path) from error
    except OSError as error:
        raise CorruptFile(f"{path.parent} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, msgspec.MsgspecError, RecursionError) as error:
        # A value of another type than the table's, or text that is none.
        raise CorruptFile(f"{path} is damaged: {error}") from error


def _verify_entries(
    database: Database, path: Path, collections: Mapping[int, tuple[Held, SlotFile]]
) -> dict[int, NDArray[np.bool_]]:
    live = {number: np.zeros(one[1].capacity, np.bool_) for number, one in collections.items()}
    sums = database.field_checksums()
    for row in database.rows():
        if row.collection not in live or row.key != key_of(row.collection, row.slot):
            raise CorruptFile(f"{path} is damaged: an entry is of no collection")
        file = collections[row.collection][1]
        vector = file.read(row.slot)
        if len(vector) != file.slot_bytes or crc32(vector) != row.vector_crc:
            raise CorruptFile(f"{file.path} is damaged: slot {row.slot} is not what was written")
        sums[row.collection] = sums.get(row.collection, 0) + row.own_checksum()
        live[row.collection][row.slot] = True
    for number in sorted(sums.keys() | live.keys()):
        held = collections[number][0] if number in collections else None
        found = summed(0, sums.get(number, 0))
        if held is None or (found, int(live[number].sum())) != (held.checksum, held.entries):
            raise CorruptFile(f"{path} is damaged: entries are not those that were written")
    return live

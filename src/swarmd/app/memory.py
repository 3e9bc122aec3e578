"""How the process of a daemon treats its memory."""

from __future__ import annotations

import ctypes
import gc
from typing import Final

import trio

from swarmd.base.limits import MIB
from swarmd.base.pace import pause

_COLLECT_OBJECTS: Final = 20_000
_COLLECT_OLDER: Final = (20, 50)
# How often it is looked at, and how much must lie idle for it to be worth a millisecond or four.
GIVE_BACK_S: Final = 30.0
FREE_BYTES_MIN: Final = 4 * MIB
# M_ARENA_MAX of glibc's malloc.h.
_ARENA_MAX: Final = -8


def calm_collector() -> None:
    """Look for cycles of garbage less often, and never among what is imported by now.

    A batch of tasks makes thousands of objects that live until it is committed, and none is
    part of a cycle; the default thresholds have the collector walk over them several times,
    and now and then over every task that the node knows.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_OBJECTS, *_COLLECT_OLDER)


def keep_out_of_collector() -> None:
    """Never again look for garbage among what there is now: a store of a million keys, say.

    To walk over that takes 50 ms. It is given back all the same once nothing refers to it.
    """
    gc.freeze()


def share_one_heap() -> None:
    """Have threads allocate where the loop does; before the first of them starts.

    Left to itself glibc makes a heap for each of up to eight threads per core, and what one
    thread freed no other can use. Here threads wait for disks and allocate little, so that
    they do not get in each other's way; and `GivingBack` sees the first heap only.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_ARENA_MAX, 1)


class _MallInfo(ctypes.Structure):
    """What glibc's `mallinfo2` returns; see mallinfo(3)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks",
                     "uordblks", "fordblks", "keepcost")
    )  # fmt: skip


class GivingBack:
    """Has the C library return free pages to the system, if enough of them lie idle in it.

    By itself it returns only what is free at the end of its heap; what lies between live blocks
    stays with the process for good. It counts as free what it returned, too: so what counts is
    how much more that is than after the last time.
    """

    def __init__(self) -> None:
        self._returned_bytes = 0

    def step(self, free_bytes_min: int = FREE_BYTES_MIN) -> bool:
        """Do it now. False: it was not worth it, or this is no glibc."""
        libc = ctypes.CDLL(None)
        if not hasattr(libc, "mallinfo2") or not hasattr(libc, "malloc_trim"):
            return False
        libc.mallinfo2.restype = _MallInfo
        free_bytes = libc.mallinfo2().fordblks
        # What was returned and is in use again would hide as much that comes to be free.
        self._returned_bytes = min(self._returned_bytes, free_bytes)
        if free_bytes - self._returned_bytes < free_bytes_min:
            return False
        trimmed = bool(libc.malloc_trim(0))
        self._returned_bytes = libc.mallinfo2().fordblks
        return trimmed


async def keep_giving_back() -> None:
    """Do so now and then, in a thread; never ends.

    A start leaves some 8 MB behind of the log that it read and applied, a busy hour a few.
    """
    giving = GivingBack()
    while True:
        await pause(GIVE_BACK_S)
        await trio.to_thread.run_sync(giving.step)

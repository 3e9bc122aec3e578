"""What a daemon gives back to the system."""

from __future__ import annotations

import ctypes
import random
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from swarmd.app import memory
from swarmd.base.limits import MIB

glibc = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="only glibc 2.33 and later tells"
)


def resident_bytes() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel does not tell")


@glibc
def test_what_lies_idle_between_live_blocks_is_given_back() -> None:
    rng = random.Random(1)
    live = [bytes(rng.randrange(8_000, 16_000)) for _ in range(4_000)]
    del live[::2]
    before = resident_bytes()
    giving = memory.GivingBack()
    assert not giving.step(free_bytes_min=2**40), "not worth it"
    assert resident_bytes() > before - 2 * MIB
    assert giving.step()
    assert resident_bytes() < before - 8 * MIB
    assert len(live) == 2_000
    assert not giving.step(), "what was given back lies idle no more"
    live.extend([bytes(rng.randrange(8_000, 16_000)) for _ in range(2_000)])
    assert not giving.step(), "it is in use again"
    del live[::2]
    assert giving.step(), "and idle again"


async def test_it_is_looked_at_now_and_then(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    looks: list[float] = []
    monkeypatch.setattr(memory.GivingBack, "step", lambda giving: looks.append(trio.current_time()))

    async def run_sync(call: object) -> None:
        call()  # type: ignore[operator]

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    with trio.move_on_after(3.5 * memory.GIVE_BACK_S):
        await memory.keep_giving_back()
    assert [round(at - looks[0]) for at in looks] == [0, 30, 60]


@glibc
def test_threads_allocate_where_the_loop_does() -> None:
    script = (
        "import threading; from pathlib import Path; from swarmd.app import memory; "
        "memory.share_one_heap(); kept = []; "
        "make = lambda: kept.extend(bytes(2_000) for _ in range(2_000)); "
        "threads = [threading.Thread(target=make) for _ in range(4)]; "
        "[one.start() for one in threads]; [one.join() for one in threads]; "
        "info = memory.ctypes.CDLL(None).mallinfo2; info.restype = memory._MallInfo; "
        "assert info().uordblks > len(kept) * 2_000, info().uordblks"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

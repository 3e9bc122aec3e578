"""Throws hostile bytes at every decoder, and says what came out that should not have.

Each target runs in a process of its own. Held against it: nothing but a named refusal comes out,
no input takes for ever, 99 of 100 are done within 5 ms, and memory grows by less than 10 MiB
from the tenth part of the inputs on. What broke a target is made as short as it gets and kept in
`tests/fuzz/corpus`, where every run begins.

Exit codes: 0 clean; 1 a finding; 2 a wrong call.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
import warnings
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

from fuzz_inputs import Inputs
from fuzz_targets import Target, targets

from swarmd.base.rng import derive, make_rng
from swarmd.observe import log

CORPUS: Final = Path(__file__).resolve().parent.parent / "tests" / "fuzz" / "corpus"
P99_MAX_S: Final = 0.005
GROWTH_MAX_BYTES: Final = 10 * 1024 * 1024
HANG_S: Final = 5
_WARM_UP: Final = 0.1
_TIMES_MAX: Final = 1_000_000
# The watch is set anew after so many inputs; together they take a small part of `HANG_S`.
_WATCHED_TOGETHER: Final = 64
_SHRINK_TRIES: Final = 2_000
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Result:
    """What came of one target; `finding` is empty if all is well.

    Times are of the processor, in milliseconds: who else uses the machine does not show in them.
    """

    name: str
    inputs: int
    refused: int
    p99_ms: float
    slowest_ms: float
    growth_bytes: int
    took_s: float = 0.0
    finding: str = ""
    input: str = ""

    @property
    def ok(self) -> bool:
        return not self.finding


class Hung(BaseException):
    """An input took longer than `HANG_S`. No decoder catches it."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("name", nargs="*", help="targets, or beginnings of their names (all)")
    parser.add_argument("--inputs", type=int, default=20_000, metavar="N", help="each (20,000)")
    parser.add_argument("--seconds", type=float, metavar="S", help="each for so long instead")
    parser.add_argument("--seed", type=int, default=0, metavar="SEED", help="(0)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (2)")
    parser.add_argument("--list", action="store_true", help="name the targets and end")
    parser.add_argument("--json", action="store_true", help="one JSON object per target")
    options = parser.parse_args(arguments)
    if (
        options.inputs < 1
        or options.jobs < 1
        or (options.seconds is not None and options.seconds <= 0)
    ):
        parser.error("--inputs, --jobs and --seconds are above 0")
    chosen = [
        one for one in targets() if not options.name or any(one.startswith(n) for n in options.name)
    ]
    if not chosen:
        parser.error(f"no target begins with {' or '.join(options.name)}; see --list")
    if options.list:
        print("\n".join(chosen))
        return 0
    if not options.json:
        print(f"{'TARGET':<26}{'INPUTS':>10}{'REFUSED':>9}{'P99 MS':>8}{'MAX MS':>8}{'MIB':>7}")
    ok = True
    for result in run_all(chosen, options.inputs, options.seconds, options.seed, options.jobs):
        ok = ok and result.ok
        print(json.dumps(asdict(result)) if options.json else _row(result), flush=True)
    return 0 if ok else 1


def _row(result: Result) -> str:
    share = f"{result.refused / max(1, result.inputs):.0%}"
    row = (
        f"{result.name:<26}{result.inputs:>10,}{share:>9}{result.p99_ms:>8.2f}"
        f"{result.slowest_ms:>8.1f}{result.growth_bytes / 2**20:>7.1f}"
    )
    return row if result.ok else f"{row}\n  {result.finding}\n  input: {result.input or '-'}"


def run_all(
    names: Sequence[str], inputs: int, seconds: float | None, seed: int, jobs: int
) -> Iterator[Result]:
    """One result per target, as they come."""
    # What every process needs is made once, and is there when it is forked.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fuzz_ready"])
    with ProcessPoolExecutor(jobs, context, max_tasks_per_child=1) as pool:
        futures = [pool.submit(run_named, name, inputs, seconds, seed) for name in names]
        for future in as_completed(futures):
            yield future.result()


def run_named(name: str, inputs: int, seconds: float | None = None, seed: int = 0) -> Result:
    log.configure("error", json=False)
    warnings.simplefilter("ignore")  # The libraries' about what hostile input looks like.
    target = targets()[name]
    result = run(target, inputs, seconds, seed, kept=corpus_of(name))
    if result.input:
        result.input = str(keep(name, bytes.fromhex(result.input)))
    return result


def corpus_of(name: str) -> list[bytes]:
    """What broke the target once, or is worth starting from."""
    folder = CORPUS / name
    return [path.read_bytes() for path in sorted(folder.glob("*"))] if folder.is_dir() else []


def keep(name: str, raw: bytes) -> Path:
    """Write a finding down; where."""
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / blake2b(raw, digest_size=8).hexdigest()
    path.write_bytes(raw)
    return path


def run(
    target: Target,
    inputs: int,
    seconds: float | None = None,
    seed: int = 0,
    *,
    kept: Sequence[bytes] = (),
) -> Result:
    """Throw inputs at one target, in this process: first what was kept, then new ones."""
    rng = derive(make_rng(seed), target.name)
    made = Inputs(rng, [*target.samples, *kept], dress=target.dress, values=target.values)
    times = array("d", bytes(8 * min(inputs, _TIMES_MAX)))
    runner = _Runner(target)
    result = Result(target.name, 0, 0, 0.0, 0.0, 0)
    before = 0
    end = None if seconds is None else time.monotonic() + seconds
    began = time.monotonic()
    while result.inputs < inputs if end is None else time.monotonic() < end:
        raw = kept[result.inputs] if result.inputs < len(kept) else made.next()
        took_s, error = runner.throw(raw)
        times[result.inputs % len(times)] = took_s
        result.inputs += 1
        if error is not None:
            result.finding = error
            result.input = shortened(target, raw).hex()
            break
        if result.inputs == max(1, int(inputs * _WARM_UP)):
            before = _resident_bytes()
    signal.alarm(0)
    result.took_s = round(time.monotonic() - began, 2)
    result.refused = runner.refused
    # Before the times are sorted, which takes more than all decoders together.
    result.growth_bytes = max(0, _resident_bytes() - before) if before else 0
    counted = sorted(times[: min(result.inputs, len(times))])
    result.p99_ms = round(counted[int(0.99 * (len(counted) - 1))] * 1000, 3)
    result.slowest_ms = round(counted[-1] * 1000, 3)
    if result.ok and result.p99_ms > P99_MAX_S * 1000:
        result.finding = f"one of a hundred inputs takes {result.p99_ms:.1f} ms"
    if result.ok and result.growth_bytes > GROWTH_MAX_BYTES:
        result.finding = f"memory grew by {result.growth_bytes / 2**20:.1f} MiB"
    return result


class _Runner:
    """Throws one input at a time, and makes the target anew where it wants that."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._take = target.make()
        self._taken = self._thrown = 0
        self.refused = 0
        signal.signal(signal.SIGALRM, _hung)

    def throw(self, raw: bytes) -> tuple[float, str | None]:
        """How long it took, and what came out that should not have."""
        target = self._target
        if target.renewed_after and self._taken >= target.renewed_after:
            self._take, self._taken = target.make(), 0
        self._taken += 1
        if self._thrown % _WATCHED_TOGETHER == 0:
            signal.alarm(HANG_S)
        self._thrown += 1
        began = time.thread_time()
        try:
            self._take(raw)
        except target.refusals as error:
            self.refused += 1
            if isinstance(error, target.renewing):
                self._taken = target.renewed_after
        except Hung:
            return HANG_S, f"an input of {len(raw)} bytes takes more than {HANG_S} s"
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            return time.thread_time() - began, _told(error)
        return time.thread_time() - began, None


def _hung(*_: object) -> None:
    raise Hung


def _told(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = str(error)[:200]
    return f"{type(error).__name__}: {text} ({Path(last.filename).name}:{last.lineno})"


def shortened(target: Target, raw: bytes) -> bytes:
    """The input with all taken away that is not needed to break a fresh target.

    Unchanged where it only breaks one that has seen other inputs before.
    """

    def breaks(candidate: bytes) -> bool:
        return _Runner(target).throw(candidate)[1] is not None

    if not breaks(raw):
        return raw
    size, tries = max(1, len(raw) // 2), 0
    while size and tries < _SHRINK_TRIES:
        at, found = 0, False
        while at < len(raw) and tries < _SHRINK_TRIES:
            candidate = raw[:at] + raw[at + size :]
            tries += 1
            if breaks(candidate):
                raw, found = candidate, True
            else:
                at += size
        if not found:
            size //= 2
    return raw


def _resident_bytes() -> int:
    gc.collect()
    with contextlib.suppress(AttributeError):  # Another C library than glibc.
        # Else what was freed before hides what is held now.
        ctypes.CDLL(None).malloc_trim(0)
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * _PAGE_BYTES


if __name__ == "__main__":
    sys.exit(main())

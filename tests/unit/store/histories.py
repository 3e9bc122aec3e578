"""Histories of known verdict: from the literature, and made by hand for the store's promises.

Times are drawn as intervals, `w(0, 2, 1)`: called at 0, returned at 2, wrote 1.
"""

from __future__ import annotations

from typing import Any

from swarmd.sim.checkers import FOREVER, Operation, Read, Write


def w(called: float, returned: float, value: Any, key: str = "k") -> Operation:
    return Operation(key, "write", called, returned, value)


def r(called: float, returned: float, value: Any, key: str = "k") -> Operation:
    return Operation(key, "read", called, returned, None, value)


def cas(called: float, returned: float, old: Any, new: Any, did: bool = True) -> Operation:
    return Operation("k", "cas", called, returned, (old, new), did)


def _overlapping(count: int) -> list[Operation]:
    """`count` writes that all overlap, then reads that agree on which was last."""
    writes = [w(0, 100 + n, n) for n in range(count)]
    return [*writes, *(r(200 + n, 200.5 + n, 7) for n in range(count))]


def _long(count: int) -> list[Operation]:
    """Eight callers at a time for a long while; every read sees the last write that ended."""
    history: list[Operation] = []
    for n in range(count):
        history.append(w(n, n + 0.5, n))
        history += [r(n + 0.6, n + 1.4 + c / 100, n) for c in range(7)]
    # The next write begins before the last reads have ended: any of them may come before it.
    return history


def _cas_chain(count: int) -> list[Operation]:
    """Callers that all count up from what they saw; one of each round wins."""
    history: list[Operation] = [w(-2, -1, 0)]
    for n in range(count):
        history.append(cas(n, n + 0.9, n, n + 1))
        history += [cas(n, n + 0.9, n, (n, c), False) for c in range(3)]
    return history


GOOD: dict[str, list[Operation]] = {
    "empty": [],
    "one after another": [w(0, 1, 1), r(2, 3, 1)],
    "a read beside a write may see either": [w(0, 10, 1), r(1, 2, None), r(3, 4, 1)],
    "two writes beside each other": [w(0, 10, 1), w(0, 10, 2), r(11, 12, 1), r(13, 14, 1)],
    "the later call may come first": [w(0, 10, 1), w(5, 8, 2), r(11, 12, 1)],
    "a delete that takes its time, beside one that does not": [
        *(w(0, 20, None), r(1, 2, None), w(3, 4, 1), r(5, 6, 1)),
        *(cas(21, 22, 1, 2, False), r(23, 24, None)),
    ],
    "a delete": [w(0, 1, 1), w(2, 3, None), r(4, 5, None)],
    # Lamport, On Interprocess Communication (1986): an atomic register, two overlapping reads.
    "overlapping reads may disagree while a write goes on": [
        *(w(0, 1, 1), w(2, 10, 2)),
        *(r(3, 6, 2), r(4, 7, 1)),
    ],
    "an unknown write seen late": [w(0, FOREVER, 1), r(5, 6, None), r(7, 8, 1)],
    "an unknown write never seen": [w(0, FOREVER, 1), r(5, 6, None)],
    "an unknown write that overwrites much later": [
        *(w(0, FOREVER, 1), w(2, 3, 2), r(4, 5, 2), w(6, 7, 3)),
        *(r(8, 9, 3), r(10, 11, 1), r(12, 13, 1)),
    ],
    "two unknown writes seen in either order": [
        *(w(0, FOREVER, 1), w(0, FOREVER, 2)),
        *(r(5, 6, 2), r(7, 8, 1)),
    ],
    "an unknown delete explains an absence": [w(0, 1, 1), w(2, FOREVER, None), r(5, 6, None)],
    "a read of an unknown outcome says nothing": [
        *(w(0, 1, 1), Operation("k", "read", 2, FOREVER)),
        r(3, 4, 1),
    ],
    "compare-and-set wins once": [w(0, 1, 1), cas(2, 9, 1, 2), cas(2, 9, 1, 3, False)],
    "concurrent cas in a chain": [w(0, 1, 1), cas(2, 9, 1, 2), cas(2, 9, 2, 3), r(10, 11, 3)],
    "a failed one beside its cause": [w(0, 9, 5), cas(1, 8, None, 2), r(10, 11, 5)],
    "a read of what an unknown cas did": [w(0, 1, 1), cas(2, FOREVER, 1, 2, False), r(5, 6, 2)],
    "an unknown cas that never was": [w(0, 1, 1), cas(2, FOREVER, 1, 2), cas(3, 4, 1, 3)],
    "an unknown write that nobody saw made a cas fail": [
        *(w(0, 1, 1), w(2, FOREVER, 9), cas(3, 4, 1, 2, False)),
    ],
    "a cas that compares with what an unknown write left": [
        *(w(0, FOREVER, 1), cas(2, 3, 1, 2), r(4, 5, 2)),
    ],
    "a cas from an absent key": [cas(0, 1, None, 1), cas(2, 3, None, 2, False), r(4, 5, 1)],
    "twelve writes at once": _overlapping(12),
    "a long history of eight callers": _long(400),
    "a long chain of concurrent cas": _cas_chain(200),
}

BAD: dict[str, list[Operation]] = {
    "a stale read": [w(0, 1, 1), w(2, 3, 2), r(4, 5, 1)],
    "a lost write": [w(0, 1, 1), r(2, 3, None)],
    "a value from nowhere": [r(0, 1, 7)],
    "a value from the future": [r(0, 1, 1), w(2, 3, 1)],
    # Lamport (1986): a regular register allows it, an atomic one does not.
    "new, then old": [w(0, 1, 1), w(2, 10, 2), r(3, 4, 2), r(5, 6, 1)],
    "back to nothing": [w(0, 10, 1), r(1, 2, 1), r(3, 4, None)],
    # Attiya and Welch (1994): sequentially consistent, for each caller sees an order of its own.
    "sequentially consistent only": [w(0, 1, 1), w(0, 1, 2), r(2, 3, 1), r(4, 5, 2)],
    "reads disagree on the order of two writes": [
        *(w(0, 10, 1), w(0, 10, 2)),
        *(r(11, 12, 1), r(13, 14, 2)),
    ],
    "a lost update": [
        # Both read 1, both set what they read plus one, both were told that it worked.
        *(w(0, 1, 1), r(2, 3, 1), r(2, 3, 1)),
        *(cas(4, 5, 1, 2), cas(6, 7, 1, 3)),
    ],
    "two winners": [w(0, 1, 1), cas(2, 9, 1, 2), cas(2, 9, 1, 3)],
    "no winner": [w(0, 1, 1), cas(2, 9, 1, 2, False), r(10, 11, 1)],
    "a cas that did and did not": [w(0, 1, 1), cas(2, 3, 1, 2), r(4, 5, 1)],
    "a split brain": [
        # One leader goes on with 1 and 2, the other with 1 and 3; each side sees its own.
        *(w(0, 1, 1), w(2, 3, 2), w(2, 3, 3)),
        *(r(4, 5, 2), r(4, 5, 3), r(6, 7, 2), r(6, 7, 3)),
    ],
    "an unknown write seen, then not": [w(0, FOREVER, 1), r(5, 6, 1), r(7, 8, None)],
    "an unknown write seen before its call": [r(0, 1, 1), w(2, FOREVER, 1)],
    "an unknown write applied twice": [
        *(w(0, FOREVER, 1), r(2, 3, 1), w(4, 5, 2)),
        *(r(6, 7, 2), r(8, 9, 1)),
    ],
    "an acknowledged write applied twice": [
        *(w(0, 1, 1), w(2, 3, 2), r(4, 5, 2), r(6, 7, 1)),
    ],
    "a deleted key comes back": [w(0, 1, 1), w(2, 3, None), r(4, 5, 1)],
    "a failed cas without a cause": [w(0, 1, 1), cas(2, 3, 1, 2, False)],
    "a failed cas whose unknown cause was called later": [
        *(w(0, 1, 1), cas(2, 3, 1, 2, False), w(4, FOREVER, 9)),
    ],
    "twelve writes at once, and two who disagree": [*_overlapping(12), r(300, 301, 8)],
    "a long history with one stale read": [*_long(400), r(399.6, 399.7, 3)],
    "a long chain with one more winner": [*_cas_chain(200), cas(198, 198.8, 198, "other")],
}


# ---- revisions -------------------------------------------------------------------------

Revisions = tuple[list[Write], list[Read], list[Write]]


def write(called: float, returned: float, revision: int, **changes: Any) -> Write:
    return Write(called, returned, revision, tuple(changes.items()))


def maybe(called: float, **changes: Any) -> Write:
    return Write(called, FOREVER, 0, tuple(changes.items()))


def read(called: float, returned: float, revision: int, **seen: Any) -> Read:
    return Read(called, returned, revision, tuple(seen.items()))


def saw(called: float, returned: float, revision: int, **seen: tuple[Any, int]) -> Read:
    """A read that was told when each key was last written."""
    values = tuple((key, value) for key, (value, _) in seen.items())
    return Read(called, returned, revision, values, tuple(at for _, at in seen.values()))


GOOD_REVISIONS: dict[str, Revisions] = {
    "empty": ([], [], []),
    "transactions and ranges": (
        [write(0, 5, 1, a=1, b=1), write(1, 4, 2, a=2), write(6, 7, 3, b=None)],
        [read(2, 3, 1, a=1), read(8, 9, 3, a=2, b=None), read(6.5, 6.6, 2, b=1)],
        [],
    ),
    "an unknown transaction that happened": (
        [write(0, 1, 1, a=1)],
        [saw(5, 6, 2, a=(9, 2)), saw(7, 8, 2, a=(9, 2), b=(9, 2))],
        [maybe(2, a=9, b=9)],
    ),
    "an unknown transaction that did not": (
        [write(0, 1, 1, a=1)],
        [saw(5, 6, 1, a=(1, 1), b=(None, 0))],
        [maybe(2, a=9, b=9)],
    ),
    "an unknown delete that happened": (
        [write(0, 1, 1, a=1)],
        [saw(2, 3, 1, a=(1, 1)), saw(5, 6, 2, a=(None, 0))],
        [maybe(2, a=None)],
    ),
}

# Each with a word of the problem that is to be named.
BAD_REVISIONS: dict[str, tuple[list[Write], list[Read], list[Write], str]] = {
    "one revision for two": ([write(0, 1, 1, a=1), write(2, 3, 1, a=2)], [], [], "given twice"),
    "revisions against time": (
        *([write(0, 1, 2, a=1), write(2, 3, 1, a=2)], [], []),
        "was called after 2",
    ),
    "a stale read": (
        *([write(0, 1, 1, a=1)], [read(2, 3, 0, a=None)], []),
        "called after revision 1",
    ),
    "another value": ([write(0, 1, 1, a=1)], [read(2, 3, 1, a=9)], [], "it was 1"),
    "half a transaction": (
        *([write(0, 1, 1, a=1, b=1)], [read(2, 3, 1, a=1, b=None)], []),
        "it was 1",
    ),
    "reads go back": (
        *([write(0, 9, 1, a=1)], [read(1, 2, 1, a=1), read(3, 4, 0, a=None)], []),
        "read at 1",
    ),
    # Write skew: each transaction read what the other wrote, as it was before.
    "two readers see two writes in opposite order": (
        [write(0, 9, 1, x=1), write(0, 9, 2, y=1)],
        [read(1, 2, 1, x=1, y=None), read(1, 2, 2, x=None, y=1)],
        [],
        "it was 1",
    ),
    "half an unknown transaction": (
        [write(0, 1, 1, a=1)],
        [saw(5, 6, 2, a=(9, 2), b=(None, 0))],
        [maybe(2, a=9, b=9)],
        "it was 9",
    ),
    "an unknown write applied twice": (
        [write(0, 1, 1, a=1), write(7, 8, 3, a=3)],
        [saw(5, 6, 2, a=(9, 2)), saw(9, 10, 4, a=(9, 4))],
        [maybe(2, a=9)],
        "was written at 2 and at 4",
    ),
    "an acknowledged write applied twice": (
        [write(0, 1, 1, a=1), write(2, 3, 2, a=2)],
        [saw(4, 5, 3, a=(1, 3))],
        [],
        "it was 2",
    ),
    "an unknown write below what was known when it was called": (
        [write(0, 1, 5, a=1)],
        [saw(5, 6, 5, b=(9, 4))],
        [maybe(2, b=9)],
        "was called after 5",
    ),
    "a value of the wrong revision": (
        [write(0, 1, 1, a=1)],
        [saw(2, 3, 4, a=(1, 4))],
        [],
        "written at 1",
    ),
    "an absence that no delete explains": (
        [write(0, 1, 1, a=1)],
        [saw(2, 3, 1, a=(None, 0))],
        [maybe(9, a=None)],
        "it was 1",
    ),
}

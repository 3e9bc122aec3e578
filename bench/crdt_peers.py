"""The best CRDT libraries that Python can call, as peers of `bench crdt`: pycrdt and loro.

Both are written in Rust, and hold one document in memory: no signatures, no disk, no peers. What is
asked of all three is the same: a map of texts that several replicas have written to, each write
an update of its own, or the whole of each replica.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Protocol

PACKAGES = ("pycrdt", "loro")
Write = tuple[str, str]


class Library(Protocol):
    """`make`: replicas as they have written; what else is measured takes of that alone."""

    def make(self, writes: Sequence[Sequence[Write]]) -> None: ...
    def merge_updates(self) -> int:
        """Take every write of every replica, one after the other; how many keys there are."""
        ...

    def merge_states(self) -> int:
        """Take each replica as a whole; how many keys there are."""
        ...

    def difference_bytes(self, writes: Sequence[Write]) -> int:
        """What two that were equal send each other to be equal again after more writes on one."""
        ...


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def setup() -> None:
    """Install them where this runs. Raises CalledProcessError."""
    missing = [package for package in PACKAGES if not installed(package)]
    if missing:
        command = [sys.executable, "-m", "pip", "install", "--quiet", *missing]
        subprocess.run(command, check=True)


class Pycrdt:
    def __init__(self) -> None:
        import pycrdt

        self._library = pycrdt
        self._states: list[bytes] = []
        self._updates: list[bytes] = []

    def _doc(self) -> tuple[Any, Any]:
        doc = self._library.Doc()
        return doc, doc.get("values", type=self._library.Map)

    def make(self, writes: Sequence[Sequence[Write]]) -> None:
        lanes = []
        for of_one in writes:
            doc, values = self._doc()
            updates: list[bytes] = []
            watching = doc.observe(lambda event, kept=updates: kept.append(event.update))
            for key, value in of_one:
                values[key] = value
            doc.unobserve(watching)
            lanes.append(updates)
            self._states.append(doc.get_update())
        self._updates = [one for turn in zip(*lanes, strict=True) for one in turn]

    def merge_updates(self) -> int:
        doc, values = self._doc()
        for update in self._updates:
            doc.apply_update(update)
        return len(values)

    def merge_states(self) -> int:
        doc, values = self._doc()
        for state in self._states:
            doc.apply_update(state)
        return len(values)

    def difference_bytes(self, writes: Sequence[Write]) -> int:
        (one, values), (other, others) = self._doc(), self._doc()
        for state in self._states:
            one.apply_update(state)
            other.apply_update(state)
        for key, value in writes:
            values[key] = value
        asked = other.get_state()
        answer = one.get_update(asked)
        other.apply_update(answer)
        assert all(others[key] == value for key, value in writes)
        return len(asked) + len(answer)


class Loro:
    def __init__(self) -> None:
        import loro

        self._library = loro
        self._states: list[bytes] = []
        self._updates: list[bytes] = []

    def make(self, writes: Sequence[Sequence[Write]]) -> None:
        lanes = []
        for of_one in writes:
            doc = self._library.LoroDoc()
            updates: list[bytes] = []
            watching = doc.subscribe_local_update(lambda raw, kept=updates: _keep(kept, raw))
            values = doc.get_map("values")
            for key, value in of_one:
                values.insert(key, value)
                doc.commit()
            watching.unsubscribe()
            lanes.append(updates)
            self._states.append(bytes(doc.export(self._library.ExportMode.Snapshot())))
        self._updates = [one for turn in zip(*lanes, strict=True) for one in turn]

    def merge_updates(self) -> int:
        doc = self._library.LoroDoc()
        for update in self._updates:
            doc.import_(update)
        return len(doc.get_map("values"))

    def merge_states(self) -> int:
        doc = self._library.LoroDoc()
        for state in self._states:
            doc.import_(state)
        return len(doc.get_map("values"))

    def difference_bytes(self, writes: Sequence[Write]) -> int:
        one, other = self._library.LoroDoc(), self._library.LoroDoc()
        for state in self._states:
            one.import_(state)
            other.import_(state)
        values = one.get_map("values")
        for key, value in writes:
            values.insert(key, value)
        one.commit()
        asked = other.oplog_vv
        answer = bytes(one.export(self._library.ExportMode.Updates(asked)))
        other.import_(answer)
        assert len(other.get_map("values")) == len(values)
        return len(asked.encode()) + len(answer)


def _keep(updates: list[bytes], raw: Any) -> bool:
    updates.append(bytes(raw))
    return True


def library_of(package: str) -> Library | None:
    """None where it is not installed."""
    if not installed(package):
        return None
    return Pycrdt() if package == "pycrdt" else Loro()

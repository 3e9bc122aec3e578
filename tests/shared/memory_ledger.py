"""What clients of shared memory were told, and whether nodes hold it. Pure.

Of all acknowledged writes of a key, deletions among them, the latest counts, by the stamp that the
node answered with. Where the latest two have one stamp, in milliseconds, either may count. A write
that was not answered may count or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

# A node's values: what it holds by key, and the version of it.
View = Mapping[str, tuple[str, str]]


class Told(msgspec.Struct, frozen=True, array_like=True):
    """One call. `value` None: a deletion; `at_ms` None: it was not answered.

    A deletion is told no stamp: it has that of the write before it by the same client.
    """

    key: str
    value: str | None
    at_ms: int | None


@dataclass
class Ledger:
    """The calls of all clients. Only one client, at one node, deletes a key."""

    acknowledged: int = 0
    unknown: int = 0
    _latest: dict[str, tuple[int, set[str | None]]] = field(default_factory=dict)
    _maybe: dict[str, set[str | None]] = field(default_factory=dict)

    def add(self, calls: Iterable[Told]) -> None:
        """One client's calls, in their order."""
        for one in calls:
            if one.at_ms is None:
                self.unknown += 1
                self._maybe.setdefault(one.key, set()).add(one.value)
                continue
            self.acknowledged += 1
            stamp, values = self._latest.get(one.key, (-1, set()))
            if one.value is None or one.at_ms > stamp:
                self._latest[one.key] = (max(stamp, one.at_ms), {one.value})
            elif one.at_ms == stamp:
                values.add(one.value)

    @property
    def keys(self) -> set[str]:
        return self._latest.keys() | self._maybe.keys()

    def problems(self, views: Mapping[str, View]) -> list[str]:
        """What is not as it was acknowledged, or not the same everywhere; a line for each."""
        found: list[str] = []
        for node, view in views.items():
            for key, (_, values) in self._latest.items():
                held = view[key][0] if key in view else None
                if held not in values and held not in self._maybe.get(key, ()):
                    found.append(f"{node} holds {key} = {held}, not {sorted(map(str, values))}")
            invented = view.keys() - self.keys
            found += [f"{node} holds {key}, which nobody wrote" for key in sorted(invented)]
        [first, *rest] = views
        for node in rest:
            differing = dict(views[first].items() ^ views[node].items())
            found += [f"{first} and {node} differ in {key}" for key in sorted(differing)]
        return found

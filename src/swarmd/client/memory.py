"""Shared memory, as a program beside the daemons uses it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final
from urllib.parse import quote, urlencode

import msgspec

from swarmd.base.errors import (
    BadRequest,
    ComputeReplaced,
    Conflict,
    ShuttingDown,
    SwarmError,
    Unreachable,
)
from swarmd.base.names import check_name
from swarmd.client.requests import RETRY_PAUSE_S, DaemonDown, Requests
from swarmd.gateway.shapes import Done
from swarmd.gateway.shapes_memory import (
    CrdtKey,
    MemoryEntry,
    MemoryNamespace,
    MemoryNews,
    MemoryPage,
    MemoryTurn,
)

# How long a value that was computed is offered to one daemon after another.
_KEEP_RETRY_S: Final = 10.0
_WHY_CHARS_MAX: Final = 500


class MemoryCalls(Requests):
    """A part of `Client`."""

    def memory_set(
        self,
        namespace: str,
        key: str,
        value: Any,
        *,
        ttl_s: float | None = None,
        if_version: str | None = None,
    ) -> MemoryEntry:
        """Write a value. In an eventual namespace all nodes have it within a second or so; in a
        strong one every later get has it, or one that was written after it.

        Args:
            ttl_s: when it expires, in seconds from now.
            if_version: only where this is the version; "0": only where there is none.
        """
        body = {"value": value, "ttl_s": ttl_s, "if_version": if_version}
        return self._call("PUT", _path(namespace, key), body, kind=MemoryEntry)

    def memory_get(self, namespace: str, key: str) -> MemoryEntry:
        """The value as the node knows it; in a strong namespace, as a majority does.

        Raises:
            NotFound: there is none.
            NoQuorum: the namespace is strong, and no majority answers.
        """
        return self._get(_path(namespace, key), MemoryEntry)

    def memory_list(
        self, namespace: str, prefix: str = "", *, after: str = "", limit: int = 1_000
    ) -> MemoryPage:
        """Values in the order of their keys; those after the key `after`."""
        check_name(namespace, "namespace")
        query = urlencode({"prefix": prefix, "after": after, "limit": limit})
        return self._get(f"/memory/{quote(namespace, safe='')}?{query}", MemoryPage)

    def memory_delete(self, namespace: str, key: str, *, if_version: str | None = None) -> None:
        """Delete a value. Raises NotFound."""
        query = "" if if_version is None else "?" + urlencode({"if_version": if_version})
        self._call("DELETE", _path(namespace, key) + query, None, kind=dict[str, Any])

    def memory_watch(
        self, namespace: str, prefix: str = "", *, since: str = ""
    ) -> Iterator[MemoryNews]:
        """Keys as they change, until the daemon goes or the iterator is closed.

        The first item has no key: from then on nothing is missed, while this is read.

        Args:
            since: the `position` of the last item of an earlier watch of the same prefix, in an
                eventual namespace on the same node: what changed meanwhile is told, too. Where
                that is not known any more the first item, or another one without a key soon after
                it, is `lagged`: list the keys.
        """
        check_name(namespace, "namespace")
        query = urlencode({"prefix": prefix, "since": since})
        path = f"/memory-watch/{quote(namespace, safe='')}?{query}"
        return self._stream("GET", path, None, MemoryNews)

    def crdt_inspect(self, namespace: str, key: str) -> CrdtKey:
        """Who put what at a key, when, and why it counts, as the node knows. Raises NotFound."""
        return self._get(_path(namespace, key, "crdt"), CrdtKey)

    # ---- namespaces ------------------------------------------------------------------

    def memory_namespaces(self) -> list[MemoryNamespace]:
        """Namespaces that were made, by name. Raises NoQuorum."""
        return self._get("/memory-namespaces", list[MemoryNamespace])

    def memory_namespace(self, namespace: str) -> MemoryNamespace:
        """What a namespace promises."""
        return self._get(_namespace_path(namespace), MemoryNamespace)

    def memory_namespace_create(
        self,
        namespace: str,
        consistency: str,
        *,
        entries_max: int = 0,
        bytes_max: int = 0,
        copies: int = 0,
        ttl_s: float = 0.0,
        type: str = "any",
        readers: Sequence[str] = (),
        writers: Sequence[str] = (),
    ) -> MemoryNamespace:
        """Make a namespace; repeating it changes nothing. A strong one takes a few seconds.

        Args:
            consistency: `eventual` or `strong`; it stays that.
            entries_max: it is a cache, which holds so many values.
            copies: how many nodes hold each value, 2 to 7; it stays that. 0: all.
            bytes_max, ttl_s, type, readers, writers: see `memory_namespace_change`.

        Raises:
            NamespaceExists, NamespaceInUse: nothing changed.
            NoQuorum: whether it was made is unknown.
        """
        body = {
            "consistency": consistency,
            "entries_max": entries_max,
            "bytes_max": bytes_max,
            "copies": copies,
            "ttl_s": ttl_s,
            "type": type,
            "readers": list(readers),
            "writers": list(writers),
        }
        path = _namespace_path(namespace)
        return self._call("PUT", path, body, kind=MemoryNamespace, safe=True)

    def memory_namespace_change(
        self,
        namespace: str,
        *,
        ttl_s: float | None = None,
        entries_max: int | None = None,
        bytes_max: int | None = None,
        type: str | None = None,
        readers: Sequence[str] | None = None,
        writers: Sequence[str] | None = None,
        evict: bool = False,
    ) -> MemoryNamespace:
        """Change the policy of a namespace; what is None stays. Nodes follow within seconds.

        Args:
            ttl_s: when a value ends whose writer does not say that, in seconds; 0: never.
            entries_max: of a cache, how many values it holds.
            bytes_max: how much it holds; 0: any. What was written longest ago goes first, of a
                cache what was used longest ago.
            type: of what type values are: `string`, `number`, `integer`, `boolean`, `array`,
                `object`, `any`.
            readers, writers: who alone may; roles, `key:NAME`, `user:UID`; empty: everybody whom
                their rules let.
            evict: let a bound take away what is too much.

        Raises:
            BadRequest, NotFound, PolicyConflict, WouldLoseData: nothing changed.
            NoQuorum: whether it changed is unknown; repeat it.
        """
        given = {
            "ttl_s": ttl_s,
            "entries_max": entries_max,
            "bytes_max": bytes_max,
            "type": type,
            "readers": None if readers is None else list(readers),
            "writers": None if writers is None else list(writers),
        }
        body = {field: value for field, value in given.items() if value is not None}
        path = _namespace_path(namespace)
        return self._call("PATCH", path, {**body, "evict": evict}, kind=MemoryNamespace, safe=True)

    # ---- values that are computed once -----------------------------------------------

    def memory_get_or_compute(
        self,
        namespace: str,
        key: str,
        compute: Callable[[], Any],
        *,
        ttl_s: float | None = None,
        wait_s: float = 60.0,
        compute_s: float = 300.0,
    ) -> Any:
        """The value of a cache; if it is missing, what `compute` gives, which is kept for others.

        Of all callers in the swarm one computes, and the others wait for it. One that is gone, or
        takes too long, is replaced by another; then `compute` runs again, there.

        Args:
            namespace: a cache; one that nobody made becomes one, of 10,000 values and 64 MiB.
            ttl_s: for how long the value is kept, in seconds.
            wait_s: longest wait for others.
            compute_s: how long `compute` may take.

        Raises:
            ComputeFailed: it was computed elsewhere while this waited, and failed. What `compute`
                itself raises here comes as it is. Either way nobody tries again by itself.
            ComputePending: not within `wait_s`; somebody still computes it.
            NotACache: the namespace holds values that no cache may lose.
            NoQuorum: it is missing here, and no majority can be asked who computes it.
        """
        path = _path(namespace, key, "memory-compute")
        deadline = time.monotonic() + wait_s
        while True:
            with self._another() as asking:
                # The turn lasts for as long as its stream is open.
                turn, stream = _turn(asking, path, deadline, compute_s)
                if turn.state == "hit":
                    return turn.value
                value = self._compute(path, turn.fence, compute)
                try:
                    self._keep(path, turn.fence, value, ttl_s)
                except ComputeReplaced:
                    if time.monotonic() >= deadline:
                        raise
                else:
                    return value
                finally:
                    del stream

    def _compute(self, path: str, fence: int, compute: Callable[[], Any]) -> Any:
        """Take a turn. Who is interrupted leaves it to somebody else."""
        try:
            value = compute()
            msgspec.msgpack.encode(value)
        except Exception as error:
            self._tell_failure(path, fence, f"{type(error).__name__}: {error}")
            raise
        return value

    def _keep(self, path: str, fence: int, value: Any, ttl_s: float | None) -> None:
        body = {"fence": fence, "value": value, "ttl_s": ttl_s}
        try:
            self._call("PUT", path, body, kind=Done, safe=True, retry_s=_KEEP_RETRY_S)
        except Conflict:
            raise
        except BadRequest as error:  # Nobody else would fare better.
            self._tell_failure(path, fence, error.message)
            raise

    def _tell_failure(self, path: str, fence: int, why: str) -> None:
        body = {"fence": fence, "error": why[:_WHY_CHARS_MAX]}
        with contextlib.suppress(SwarmError):  # The turn goes back when the connection closes.
            self._call("PUT", path, body, kind=Done, safe=True)


def _turn(
    asking: Requests, path: str, deadline: float, compute_s: float
) -> tuple[MemoryTurn, Iterator[MemoryTurn]]:
    """The value or a turn, from whichever daemon stays there until it comes, and its stream."""
    while True:
        left_s = max(0.0, deadline - time.monotonic())
        try:
            body = {"wait_s": left_s, "compute_s": compute_s}
            stream = asking._stream("POST", path, body, MemoryTurn)
            turn = next(stream, None)
            if turn is not None:
                return turn, stream
            raise Unreachable("the daemon's answer broke off")
        except DaemonDown:
            raise
        except (Unreachable, ShuttingDown):
            if time.monotonic() >= deadline:
                raise
            asking._next_socket()
            time.sleep(RETRY_PAUSE_S)


def _namespace_path(namespace: str) -> str:
    check_name(namespace, "namespace")
    return f"/memory-namespaces/{quote(namespace, safe='')}"


def _path(namespace: str, key: str, below: str = "memory") -> str:
    # A slash in a namespace would make another path of it, which is somebody else's key.
    check_name(namespace, "namespace")
    return f"/{below}/{quote(namespace, safe='')}/{quote(key, safe='')}"

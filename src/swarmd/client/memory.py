"""Shared memory, as a program beside the daemons uses it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

from swarmd.base.names import check_name
from swarmd.client.requests import Requests
from swarmd.gateway.shapes_memory import MemoryEntry, MemoryNews, MemoryPage


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
        """Write a value, of which all nodes have the latest within a second or so.

        Args:
            ttl_s: when it expires, in seconds from now.
            if_version: only where this is the version; "0": only where there is none.
        """
        body = {"value": value, "ttl_s": ttl_s, "if_version": if_version}
        return self._call("PUT", _path(namespace, key), body, kind=MemoryEntry)

    def memory_get(self, namespace: str, key: str) -> MemoryEntry:
        """The value as the node knows it. Raises NotFound."""
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
            since: the `position` of the last item of an earlier watch of the same prefix on the
                same node: what changed meanwhile is told, too. Where the node does not know that
                any more the first item is `lagged`: list the keys.
        """
        check_name(namespace, "namespace")
        query = urlencode({"prefix": prefix, "since": since})
        path = f"/memory-watch/{quote(namespace, safe='')}?{query}"
        return self._stream("GET", path, None, MemoryNews)


def _path(namespace: str, key: str) -> str:
    # A slash in a namespace would make another path of it, which is somebody else's key.
    check_name(namespace, "namespace")
    return f"/memory/{quote(namespace, safe='')}/{quote(key, safe='')}"

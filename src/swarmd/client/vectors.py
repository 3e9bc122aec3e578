"""Vector memory, as a program beside the daemons uses it."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import msgspec

from swarmd.base.limits import KIB, VECTOR_BATCH_BYTES_MAX, VECTOR_BATCH_CHANGES_MAX
from swarmd.base.names import check_name
from swarmd.client.requests import Requests
from swarmd.gateway.shapes_vectors import (
    AddedEntry,
    CollectionShape,
    GivenEntry,
    VectorEntry,
    VectorsFound,
)
from swarmd.memory.vector.shapes import packed

# A request of texts: making vectors of them takes long, and all of it is done again if it fails.
_TEXTS_MAX: Final = 64
_PAYLOAD_BYTES: Final = 512 * KIB


class VectorCalls(Requests):
    """A part of `Client`."""

    def vector_collections(self) -> list[CollectionShape]:
        """Those that the caller may read, by name."""
        return self._get("/vectors", list[CollectionShape])

    def vector_collection(self, name: str) -> CollectionShape:
        """Raises NotFound."""
        return self._get(_path(name), CollectionShape)

    def vector_create(
        self,
        name: str,
        dimension: int | None = None,
        metric: str = "cosine",
        *,
        embed: bool = False,
    ) -> CollectionShape:
        """Make a collection; nothing, if it is there as such.

        Args:
            embed: for texts, of which the node's model makes vectors; that knows its dimension.

        Raises:
            Conflict: it is there with another dimension, metric or model.
            NoEmbedder: the node makes no vectors of texts.
        """
        body = {"dimension": dimension, "metric": metric, "embed": embed}
        return self._call("PUT", _path(name), body, kind=CollectionShape, safe=True)

    def vector_drop(self, name: str) -> None:
        """Delete a collection with all its entries. Raises NotFound."""
        self._call("DELETE", _path(name), None, kind=dict[str, Any])

    def vector_add(
        self, name: str, entries: Iterable[GivenEntry | Mapping[str, Any]]
    ) -> list[AddedEntry]:
        """Add any number of entries, in requests of bounded size; see `vector_batches`."""
        return [one for batch in self.vector_batches(name, entries) for one in batch]

    def vector_batches(
        self, name: str, entries: Iterable[GivenEntry | Mapping[str, Any]]
    ) -> Iterator[list[AddedEntry]]:
        """Add entries as they come; yields those of each request once they are on a disk.

        Args:
            entries: with `vector` (or `text`), `payload` and `id`; one without an id gets one by
                chance, so that a repeated request adds nothing twice.

        Raises:
            NotFound, WrongDimension, BadVector, BadRequest, NoEmbedder: nothing of the request
                that failed was added, and all of those that were yielded.
        """
        for batch in _batches(entries):
            yield self._call(
                "POST",
                _path(name) + "/entries",
                {"entries": batch},
                kind=list[AddedEntry],
                safe=True,
            )

    def vector_get(self, name: str, entry_id: str) -> VectorEntry:
        """The entry as the node knows it. Raises NotFound."""
        return self._get(_entry_path(name, entry_id), VectorEntry)

    def vector_delete(self, name: str, entry_id: str) -> None:
        """Delete an entry. Raises NotFound."""
        self._call("DELETE", _entry_path(name, entry_id), None, kind=dict[str, Any])

    def vector_search(
        self,
        name: str,
        vector: Sequence[float] | bytes | None = None,
        *,
        text: str | None = None,
        k: int = 10,
        filter: Mapping[str, Any] | None = None,
    ) -> VectorsFound:
        """The nearest entries, the nearest first, of what the node has.

        Args:
            vector: numbers, or float32, little-endian. Or `text`, of which the node makes one.
            filter: by field a value, a list of values, or bounds (`{"gte": 1, "lt": 5}`).

        Raises:
            NotFound, WrongDimension, BadVector, BadRequest, NoEmbedder.
            NotReady: the node makes its index: ask again shortly, or another node.
        """
        given = None if vector is None else _vector(vector)
        body = {"vector": given, "text": text, "k": k, "filter": dict(filter or {})}
        return self._call("POST", _path(name) + "/search", body, kind=VectorsFound, safe=True)


def _vector(vector: Sequence[float] | bytes) -> list[float] | str:
    """As a request carries it best; what is no float32 is left for the daemon to refuse."""
    if isinstance(vector, bytes):
        return base64.b64encode(vector).decode()
    try:
        return base64.b64encode(packed(vector)).decode()
    except (OverflowError, TypeError):
        return list(vector)


def _batches(
    entries: Iterable[GivenEntry | Mapping[str, Any]],
) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = payloads = texts = 0
    for one in entries:
        given = msgspec.structs.asdict(one) if isinstance(one, GivenEntry) else dict(one)
        given.setdefault("id", secrets.token_hex(16))
        vector = given.get("vector")
        if isinstance(vector, bytes | list | tuple):
            given["vector"] = vector = _vector(vector)
        more = len(vector) * 3 // 4 if isinstance(vector, str) else 0
        payload = len(msgspec.msgpack.encode(given.get("payload")))
        text = given.get("text") is not None
        is_full = (
            len(batch) >= VECTOR_BATCH_CHANGES_MAX
            or size + more > VECTOR_BATCH_BYTES_MAX
            or payloads + payload > _PAYLOAD_BYTES
            or texts + text > _TEXTS_MAX
        )
        if batch and is_full:
            yield batch
            batch, size, payloads, texts = [], 0, 0, 0
        batch.append(given)
        size, payloads, texts = size + more, payloads + payload, texts + text
    if batch:
        yield batch


def _path(name: str) -> str:
    # A slash in a name would make another path of it, which is somebody else's collection.
    check_name(name, "collection")
    return f"/vectors/{quote(name, safe='')}"


def _entry_path(name: str, entry_id: str) -> str:
    return f"{_path(name)}/entries/{quote(entry_id, safe='')}"

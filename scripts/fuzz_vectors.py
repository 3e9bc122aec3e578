"""Targets of vector memory: what members put into its bucket, what providers and databases say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

from fuzz_inputs import packed, unpacked
from fuzz_target import Target, always, of_struct

from swarmd.memory.vector.embedding import decode_embeddings
from swarmd.memory.vector.pg_values import (
    decode_payload,
    decode_text,
    decode_vector,
    encode_text,
    encode_vector,
)
from swarmd.memory.vector.records import (
    CollectionRecord,
    EntryRecord,
    Spec,
    decode_collection,
    decode_entry,
    values_of,
)
from swarmd.memory.vector.rules import check_entry
from swarmd.memory.vector.shapes import Metric
from swarmd.memory.vector.shapes import packed as packed_vector

_MADE = b"12345678"


def _entry(raw: bytes) -> None:
    """Decode it, and look at it as an index does."""
    found = decode_entry(raw)
    check_entry("id", found.vector, found.payload, Spec(3, Metric.COSINE))


def vectors() -> Iterator[Target]:
    collection = CollectionRecord(_MADE, 3, Metric.COSINE, "model", "ann")
    yield of_struct("vectors.collection", decode_collection, packed(values_of(collection)))
    payload = {"topic": "news", "n": 3, "share": 0.5, "draft": True}
    entry = EntryRecord(_MADE, (b"a" * 40, 7), packed_vector([1, 2, 3]), payload, "ann")
    raw = packed(values_of(entry))
    yield Target(
        "vectors.entry",
        always(_entry),
        [raw],
        covers=("memory.vector.records.decode_entry",),
        dress=packed,
        values=[unpacked(raw)],
    )
    answer = {"data": [{"index": n, "embedding": [0.5, 1, -2e-3]} for n in (1, 0)]}
    yield Target(
        "vectors.embeddings",
        always(partial(decode_embeddings, count=2)),
        [json.dumps(answer).encode()],
        covers=("memory.vector.embedding.decode_embeddings",),
        dress=lambda value: json.dumps(value, default=str).encode(errors="replace"),
        values=[answer],
    )
    yield Target(
        "vectors.database_vector",
        always(partial(decode_vector, dimension=3)),
        [encode_vector(packed_vector([1, 2, 3]))],
        covers=("memory.vector.pg_values.decode_vector",),
    )
    yield Target(
        "vectors.database_text",
        always(decode_text),
        [encode_text("a\0ä")],
        covers=("memory.vector.pg_values.decode_text",),
    )
    yield Target(
        "vectors.database_payload",
        always(decode_payload),
        [packed(payload)],
        covers=("memory.vector.pg_values.decode_payload",),
        dress=packed,
        values=[payload],
    )

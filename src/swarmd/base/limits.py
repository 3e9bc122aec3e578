"""Every bound of the system in one place, with the relations between them asserted."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# Datagrams: under the smallest MTU met on LANs, IPv6 and tunnels included.
DATAGRAM_BYTES_MAX: Final = 1_200
# Streams: one frame carries a batch of messages, and the largest of all alone.
FRAME_BYTES_MAX: Final = 1536 * KIB
MESSAGE_BYTES_MAX: Final = 768 * KIB
FRAME_MESSAGES_MAX: Final = 512
INBOX_MESSAGES_MAX: Final = 1_000
LANE_MESSAGES_MAX: Final = 1_000

# The strong store.
KEY_BYTES_MAX: Final = 1 * KIB
VALUE_BYTES_MAX: Final = 1 * MIB
BATCH_OPERATIONS_MAX: Final = 256
BATCH_BYTES_MAX: Final = 1 * MIB
# One value at its largest must fit a batch; a batch travels in several frames if it must.
ENTRY_BYTES_MAX: Final = VALUE_BYTES_MAX + 64 * KIB
SESSIONS_MAX: Final = 10_000
LEASES_MAX: Final = 10_000
# All of a lease's keys go at once when it ends: more would hold up the loop.
LEASE_KEYS_MAX: Final = 2_000
LEASE_TTL_MIN_MS: Final = 1_000
LEASE_TTL_MAX_MS: Final = 24 * 3_600 * 1_000
# What watches can go back to. The newest revision is kept whole, whatever its size.
HISTORY_CHANGES_MAX: Final = 10_000
HISTORY_BYTES_MAX: Final = 4 * MIB
# Recipes: locks, elections, barriers. A barrier opens by one transaction.
RECIPE_NAME_BYTES_MAX: Final = 200
RECIPE_VALUE_BYTES_MAX: Final = 4 * KIB
RECIPE_WAITERS_MAX: Final = 1_000
BARRIER_COUNT_MAX: Final = 256

# Work. What is above INLINE_BYTES_MAX is stored as a blob.
INLINE_BYTES_MAX: Final = 64 * KIB
BLOB_BYTES_MAX: Final = 64 * MIB
BLOB_CHUNK_BYTES: Final = 256 * KIB
# A chunk is sent in pieces; that many of its bytes are on their way to one who takes it.
BLOB_PIECE_BYTES: Final = 128 * KIB
# Users' blobs are streamed: what bounds them is the list of their chunks' hashes, 32 MiB.
BLOB_CHUNKS_MAX: Final = 1_048_576
STREAMED_BYTES_MAX: Final = BLOB_CHUNKS_MAX * BLOB_CHUNK_BYTES
BLOB_COPIES_MAX: Final = 32
SUBMIT_TASKS_MAX: Final = 10_000
IDEMPOTENCY_KEY_BYTES_MAX: Final = 256

# The bus. A lane is a sender's place at its node; an inbox is a subscriber's.
TOPIC_BYTES_MAX: Final = 200
BUS_DATA_BYTES_MAX: Final = 64 * KIB
BUS_FILTERS_MAX: Final = 2_000
BUS_SUBSCRIBERS_MAX: Final = 2_000
BUS_LANES_MAX: Final = 1_024
BUS_LANE_MESSAGES_MAX: Final = 1_024
BUS_INBOX_BYTES_MAX: Final = 8 * MIB
# What one node may have waiting at another for inboxes with no room.
BUS_HELD_BYTES_MAX: Final = 16 * MIB

# The eventual store. A cell holds a caller's value and what it is wrapped in, a batch the largest
# cell, a message the largest batch, and a frame that.
CRDT_SHARDS: Final = 64
# On how many nodes a bucket may live that does not live on all.
CRDT_COPIES_MIN: Final = 2
CRDT_COPIES_MAX: Final = 7
CRDT_KEY_BYTES_MAX: Final = 1 * KIB
CRDT_VALUE_BYTES_MAX: Final = 1 * MIB
CRDT_CELL_BYTES_MAX: Final = CRDT_VALUE_BYTES_MAX + 4 * KIB
CRDT_BATCH_CHANGES_MAX: Final = 256
CRDT_BATCH_BYTES_MAX: Final = CRDT_CELL_BYTES_MAX + 124 * KIB
CRDT_MESSAGE_BYTES_MAX: Final = CRDT_BATCH_BYTES_MAX + 64 * KIB

# Shared memory: with a namespace, a key fits either store. Caches are bounded by what they say.
MEMORY_KEY_BYTES_MAX: Final = 880
MEMORY_STRONG_VALUE_BYTES_MAX: Final = VALUE_BYTES_MAX - 4 * KIB
MEMORY_NAMESPACES_MAX: Final = 1_000
CACHE_ENTRIES_MAX: Final = 1_000_000
CACHE_BYTES_MAX: Final = 16 * 1024 * MIB
# Of a namespace that is no cache; and who may read and write in one, by name.
NAMESPACE_BYTES_MIN: Final = 1 * KIB
NAMESPACE_WHO_MAX: Final = 32
NAMESPACE_WHO_CHARS_MAX: Final = 160

# Secrets. One is a text of an environment; all that one agent is given fits an answer.
SECRETS_MAX: Final = 1_000
SECRET_BYTES_MAX: Final = 32 * KIB
ENVIRONMENT_BYTES_MAX: Final = 256 * KIB

# User events, and questions to all members. What is kept of events goes along with a view.
EVENT_PAYLOAD_BYTES_MAX: Final = 512
EVENTS_KEPT_MAX: Final = 512
EVENTS_KEPT_BYTES_MAX: Final = 192 * KIB
QUERY_ANSWER_BYTES_MAX: Final = 1 * KIB

# Vectors. A change of one entry at its largest fits a message with its signature.
VECTOR_DIMENSION_MAX: Final = 4_096
VECTOR_ELEMENT_MAX: Final = 1e15
VECTOR_ID_BYTES_MAX: Final = 256
VECTOR_PAYLOAD_BYTES_MAX: Final = 4 * KIB
VECTOR_PAYLOAD_FIELDS_MAX: Final = 32
VECTOR_FIELD_NAME_BYTES_MAX: Final = 64
# Of one batch: vectors only, since payloads are bounded by their number.
VECTOR_BATCH_CHANGES_MAX: Final = 1_000
VECTOR_BATCH_BYTES_MAX: Final = 4 * MIB
VECTOR_COLLECTIONS_MAX: Final = 256
VECTOR_MODEL_BYTES_MAX: Final = 200
# A text that a vector is made of.
VECTOR_TEXT_BYTES_MAX: Final = 32 * KIB
# Entries of one collection, and bytes of the vectors in all of them.
VECTOR_ENTRIES_MAX: Final = 1_000_000
VECTOR_BYTES_MAX: Final = 16 * 1024 * MIB
VECTOR_RESULTS_MAX: Final = 1_000
VECTOR_CONDITIONS_MAX: Final = 16
VECTOR_CHOICES_MAX: Final = 256

# Members and files.
MEMBERS_MAX: Final = 10_000
NAME_BYTES_MAX: Final = 128
CHECKED_FILE_BYTES_MAX: Final = 1024 * MIB
TIMERS_MAX: Final = 100_000

assert MESSAGE_BYTES_MAX < FRAME_BYTES_MAX
assert BLOB_CHUNK_BYTES < MESSAGE_BYTES_MAX
assert BLOB_CHUNK_BYTES % BLOB_PIECE_BYTES == 0
assert CRDT_VALUE_BYTES_MAX < CRDT_CELL_BYTES_MAX < CRDT_BATCH_BYTES_MAX
assert MESSAGE_BYTES_MAX < CRDT_MESSAGE_BYTES_MAX < FRAME_BYTES_MAX
assert INLINE_BYTES_MAX < VALUE_BYTES_MAX < ENTRY_BYTES_MAX
assert BATCH_BYTES_MAX <= ENTRY_BYTES_MAX
assert ENTRY_BYTES_MAX < HISTORY_BYTES_MAX
assert 0 < LEASE_TTL_MIN_MS < LEASE_TTL_MAX_MS
assert RECIPE_NAME_BYTES_MAX + 64 < KEY_BYTES_MAX
assert RECIPE_WAITERS_MAX < LEASES_MAX
assert INLINE_BYTES_MAX < BLOB_BYTES_MAX < STREAMED_BYTES_MAX
assert SECRET_BYTES_MAX < ENVIRONMENT_BYTES_MAX < MESSAGE_BYTES_MAX
assert NAME_BYTES_MAX < KEY_BYTES_MAX
assert min(KEY_BYTES_MAX, CRDT_KEY_BYTES_MAX) >= MEMORY_KEY_BYTES_MAX + NAME_BYTES_MAX + 8
assert MEMORY_STRONG_VALUE_BYTES_MAX < VALUE_BYTES_MAX
assert BUS_DATA_BYTES_MAX <= INLINE_BYTES_MAX < BUS_INBOX_BYTES_MAX < BUS_HELD_BYTES_MAX
assert VECTOR_DIMENSION_MAX * 4 + VECTOR_PAYLOAD_BYTES_MAX < INLINE_BYTES_MAX
# A sum of squares of the largest elements is still a float32.
assert VECTOR_DIMENSION_MAX * (2 * VECTOR_ELEMENT_MAX) ** 2 < 1e38
assert VECTOR_RESULTS_MAX <= VECTOR_ENTRIES_MAX
assert VECTOR_BATCH_CHANGES_MAX < VECTOR_ENTRIES_MAX
assert VECTOR_DIMENSION_MAX * 4 <= VECTOR_BATCH_BYTES_MAX < VECTOR_BYTES_MAX
assert DATAGRAM_BYTES_MAX < MESSAGE_BYTES_MAX
assert NAME_BYTES_MAX + EVENT_PAYLOAD_BYTES_MAX < DATAGRAM_BYTES_MAX
assert EVENTS_KEPT_BYTES_MAX < MESSAGE_BYTES_MAX
assert EVENT_PAYLOAD_BYTES_MAX < QUERY_ANSWER_BYTES_MAX

# What a node that leaves hands on may take so long: a caller waits no less.
LEAVE_TIMEOUT_S: Final = 375.0

"""A typed, blocking client of the daemon's API, over its unix socket.

The CLI is built on it and nothing else, and so can any Python program be:

    with Client() as swarm:
        submitted = swarm.submit([TaskInput(agent="extractor", input={"n": 1})])
        for task in swarm.results([one.id for one in submitted]):
            print(task.state, task.result)

Retries and keys: every submit carries an idempotency key, drawn here if the caller gave none,
so that repeating it after a broken connection makes no second task. With several sockets a
request that finds its daemon gone is repeated through the next one; a stream of results is
taken up where it broke. Requests that are not safe to repeat (kv writes, stop) are repeated
only if no byte of them was sent.

Only the standard library's `http.client` and msgspec are imported: a command must start fast.
"""

from __future__ import annotations

from swarmd.client.calls import Client
from swarmd.client.requests import ApiError, DaemonDown, default_socket
from swarmd.gateway.shapes import ItemInput, KvCompare, KvOperation, TaskInput

__all__ = [
    "ApiError",
    "Client",
    "DaemonDown",
    "ItemInput",
    "KvCompare",
    "KvOperation",
    "TaskInput",
    "default_socket",
]

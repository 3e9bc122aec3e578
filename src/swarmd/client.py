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

import http.client
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from swarmd.base import folders
from swarmd.base.errors import (
    BadRequest,
    MalformedMessage,
    SwarmError,
    TimedOut,
    Unreachable,
)
from swarmd.base.limits import SUBMIT_TASKS_MAX
from swarmd.base.unix_http import UnixConnection, why_broken
from swarmd.gateway import shapes
from swarmd.gateway.shapes import ItemInput, TaskInput

__all__ = ["ApiError", "Client", "DaemonDown", "ItemInput", "TaskInput", "default_socket"]

API: Final = "/api/v1"
MSGPACK: Final = "application/msgpack"
FRAMES: Final = "application/vnd.swarmd.frames"
NODE_HEADER: Final = "X-Swarmd-Node"
# No single message of a stream may make the client allocate more than this.
FRAME_BYTES_MAX: Final = 256 * 1024 * 1024
# Requests are cut at about this size, so that neither side holds more of them in memory.
REQUEST_BYTES: Final = 16 * 1024 * 1024
_ERROR_BYTES_MAX: Final = 1024 * 1024
_RETRY_PAUSE_S: Final = 0.2
_NOT_SWARMD: Final = "what answers at {} is no swarmd of this version; see --socket"

T = TypeVar("T")


class DaemonDown(Unreachable):
    """No daemon answered on any of the sockets; the message says what was tried."""

    code = "daemon_down"


class ApiError(SwarmError):
    """An error with a code that this client does not know; the message begins with it."""

    code = "api_error"


def default_socket(environ: Mapping[str, str] | None = None) -> str:
    """SWARMCTL_SOCKET, else the socket of the daemon of this user."""
    environ = os.environ if environ is None else environ
    return environ.get("SWARMCTL_SOCKET") or str(folders.runtime_folder(environ) / "swarmd.sock")


class Client:
    """Talks to one daemon, or to the first of several that answers.

    Args:
        sockets: path or paths of daemons' unix sockets; None is `default_socket()`.
        node: name or id of the member that shall carry the requests out; the local daemon
            forwards them over the mesh.
        timeout_s: longest wait for any one answer, in seconds; a stream may be silent for as
            long only if its daemon does not even send its keep-alives.
    """

    def __init__(
        self,
        sockets: str | Path | Sequence[str | Path] | None = None,
        *,
        node: str | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        if sockets is None:
            sockets = default_socket()
        paths = [sockets] if isinstance(sockets, str | Path) else sockets
        self._sockets = [str(path) for path in paths]
        if not self._sockets:
            raise BadRequest("a client needs at least one socket")
        self._node = node
        self._timeout_s = timeout_s
        self._current = 0
        self._connection: UnixConnection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def sockets(self) -> list[str]:
        return list(self._sockets)

    # ---- the node and the swarm ------------------------------------------------------

    def status(self) -> shapes.Status:
        return self._get("/status", shapes.Status)

    def members(self) -> list[shapes.MemberInfo]:
        return self._get("/members", list[shapes.MemberInfo])

    def doctor(self) -> shapes.DoctorReport:
        return self._get("/doctor", shapes.DoctorReport)

    def config(self) -> list[shapes.SettingInfo]:
        return self._get("/config", list[shapes.SettingInfo])

    def ready_state(self) -> str:
        """Empty if the daemon takes work, else why not. Raises Unreachable: it is not there."""
        try:
            self._call("GET", "/ready", kind=Any, safe=True, prefix="")
        except SwarmError as error:
            if error.code != "not_ready":
                raise
            return error.message
        return ""

    def ready(self) -> bool:
        """True if the daemon takes work; False also while it is starting or in no swarm."""
        try:
            return not self.ready_state()
        except SwarmError:
            return False

    def metrics(self) -> str:
        """The Prometheus text exposition."""
        response = self._open("GET", "/metrics", None, prefix="", safe=True)
        return response.read().decode()

    def stop(self) -> shapes.Done:
        """Finish or hand back tasks, say goodbye, end the daemon. It keeps its seat."""
        return self._call("POST", "/stop", {}, kind=shapes.Done)

    def leave(self, *, force: bool = False) -> shapes.Done:
        """Like `stop`, and hand the voter's seat on; refused if that would lose data."""
        return self._call("POST", "/leave", {"force": force}, kind=shapes.Done)

    def authority_head(self) -> dict[str, Any]:
        """Height and hash of the authority log, the genesis, and the store's time in ms."""
        return self._get("/authority/head", dict[str, Any])

    def authority_propose(self, entry: bytes) -> dict[str, Any]:
        """Put a signed authority entry forward. Repeating it is harmless."""
        return self._call("POST", "/authority", {"entry": entry}, kind=dict[str, Any], safe=True)

    # ---- keys ------------------------------------------------------------------------

    def kv_get(self, key: str, *, stale: bool = False) -> shapes.KvEntry:
        """Raises NotFound. `stale` reads this node's replica without asking the others."""
        query = {"stale": "1"} if stale else {}
        return self._get(f"/kv/{quote(key, safe='/')}", shapes.KvEntry, query)

    def kv_put(self, key: str, value: bytes, *, expect: int | None = None) -> shapes.KvEntry:
        """Write; with `expect` only if the key's revision is that (0: if it does not exist)."""
        body = {"value": value, "expect": expect}
        return self._call("PUT", f"/kv/{quote(key, safe='/')}", body, kind=shapes.KvEntry)

    def kv_delete(self, key: str, *, expect: int | None = None) -> shapes.Done:
        query = {} if expect is None else {"expect": str(expect)}
        return self._call("DELETE", f"/kv/{quote(key, safe='/')}", query=query, kind=shapes.Done)

    def kv_list(
        self, prefix: str = "", *, after: str = "", limit: int = 1_000
    ) -> list[shapes.KvEntry]:
        query = {"prefix": prefix, "after": after, "limit": str(limit)}
        return self._get("/kv", list[shapes.KvEntry], query)

    # ---- agents ----------------------------------------------------------------------

    def deploy(
        self, spec: Mapping[str, Any], bundle: bytes, *, replace: bool = False
    ) -> shapes.AgentInfo:
        """Deploy a packed agent. Raises VersionExists: same version, other content."""
        body = {"spec": spec, "bundle": bundle, "replace": replace}
        return self._call("POST", "/agents", body, kind=shapes.AgentInfo, safe=True)

    def agents(self) -> list[shapes.AgentInfo]:
        return self._get("/agents", list[shapes.AgentInfo])

    def agent(self, name: str) -> shapes.AgentInfo:
        return self._get(f"/agents/{quote(name, safe='')}", shapes.AgentInfo)

    def remove_agent(self, name: str) -> shapes.Done:
        return self._call("DELETE", f"/agents/{quote(name, safe='')}", kind=shapes.Done)

    def instances(self) -> shapes.Instances:
        return self._get("/instances", shapes.Instances)

    def logs(self, agent: str, *, follow: bool = False) -> Iterator[shapes.LogLine]:
        """Log lines of every instance; with `follow` for ever, until the caller stops."""
        query = {"follow": "1"} if follow else {}
        path = f"/agents/{quote(agent, safe='')}/logs"
        return self._stream("GET", path, None, shapes.LogLine, query)

    # ---- tasks -----------------------------------------------------------------------

    def submit(
        self, tasks: Sequence[TaskInput | Mapping[str, Any]], *, retry_s: float = 0.0
    ) -> list[shapes.Submitted]:
        """Submit durably; when this returns, every task is on disk on a majority.

        Args:
            tasks: any number, sent in batches; or mappings with the fields of `TaskInput`.
            retry_s: go on for this long when the swarm cannot take them now (`no_quorum`,
                `busy`). A connection that breaks is tried again once in any case, with the same
                keys.
        """
        submitted: list[shapes.Submitted] = []
        for batch in _batches(tasks):
            submitted += self._call(
                "POST",
                "/tasks",
                {"tasks": batch},
                kind=list[shapes.Submitted],
                safe=True,
                retry_s=retry_s,
            )
        return submitted

    def results(self, ids: Sequence[str], *, retry_s: float = 30.0) -> Iterator[shapes.TaskInfo]:
        """Each task once, as it ends; survives the loss of the daemon if there is another.

        Raises:
            SwarmError: no daemon could be asked for `retry_s` seconds.
        """
        waiting = dict.fromkeys(ids)
        deadline = time.monotonic() + retry_s
        while waiting:
            try:
                body = {"ids": list(waiting)}
                for task in self._stream("POST", "/tasks/results", body, shapes.TaskInfo):
                    if task.id in waiting:
                        del waiting[task.id]
                        deadline = time.monotonic() + retry_s
                        yield task
                if waiting:
                    raise Unreachable("the stream of results ended early")
            except SwarmError as error:
                if not error.retryable or time.monotonic() >= deadline:
                    raise
                self._next_socket()
                time.sleep(_RETRY_PAUSE_S)

    def task(self, task_id: str) -> shapes.TaskInfo:
        return self._get(f"/tasks/{quote(task_id, safe='')}", shapes.TaskInfo)

    def tasks(
        self,
        *,
        state: str = "",
        agent: str = "",
        job: str = "",
        after: str = "",
        limit: int = 100,
    ) -> shapes.TaskPage:
        """A page of tasks without results, newest first; go on with its `after`."""
        query = {"state": state, "agent": agent, "job": job, "after": after, "limit": str(limit)}
        chosen = {name: value for name, value in query.items() if value}
        return self._get("/tasks", shapes.TaskPage, chosen)

    def cancel(self, ids: Sequence[str]) -> list[shapes.TaskInfo]:
        """Cancel tasks; those that ended already stay as they are."""
        body = {"ids": list(ids)}
        return self._call("POST", "/tasks/cancel", body, kind=list[shapes.TaskInfo], safe=True)

    # ---- jobs ------------------------------------------------------------------------

    def submit_job(
        self,
        job: Mapping[str, Any],
        items: Sequence[ItemInput],
        *,
        key: str = "",
        retry_s: float = 0.0,
    ) -> shapes.JobInfo:
        """Submit a job durably; it goes on when this client and its daemon are gone.

        Args:
            job: what the job file says: name, stages and perhaps a priority.
            items: its inputs. What is too much for one request is stored as blobs first.
        """
        body = {
            "job": job,
            "items": self._fitting(items),
            "key": key or secrets.token_hex(16),
        }
        return self._call("POST", "/jobs", body, kind=shapes.JobInfo, safe=True, retry_s=retry_s)

    def put_blob(self, data: bytes) -> shapes.BlobInfo:
        """Store bytes under their hash, durably, on as many nodes as tasks need."""
        return self._call("POST", "/blobs", {"data": data}, kind=shapes.BlobInfo, safe=True)

    def _fitting(self, items: Sequence[ItemInput]) -> list[dict[str, Any]]:
        """The items for one request: the largest ones replaced by blobs until the rest fits."""
        packed = [msgspec.msgpack.encode(item.input) for item in items]
        total = sum(map(len, packed))
        body: list[dict[str, Any]] = [
            {"name": item.name, "input": msgspec.Raw(raw)}
            for item, raw in zip(items, packed, strict=True)
        ]
        for index in sorted(range(len(items)), key=lambda i: -len(packed[i])):
            if total <= REQUEST_BYTES:
                break
            ref = self.put_blob(packed[index])
            body[index] = {"name": items[index].name, "blob": ref}
            total -= len(packed[index])
        return body

    def jobs(self) -> list[shapes.JobInfo]:
        return self._get("/jobs", list[shapes.JobInfo])

    def job(self, job_id: str) -> shapes.JobInfo:
        return self._get(f"/jobs/{quote(job_id, safe='')}", shapes.JobInfo)

    def job_events(self, job_id: str, *, retry_s: float = 30.0) -> Iterator[shapes.JobInfo]:
        """The job's progress, whenever it changes, until it ended; survives a lost daemon."""
        deadline = time.monotonic() + retry_s
        while True:
            try:
                path = f"/jobs/{quote(job_id, safe='')}/events"
                for job in self._stream("GET", path, None, shapes.JobInfo):
                    deadline = time.monotonic() + retry_s
                    yield job
                    if job.ended_ms:
                        return
                raise Unreachable("the stream of job events ended early")
            except SwarmError as error:
                if not error.retryable or time.monotonic() >= deadline:
                    raise
                self._next_socket()
                time.sleep(_RETRY_PAUSE_S)

    def job_result(self, job_id: str) -> Any:
        """What the job's last stage gave. Raises Conflict while it has not succeeded."""
        return self._get(f"/jobs/{quote(job_id, safe='')}/result", dict[str, Any])["result"]

    def cancel_job(self, job_id: str) -> shapes.JobInfo:
        path = f"/jobs/{quote(job_id, safe='')}/cancel"
        return self._call("POST", path, {}, kind=shapes.JobInfo, safe=True)

    # ---- how requests are made -------------------------------------------------------

    def _get(self, path: str, kind: type[T], query: Mapping[str, str] | None = None) -> T:
        return self._call("GET", path, kind=kind, query=query, safe=True)

    def _call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        kind: type[T],
        query: Mapping[str, str] | None = None,
        safe: bool = False,
        retry_s: float = 0.0,
        prefix: str = API,
    ) -> T:
        deadline = time.monotonic() + retry_s
        broke = False
        while True:
            try:
                response = self._open(method, path, body, query=query, safe=safe, prefix=prefix)
                raw = self._read(response)
            except SwarmError as error:
                first_break = not broke and error.code == Unreachable.code
                broke = broke or first_break
                if not safe or not error.retryable:
                    raise
                if not first_break and time.monotonic() >= deadline:
                    raise
                self._next_socket()
                time.sleep(_RETRY_PAUSE_S)
                continue
            return _decode(raw, kind, self._path)

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read()
        except TimeoutError as error:
            self.close()
            raise TimedOut(f"the daemon gave no answer within {self._timeout_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unreachable(f"the daemon at {self._path} went away before its answer") from error

    def _open(
        self,
        method: str,
        path: str,
        body: Any,
        *,
        query: Mapping[str, str] | None = None,
        accept: str = MSGPACK,
        safe: bool = False,
        prefix: str = API,
    ) -> http.client.HTTPResponse:
        """Send a request; on a broken connection go on to the next socket where that is safe."""
        target = prefix + path + ("?" + urlencode(query) if query else "")
        raw = None if body is None else msgspec.msgpack.encode(body)
        headers = {"Accept": accept, "Content-Type": MSGPACK}
        if self._node:
            headers[NODE_HEADER] = quote(self._node, safe="")
        if not safe:
            self.close()  # A kept connection that breaks leaves it open whether it was carried out.
        tried: list[str] = []
        broke = ""
        # One extra round: a kept connection may have been closed since its last use.
        for _ in range(len(self._sockets) + 1):
            fresh = self._connection is None
            try:
                response = self._send(method, target, raw, headers)
            except TimeoutError as error:
                self.close()
                raise TimedOut(
                    f"the daemon at {self._path} gave no answer within {self._timeout_s:g} s"
                ) from error
            except (OSError, http.client.HTTPException) as error:
                connection, self._connection = self._connection, None
                sent = connection is not None and connection.sent
                if connection is not None:
                    connection.close()
                if sent and not safe and fresh:
                    raise Unreachable(
                        f"the daemon at {self._path} went away during the request: "
                        "whether it was carried out is unknown"
                    ) from error
                if fresh and sent:
                    broke = self._path
                if fresh:
                    tried.append(f"{self._path} ({why_broken(error)})")
                    self._current = (self._current + 1) % len(self._sockets)
                if len(tried) == len(self._sockets):
                    break
                continue
            if response.status >= 400:
                self._raise(response)
            return response
        if broke:
            raise Unreachable(f"the daemon at {broke} went away during the request")
        raise DaemonDown("no swarmd answers at " + ", ".join(tried))

    @property
    def _path(self) -> str:
        return self._sockets[self._current]

    def _send(
        self, method: str, target: str, raw: bytes | None, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        if self._connection is None:
            self._connection = UnixConnection(self._path, self._timeout_s)
        self._connection.request(method, target, raw, dict(headers))
        try:
            return self._connection.getresponse()
        except (http.client.BadStatusLine, http.client.LineTooLong) as error:
            if isinstance(error, http.client.RemoteDisconnected):
                raise
            self.close()
            raise MalformedMessage(_NOT_SWARMD.format(self._path)) from error

    def _raise(self, response: http.client.HTTPResponse) -> None:
        raw = response.read(_ERROR_BYTES_MAX)
        try:
            error = msgspec.msgpack.decode(raw)["error"]
            raised = _error_of(error)
        except (msgspec.MsgspecError, KeyError, TypeError):
            self.close()
            raise MalformedMessage(
                f"the daemon at {self._path} answered {response.status} without saying why"
            ) from None
        raise raised

    def _next_socket(self) -> None:
        self.close()
        self._current = (self._current + 1) % len(self._sockets)

    def _stream(
        self,
        method: str,
        path: str,
        body: Any,
        kind: type[T],
        query: Mapping[str, str] | None = None,
    ) -> Iterator[T]:
        """The answers of a stream. Closing the iterator early closes the connection."""
        response = self._open(method, path, body, query=query, accept=FRAMES, safe=True)
        whole = False
        try:
            while raw := _read_frame(response):
                if len(raw) > 1:  # One byte is a keep-alive.
                    yield _decode(raw, kind, self._path)
            whole = True
        except TimeoutError as error:
            raise TimedOut(f"the daemon was silent for {self._timeout_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable("the daemon went away during the answer") from error
        finally:
            if not whole:
                self.close()


def _batches(
    tasks: Sequence[TaskInput | Mapping[str, Any]],
) -> Iterator[list[msgspec.Raw]]:
    """The tasks encoded, with keys drawn where none is given, in requests of bounded size."""
    batch: list[msgspec.Raw] = []
    total = 0
    for task in tasks:
        if isinstance(task, TaskInput):
            task.key = task.key or secrets.token_hex(16)
        else:
            task = {**task, "key": task.get("key") or secrets.token_hex(16)}
        raw = msgspec.msgpack.encode(task)
        if batch and (len(batch) == SUBMIT_TASKS_MAX or total + len(raw) > REQUEST_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(msgspec.Raw(raw))
        total += len(raw)
    if batch:
        yield batch


def _read_frame(response: http.client.HTTPResponse) -> bytes | None:
    head = response.read(4)
    if not head:
        return None
    size = int.from_bytes(head, "big")
    if len(head) < 4 or size > FRAME_BYTES_MAX:
        raise Unreachable("the daemon's answer broke off")
    raw = response.read(size)
    if len(raw) < size:
        raise Unreachable("the daemon's answer broke off")
    return raw


def _decode(raw: bytes, kind: type[T], path: str) -> T:
    """Decode an answer. A frame that carries an error raises it."""
    try:
        if raw[:1] == b"\x81" and raw[1:7] == b"\xa5error":
            error = msgspec.msgpack.decode(raw)["error"]
            raise _error_of(error)
        return msgspec.msgpack.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise MalformedMessage(f"{_NOT_SWARMD.format(path)} ({error})") from error


def _error_of(error: Mapping[str, Any]) -> SwarmError:
    code, message = str(error["code"]), str(error["message"])
    kind = SwarmError.by_code.get(code)
    return kind(message) if kind is not None else ApiError(f"{code}: {message}")

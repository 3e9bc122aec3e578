"""What can be asked of a daemon, by name and with types."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import msgspec

from swarmd.base.errors import SwarmError, Unreachable
from swarmd.base.limits import LEAVE_TIMEOUT_S, SUBMIT_TASKS_MAX
from swarmd.client.blobs import BlobCalls
from swarmd.client.bus import BusCalls
from swarmd.client.events import EventCalls
from swarmd.client.members import MemberCalls
from swarmd.client.memory import MemoryCalls
from swarmd.client.recipes import RecipeCalls
from swarmd.client.requests import RETRY_PAUSE_S, segment
from swarmd.client.vectors import VectorCalls
from swarmd.gateway import shapes
from swarmd.gateway.shapes import ItemInput, KvCompare, KvOperation, KvTxn, TaskInput
from swarmd.gateway.shapes_audit import AuditHeld, AuditPage, AuditRaw, AuditRecord

if TYPE_CHECKING:
    from swarmd.client.keystream import KeyStream

# Requests are cut at about this size, so that neither side holds more of them in memory.
REQUEST_BYTES: Final = 16 * 1024 * 1024
_SNAPSHOT_ITEM: Any = shapes.SnapshotItem


class Client(RecipeCalls, MemberCalls, BusCalls, EventCalls, MemoryCalls, VectorCalls, BlobCalls):
    """Talks to one daemon, or to the first of several that answers.

    Args:
        sockets: path or paths of daemons' unix sockets, or `https://host:port` where daemons
            listen for other hosts; None is `default_socket()`.
        node: name or id of the member that shall carry the requests out; the local daemon
            forwards them over the mesh.
        timeout_s: longest wait for any one answer, in seconds; a stream may be silent for as
            long only if its daemon does not even send its keep-alives.
        api_key: an API key or a session to be known by; a socket takes the user for it.
        fingerprint: SHA-256 in hex of the certificate that an https daemon must show, or several
            divided by commas; empty: one that this machine's authorities vouch for.
    """

    # ---- access ------------------------------------------------------------------------

    def api_keys(self) -> list[shapes.KeyInfo]:
        """API keys by name, without their secrets."""
        return self._get("/keys", list[shapes.KeyInfo])

    def create_api_key(
        self,
        name: str,
        key_hash: bytes,
        *,
        role: str = "",
        rules: Sequence[str] = (),
        ttl_s: float = 0.0,
        requests_per_min: int = 0,
    ) -> shapes.KeyInfo:
        """Have the swarm know an API key by its hash (`identity.api_keys.new_api_key`).

        Args:
            rules: what it may besides its role.
            ttl_s: 0 is for ever.
            requests_per_min: at each node; 0 is the node's own limit.
        """
        body = {
            "name": name,
            "hash": key_hash,
            "role": role,
            "rules": list(rules),
            "ttl_s": ttl_s,
            "requests_per_min": requests_per_min,
        }
        return self._call("POST", "/keys", body, kind=shapes.KeyInfo)

    def revoke_api_key(self, name: str) -> shapes.Done:
        return self._call("DELETE", f"/keys/{segment(name)}", kind=shapes.Done)

    def open_session(self, ttl_s: int = 900) -> shapes.SessionInfo:
        """A token that stands in for this client for `ttl_s`, 900 s at most."""
        return self._call("POST", "/sessions", {"ttl_s": ttl_s}, kind=shapes.SessionInfo)

    def caller(self) -> shapes.CallerInfo:
        """Whom the daemon takes this client for."""
        return self._get("/caller", shapes.CallerInfo)

    # ---- secrets -----------------------------------------------------------------------

    def secrets(self) -> list[shapes.SecretInfo]:
        """Secrets by name, without their values."""
        return self._get("/secrets", list[shapes.SecretInfo])

    def set_secret(self, name: str, value: str) -> shapes.SecretSet:
        """Give a secret a value. Agents refer to it with "secret:NAME" in their environment."""
        path = f"/secrets/{segment(name)}"
        return self._call("PUT", path, {"value": value}, kind=shapes.SecretSet)

    def delete_secret(self, name: str, *, force: bool = False) -> shapes.Done:
        """Delete a secret, with `force` also one that agents refer to."""
        path = f"/secrets/{segment(name)}" + ("?force=1" if force else "")
        return self._call("DELETE", path, kind=shapes.Done)

    # ---- the audit log -----------------------------------------------------------------

    def audit(
        self,
        *,
        kind: str = "",
        actor: str = "",
        of: str = "",
        stream: str = "",
        since_ms: int = 0,
        before: str = "",
        limit: int = 100,
    ) -> AuditPage:
        """A page of what happened, the newest first.

        Args:
            kind: how the kinds wanted begin, like `key.`.
            actor: a part of the name of who did it.
            of: name or id of the node that wrote it.
            since_ms: wall time.
            before: of the page before.
        """
        query = _given(kind=kind, actor=actor, of=of, stream=stream, before=before)
        query |= {"limit": str(limit), "since_ms": str(since_ms)}
        return self._get("/audit", AuditPage, query)

    def audit_follow(
        self,
        *,
        kind: str = "",
        actor: str = "",
        of: str = "",
        stream: str = "",
        since_ms: int = 0,
        backlog: int = 0,
    ) -> Iterator[AuditRecord]:
        """The newest `backlog` records, and then all that come, until the daemon ends."""
        query = _given(kind=kind, actor=actor, of=of, stream=stream)
        query |= {"backlog": str(backlog), "since_ms": str(since_ms)}
        yield from self._stream("GET", "/audit/follow", None, AuditRecord, query)

    def audit_held(self, after: str = "") -> AuditHeld:
        """A page of the chains that the node keeps, and what it dropped for its age."""
        return self._get("/audit/held", AuditHeld, _given(after=after))

    def audit_raw(self, chain: str, place: str = "") -> AuditRaw:
        """What lies on the node's disk of one chain of `audit_held`; verify it."""
        return self._get("/audit/raw", AuditRaw, _given(chain=chain, place=place))

    def audit_anchors(self) -> list[bytes]:
        """The seals that the strong store names; verify them."""
        return self._get("/audit/anchors", list[bytes])

    # ---- the node and the swarm ------------------------------------------------------

    def status(self) -> shapes.Status:
        return self._get("/status", shapes.Status)

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
        """Like `stop`, and hand on what the node holds; refused if that would lose data.

        It may take minutes, and is waited for whatever this client's `timeout_s` is.
        """
        patient = self._another()
        patient._timeout_s = max(self._timeout_s, LEAVE_TIMEOUT_S)
        try:
            return patient._call("POST", "/leave", {"force": force}, kind=shapes.Done)
        finally:
            patient.close()

    def authority_head(self) -> dict[str, Any]:
        """Height and hash of the authority log, number and key of the epoch, store time in ms."""
        return self._get("/authority/head", dict[str, Any])

    def authority_log(self, after: int = 0, after_epoch: int = 1) -> shapes.AuthorityPage:
        """Records above a height and epochs above a number, as many as one answer takes.

        Whoever asks verifies them: see `cli/authority_log.py`.
        """
        path = f"/authority?after={after}&after_epoch={after_epoch}"
        return self._get(path, shapes.AuthorityPage)

    def authority_propose(self, entry: bytes) -> dict[str, Any]:
        """Put a signed authority entry forward. Repeating it is harmless."""
        return self._call("POST", "/authority", {"entry": entry}, kind=dict[str, Any], safe=True)

    def join_requests(self) -> shapes.JoinRequests:
        """Nodes that ask to join without a token, at whichever member."""
        return self._get("/join-requests", shapes.JoinRequests)

    def deny_join_request(self, fingerprint: str) -> shapes.Done:
        """Have every member refuse the node with this fingerprint, given whole, for an hour."""
        body = {"fingerprint": fingerprint}
        return self._call("POST", "/join-requests/deny", body, kind=shapes.Done, safe=True)

    # ---- the strong store ------------------------------------------------------------

    def raft_status(self) -> shapes.RaftStatus:
        """Every voter's log, asked live; those that did not answer in a second are named."""
        return self._get("/raft", shapes.RaftStatus)

    def coordinator(self) -> shapes.Coordinator:
        """Raises NoQuorum: nobody coordinates now."""
        return self._get("/coordinator", shapes.Coordinator)

    def transfer_coordinator(self, node: str = "") -> str:
        """Hand the office to the voter `node`, or to the one that holds most; who has it now.

        Repeating it is harmless. Raises BadRequest: it is no voter.
        """
        body = {"node": node}
        return self._call(
            "POST", "/coordinator/transfer", body, kind=shapes.Done, safe=True
        ).message

    def voters(self) -> list[shapes.VoterSeat]:
        """Members that vote, could or are pinned; those with a seat first."""
        return self._get("/voters", list[shapes.VoterSeat])

    def voter_pin(self, node: str) -> shapes.VoterSeat:
        """Give `node` (name or id) a seat before others. Raises Conflict: seven are pinned."""
        return self._call(
            "PUT", f"/voters/{segment(node)}/pin", {}, kind=shapes.VoterSeat, safe=True
        )

    def voter_unpin(self, node: str) -> shapes.VoterSeat:
        return self._call(
            "DELETE", f"/voters/{segment(node)}/pin", kind=shapes.VoterSeat, safe=True
        )

    def recovery_plan(self) -> shapes.RecoveryPlan:
        """What the node would go on with alone. Raises Conflict: a majority answers."""
        return self._get("/recovery", shapes.RecoveryPlan)

    def recover(self, certificate: bytes) -> str:
        """Have the node go on alone; the certificate is the plan's statement, signed."""
        body = {"certificate": certificate}
        return self._call("POST", "/recovery", body, kind=shapes.Done).message

    def snapshot(self) -> Iterator[shapes.SnapshotItem]:
        """A consistent copy of the store. Raises NotReady: the node that was asked is no voter."""
        return self._stream("GET", "/snapshot", None, _SNAPSHOT_ITEM)

    # ---- keys ------------------------------------------------------------------------

    def kv_get(self, key: str, *, stale: bool = False) -> shapes.KvEntry:
        """Raises NotFound. `stale` reads this node's replica without asking the others."""
        query = {"stale": "1"} if stale else {}
        return self._get(f"/kv/{quote(key, safe='/')}", shapes.KvEntry, query)

    def kv_put(
        self, key: str, value: bytes, *, expect: int | None = None, lease: int = 0
    ) -> shapes.KvEntry:
        """Write; with `expect` only if the key's revision is that (0: if it does not exist).

        With `lease` the key goes when that lease ends. Raises LeaseExpired: it has ended.
        """
        body = {"value": value, "expect": expect, "lease": lease}
        return self._call("PUT", f"/kv/{quote(key, safe='/')}", body, kind=shapes.KvEntry)

    def kv_delete(self, key: str, *, expect: int | None = None) -> shapes.Done:
        query = {} if expect is None else {"expect": str(expect)}
        return self._call("DELETE", f"/kv/{quote(key, safe='/')}", query=query, kind=shapes.Done)

    def kv_list(
        self, prefix: str = "", *, after: str = "", limit: int = 1_000
    ) -> list[shapes.KvEntry]:
        query = {"prefix": prefix, "after": after, "limit": str(limit)}
        return self._get("/kv", list[shapes.KvEntry], query)

    def key_stream(self) -> KeyStream:
        """Many operations on keys under way at once, each with its own answer.

        On a connection of its own to the first daemon that answers, which forwards to the
        coordinator by itself, so `node` does not apply. Raises DaemonDown.
        """
        from swarmd.client.keystream import KeyStream

        return KeyStream(self._connect(), timeout_s=self._timeout_s, credential=self._credential)

    def kv_txn(
        self,
        compares: Sequence[KvCompare],
        then: Sequence[KvOperation],
        otherwise: Sequence[KvOperation] = (),
    ) -> shapes.KvTxnDone:
        """All of `then` if every compare holds, else all of `otherwise`, under one revision.

        Raises:
            Conflict: an `expect` in the branch did not hold; nothing was applied.
        """
        body = KvTxn(compares=list(compares), then=list(then), otherwise=list(otherwise))
        return self._call("POST", "/txn", body, kind=shapes.KvTxnDone)

    def kv_watch(
        self, prefix: str = "", *, from_revision: int | None = None, retry_s: float = 30.0
    ) -> Iterator[shapes.KvChanges]:
        """Changes of keys that begin with `prefix`, for ever; each once and in order.

        It begins at `from_revision`, or now, with a mark that says where that is. If the
        daemon goes it is taken up where it was, by the next one or the same.

        Raises:
            Compacted: the revision is no longer kept: read the keys, then watch from there.
            SwarmError: no daemon could be asked for `retry_s` seconds, or at first.
        """
        begun = False
        deadline = 0.0
        while True:
            query = {"prefix": prefix}
            if from_revision is not None:
                query["from"] = str(from_revision)
            try:
                for told in self._stream("GET", "/watch", None, shapes.KvChanges, query):
                    begun = True
                    deadline = time.monotonic() + retry_s
                    from_revision = told.revision + 1
                    yield told
                raise Unreachable("the stream of changes ended early")
            except SwarmError as error:
                if not begun or not error.retryable or time.monotonic() >= deadline:
                    raise
                self._next_socket()
                time.sleep(RETRY_PAUSE_S)

    # ---- leases ----------------------------------------------------------------------

    def lease_grant(self, ttl_s: float) -> shapes.LeaseInfo:
        """Begin a lease. Raises BadTtl, TooManyLeases."""
        return self._call("POST", "/leases", {"ttl_s": ttl_s}, kind=shapes.LeaseInfo)

    def lease_renew(self, lease: int) -> shapes.LeaseInfo:
        """Give the lease its whole time again. Raises LeaseExpired: it has ended."""
        path = f"/leases/{lease}/renew"
        return self._call("POST", path, {}, kind=shapes.LeaseInfo, safe=True)

    def lease_revoke(self, lease: int) -> shapes.Done:
        """End the lease; its keys go with it, under one revision."""
        return self._call("DELETE", f"/leases/{lease}", kind=shapes.Done)

    def leases(self) -> list[shapes.LeaseInfo]:
        return self._get("/leases", list[shapes.LeaseInfo])

    def lease(self, lease: int) -> shapes.LeaseInfo:
        """One lease with the first of its keys. Raises LeaseExpired."""
        return self._get(f"/leases/{lease}", shapes.LeaseInfo)

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
        return self._get(f"/agents/{segment(name)}", shapes.AgentInfo)

    def remove_agent(self, name: str) -> shapes.Done:
        return self._call("DELETE", f"/agents/{segment(name)}", kind=shapes.Done)

    def instances(self) -> shapes.Instances:
        return self._get("/instances", shapes.Instances)

    def logs(self, agent: str, *, follow: bool = False) -> Iterator[shapes.LogLine]:
        """Log lines of every instance; with `follow` for ever, until the caller stops."""
        query = {"follow": "1"} if follow else {}
        path = f"/agents/{segment(agent)}/logs"
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
                time.sleep(RETRY_PAUSE_S)

    def task(self, task_id: str) -> shapes.TaskInfo:
        return self._get(f"/tasks/{segment(task_id)}", shapes.TaskInfo)

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
        return self._get(f"/jobs/{segment(job_id)}", shapes.JobInfo)

    def job_events(self, job_id: str, *, retry_s: float = 30.0) -> Iterator[shapes.JobInfo]:
        """The job's progress, whenever it changes, until it ended; survives a lost daemon."""
        deadline = time.monotonic() + retry_s
        while True:
            try:
                path = f"/jobs/{segment(job_id)}/events"
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
                time.sleep(RETRY_PAUSE_S)

    def job_result(self, job_id: str) -> Any:
        """What the job's last stage gave. Raises Conflict while it has not succeeded."""
        return self._get(f"/jobs/{segment(job_id)}/result", dict[str, Any])["result"]

    def cancel_job(self, job_id: str) -> shapes.JobInfo:
        path = f"/jobs/{segment(job_id)}/cancel"
        return self._call("POST", path, {}, kind=shapes.JobInfo, safe=True)


def _given(**query: str) -> dict[str, str]:
    """Those parts of a query that say something."""
    return {name: text for name, text in query.items() if text}


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

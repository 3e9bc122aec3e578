"""The authority log over the API: read it, and put signed entries forward.

Whoever reads it verifies it: the log is given as it is, from the genesis on. Whoever writes it
signs with a key that no daemon sees. All that is judged here is what only the running swarm
knows: an entry that takes a voter away is refused while that would leave no majority of *living*
ones, since without one nothing could be decided, not even who else may vote. That a majority is
left at all, whatever comes at once from elsewhere, is judged where the entry is applied.
"""

from __future__ import annotations

from typing import Final

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import Response

from swarmd.base.errors import BadRequest, NoMajorityLeft, NoQuorum, NotReady
from swarmd.base.ids import NodeId, node_id_of, short
from swarmd.gateway import shapes
from swarmd.gateway.context import ApiRoute, Context
from swarmd.gateway.http import answer
from swarmd.identity.authority import vote_taken_by
from swarmd.identity.entries import (
    AddAdmin,
    AddToken,
    Admit,
    Approve,
    Entry,
    Evict,
    Policy,
    Renew,
    RevokeAdmin,
    RevokeToken,
    SetRoles,
    decode_record,
    open_entry,
)
from swarmd.identity.epochs import Chain
from swarmd.identity.fingerprints import door_of
from swarmd.identity.genesis import encode_genesis
from swarmd.identity.requests import open_request
from swarmd.mesh.swim.messages import MemberState
from swarmd.state.raft.messages import AuthorityEntry

_KNOWN_TIMEOUT_S: Final = 5.0
_SETTLED_TIMEOUT_S: Final = 1.0
EPOCHS_PAGE: Final = 256


class AuthorityBody(msgspec.Struct, forbid_unknown_fields=True):
    entry: bytes


class Authority:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._services = context.services

    def routes(self) -> list[ApiRoute]:
        route = self._context.route
        return [
            route("/api/v1/authority", self.log, "cluster:read"),
            route("/api/v1/authority", self.propose, "cluster:manage", methods=["POST"]),
            route("/api/v1/authority/head", self.head, "cluster:read"),
        ]

    async def log(self, request: Request) -> Response:
        """The genesis, the height, and a page of what is above `after` and `after_epoch`."""
        trust = self._services.need(self._services.trust)
        after = _number(request, "after", 0)
        after_epoch = _number(request, "after_epoch", 1)
        epochs = await self._epochs_now()
        found = shapes.AuthorityPage(
            genesis=encode_genesis(trust.genesis),
            height=trust.head[0],
            records=list(trust.records_from(after)),
            certificate=trust.certificate,
            epoch=epochs.head.number,
            epochs=list(epochs.certificates_from(after_epoch, EPOCHS_PAGE)),
        )
        return answer(request, found)

    async def head(self, request: Request) -> Response:
        """What a maker of entries must know: the log's head, the swarm, the store's time."""
        trust = self._services.need(self._services.trust)
        store = self._services.need(self._services.store)
        epoch = (await self._epochs()).head
        height, head_hash = trust.head
        return answer(
            request,
            {
                "swarm": trust.genesis.name,
                "swarm_id": bytes(trust.swarm_id),
                "height": height,
                "hash": head_hash,
                "epoch": epoch.number,
                "epoch_key": epoch.key,
                # Without a copy of the store, as late as this node was told it is.
                "store_time_ms": max(store.store_time_ms(), trust.now_ms),
                "keys_folder": str(self._services.config.keys_folder),
            },
        )

    async def _epochs_now(self) -> Chain:
        """Whether the newest epoch has certified the log or not: that is for the reader to see."""
        trust = self._services.need(self._services.trust)
        with trio.move_on_after(_SETTLED_TIMEOUT_S):
            return await trust.settled()
        if trust.epochs is None:
            raise NotReady("the strong store is still starting")
        return trust.epochs

    async def _epochs(self) -> Chain:
        trust = self._services.need(self._services.trust)
        with trio.move_on_after(_KNOWN_TIMEOUT_S):
            return await trust.settled()
        raise NoQuorum(
            "the voters of the newest epoch have not certified the authority log: see "
            "`swarmctl status`; nothing changed"
        )

    async def propose(self, request: Request) -> Response:
        """Propose a signed entry; its signature is checked by whoever applies it."""
        body = await self._context.read(request, AuthorityBody)
        store = self._services.need(self._services.store)
        entry = open_entry(body.entry)[1]
        kind, subject = self._told(entry)
        with self._context.noted(request, kind, subject, _signers(body.entry)):
            self._keep_a_majority(entry)
            [result] = await store.propose([AuthorityEntry(body.entry)])
            record = result.raise_for_error().value
        if record is not None:
            await self._known_here(decode_record(record).height)
        return answer(request, {"revision": result.revision})

    def _told(self, entry: Entry) -> tuple[str, str]:
        """What the audit log says of an entry: its kind, and what it is about."""
        match entry:
            case AddToken():
                return "token.created", f"{short(node_id_of(entry.token_public))} {entry.role}"
            case RevokeToken():
                return "token.revoked", short(entry.token_id)
            case Admit():
                return "node.admitted", f"{entry.name} {short(node_id_of(entry.public))}"
            case SetRoles():
                roles = ", ".join(entry.roles)
                return "node.roles", f"{self._services.name_of(entry.node_id)}: {roles}"
            case Evict():
                return "node.evicted", self._services.name_of(entry.node_id)
            case AddAdmin():
                return "admin.added", short(node_id_of(entry.admin_public))
            case RevokeAdmin():
                return "admin.revoked", short(entry.admin_id)
            case Policy():
                return "policy.raised", f"lowest protocol version {entry.min_version}"
            case Approve():
                door = door_of(self._services.need(self._services.trust).swarm_id)
                asked = open_request(entry.request, door)
                return "node.approved", f"{asked.name} {short(node_id_of(asked.public))}"
            case Renew():
                return "node.renewed", self._services.name_of(entry.node_id)

    async def _known_here(self, height: int) -> None:
        """Wait until a record counts here, so that what comes next is judged by it.

        Raises NoQuorum: the voters have not certified it yet.
        """
        trust = self._services.need(self._services.trust)
        with trio.move_on_after(_KNOWN_TIMEOUT_S):
            while trust.head[0] < height:
                await trust.changed(trust.version)
            return
        raise NoQuorum(
            "the entry is in the log, and counts once a majority of the voters has signed that: "
            "see `swarmctl status`; to ask again is harmless"
        )

    def _keep_a_majority(self, entry: Entry) -> None:
        taken = vote_taken_by(entry)
        voters = self._services.need(self._services.store).status().voters
        if taken is None or taken not in voters:
            return
        what = "evicted" if isinstance(entry, Evict) else "without the role of a voter"
        name = self._services.name_of(taken)
        left = [v for v in voters if v != taken and self._is_there(v)]
        if len(voters) == 1:
            raise NoMajorityLeft(
                f"{name} is the only voter: let another node vote first (`swarmctl node roles`), "
                f"then hand its seat on with `swarmctl --node {name} leave`"
            )
        if len(left) <= len(voters) // 2:
            raise NoMajorityLeft(
                f"with {name} {what}, {len(left)} of {len(voters)} voters would be left, which is "
                "no majority: start the others, wait until their seats were given on, or let "
                "another node vote first, with `swarmctl node roles`"
            )

    def _is_there(self, voter: NodeId) -> bool:
        membership = self._services.need(self._services.mesh).membership
        member = membership.get(voter)
        if member is None or member.state not in (MemberState.ALIVE, MemberState.SUSPECT):
            return False
        admission = self._services.need(self._services.trust).admission(voter)
        return admission is not None and "voter" in admission.roles


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not text.isdecimal() or len(text) > 13:
        raise BadRequest(f"{name}={text!r} is no height of a record or number of an epoch")
    return int(text)


def _signers(raw: bytes) -> str:
    """Whose signatures an entry says it has; they are checked by whoever applies it."""
    return "signed by " + ", ".join(short(key) for key, _ in open_entry(raw)[0].signatures)

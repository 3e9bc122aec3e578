"""The authority log for people: read and verify it here, sign what goes into it.

Keys stay with the person who types: an entry is signed in this process, with the admin key of
this machine, and the daemon passes it on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from swarmd.base import folders
from swarmd.base.errors import BadSignature, SwarmError, Untrusted
from swarmd.base.ids import NodeId, node_id_of, short, to_text
from swarmd.base.names import check_name
from swarmd.cli.common import BadInput, Failed, open_client
from swarmd.client.calls import Client
from swarmd.gateway.shapes import AuthorityPage
from swarmd.identity.authority import CREDENTIAL_MS, Admission, AuthorityState
from swarmd.identity.entries import (
    AddAdmin,
    AddToken,
    Admit,
    Approve,
    Entry,
    Evict,
    Policy,
    Record,
    Renew,
    RevokeAdmin,
    RevokeToken,
    SetRoles,
    decode_record,
    open_entry,
    sign_entry,
)
from swarmd.identity.epochs import Chain
from swarmd.identity.fingerprints import door_of
from swarmd.identity.genesis import Genesis, decode_genesis
from swarmd.identity.heads import head_of, verify_head
from swarmd.identity.keys import SigningKey
from swarmd.identity.requests import open_request
from swarmd.wire.codec import Message

CREDENTIAL_DAYS: Final = CREDENTIAL_MS // 86_400_000
_ID_CHARS_MIN: Final = 6


def read_log(client: Client, swarm_id: bytes) -> AuthorityState:
    """The whole log: every record, every epoch and the voters' signatures verified here.

    Args:
        client: of whoever shows its log.
        swarm_id: as the daemon of this machine told it. The genesis must hash to it, so that
            nobody can show another log than the swarm's.

    Raises:
        Failed: it does not verify; names the record.
    """
    return read_history(client, swarm_id)[0]


def read_history(client: Client, swarm_id: bytes) -> tuple[AuthorityState, Chain]:
    """The log and the epochs, as `read_log`."""
    page = client.authority_log()
    try:
        genesis = _genesis_of(page.genesis, swarm_id)
    except SwarmError as error:
        raise Failed(f"the log does not verify: {error.message}") from error
    state, chain = AuthorityState(genesis), Chain(genesis)
    while True:
        before = (state.head[0], chain.head.number)
        try:
            for raw in page.records:
                state.replay(raw)
            for certificate in page.epochs:
                chain.extend(certificate)
            held = (state.head[0], chain.head.number)
            if held[0] >= page.height and held[1] >= page.epoch:
                _check_certified(page, state, chain)
                return state, chain
            if held == before:
                raise Untrusted("what follows is missing")
        except SwarmError as error:
            raise Failed(
                f"the log does not verify after record {state.head[0]}: {error.message}"
            ) from error
        page = client.authority_log(*held)


def _check_certified(page: AuthorityPage, state: AuthorityState, chain: Chain) -> None:
    if not state.head[0]:
        return
    signed_in = chain.number_of(head_of(page.certificate).epoch)
    if signed_in is not None and signed_in < chain.head.number:
        raise Failed(
            f"the voters of epoch {chain.head.number} have not signed the authority log yet: ask "
            "again in a moment, and see `swarmctl status`"
        )
    head = verify_head(page.certificate, chain)
    if (head.height, head.hash) != state.head:
        raise Untrusted("its records are not those that the voters certified")


def _genesis_of(raw: bytes, swarm_id: bytes) -> Genesis:
    genesis = decode_genesis(raw)
    if genesis.swarm_id != swarm_id:
        raise Untrusted(f"it is of another swarm, {short(genesis.swarm_id)}")
    return genesis


def read_asked() -> tuple[dict[str, Any], AuthorityState]:
    """The log of the node that --node names, and the head that this machine's daemon tells.

    Raises:
        Failed: it does not verify, or is another swarm's than this machine's.
    """
    with open_client(local=True) as own:
        head = own.authority_head()
    with open_client() as client:
        return head, read_log(client, head["swarm_id"])


def read_own(client: Client) -> tuple[dict[str, Any], AuthorityState]:
    """Head and log of this machine's daemon: what is signed here rests on nobody else's word."""
    head = client.authority_head()
    return head, read_log(client, head["swarm_id"])


def records_of(state: AuthorityState) -> list[tuple[Record, Entry, tuple[NodeId, ...]]]:
    """Each record, what it says, and who signed it."""
    found = []
    for raw in state.dump():
        record = decode_record(raw)
        envelope, entry = open_entry(record.entry)
        found.append((record, entry, tuple(NodeId(key) for key, _ in envelope.signatures)))
    return found


def what(entry: Entry, state: AuthorityState) -> str:
    """What an entry did, in a few words."""
    match entry:
        case AddToken():
            token = short(node_id_of(entry.token_public))
            return f"token {token} for {entry.uses} x {entry.role}"
        case RevokeToken():
            return f"token {short(entry.token_id)} revoked"
        case Admit():
            return f"{entry.name} admitted as {', '.join(entry.roles)}"
        case SetRoles():
            return f"{name_of(state, entry.node_id)} may be {', '.join(entry.roles)}"
        case Evict():
            return f"{name_of(state, entry.node_id)} evicted"
        case AddAdmin():
            return f"admin key {short(node_id_of(entry.admin_public))} added"
        case RevokeAdmin():
            return f"admin key {short(entry.admin_id)} revoked"
        case Policy():
            return f"lowest protocol version {entry.min_version}"
        case Approve():
            name = open_request(entry.request, door_of(state.swarm_id)).name
            return f"{name} approved as {', '.join(entry.roles)}"
        case Renew():
            return f"{name_of(state, entry.node_id)} renewed for {CREDENTIAL_DAYS} d"


def by_whom(entry: Entry, signers: Sequence[NodeId]) -> str:
    """Whose key stands behind an entry: an admin's, a token's, or the node's own."""
    if isinstance(entry, Admit):
        return f"token {short(entry.token_id)}"
    if isinstance(entry, Renew):
        return f"node {short(entry.node_id)}"
    return f"admin {short(signers[0])}"


def name_of(state: AuthorityState, node_id: bytes) -> str:
    admission = state.admissions.get(NodeId(node_id))
    return admission.name if admission is not None else short(node_id)


def find_node(state: AuthorityState, wanted: str, living: Collection[str] = ()) -> Admission:
    """The node with this name, id or beginning of an id; one that is not evicted first.

    Args:
        living: ids of the members alive: a name means one of them before one that is gone. To be
            left out for what is for ever, such as an eviction: there a name is to mean one node.

    Raises:
        BadInput: none or several; says which there are.
    """
    named = [x for x in state.admissions.values() if x.name == wanted]
    named = [x for x in named if not x.evicted] or named
    named = [x for x in named if to_text(x.node_id) in living] or named
    by_id = {to_text(x.node_id): x for x in state.admissions.values()}
    meant = [by_id[text] for text in _beginning_with(by_id, wanted)]
    # A node may be called like the beginning of another's id: then it is not clear who is meant.
    found = list({x.node_id: x for x in (*named, *meant)}.values())
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(to_text(x.node_id)[:8] for x in found)
        raise BadInput(f"several nodes are called {wanted!r}: name one by its id ({ids})")
    names = ", ".join(x.name for x in list(state.admissions.values())[:10] if not x.evicted)
    raise BadInput(f"no node is called {wanted!r}; the nodes are {names}")


def find_id(ids: Sequence[NodeId], wanted: str, kind: str) -> NodeId:
    """The one of `ids` that begins with `wanted`. Raises BadInput: none or several do."""
    by_text = {to_text(one): one for one in ids}
    found = _beginning_with(by_text, wanted)
    if len(found) == 1:
        return by_text[found[0]]
    if found:
        raise BadInput(f"several {kind}s begin with {wanted!r}: give more of the id")
    known = ", ".join(short(one) for one in ids[:10]) or "none"
    raise BadInput(f"there is no {kind} {wanted!r}; there are: {known}")


def _beginning_with(texts: Mapping[str, object], wanted: str) -> list[str]:
    if len(wanted) < _ID_CHARS_MIN:
        return []
    return [text for text in texts if text.startswith(wanted.lower())]


def propose(client: Client, head: dict[str, Any], entry: Message, admin_key: Path | None) -> None:
    """Sign `entry` with the admin key and put it forward.

    Raises:
        BadInput: there is no admin key, or it is not one of this swarm's.
    """
    path = admin_key_path(admin_key, head)
    signed = sign_entry(entry, head["swarm_id"], SigningKey.load(path))
    try:
        client.authority_propose(signed)
    except BadSignature as error:
        raise not_an_admin(path, head) from error


def admin_key_path(given: Path | None, head: dict[str, Any]) -> Path:
    """Where the admin key is: as given, else among the daemon's keys, else among this user's."""
    check_name(head["swarm"], "swarm")
    name = f"{head['swarm']}.admin.key"
    places = (
        [given] if given else [Path(head["keys_folder"]) / name, folders.config_folder() / name]
    )
    for path in places:
        if path.exists():
            return path
    raise BadInput(
        f"there is no admin key at {places[0]}: run this on the host that made the swarm, "
        "or name the key's file with --admin-key"
    )


def not_an_admin(path: Path, head: dict[str, Any]) -> BadInput:
    return BadInput(
        f"{path} is not an admin key of the swarm {head['swarm']}: use the one that "
        "`swarmd --init` named, with --admin-key"
    )

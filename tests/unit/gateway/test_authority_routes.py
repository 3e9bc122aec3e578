"""The authority log over the API: read by pages, and a majority of voters that stays."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from certifying import certified, now_of
from gateway_fakes import (
    FakeMembership,
    FakeMesh,
    FakeStore,
    LiveGateway,
    make_services,
    member,
    node_id,
)

from swarmd.base.errors import BadRequest, Conflict, MalformedMessage
from swarmd.base.ids import NodeId, to_text
from swarmd.cli.authority_log import find_id, find_node, read_log, records_of, what
from swarmd.cli.common import BadInput, Failed
from swarmd.client import Client
from swarmd.gateway.services import Services
from swarmd.gateway.shapes import AuthorityPage
from swarmd.identity.authority import AuthorityState
from swarmd.identity.entries import AddAdmin, Evict, SetRoles, fresh_nonce, issue_token, sign_entry
from swarmd.identity.genesis import init_swarm
from swarmd.identity.keys import SigningKey
from swarmd.mesh.swim.messages import MemberState
from swarmd.mesh.trust import PAGE_RECORDS_MAX, Trust
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World

GENESIS, FOUNDER, ADMIN, _ = init_swarm("lab", "n1")


class Knowing:
    """Trust that has admitted the members of the fakes, all as voters unless it says otherwise."""

    head = (0, b"")
    version = 1
    genesis = GENESIS

    def __init__(self) -> None:
        self.roles = {node_id(f"n{n}"): ("voter", "worker") for n in range(1, 5)}

    def admission(self, one: NodeId) -> object:
        return SimpleNamespace(roles=self.roles[one]) if one in self.roles else None


def log_of(count: int) -> Trust:
    """A log of so many tokens."""
    state = AuthorityState(GENESIS)
    for number in range(count):
        _, entry = issue_token(state.swarm_id, now_of(state), ADMIN, uses=1, expires_ms=10 + number)
        state.apply(entry, 0)
    return certified(SimDisk(World(1), "trust"), state, FOUNDER)


@pytest.fixture
def services(tmp_path: Path) -> Services:
    made = make_services(tmp_path, members=("n1", "n2", "n3", "n4"))
    made.trust = Knowing()  # type: ignore[assignment]
    return made


@pytest.fixture
def client(services: Services) -> Iterator[Client]:
    with LiveGateway(services) as live, Client(live.socket) as one:
        yield one


def test_the_log_is_read_by_pages_and_verified_by_the_reader(
    client: Client, services: Services
) -> None:
    count = 2 * PAGE_RECORDS_MAX + 3
    services.trust = log_of(count)
    assert len(client.authority_log().records) == PAGE_RECORDS_MAX
    assert client.authority_log(count).records == []
    assert client.authority_log(10**8).records == []
    state = read_log(client, GENESIS.swarm_id)
    assert state.head == services.trust.head
    assert len(state.tokens) == count
    record, entry, signers = records_of(state)[-1]
    assert record.height == count
    assert what(entry, state).endswith("for 1 x member")
    assert signers == (ADMIN.key_id,)


@pytest.mark.parametrize("after", ["-1", "x", "", "1e3", "9" * 30, "%C2%B2"])
def test_a_height_that_is_none_is_refused(client: Client, services: Services, after: str) -> None:
    services.trust = log_of(1)
    with pytest.raises(BadRequest):
        client._get(f"/authority?after={after}", AuthorityPage)


def test_a_daemon_that_shows_a_changed_log_is_found_out(
    client: Client, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust = services.trust = log_of(5)
    records = trust.records_from(0)
    for changed in (
        records[:2] + records[3:],  # One is missing,
        [records[0], records[2], records[1], *records[3:]],  # two changed places,
        [*records[:4], records[4][:-1] + bytes([records[4][-1] ^ 1])],  # a byte is different,
        [*records[:2], records[1], *records[2:]],  # one comes twice.
    ):
        monkeypatch.setattr(trust, "records_from", lambda after, changed=changed: changed[after:])
        with pytest.raises(Failed, match="does not verify after record"):
            read_log(client, GENESIS.swarm_id)


def test_what_is_no_entry_is_refused_before_it_reaches_the_log(
    client: Client, services: Services
) -> None:
    assert isinstance(services.store, FakeStore)
    for junk in (b"", b"signed", base64.b64encode(b"x" * 100), bytes(10_000)):
        with pytest.raises(MalformedMessage):
            client.authority_propose(junk)
    assert services.store.authority == []


def signed(entry: object) -> bytes:
    return sign_entry(entry, GENESIS.swarm_id, ADMIN)  # type: ignore[arg-type]


def without(name: str, how: str) -> bytes:
    if how == "evicted":
        return signed(Evict(node_id(name), fresh_nonce()))
    return signed(SetRoles(node_id(name), ("worker",), fresh_nonce()))


@pytest.mark.parametrize("how", ["evicted", "without its role"])
def test_a_voter_is_taken_away_only_if_a_majority_stays(
    client: Client, services: Services, how: str
) -> None:
    assert isinstance(services.store, FakeStore)
    mesh = services.mesh
    assert isinstance(mesh, FakeMesh)
    entry = without("n3", how)
    client.authority_propose(entry)
    assert services.store.authority == [entry]
    mesh.membership = FakeMembership(
        [member("n1"), member("n2", MemberState.DEAD), member("n3"), member("n4")]
    )
    with pytest.raises(Conflict, match="1 of 3 voters would be left"):
        client.authority_propose(without("n3", how))
    dead = without("n2", how)
    client.authority_propose(dead)  # It is dead: the others are a majority without it.
    nobody = without("n4", how)
    client.authority_propose(nobody)  # It does not vote.
    assert services.store.authority == [entry, dead, nobody]


def test_a_voter_that_is_about_to_lose_its_seat_does_not_count(
    client: Client, services: Services
) -> None:
    """It is cut off already, though it still has the seat and is alive."""
    assert isinstance(services.trust, Knowing)
    services.trust.roles[node_id("n2")] = ("worker",)
    with pytest.raises(Conflict, match="1 of 3 voters would be left"):
        client.authority_propose(without("n3", "without its role"))
    del services.trust.roles[node_id("n2")]  # Evicted, and membership has not heard of it yet.
    with pytest.raises(Conflict, match="1 of 3 voters would be left"):
        client.authority_propose(without("n3", "evicted"))


def test_the_log_of_another_swarm_is_not_taken_for_this_ones(
    client: Client, services: Services
) -> None:
    services.trust = log_of(3)
    with pytest.raises(Failed, match="of another swarm"):
        read_log(client, init_swarm("lab", "n1")[0].swarm_id)


def test_a_node_called_like_anothers_id_is_ambiguous() -> None:
    state = log_of(1)._state
    first = next(iter(state.admissions.values()))
    impostor = replace(first, node_id=NodeId(bytes(32)), name=to_text(first.node_id)[:8])
    state.admissions[impostor.node_id] = impostor
    with pytest.raises(BadInput, match="several nodes are called"):
        find_node(state, impostor.name)


def test_a_name_means_the_living_node_where_that_may_be_undone() -> None:
    state = log_of(1)._state
    first = next(iter(state.admissions.values()))
    later = replace(first, node_id=NodeId(bytes(32)))
    state.admissions[later.node_id] = later
    assert find_node(state, "n1", [to_text(later.node_id)]) is later
    for living in ((), [to_text(first.node_id), to_text(later.node_id)]):
        with pytest.raises(BadInput, match="several nodes are called"):
            find_node(state, "n1", living)


def test_the_only_voter_stays(client: Client, services: Services) -> None:
    assert isinstance(services.store, FakeStore)
    services.store._voters = [node_id("n1")]
    with pytest.raises(Conflict, match="swarmctl --node n1 leave"):
        client.authority_propose(without("n1", "evicted"))
    stays = signed(SetRoles(node_id("n1"), ("voter",), fresh_nonce()))
    client.authority_propose(stays)
    admin = signed(AddAdmin(SigningKey.generate().public, fresh_nonce()))
    client.authority_propose(admin)
    assert services.store.authority == [stays, admin]


def test_nodes_tokens_and_keys_are_found_by_the_beginning_of_their_ids() -> None:
    state = log_of(2)._state
    first = next(iter(state.admissions.values()))
    text = next(iter(state.admins))
    assert find_node(state, "n1") is first
    with pytest.raises(BadInput, match="no node is called 'n2'; the nodes are n1"):
        find_node(state, "n2")
    with pytest.raises(BadInput, match="there is no token 'x'"):
        find_id(list(state.tokens), "x", "token")
    with pytest.raises(BadInput, match="there is no token ''"):
        find_id(list(state.tokens), "", "token")
    assert find_node(state, to_text(first.node_id)[:6].upper()) is first
    assert find_id([text], to_text(text)[:8], "admin key") == text
    with pytest.raises(BadInput, match="several tokens begin"):
        find_id([NodeId(bytes(32)), NodeId(bytes(31) + b"\1")], "aaaaaaaa", "token")

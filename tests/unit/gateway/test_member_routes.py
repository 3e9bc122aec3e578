"""What the API tells of members: names that several carry, and tags."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from gateway_fakes import FakeMesh, LiveGateway, make_services, member, node_id
from gateway_pair import blocking, two_nodes

from swarmd.base.errors import BadRequest, NotFound, TooLarge
from swarmd.base.ids import short, to_text
from swarmd.client import Client
from swarmd.mesh.swim.messages import MemberState


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveGateway]:
    with LiveGateway(make_services(tmp_path)) as gateway:
        yield gateway


@pytest.fixture
def client(live: LiveGateway) -> Iterator[Client]:
    with Client(live.socket) as one:
        yield one


def mesh_of(live: LiveGateway) -> FakeMesh:
    assert isinstance(live.services.mesh, FakeMesh)
    return live.services.mesh


def test_a_name_of_two_living_members_is_told(live: LiveGateway, client: Client) -> None:
    twin = replace(member("twin"), name="n2")
    gone = replace(member("gone", MemberState.DEAD), name="n3")
    membership = mesh_of(live).membership
    found = [*membership.found, twin, gone]
    live.call(lambda: membership.become(*found))
    told = {one.node_id: one.namesakes for one in client.members() if one.namesakes}
    first, second = to_text(node_id("n2")), to_text(twin.node_id)
    assert told == {first: [second], second: [first]}


def test_tags_are_told(live: LiveGateway, client: Client) -> None:
    tagged = replace(member("n2"), tags=(("gpu", "2"), ("rack", "a")))
    membership = mesh_of(live).membership
    live.call(lambda: membership.become(member("n1"), tagged))
    assert [one.tags for one in client.members()] == [{}, {"gpu": "2", "rack": "a"}]


async def test_the_doctor_warns_of_a_shared_name(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as pair:
        twin = replace(member("twin", MemberState.SUSPECT), name="n2")
        assert isinstance(pair.here.mesh, FakeMesh)
        pair.here.mesh.membership.become(*pair.here.mesh.membership.found, twin)
        checks = {one.name: one for one in (await blocking(pair.client("n1").doctor)).checks}
        assert checks["names"].verdict == "warn"
        assert all(short(x) in checks["names"].finding for x in (node_id("n2"), twin.node_id))
        assert f"not heard: n2 {short(twin.node_id)}" in checks["members"].finding
        with pytest.raises(NotFound, match="several members are called 'n2'"):
            await blocking(pair.client("n2").status)


async def test_tags_are_changed_at_the_member_that_is_named(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as pair:
        assert isinstance(pair.there.mesh, FakeMesh)
        there = pair.there.mesh.membership
        there.set_tags({"rack": "a", "zone": "east"})
        client = pair.client("n2")
        done = await blocking(client.change_tags, {"rack": "b", "gpu": "2"}, ["zone", "unknown"])
        assert (done.node, done.node_id) == ("n2", to_text(node_id("n2")))
        assert done.tags == {"gpu": "2", "rack": "b"}
        assert there.tags == (("gpu", "2"), ("rack", "b"))
        assert pair.here.mesh.membership.tags == ()  # type: ignore[union-attr]


def test_tags_are_changed_all_or_not_at_all(live: LiveGateway, client: Client) -> None:
    membership = mesh_of(live).membership
    live.call(lambda: membership.set_tags({"rack": "a"}))
    with pytest.raises(BadRequest, match="'a b' is no key of a tag"):
        client.change_tags({"zone": "east", "a b": "c"}, ["rack"])
    with pytest.raises(BadRequest, match="nothing is changed: 'rack' is both"):
        client.change_tags({"rack": "b"}, ["rack"])
    with pytest.raises(BadRequest, match="length <= 16"):
        client.change_tags({f"k{n}": "" for n in range(17)})
    with pytest.raises(TooLarge, match="at most 144 fit"):
        client.change_tags({f"k{n}": "x" * 60 for n in range(3)})
    assert membership.own_tags == {"rack": "a"}
    assert client.change_tags(remove=["rack"]).tags == {}

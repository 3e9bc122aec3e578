"""What a node tells of the voters' logs, its own and those it asks over the mesh."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateway_fakes import FakeStore, make_services, node_id
from gateway_pair import blocking, two_nodes

from swarmd.base.errors import NotFound, SwarmError, TimedOut, Unreachable
from swarmd.base.ids import to_text
from swarmd.gateway.forward import ask_member
from swarmd.gateway.routes.raft import own_log, with_lags
from swarmd.gateway.shapes import FollowerInfo, VoterInfo


async def test_a_follower_is_told_what_its_leader_knows(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as pair:
        here, there = pair.here.store, pair.there.store
        assert isinstance(here, FakeStore)
        assert isinstance(there, FakeStore)
        for store in (here, there):
            store._voters = [node_id("n2"), node_id("n1"), node_id("n3")]
        here.follow()
        there.lead("n1", "n3")
        found = await blocking(pair.client("n1").raft_status)
        assert (found.node, found.coordinator, found.epoch) == ("n1", "n2", 1)
        first, second, third = found.voters
        assert (first.node, first.role, first.lag, first.silence_s) == ("n1", "follower", 0, 0.02)
        assert (second.node, second.role, second.lag) == ("n2", "leader", None)
        assert (second.journal_bytes, second.fsync_slowest_ms) == (5_000, 12.3)
        assert (third.lag, bool(third.problem)) == (1, True)
        assert found.missing == [third.node]
        office = await blocking(pair.client("n1").coordinator)
        assert (office.node, office.fence, office.term) == ("n2", 7, 3)


async def test_a_member_that_is_asked_answers_or_says_why_not(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as pair:
        assert pair.here.mesh is not None
        link = pair.here.mesh.link
        assert b"n2" in await ask_member(link, node_id("n2"), "/health", timeout_s=1)
        with pytest.raises(NotFound, match="is no voter"):
            await ask_member(link, node_id("n2"), "/api/v1/raft/own", timeout_s=1)
        with pytest.raises((Unreachable, TimedOut)):
            await ask_member(link, node_id("n9"), "/health", timeout_s=0.2)
        with pytest.raises(SwarmError):
            await ask_member(link, node_id("n2"), "/nowhere", timeout_s=1)


def test_the_leader_of_the_highest_term_is_believed(tmp_path: Path) -> None:
    def leader(name: str, term: int, lag: int) -> VoterInfo:
        known = [FollowerInfo(node_id="c", lag=lag, silence_s=0.0)]
        return VoterInfo(node=name, node_id=name, role="leader", term=term, followers=known)

    third = VoterInfo(node="c", node_id="c", role="follower")
    logs = with_lags([leader("a", 4, 100), leader("b", 5, 2), third])
    assert [one.lag for one in logs] == [None, None, 2]
    assert with_lags([third]) == [third]
    services = make_services(tmp_path)
    assert own_log(services) is None
    assert isinstance(services.store, FakeStore)
    services.store.lead("n2")
    own = own_log(services)
    assert own is not None
    assert [one.node_id for one in own.followers] == [to_text(node_id("n2"))]

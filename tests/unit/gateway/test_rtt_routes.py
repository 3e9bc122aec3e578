"""The round trip between members, as the API and swarmctl tell it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from gateway_fakes import FakeMembership, FakeMesh, LiveGateway, make_services, member, node_id
from gateway_pair import Pair, blocking, two_nodes

from swarmd.base.errors import BadRequest, NotFound, NotReady, RemoteError, Unreachable
from swarmd.base.ids import to_text
from swarmd.cli.member_views import rtt_text
from swarmd.client import Client
from swarmd.gateway.routes import rtt as rtt_routes
from swarmd.gateway.services import Services
from swarmd.gateway.shapes_members import Rtt
from swarmd.mesh.swim.coordinates import Coordinate
from swarmd.mesh.swim.messages import MemberState

BIN = Path(sys.executable).parent
HERE = Coordinate((0.001, *(0.0,) * 7), 0.0005, 0.0, 0.2)
THERE = Coordinate((0.004, *(0.0,) * 7), 0.0001, 0.0, 0.3)


def membership_of(services: Services) -> FakeMembership:
    assert isinstance(services.mesh, FakeMesh)
    return services.mesh.membership


def put(services: Services, place: Coordinate) -> None:
    membership_of(services).places.own = place


def hear(services: Services, name: str, place: Coordinate) -> None:
    assert membership_of(services).places.update(node_id(name), place, 0.004)


async def rtt(pair: Pair, a: str, b: str = "", node: str = "n1") -> Any:
    return await blocking(pair.client(node).rtt, a, b)


async def test_a_member_that_was_never_heard_is_asked_for_its_place(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as pair:
        put(pair.here, HERE)
        put(pair.there, THERE)
        found = await rtt(pair, "n2")
        assert (found.a, found.b, found.rtt_ms, found.error) == ("n2", "n1", 3.6, 0.3)
        assert found.a_id == to_text(node_id("n2"))
        assert (await rtt(pair, "n1", "n2")).rtt_ms == 3.6
        assert (await rtt(pair, "n1", node="n2")).rtt_ms == 3.6
        assert (await rtt(pair, to_text(node_id("n2"))[:8])).rtt_ms == 3.6


async def test_what_was_heard_is_not_asked_for(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as pair:
        hear(pair.here, "n2", THERE)
        put(pair.here, HERE)
        pair.network.cut(node_id("n1"), node_id("n2"))
        assert (await rtt(pair, "n2")).rtt_ms == 3.6
        members = {x.name: x.rtt_ms for x in await blocking(pair.client("n1").members)}
        assert members == {"n1": None, "n2": 3.6}


async def test_who_has_no_place_yet_is_told_so(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as pair:
        put(pair.here, HERE)
        with pytest.raises(NotReady, match="n2 has no coordinate yet: none of its probes"):
            await rtt(pair, "n2")
        put(pair.here, Coordinate())
        put(pair.there, THERE)
        with pytest.raises(NotReady, match="n1 has no coordinate yet"):
            await rtt(pair, "n2")


async def test_two_members_have_to_be_named(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as pair:
        put(pair.here, HERE)
        for a, b in (("n1", ""), ("", ""), ("n2", "n2")):
            with pytest.raises(BadRequest, match="name two members"):
                await rtt(pair, a, b)
        with pytest.raises(NotFound, match="no member is called 'n9'"):
            await rtt(pair, "n9")


async def test_who_cannot_be_asked_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_nodes(tmp_path) as pair:
        put(pair.here, HERE)
        put(pair.there, THERE)
        with monkeypatch.context() as patch:
            patch.setattr(rtt_routes, "COORDINATE_PATH", "/api/v1/not-there-yet")
            with pytest.raises(RemoteError, match="n2 runs an older version"):
                await rtt(pair, "n2")
        pair.network.cut(node_id("n1"), node_id("n2"))
        with pytest.raises(Unreachable, match="n2 could not be asked where it is"):
            await rtt(pair, "n2")
        gone = replace(member("n3", MemberState.DEAD))
        membership_of(pair.here).become(*membership_of(pair.here).found, gone)
        with pytest.raises(Unreachable, match="n3 is dead, and never told"):
            await rtt(pair, "n3")


@pytest.mark.parametrize(
    "place",
    [
        Coordinate((math.nan,) * 8),
        Coordinate((0.1,) * 8, -1.0),
        Coordinate((99.0,) * 8),
        Coordinate((0.1,) * 9),
        Coordinate((0.1,) * 8, error=7.0),
    ],
)
async def test_a_place_that_is_none_is_not_believed(tmp_path: Path, place: Coordinate) -> None:
    async with two_nodes(tmp_path) as pair:
        put(pair.here, HERE)
        put(pair.there, place)
        with pytest.raises(
            RemoteError, match=r"n2 (says that it is where|answered something else)"
        ):
            await rtt(pair, "n2")


@pytest.fixture
def live(tmp_path: Path) -> Any:
    with LiveGateway(make_services(tmp_path)) as gateway:
        hear(gateway.services, "n2", THERE)
        put(gateway.services, HERE)
        yield gateway


def ctl(live: LiveGateway, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "swarmctl"), *arguments],
        env={**os.environ, "SWARMCTL_SOCKET": live.socket},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_swarmctl_shows_it(live: LiveGateway) -> None:
    assert ctl(live, "node", "rtt", "n2").stdout == "n2 - n1: 3.6 ms\n"
    found = json.loads(ctl(live, "--json", "node", "rtt", "n1", "n2").stdout)
    assert (found["a"], found["b"], found["rtt_ms"], found["error"]) == ("n1", "n2", 3.6, 0.3)
    refused = ctl(live, "node", "rtt", "n9")
    assert refused.returncode != 0
    assert "no member is called 'n9'" in refused.stderr


def test_an_estimate_that_is_none_yet_is_called_rough() -> None:
    sure = Rtt(a="n1", a_id="a", b="n2", b_id="b", rtt_ms=0.42, error=0.2)
    assert rtt_text(sure) == "n1 - n2: 0.42 ms"
    unsure = msgspec.structs.replace(sure, error=0.9)
    assert rtt_text(unsure) == "n1 - n2: 0.42 ms, a rough estimate as yet"


def test_the_watch_of_members_tells_no_news_of_every_microsecond(live: LiveGateway) -> None:
    with Client(live.socket) as client:
        watching = client.members_watch()
        assert next(watching).first
        membership = membership_of(live.services)
        put(live.services, THERE)
        live.call(lambda: membership.become(*membership.found, member("n4")))
        assert [one.name for one in next(watching).members] == ["n4"]
        watching.close()

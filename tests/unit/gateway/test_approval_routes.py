"""Who asks to join, over the API: verified, merged, bounded; and denying one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_fakes import SWARM_ID, LiveGateway, make_services, node_id

from swarmd.base.errors import BadRequest
from swarmd.base.ids import NodeId
from swarmd.client import Client
from swarmd.gateway.services import Services
from swarmd.identity.fingerprints import Fingerprint, door_of, fingerprint_of_node
from swarmd.identity.keys import SigningKey
from swarmd.identity.requests import open_request, sign_request
from swarmd.mesh.approval.messages import Waiting
from swarmd.mesh.approval.service import Listed

DOOR = door_of(SWARM_ID)
KEYS = [SigningKey.from_seed(bytes([number]) * 32) for number in range(1, 4)]
REQUESTS = [sign_request(DOOR, key, f"new{number}") for number, key in enumerate(KEYS)]


class FakeApprovals:
    def __init__(self) -> None:
        self.listed: list[tuple[NodeId, Waiting]] = []
        self.missing: tuple[NodeId, ...] = ()
        self.denied: list[Fingerprint] = []

    async def waiting(self) -> Listed:
        return Listed(tuple(self.listed), self.missing)

    async def deny(self, fingerprint: Fingerprint) -> tuple[bool, tuple[NodeId, ...]]:
        self.denied.append(fingerprint)
        return len(self.denied) == 1, self.missing


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return make_services(tmp_path)


@pytest.fixture
def approvals(services: Services) -> FakeApprovals:
    found = FakeApprovals()
    mesh: Any = services.mesh
    mesh.approvals = found
    return found


@pytest.fixture
def client(services: Services) -> Iterator[Client]:
    with LiveGateway(services) as live, Client(live.socket) as client:
        yield client


def heard(
    member: str,
    request: bytes,
    host: str = "10.0.0.9",
    waited_s: float = 5.0,
    silent_s: float = 1.0,
) -> tuple[NodeId, Waiting]:
    return node_id(member), Waiting(request, host, waited_s, silent_s)


def test_one_node_at_several_members_is_one_line(client: Client, approvals: FakeApprovals) -> None:
    approvals.listed = [
        heard("n1", REQUESTS[0], "10.0.0.8", 60.0, 40.0),
        heard("n2", REQUESTS[0], "10.0.0.9", 20.0, 2.0),
        heard("n2", REQUESTS[1], waited_s=300.0),
    ]
    approvals.missing = (node_id("n3"),)
    found = client.join_requests()
    old, new = found.waiting
    assert (old.name, new.name) == ("new1", "new0"), "who waits longest comes first"
    assert (new.address, new.waited_s, new.silent_s) == ("10.0.0.9", 60.0, 2.0)
    assert new.asked == ["n1", "n2"]
    assert new.fingerprint == fingerprint_of_node(DOOR, KEYS[0].public).raw.hex()
    assert open_request(new.request, DOOR).public == KEYS[0].public
    assert found.missing == ["n3"]


def test_what_a_member_makes_up_is_left_out_or_cut(
    client: Client, approvals: FakeApprovals
) -> None:
    approvals.listed = [
        heard("n2", REQUESTS[0].replace(b"new0", b"root")),
        heard("n2", sign_request(door_of(b"t" * 32), KEYS[0], "new0")),
        heard("n2", b"junk"),
        heard("n2", b"x" * 100_000),
        heard("n2", REQUESTS[2], "h" * 10_000, math.nan, math.inf),
    ]
    [one] = client.join_requests().waiting
    assert one.name == "new2"
    assert len(one.address) == 64
    assert math.isfinite(one.waited_s)
    assert math.isfinite(one.silent_s)
    approvals.listed = [heard("n2", b"%d" % number) for number in range(5_000)]
    assert client.join_requests().waiting == []


def test_one_is_denied_by_its_whole_fingerprint(client: Client, approvals: FakeApprovals) -> None:
    fingerprint = fingerprint_of_node(DOOR, KEYS[0].public)
    for text in ("", "zebra", fingerprint.raw.hex()[:12]):
        with pytest.raises(BadRequest):
            client.deny_join_request(text)
    assert approvals.denied == []
    assert client.deny_join_request(fingerprint.words).warnings == []
    approvals.missing = (node_id("n3"),)
    done = client.deny_join_request(fingerprint.raw.hex())
    assert approvals.denied == [fingerprint, fingerprint]
    assert done.warnings == [
        "n3 did not answer: there it may ask again",
        "it was not waiting at any member that answered",
    ]

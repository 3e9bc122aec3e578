"""User events and questions to all members, over the API."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from access_gateway import Guarded, guarded_gateway
from gateway_fakes import FakeMesh, LiveGateway, make_services, member, node_id
from gateway_pair import blocking, two_nodes

from swarmd import __version__
from swarmd.base.errors import BadRequest, NotFound, SwarmError, TooLarge
from swarmd.base.ids import to_text
from swarmd.base.limits import QUERY_ANSWER_BYTES_MAX
from swarmd.client import Client
from swarmd.gateway import answers
from swarmd.gateway.routes import queries
from swarmd.mesh.swim.messages import MemberState


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveGateway]:
    with LiveGateway(make_services(tmp_path)) as gateway:
        yield gateway


@pytest.fixture
def client(live: LiveGateway) -> Iterator[Client]:
    with Client(live.socket) as one:
        yield one


# ---- events -----------------------------------------------------------------------------


def test_an_event_is_sent_listed_and_watched(live: LiveGateway, client: Client) -> None:
    with Client(live.socket) as other:
        news = other.event_watch(["deploy"])
        assert next(news).names == ["deploy"]
        client.event_send("else")
        sent = client.event_send("deploy", "v2 ä")
        heard = next(news)
        assert heard.event == sent
        assert heard.missed == 0
    assert (sent.name, sent.payload, sent.time) == ("deploy", "v2 ä", 2)
    assert (sent.node, sent.node_id) == ("n1", to_text(node_id("n1")))
    assert [one.time for one in client.events()] == [1, 2]


@pytest.mark.parametrize(
    ("name", "payload", "error", "text"),
    [
        ("a b", "", BadRequest, "not a user event name"),
        ("x" * 129, "", BadRequest, "128"),
        ("deploy", "x" * 513, TooLarge, "513 bytes.*at most 512"),
    ],
)
def test_what_is_no_event_is_refused_and_nothing_sent(
    client: Client, name: str, payload: str, error: type[SwarmError], text: str
) -> None:
    with pytest.raises(error, match=text):
        client.event_send(name, payload)
    assert client.events() == []


def test_who_may_hear_some_events_hears_those_and_sends_none(tmp_path: Path) -> None:
    with guarded_gateway(tmp_path, stranger_requests_per_min=100_000) as guarded:
        some = guarded.new_key("some", rules=["event:read:deploy*", "event:send:deploy"])
        guarded.admin.event_send("deploy-web")
        guarded.admin.event_send("secret")
        status, found, _ = guarded.ask("GET", "/api/v1/events", some)
        assert (status, [one["name"] for one in found]) == (200, ["deploy-web"])
        assert _status(guarded, some, "POST", "/api/v1/events/deploy") == 200
        assert _status(guarded, some, "POST", "/api/v1/events/deploy-web") == 403
        assert _status(guarded, some, "GET", "/api/v1/events/watch") == 403
        assert _status(guarded, some, "GET", "/api/v1/events/watch?name=secret") == 403
        assert _status(guarded, some, "POST", "/api/v1/queries/ping") == 403


def _status(guarded: Guarded, credential: str, method: str, path: str) -> int:
    status: int = guarded.ask(method, path, credential, {} if method == "POST" else None)[0]
    return status


# ---- questions --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["disk", "load", "ping", "uptime", "version"])
async def test_all_answer_what_every_daemon_knows(tmp_path: Path, name: str) -> None:
    async with two_nodes(tmp_path) as pair:
        for services in (pair.here, pair.there):
            services.config.data_folder.mkdir(exist_ok=True)
        found = await blocking(pair.client("n1").query, name)
        assert (found.query, found.node, found.asked) == (name, "n1", 2)
        assert (found.acks, found.answers, found.missing) == (2, 2, [])
        assert [one.node for one in found.nodes] == ["n1", "n2"]
        first, second = (one.answer for one in found.nodes)
        assert first is not None
        assert second is not None
        assert first.keys() == second.keys()
        if name == "version":
            assert first["swarmd"] == __version__
        elif name == "disk":
            assert 0 < first["free_bytes"] < first["total_bytes"]
        elif name == "load":
            assert first["cores"] >= 1


async def test_a_payload_comes_back_and_only_whom_one_names_is_asked(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as pair:
        client = pair.client("n1")
        found = await blocking(client.query, "ping", "grüße &=?", nodes=["n2", "n2"])
        assert [(one.node, one.answer) for one in found.nodes] == [("n2", {"payload": "grüße &=?"})]
        tagged = replace(member("n2"), tags=(("gpu", "2"), ("rack", "a")))
        assert isinstance(pair.here.mesh, FakeMesh)
        pair.here.mesh.membership.become(member("n1"), tagged)
        for tags, asked in (
            ({"rack": "a"}, ["n2"]),
            ({"rack": "b"}, []),
            ({"rack": "a", "x": ""}, []),
        ):
            found = await blocking(client.query, "ping", tags=tags)
            assert [one.node for one in found.nodes] == asked
        with pytest.raises(NotFound, match="no member is called 'n9'"):
            await blocking(client.query, "ping", nodes=["n9"])


async def test_a_question_that_nobody_answers_is_an_error_of_each(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as pair:
        found = await blocking(pair.client("n1").query, "weather")
        assert (found.asked, found.acks, found.answers, found.missing) == (2, 2, 0, [])
        assert {one.code for one in found.nodes} == {"not_found"}
        assert "n2 answers no question 'weather': it answers disk" in found.nodes[1].problem
        found = await blocking(pair.client("n1").query, "uptime", "now")
        assert {one.code for one in found.nodes} == {"bad_request"}


async def test_who_does_not_answer_in_time_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(*_: object, **__: object) -> bytes:
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    monkeypatch.setattr(queries, "ask_member", silent)
    async with two_nodes(tmp_path) as pair:
        assert isinstance(pair.here.mesh, FakeMesh)
        dead = member("n3", MemberState.DEAD)
        pair.here.mesh.membership.become(*pair.here.mesh.membership.found, dead)
        found = await blocking(pair.client("n1").query, "ping", timeout_s=0.2)
        assert (found.asked, found.acks, found.answers, found.missing) == (2, 1, 1, ["n2"])
        assert found.nodes[1].problem == "it did not answer within 0.2 s"
        found = await blocking(pair.client("n1").query, "ping", nodes=["n3"], timeout_s=0.2)
        assert (found.missing, found.nodes[0].problem) == (["n3"], "it is dead")


async def test_who_is_suspected_keeps_nobody_else_from_being_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    async def silent(_: object, peer: object, *__: object, **___: object) -> bytes:
        asked.append(peer)
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    monkeypatch.setattr(queries, "ask_member", silent)
    monkeypatch.setattr(queries, "_AT_ONCE_MAX", 2)
    async with two_nodes(tmp_path) as pair:
        assert isinstance(pair.here.mesh, FakeMesh)
        doubted = [member(f"s{number}", MemberState.SUSPECT) for number in range(3)]
        pair.here.mesh.membership.become(*doubted, *pair.here.mesh.membership.found)
        found = await blocking(pair.client("n1").query, "ping", timeout_s=0.2)
        assert asked == [member("n2").node_id, doubted[0].node_id]
        assert [one.node for one in found.nodes if one.answer is not None] == ["n1"]
        assert [one.code for one in found.nodes if one.node in ("s1", "s2")] == ["not_asked"] * 2
        assert set(found.missing) == {"s0", "s1", "s2", "n2"}


async def test_an_answer_is_bounded_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = {"payload": "x" * QUERY_ANSWER_BYTES_MAX}
    monkeypatch.setattr(answers, "_ANSWERS", {"ping": lambda *_: large})
    async with two_nodes(tmp_path) as pair:
        found = await blocking(pair.client("n1").query, "ping")
        assert {one.code for one in found.nodes} == {"too_large"}
        assert "at most 1024 fit" in found.nodes[1].problem

        async def insist(*_: object, **__: object) -> bytes:
            await trio.lowlevel.checkpoint()
            return bytes(QUERY_ANSWER_BYTES_MAX + 1)

        monkeypatch.setattr(queries, "ask_member", insist)
        found = await blocking(pair.client("n1").query, "ping", nodes=["n2"])
        assert found.nodes[0].code == "too_large"


async def test_bad_questions_ask_nobody(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as pair:
        client = pair.client("n1")
        with pytest.raises(TooLarge, match=r"513 bytes.*nobody was asked"):
            await blocking(client.query, "ping", "x" * 513)
        with pytest.raises(BadRequest, match="not a query name"):
            await blocking(client.query, "a b")
        with pytest.raises(BadRequest, match="timeout_ms"):
            await blocking(client.query, "ping", timeout_s=61.0)

"""Members as they change, and who keeps streams to whom, as swarmctl shows them."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gateway"))

from gateway_fakes import FakeMesh, LiveGateway, make_services, member, node_id

from swarmd.base.ids import to_text
from swarmd.cli.member_views import change_lines, members_table, topology_dot, topology_tree
from swarmd.gateway.shapes import MemberInfo
from swarmd.gateway.shapes_members import MembersNews, Topology, TopologyNode
from swarmd.mesh.swim.messages import MemberState

BIN = Path(sys.executable).parent


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveGateway]:
    with LiveGateway(make_services(tmp_path)) as gateway:
        yield gateway


def become(live: LiveGateway, **states: MemberState) -> None:
    mesh = live.services.mesh
    assert isinstance(mesh, FakeMesh)
    found = [member(name, state) for name, state in states.items()]
    live.call(lambda: mesh.membership.become(*found))


def watching(live: LiveGateway, *more: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(BIN / "swarmctl"), "members", "--watch", *more],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SWARMCTL_SOCKET": live.socket},
    )


ALIVE, DEAD = MemberState.ALIVE, MemberState.DEAD


def test_changes_are_lines_where_nobody_looks_at_a_screen(live: LiveGateway) -> None:
    process = watching(live)
    assert process.stdout is not None
    first = [process.stdout.readline() for _ in range(3)]
    assert [line.split()[1] for line in first] == ["n1", "n2", "n3"]
    assert "alive at 127.0.0.1:7575, coordinator,worker, 0.1.0" in first[0]
    become(live, n1=ALIVE, n2=DEAD, n3=ALIVE)
    assert re.fullmatch(r"\d\d:\d\d:\d\d  n2  alive -> dead\n", process.stdout.readline())
    become(live, n1=ALIVE, n3=ALIVE, n4=ALIVE)
    assert process.stdout.readline().endswith("n2  forgotten\n")
    assert "n4  alive at 127.0.0.1:7575" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert out == ""


def test_as_json_each_change_is_a_document(live: LiveGateway) -> None:
    process = watching(live, "--json")
    assert process.stdout is not None
    news = json.loads(process.stdout.readline())
    assert news["first"]
    assert [one["name"] for one in news["members"]] == ["n1", "n2", "n3"]
    become(live, n1=ALIVE, n2=DEAD)
    news = json.loads(process.stdout.readline())
    assert [(one["name"], one["state"]) for one in news["members"]] == [("n2", "dead")]
    assert news["gone"] == [to_text(node_id("n3"))]
    live.stop()
    out, err = process.communicate(timeout=10)
    assert process.returncode == 4
    assert "ask another one" in out + err


def test_a_screen_shows_the_list_of_now(live: LiveGateway) -> None:
    ours, theirs = pty.openpty()
    process = watching(live, stdout=theirs)
    os.close(theirs)
    shown = b""
    while b"Ctrl-C ends" not in shown:
        shown += os.read(ours, 65_536)
    become(live, n1=ALIVE, n2=DEAD, n3=ALIVE)
    while b"dead" not in shown or not shown.rstrip().endswith(b"Ctrl-C ends"):
        shown += os.read(ours, 65_536)
    screens = shown.decode().split("\x1b[H\x1b[J")
    assert len(screens) == 3
    for screen in screens[1:]:
        assert "NAME" in screen
        assert len(re.findall(r"127\.0\.0\.1:7575", screen)) == 3
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    os.close(ours)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_each_kind_of_change_is_told() -> None:
    before = MemberInfo(
        node_id="aa", name="n1", state="alive", addresses=["10.0.0.1:7575"], version="0.1.0"
    )

    def said(**changes: object) -> str:
        after = MemberInfo(**{**_fields(before), **changes})  # type: ignore[arg-type]
        [line] = change_lines({"aa": before}, MembersNews(members=[after]))
        return line

    assert said(state="dead") == "n1  alive -> dead"
    assert said(addresses=["10.0.0.9:7575"]) == "n1  at 10.0.0.9:7575"
    assert said(coordinator=True) == "n1  - -> coordinator"
    assert said(version="0.2.0", incarnation=4) == "n1  version 0.2.0"
    assert said(name="n9\x1b[2J") == "n9\\x1b[2J  was called n1"
    assert said(namesakes=["bbbbbbbbbb"]) == "n1  its name is also that of bbbbbbbb"
    assert said(tags={"rack": "a", "gpu": "2"}) == "n1  tags gpu=2 rack=a"
    assert said(incarnation=4) == "n1  incarnation 4"


def _fields(one: MemberInfo) -> dict[str, object]:
    return {name: getattr(one, name) for name in one.__struct_fields__}


def test_a_name_of_several_is_shown_with_ids() -> None:
    def one(name: str, node_id: str, *namesakes: str) -> MemberInfo:
        return MemberInfo(node_id=node_id, name=name, state="alive", namesakes=list(namesakes))

    shown = members_table([one("n1", "a" * 52, "b" * 52), one("n1", "b" * 52), one("n2", "c" * 52)])
    assert [line.split("  ")[0] for line in shown.splitlines()[1:4]] == [
        "n1 aaaaaaaa",
        "n1 bbbbbbbb",
        "n2",
    ]
    assert shown.endswith("n1: several members carry this name; name one by its id")
    assert "several" not in members_table([one("n1", "a" * 52)])


def test_tags_are_shown_where_there_is_room() -> None:
    def one(name: str, address: str) -> MemberInfo:
        tags = {"zone": "east", "rack": "a" * 30} if name == "n1" else {}
        return MemberInfo(node_id=name, name=name, state="alive", addresses=[address], tags=tags)

    wide = members_table([one("n1", "10.0.0.1:7575"), one("n2", "10.0.0.2:7575")])
    assert [line.split("  ")[-1] for line in wide.splitlines()[:1]] == ["TAGS"]
    assert "rack=aaaaaa" in wide
    assert wide.splitlines()[1].endswith("…")
    assert all(len(line) <= 80 for line in wide.splitlines())
    narrow = members_table([one("n1", "[fd00:1234:5678:9abc:def0:1234:5678:9abc]:7575")])
    assert "TAGS" not in narrow
    assert "TAGS" not in members_table([one("n2", "10.0.0.2:7575")])


def node_tags(live: LiveGateway, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "swarmctl"), "node", "tags", *more],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SWARMCTL_SOCKET": live.socket},
    )


def test_tags_are_shown_and_changed(live: LiveGateway) -> None:
    mesh = live.services.mesh
    assert isinstance(mesh, FakeMesh)
    done = node_tags(live, "n1", "rack=a", "note=x=y", "--remove", "zone")
    assert done.stdout == "n1 tells note=x=y rack=a, until its daemon is started anew\n"
    assert mesh.membership.own_tags == {"note": "x=y", "rack": "a"}
    done = node_tags(live, "n1", "--remove", "rack", "--remove", "note")
    assert done.stdout == "n1 tells no tags, until its daemon is started anew\n"
    tagged = replace(member("n2"), tags=(("rack", "b"),))
    live.call(lambda: mesh.membership.become(member("n1"), tagged))
    shown = [line.split() for line in node_tags(live).stdout.splitlines()]
    assert shown == [["NAME", "STATE", "TAGS"], ["n1", "alive", "-"], ["n2", "alive", "rack=b"]]
    assert json.loads(node_tags(live, "n2", "--json").stdout)[0]["tags"] == {"rack": "b"}
    assert node_tags(live, to_text(node_id("n2"))[:8]).stdout.splitlines()[1].startswith("n2 ")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("n9",), "no member is called 'n9'"),
        (("--remove", "rack"), "name the node first"),
        (("rack=a",), "name the node first"),
        (("rack=a", "zone=b"), "name the node first"),
        (("n1", "rack"), "'rack' is not KEY=VALUE"),
        (("n1", "a b=c"), "'a b' is no key of a tag"),
    ],
)
def test_mistakes_with_tags_are_told(live: LiveGateway, given: tuple[str, ...], says: str) -> None:
    done = node_tags(live, *given)
    assert done.returncode != 0
    assert says in done.stderr
    assert live.services.mesh.membership.own_tags == {}  # type: ignore[union-attr]


# ---- who keeps streams to whom ------------------------------------------------------------

FOUND = Topology(
    node="n1",
    swarm='l"ab',
    nodes=[
        TopologyNode(node="n2", node_id="bb", state="alive", peers=["aa"]),
        TopologyNode(node="n1", node_id="aa", state="alive", coordinator=True, peers=["bb", "cc"]),
        TopologyNode(node="n3", node_id="cc", state="alive", peers=[]),
        TopologyNode(node="n4", node_id="dd", state="dead", problem="it is dead"),
    ],
)


def test_the_tree_names_each_side_of_every_stream() -> None:
    assert topology_tree(FOUND).splitlines() == [
        "n1  alive, coordinator",
        "├── n2",
        "└── n3  (only this side says so)",
        "n2  alive",
        "└── n1",
        "n3  alive",
        "└── no streams",
        "n4  dead",
        "└── unknown: it is dead",
    ]


def test_the_graph_has_each_stream_once() -> None:
    assert topology_dot(FOUND).splitlines() == [
        'graph "l\\"ab" {',
        "  node [shape=box];",
        '  "aa" [label="n1\\nalive, coordinator"];',
        '  "bb" [label="n2\\nalive"];',
        '  "cc" [label="n3\\nalive"];',
        '  "dd" [label="n4\\ndead", style=dashed];',
        '  "aa" -- "bb";',
        '  "aa" -- "cc" [style=dashed];',
        "}",
    ]

"""Each check of the doctor, made to speak."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gateway_fakes import member, node_id

from swarmd.base.limits import MIB
from swarmd.gateway import doctor, local_facts, shapes
from swarmd.gateway.doctor import InterfaceFacts, NodeFacts, PeerFacts
from swarmd.gateway.local_facts import LocalFacts
from swarmd.gateway.status import next_loss
from swarmd.identity.authority import CREDENTIAL_MS
from swarmd.mesh.swim.messages import MemberState

LOCAL = LocalFacts(
    data_folder="/var/lib/swarmd",
    folder_problem="",
    free_bytes=9_000 * MIB,
    port=7575,
    port_problem="",
    port_is_ours=True,
    clock_synchronised=True,
    firewalls=(),
)
HEALTHY = NodeFacts(
    node="n1",
    not_ready="",
    swarm="lab",
    local=LOCAL,
    mdns=True,
    interfaces=(InterfaceFacts("eth0", True, 2, 0, ""),),
    seeds=(),
    seed_problems=(),
    peers=(PeerFacts("n2", "alive", True, 0.01), PeerFacts("n3", "alive", True, -0.02)),
    store_state="ok",
    voters=("n1", "n2", "n3"),
    coordinator="n1",
    may_lose=1,
    next_loss="any one node may be lost",
)


def check(name: str, **changes: Any) -> shapes.Check:
    facts = replace(HEALTHY, **changes)
    return next(one for one in doctor.examine(facts) if one.name == name)


def test_a_healthy_node_has_nothing_to_complain_about() -> None:
    assert [one.verdict for one in doctor.examine(HEALTHY)] == ["ok"] * 8


@pytest.mark.parametrize(
    ("name", "changes", "verdict", "finding", "advice"),
    [
        ("daemon", {"not_ready": "no quorum"}, "fail", "not ready: no quorum", "other checks"),
        ("daemon", {"not_ready": "x", "swarm": ""}, "fail", "in no swarm", "swarmd --join -"),
        (
            "data folder",
            {"local": replace(LOCAL, folder_problem="this user may not write to /var/lib")},
            "fail", "may not write", "--data-folder",
        ),
        ("data folder", {"local": replace(LOCAL, free_bytes=500 * MIB)}, "warn", "500 MiB", "room"),
        ("data folder", {"local": replace(LOCAL, free_bytes=5 * MIB)}, "fail", "5 MiB", "room"),
        (
            "port",
            {"local": replace(LOCAL, port_problem="UDP port 7575 on 0.0.0.0: in use")},
            "fail", "UDP port 7575", "mesh.port",
        ),
        ("clock", {"peers": (PeerFacts("n2", "alive", True, 3),)}, "warn", "behind n2", "ntp"),
        ("clock", {"peers": (PeerFacts("n2", "alive", True, -90),)}, "fail", "ahead of n2", "ntp"),
        (
            "clock",
            {"peers": (), "local": replace(LOCAL, clock_synchronised=False)},
            "warn", "not synchronised", "set-ntp",
        ),
        (
            "mDNS eth0",
            {"interfaces": (InterfaceFacts("eth0", False, 0, 0, "no multicast"),), "peers": ()},
            "fail", "no multicast", "mesh.seeds",
        ),
        (
            "mDNS eth0",
            {"interfaces": (InterfaceFacts("eth0", True, 0, 3, ""),), "peers": ()},
            "warn", "3 adverts refused", "UDP 5353",
        ),
        ("mDNS", {"interfaces": (), "peers": ()}, "fail", "no interface", "mesh.interfaces"),
        ("mDNS", {"mdns": False, "peers": ()}, "warn", "no seeds", "mesh.seeds"),
        (
            "members",
            {"peers": (PeerFacts("n2", "alive", False, 0), PeerFacts("n3", "alive", True, 0))},
            "fail", "not reached over TCP: n2", "TCP port 7575",
        ),
        (
            "members",
            {
                "peers": (
                    PeerFacts("n2", "alive", True, 0, stream_only=True),
                    PeerFacts("n3", "dead", False, 0),
                )
            },
            "warn", "not over UDP: n2", "UDP port 7575",
        ),
        ("members", {"peers": (PeerFacts("n2", "dead", False, 0),)}, "warn", "heard: n2", "UDP"),
        (
            "seeds",
            {"seeds": ("h1", "h2"), "seed_problems": ("h2: unknown host",)},
            "warn", "h2: unknown host", "mesh.seeds",
        ),
        (
            "seeds",
            {"seeds": ("h1",), "seed_problems": ("h1: no member",), "mdns": False},
            "fail", "h1: no member", "port 7575",
        ),
        ("quorum", {"store_state": "no_quorum"}, "fail", "no majority", "start the voters"),
        ("quorum", {"coordinator": ""}, "fail", "no majority", "start the voters"),
        ("quorum", {"may_lose": 0}, "warn", "any one node", "from three nodes on"),
    ],
)  # fmt: skip
def test_each_trouble_is_found_and_answered(
    name: str, changes: dict[str, Any], verdict: str, finding: str, advice: str
) -> None:
    found = check(name, **changes)
    assert found.verdict == verdict
    assert finding in found.finding
    assert advice in found.advice


def test_a_node_in_no_swarm_is_checked_for_what_it_can_be() -> None:
    """Nobody was asked yet: not a word of seeds that answered, members or voters."""
    found = doctor.examine(replace(HEALTHY, swarm="", not_ready="x", seeds=("h1",), peers=()))
    names = [one.name for one in found]
    assert names == ["daemon", "data folder", "port", "clock", "firewall"]


def test_seeds_are_enough_without_mdns() -> None:
    found = check("mDNS", mdns=False, seeds=("host1:7575",))
    assert (found.verdict, found.finding) == ("ok", "off; seeds: host1:7575")


@pytest.mark.parametrize(
    ("tool", "line"),
    [
        ("ufw", "ufw allow 7575"),
        ("firewall-cmd", "--add-port=7575/udp"),
        ("nft", "tcp dport 7575 accept"),
        ("iptables", "-p tcp --dport 7575"),
    ],
)
def test_firewall_lines_fit_the_tool_that_is_here(tool: str, line: str) -> None:
    found = doctor.firewall(replace(LOCAL, firewalls=(tool,)))
    assert line in found.advice
    assert "5353" in found.advice or "mdns" in found.advice


# ---- this machine ---------------------------------------------------------------------


def test_a_taken_port_is_found_over_tcp_and_udp() -> None:
    host = "127.77.0.1"  # Nobody else's, so that no port there is in use by chance.
    for kind, name in ((socket.SOCK_STREAM, "TCP"), (socket.SOCK_DGRAM, "UDP")):
        with socket.socket(socket.AF_INET, kind) as taken:
            taken.bind((host, 0))
            if kind == socket.SOCK_STREAM:
                taken.listen()
            port = taken.getsockname()[1]
            assert f"{name} port {port}" in local_facts.port_problem(port, [host])
        assert local_facts.port_problem(port, [host]) == ""


def test_folders_that_cannot_keep_data_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "not a folder" in local_facts.folder_problem(tmp_path / "file" / "data")
    assert local_facts.folder_problem(tmp_path / "new" / "data") == ""
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    shared.chmod(0o755)
    assert "other users may read it" in local_facts.folder_problem(shared)


def test_facts_are_gathered_without_a_daemon(tmp_path: Path) -> None:
    facts = local_facts.gather(
        data_folder=tmp_path / "data", port=0, bind=["127.0.0.1", "::1"], port_is_ours=False
    )
    assert facts.folder_problem == ""
    assert facts.port_problem == ""
    assert facts.free_bytes > 0
    names = [one.name for one in doctor.examine_local(facts)]
    assert names == ["data folder", "port", "clock", "firewall"]


# ---- what the next loss costs ---------------------------------------------------------


@pytest.mark.parametrize(
    ("alive", "dead", "voters", "state", "may_lose", "says"),
    [
        (["a"], [], ["a"], "ok", 0, "this is the only node"),
        (["a", "b"], [], ["a"], "ok", 0, "losing a, the only voter, stops the swarm"),
        (["a", "b"], [], ["a"], "ok", 0, "losing b costs only the attempts it runs"),
        (["a", "b", "c"], [], ["a", "b", "c"], "ok", 1, "any one node may be lost"),
        (list("abcde"), [], list("abcde"), "ok", 2, "any 2 nodes may be lost"),
        (["a", "b"], ["c"], ["a", "b", "c"], "ok", 0, "c is away: losing one more voter stops"),
        (["a"], ["b", "c"], ["a", "b", "c"], "no_quorum", 0, "until b and c are back"),
    ],
)
def test_the_next_loss_is_told(
    alive: list[str], dead: list[str], voters: list[str], state: str, may_lose: int, says: str
) -> None:
    present = [*map(member, alive), *(member(one, MemberState.DEAD) for one in dead)]
    store = shapes.StoreStatus(state=state, voters=voters, may_lose=may_lose)
    assert says in next_loss(present, [node_id(one) for one in voters], store)


def test_a_credential_is_told_of_before_it_ends() -> None:
    """A quarter of a life is what the doctor calls late."""
    assert doctor.CREDENTIAL_WARN_MS == CREDENTIAL_MS // 4
    good = check("credential", credential_left_ms=CREDENTIAL_MS // 2)
    assert (good.verdict, good.finding) == (
        "ok",
        "good for 15 d more; it is renewed at half of its life",
    )
    late = check("credential", credential_left_ms=CREDENTIAL_MS // 5)
    assert late.verdict == "warn"
    assert "6 d more" in late.finding
    assert "the log of the daemon says why" in late.advice
    over = check("credential", credential_left_ms=0)
    assert over.verdict == "fail"
    assert "expired" in over.finding
